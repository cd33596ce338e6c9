"""Walks along a line of tiles, made of shifts: they run in any execution, and send nothing that nobody uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax.fabric.shift import extent, index, shift

ALONG = {"y": ("south", "north"), "x": ("east", "west")}  # away from the border at 0, and towards it
UNROLL = 4  # XLA:CPU copies what a loop carries once an iteration; four shifts an iteration hide most of that


def repeat(times: int, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """`step(i, x)` for i = 0 .. times - 1."""
    return lax.fori_loop(0, times, step, start, unroll=min(UNROLL, max(times, 1)))


def run_along(
    x: Shaped[Array, "rows cols ..."], axis: str, op: Callable[[Array, Array], Array], first: int = 0, last: int | None = None
) -> Shaped[Array, "rows cols ..."]:
    """Running totals: a wave goes from place `first` of every line to `last`, and each tile combines `op(what arrives, its own)`.

    Tiles outside keep their own entry. `last` may lie before `first`. Each link between is used once.
    """
    n = extent(x, axis)
    last = n - 1 if last is None else last
    sign = 1 if last >= first else -1
    direction, here = ALONG[axis][0 if sign == 1 else 1], index(x, axis)

    def step(k, total):
        at = first + sign * k
        arrived = shift(total, direction, sends=here == at)
        return jnp.where(here == at + sign, op(arrived, total), total)

    return repeat(abs(last - first), step, x)


def spread_along(
    x: Shaped[Array, "rows cols ..."], axis: str, root: int, first: int = 0, last: int | None = None
) -> Shaped[Array, "rows cols ..."]:
    """The entry of the tile at `root` of every line, on all tiles from `first` to `last`. Each link between is used once."""
    n = extent(x, axis)
    last = n - 1 if last is None else last
    take = lambda arrived, _: arrived
    return run_along(run_along(x, axis, take, root, last), axis, take, root, first)
