"""Stencils with halo exchange: a PE holds a rectangle of cells (or columns of them), and fetches the cells round it from its neighbours.

Law: the sum over offsets of weight times the cell there, in the order in which the offsets are given; beyond the domain cells are zero.
Traffic: `radius` lines of cells cross every link, each way; a PE with fewer lines than that passes on those of the PE behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped

from wsejax import fabric
from wsejax.fabric.line import ALONG
from wsejax.hardware import System
from wsejax.kernels.banks import stencil_conflicts
from wsejax.kernels.price import Price, computing, copies_per_cycle, fma_per_cycle, travel, wavelets

Offset = tuple[int, ...]
_DIM = {"y": 2, "x": 3}  # of the cells of a tile


def star(radius: int, dims: int = 2) -> list[Offset]:
    """The offsets of a star: 5 or 9 cells for radius 1 or 2 in two dimensions; 7 or 25 for radius 1 or 4 in three.

    What lies ahead comes before what lies behind: that way round a host reads memory a fifth faster.
    """
    ends = [
        tuple(sign * r if d == dim else 0 for d in range(dims)) for r in range(1, radius + 1) for dim in range(dims) for sign in (1, -1)
    ]
    return [(0,) * dims, *ends]


def box(radius: int) -> list[Offset]:
    """The offsets of a square: 9 or 25 cells for radius 1 or 2."""
    side = range(-radius, radius + 1)
    return [(y, x) for y in side for x in side]


def halo(u: Shaped[Array, "R C h w ..."], axis: str, radius: int) -> Shaped[Array, "R C h+2r w ..."]:
    """The tile with `radius` more lines of cells on both sides along `axis`, zeros beyond the grid."""
    return jnp.concatenate(_blocks(u, axis, radius), axis=_DIM[axis]) if radius else u


def _blocks(u, axis: str, radius: int) -> list[Array]:
    """The pieces of `halo`, in their order."""
    dim = _DIM[axis]
    size, parts = u.shape[dim], [u]
    if not size:
        raise ValueError(f"u has shape {u.shape}: a PE has no cells along {axis!r}; an empty domain has nothing to compute")
    for n, direction in enumerate(ALONG[axis]):
        left, piece = radius, u
        while left > 0:  # what comes from a neighbour, then from the one beyond it
            count = min(left, size)
            first = piece.shape[dim] - count if n == 0 else 0
            piece = fabric.shift(lax.slice_in_dim(piece, first, first + count, axis=dim), direction)
            parts = [piece, *parts] if n == 0 else [*parts, piece]
            left -= count
    return parts


def _window(blocks: Sequence[Array], dim: int, start: int, size: int):
    """A slice of the blocks put together, made of those that it meets: XLA would make the whole first."""
    parts = []
    for block in blocks:
        n = block.shape[dim]
        first, last = max(start, 0), min(start + size, n)
        if first < last:
            parts.append(lax.slice_in_dim(block, first, last, axis=dim))
        start -= n
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=dim)


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
    dims = {len(offset) for offset in weights}
    if len(dims) != 1 or not dims <= {2, 3} or u.ndim < 2 + max(dims):
        raise ValueError(
            f"weights has offsets of {sorted(dims)} numbers for cells of shape {u.shape}: give at least one offset, all of them (dy, dx), "
            "or (dy, dx, dz) for columns of cells (R, C, h, w, z)"
        )
    at = _reader(u, list(weights))
    total = None
    for offset, weight in weights.items():
        term = at(offset)
        if jnp.result_type(u, weight) != u.dtype:
            raise ValueError(
                f"weights[{offset}] is {jnp.result_type(weight)}, and the cells {u.dtype}: convert one of them, else it would be cut"
            )
        term = term * jnp.asarray(weight, u.dtype)
        total = term if total is None else total + term
    assert total is not None, "weights is empty"
    return total if shape is None else jnp.where(inside(u, shape), total, jnp.zeros((), total.dtype))


def _reader(u: Shaped[Array, "R C h w ..."], offsets: Sequence[Offset]) -> Callable[[Offset], Array]:
    """Fetch what the offsets reach; the function that comes back gives the cells at one of them."""
    reach = [max(abs(o[d]) for o in offsets) for d in range(len(offsets[0]))]
    deep = jnp.pad(u, [(0, 0)] * 4 + [(reach[2], reach[2])]) if len(reach) == 3 else u
    corners = any(o[0] and o[1] for o in offsets)  # which come with the second axis, through the neighbour
    rows = _blocks(deep, "y", reach[0])
    cols = _blocks(jnp.concatenate(rows, axis=2) if corners else deep, "x", reach[1])

    def at(offset: Offset):
        y, x = offset[:2]
        if y and not x:
            cells = _window(rows, 2, reach[0] + y, u.shape[2])
        else:
            cells = _window(cols, 3, reach[1] + x, u.shape[3])
            cells = lax.slice_in_dim(cells, reach[0] + y, reach[0] + y + u.shape[2], axis=2) if corners else cells
        return cells if len(offset) == 2 else lax.slice_in_dim(cells, reach[2] + offset[2], reach[2] + offset[2] + u.shape[4], axis=4)

    return at


def life(cells: Shaped[Array, "R C h w"], shape: Sequence[int]) -> Shaped[Array, "R C h w"]:
    """A generation of Conway's game of life in a field of `shape` with dead borders; integers, 1 for alive.

    Raises:
      ValueError: cells of another type.
    """
    if not jnp.issubdtype(cells.dtype, jnp.integer):
        raise ValueError(f"cells are {cells.dtype}: give integers, 1 for alive")
    around = stencil(cells, dict.fromkeys([o for o in box(1) if o != (0, 0)], 1), shape)
    lives = (around == 3) | ((around == 2) & (cells == 1))
    return jnp.where(lives & inside(cells, shape), jnp.ones((), cells.dtype), jnp.zeros((), cells.dtype))


def halo_cell_hops(grid: tuple[int, int], tile: tuple[int, int], offsets: Sequence[Offset], column: int = 1) -> int:
    """Cells times hops of one application; `column` is the cells of a column in a PE (with the padding above and below it)."""
    (rows, cols), (h, w) = grid, tile
    reach = [max(abs(o[d]) for o in offsets) for d in range(2)]
    wide = h + 2 * reach[0] if any(o[0] and o[1] for o in offsets) else h
    return 2 * column * (reach[0] * w * (rows - 1) * cols + reach[1] * wide * (cols - 1) * rows)


# ---- prices ----------------------------------------------------------------------------------------------------------
def _neighbours(grid: tuple[int, int]) -> list[int]:
    """Of a PE in the middle, along y and along x."""
    return [min(n - 1, 2) for n in grid]


def halo_price(
    system: System, grid: tuple[int, int], tile: tuple[int, int], offsets: Sequence[Offset], itemsize_bytes: int = 4, column: int = 1
) -> Price:
    """The exchange before one application: what a PE gets and what it gives take a beat each, for its instructions do both in turn.

    `column` is the cells of a column in a PE, without the padding. Each message costs a vector instruction and a task that notes its end.
    """
    (h, w), reach = tile, [max(abs(o[d]) for o in offsets) for d in range(2)]
    column += 2 * max(abs(o[2]) for o in offsets) if len(offsets[0]) == 3 else 0
    neighbours = [n if r else 0 for n, r in zip(_neighbours(grid), reach, strict=True)]
    if not any(neighbours):
        return Price()
    wide = h + 2 * reach[0] if any(o[0] and o[1] for o in offsets) else h
    taken = wavelets(system, (neighbours[0] * reach[0] * w + neighbours[1] * reach[1] * wide) * column * itemsize_bytes)
    moved_bytes = float(halo_cell_hops(grid, tile, offsets, column) * itemsize_bytes)
    links = 2.0 * (bool(reach[0]) * (grid[0] - 1) * grid[1] + bool(reach[1]) * (grid[1] - 1) * grid[0])
    far = max(-(-reach[0] // h) * (grid[0] > 1), -(-reach[1] // w) * (grid[1] > 1))
    moving = travel(system, 2.0 * taken, wavelets(system, moved_bytes), links, far, depth=1.0, byte_hops=moved_bytes)
    ends = (system.launch_cycles + system.task_cycles) * 2.0 * sum(neighbours)
    return moving + Price(cycles=ends, wait_cycles=ends)


def stencil_price(
    system: System,
    grid: tuple[int, int],
    tile: tuple[int, int],
    offsets: Sequence[Offset],
    itemsize_bytes: int = 4,
    column: int = 1,
    conflict_cycles: Any = 1.0,
) -> Price:
    """`stencil`: the halos, a copy of the tile, and for each offset a vector instruction that multiplies and adds all cells.

    `conflict_cycles`: more for a cell of a pass whose operands share a bank (`banks`).
    """
    full = (*tile, column)[: len(offsets[0])]
    cells, passes = math.prod(tile) * column, len(offsets)
    rate = fma_per_cycle(system, itemsize_bytes)
    busy = system.launch_cycles * (passes + 1.0) + cells * (passes / rate + 1.0 / copies_per_cycle(system, itemsize_bytes))
    busy = busy + conflict_cycles * cells * stencil_conflicts(full, offsets, itemsize_bytes)
    pes = grid[0] * grid[1]
    work = computing(busy, 2.0 * passes * cells * pes, (3.0 * passes + 2.0) * cells * pes * itemsize_bytes)
    return halo_price(system, grid, tile, offsets, itemsize_bytes, column) + work
