"""A machine as data: what a price depends on, as a pytree of floats, with the three generations as presets.

A price is a pure function of a `System`, so that it can be jitted, differentiated and mapped over a million machines that do not exist. The
fields are floats (or arrays of them); only `name` is static. `WaferSpec` is what was built, with its dies and defects; a `System` is what a
program gets of it, with what surrounds it. Sources by the short names of `spec.py`; "derived" means arithmetic on these, shown.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from .records import check_fields, replaced
from .spec import WSE1, WSE2, WSE3, WaferSpec
from .wafer import Wafer

# The range outside which a value is surely in another unit than its field's name says; those that begin at 0 may be 0.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "rows": (1, 1e6), "cols": (1, 1e6), "clock_hz": (1e6, 1e11), "sram_per_pe_bytes": (64, 1e9), "code_per_pe_bytes": (0, 1e9),
    "sram_bytes_per_cycle": (0.1, 1e5), "link_bits": (1, 1e5), "wavelet_cycles": (1e-3, 1e3), "hop_cycles": (1e-2, 1e3),
    "ramp_cycles": (0, 1e4), "turn_cycles": (0, 1e4), "fp16_fma_per_cycle": (1e-3, 1e5), "fp32_fma_per_cycle": (1e-3, 1e5),
    "sustained_fp16_fma_per_cycle": (1e-3, 1e5), "sustained_fp32_fma_per_cycle": (1e-3, 1e5), "fp16_copies_per_cycle": (1e-3, 1e5),
    "fp32_copies_per_cycle": (1e-3, 1e5), "gemm_fp16_fma_per_cycle": (1e-3, 1e5), "gemm_fp32_fma_per_cycle": (1e-3, 1e5),
    "special_cycles": (0, 1e6), "launch_cycles": (0, 1e6), "task_cycles": (0, 1e6), "dilation": (1, 1e3),
    "congestion": (1, 1e3), "io_bytes_per_second": (1e6, 1e15), "io_latency_seconds": (0, 1), "idle_watts": (0, 1e9),
    "peak_watts": (1e-3, 1e9), "joules_per_flop": (0, 1e-6), "joules_per_sram_byte": (0, 1e-6), "joules_per_link_byte": (0, 1e-6),
    "area_mm2": (1e-2, 1e7),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A wafer-scale computer, as far as prices go. All fields but `name` are floats, and leaves of a pytree.

    Raises:
      ValueError: a field is not finite, not positive, or so far from anything built that its unit must be wrong. Tracers pass.
    """

    name: str
    rows: Any  # PEs that a program gets, along y
    cols: Any  # along x
    clock_hz: Any
    sram_per_pe_bytes: Any
    code_per_pe_bytes: Any  # of these, taken by program text and the runtime
    sram_bytes_per_cycle: Any  # two reads and a write
    link_bits: Any  # of one direction of one link, in a wavelet's time
    wavelet_cycles: Any  # between two wavelets on a link
    hop_cycles: Any
    ramp_cycles: Any  # between a PE and its router
    turn_cycles: Any  # extra, of a route from x to y
    fp16_fma_per_cycle: Any  # nominal, of a PE: what peaks are made of
    fp32_fma_per_cycle: Any
    sustained_fp16_fma_per_cycle: Any  # of vector instructions on operands in SRAM
    sustained_fp32_fma_per_cycle: Any
    fp16_copies_per_cycle: Any  # elements that a vector instruction moves; element-wise work goes at this rate
    fp32_copies_per_cycle: Any
    gemm_fp16_fma_per_cycle: Any  # of matrix products as the vendor's kernels do them: an operand comes from the fabric, not from a bank
    gemm_fp32_fma_per_cycle: Any
    special_cycles: Any  # of one exp, log, tanh or quotient, in software
    launch_cycles: Any  # before the first element of a vector instruction
    task_cycles: Any  # before a task runs that a wavelet activates
    dilation: Any  # physical hops of a logical one, on average: 1 without defects
    congestion: Any  # logical links over the busiest physical one: 1 without defects
    io_bytes_per_second: Any  # each way, between the wafer and what surrounds it
    io_latency_seconds: Any
    idle_watts: Any  # of the whole system, doing nothing
    peak_watts: Any
    joules_per_flop: Any  # above idle
    joules_per_sram_byte: Any
    joules_per_link_byte: Any  # of one hop
    area_mm2: Any

    def __post_init__(self) -> None:
        self.check(jax_arrays=False)

    def check(self, jax_arrays: bool = True) -> None:
        """Raises ValueError where a field cannot be of a machine; that of a tracer is not known."""
        check_fields(self, PLAUSIBLE, jax_arrays)
        code, sram = self.code_per_pe_bytes, self.sram_per_pe_bytes
        if all(isinstance(v, int | float) for v in (code, sram)) and code >= sram:
            raise ValueError(f"code_per_pe_bytes={code!r}: leaves nothing of sram_per_pe_bytes={sram!r} for data")

    def replace(self, **changes: Any) -> System:
        """The same with some fields changed, such as `CS3.replace(link_bits=64.0)`.

        Raises:
          ValueError: a name that is no field.
        """
        return replaced(self, changes)

    def of(self, wafer: Wafer) -> System:
        """This system with the logical mesh of one wafer: its size, and the mean dilation and worst congestion of its links."""
        mesh = wafer.remap
        congestion = float(max(1, wafer.routes.congestion))
        return self.replace(rows=float(mesh.rows), cols=float(mesh.cols), dilation=float(mesh.mean_dilation), congestion=congestion)

    @property
    def pes(self) -> Any:
        return self.rows * self.cols

    @property
    def dense_peak_fp16_flops_per_second(self) -> Any:
        """2 flops x nominal lanes x clock x PEs: no sparsity."""
        return 2.0 * self.fp16_fma_per_cycle * self.clock_hz * self.pes

    @property
    def dense_peak_fp32_flops_per_second(self) -> Any:
        return 2.0 * self.fp32_fma_per_cycle * self.clock_hz * self.pes

    @property
    def sram_bytes(self) -> Any:
        """Of all PEs, for data: without program text."""
        return self.pes * (self.sram_per_pe_bytes - self.code_per_pe_bytes)

    def seconds(self, cycles: Any) -> Any:
        return cycles / self.clock_hz


_FLOATS = [f.name for f in dataclasses.fields(System) if f.name != "name"]
jax.tree_util.register_dataclass(System, data_fields=_FLOATS, meta_fields=["name"])


# Share of the nominal lanes that the vendor's matrix kernels keep busy, with whole training steps priced product by product: fitted to the
# four runs that ALCF published (Llama-2-7B and GPT-J-6B on CS-3, GPT-J-6B and BERT-large on CS-2; `experiments/published_steps.py`).
GEMM_SHARE = {"WSE-1": 0.45, "WSE-2": 0.45, "WSE-3": 0.665}


def system_of(spec: WaferSpec, name: str, **changes: Any) -> System:
    """A system round a wafer. What no wafer's record holds has the value of the generations that were measured."""
    gemm_share = GEMM_SHARE.get(spec.name.partition(" ")[0], GEMM_SHARE["WSE-2"])
    sustained16 = spec.sustained_fp16_fma_per_cycle
    values = dict(
        name=name,
        rows=float(spec.usable_rows),
        cols=float(spec.usable_cols),
        clock_hz=spec.clock_hz,
        sram_per_pe_bytes=float(spec.sram_per_pe_bytes),
        code_per_pe_bytes=24.0 * 1024,  # EPCC notes: 22.6 KiB of text in a decode PE, 30 KiB in a tight prefill PE
        sram_bytes_per_cycle=float(spec.sram_bytes_per_cycle_per_pe),
        link_bits=float(spec.link_width_bits),
        wavelet_cycles=spec.wavelet_cycles,
        hop_cycles=spec.hop_cycles,
        ramp_cycles=spec.ramp_cycles,
        turn_cycles=spec.turn_cycles,
        fp16_fma_per_cycle=spec.fp16_fma_per_cycle,
        fp32_fma_per_cycle=spec.fp32_fma_per_cycle,
        sustained_fp16_fma_per_cycle=sustained16,
        sustained_fp32_fma_per_cycle=spec.sustained_fp32_fma_per_cycle,
        fp16_copies_per_cycle=sustained16,
        fp32_copies_per_cycle=sustained16 / 2,  # half as many elements through the same ports
        gemm_fp16_fma_per_cycle=gemm_share * spec.fp16_fma_per_cycle,
        gemm_fp32_fma_per_cycle=gemm_share * spec.fp32_fma_per_cycle,
        special_cycles=17.0,  # EPCC notes: silu of 48 fp16 elements in 855 cycles
        launch_cycles=10.4,  # WSE-2: what stencils in the SDK simulator and WaferLLM's GEMV fit to, 10.3 to 10.5
        task_cycles=3.0,  # ALCF: activation after the last wavelet
        dilation=1.0,
        congestion=1.0,
        io_bytes_per_second=spec.io_bandwidth_bits_per_second / 8,
        io_latency_seconds=5e-6,  # HC26: 5 us of I/O between CS-3 systems
        idle_watts=0.65 * spec.system_power_watts,  # data sheet: 15 to 23 kW
        peak_watts=spec.system_power_watts,
        # HC34: a core takes 30 mW at its peak. The share above idle (8 kW of 850,000 cores at 0.85 GHz: 11 pJ a cycle) is divided over 8
        # 16-bit flops, 24 bytes of SRAM and 16 of links by the usual proportions at 7 nm. The sum is sourced, the division a guess.
        joules_per_flop=0.4e-12,
        joules_per_sram_byte=0.2e-12,
        joules_per_link_byte=0.2e-12,
        area_mm2=spec.area_mm2,
    )
    return System(**{**values, **changes})


CS1 = system_of(WSE1, "CS-1")
CS2 = system_of(WSE2, "CS-2")
CS3 = system_of(
    WSE3,
    "CS-3",
    launch_cycles=16.0,  # ALCF: intercepts of 15 to 17 cycles
    fp16_copies_per_cycle=4.82,  # ALCF, silicon
    fp32_copies_per_cycle=2.44,  # ALCF, silicon
    joules_per_flop=0.2e-12,  # HC24: the same power as CS-2 at twice the peak
    joules_per_sram_byte=0.15e-12,
    joules_per_link_byte=0.15e-12,
)
SYSTEMS = {s.name.lower().replace("-", ""): s for s in (CS1, CS2, CS3)}


def system(name: str) -> System:
    """A preset by its name: "cs3" or "CS-3".

    Raises:
      ValueError: an unknown name; the message lists the known.
    """
    key = name.lower().replace("-", "").replace("wse", "cs") if isinstance(name, str) else None
    if key not in SYSTEMS:
        raise ValueError(f"system={name!r}: unknown; known are {', '.join(SYSTEMS)}")
    return SYSTEMS[key]


def as_system(given: System | str) -> System:
    """A system, or a preset by its name.

    Raises:
      ValueError: neither, or fields that no machine has; the message lists the presets.
    """
    if not isinstance(given, System):
        return system(given)
    given.check()
    return given
