"""Kernels along one split dimension that are more than a reduction: the place of the largest, the top k, running totals.

Each device does its own part, and only what the others need travels: a candidate, k candidates, a total for each tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from wsejax import fabric
from wsejax.kernels.relayout import mask_padding

Pick = Callable[[Array, int], Array]


def _here(axis: str, block: int, dtype) -> Shaped[Array, ""]:
    return (fabric.coordinate(axis) * block).astype(dtype)


def first_best(x: Shaped[Array, "..."], dim: int, axis: str, n: int, neutral, pick: Pick) -> Int[Array, "..."]:
    """Index of the first of the best along a dimension split over `axis`, replicated along it.

    Args:
      x: this device's block.
      n: size of the whole dimension.
      neutral: an element that is no better than any other.
      pick: the same inside a block, (array, dimension) -> index of its first best.
    """
    x = mask_padding(x, dim, axis, n, neutral)
    at = pick(x, dim)
    best = jnp.take_along_axis(x, jnp.expand_dims(at, dim), dim)
    at = jnp.expand_dims(at + _here(axis, x.shape[dim], at.dtype), dim)
    bests, places = fabric.gather(best, axis, dim), fabric.gather(at, axis, dim)
    return lax.squeeze(jnp.take_along_axis(places, jnp.expand_dims(pick(bests, dim), dim), dim), (dim,))


def top_k(x: Shaped[Array, "..."], k: int, dim: int, axis: str, n: int, neutral, pick: Callable) -> tuple[Array, Array]:
    """The `k` largest along a dimension split over `axis` and their indices, replicated along it; the first of equals goes first.

    `pick` is the same inside a block: (array, k) -> (values, indices).
    """
    x = mask_padding(x, dim, axis, n, neutral)
    values, places = pick(x, min(k, x.shape[dim]))
    places = places + _here(axis, x.shape[dim], places.dtype)
    values, places = fabric.gather(values, axis, dim), fabric.gather(places, axis, dim)
    values, at = pick(values, k)
    return values, jnp.take_along_axis(places, at, dim)


def running(
    x: Shaped[Array, "..."],
    dim: int,
    axis: str,
    n: int,
    neutral,
    cumulative: Pick,
    combine: Callable,
    reverse: bool,
    tiles: Mapping[str, int],
) -> Shaped[Array, "..."]:
    """Running totals along a dimension split over `axis`, and left split: in each tile, then over the tiles' totals.

    Args:
      x: this device's block.
      n: size of the whole dimension.
      neutral: the neutral element of `combine`.
      cumulative: the same inside a tile, (array, dimension) -> array.
      combine: what it is the running total of, for two arrays.
      reverse: from the end to the start.
      tiles: number of tiles along each mesh axis.
    """
    x = mask_padding(x, dim, axis, n, neutral)
    here = tiles[axis] // fabric.size(axis)
    length = x.shape[dim] // here
    inside = cumulative(x.reshape(*x.shape[:dim], here, length, *x.shape[dim + 1 :]), dim + 1)
    ends = lax.index_in_dim(inside, 0 if reverse else length - 1, dim + 1, keepdims=False)
    totals = cumulative(fabric.gather(ends, axis, dim), dim)
    before = jnp.roll(totals, -1 if reverse else 1, axis=dim)  # of the first tile this is not read
    tile = _here(axis, here, jnp.int32)
    before = jnp.expand_dims(lax.dynamic_slice_in_dim(before, tile, here, dim), dim + 1)
    first = tile + lax.broadcasted_iota(jnp.int32, before.shape, dim) == (tiles[axis] - 1 if reverse else 0)
    return jnp.where(first, inside, combine(before, inside)).reshape(x.shape)
