"""Derivatives of a function on the wafer, taken from outside, are those of the function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse

SPEC = wse.WSE3.scaled(16, 16)
INDEX = np.array([2, 0, 1, 1])
PLACES = np.array([[0], [1], [2], [0], [1], [1]])
FUNCTIONS = {
    "rows": lambda a: (a[INDEX] ** 2).sum(),
    "along": lambda a: (jnp.take_along_axis(a, PLACES, 1) ** 2).sum(),
    "roll": lambda a: (jnp.roll(a, 1, 0) * a).sum(),
    "slice": lambda a: (a[1:5] ** 2).sum() + (a[-1:] ** 3).sum(),
    "concatenate": lambda a: (jnp.concatenate([a[-1:], a[:-1]]) * a).sum(),
    "pad": lambda a: (jnp.pad(a, ((1, 1), (0, 2))) ** 2).sum(),
    "sort": lambda a: (jnp.sort(a, 0) * jnp.arange(6.0)[:, None]).sum(),
    "softmax": lambda a: -jax.nn.log_softmax(a)[jnp.arange(6), jnp.array([0, 1, 2, 3, 0, 1])].mean(),
    "product": lambda a: jnp.tanh(a @ a.T).sum(),
    "cumulative": lambda a: (jnp.cumsum(a, 0) ** 2).sum() + (jnp.cumsum(a, 1) ** 2).sum(),
    "scatter": lambda a: (jnp.zeros((8, 4)).at[INDEX].add(a[:4]) ** 2).sum(),
    "convolution": lambda a: (jnp.convolve(a[:, 0], a[:3, 1]) ** 2).sum(),
    "maximum": lambda a: a.max(0).sum() + a.min(1).sum(),
    "scan": lambda a: jax.lax.scan(lambda c, row: (jnp.sin(c + row), c), jnp.zeros(4), a)[0].sum(),
}


@pytest.mark.parametrize(("tiles", "devices"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((2, 2), (2, 2))], ids=str)
def test_they_are_those_of_the_function(tiles, devices) -> None:
    wafer = wse.Wafer(SPEC, tiles=tiles, devices=devices)
    x = jax.random.normal(jax.random.key(1), (6, 4))
    for name, fun in FUNCTIONS.items():
        np.testing.assert_allclose(jax.grad(wse.jit(fun, wafer))(x), jax.grad(fun)(x), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("tiles", [(1, 1), (1, 4), (2, 2)], ids=str)
def test_an_update_made_of_what_it_goes_into(tiles) -> None:
    """XLA:CPU does both in one pass, in place, and reads what it has written."""

    def fun(x, at):
        column = x[:, 3]
        return jax.lax.dynamic_update_slice(column, jnp.full((2,), jnp.mean(column)), (at,))

    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    wafer = wse.Wafer(SPEC, tiles=tiles, devices=(1, 1))
    for at in (0, 1, 2, -1):
        np.testing.assert_allclose(wse.jit(fun, wafer)(x, np.int32(at)), jax.jit(fun)(x, np.int32(at)), rtol=1e-6)
