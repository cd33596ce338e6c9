"""Other machines as data: chips with memory off the die and clusters of them, as pytrees of floats with the usual presets.

Dense peaks only: what vendors print with sparsity is half of that here. Bandwidths are one way. Prices are inputs: those of the presets are
round figures for rented chips, an assumption, and what a comparison says of dollars is worth as much as they are.

Sources by short names: "DS" the vendor's data sheet; "ISCA23" Jouppi et al., "TPU v4" (ISCA 2023); "ISCA22" Abts et al., "A
Software-defined Tensor Streaming Multiprocessor" (ISCA 2022, Groq); "NCCL" the tuning constants of NCCL; "assumed" a figure that nobody
printed.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.tree_util

from wsejax.hardware.records import check_fields, replaced

PLAUSIBLE: dict[str, tuple[float, float]] = {
    "bf16_flops_per_second": (1e9, 1e18), "fp8_flops_per_second": (1e9, 1e18), "fp32_flops_per_second": (1e8, 1e18),
    "memory_bytes": (1e6, 1e14), "memory_bytes_per_second": (1e8, 1e16), "scale_up_bytes_per_second": (1e8, 1e14),
    "scale_up_latency_seconds": (0, 1e-2), "scale_out_bytes_per_second": (1e7, 1e13), "scale_out_latency_seconds": (0, 1e-1),
    "chips_per_domain": (1, 1e6), "chips_per_box": (1, 1e4), "chip_watts": (0.1, 1e5), "box_watts": (1, 1e6),
    "launch_seconds": (0, 1e-1), "dollars_per_hour": (0, 1e5),
}  # fmt: skip
CLUSTER_PLAUSIBLE: dict[str, tuple[float, float]] = {"chips": (1, 1e7), "kernel_efficiency": (1e-3, 1), "network_efficiency": (1e-3, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One chip and the box it comes in. All fields but `name` are floats, and leaves of a pytree.

    Raises:
      ValueError: a field is not finite, not positive, or so far from anything built that its unit must be wrong.
    """

    name: str
    bf16_flops_per_second: Any  # dense
    fp8_flops_per_second: Any  # dense; int8 where there is no fp8
    fp32_flops_per_second: Any  # dense, of the matrix units where they take 32-bit operands (TF32)
    memory_bytes: Any
    memory_bytes_per_second: Any
    scale_up_bytes_per_second: Any  # one way, all links of a chip to others of its domain
    scale_up_latency_seconds: Any  # of one message
    scale_out_bytes_per_second: Any  # one way, of a chip to another domain: its share of the NICs
    scale_out_latency_seconds: Any
    chips_per_domain: Any  # that the scale-up links join
    chips_per_box: Any
    chip_watts: Any
    box_watts: Any  # chips, hosts, fans and switches of a box at its peak
    launch_seconds: Any  # of one kernel or collective, in a queue that is not empty
    dollars_per_hour: Any  # of one chip with its share of the box: an input

    def __post_init__(self) -> None:
        check_fields(self, PLAUSIBLE)

    def replace(self, **changes: Any) -> Accelerator:
        """The same with some fields changed.

        Raises:
          ValueError: a name that is no field.
        """
        return replaced(self, changes)

    def flops_per_second(self, itemsize_bytes: int) -> Any:
        """Dense peak on operands of that size: 1, 2 or 4 bytes (8 at half of 4's, an assumption)."""
        if itemsize_bytes <= 1:
            return self.fp8_flops_per_second
        if itemsize_bytes <= 2:
            return self.bf16_flops_per_second
        return self.fp32_flops_per_second * (1.0 if itemsize_bytes <= 4 else 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Chips of one kind. `kernel_efficiency` is what kernels reach of the dense peak while none waits for a message."""

    name: str
    chip: Accelerator
    chips: Any
    # Megatron (SC21) reports 44 to 52% of peak on up to 3,072 A100 with communication, Llama 3 (2024) 38 to 43% on 16,384 H100.
    kernel_efficiency: Any = 0.45
    # NCCL's ring reaches 370 of 450 GB/s on eight H100 (a maintainer, nccl-tests issue 212), and 92% of the NICs on two boxes.
    network_efficiency: Any = 0.85

    def __post_init__(self) -> None:
        check_fields(self, CLUSTER_PLAUSIBLE)

    def replace(self, **changes: Any) -> Cluster:
        """The same with some fields changed. Raises ValueError where a name is no field."""
        return replaced(self, changes)

    @property
    def watts(self) -> Any:
        """Of all boxes at their peak; a box that is partly used counts in part."""
        return self.chips / self.chip.chips_per_box * self.chip.box_watts

    @property
    def dollars_per_hour(self) -> Any:
        return self.chips * self.chip.dollars_per_hour

    def dense_peak_flops_per_second(self, itemsize_bytes: int = 2) -> Any:
        return self.chips * self.chip.flops_per_second(itemsize_bytes)


def _register(cls: type) -> None:
    floats = [f.name for f in dataclasses.fields(cls) if f.name != "name"]
    jax.tree_util.register_dataclass(cls, data_fields=floats, meta_fields=["name"])


_register(Accelerator)
_register(Cluster)

A100 = Accelerator(
    name="A100",
    bf16_flops_per_second=312e12,  # DS
    fp8_flops_per_second=624e12,  # DS: int8
    fp32_flops_per_second=156e12,  # DS: TF32
    memory_bytes=80e9,  # DS: SXM, 80 GB
    memory_bytes_per_second=2.04e12,  # DS
    scale_up_bytes_per_second=300e9,  # DS: NVLink 3, 600 GB/s both ways
    scale_up_latency_seconds=0.6e-6,  # NCCL: a hop of its low-latency ring on NVLink
    scale_out_bytes_per_second=25e9,  # DGX A100: eight HDR NICs of 200 Gb/s
    scale_out_latency_seconds=5e-6,  # NCCL: a hop over the network, of its low-latency ring
    chips_per_domain=8.0,
    chips_per_box=8.0,
    chip_watts=400.0,  # DS
    box_watts=6500.0,  # DS: DGX A100
    launch_seconds=5e-6,  # assumed: kernels in a stream
    dollars_per_hour=2.0,  # assumed
)
H100 = A100.replace(
    name="H100",
    bf16_flops_per_second=989e12,  # DS: SXM
    fp8_flops_per_second=1979e12,  # DS
    fp32_flops_per_second=494e12,  # DS: TF32
    memory_bytes_per_second=3.35e12,  # DS
    scale_up_bytes_per_second=450e9,  # DS: NVLink 4
    scale_out_bytes_per_second=50e9,  # DGX H100: eight NDR NICs of 400 Gb/s
    scale_out_latency_seconds=2.03e-6,  # a hop over NDR InfiniBand, measured (public notes on interconnect latency, 2025)
    chip_watts=700.0,  # DS
    box_watts=10200.0,  # DS: DGX H100
    dollars_per_hour=4.0,  # assumed
)
H200 = H100.replace(
    name="H200",
    memory_bytes=141e9,  # DS
    memory_bytes_per_second=4.8e12,  # DS
    dollars_per_hour=5.0,  # assumed
)
B200 = H100.replace(
    name="B200",
    bf16_flops_per_second=2250e12,  # DS
    fp8_flops_per_second=4500e12,  # DS
    fp32_flops_per_second=1125e12,  # DS: TF32
    memory_bytes=180e9,  # DS: usable of 192 GB
    memory_bytes_per_second=8e12,  # DS
    scale_up_bytes_per_second=900e9,  # DS: NVLink 5
    chip_watts=1000.0,  # DS
    box_watts=14300.0,  # DS: DGX B200
    dollars_per_hour=7.0,  # assumed
)
TPU_V4 = Accelerator(
    name="TPU v4",
    bf16_flops_per_second=275e12,  # ISCA23
    fp8_flops_per_second=275e12,  # ISCA23: int8
    fp32_flops_per_second=275e12 / 6,  # assumed: 32-bit products from six of 16 bits
    memory_bytes=32e9,  # ISCA23
    memory_bytes_per_second=1.23e12,  # ISCA23
    scale_up_bytes_per_second=300e9,  # ISCA23: six links of 50 GB/s, a 3-D torus
    scale_up_latency_seconds=1e-6,  # assumed
    scale_out_bytes_per_second=6.25e9,  # assumed: data-centre network, 50 Gb/s a chip
    scale_out_latency_seconds=20e-6,  # assumed
    chips_per_domain=4096.0,  # ISCA23: a pod
    chips_per_box=4.0,  # a host
    chip_watts=192.0,  # ISCA23: the largest measured
    box_watts=1000.0,  # assumed: four chips and a host
    launch_seconds=1e-6,  # assumed: one program a step, no kernels to launch
    dollars_per_hour=3.2,  # assumed
)
TPU_V5P = TPU_V4.replace(
    name="TPU v5p",
    bf16_flops_per_second=459e12,  # DS
    fp8_flops_per_second=918e12,  # DS: int8
    fp32_flops_per_second=459e12 / 6,  # assumed, as above
    memory_bytes=95e9,  # DS
    memory_bytes_per_second=2.77e12,  # DS
    scale_up_bytes_per_second=600e9,  # DS: 4,800 Gb/s
    chips_per_domain=8960.0,  # DS
    chip_watts=450.0,  # assumed: not published
    box_watts=2200.0,  # assumed
    dollars_per_hour=4.2,  # assumed
)
GROQ_LPU = Accelerator(
    name="Groq LPU",
    bf16_flops_per_second=188e12,  # DS: fp16
    fp8_flops_per_second=750e12,  # DS: int8
    fp32_flops_per_second=188e12 / 4,  # assumed
    memory_bytes=230e6,  # ISCA22: SRAM, no other memory
    memory_bytes_per_second=80e12,  # DS
    scale_up_bytes_per_second=87.5e9,  # ISCA22: seven links of 12.5 GB/s each way
    scale_up_latency_seconds=0.7e-6,  # ISCA22: a hop, scheduled by the compiler
    scale_out_bytes_per_second=50e9,  # ISCA22: four links that leave the node
    scale_out_latency_seconds=0.7e-6,  # the same links
    chips_per_domain=8.0,  # ISCA22: a node, fully connected
    chips_per_box=8.0,
    chip_watts=275.0,  # DS, medium confidence: 215 typical
    box_watts=3300.0,  # assumed: eight chips and a host
    launch_seconds=0.0,  # static schedule
    dollars_per_hour=0.5,  # assumed
)
ACCELERATORS = {a.name.lower().replace(" ", ""): a for a in (A100, H100, H200, B200, TPU_V4, TPU_V5P, GROQ_LPU)}


def accelerator(name: str) -> Accelerator:
    """A preset by its name: "h100", "TPU v5p", "groq-lpu".

    Raises:
      ValueError: an unknown name; the message lists the known.
    """
    key = re.sub(r"[\s_-]", "", name.lower())
    if key not in ACCELERATORS:
        raise ValueError(f"accelerator={name!r}: unknown; known are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[key]


def cluster(chip: Accelerator | str, chips: float, **changes: Any) -> Cluster:
    """So many chips of one kind: `cluster("h100", 64)`. `changes` are fields of `Cluster`.

    Raises:
      ValueError: an unknown preset, or a value no cluster has.
    """
    kind = accelerator(chip) if isinstance(chip, str) else chip
    named = f"{chips:g} x {kind.name}" if isinstance(chips, int | float) else kind.name
    return Cluster(**{"name": named, "chip": kind, "chips": chips, **changes})
