"""Stencils with halo exchange: a PE holds a rectangle of cells (or columns of them), and fetches the cells round it from its neighbours.

Law: the sum over offsets of weight times the cell there, in the order in which the offsets are given; beyond the domain cells are zero.
Traffic: `radius` lines of cells cross every link, each way; a PE with fewer lines than that passes on those of the PE behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped

from wsejax import fabric
from wsejax.fabric.line import ALONG

Offset = tuple[int, ...]
_DIM = {"y": 2, "x": 3}  # of the cells of a tile


def star(radius: int, dims: int = 2) -> list[Offset]:
    """The offsets of a star: 5 or 9 cells for radius 1 or 2 in two dimensions; 7 or 25 for radius 1 or 4 in three."""
    ends = [
        tuple(sign * r if d == dim else 0 for d in range(dims)) for r in range(1, radius + 1) for dim in range(dims) for sign in (-1, 1)
    ]
    return [(0,) * dims, *ends]


def box(radius: int) -> list[Offset]:
    """The offsets of a square: 9 or 25 cells for radius 1 or 2."""
    side = range(-radius, radius + 1)
    return [(y, x) for y in side for x in side]


def halo(u: Shaped[Array, "R C h w ..."], axis: str, radius: int) -> Shaped[Array, "R C h+2r w ..."]:
    """The tile with `radius` more lines of cells on both sides along `axis`, zeros beyond the grid."""
    dim = _DIM[axis]
    size, parts = u.shape[dim], [u]
    for n, direction in enumerate(ALONG[axis]):
        left, piece = radius, u
        while left > 0:  # what comes from a neighbour, then from the one beyond it
            count = min(left, size)
            first = piece.shape[dim] - count if n == 0 else 0
            piece = fabric.shift(lax.slice_in_dim(piece, first, first + count, axis=dim), direction)
            parts = [piece, *parts] if n == 0 else [*parts, piece]
            left -= count
    return jnp.concatenate(parts, axis=dim) if radius else u


def inside(u: Shaped[Array, "R C h w ..."], shape: Sequence[int]) -> Bool[Array, "R C h w ..."]:
    """Which cells are of a domain of `shape`, and not padding."""
    out = jnp.ones((1,) * u.ndim, bool)
    for n, (axis, dim) in enumerate(_DIM.items()):
        cells = jnp.arange(u.shape[dim]).reshape([-1 if d == dim else 1 for d in range(u.ndim)])
        place = fabric.index(u, axis) * u.shape[dim] + cells
        out = out & (place < shape[n])
    return out


def stencil(
    u: Shaped[Array, "R C h w ..."], weights: Mapping[Offset, float | Shaped[Array, "R C h w ..."]], shape: Sequence[int] | None = None
) -> Shaped[Array, "R C h w ..."]:
    """One application of a stencil.

    Args:
      u: cells in two dimensions (R, C, h, w), or columns of them in three (R, C, h, w, z), all of a column in one PE.
      weights: of each offset (dy, dx) or (dy, dx, dz), a number or an array with an entry a cell.
      shape: of the domain, where the grid does not divide it; what is padded stays zero. None: it does.
    """
    u_near, radii = _near(u, list(weights))
    total = None
    for offset, weight in weights.items():
        term = _at(u_near, u.shape, radii, offset)
        term = term * (jnp.asarray(weight, u.dtype) if isinstance(weight, int | float) else weight)
        total = term if total is None else total + term
    assert total is not None, "weights is empty"
    return total if shape is None else jnp.where(inside(u, shape), total, jnp.zeros((), total.dtype))


def _near(u, offsets: Sequence[Offset]):
    """The tile with all the cells round it that the offsets reach: one array, or without corners one for each axis."""
    reach = [max(abs(o[d]) for o in offsets) for d in range(len(offsets[0]))]
    if len(reach) == 3:
        u = jnp.pad(u, [(0, 0)] * 4 + [(reach[2], reach[2])])
    if any(o[0] and o[1] for o in offsets):  # corners come with the second axis, through the neighbour
        both = halo(halo(u, "y", reach[0]), "x", reach[1])
        return {"y": both, "x": both}, ((reach[0], reach[1]), (reach[0], reach[1]), *reach[2:])
    return {"y": halo(u, "y", reach[0]), "x": halo(u, "x", reach[1])}, ((reach[0], 0), (0, reach[1]), *reach[2:])


def _at(near, shape, radii, offset: Offset):
    """The cells at an offset from those of the tile."""
    which = "y" if offset[0] else "x"
    before = radii[0] if which == "y" else radii[1]
    x = near[which]
    for dim, first, size in zip((2, 3), (before[0] + offset[0], before[1] + offset[1]), shape[2:4], strict=True):
        x = lax.slice_in_dim(x, first, first + size, axis=dim)
    if len(offset) == 3:
        x = lax.slice_in_dim(x, radii[2] + offset[2], radii[2] + offset[2] + shape[4], axis=4)
    return x


def life(cells: Shaped[Array, "R C h w"], shape: Sequence[int]) -> Shaped[Array, "R C h w"]:
    """A generation of Conway's game of life in a field of `shape` with dead borders; integers, 1 for alive."""
    around = stencil(cells, dict.fromkeys([o for o in box(1) if o != (0, 0)], 1), shape)
    lives = (around == 3) | ((around == 2) & (cells == 1))
    return jnp.where(lives & inside(cells, shape), jnp.ones((), cells.dtype), jnp.zeros((), cells.dtype))


def halo_cell_hops(grid: tuple[int, int], tile: tuple[int, int], offsets: Sequence[Offset], column: int = 1) -> int:
    """Cells times hops of one application; `column` is the cells of a column in a PE (with the padding above and below it)."""
    (rows, cols), (h, w) = grid, tile
    reach = [max(abs(o[d]) for o in offsets) for d in range(2)]
    wide = h + 2 * reach[0] if any(o[0] and o[1] for o in offsets) else h
    return 2 * column * (reach[0] * w * (rows - 1) * cols + reach[1] * wide * (cols - 1) * rows)
