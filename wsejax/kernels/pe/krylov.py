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

from wsejax.kernels.pe.collectives import all_reduce_2d, all_reduce_2d_hops
from wsejax.kernels.pe.stencil import stencil
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
