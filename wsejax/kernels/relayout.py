"""Moving an array from one layout to another: all-gathers and slices.

A layout names, for each dimension of an array, the mesh axis ("y" or "x") that it is split over, or None; an axis appears once at most.
Along the axes that it does not name the array is replicated. A dimension whose size does not divide by the tiles of its axis is padded
at its end to the next size that does. What the padding holds is unspecified: it never leaves a split dimension, since `relayout` cuts
it off where it makes a dimension whole, and a kernel that combines elements along a split dimension masks it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
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


def padded(n: int, tiles: int) -> int:
    """Size of a dimension of `n` split over `tiles`, its padding included."""
    return -(-n // tiles) * tiles


def block_shape(shape: Sequence[int], layout: Layout, tiles: Mapping[str, int], parts: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of one of `parts` (the devices, or the tiles themselves) of an array, padding included."""
    return tuple(padded(n, tiles[a]) // parts[a] if a else n for n, a in zip(shape, layout, strict=True))


def relayout(x: Shaped[Array, "..."], src: Layout, dst: Layout, shape: Sequence[int], tiles: Mapping[str, int]) -> Shaped[Array, "..."]:
    """The block of an array in layout `dst`, from its block in layout `src`. Exact: no element changes.

    Args:
      x: this device's block, any dtype.
      src, dst: layouts, one entry for each dimension.
      shape: of the whole array.
      tiles: number of tiles along each mesh axis.
    """
    for step in steps(src, dst):
        n, dim, axis = shape[step.dim], step.dim, step.axis
        if step.what == "exchange" and padded(n, tiles[axis]) == padded(n, tiles[step.to]):
            x = fabric.exchange(x, axis, step.to, dim)
            continue
        if step.what != "slice":
            x = lax.slice_in_dim(fabric.gather(x, axis, dim), 0, n, axis=dim)
        if step.what != "gather":
            x = share(x, step.to or axis, dim, tiles)
    return x


def pad(x: Shaped[Array, "..."], tiles: int, dim: int) -> Shaped[Array, "..."]:
    """A whole dimension with its padding."""
    missing = padded(x.shape[dim], tiles) - x.shape[dim]  # less than there are tiles, which are no more than there are elements
    return lax.concatenate([x, lax.slice_in_dim(x, 0, missing, axis=dim)], dim) if missing else x


def share(x: Shaped[Array, "..."], axis: str, dim: int, tiles: Mapping[str, int]) -> Shaped[Array, "..."]:
    """This device's share of a whole dimension."""
    x = pad(x, tiles[axis], dim)
    part = x.shape[dim] // fabric.size(axis)
    return lax.dynamic_slice_in_dim(x, fabric.coordinate(axis) * part, part, dim)


def mask_padding(x: Shaped[Array, "..."], dim: int, axis: str, n: int, neutral) -> Shaped[Array, "..."]:
    """`x` with `neutral` where dimension `dim`, of size `n` and split over `axis`, is padded."""
    if x.shape[dim] * fabric.size(axis) == n:
        return x
    real = fabric.coordinate(axis) * x.shape[dim] + lax.broadcasted_iota(jnp.int32, x.shape, dim) < n
    return jnp.where(real, x, jnp.asarray(neutral, x.dtype))


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
            block_bytes = math.prod(block_shape(shape, tuple(now), tiles, tiles)) * itemsize_bytes
            total += gather_byte_hops(block_bytes, tiles[step.axis], count // tiles[step.axis])
        now[step.dim] = {"slice": step.axis, "gather": None, "exchange": step.to}[step.what]
    return total
