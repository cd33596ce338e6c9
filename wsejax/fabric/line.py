"""Walks along a line of tiles, made of shifts: they run in any execution, and send nothing that nobody uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from wsejax.fabric.shift import extent, line_index, shift

ALONG = {"y": ("south", "north"), "x": ("east", "west")}  # away from the border at 0, and towards it
UNROLL, LARGE_BYTES = 4, 1 << 22  # XLA:CPU copies what a loop carries once an iteration; four shifts an iteration hide most of that


def repeat(times: int, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """`step(i, x)` for i = 0 .. times - 1."""
    return lax.fori_loop(0, times, step, start, unroll=unrolling(times, start)) if times else start


def unrolling(times: int, carried: Any) -> int:
    """Iterations to write out of a loop: none where what it carries is small, and compiling would take longer than copying."""
    return min(UNROLL, max(times, 1)) if sum(x.nbytes for x in jax.tree.leaves(carried)) > LARGE_BYTES else 1


def run_along(
    x: Shaped[Array, "rows cols ..."], axis: str, op: Callable[[Array, Array], Array], first: int = 0, last: int | None = None
) -> Shaped[Array, "rows cols ..."]:
    """Running totals: a wave goes from place `first` of every line to `last`, and each tile combines `op(what arrives, its own)`.

    Tiles outside keep their own entry. `last` may lie before `first`. Each link between is used once.
    """
    n = extent(x, axis)
    last = n - 1 if last is None else last
    sign = 1 if last >= first else -1
    direction, here = ALONG[axis][0 if sign == 1 else 1], line_index(x, axis)

    def step(k, total):
        at = first + sign * k
        arrived = shift(total, direction, sends=here == at)
        return jnp.where(here == at + sign, op(arrived, total), total)

    return repeat(abs(last - first), step, x)


def spread_along(
    x: Shaped[Array, "rows cols ..."], axis: str, root: int | Int[Array, "..."], sends: Bool[Array, "..."] | None = None
) -> Shaped[Array, "rows cols ..."]:
    """The entry of the tile at `root` of every line, on all of its tiles. Each link is used once, by what its line's root sends.

    Args:
      root: a place, or an array of places that broadcasts against the tiles and is the same for all tiles of a line.
      sends: which lines do this, the same for all tiles of a line; the others keep their entries. None: all.

    Raises:
      ValueError: a root outside the line.
    """
    n, here = extent(x, axis), line_index(x, axis)
    if isinstance(root, int) and not 0 <= root < n:
        raise ValueError(f"root={root}: the line has tiles 0 to {n - 1}")
    for sign, direction in zip((1, -1), ALONG[axis], strict=True):

        def step(k, value, sign=sign, direction=direction):
            at = root + sign * k
            passes, takes = here == at, here == at + sign
            if sends is not None:
                passes, takes = passes & sends, takes & sends
            return jnp.where(takes, shift(value, direction, sends=passes), value)

        steps = (n - 1 - root if sign == 1 else root) if isinstance(root, int) else n - 1
        x = repeat(steps, step, x)
    return x


def total_along(x: Shaped[Array, "rows cols ..."], axis: str, root: Int[Array, "..."]) -> Shaped[Array, "rows cols ..."]:
    """At the tile at `root` of every line the sum of the line: a chain from each end to it, the earlier one added first.

    `root` broadcasts against the tiles, the same for all tiles of a line. What the other tiles are left with is partial.
    """
    n, here = extent(x, axis), line_index(x, axis)
    for sign, direction in zip((1, -1), ALONG[axis], strict=True):
        first = 0 if sign == 1 else n - 1

        def step(k, total, sign=sign, direction=direction, first=first):
            at = first + sign * k
            short = (root - at) * sign > 0  # of the root
            arrived = shift(total, direction, sends=(here == at) & short)
            return jnp.where((here == at + sign) & short, total + arrived, total)

        x = repeat(n - 1, step, x)
    return x
