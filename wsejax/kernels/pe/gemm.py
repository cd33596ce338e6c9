"""Matrix products on a grid of PEs: SUMMA, Cannon and MeshGEMM, and A Bᵀ without a transpose.

Law: C = A B, every element added up in the order in which the algorithm brings the terms. Grids need not be square: with L the least common
multiple of their sides, the contracted dimension is cut in L. Traffic is given in elements times hops beside each algorithm.

* SUMMA (van de Geijn and Watts 1997): panels of A go along the rows and panels of B along the columns, each from its owner to all.
* Cannon (1969): after a skew, L steps of a product, A one place on along its row, B along its column. The mesh has no wrap-around, so what
  leaves at the end of a line travels all the way back.
* MeshGEMM (WaferLLM, OSDI 2025): Cannon on rings folded into the lines, in which no step is longer than two hops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.fabric.line import ALONG
from wsejax.hardware import System
from wsejax.kernels.pe.collectives import reduce_price, ring_hops
from wsejax.kernels.pe.tiles import Grid, from_tiles, to_tiles
from wsejax.kernels.price import Price, computing, fma_per_cycle, least, most, overlap, share, travel, vector_cycles, wavelets

RINGS = ("folded", "line")


def local_product(a: Shaped[Array, "*pe m k"], b: Shaped[Array, "*pe k n"], c: Shaped[Array, "*pe m n"] | None = None):
    """c + a b inside every PE, one column of `a` times one row of `b` after the other: the bits depend on nothing else."""
    if c is None:
        c = jnp.zeros((*a.shape[:-1], b.shape[-1]), jnp.result_type(a, b))

    def add(k, c):
        column = lax.dynamic_slice_in_dim(a, k, 1, a.ndim - 1)
        return c + column * lax.dynamic_slice_in_dim(b, k, 1, b.ndim - 2)

    return fabric.repeat(a.shape[-1], add, c)


# ---- SUMMA -----------------------------------------------------------------------------------------------------------
def summa_operands(a: Shaped[Array, "M K"], b: Shaped[Array, "K N"], grid: Grid):
    """Tiles of the operands, A's columns and B's rows padded to a multiple of L."""
    sides = math.lcm(*grid)
    k = -(-a.shape[1] // sides) * sides
    pad = lambda x, dim: jnp.pad(x, [(0, k - x.shape[d] if d == dim else 0) for d in range(2)])
    return to_tiles(pad(a, 1), grid), to_tiles(pad(b, 0), grid)


def summa(a: Shaped[Array, "R C m ka"], b: Shaped[Array, "R C kb n"]) -> Shaped[Array, "R C m n"]:
    """Blocks of the product, as `to_tiles` cuts it."""
    rows, cols = fabric.extent(a, "y"), fabric.extent(a, "x")
    sides = math.lcm(rows, cols)
    here_a, here_b = sides // cols, sides // rows  # panels that a PE owns
    width = a.shape[3] // here_a
    if a.shape[3] % here_a or b.shape[2] != width * here_b:
        raise ValueError(
            f"a has blocks {a.shape[2:]} and b {b.shape[2:]}: A's columns and B's rows come in {sides} equal panels, {here_a} of A and "
            f"{here_b} of B in a PE; cut them by summa_operands"
        )

    def panel(t, c):
        of_a = lax.dynamic_slice_in_dim(a, t % here_a * width, width, 3)
        of_b = lax.dynamic_slice_in_dim(b, t % here_b * width, width, 2)
        of_a = fabric.spread_along(of_a, "x", t // here_a)
        return local_product(of_a, fabric.spread_along(of_b, "y", t // here_b), c)

    c = jnp.zeros((*a.shape[:3], b.shape[3]), jnp.result_type(a, b))
    return lax.fori_loop(0, sides, panel, c)


def summa_element_hops(grid: Grid, m: int, width: int, n: int) -> int:
    """Every panel of A crosses a row and every panel of B a column; `width` is that of a panel."""
    rows, cols = grid
    return math.lcm(*grid) * ((cols - 1) * rows * m * width + (rows - 1) * cols * width * n)


# ---- Cannon and MeshGEMM ---------------------------------------------------------------------------------------------
def places(n: int, ring: str) -> list[int]:
    """The place of each PE of a line on the ring."""
    if ring not in RINGS:
        raise ValueError(f"ring={ring!r}: must be 'folded' (MeshGEMM) or 'line' (Cannon)")
    return fabric.ring_places(n) if ring == "folded" else list(range(n))


def torus_tiles(x: Shaped[Array, "N M"], grid: Grid, ring: str) -> Shaped[Array, "R C I J h w"]:
    """L x L tiles of a matrix; a PE holds those that belong to its places on the rings, I = L / R by J = L / C of them."""
    rows, cols = grid
    sides = math.lcm(*grid)
    x = to_tiles(x, (sides, sides))
    x = x.reshape(rows, sides // rows, cols, sides // cols, *x.shape[2:])
    return jnp.moveaxis(x, 1, 2)[jnp.asarray(places(rows, ring))][:, jnp.asarray(places(cols, ring))]


def from_torus_tiles(tiles: Shaped[Array, "R C I J h w"], shape: tuple[int, int], ring: str) -> Shaped[Array, "N M"]:
    """The matrix that `torus_tiles` cut."""
    rows, cols, here_y, here_x, h, w = tiles.shape
    y, x = (jnp.argsort(jnp.asarray(places(n, ring))) for n in (rows, cols))
    tiles = jnp.moveaxis(tiles[y][:, x], 2, 1).reshape(rows * here_y, cols * here_x, h, w)
    return from_tiles(tiles, shape)


def cannon(a: Shaped[Array, "R C I J m k"], b: Shaped[Array, "R C I J k n"], ring: str = "folded") -> Shaped[Array, "R C I J m n"]:
    """Torus tiles of the product of two matrices in torus tiles of the same ring: MeshGEMM on the folded one, Cannon's on the line."""
    rows, cols = fabric.extent(a, "y"), fabric.extent(a, "x")
    sides = math.lcm(rows, cols)
    here = {"a": a.shape[2:4], "b": b.shape[2:4]}
    wrong = next((name for name, tiles in here.items() if tiles != (sides // rows, sides // cols)), None)
    if wrong or a.shape[5] != b.shape[4]:
        raise ValueError(
            f"a has tiles {a.shape[2:]} and b {b.shape[2:]}: a PE of {rows} x {cols} holds {sides // rows} x {sides // cols} tiles of "
            "each, those of A as wide as those of B are high; cut them by torus_tiles"
        )
    places(1, ring)  # an unknown ring is an error
    turn = _folded if ring == "folded" else _line
    at = {}  # place of a PE on the ring, in tiles
    for axis, n in (("y", rows), ("x", cols)):
        index = jnp.clip(fabric.index(a[..., 0, 0, 0, 0], axis), 0, n - 1)
        at[axis] = jnp.asarray(places(n, ring))[index] * (sides // n)
    # row i of A starts -i places on, column j of B -j: then tile (i, j) holds A's and B's parts of the same terms at every step
    skew_a, skew_b = ([(-at[axis] - s) % sides for s in range(sides // n)] for axis, n in (("y", rows), ("x", cols)))

    def skew(t, both):
        a, b = both
        return _move(a, "x", turn, [t < s for s in skew_a]), _move(b, "y", turn, [t < s for s in skew_b])

    def step(t, state):
        a, b, c = state
        c = local_product(a, b, c)
        return _move(a, "x", turn, None), _move(b, "y", turn, None), c

    a, b = lax.fori_loop(0, sides - 1, skew, (a, b))
    c = jnp.zeros((*a.shape[:5], b.shape[5]), jnp.result_type(a, b))
    a, b, c = lax.fori_loop(0, sides - 1, step, (a, b, c))
    return local_product(a, b, c)


def cannon_element_hops(grid: Grid, m: int, k: int, n: int, ring: str = "folded") -> int:
    """The skew moves row i of A (-i mod L) times, and column j of B alike; then both move L - 1 times. Tiles are m x k and k x n."""
    rows, cols = grid
    sides = math.lcm(*grid)
    times = sides * (sides - 1) // 2 + sides * (sides - 1)
    return times * (ring_hops(cols) * m * k + ring_hops(rows) * k * n)  # the line, with its way back, is as long as the folded ring


def _move(x, axis: str, turn: Callable, sends):
    """One place on along the ring, each of the lines of tiles inside a PE where its `sends` says so."""
    lines = 2 if axis == "x" else 3
    parts = []
    for i in range(x.shape[lines]):
        line = lax.index_in_dim(x, i, lines, keepdims=False)  # the tiles along the ring are now dimension 2
        leaving = line[:, :, -1]
        goes = None if sends is None else sends[i].reshape(*sends[i].shape, *(1,) * (leaving.ndim - 2))
        arrived = turn(leaving, axis, goes)
        moved = jnp.concatenate([arrived[:, :, None], line[:, :, :-1]], axis=2)
        parts.append(moved if goes is None else jnp.where(goes[..., None], moved, line))
    return jnp.stack(parts, axis=lines)


def _folded(x, axis: str, sends):
    return fabric.ring_shift(x, axis, sends)


def _line(x, axis: str, sends):
    """One place on along the line; what is at its end goes back to the start, hop by hop."""
    n, here = fabric.extent(x, axis), fabric.index(x, axis)
    forward, back = ALONG[axis]
    moved = fabric.shift(x, forward, sends)

    def home(k, travelling):
        goes = here == n - 1 - k
        return jnp.where(here == n - 2 - k, fabric.shift(travelling, back, goes if sends is None else goes & sends), travelling)

    return jnp.where(here == 0, fabric.repeat(n - 1, home, x), moved)


# ---- A Bᵀ ------------------------------------------------------------------------------------------------------------
def times_transposed_operands(a: Shaped[Array, "M K"], b: Shaped[Array, "N K"], grid: Grid):
    """Tiles of the operands, the rows of B padded to a multiple of L."""
    sides = math.lcm(*grid)
    return to_tiles(a, grid), to_tiles(jnp.pad(b, [(0, -b.shape[0] % sides), (0, 0)]), grid)


def times_transposed(a: Shaped[Array, "R C m k"], b: Shaped[Array, "R C nb k"]) -> Shaped[Array, "R C m n"]:
    """A Bᵀ (WaferLLM's GEMM-T): A stays, B goes round the folded ring of each column, and partial products are added up along the rows,
    to where their piece of the result is kept. Nothing is skewed or transposed."""
    rows, cols = fabric.extent(a, "y"), fabric.extent(a, "x")
    sides = math.lcm(rows, cols)
    of_b, of_c = sides // rows, sides // cols  # pieces of N that a PE has of B, and keeps of the result
    size = b.shape[2] // of_b
    if b.shape[2] % of_b or a.shape[3] != b.shape[3]:
        raise ValueError(
            f"a has blocks {a.shape[2:]} and b {b.shape[2:]}: a PE holds {of_b} equal pieces of B's rows, as wide as its part of A; cut "
            "them by times_transposed_operands"
        )
    order = jnp.asarray(fabric.ring_order(rows))
    row = jnp.clip(fabric.index(a, "y"), 0, rows - 1)
    place = jnp.asarray(fabric.ring_places(rows))[row]
    slot = jnp.arange(of_c).reshape(1, 1, of_c, 1, 1)
    here = fabric.index(a, "x")[..., None]

    def step(t, state):
        b, c = state
        owner = order[(place - t) % rows]  # whose part of B is here now
        for s in range(of_b):
            piece = owner * of_b + s
            part = local_product(a, jnp.swapaxes(lax.slice_in_dim(b, s * size, (s + 1) * size, axis=2), 2, 3))
            total = fabric.total_along(part, "x", piece // of_c)
            mine = (here == (piece // of_c)[..., None]) & (slot == (piece % of_c)[..., None])
            c = jnp.where(mine, total[:, :, None], c)
        return fabric.ring_shift(b, "y"), c

    c = jnp.zeros((*a.shape[:2], of_c, a.shape[2], size), jnp.result_type(a, b))
    _, c = lax.fori_loop(0, rows, step, (b, c))
    return jnp.moveaxis(c, 2, 3).reshape(*a.shape[:3], of_c * size)


def times_transposed_element_hops(grid: Grid, m: int, k: int, size: int) -> int:
    """B goes once round every column; every partial product of every PE goes one hop. `size` is N / L."""
    rows, cols = grid
    sides = math.lcm(*grid)
    return rows * ring_hops(rows) * cols * (sides // rows) * size * k + sides * rows * (cols - 1) * m * size


# ---- prices ----------------------------------------------------------------------------------------------------------
# Of an m x k times k x n product on rows x cols PEs. The contracted dimension comes in as many panels as the longer side has PEs: with the
# least common multiple of coprime sides, 755 and 1170 say, panels would be slivers.
def local_product_price(system: System, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any = None) -> Any:
    """Cycles of one PE's product: vector instructions over two of the three dimensions, one for each element of the shortest."""
    rate = fma_per_cycle(system, itemsize_bytes) if fma_rate is None else fma_rate
    return vector_cycles(system, m * k * n, rate, instructions=least(m, k, n))


def _step(system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any):
    """(number of panels, rows of a tile, width of a panel, columns of a tile, price of one panel's products on all PEs)."""
    panels = most(rows, cols)
    mt, nt, width = share(m, rows), share(n, cols), k / panels
    busy = local_product_price(system, mt, width, nt, itemsize_bytes, fma_rate)
    # an operand is read for every term, the sum read and written
    sram_bytes = 3.0 * m * n * width * itemsize_bytes
    return panels, mt, width, nt, computing(busy, 2.0 * m * n * width, sram_bytes)


def summa_price(system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any = None) -> Price:
    """SUMMA panel by panel: the next panels travel while these are multiplied, and each waits for the flight across the grid."""
    panels, mt, width, nt, product = _step(system, rows, cols, m, k, n, itemsize_bytes, fma_rate)
    of_a, of_b = mt * width * itemsize_bytes, width * nt * itemsize_bytes
    a, b = wavelets(system, of_a), wavelets(system, of_b)
    hops_a, hops_b = (cols - 1.0) * rows, (rows - 1.0) * cols
    moved = hops_a * of_a + hops_b * of_b
    flight = travel(system, a + b, a * hops_a + b * hops_b, hops_a + hops_b, most(rows, cols) - 1.0, depth=1.0, byte_hops=moved)
    waiting = Price(cycles=flight.wait_cycles, wait_cycles=flight.wait_cycles)
    streaming = Price(cycles=flight.fabric_cycles, fabric_cycles=flight.fabric_cycles, byte_hops=flight.byte_hops)
    return (overlap(product, streaming) + waiting) * panels


def mesh_gemm_price(system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any = None) -> Price:
    """MeshGEMM: the skew, then a product and a step of at most two hops for each panel; tiles travel while they are multiplied."""
    panels, mt, width, nt, product = _step(system, rows, cols, m, k, n, itemsize_bytes, fma_rate)
    return _torus(system, rows, cols, mt, width, nt, itemsize_bytes, panels, product, 2.0)


def cannon_price(system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any = None) -> Price:
    """Cannon's product: as MeshGEMM, but what leaves at the end of a line goes all the way back in every step."""
    panels, mt, width, nt, product = _step(system, rows, cols, m, k, n, itemsize_bytes, fma_rate)
    return _torus(system, rows, cols, mt, width, nt, itemsize_bytes, panels, product, most(rows, cols) - 1.0)


def _torus(system: System, rows: Any, cols: Any, mt: Any, width: Any, nt: Any, itemsize_bytes: int, panels: Any, product: Price, far: Any):
    of_a, of_b = mt * width * itemsize_bytes, width * nt * itemsize_bytes
    a, b = wavelets(system, of_a), wavelets(system, of_b)
    hops_a, hops_b = 2.0 * (cols - 1.0) * rows, 2.0 * (rows - 1.0) * cols
    energy, moved = a * hops_a + b * hops_b, of_a * hops_a + of_b * hops_b
    move = travel(system, a + b, energy, hops_a + hops_b, far, depth=1.0, byte_hops=moved)
    waiting = Price(cycles=move.wait_cycles, wait_cycles=move.wait_cycles)
    streaming = Price(cycles=move.fabric_cycles, fabric_cycles=move.fabric_cycles, byte_hops=move.byte_hops)
    # row i is skewed by i steps: half the panels' moves on average, all of them for the last row
    half = Price(cycles=move.cycles, fabric_cycles=move.fabric_cycles, wait_cycles=move.wait_cycles, byte_hops=moved / 2.0)
    return half * (panels - 1.0) + (overlap(product, streaming) + waiting) * (panels - 1.0) + product


def times_transposed_price(
    system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any = None
) -> Price:
    """A B^T with A m x k and B n x k: B goes round the columns, and every partial product is added up along its row by a chain."""
    turns = rows
    mt, kt, piece = share(m, rows), share(k, cols), n / rows
    busy = local_product_price(system, mt, kt, piece, itemsize_bytes, fma_rate)
    product = computing(busy, 2.0 * m * k * piece, 3.0 * m * k * piece * itemsize_bytes)
    of_b = piece * kt * itemsize_bytes
    b = wavelets(system, of_b)
    hops = 2.0 * (rows - 1.0) * cols
    move = travel(system, b, b * hops, hops, 2.0, depth=1.0, byte_hops=of_b * hops)
    return (product + move + reduce_price(system, cols, rows, mt * piece * itemsize_bytes, "chain", itemsize_bytes)) * turns
