"""Reductions: right against float64, and with bits that depend on the tiles alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from tests.fabric.grids import executed_byte_hops, mesh_of, on_layouts
from wsejax import fabric
from wsejax.kernels.reduce import combine, partial_reduce, tree_reduce
from wsejax.kernels.relayout import gather_byte_hops

TILES = {"y": 4, "x": 2}
SHAPE = (12, 10, 8)


def numbers(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.standard_normal(shape) * 10.0 ** r.integers(-3, 4, shape)).astype(np.float32)


def add_tree(x, dims):
    return tree_reduce(x, dims, jnp.add)


def reduce_tiles(x, layout, dims, local, op, tiles, shape=SHAPE, **options):
    neutral = jnp.asarray({jnp.add: 0, jnp.maximum: -np.inf, jnp.minimum: np.inf}[op], x.dtype)
    return combine([partial_reduce(x, layout, dims, local, op, neutral, shape, tiles)], **options)[0]


@pytest.mark.parametrize("layout", [("y", "x", None), ("x", None, "y"), (None, "x", None), ("y", None, None)], ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_sums_equal_float64_and_have_the_same_bits_on_every_device_mesh(layout, dims):
    x = numbers(0)
    out = tuple(layout[d] for d in range(3) if d not in dims)
    grids = [(1, 1), (1, 2), (2, 1), (2, 2)]
    results = []
    for devices in grids:
        got = on_layouts(lambda v: reduce_tiles(v, layout, dims, add_tree, jnp.add, TILES), devices, [layout], out)(x)
        for shard in got.addressable_shards:  # where it is replicated, every device holds the same
            np.testing.assert_array_equal(shard.data, np.asarray(got)[shard.index])
        results.append(np.asarray(got))
    exact = x.astype(np.float64).sum(dims)
    bound = 1e-6 * np.abs(x.astype(np.float64)).sum(dims) + 1e-30
    assert (np.abs(results[0] - exact) <= bound).all()
    for devices, got in zip(grids, results, strict=True):
        np.testing.assert_array_equal(got, results[0], err_msg=str(devices))


@pytest.mark.parametrize(("op", "local", "oracle"), [(jnp.maximum, jnp.max, np.max), (jnp.minimum, jnp.min, np.min)])
def test_maxima_are_exact_and_pass_nan_on(device_grid, op, local, oracle):
    x = numbers(1)
    x[3, 4, 5] = np.nan
    layout, dims = ("y", None, "x"), (0, 2)
    fun = on_layouts(lambda v: reduce_tiles(v, layout, dims, lambda b, d: local(b, d), op, TILES), device_grid, [layout], (None,))
    np.testing.assert_array_equal(fun(x), oracle(x, dims))
    assert np.isnan(np.asarray(fun(x))[4])


def test_partial_results_combine_in_tile_order(device_grid):
    """The oracle adds each tile's own tree sum to the next tile's, from north to south."""
    x = numbers(2)
    local = jax.jit(lambda v: tree_reduce(v, (0,), jnp.add))
    parts = [np.asarray(local(part)) for part in np.split(x, TILES["y"])]
    layout = ("y", None, None)
    got = on_layouts(lambda v: reduce_tiles(v, layout, (0,), add_tree, jnp.add, TILES), device_grid, [layout], (None, None))(x)
    np.testing.assert_array_equal(got, functools.reduce(np.add, parts))
    assert not np.array_equal(got, functools.reduce(np.add, parts[::-1]))


@settings(max_examples=12)
@given(st.sampled_from([1, 2, 5, 12, 30, 37]), st.sampled_from([1, 5, 16, 33]), st.integers(0, 9))
def test_a_tree_sum_does_not_depend_on_what_stands_beside_it(length, beside, seed):
    x = numbers(seed, (length, beside))
    whole = np.asarray(_tree_sum(x))
    for i in (0, beside - 1):
        np.testing.assert_array_equal(_tree_sum(x[:, i : i + 1])[0], whole[i])
    np.testing.assert_array_equal(jax.jit(lambda v: tree_reduce(v, (1,), jnp.add))(x.T), whole)


_tree_sum = jax.jit(lambda v: tree_reduce(v, (0,), jnp.add))


@settings(max_examples=12)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_tree_reduce_of_integers_is_exact(shape, data):
    dims = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)))))
    x = np.random.default_rng(0).integers(-50, 50, shape)
    np.testing.assert_array_equal(tree_reduce(jnp.asarray(x, jnp.int32), dims, jnp.add), x.sum(dims) if dims else x)


@pytest.mark.parametrize("devices", [(1, 2), (1, 4), (4, 1), (2, 2)])
@pytest.mark.parametrize("layout", [("y", "x"), ("x", "y"), ("x", None), (None, "y")], ids=str)
def test_the_partial_results_move_as_an_all_gather_round_each_line(devices, layout):
    tiles = dict(zip(("y", "x"), devices, strict=True))
    other = {"y": devices[1], "x": devices[0]}
    fun = on_layouts(lambda v: reduce_tiles(v, layout, (0,), add_tree, jnp.add, tiles, (8, 8)), devices, [layout], (layout[1],))
    block_bytes = 8 // (tiles[layout[1]] if layout[1] else 1) * 4
    want = gather_byte_hops(block_bytes, tiles[layout[0]], other[layout[0]]) if layout[0] else 0
    assert executed_byte_hops(fun, devices, np.zeros((8, 8), np.float32)) == want


def test_reductions_in_one_message_give_what_each_gives_alone(device_grid):
    """Sums and maxima along either line or both, of several shapes and dtypes; on one device no message is needed."""
    x, y = numbers(3), numbers(4, (8, 4))
    z = np.random.default_rng(5).integers(-9, 9, (4, 8)).astype(np.int32)
    cases = [  # operand, its layout, dimensions, local reduction, op, layout of the result
        (x, ("y", "x", None), (1,), add_tree, jnp.add, ("y", None)),
        (x, ("y", "x", None), (0, 1), add_tree, jnp.add, (None,)),
        (y, ("x", "y"), (0, 1), add_tree, jnp.add, ()),
        (y, ("y", "x"), (1,), lambda b, d: jnp.max(b, d), jnp.maximum, ("y",)),
        (y, (None, "x"), (0, 1), lambda b, d: jnp.max(b, d), jnp.maximum, ()),
        (z, ("y", "x"), (1,), lambda b, d: jnp.sum(b, d), jnp.add, ("y",)),
    ]
    layouts, outs = [case[1] for case in cases], [case[5] for case in cases]

    def together(*blocks):
        return combine(
            [
                partial_reduce(b, lay, dims, f, op, jnp.zeros((), b.dtype), x.shape, TILES)
                for b, (x, lay, dims, f, op, _) in zip(blocks, cases, strict=True)
            ]
        )

    fun = jax.jit(fabric.on_mesh(together, mesh_of(device_grid), tuple(P(*lay) for lay in layouts), [P(*lay) for lay in outs]))
    got = fun(*(case[0] for case in cases))

    def alone(operand, layout, dims, local, op, out):
        return on_layouts(lambda v: reduce_tiles(v, layout, dims, local, op, TILES, operand.shape), device_grid, [layout], out)(operand)

    for result, case in zip(got, cases, strict=True):
        assert result.dtype == case[0].dtype
        np.testing.assert_array_equal(result, alone(*case))


def test_reductions_that_go_the_same_way_send_one_message():
    def fun(x):
        return combine(
            [partial_reduce(v, ("y", None), (0,), add_tree, jnp.add, jnp.zeros(()), (8, 6), {"y": 2, "x": 1}) for v in (x, x * x, x[:, :2])]
        )

    placed = fabric.on_mesh(fun, mesh_of((2, 1)), (P("y"),), [P(), P(), P()])
    assert str(jax.make_jaxpr(placed)(numbers(6, (8, 6)))).count("ppermute[") == 1
