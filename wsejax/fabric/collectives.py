"""Collectives made of hops. Their results depend on the tile grid alone, never on how many devices hold it.

Reductions add in the order of the tiles along the line, west to east or north to south, one after the other: the only order that
every split of the line over devices can keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from wsejax.fabric.line import ALONG, repeat, run_along, spread_along
from wsejax.fabric.mesh import AXES
from wsejax.fabric.ring import ring_hop, ring_order, ring_places
from wsejax.fabric.shift import coordinate, extent, index, shift, size


def _by_place(index: Int[Array, ""], cases: Sequence[Callable], *operands: Shaped[Array, "..."]) -> Any:
    """`cases[index](*operands)`, for an index that differs from device to device.

    A branch on CPU, which touches only what its case needs; elsewhere a select of all cases, for a branch there waits for the host.
    """
    if len(cases) == 1:
        return cases[0](*operands)

    def select(*operands):
        return jax.tree.map(lambda *results: lax.select_n(index, *results), *(case(*operands) for case in cases))

    return lax.platform_dependent(*operands, cpu=lambda *operands: lax.switch(index, cases, *operands), default=select)


def _around(x: Shaped[Array, "..."], axis: str, assemble: Callable[[list[Shaped[Array, "..."]]], Any]) -> Any:
    """`assemble(blocks)` of the dense blocks of all devices along `axis`, in mesh order, on every device.

    One turn of the folded ring: size(axis) - 1 steps of at most two hops.
    """
    n = size(axis)
    held = [x]  # after each ring step, the block of one predecessor further back
    for _ in range(n - 1):
        held.append(ring_hop(held[-1], axis))
    place = ring_places(n)

    def at(here: int) -> Callable:
        return lambda *held: assemble([held[(place[here] - place[owner]) % n] for owner in range(n)])

    return _by_place(coordinate(axis), [at(here) for here in range(n)], *held)


def gather(x: Shaped[Array, "..."], axis: str, dim: int) -> Shaped[Array, "..."]:
    """Dense blocks of all devices along `axis`, concatenated along array dimension `dim` in mesh order, on every device."""
    return _around(x, axis, lambda blocks: lax.concatenate(blocks, dim))


def exchange(x: Shaped[Array, "..."], axis: str, to: str, dim: int) -> Shaped[Array, "..."]:
    """Dimension `dim`, split over `axis`, split over the other axis `to` instead."""
    n = size(to)
    if size(axis) == n:
        return _by_place(coordinate(to), [lambda *blocks, i=i: blocks[i] for i in range(n)], *_around(x, axis, list))
    x = gather(x, axis, dim)
    share = x.shape[dim] // n
    return lax.dynamic_slice_in_dim(x, coordinate(to) * share, share, dim)


def collect(x: Shaped[Array, "..."], axis: str, dim: int) -> Shaped[Array, "..."]:
    """Each device's share of dimension `dim` of the sum over the devices along `axis` (a reduce-scatter round the ring).

    Added in ring order: for values whose sum does not depend on the order (integers, or one non-zero contribution).
    """
    n = size(axis)
    if n == 1:
        return x
    order, place = jnp.asarray(ring_order(n)), jnp.asarray(ring_places(n))[coordinate(axis)]
    step = x.shape[dim] // n

    def share(back: int):
        return lax.dynamic_slice_in_dim(x, order[(place - back) % n] * step, step, dim)

    total = share(1)
    for back in range(2, n + 1):
        total = ring_hop(total, axis) + share(back)
    return total


def in_order(x: Shaped[Array, "..."], dim: int, op: Callable = jnp.add) -> Shaped[Array, "..."]:
    """Combine the entries of `dim` one after the other: ((x0 + x1) + x2) + ..."""
    return functools.reduce(op, [lax.index_in_dim(x, i, dim, keepdims=False) for i in range(x.shape[dim])])


def _line(x: Shaped[Array, "rows cols ..."], axis: str) -> int:
    """Tiles of a line along `axis`."""
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: must be 'y' (along the columns of tiles) or 'x' (along the rows of tiles)")
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}: a grid block has leading axes (rows, cols), one entry a tile")
    return extent(x, axis)


def all_reduce(x: Shaped[Array, "rows cols ..."], axis: str, op: Callable = jnp.add) -> Shaped[Array, "rows cols ..."]:
    """Every tile gets the tiles of its line along `axis` combined by `op` in tile order."""
    n = _line(x, axis)
    return spread_along(run_along(x, axis, op), axis, n - 1)


def reduce(x: Shaped[Array, "rows cols ..."], axis: str, root: int = 0, op: Callable = jnp.add) -> Shaped[Array, "rows cols ..."]:
    """As `all_reduce`, but only the tile at position `root` of each line keeps the result; the others hold zeros."""
    _check_root(root, _line(x, axis))
    return jnp.where(index(x, axis) == root, all_reduce(x, axis, op), jnp.zeros((), x.dtype))


def broadcast(x: Shaped[Array, "rows cols ..."], axis: str, root: int = 0) -> Shaped[Array, "rows cols ..."]:
    """Every tile gets the entry of the tile at position `root` of its line along `axis`."""
    _check_root(root, _line(x, axis))
    return spread_along(x, axis, root)


def all_gather(x: Shaped[Array, "rows cols ..."], axis: str) -> Shaped[Array, "rows cols n ..."]:
    """Every tile gets the entries of its whole line along `axis`, in a new third axis in tile order: each travels both ways to the end."""
    n = _line(x, axis)
    entries = jnp.expand_dims(x, 2)
    here, slot = index(entries, axis), jnp.arange(n).reshape(1, 1, n, *(1,) * (x.ndim - 2))
    out = jnp.where(slot == here, entries, jnp.zeros((), x.dtype))
    for sign, direction in zip((1, -1), ALONG[axis], strict=True):

        def step(k, both, sign=sign, direction=direction):
            travelling, out = both
            travelling = shift(travelling, direction)
            source = here - sign * (k + 1)
            return travelling, jnp.where((slot == source) & (source >= 0) & (source < n), jnp.expand_dims(travelling, 2), out)

        _, out = repeat(n - 1, step, (x, out))
    return out


def _check_root(root: int, tiles: int) -> None:
    if not 0 <= root < tiles:
        raise ValueError(f"root={root}: the line has tiles 0 to {tiles - 1}")
