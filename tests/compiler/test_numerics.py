"""How a wafer adds up is its own choice: the order of the tiles and the dtype show in the bits, and nowhere else."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import wsejax as wse
from wsejax.compiler import accumulating

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


def chained(parts, dtype):
    return functools.reduce(lambda a, b: (a + b).astype(dtype), [p.astype(dtype) for p in parts])


@pytest.mark.parametrize("levels", [("float32", "operand"), ("operand", "float32"), ("float32", "float32"), ("operand", "operand")])
def test_a_tile_and_the_line_of_tiles_add_up_each_in_its_own_dtype(levels):
    """Two numbers a tile: a sum in the tile, then one over 8 tiles. A product's multiply-adds are float32 in the tile."""
    kinds = {"float32": np.float32, "operand": BF16}
    in_tile, on_line = (kinds[level] for level in levels)
    x = X[:16, :8]
    got = on_wafers(lambda x: lax.reduce_sum(x, (0,)), x, accumulate=levels)
    parts = [(x[i].astype(in_tile) + x[i + 1].astype(in_tile)).astype(in_tile) for i in range(0, 16, 2)]
    np.testing.assert_array_equal(got, chained(parts, on_line).astype(BF16))
    if levels == ("float32", "float32"):
        return
    a, b = X.T[:, :32].copy(), X
    got = on_wafers(lambda a, b: a @ b, a, b, accumulate=levels)
    parts = [(a[:, i : i + 4].astype(np.float32) @ b[i : i + 4].astype(np.float32)).astype(in_tile) for i in range(0, 32, 4)]
    np.testing.assert_array_equal(got, chained(parts, on_line).astype(BF16))


def test_a_scope_says_how_single_operations_and_their_gradients_add_up():
    """Through a jitted function and a scan: marked sums are those of the other wafer, bit for bit."""
    total = jax.jit(lambda x, w: lax.scan(lambda c, _: (c + (x @ w).sum(0), None), jnp.zeros(64, BF16), None, length=2)[0].sum())

    def marked(x, w):
        with accumulating("operand"):
            return total(x, w)

    args = X.T.copy(), X
    both = lambda fun: jax.value_and_grad(fun, argnums=(0, 1))
    bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    wafer = wse.Wafer(SPEC, tiles=(8, 8), devices=(1, 2))
    rough, fine = bits(wse.jit(both(total), wafer.replace(accumulate="operand"))(*args)), bits(wse.jit(both(total), wafer)(*args))
    assert bits(wse.jit(both(marked), wafer)(*args)) == rough != fine
    inner = lambda x, w: wse.jit(lambda x, w: nested(x, w), wafer)(x, w)

    def nested(x, w):
        with accumulating("operand"), accumulating(("float32", "float32")):
            return total(x, w)

    assert bits(inner(*args)) == bits(wse.jit(total, wafer)(*args)), "the innermost scope counts"


def test_levels_are_one_word_where_they_are_alike_and_bad_ones_are_refused():
    assert wse.Wafer(SPEC, accumulate=("operand", "operand")) == wse.Wafer(SPEC, accumulate="operand")
    assert "in a tile" in repr(wse.Wafer(SPEC, accumulate=("float32", "operand")))
    bad_ones: list[Any] = [("float32",), ("float32", "half"), 16]
    for bad in bad_ones:
        with pytest.raises(ValueError, match=r"accumulate=.*: must be one of 'float32', 'operand', or a pair"):
            accumulating(bad)
