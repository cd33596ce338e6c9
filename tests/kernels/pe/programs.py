"""Every program of `wsejax.kernels.pe`: on which arrays it is run, what must come out, and how far its elements travel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jax import lax
from scipy.special import softmax

from wsejax.hardware import System
from wsejax.kernels.pe import collectives, fft, gemm, gemv, krylov, kvcache, order, sparse, stencil, trees
from wsejax.kernels.pe.tiles import from_row_of_tiles, from_tiles, to_row_of_tiles, to_tiles
from wsejax.kernels.price import Price

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """`f` of grid blocks `args`. `check` looks at its results; `element_hops` is its traffic by the law beside it, `price` its cost."""

    f: Callable
    args: tuple[Any, ...]
    check: Callable[..., None]
    element_hops: int
    price: Callable[[System], Price] | None = None


PROGRAMS: dict[str, Callable[[Grid], Case]] = {}


def program(make: Callable[[Grid], Case]) -> Callable[[Grid], Case]:
    PROGRAMS[make.__name__] = make
    return make


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
equal = np.testing.assert_array_equal


# ---- collectives -----------------------------------------------------------------------------------------------------
def reduction(shape: Callable[[int], trees.Tree]) -> Callable[[Grid], Case]:
    def make(grid: Grid) -> Case:
        rows, cols = grid
        x = normal(rows, cols, 5)
        f = lambda x: (collectives.reduce(x, "x", shape(cols)), collectives.reduce(x, "y", shape(rows)))

        def check(along, down):
            close(along[:, 0], x.sum(1))
            close(down[0], x.sum(0))

        return Case(f, (x,), check, 5 * (shape(cols).energy * rows + shape(rows).energy * cols))

    return make


for name, shape in {
    "chain": trees.chain,
    "star": trees.star,
    "binary": trees.binary,
    "two_phase": trees.two_phase,
    "k_tree_3": partial(trees.k_tree, k=3),
    "auto": partial(trees.auto, wavelets=5),
}.items():
    PROGRAMS[f"reduce_{name}"] = reduction(shape)


@program
def all_reduce_2d(grid: Grid) -> Case:
    rows, cols = grid
    x = normal(rows, cols, 3)
    f = lambda x: collectives.all_reduce_2d(x, (trees.two_phase(rows), trees.binary(cols)))
    hops = trees.binary(cols).energy * rows + trees.two_phase(rows).energy + (cols - 1) * rows + rows - 1
    return Case(f, (x,), lambda out: close(out, np.broadcast_to(x.sum((0, 1)), x.shape)), 3 * hops)


@program
def largest(grid: Grid) -> Case:
    x = normal(*grid, 3)
    f = lambda x: collectives.all_reduce_2d(x, op=jnp.maximum)
    hops = 2 * (grid[0] * (grid[1] - 1) + grid[0] - 1)
    return Case(f, (x,), lambda out: equal(out, np.broadcast_to(x.max((0, 1)), x.shape)), 3 * hops)


@program
def broadcast_2d(grid: Grid) -> Case:
    rows, cols = grid
    x = np.random.default_rng(0).integers(0, 99, (*grid, 2)).astype(np.int32)
    return Case(
        collectives.broadcast_2d,
        (x,),
        lambda out: equal(out, np.broadcast_to(x[0, 0], x.shape)),
        2 * (rows - 1 + collectives.broadcast_hops(cols, rows)),
    )


@program
def broadcast_from_within(grid: Grid) -> Case:
    rows, cols = grid
    x = normal(*grid, 2)
    f = lambda x: collectives.broadcast(x, "x", root=cols // 2)
    return Case(
        f, (x,), lambda out: equal(out, np.broadcast_to(x[:, cols // 2][:, None], x.shape)), 2 * collectives.broadcast_hops(cols, rows)
    )


@program
def ring_all_reduce(grid: Grid) -> Case:
    rows, cols = grid
    x = normal(*grid, 7)
    return Case(
        lambda x: collectives.ring_all_reduce(x, "x"),
        (x,),
        lambda out: close(out, np.broadcast_to(x.sum(1)[:, None], x.shape)),
        -(-7 // cols) * collectives.ring_all_reduce_hops(cols, rows),
    )


# ---- products --------------------------------------------------------------------------------------------------------
A, B = normal(7, 10), normal(10, 5, seed=1)


@program
def summa(grid: Grid) -> Case:
    a, b = gemm.summa_operands(A, B, grid)
    width = a.shape[3] * grid[1] // np.lcm(*grid)
    hops = gemm.summa_element_hops(grid, a.shape[2], width, b.shape[3])
    return Case(gemm.summa, (a, b), lambda c: close(from_tiles(c, (7, 5)), A @ B), int(hops))


def ring_product(ring: str) -> Callable[[Grid], Case]:
    def make(grid: Grid) -> Case:
        a, b = (gemm.torus_tiles(x, grid, ring) for x in (A, B))
        hops = gemm.cannon_element_hops(grid, a.shape[4], a.shape[5], b.shape[5], ring)
        return Case(partial(gemm.cannon, ring=ring), (a, b), lambda c: close(gemm.from_torus_tiles(c, (7, 5), ring), A @ B), hops)

    return make


PROGRAMS["cannon"] = ring_product("line")
PROGRAMS["mesh_gemm"] = ring_product("folded")


@program
def times_transposed(grid: Grid) -> Case:
    a, b = gemm.times_transposed_operands(A, B.T, grid)
    size = b.shape[2] * grid[0] // np.lcm(*grid)
    hops = gemm.times_transposed_element_hops(grid, a.shape[2], a.shape[3], size)
    return Case(gemm.times_transposed, (a, b), lambda c: close(from_tiles(c, (7, 5)), A @ B), int(hops))


@program
def vector_times_matrix(grid: Grid) -> Case:
    x = np.repeat(np.asarray(to_tiles(A[:1].T, (grid[0], 1)))[..., 0], grid[1], 1)
    b = to_tiles(B, grid)
    hops = gemv.gemv_element_hops(grid, b.shape[3], trees.k_tree(grid[0]))

    def check(y):
        for row in np.asarray(y):
            close(row.reshape(-1)[:5], (A @ B)[0])

    return Case(gemv.gemv, (x, b), check, hops)


# ---- stencils and solvers --------------------------------------------------------------------------------------------
def stencil_of(offsets: list[tuple[int, ...]]) -> Callable[[Grid], Case]:
    dims = len(offsets[0])
    shape = (8, 9, 6)[:dims]
    weights = {offset: (n + 1) / 10 for n, offset in enumerate(offsets)}
    kernel = np.zeros([9] * dims)
    for offset, weight in weights.items():
        kernel[tuple(4 + o for o in offset)] = weight
    u = normal(*shape)

    def make(grid: Grid) -> Case:
        tiles = to_tiles(u, grid)
        want = scipy.ndimage.correlate(u.astype(float), kernel, mode="constant")
        column = 1 if dims == 2 else 6 + 2 * max(abs(o[2]) for o in offsets)
        return Case(
            lambda v: stencil.stencil(v, weights, shape),
            (tiles,),
            lambda out: np.testing.assert_allclose(from_tiles(out, (8, 9)), want, rtol=1e-5, atol=1e-4),
            stencil.halo_cell_hops(grid, tiles.shape[2:4], offsets, column),
            lambda s: stencil.stencil_price(s, grid, tiles.shape[2:4], offsets, 4, 1 if dims == 2 else 6),
        )

    return make


for name, offsets in {
    "stencil_5": stencil.star(1), "stencil_9_star": stencil.star(2), "stencil_9_box": stencil.box(1), "stencil_25_box": stencil.box(2),
    "stencil_7_in_3d": stencil.star(1, 3), "stencil_25_in_3d": stencil.star(4, 3),
}.items():  # fmt: skip
    PROGRAMS[name] = stencil_of(offsets)


@program
def life(grid: Grid) -> Case:
    cells = (np.random.default_rng(0).random((8, 9)) < 0.4).astype(np.int32)
    near = scipy.ndimage.correlate(cells, np.ones((3, 3), int), mode="constant") - cells
    want = (near == 3) | ((near == 2) & (cells == 1))
    tiles = to_tiles(cells, grid)
    check = lambda out: equal(from_tiles(out, (8, 9)), want)
    tile, around = tiles.shape[2:4], stencil.box(1)
    hops, price = stencil.halo_cell_hops(grid, tile, around), lambda s: stencil.halo_price(s, grid, tile, around)
    return Case(lambda v: stencil.life(v, (8, 9)), (tiles,), check, hops, price)


def solver(solve: Callable, iterations: int, turned: float, dots: int) -> Callable[[Grid], Case]:
    """Solve a 7-point system; `turned` makes it unsymmetric."""
    coefficients = np.array(krylov.laplacian((5, 6, 4)))
    coefficients[..., 3, :] -= turned
    coefficients[..., 4, :] += turned
    b = normal(5, 6, 4)
    kernel = np.zeros((3, 3, 3))
    for n, offset in enumerate(krylov.OFFSETS):
        kernel[tuple(1 + o for o in offset)] = coefficients[0, 0, n, 0]

    def make(grid: Grid) -> Case:
        tiles = to_tiles(coefficients, grid), to_tiles(b, grid)

        def check(u, rr):
            residual = scipy.ndimage.correlate(np.asarray(from_tiles(u, (5, 6)), float), kernel, mode="constant") - b
            assert np.abs(residual).max() < 1e-4
            np.testing.assert_allclose(rr, rr[0, 0].item())  # every PE knows
            assert rr[0, 0].item() < 1e-6

        halos = {krylov.cg: 1, krylov.bicgstab: 2}[solve] * iterations
        hops = halos * stencil.halo_cell_hops(grid, tiles[1].shape[2:4], krylov.OFFSETS, 4 + 2)
        hops += krylov.dots_element_hops(grid, dots * iterations + 1)
        priced = {krylov.cg: krylov.cg_price, krylov.bicgstab: krylov.bicgstab_price}[solve]
        price = lambda s: priced(s, grid, tiles[1].shape[2:4], 4, iterations)
        return Case(partial(solve, iterations=iterations), tiles, check, hops, price)

    return make


PROGRAMS["conjugate_gradients"] = solver(krylov.cg, 20, 0.0, 2)
PROGRAMS["bicgstab"] = solver(krylov.bicgstab, 14, 0.05, 5)


# ---- transforms, order, sparse ---------------------------------------------------------------------------------------
Z = (normal(6, 7, 4) + 1j * normal(6, 7, 4, seed=1)).astype(np.complex64)


@program
def fft_1d(grid: Grid) -> Case:
    n = 36
    n1, n2 = fft.factors(n, grid[1])
    x = Z.reshape(-1)[:n]
    tiles = np.repeat(np.asarray(to_tiles(x.reshape(n1, n2).T, (1, grid[1]))).swapaxes(2, 3), grid[0], 0)

    def check(out):
        for row in np.asarray(out):
            np.testing.assert_allclose(row.reshape(-1, n2)[:n1].T.reshape(-1), np.fft.fft(x), rtol=1e-4, atol=1e-4)

    price = lambda s: fft.fft1_price(s, grid, "x", n, n2)
    return Case(lambda v: fft.fft1(v, "x", n), (tiles,), check, fft.fft_along_element_hops(grid, "x", n2, tiles.shape[2]), price)


@program
def fft_2d(grid: Grid) -> Case:
    tiles = to_tiles(Z[..., 0], grid)
    check = lambda out: np.testing.assert_allclose(from_tiles(out, (6, 7)), np.fft.fft2(Z[..., 0]), rtol=1e-4, atol=1e-4)
    price = lambda s: fft.fft2_price(s, grid, tiles.shape[2:4])
    return Case(lambda v: fft.fft2(v, (6, 7)), (tiles,), check, fft_2d_hops(grid, *tiles.shape[2:4], 1), price)


def fft_2d_hops(grid: Grid, h: int, w: int, z: int) -> int:
    return fft.fft_along_element_hops(grid, "x", h * z, w) + fft.fft_along_element_hops(grid, "y", w * z, h)


@program
def fft_3d_and_back(grid: Grid) -> Case:
    def check(there, back):
        np.testing.assert_allclose(from_tiles(there, (6, 7)), np.fft.fftn(Z), rtol=1e-4, atol=1e-3)
        close(from_tiles(back, (6, 7)), Z)

    def f(v):
        there = fft.fft3(v, Z.shape)
        return there, fft.fft3(there, Z.shape, inverse=True)

    tiles = to_tiles(Z, grid)
    return Case(f, (tiles,), check, 2 * fft_2d_hops(grid, *tiles.shape[2:]), lambda s: fft.fft3_price(s, grid, tiles.shape[2:]) * 2.0)


@program
def sort(grid: Grid) -> Case:
    x = normal(53)
    x[3], x[4], x[5] = np.nan, -np.inf, np.inf
    tiles = to_row_of_tiles(x, grid, np.nan)
    hops = order.sort_element_hops(grid, tiles.shape[2])
    check = lambda out: equal(from_row_of_tiles(order.snake(out), 53), np.sort(x))
    return Case(order.sort, (tiles,), check, hops, lambda s: order.sort_price(s, grid, tiles.shape[2]))


N = np.random.default_rng(0).integers(-5, 9, 53).astype(np.int32)


@program
def running_sums(grid: Grid) -> Case:
    check = lambda out: equal(from_row_of_tiles(out, 53), np.cumsum(N))
    tiles = to_row_of_tiles(N, grid)
    return Case(order.scan, (tiles,), check, order.scan_element_hops(grid), lambda s: order.scan_price(s, grid, tiles.shape[2]))


@program
def histogram(grid: Grid) -> Case:
    check = lambda out: equal(out, np.broadcast_to(np.bincount(N[N >= 0], minlength=9)[:7], (*grid, 7)))
    tiles = to_row_of_tiles(N, grid, -1)
    price = lambda s: order.histogram_price(s, grid, tiles.shape[2], 7)
    return Case(lambda v: order.histogram(v, 7), (tiles,), check, order.histogram_element_hops(grid, 7), price)


@program
def transpose(grid: Grid) -> Case:
    tiles = to_tiles(A, grid)
    check = lambda out: equal(from_tiles(out, (10, 7)), A.T)
    price = lambda s: order.transpose_price(s, grid, tiles.shape[2:4], 7)
    return Case(lambda v: order.transpose(v, (7, 10)), (tiles,), check, order.transpose_element_hops(grid, tiles.shape[2:4], 7), price)


S = np.where(np.random.default_rng(5).random((9, 10)) < 0.3, normal(9, 10), 0).astype(np.float32)


@program
def sparse_times_dense(grid: Grid) -> Case:
    stream, x = sparse.stream_of(S, grid), to_tiles(B, grid)
    hops = sparse.spmm_element_hops(grid, int((S != 0).sum()), 9, x.shape[3], trees.k_tree(grid[0]))
    check = lambda y: close(np.concatenate(list(np.asarray(y)[0]), axis=-1)[:, :5], S @ B)
    price = lambda s: sparse.spmm_price(s, grid, int((S != 0).sum()), 9, x.shape[3])
    return Case(sparse.spmm, (stream, x), check, hops, price)


@program
def sparse_times_vector(grid: Grid) -> Case:
    stream = sparse.stream_of(S, grid)
    x = np.zeros((*grid, stream.width), np.float32)
    x[:] = np.pad(B[:, 0], (0, grid[0] * stream.width - 10)).reshape(grid[0], 1, -1)
    hops = sparse.spmm_element_hops(grid, int((S != 0).sum()), 9, 1, trees.k_tree(grid[0]))
    price = lambda s: sparse.spmv_price(s, grid, int((S != 0).sum()), 9)
    return Case(sparse.spmv, (stream, x), lambda y: close(y[0, 0], S @ B[:, 0]), hops, price)


# ---- keys and values -------------------------------------------------------------------------------------------------
@program
def kv_cache(grid: Grid) -> Case:
    """Prompts are spread, tokens appended until one sequence finds no room, and a query attends, heads and features over the columns."""
    rows, cols = grid
    high, slots, heads, group, width, steps = 2, 3, 2, 2, 3, rows + 2
    length = np.array([2 * rows - 1, 0], np.int32)
    tokens = normal(2, rows * slots, 2, cols, heads, width)  # keys and values of (position, sequence)
    cut = lambda x: x.reshape(rows, high, 2, cols, heads, width).transpose(0, 3, 2, 1, 4, 5)
    prompts = [cut(x[: rows * high]) for x in tokens]
    q = normal(cols, 2, heads * group, width, seed=1)
    at = np.minimum(length + np.arange(steps)[:, None], rows * slots - 1)
    news = [np.repeat(x[at, [0, 1]].transpose(2, 0, 1, 3, 4)[None], rows, 0) for x in tokens]  # (rows, cols, steps, sequence, ...)
    last = np.minimum(length + steps, rows * slots)

    def f(keys, values, new_keys, new_values, q, length):
        def append(carry, new):
            cache, n = carry
            return (kvcache.append(cache, new, n), n + 1), None

        by_step = [jnp.moveaxis(x, 2, 0) for x in (new_keys, new_values)]
        (cache, n), _ = lax.scan(append, (kvcache.spread(keys, values, length, slots), length), tuple(by_step))
        return cache, [kvcache.attend(q, cache, n, window=4, parted=parted) for parted in (False, True)]

    def check(keys, values, position, *outs):
        for b, n in enumerate(last):
            equal(np.sort(position[:, 0, b].reshape(-1))[-n:], np.arange(n))
            r, c, s = np.nonzero(position[:, :, b] >= 0)
            assert len(r) == n * cols
            for x, kept in zip(tokens, (keys, values), strict=True):
                equal(kept[r, c, b, s], x[position[r, c, b, s], b, c])
            k, v = (x[:n, b].repeat(group, 2) for x in tokens)  # (n, cols, all heads, width)
            apart = np.einsum("tchd,chd->cht", k, q[:, b]) * width**-0.5
            apart[..., : max(0, length[b] + steps - 3)] = -np.inf
            for out, scores in zip(outs, (apart, apart.sum(0, keepdims=True).repeat(cols, 0) * cols**-0.5), strict=True):
                want = np.einsum("cht,tche->che", softmax(scores, axis=-1), v)
                close(out[:, :, b], np.broadcast_to(want, (rows, *want.shape)))

    entry = heads * width
    hops = 2 * entry * kvcache.spread_entry_hops(grid, length, high)
    hops += 2 * entry * sum(kvcache.append_entry_hops(grid, length + k, slots) for k in range(steps))
    hops += sum(kvcache.attend_element_hops(grid, 2, heads * group, width, slots, parted) for parted in (False, True))
    everywhere = [np.broadcast_to(q, (rows, *q.shape)), np.broadcast_to(length, (rows, cols, 2))]
    return Case(f, (*prompts, *news, *everywhere), check, hops)
