"""Moving an array from one layout to another: all-gathers and slices.

A layout names, for each dimension of an array, the mesh axis ("y" or "x") that it is split over, or None; an axis appears once at most.
Along the axes that it does not name the array is replicated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric

Layout = tuple[str | None, ...]


def steps(src: Layout, dst: Layout) -> Iterator[tuple[str, str, int]]:
    """("slice" | "gather", axis, dim) steps from `src` to `dst`: slices first, since they move nothing and shrink the rest."""
    now = list(src)
    while now != list(dst):
        free = next(((a, d) for d, a in enumerate(dst) if a is not None and now[d] is None and a not in now), None)
        if free is not None:
            axis, dim = free
            now[dim] = axis
            yield "slice", axis, dim
        else:
            dim = next(d for d, a in enumerate(now) if a is not None and a != dst[d])
            axis, now[dim] = now[dim], None
            yield "gather", str(axis), dim


def relayout(x: Shaped[Array, "..."], src: Layout, dst: Layout) -> Shaped[Array, "..."]:
    """The block of `x` in layout `dst`, from its block in layout `src`. Exact: no element changes.

    Args:
      x: this device's block, any dtype.
      src, dst: layouts, one entry for each dimension; every dimension divides by the devices of the axis that splits it.
    """
    for what, axis, dim in steps(src, dst):
        if what == "gather":
            x = fabric.gather(x, axis, dim)
        else:
            share = x.shape[dim] // fabric.size(axis)
            x = lax.dynamic_slice_in_dim(x, fabric.coordinate(axis) * share, share, dim)
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
    for what, axis, dim in steps(src, dst):
        if what == "gather":
            block_bytes = math.prod(shape) * itemsize_bytes // math.prod(tiles[a] for a in now if a)
            total += gather_byte_hops(block_bytes, tiles[axis], count // tiles[axis])
            now[dim] = None
        else:
            now[dim] = axis
    return total
