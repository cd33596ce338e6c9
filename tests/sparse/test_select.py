"""Choosing exactly k: as a stable sort does, whatever ties, and with the same bits on every device mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from tests.sparse.oracle import top
from wsejax.sparse.select import NEVER, best, even, magnitude
from wsejax.sparse.structures import NM, Block, Unstructured

SHAPE = (2, 4, 8)
of_layers = jax.jit(lambda x, k: best(magnitude(x), k, (1, 2)))


@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -3.0, 1e-40, np.inf]), min_size=64, max_size=64),
    st.integers(0, 40),
)
def test_the_k_greatest_of_each_layer_with_ties_to_the_lower_index(values, k):
    x = np.array(values, np.float32).reshape(SHAPE)
    got = np.asarray(of_layers(x, k))
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny, 0.0, x) if not np.asarray(magnitude(jnp.float32(1e-40))) else x
    for layer in range(2):
        np.testing.assert_array_equal(got[layer].ravel(), top(np.abs(flushed[layer].ravel()), min(k, 32)))


def test_what_is_never_to_be_chosen_is_not_even_where_too_few_are_left():
    score = jnp.array([[3, NEVER, 0], [NEVER, NEVER, 7]], jnp.int32)
    np.testing.assert_array_equal(best(score, 5, (0, 1)), [[True, False, True], [False, False, True]])
    assert not np.asarray(best(score, 0, (0, 1))).any()


def test_nan_is_greatest_and_counts_stay_exact():
    x = jnp.array([[1.0, jnp.nan, -2.0, jnp.inf]])
    np.testing.assert_array_equal(best(magnitude(x), 2, (0, 1)), [[False, True, False, True]])


def test_even_leaves_no_row_or_column_far_from_its_share():
    chosen = np.asarray(best(even((16, 32)), 128, (0, 1)))
    assert chosen.sum() == 128
    assert chosen.sum(0).min() >= 2 and chosen.sum(0).max() <= 6 and chosen.sum(1).min() >= 5 and chosen.sum(1).max() <= 11
    halves = np.asarray(best(even((8, 8)), 32, (0, 1)))
    assert not (halves[:, :-1] & halves[:, 1:]).all(1).any(), "no row is one run"


@pytest.mark.parametrize("structure", [Unstructured(), NM(2, 4), NM(1, 2, axis=1), Block((2, 4))], ids=lambda s: type(s).__name__)
def test_folding_keeps_the_greatest_and_spreading_gives_it_back(structure):
    score = jnp.asarray(np.random.default_rng(0).integers(0, 1000, SHAPE), jnp.int32)
    shape, axes = structure.cells(SHAPE, 1)
    cells = structure.fold(score, 1)
    assert cells.shape == shape and all(d > 0 for d in axes)
    chosen = np.asarray(structure.spread(cells >= 500, SHAPE, 1))
    want = np.asarray(score)
    if isinstance(structure, Block):
        want = want.reshape(2, 2, 2, 2, 4).max((2, 4), keepdims=True) + np.zeros((1, 1, 2, 1, 4), int)
    np.testing.assert_array_equal(chosen, want.reshape(SHAPE) >= 500)


def test_on_a_wafer_the_same_choice_on_every_device_mesh(device_grid):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 16)).round(1), jnp.float32)  # of many ties
    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=device_grid)
    structure = NM(2, 4)

    def choose(x):
        pairs = best(structure.fold(magnitude(x), 1), 2, structure.cells(x.shape, 1)[1])
        return best(magnitude(x), 37, (1, 2)), structure.spread(pairs, x.shape, 1)

    for got, want in zip(wse.jit(choose, wafer)(x), jax.jit(choose)(x), strict=True):
        np.testing.assert_array_equal(got, want)
