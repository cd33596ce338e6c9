"""What a kernel costs on the PE grid of a `System`: the arithmetic that all closed forms beside the kernels share.

Everything here is a pure function of floats (or traced values), so that a price can be jitted, mapped over machines and differentiated.

The fabric follows Luczynski et al., "Near-Optimal Wafer-Scale Reduce" (HPDC 2024): with contention C (most wavelets through one PE's ramp),
energy E (wavelets times hops), N links, distance L (longest path in hops) and depth D (receives that wait for each other),

    cycles = max(C, E / N + L) + (2 ramp + 1) D

generalised by what was measured on WSE-3: a wavelet takes `wavelet_cycles` on a link and `hop_cycles` to cross it. Defects stretch paths by
`dilation` and put `congestion` paths on one link.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.hardware import System


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["cycles", "compute_cycles", "fabric_cycles", "wait_cycles", "flops", "byte_hops", "sram_bytes"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Price:
    """Modelled cost of some work on the whole grid. Prices add up (one after the other) and multiply (so many times)."""

    cycles: Any = 0.0  # from first to last
    compute_cycles: Any = 0.0  # the busiest PE computes
    fabric_cycles: Any = 0.0  # the busiest link or ramp carries wavelets
    wait_cycles: Any = 0.0  # a wavelet is under way, or software passes it on: what no bandwidth helps
    flops: Any = 0.0  # all PEs
    byte_hops: Any = 0.0  # bytes times links crossed, all PEs, without defects
    sram_bytes: Any = 0.0  # read and written, all PEs

    def __add__(self, other: Price) -> Price:
        return jax.tree.map(lambda a, b: a + b, self, other)

    def __mul__(self, times: Any) -> Price:
        return jax.tree.map(lambda a: a * times, self)

    __rmul__ = __mul__

    def joules(self, system: System) -> Any:
        """Energy above idle, and idle over the time."""
        moved = self.byte_hops * system.dilation * system.joules_per_link_byte + self.sram_bytes * system.joules_per_sram_byte
        return self.flops * system.joules_per_flop + moved + system.idle_watts * system.seconds(self.cycles)


def ceil(x: Any) -> Any:
    """Rounded up, with the gradient of what is rounded, so that the size of a grid has one."""
    if isinstance(x, int | float):
        return float(-(-x // 1))
    return x + jax.lax.stop_gradient(jnp.where(jnp.isfinite(x), jnp.ceil(x) - x, 0.0))


def floor(x: Any) -> Any:
    """Rounded down, as `ceil`."""
    return -ceil(-x)


def share(n: Any, parts: Any) -> Any:
    """Elements of `n` that the fullest of `parts` PEs holds."""
    return ceil(n / parts)


def most(*values: Any) -> Any:
    """The largest, of floats or traced values."""
    if all(isinstance(v, int | float) for v in values):
        return max(values)
    return functools.reduce(jnp.maximum, values)


def least(*values: Any) -> Any:
    if all(isinstance(v, int | float) for v in values):
        return min(values)
    return functools.reduce(jnp.minimum, values)


def wavelets(system: System, size_bytes: Any) -> Any:
    """Of a message; a wavelet is as wide as a link. Not rounded up: the link's width stays a number that can be differentiated."""
    return size_bytes * 8.0 / system.link_bits


def travel(
    system: System, contention: Any, energy: Any, links: Any, distance: Any, depth: Any = 0.0, turns: Any = 0.0, byte_hops: Any = None
) -> Price:
    """The HPDC form. `contention` and `energy` in wavelets and wavelet-hops, `distance` in logical hops, `depth` in receives.

    `byte_hops` is given where messages do not fill their wavelets.
    """
    links = most(links, 1.0)
    beat = system.wavelet_cycles * system.congestion
    busy_links = energy * system.dilation / links * beat
    flight = distance * system.dilation * system.hop_cycles
    stages = (2.0 * system.ramp_cycles + 1.0) * depth + turns * system.turn_cycles
    cycles = most(contention * beat, busy_links + flight) + stages
    carried = most(contention * beat, busy_links)
    moved = energy * system.link_bits / 8.0 if byte_hops is None else byte_hops
    return Price(cycles=cycles, fabric_cycles=carried, wait_cycles=cycles - carried, byte_hops=moved)


def vector_cycles(system: System, elements: Any, per_cycle: Any, instructions: Any = 1.0) -> Any:
    """A PE's vector instructions over so many elements in all."""
    return system.launch_cycles * instructions + elements / per_cycle


def fma_per_cycle(system: System, itemsize_bytes: int) -> Any:
    """Multiply-adds that a PE sustains: 16-bit or narrower, 32-bit, and a quarter of that for 64-bit (emulated; an assumption)."""
    if itemsize_bytes <= 2:
        return system.sustained_fp16_fma_per_cycle
    return system.sustained_fp32_fma_per_cycle * (1.0 if itemsize_bytes <= 4 else 0.25)


def copies_per_cycle(system: System, itemsize_bytes: int) -> Any:
    """Elements that a PE moves, or combines one by one."""
    if itemsize_bytes <= 2:
        return system.fp16_copies_per_cycle
    return system.fp32_copies_per_cycle * (4.0 / itemsize_bytes)


def computing(cycles: Any, flops: Any, sram_bytes: Any = 0.0) -> Price:
    """Work of which the busiest PE has so many cycles."""
    return Price(cycles=cycles, compute_cycles=cycles, flops=flops, sram_bytes=sram_bytes)


def overlap(compute: Price, moving: Price) -> Price:
    """Both at once: the longer one counts, and both their work."""
    both = compute + moving
    return dataclasses.replace(both, cycles=most(compute.cycles, moving.cycles))
