"""Machines that do not exist: what a design's area and power are, and how long a step takes on it. Pure functions of a `System`.

A PE's area is that of WSE-2 (HC34: 228 x 170 um at 7 nm, half logic and half SRAM), scaled: SRAM by its bytes, the logic's lanes by
the multiply-adds a cycle, its router by the width of its links. How the logic divides is not published: a guess, stated here.
Power above idle is the energy of the work over its time, with the square of the clock for the voltage it needs; leakage goes with area.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.compiler import Lowered
from wsejax.cost.memory import Memory
from wsejax.cost.model import StackedWork, price, stacked_work
from wsejax.hardware import CS2, System
from wsejax.kernels.price import ceil, least, most

PE_MM2 = 0.228 * 0.170  # HC34
SRAM_SHARE = 0.5  # HC34
LANES_SHARE, ROUTER_SHARE = 0.25, 0.15  # of a PE; the remaining tenth, control, does not scale: a guess
LEAKAGE_SHARE = 0.5  # of the idle power, in proportion to area; the rest (pumps, supplies, I/O) stays: a guess
NOMINAL_HZ = 0.85e9  # at which the energies of a `System` hold


def pe_mm2(system: System) -> Any:
    """Area of a PE in the process of WSE-2 (7 nm); only ratios count."""
    sram = SRAM_SHARE * system.sram_per_pe_bytes / CS2.sram_per_pe_bytes
    lanes = LANES_SHARE * system.fp16_fma_per_cycle / CS2.fp16_fma_per_cycle
    router = ROUTER_SHARE * system.link_bits / CS2.link_bits
    return PE_MM2 * (sram + lanes + router + (1.0 - SRAM_SHARE - LANES_SHARE - ROUTER_SHARE))


def on_area(system: System, like: System, area_mm2: Any) -> System:
    """The design with as many PEs as fit on an area on which `like` would have its own, in its proportions of rows and columns. What
    a program keeps busy of the lanes, and the ports of the SRAM that feed them, follow the lanes; idle and peak power follow the area."""
    grown = area_mm2 / like.area_mm2 * pe_mm2(like) / pe_mm2(system)
    side, lanes = grown**0.5, system.fp16_fma_per_cycle / like.fp16_fma_per_cycle
    leaking = 1.0 - LEAKAGE_SHARE + LEAKAGE_SHARE * area_mm2 / like.area_mm2
    return system.replace(
        rows=like.rows * side,
        cols=like.cols * side,
        area_mm2=area_mm2,
        idle_watts=like.idle_watts * leaking,
        peak_watts=like.peak_watts * area_mm2 / like.area_mm2,
        fp32_fma_per_cycle=like.fp32_fma_per_cycle * lanes,
        sustained_fp16_fma_per_cycle=like.sustained_fp16_fma_per_cycle * lanes,
        sustained_fp32_fma_per_cycle=like.sustained_fp32_fma_per_cycle * lanes,
        sram_bytes_per_cycle=like.sram_bytes_per_cycle * lanes,
        gemm_fp16_fma_per_cycle=like.gemm_fp16_fma_per_cycle * lanes,
        gemm_fp32_fma_per_cycle=like.gemm_fp32_fma_per_cycle * lanes,
        fp16_copies_per_cycle=like.fp16_copies_per_cycle * lanes,
        fp32_copies_per_cycle=like.fp32_copies_per_cycle * lanes,
    )


_STEP = ["work", "weight_bytes", "passes", "saved_bytes", "working_bytes", "layer_bytes"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=_STEP, meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a program as numbers: its work, and what it holds, in bytes over all PEs."""

    work: StackedWork
    weight_bytes: float
    passes: float  # over the weights, of each micro-batch
    saved_bytes: float  # activations kept for the backward pass
    working_bytes: float  # activations and buffers in use at the high-water mark
    layer_bytes: float  # of weights and gradients on the wafer while streaming


def step_of(lowered: Lowered, memory: Memory) -> Step:
    """A lowered program with its memory, as `wse.memory` found it."""
    program, pes = lowered.program, float(memory.system.pes)
    peak = memory.streamed_peak
    working = (peak["activations"] + peak["buffers"]) * pes
    passes = 2.0 if program.state_bytes else 1.0
    return Step(stacked_work(program), float(program.weight_bytes), passes, peak["saved"] * pes, working, memory.layer_bytes * pes)


_PRICE = ["seconds", "compute_seconds", "io_seconds", "watts", "micro_batches"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=_PRICE, meta_fields=[])
@dataclasses.dataclass(frozen=True)
class StepPrice:
    """Modelled seconds and watts of a step."""

    seconds: Any
    compute_seconds: Any
    io_seconds: Any
    watts: Any
    micro_batches: Any  # so many that activations fit; each streams all weights again


def price_step(step: Step, system: System) -> StepPrice:
    """A weight-streamed step on a machine. Saved activations stay on the wafer, or leave it and come back where that lets a micro-batch be
    so much larger that less is streamed in all. A machine without room for a layer has infinitely many micro-batches, and never ends.
    """
    work = price(step.work, system)
    room = jnp.maximum(system.sram_bytes - step.layer_bytes, 0.0)
    weights = step.passes * step.weight_bytes
    kept, sent = ceil((step.saved_bytes + step.working_bytes) / room), ceil(step.working_bytes / room)
    streamed = lambda times: jnp.where(jnp.isinf(times), jnp.inf, times * weights)
    kept_bytes, sent_bytes = streamed(kept), streamed(sent) + step.saved_bytes
    micro = jnp.where(kept_bytes <= sent_bytes, kept, sent)
    compute = system.seconds(work.cycles)
    io = least(kept_bytes, sent_bytes) / system.io_bytes_per_second + system.io_latency_seconds
    seconds = most(compute, io)
    dynamic = work.joules(system) - system.idle_watts * compute
    watts = system.idle_watts + dynamic * (system.clock_hz / NOMINAL_HZ) ** 2 / seconds
    return StepPrice(seconds, compute, io, watts, micro)
