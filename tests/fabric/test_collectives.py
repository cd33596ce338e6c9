"""Collectives against numpy. A float sum has the bits of the sequential sum along the line, on any device mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fabric.grids import executed_byte_hops, mesh_of, on_grid, on_layouts, permutes
from wsejax import fabric
from wsejax.kernels.relayout import gather_byte_hops

ROWS, COLS = 4, 6
AXIS_DIM = {"y": 0, "x": 1}


def entries(seed: int = 0) -> np.ndarray:
    """Of many magnitudes, so that another order of summation gives other bits."""
    r = np.random.default_rng(seed)
    return (r.standard_normal((ROWS, COLS, 5)) * 10.0 ** r.integers(-3, 4, (ROWS, COLS, 5))).astype(np.float32)


def sequential(x: np.ndarray, dim: int) -> np.ndarray:
    total = np.take(x, 0, dim)
    for i in range(1, x.shape[dim]):
        total = total + np.take(x, i, dim)
    return np.broadcast_to(np.expand_dims(total, dim), x.shape)


def test_the_oracle_can_tell_orders_apart():
    x = entries()
    assert not np.array_equal(sequential(x, 1), sequential(x[:, ::-1], 1))


@pytest.mark.parametrize("axis", fabric.AXES)
def test_all_reduce_has_the_bits_of_the_sequential_sum(device_grid, axis):
    x = entries()
    got = on_grid(lambda v: fabric.all_reduce(v, axis), device_grid)(x)
    np.testing.assert_array_equal(got, sequential(x, AXIS_DIM[axis]))


@pytest.mark.parametrize(("op", "oracle"), [(jnp.maximum, np.max), (jnp.minimum, np.min), (jnp.multiply, np.prod)])
def test_all_reduce_by_another_operation(device_grid, op, oracle):
    x = entries(1)
    got = on_grid(lambda v: fabric.all_reduce(v, "x", op), device_grid)(x)
    np.testing.assert_allclose(got, np.broadcast_to(oracle(x, 1, keepdims=True), x.shape), rtol=1e-6)


@pytest.mark.parametrize(("axis", "root"), [("y", 0), ("y", 2), ("x", 3), ("x", 5)])
def test_reduce_leaves_the_sum_at_the_root_and_zeros_elsewhere(device_grid, axis, root):
    x, dim = entries(2), AXIS_DIM[axis]
    got = np.asarray(on_grid(lambda v: fabric.reduce(v, axis, root), device_grid)(x))
    np.testing.assert_array_equal(np.take(got, root, dim), np.take(sequential(x, dim), root, dim))
    assert not np.delete(got, root, dim).any()


@pytest.mark.parametrize(("axis", "root"), [("y", 0), ("y", 3), ("x", 2), ("x", 4)])
def test_broadcast_gives_every_tile_the_roots_entry(device_grid, axis, root):
    x, dim = entries(3), AXIS_DIM[axis]
    got = on_grid(lambda v: fabric.broadcast(v, axis, root), device_grid)(x)
    np.testing.assert_array_equal(got, np.broadcast_to(np.take(x, [root], dim), x.shape))


@pytest.mark.parametrize("devices", [(1, 4), (4, 1)])
@pytest.mark.parametrize("root", range(4))
def test_a_broadcast_goes_outwards_by_single_hops(devices, root):
    axis = "x" if devices[1] == 4 else "y"
    x = np.random.default_rng(4).standard_normal((4, 4)).astype(np.float32)
    fun = on_grid(lambda v: fabric.broadcast(v, axis, root), devices)
    np.testing.assert_array_equal(fun(x), np.broadcast_to(np.take(x, [root], AXIS_DIM[axis]), x.shape))
    moved = list(permutes(fun, x))
    assert len(moved) == 3  # to the ends of a line of four, both ways together
    assert all(abs(a - b) == 1 for _, pairs, _ in moved for a, b in pairs)


@pytest.mark.parametrize("axis", fabric.AXES)
def test_all_gather_gives_every_tile_its_whole_line_in_tile_order(device_grid, axis):
    x = entries(5)
    got = np.asarray(on_grid(lambda v: fabric.all_gather(v, axis), device_grid)(x))
    n = x.shape[AXIS_DIM[axis]]
    assert got.shape == (ROWS, COLS, n, 5)
    for r in range(ROWS):
        for c in range(COLS):
            np.testing.assert_array_equal(got[r, c], x[r] if axis == "x" else x[:, c])


@pytest.mark.parametrize("devices", [(1, 1), (1, 2), (1, 3), (1, 4)])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
def test_gather_makes_a_split_dimension_whole_on_every_device(devices, dim, dtype):
    x = (np.random.default_rng(6).standard_normal((12, 12, 12)) * 2).astype(dtype)
    split = tuple("x" if d == dim else None for d in range(3))
    # each device gives its copy, side by side in a new dimension
    fun = on_layouts(lambda v: fabric.gather(v, "x", dim)[None], devices, [split], ("x", None, None, None))
    np.testing.assert_array_equal(fun(x), np.broadcast_to(x, (devices[1], *x.shape)))


@pytest.mark.parametrize("devices", [(1, 2), (1, 3), (1, 4)])
def test_gather_moves_what_its_cost_says(devices):
    n = devices[1]
    x = np.zeros((12, 5), np.float32)
    fun = on_layouts(lambda v: fabric.gather(v, "x", 0), devices, [("x", None)], (None, None))
    assert executed_byte_hops(fun, devices, x) == gather_byte_hops(12 // n * 5 * 4, n, 1)


@pytest.mark.parametrize("devices", [(1, 1), (2, 1), (3, 1), (4, 1)])
def test_collect_leaves_each_device_its_share_of_the_sum(devices):
    x = np.random.default_rng(7).integers(-9, 9, (4, 12, 3)).astype(np.int32)[: devices[0]]
    fun = on_layouts(lambda v: fabric.collect(v[0], "y", 0), devices, [("y", None, None)], ("y", None))
    np.testing.assert_array_equal(fun(x), x.sum(0))


@given(st.integers(1, 9), st.integers(0, 99))
def test_in_order_is_a_left_fold(n, seed):
    x = np.random.default_rng(seed).standard_normal((3, n)).astype(np.float32)
    total = x[:, 0]
    for i in range(1, n):
        total = total - x[:, i]  # neither associative nor commutative
    np.testing.assert_array_equal(fabric.in_order(jnp.asarray(x), 1, jnp.subtract), total)


def test_gradient_of_a_gather_is_the_sum_of_what_every_device_asks_for():
    """Written in JAX's own terms: the vjp of `gather` on a mesh equals the vjp of the identity, counted once a reader."""
    x = np.random.default_rng(8).standard_normal((8, 3)).astype(np.float32)
    weights = np.random.default_rng(9).standard_normal((4, 8, 3)).astype(np.float32)
    fun = on_layouts(lambda v, w: fabric.gather(v, "x", 0)[None] * w, (1, 4), [("x", None), ("x", None, None)], ("x", None, None))
    grad = jax.grad(lambda v: fun(v, weights).sum())(x)
    np.testing.assert_allclose(grad, weights.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fun", "words"),
    [
        (lambda v: fabric.all_reduce(v, "z"), ["axis='z'", "'y'", "'x'"]),
        (lambda v: fabric.all_reduce(v[0, 0], "x"), ["shape ()", "(rows, cols)"]),
        (lambda v: fabric.reduce(v, "x", root=2), ["root=2", "0 to 1"]),
        (lambda v: fabric.broadcast(v, "y", root=-1), ["root=-1", "0 to 1"]),
        (lambda v: fabric.all_gather(v, "wafer"), ["axis='wafer'"]),
    ],
)
def test_a_bad_call_names_the_argument_and_the_way_out(fun, words):
    with pytest.raises(ValueError) as error:
        jax.eval_shape(fabric.on_mesh(fun, mesh_of((1, 1))), np.zeros((2, 2), np.float32))
    assert all(word in str(error.value) for word in words), error.value
