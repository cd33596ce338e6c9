"""Sorting, prefix sums, histograms and the transpose of arrays in tiles.

Laws: `numpy.sort`, `cumsum` in the array's own dtype, `bincount` and `.T`. The first two take an array PE after PE, row by row
(`to_row_of_tiles`).
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Num, Shaped

from wsejax import fabric
from wsejax.hardware import System
from wsejax.kernels.pe.collectives import all_reduce_2d, all_reduce_2d_hops, all_reduce_2d_price, ring_hops, ring_price
from wsejax.kernels.price import Price, computing, copies_per_cycle, travel, wavelets


def sort(x: Num[Array, "R C m"]) -> Num[Array, "R C m"]:
    """All elements in ascending order, NaN last, along a snake through the grid: even rows to the east, odd rows back.

    Odd-even transposition of sorted blocks (Knuth, vol. 3, 5.3.4; blocks by Baudet and Stevenson 1978): as many phases as PEs, in each of
    which pairs of neighbours on the snake exchange their blocks and keep the lower and the upper half. `snake` turns odd rows round.
    """
    rows, cols, m = fabric.extent(x, "y"), fabric.extent(x, "x"), x.shape[2]
    y, column = fabric.index(x, "y"), fabric.index(x, "x")
    place = y * cols + jnp.where(y % 2 == 0, column, cols - 1 - column)
    turns = jnp.where(y % 2 == 0, column == cols - 1, column == 0)  # the snake goes on in the row to the south
    came = jnp.where(y % 2 == 0, column == 0, column == cols - 1) & (place > 0)  # it came from the row to the north
    eastward, ahead, back = y % 2 == 0, ~turns, ~came  # the neighbour on the snake lies in the same row

    def phase(k, x):
        first = (place % 2 == k % 2) & (place < rows * cols - 1)
        second = (place % 2 != k % 2) & (place > 0)
        given = jnp.zeros_like(x)
        for direction, sends, gets in (  # a partner gets from where the other sends: first ahead on the snake, second back
            ("east", (first & ahead & eastward) | (second & back & ~eastward), (second & back & eastward) | (first & ahead & ~eastward)),
            ("west", (first & ahead & ~eastward) | (second & back & eastward), (second & back & ~eastward) | (first & ahead & eastward)),
            ("south", first & turns, second & came),
            ("north", second & came, first & turns),
        ):
            given = jnp.where(gets, fabric.shift(x, direction, sends=sends), given)
        both = jnp.sort(jnp.concatenate([x, given], axis=2), axis=2)
        return jnp.where(first, both[:, :, :m], jnp.where(second, both[:, :, m:], x))

    return lax.fori_loop(0, rows * cols, phase, jnp.sort(x, axis=2))


def snake(tiles: Shaped[Array, "R C ..."]) -> Shaped[Array, "R C ..."]:
    """Tiles in the order of the snake put into the order of the rows, or back: whole arrays, outside the program."""
    odd = (jnp.arange(tiles.shape[0]) % 2 == 1).reshape(-1, *(1,) * (tiles.ndim - 1))
    return jnp.where(odd, tiles[:, ::-1], tiles)


def sort_element_hops(grid: tuple[int, int], m: int) -> int:
    """In each of R C phases half of the pairs of neighbours on the snake exchange blocks of m elements."""
    pes = grid[0] * grid[1]
    return 2 * m * sum((pes - k % 2) // 2 for k in range(pes))


def scan(x: Num[Array, "R C m"]) -> Num[Array, "R C m"]:
    """Running sums in the dtype of `x`: each PE's own, one element after the other, and the total of all PEs before it, row by row."""
    if not x.shape[2]:
        return x
    rows, cols = fabric.extent(x, "y"), fabric.extent(x, "x")
    _, own = lax.scan(lambda total, x: (total + x, total + x), jnp.zeros(x.shape[:2], x.dtype), jnp.moveaxis(x, 2, 0))
    own = jnp.moveaxis(own, 0, 2)
    total = own[:, :, -1]
    along = fabric.run_along(total, "x", jnp.add)
    left = fabric.shift(along, "east")  # of the PEs to the west
    last = fabric.index(total, "x") == cols - 1

    def down(k, below):  # in the last column alone
        here = fabric.index(total, "y")
        return jnp.where(last & (here == k + 1), fabric.shift(below, "south", sends=last & (here == k)) + below, below)

    below = fabric.repeat(rows - 1, down, along)
    above = fabric.shift(below, "south", sends=last)
    above = fabric.spread_along(above, "x", cols - 1)  # of the rows to the north
    return (above + left)[..., None] + own


def scan_element_hops(grid: tuple[int, int]) -> int:
    """Sums along the rows twice (made, and handed on), those of rows down the last column twice, and back along the rows."""
    rows, cols = grid
    return 3 * rows * (cols - 1) + 2 * (rows - 1)


def histogram(x: Int[Array, "R C m"], bins: int) -> Int[Array, "R C bins"]:
    """How often each of 0 .. bins - 1 occurs, on every PE; other numbers (such as padding by -1) are not counted."""
    count = lambda k, counts: counts + (x[:, :, k, None] == jnp.arange(bins).reshape(1, 1, -1)).astype(jnp.int32)
    own = jnp.zeros((*x.shape[:2], bins), jnp.int32)
    return all_reduce_2d(lax.fori_loop(0, x.shape[2], count, own) if x.shape[2] else own)


def histogram_element_hops(grid: tuple[int, int], bins: int) -> int:
    """An all-reduce over the grid."""
    return bins * all_reduce_2d_hops(grid)


def transpose(x: Shaped[Array, "R C h w"], shape: tuple[int, int]) -> Shaped[Array, "R C H W"]:
    """Tiles of the transpose of an array of `shape` in tiles, on the same grid: H = ceil(m / R), W = ceil(n / C).

    Once round the ring of each row, where a PE keeps the rows of cells that its column of the result is made of; then once round the ring
    of each column, where it keeps the columns. A PE needs room for those rows, m long.
    """
    rows, cols = fabric.extent(x, "y"), fabric.extent(x, "x")
    (n, m), (h, w) = shape, x.shape[2:]
    high, wide = -(-m // rows), -(-n // cols)  # of a tile of the result
    keep = min(h, wide)  # rows of cells that a PE of one row and a column of the result have in common, at most
    y, column = jnp.clip(fabric.index(x[..., 0], "y"), 0, rows - 1), jnp.clip(fabric.index(x[..., 0], "x"), 0, cols - 1)

    def round_trip(block, axis, collect, out):
        count = rows if axis == "y" else cols
        order = jnp.asarray(fabric.ring_order(count))
        place = jnp.asarray(fabric.ring_places(count))[y if axis == "y" else column]

        def step(k, state):
            block, out = state
            block = fabric.ring_shift(block, axis)
            return block, collect(block, order[(place - k - 1) % count], out)

        return fabric.repeat(count - 1, step, (block, collect(block, y if axis == "y" else column, out)))[1]

    first = jnp.maximum(y * h, column * wide)  # the first row of cells that PE (y, column) keeps
    at = jnp.clip(first - y * h, 0, h - keep)
    take = lambda v, start, size, dim: jnp.take_along_axis(
        v, (start + jnp.arange(size).reshape(1, 1, -1)).reshape(*start.shape[:2], *[size if d == dim else 1 for d in (2, 3)]), axis=dim
    )

    def along_row(block, owner, out):
        cells = take(block, jnp.broadcast_to(at, (*x.shape[:2], 1)), keep, 2)
        slot = jnp.arange(cols * w).reshape(1, 1, 1, -1) // w
        spread = jnp.tile(cells, (1, 1, 1, cols))
        return jnp.where(slot == owner[..., None], spread, out)

    row = round_trip(x, "x", along_row, jnp.zeros((*x.shape[:2], keep, cols * w), x.dtype))

    def along_column(block, owner, out):
        begin = jnp.maximum(owner * h, column * wide)  # what the owner kept starts here, unless it was clipped
        begin = owner * h + jnp.clip(begin - owner * h, 0, h - keep)
        row_of = column * wide + jnp.arange(wide).reshape(1, 1, -1)  # rows of cells that the result needs here
        local = row_of - begin
        there = (local >= 0) & (local < keep) & (row_of >= owner * h) & (row_of < (owner + 1) * h)
        cells = jnp.take_along_axis(block, jnp.broadcast_to(jnp.clip(local, 0, keep - 1), (*x.shape[:2], wide))[..., None], axis=2)
        start = jnp.broadcast_to(y * high, (*x.shape[:2], 1))
        cols_of = jnp.clip(start + jnp.arange(high).reshape(1, 1, -1), 0, cols * w - 1)
        cells = jnp.take_along_axis(cells, jnp.broadcast_to(cols_of[:, :, None], (*x.shape[:2], wide, high)), axis=3)
        return jnp.where(there[..., None], cells, out)

    tile = round_trip(row, "y", along_column, jnp.zeros((*x.shape[:2], wide, high), x.dtype))
    tile = jnp.swapaxes(tile, 2, 3)
    real_y = fabric.index(tile, "y") * high + jnp.arange(high).reshape(1, 1, -1, 1) < m
    real_x = fabric.index(tile, "x") * wide + jnp.arange(wide).reshape(1, 1, 1, -1) < n
    return jnp.where(real_y & real_x, tile, jnp.zeros((), x.dtype))


def transpose_element_hops(grid: tuple[int, int], tile: tuple[int, int], n: int) -> int:
    """`n` is the number of rows before."""
    (rows, cols), (h, w) = grid, tile
    keep = min(h, -(-n // cols))
    return (cols - 1) * ring_hops(cols) * rows * h * w + (rows - 1) * ring_hops(rows) * cols * keep * cols * w


# ---- prices ----------------------------------------------------------------------------------------------------------
def _element_wise(system: System, grid: tuple[int, int], elements: Any, instructions: Any, itemsize_bytes: int) -> Price:
    """Vector instructions over so many elements of every PE in all."""
    busy = system.launch_cycles * instructions + elements / copies_per_cycle(system, itemsize_bytes)
    work = elements * grid[0] * grid[1]
    return computing(busy, 1.0 * work, 3.0 * work * itemsize_bytes)


def sort_price(system: System, grid: tuple[int, int], m: int, itemsize_bytes: int = 4) -> Price:
    """`sort`: blocks of m put in order, then for every PE a phase of an exchange of blocks and a merge, which compares 2 m elements
    log2(2 m) times (a bitonic merge: vector instructions alone)."""
    phases, levels = grid[0] * grid[1], math.ceil(math.log2(2 * m)) if m else 0
    hops = float(sort_element_hops(grid, m) * itemsize_bytes)
    taken = wavelets(system, m * itemsize_bytes)
    links = _snake_links(grid)
    step = travel(system, taken, wavelets(system, hops) / phases, links, 1.0, depth=1.0, byte_hops=hops / phases)
    merge = _element_wise(system, grid, 2.0 * m * levels, levels, itemsize_bytes)
    first = _element_wise(system, grid, m * levels * (levels + 1.0) / 2.0, levels * (levels + 1.0) / 2.0, itemsize_bytes)
    return first + (merge + step) * phases if phases > 1 else first


def _snake_links(grid: tuple[int, int]) -> int:
    """Links of the snake through a grid, both ways."""
    return max(2 * (grid[0] * grid[1] - 1), 1)


def scan_price(system: System, grid: tuple[int, int], m: int, itemsize_bytes: int = 4) -> Price:
    """`scan`: a PE's own sums one by one, then one total from PE to PE along the rows, handed on, down the last column, and back."""
    rows, cols = grid
    own = _element_wise(system, grid, 2.0 * m, m + 1.0, itemsize_bytes)
    one = wavelets(system, itemsize_bytes)
    line = lambda links, lines, hops, depth: travel(
        system, one, one * links * lines, links * lines, hops, depth=depth, byte_hops=1.0 * links * lines * itemsize_bytes
    )
    along = line(cols - 1, rows, cols - 1, cols - 1) + line(cols - 1, rows, min(cols - 1, 1), 1)
    down = line(rows - 1, 1, rows - 1, rows - 1) + line(rows - 1, 1, min(rows - 1, 1), 1)
    return own + along + down + line(cols - 1, rows, cols - 1, 1)


def histogram_price(system: System, grid: tuple[int, int], m: int, bins: int, itemsize_bytes: int = 4) -> Price:
    """`histogram`: every element compared with all bins, and the counts added up over the grid."""
    together = all_reduce_2d_price(system, *grid, bins * itemsize_bytes, "chain", itemsize_bytes)
    return _element_wise(system, grid, 2.0 * m * bins, 2.0 * m, itemsize_bytes) + together


def transpose_price(system: System, grid: tuple[int, int], tile: tuple[int, int], n: int, itemsize_bytes: int = 4) -> Price:
    """`transpose` of an array of n rows: once round the ring of each row with a tile, once round that of each column with the rows that
    were kept; what is kept is copied at every step."""
    (rows, cols), (h, w) = grid, tile
    keep = min(h, -(-n // cols))
    moving = ring_price(system, cols, rows, h * w * itemsize_bytes, cols - 1.0)
    moving = moving + ring_price(system, rows, cols, keep * cols * w * itemsize_bytes, rows - 1.0)
    return moving + _element_wise(system, grid, 2.0 * keep * w * cols + keep * w * rows, cols + rows, itemsize_bytes)
