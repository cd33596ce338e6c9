"""Reductions in tile order: each tile reduces its own part, the partial results travel, and are combined in the order of a topology.

The topologies are those of Luczynski et al., "Near-Optimal Wafer-Scale Reduce" (HPDC 2024): a chain of neighbours, a binary tree, and in
two phases a chain inside each group of about sqrt(n) tiles, then a chain of the groups. They differ in cost, and in how they round.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.kernels.relayout import Layout, mask_padding

RADIX = 4  # terms added in one pass over memory; on CPU as fast as XLA's own reduction, or faster


def tree_reduce(
    x: Shaped[Array, "..."], dims: tuple[int, ...], op: Callable[[Array, Array], Array], identity: Any = 0
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
            x = tree([lax.index_in_dim(split, i, dim, keepdims=False) for i in range(radix)], op)
    return lax.squeeze(x, dims)


def chain(terms: list[Array], op: Callable[[Array, Array], Array]) -> Array:
    """((x0 + x1) + x2) + ..."""
    return functools.reduce(op, terms)


def tree(terms: list[Array], op: Callable[[Array, Array], Array]) -> Array:
    """(x0 + x1) + (x2 + x3): neighbours first, then neighbouring pairs, and so on."""
    while len(terms) > 1:
        pairs = [op(a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]


def two_phase(terms: list[Array], op: Callable[[Array, Array], Array]) -> Array:
    """A chain of the results of chains over groups of ceil(sqrt(n)) neighbours."""
    group = math.isqrt(len(terms) - 1) + 1
    return chain([chain(terms[i : i + group], op) for i in range(0, len(terms), group)], op)


TOPOLOGIES: dict[str, Callable] = {"chain": chain, "tree": tree, "two_phase": two_phase}


@dataclasses.dataclass(frozen=True)
class Partial:
    """Partial results, one a tile, not yet combined: `lines` are (mesh axis, dimension of `x` with the tiles along it), in the order of
    the dimensions, `op` what combines two of them, `dtype` that of the result."""

    x: Shaped[Array, "..."]
    lines: tuple[tuple[str, int], ...]
    op: Callable[[Array, Array], Array]
    dtype: Any


def partial_reduce(
    x: Shaped[Array, "..."],
    layout: Layout,
    dims: tuple[int, ...],
    local: Callable[[Array, tuple[int, ...]], Array],
    op: Callable[[Array, Array], Array],
    neutral: Shaped[Array, ""],
    shape: Sequence[int],
    tiles: Mapping[str, int],
    accumulate: tuple[Any, Any] | None = None,
) -> Partial:
    """Each tile's own part of reducing `dims` of an array laid out by `layout`; `combine` does the rest.

    Args:
      x: this device's block.
      layout: its layout.
      dims: dimensions to reduce.
      local: (array, dims) -> array, the reduction inside one tile.
      op: the same reduction of two partial results.
      neutral: the neutral element of `op`, which stands for the padding.
      shape: of the whole array.
      tiles: number of tiles along each mesh axis.
      accumulate: dtypes in which partial results are made and combined, None for that of `x`.
    """
    dtype, x = x.dtype, x if accumulate is None else x.astype(accumulate[0])
    neutral = neutral.astype(x.dtype)
    split: list[int] = []  # shape with every split dimension as (tiles, rest)
    drop: list[int] = []  # of the split shape, what each tile reduces by itself
    lines: list[tuple[str, int]] = []
    kept = 0
    for d, n in enumerate(x.shape):
        axis = layout[d]
        if d in dims and axis is not None:
            x = mask_padding(x, d, axis, shape[d], neutral)
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
    part = lax.optimization_barrier(local(x.reshape(split), tuple(drop)))
    if accumulate is not None and accumulate[1] != part.dtype:  # nor leave out a rounding
        part = lax.optimization_barrier(part.astype(accumulate[1]))
    return Partial(part, tuple(lines), op, dtype)


def combine(partials: Sequence[Partial], topology: str = "chain") -> list[Shaped[Array, "..."]]:
    """The results of some reductions, replicated along the axes that split them. Those that go the same way travel as one message.

    The bits depend on the tile grid and the topology only: partial results are combined in its order of the tiles along each axis, whoever
    travels with them.
    """
    now = list(partials)
    while any(p.lines for p in now):
        ways: dict[Any, list[int]] = {}
        for i, p in enumerate(now):
            if p.lines:  # later dimensions first, so that the earlier ones keep their place
                axis = p.lines[-1][0]
                ways.setdefault((axis, p.op, p.x.dtype) if fabric.size(axis) > 1 else i, []).append(i)  # one device sends no message
        for indices in ways.values():
            for i, x in zip(indices, _combine_last_line([now[i] for i in indices], TOPOLOGIES[topology]), strict=True):
                now[i] = dataclasses.replace(now[i], x=x, lines=now[i].lines[:-1])
    return [p.x.astype(p.dtype) for p in now]


def _combine_last_line(partials: list[Partial], topology: Callable) -> list[Shaped[Array, "..."]]:
    (axis, dim), op = partials[0].lines[-1], partials[0].op
    total = lambda x, dim: topology([lax.index_in_dim(x, i, dim, keepdims=False) for i in range(x.shape[dim])], op)
    if len(partials) == 1:
        return [total(fabric.gather(partials[0].x, axis, dim), dim)]
    rows = [jnp.moveaxis(p.x, p.lines[-1][1], 0) for p in partials]
    message = jnp.concatenate([row.reshape(row.shape[0], -1) for row in rows], axis=1)
    result = total(fabric.gather(message, axis, 0), 0)
    ends = list(itertools.accumulate(math.prod(row.shape[1:]) for row in rows))
    return [part.reshape(row.shape[1:]) for part, row in zip(jnp.split(result, ends[:-1]), rows, strict=True)]
