"""Conjugate gradients and BiCGSTAB on a 7-point operator, columns of cells in PEs (Rocki et al., "Fast Stencil-Code Computation on a
Wafer-Scale Processor", SC20).

Law: the textbook recurrences (Hestenes and Stiefel 1952; van der Vorst 1992), with dot products added up inside a PE as a tree over its
cells, then along the rows and down the first column, then spread. Traffic of an iteration: an exchange of halos for every product with the
operator, and an all-reduce over the grid for every set of dot products that can go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax.hardware import System
from wsejax.kernels.pe.collectives import all_reduce_2d, all_reduce_2d_hops, all_reduce_2d_price
from wsejax.kernels.pe.stencil import stencil, stencil_price
from wsejax.kernels.price import Price, computing, fma_per_cycle
from wsejax.kernels.reduce import tree_reduce

OFFSETS = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
Cells = Shaped[Array, "R C h w z"]


def apply(coefficients: Shaped[Array, "R C h w 7 z"], u: Cells) -> Cells:
    """A u, where A has a row of seven coefficients a cell: itself, north, south, west, east, below, above (`OFFSETS`)."""
    coefficients = coefficients.astype(u.dtype)
    return stencil(u, {offset: coefficients[..., n, :] for n, offset in enumerate(OFFSETS)})


def dots(*pairs: tuple[Cells, Cells]) -> list[Shaped[Array, "R C 1 1 1"]]:
    """Dot products over all cells of the domain, on every PE; they travel together."""
    local = [tree_reduce(a * b, (2, 3, 4), jnp.add) for a, b in pairs]
    total = all_reduce_2d(jnp.stack(local, axis=2))
    return [total[:, :, n].reshape(*total.shape[:2], 1, 1, 1) for n in range(len(pairs))]


def _ratio(a, b):
    """a / b, and 0 where there is nothing left to divide: a solver that has arrived stays. So does one whose squares underflow."""
    return jnp.where(b == 0, jnp.zeros((), a.dtype), a / jnp.where(b == 0, jnp.ones((), b.dtype), b))


def cg(coefficients: Shaped[Array, "R C h w 7 z"], b: Cells, iterations: int) -> tuple[Cells, Shaped[Array, "R C 1 1 1"]]:
    """Solve A u = b from zero, for a symmetric positive definite A. Returns u and the squared norm of the recurrence's residual."""

    def step(_, state):
        u, r, p, rr = state
        q = apply(coefficients, p)
        (pq,) = dots((p, q))
        alpha = _ratio(rr, pq)
        u, r = u + alpha * p, r - alpha * q
        (after,) = dots((r, r))
        return u, r, r + _ratio(after, rr) * p, after

    (bb,) = dots((b, b))
    u, _, _, rr = lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, bb))
    return u, rr


def bicgstab(coefficients: Shaped[Array, "R C h w 7 z"], b: Cells, iterations: int) -> tuple[Cells, Shaped[Array, "R C 1 1 1"]]:
    """Solve A u = b from zero, where A need not be symmetric. Returns u and the squared norm of the recurrence's residual.

    Like any BiCGSTAB it may break down (for a skew-symmetric A it does at once): look at the residual.
    """

    def step(_, state):
        u, r, p, rho, _ = state
        v = apply(coefficients, p)
        (shadow_v,) = dots((b, v))  # the shadow residual is the first residual, b
        alpha = _ratio(rho, shadow_v)
        s = r - alpha * v
        t = apply(coefficients, s)
        ts, tt = dots((t, s), (t, t))
        omega = _ratio(ts, tt)
        u, r = u + alpha * p + omega * s, s - omega * t
        after, rr = dots((b, r), (r, r))
        beta = _ratio(after, rho) * _ratio(alpha, omega)
        return u, r, r + beta * (p - omega * v), after, rr

    (bb,) = dots((b, b))
    u, _, _, _, rr = lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, bb, bb))
    return u, rr


def laplacian(shape: Sequence[int], dtype=jnp.float32) -> Shaped[Array, "n m 7 z"]:
    """Coefficients of minus the Laplacian with zero borders on n x m x z cells, scaled to 1 on the diagonal as SC20 does."""
    n, m, z = shape
    return jnp.broadcast_to(jnp.asarray([1] + [-1 / 6] * 6, dtype).reshape(1, 1, 7, 1), (n, m, 7, z))


def dots_element_hops(grid: tuple[int, int], count: int) -> int:
    """Elements times hops of `count` dot products that go together."""
    return count * all_reduce_2d_hops(grid)


# ---- prices ----------------------------------------------------------------------------------------------------------
# `tile` is a PE's cells in two dimensions, `column` their number in the third.
def _passes(system: System, grid: tuple[int, int], tile: tuple[int, int], column: int, passes: float, itemsize_bytes: int) -> Price:
    """So many vector instructions over all cells of a PE, each a multiply-add."""
    cells = tile[0] * tile[1] * column
    busy = passes * (system.launch_cycles + cells / fma_per_cycle(system, itemsize_bytes))
    work = passes * cells * grid[0] * grid[1]
    return computing(busy, 2.0 * work, 3.0 * work * itemsize_bytes)


def dots_price(
    system: System, grid: tuple[int, int], tile: tuple[int, int], column: int, count: int, itemsize_bytes: int = 4, topology: str = "chain"
) -> Price:
    """`count` dot products that travel together."""
    together = all_reduce_2d_price(system, *grid, count * itemsize_bytes, topology, itemsize_bytes)
    return _passes(system, grid, tile, column, count, itemsize_bytes) + together


def _solver_price(
    system: System,
    grid: tuple[int, int],
    tile: tuple[int, int],
    column: int,
    iterations: int,
    itemsize_bytes: int,
    topology: str,
    *,
    products: int,
    updates: int,
    dot_sets: Sequence[int],
) -> Price:
    step = stencil_price(system, grid, tile, OFFSETS, itemsize_bytes, column) * products
    step = step + _passes(system, grid, tile, column, updates, itemsize_bytes)
    for count in dot_sets:
        step = step + dots_price(system, grid, tile, column, count, itemsize_bytes, topology)
    return step * iterations + dots_price(system, grid, tile, column, 1, itemsize_bytes, topology)


def cg_price(
    system: System,
    grid: tuple[int, int],
    tile: tuple[int, int],
    column: int,
    iterations: int = 1,
    itemsize_bytes: int = 4,
    topology: str = "chain",
) -> Price:
    """`cg`: a product with the operator, three updates of vectors and two dot products, one after the other, in an iteration."""
    return _solver_price(system, grid, tile, column, iterations, itemsize_bytes, topology, products=1, updates=3, dot_sets=(1, 1))


def bicgstab_price(
    system: System,
    grid: tuple[int, int],
    tile: tuple[int, int],
    column: int,
    iterations: int = 1,
    itemsize_bytes: int = 4,
    topology: str = "chain",
) -> Price:
    """`bicgstab`: two products, six updates, and five dot products in three sets, in an iteration."""
    return _solver_price(system, grid, tile, column, iterations, itemsize_bytes, topology, products=2, updates=6, dot_sets=(1, 2, 2))
