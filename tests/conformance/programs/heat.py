"""The heat equation on a plane, 20 explicit steps: fixed edges by slices, a periodic plane by rolls, and the stencil as a convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

RATE = 0.2


def by_slices(u):
    def step(_, u):
        around = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
        return u.at[1:-1, 1:-1].add(RATE * (around - 4 * u[1:-1, 1:-1]))

    return lax.fori_loop(0, 20, step, u)


def by_rolls(u):
    def step(_, u):
        around = sum(jnp.roll(u, shift, axis) for shift in (1, -1) for axis in (0, 1))
        return u + RATE * (around - 4 * u)

    return lax.fori_loop(0, 20, step, u)


def by_convolution(u):
    stencil = jnp.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], u.dtype)

    def step(_, u):
        return u + RATE * lax.conv(u[None, None], stencil[None, None], (1, 1), "SAME")[0, 0]

    return lax.fori_loop(0, 20, step, u)


def plane(rows: int, cols: int):
    return np.random.default_rng(10).standard_normal((rows, cols)).astype(np.float32)


def slices():
    return by_slices, (plane(32, 24),)


def odd_slices():
    return by_slices, (plane(19, 30),)


def rolls():
    return by_rolls, (plane(32, 32),)


def convolution():
    return by_convolution, (plane(16, 32),)


def sensitivity():
    """How the heat in one corner depends on the first state: backwards through the loop."""
    fun = lambda u: jnp.sum(lax.scan(lambda u, _: (by_rolls_once(u), None), u, length=5)[0][:4, :4] ** 2)
    return jax.value_and_grad(fun), (plane(16, 16),)


def by_rolls_once(u):
    return u + RATE * (sum(jnp.roll(u, shift, axis) for shift in (1, -1) for axis in (0, 1)) - 4 * u)
