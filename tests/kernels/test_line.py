"""The place of the largest, the top k and running totals along a split dimension: numpy's, with the same bits on every device mesh."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.fabric.grids import on_layouts
from wsejax.kernels import line

GRIDS = [(1, 1), (1, 2), (2, 2)]
TILES = {"y": 4, "x": 4}
N = 10  # padded to 12 over 4 tiles


def on_meshes(fun, x, axis, out):
    """Results on every mesh, which must have the same bits; the padding comes in as large numbers."""
    x = np.concatenate([x, np.full((12 - N, *x.shape[1:]), 99, x.dtype)])
    results = [np.asarray(on_layouts(fun, grid, [(axis, None)], out)(x)) for grid in GRIDS]
    for got in results[1:]:
        np.testing.assert_array_equal(got, results[0])
    return results[0]


TIES = np.array([[3, 1, 3, 0, 3, -1, 3, 3, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]).T


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_the_first_of_equals_is_the_largest(axis, dtype):
    x = TIES.astype(dtype)
    if dtype == np.float32:
        x = np.concatenate([x, np.where(np.arange(N)[:, None] == 7, np.nan, x[:, :1]), np.full((N, 1), -np.inf, dtype)], 1)
    lowest = -np.inf if dtype == np.float32 else np.iinfo(dtype).min
    pick = lambda v, d: lax.argmax(v, d, jnp.int32)
    got = on_meshes(lambda v: line.first_best(v, 0, axis, N, lowest, pick), x, axis, (None,))
    np.testing.assert_array_equal(got, np.argmax(x, 0))


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_top_k_are_xlas_ties_and_all(axis, k):
    x = np.concatenate([TIES, -TIES], 1).astype(np.float32)
    x[2, 0] = -np.inf
    pick = lambda v, k: tuple(jnp.moveaxis(part, -1, 0) for part in lax.top_k(jnp.moveaxis(v, 0, -1), k))
    for part in (0, 1):
        got = on_meshes(lambda v, part=part: line.top_k(v, k, 0, axis, N, -np.inf, pick)[part], x, axis, (None, None))
        np.testing.assert_array_equal(got, pick(jnp.asarray(x), k)[part])


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("cumulative", "combine", "neutral", "oracle"),
    [
        (lax.cumsum, jnp.add, 0, np.cumsum),
        (lax.cummax, jnp.maximum, -np.inf, np.maximum.accumulate),
        (lax.cumprod, jnp.multiply, 1, np.cumprod),
    ],
)
def test_running_totals(axis, reverse, cumulative, combine, neutral, oracle):
    x = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    inside = lambda v, d: cumulative(v, d, reverse)
    got = on_meshes(lambda v: line.running(v, 0, axis, N, neutral, inside, combine, reverse, TILES), x, axis, (axis, None))[:N]
    want = oracle(x[::-1].astype(np.float64), axis=0)[::-1] if reverse else oracle(x.astype(np.float64), axis=0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
