"""Bytes of device memory that a program's values take while it runs, counted by their lives; what lies in host memory is not counted.

XLA needs less where it computes element-wise work without writing it down, and does work in place. On CPU it keeps no count of its
own by kind of memory; on GPU the allocator's is to be preferred (`jax.Device.memory_stats`).
"""

from __future__ import annotations

import math
from typing import Any

import jax

from wsejax.compiler.ir import inner_jaxprs, itemsize_bytes


def _device_bytes(var) -> int:
    aval = var.aval
    if not hasattr(aval, "shape") or getattr(aval, "memory_space", None) == jax.memory.Space.Host:
        return 0
    return math.prod(aval.shape) * itemsize_bytes(aval.dtype)


def peak_bytes(jaxpr: Any, given_away: frozenset[int] = frozenset()) -> int:
    """The most bytes on one device at one time, of a jaxpr whose inputs are held throughout unless they are given away.

    Inside a `shard_map` shapes are those of one device's block; outside of it nothing is counted twice, since its operands are blocks.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "shard_map":
            (inner,) = inner_jaxprs(eqn)
            places = {id(v): n for n, v in enumerate(jaxpr.invars)}
            return _peak(inner, frozenset(n for n, v in enumerate(eqn.invars) if places.get(id(v), -1) in given_away), held=True)
        if eqn.primitive.name in ("jit", "pjit"):
            (inner,) = inner_jaxprs(eqn)
            return peak_bytes(inner, given_away)
    return _peak(jaxpr, given_away, held=True)


def _peak(jaxpr: Any, given_away: frozenset[int] = frozenset(), held: bool = False) -> int:
    """`held`: the inputs count, else whoever calls has counted them."""
    last: dict[int, int] = {}
    for n, eqn in enumerate(jaxpr.eqns):
        last.update((id(v), n) for v in eqn.invars)
    ends = {id(v) for v in jaxpr.outvars}
    live = {id(v): _device_bytes(v) for v in jaxpr.invars} if held else {}
    freed = {id(v) for n, v in enumerate(jaxpr.invars) if n in given_away}
    most = now = sum(live.values())
    for n, eqn in enumerate(jaxpr.eqns):
        inside = max((_peak_inside(eqn, inner) for inner in inner_jaxprs(eqn)), default=0)
        for v in eqn.outvars:
            live[id(v)] = _device_bytes(v)
            now += live[id(v)]
            freed.add(id(v))
        most = max(most, now + inside)
        for v in {*map(id, eqn.invars), *map(id, eqn.outvars)}:
            if v in freed and v not in ends and last.get(v, n) <= n and v in live:
                now -= live.pop(v)
    return most


def _peak_inside(eqn: Any, inner: Any) -> int:
    """What a call or a loop holds besides its operands and results: of a loop also the slices of what it runs over."""
    slices = 0
    if eqn.primitive.name == "scan":
        slices = sum(_device_bytes(b) for a, b in zip(eqn.invars, inner.invars, strict=True) if a.aval.shape != b.aval.shape)
    return slices + _peak(inner)
