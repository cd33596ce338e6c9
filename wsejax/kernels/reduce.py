"""Reductions in tile order: each tile reduces its own part, the partial results travel, and are combined tile after tile."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.kernels.relayout import Layout

RADIX = 4  # terms added in one pass over memory; on CPU as fast as XLA's own reduction, or faster


def tree_reduce(
    x: Shaped[Array, "..."], dims: tuple[int, ...], op: Callable[[Array, Array], Array], identity: float = 0
) -> Shaped[Array, "..."]:
    """Reduce `dims` in an association that the sizes of those dimensions alone decide; `identity` is the neutral element of `op`.

    XLA's own floating-point reductions may be reassociated, in a way that depends on the whole shape of a device's block. Here every pass
    combines RADIX (or the next divisor) slices element by element, pairwise, so the bits of one result do not depend on how many
    others stand beside it.
    """
    if any(x.shape[d] == 0 for d in dims):
        return jnp.full([n for d, n in enumerate(x.shape) if d not in dims], identity, x.dtype)
    for dim in sorted(dims):
        while (n := x.shape[dim]) > 1:
            radix = next((r for r in range(min(RADIX, n), 1, -1) if n % r == 0), 0)
            if not radix:
                radix = RADIX
                x = jnp.pad(x, [(0, -n % RADIX if d == dim else 0) for d in range(x.ndim)], constant_values=identity)
            split = x.reshape(*x.shape[:dim], radix, x.shape[dim] // radix, *x.shape[dim + 1 :])
            terms = [lax.index_in_dim(split, i, dim, keepdims=False) for i in range(radix)]
            while len(terms) > 1:
                pairs = [op(a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)]
                terms = pairs + terms[len(pairs) * 2 :]
            x = terms[0]
    return lax.squeeze(x, dims)


@dataclasses.dataclass(frozen=True)
class Partial:
    """Partial results, one a tile, not yet combined: `lines` are (mesh axis, dimension of `x` with the tiles along it), in the order of
    the dimensions, `op` what combines two of them."""

    x: Shaped[Array, "..."]
    lines: tuple[tuple[str, int], ...]
    op: Callable[[Array, Array], Array]


def partial_reduce(
    x: Shaped[Array, "..."],
    layout: Layout,
    dims: tuple[int, ...],
    local: Callable[[Array, tuple[int, ...]], Array],
    op: Callable[[Array, Array], Array],
    tiles: Mapping[str, int],
) -> Partial:
    """Each tile's own part of reducing `dims` of an array laid out by `layout`; `combine` does the rest.

    Args:
      x: this device's block.
      layout: its layout.
      dims: dimensions to reduce.
      local: (array, dims) -> array, the reduction inside one tile.
      op: the same reduction of two partial results.
      tiles: number of tiles along each mesh axis.
    """
    split: list[int] = []  # shape with every split dimension as (tiles, rest)
    drop: list[int] = []  # of the split shape, what each tile reduces by itself
    lines: list[tuple[str, int]] = []
    kept = 0
    for d, n in enumerate(x.shape):
        axis = layout[d]
        if d in dims and axis is not None:
            here = tiles[axis] // fabric.size(axis)
            split += [here, n // here]
            drop.append(len(split) - 1)
            lines.append((axis, kept))
            kept += 1
        else:
            split.append(n)
            if d in dims:
                drop.append(len(split) - 1)
            else:
                kept += 1
    # XLA must not rewrite across the place where partial results travel, even if on this mesh they need not
    return Partial(lax.optimization_barrier(local(x.reshape(split), tuple(drop))), tuple(lines), op)


def combine(partials: Sequence[Partial]) -> list[Shaped[Array, "..."]]:
    """The results of some reductions, replicated along the axes that split them. Those that go the same way travel as one message.

    The bits depend on the tile grid only: partial results are combined in tile order along each axis, whoever travels with them.
    """
    now = list(partials)
    while any(p.lines for p in now):
        ways: dict[Any, list[int]] = {}
        for i, p in enumerate(now):
            if p.lines:  # later dimensions first, so that the earlier ones keep their place
                axis = p.lines[-1][0]
                ways.setdefault((axis, p.op, p.x.dtype) if fabric.size(axis) > 1 else i, []).append(i)  # one device sends no message
        for indices in ways.values():
            for i, x in zip(indices, _combine_last_line([now[i] for i in indices]), strict=True):
                now[i] = dataclasses.replace(now[i], x=x, lines=now[i].lines[:-1])
    return [p.x for p in now]


def _combine_last_line(partials: list[Partial]) -> list[Shaped[Array, "..."]]:
    (axis, dim), op = partials[0].lines[-1], partials[0].op
    if len(partials) == 1:
        return [fabric.in_order(fabric.gather(partials[0].x, axis, dim), dim, op)]
    rows = [jnp.moveaxis(p.x, p.lines[-1][1], 0) for p in partials]
    message = jnp.concatenate([row.reshape(row.shape[0], -1) for row in rows], axis=1)
    total = fabric.in_order(fabric.gather(message, axis, 0), 0, op)
    ends = list(itertools.accumulate(math.prod(row.shape[1:]) for row in rows))
    return [part.reshape(row.shape[1:]) for part, row in zip(jnp.split(total, ends[:-1]), rows, strict=True)]
