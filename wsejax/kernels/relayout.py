"""Moving an array from one layout to another: all-gathers and slices.

A layout names, for each dimension of an array, the mesh axis ("y" or "x") that it is split over, or None; an axis appears once at most.
Along the axes that it does not name the array is replicated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric

Layout = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One move: "slice" splits dimension `dim` over `axis`, "gather" makes it whole, "exchange" splits it over `to` instead."""

    what: str
    axis: str
    dim: int
    to: str = ""


def steps(src: Layout, dst: Layout) -> Iterator[Step]:
    """The moves from `src` to `dst`: slices first, since they move nothing and shrink the rest."""
    now = list(src)
    while now != list(dst):
        free = next(((a, d) for d, a in enumerate(dst) if a is not None and now[d] is None and a not in now), None)
        if free is not None:
            axis, dim = free
            now[dim] = axis
            yield Step("slice", axis, dim)
            continue
        wrong = [d for d, a in enumerate(now) if a is not None and a != dst[d]]
        dim = next((d for d in wrong if dst[d] is not None and dst[d] not in now), wrong[0])
        axis, to = str(now[dim]), dst[dim]
        if to is not None and to not in now:
            now[dim] = to
            yield Step("exchange", axis, dim, to)
        else:
            now[dim] = None
            yield Step("gather", axis, dim)


def relayout(x: Shaped[Array, "..."], src: Layout, dst: Layout) -> Shaped[Array, "..."]:
    """The block of `x` in layout `dst`, from its block in layout `src`. Exact: no element changes.

    Args:
      x: this device's block, any dtype.
      src, dst: layouts, one entry for each dimension; every dimension divides by the devices of the axis that splits it.
    """
    for step in steps(src, dst):
        if step.what == "gather":
            x = fabric.gather(x, step.axis, step.dim)
        elif step.what == "exchange":
            x = fabric.exchange(x, step.axis, step.to, step.dim)
        else:
            share = x.shape[step.dim] // fabric.size(step.axis)
            x = lax.dynamic_slice_in_dim(x, fabric.coordinate(step.axis) * share, share, step.dim)
    return x


def gather_byte_hops(tile_bytes: int, line: int, lines: int) -> int:
    """Bytes times hops of an all-gather round a folded ring of `line` tiles, on `lines` parallel lines.

    In each of line - 1 turns every tile passes one block on, and one turn of the ring takes 2 (line - 1) hops in all.
    """
    return tile_bytes * lines * 2 * (line - 1) ** 2 if line > 1 else 0


def byte_hops(shape: tuple[int, ...], itemsize_bytes: int, src: Layout, dst: Layout, tiles: Mapping[str, int]) -> int:
    """Bytes times hops that `relayout` moves when every tile is a device of its own."""
    total, now = 0, list(src)
    count = math.prod(tiles.values())
    for step in steps(src, dst):
        if step.what != "slice":
            block_bytes = math.prod(shape) * itemsize_bytes // math.prod(tiles[a] for a in now if a)
            total += gather_byte_hops(block_bytes, tiles[step.axis], count // tiles[step.axis])
        now[step.dim] = {"slice": step.axis, "gather": None, "exchange": step.to}[step.what]
    return total
