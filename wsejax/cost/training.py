"""Modelled time of weight-streamed training on wafers: weights come in layer by layer, activations stay, gradients go out.

A layer's pass takes as long as the slower of its products and of its bytes through the wafer's I/O, which carries weights in and gradients
out at once. So whether streaming stalls depends on the tokens of a micro-batch alone, not on the width of a layer: forward, it does below
b F / 2 BW tokens, with b bytes a weight and F flops a second (both time and bytes grow with the weights). What is left are a fixed time of
each layer's pass, the boundary of a step (gradients out and new weights in, while the weights are updated), the latency of the tree that
joins the wafers (SwarmX: broadcast and reduction at line rate), and the wait for the slowest wafer.

Sources: Cerebras' weight-streaming white paper (32 bits a weight each way), its SwarmX glossary (1.2 Tb/s a system, nodes of 1:4) and
its MemoryX glossary (streaming overlaps with compute except at the boundary of an iteration, when weights are updated). The constants are
fitted to published runs (`measured/training.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.hardware import System
from wsejax.hardware.records import check_fields, replaced
from wsejax.kernels.price import ceil, most

from .workload import Workload

PLAUSIBLE: dict[str, tuple[float, float]] = {
    "efficiency": (1e-3, 1), "layer_seconds": (0, 1), "wait_per_doubling": (0, 1), "weight_bytes": (0.1, 16), "boundary_passes": (0, 50),
    "matrix_share": (1e-3, 1), "program_boundary_passes": (0, 50), "tree_arity": (2, 64), "tree_node_seconds": (0, 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streaming:
    """What the software and the cluster add to a `System`. Floats, leaves of a pytree; the fitted ones by `measured/training.py`.

    Raises:
      ValueError: a value that nothing has.
    """

    efficiency: Any = 0.523  # of the dense peak, where streaming keeps up: fitted to runs of 2023 to 2025
    layer_seconds: Any = 2.07e-3  # before each layer's pass, forward or backward: fitted to the same; Andromeda's runs imply a tenth
    wait_per_doubling: Any = 0.0115  # of a step, for the slowest wafer: 16 systems are 15.3 times as fast as one (Sandia, 2024)
    weight_bytes: Any = 4.0  # of a streamed weight and of a gradient: the white paper's 32 bits
    # How often all weights cross the link each way between two steps: once for a gradient out and a weight in, and as long again for each
    # of the two moments that the optimizer reads and writes in memory. A whole number, chosen on the runs that the rest is fitted to.
    boundary_passes: Any = 3.0
    tree_arity: Any = 4.0  # SwarmX glossary: nodes of 1:4
    # Of the nominal lanes, that products keep busy in programs whose software and boundary are counted apart: one constant of both
    # generations, fitted to ALCF's four runs, compiled and priced kernel by kernel (`experiments.published_steps`).
    matrix_share: Any = 0.726
    # The same as `boundary_passes` of such programs, whose kernels have the time that whole runs put there. Of 0 to 3 the best for the same
    # runs, and what crosses the link if moments stay in MemoryX: a gradient out and a weight in.
    program_boundary_passes: Any = 1.0
    tree_node_seconds: Any = 5e-6  # a node passes on; not published, the same as the I/O latency of a CS-3 (HC26)

    def __post_init__(self) -> None:
        check_fields(self, PLAUSIBLE)

    def replace(self, **changes: Any) -> Streaming:
        """The same with some fields changed. Raises ValueError where a name is no field."""
        return replaced(self, changes)


jax.tree_util.register_dataclass(Streaming, data_fields=[f.name for f in dataclasses.fields(Streaming)], meta_fields=[])

_PARTS = ("compute_seconds", "stall_seconds", "layers_seconds", "boundary_seconds", "tree_seconds", "wait_seconds")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*_PARTS, "flops", "tokens", "peak_flops_per_second", "joules"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class WaferStep:
    """A modelled training step on wafers, by what the critical path waits for."""

    compute_seconds: Any
    stall_seconds: Any  # weights or gradients, longer under way than a layer computes
    layers_seconds: Any  # the fixed time of each layer's pass
    boundary_seconds: Any  # gradients out and new weights in, between two steps
    tree_seconds: Any  # latency between memory and wafers
    wait_seconds: Any  # for the slowest wafer
    flops: Any
    tokens: Any
    peak_flops_per_second: Any  # dense, 16-bit, all wafers
    joules: Any

    def parts(self) -> dict[str, Any]:
        """Seconds by name; they sum to the step."""
        return {name.removesuffix("_seconds"): getattr(self, name) for name in _PARTS}

    @property
    def seconds(self) -> Any:
        return sum(self.parts().values())

    @property
    def tokens_per_second(self) -> Any:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> Any:
        """Model flops over the dense 16-bit peak of the systems, at their own clock and with the PEs that programs get."""
        return self.flops / self.seconds / self.peak_flops_per_second


def _log2(n: Any) -> Any:
    return math.log2(n) if isinstance(n, int | float) else jnp.log2(n)


def wafer_step(system: System, work: Workload, wafers: Any = 1, micro_batches: Any = 1, streaming: Streaming | None = None) -> WaferStep:
    """The modelled time of a training step on `wafers` systems that share its batch. Each micro-batch streams all weights twice.

    The wafer at work draws its peak, else what it draws idle.

    Raises:
      ValueError: less than one wafer or micro-batch, or more of both than there are tokens.
    """
    for name, value in (("wafers", wafers), ("micro_batches", micro_batches)):
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 1):
            raise ValueError(f"{name}={value!r}: must be at least 1")
    if all(isinstance(v, int | float) for v in (wafers, micro_batches, work.tokens)) and wafers * micro_batches > work.tokens:
        raise ValueError(f"wafers={wafers}, micro_batches={micro_batches}: {work.name} has {work.tokens:g} tokens; divide by less")
    by = Streaming() if streaming is None else streaming
    rate = by.efficiency * system.dense_peak_fp16_flops_per_second * _narrow(system, work)
    compute = work.flops / wafers / rate  # a third of it forward
    stream = work.parameters * by.weight_bytes / system.io_bytes_per_second * micro_batches
    forward, backward = compute / 3.0, compute * 2.0 / 3.0
    stall = most(0.0, stream - forward) + most(0.0, stream - backward)
    layers = 2.0 * work.layers * micro_batches * by.layer_seconds
    boundary = 2.0 * by.boundary_passes * stream / micro_batches
    depth = ceil(_log2(wafers) / _log2(by.tree_arity))
    tree = 2.0 * (system.io_latency_seconds + depth * by.tree_node_seconds)
    busy = compute + stall + layers + boundary + tree
    wait = busy * by.wait_per_doubling * _log2(wafers)
    watts = system.idle_watts * (busy + wait) + (system.peak_watts - system.idle_watts) * compute
    return WaferStep(
        compute_seconds=compute,
        stall_seconds=stall,
        layers_seconds=layers,
        boundary_seconds=boundary,
        tree_seconds=tree,
        wait_seconds=wait,
        flops=work.flops,
        tokens=work.tokens,
        peak_flops_per_second=wafers * system.dense_peak_fp16_flops_per_second,
        joules=wafers * watts,
    )


def _narrow(system: System, work: Workload) -> Any:
    """Of the 16-bit rate, what operands of that size get."""
    wide = isinstance(work.itemsize_bytes, int | float) and work.itemsize_bytes > 2
    return system.fp32_fma_per_cycle / system.fp16_fma_per_cycle if wide else 1.0


def scaling_efficiency(system: System, work: Workload, wafers: Any, weak: bool = True, streaming: Streaming | None = None) -> Any:
    """Of a linear speed-up on `wafers`, from one. Weak scaling gives each wafer the whole of `work`, strong scaling divides it."""
    one = wafer_step(system, work, 1, 1, streaming).seconds
    if not weak:
        return one / wafer_step(system, work, wafers, 1, streaming).seconds / wafers
    larger = work.replace(flops=work.flops * wafers, tokens=work.tokens * wafers)
    return one / wafer_step(system, larger, wafers, 1, streaming).seconds


def least_tokens(system: System, flops_per_second: Any, weight_bytes: Any = 2.0) -> dict[str, Any]:
    """Tokens of a wafer's micro-batch below which streaming stalls: b F / 2 BW forward, b F / 3 BW over forward and backward together.

    `flops_per_second` is what a wafer sustains. At 6.1 PF, 150 GB/s and 16-bit weights: 41,000 and 27,000.
    """
    at = weight_bytes * flops_per_second / system.io_bytes_per_second
    return {"forward": at / 2.0, "step": at / 3.0}
