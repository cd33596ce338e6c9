"""How a wafer adds up is its own choice: the order of the tiles and the dtype show in the bits, and nowhere else."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import wsejax as wse

SPEC = wse.WSE3.scaled(16, 16)
BF16 = jnp.bfloat16
GRIDS = [(1, 1), (1, 2), (2, 2)]
X = (np.random.default_rng(0).standard_normal((32, 64)) * 10.0 ** np.random.default_rng(1).integers(-2, 3, (32, 64))).astype(BF16)


def on_wafers(fun, *args, **options):
    """The result on every device mesh, which must have the same bits."""
    results = [np.asarray(wse.jit(fun, wse.Wafer(SPEC, tiles=(8, 8), devices=grid, **options))(*args)) for grid in GRIDS]
    assert len({r.tobytes() for r in results}) == 1
    return results[0]


def tree_sum(terms):
    while len(terms) > 1:
        terms = [functools.reduce(np.add, terms[i : i + 2]) for i in range(0, len(terms), 2)]
    return terms[0]


def two_phase_sum(terms):
    group = math.ceil(math.sqrt(len(terms)))
    return functools.reduce(np.add, [functools.reduce(np.add, terms[i : i + group]) for i in range(0, len(terms), group)])


ORDERS = {"chain": lambda terms: functools.reduce(np.add, terms), "tree": tree_sum, "two_phase": two_phase_sum}


@pytest.mark.parametrize("reduction", ORDERS)
def test_a_topology_adds_the_tiles_in_its_order(reduction):
    """One element a tile, so that numpy can do the same sum; in bfloat16, where every order rounds differently."""
    x = X[:8, :8]
    total = lambda x: lax.reduce_sum(x, (0,))
    got = on_wafers(total, x, reduction=reduction, accumulate="operand")
    np.testing.assert_array_equal(got, ORDERS[reduction](list(x)))


def test_the_three_topologies_differ_in_bfloat16():
    bits = {on_wafers(lambda x: lax.reduce_sum(x, (0,)), X, reduction=r, accumulate="operand").tobytes() for r in ORDERS}
    assert len(bits) == 3


@pytest.mark.parametrize("reduction", ORDERS)
def test_sums_accumulated_in_float32_are_rounded_once(reduction):
    got = on_wafers(lambda x: lax.reduce_sum(x, (0,)), X, reduction=reduction)
    exact = X.astype(np.float64).sum(0)
    error = np.abs(got.astype(np.float64) - exact)
    assert (error <= np.abs(exact) * 2.0**-8 + 1e-4 * np.abs(X.astype(np.float64)).sum(0)).all()
    rough = np.abs(on_wafers(lambda x: lax.reduce_sum(x, (0,)), X, accumulate="operand").astype(np.float64) - exact)
    assert rough.sum() > 2 * error.sum()


def test_a_product_accumulated_in_the_operands_dtype_is_rounded_after_every_panel():
    """The contracted dimension lies over 8 tiles: 8 panels of 4."""
    a, b = X.T[:, :32].copy(), X
    got = on_wafers(lambda a, b: a @ b, a, b, accumulate="operand")
    want = np.zeros((64, 64), BF16)
    for i in range(0, 32, 4):
        want = (want.astype(np.float32) + (a[:, i : i + 4].astype(np.float32) @ b[i : i + 4].astype(np.float32)).astype(BF16)).astype(BF16)
    np.testing.assert_array_equal(got, want)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    once = on_wafers(lambda a, b: a @ b, a, b)
    assert np.abs(got.astype(np.float64) - exact).sum() > 1.5 * np.abs(once.astype(np.float64) - exact).sum()


@pytest.mark.parametrize(("name", "value"), [("reduction", "ring"), ("accumulate", "bfloat16")])
def test_an_unknown_choice_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}': must be one of"):
        wse.Wafer(SPEC, **{name: value})
