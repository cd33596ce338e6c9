"""The tree that joins wafers: its order, its bits on any number of groups, and how wafers share an array."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from wsejax import fabric
from wsejax.compiler.check import FabricError, check_hlo
from wsejax.fabric import swarm

DEVICES = 4


def mesh(groups: int, rows: int = 1, cols: int = 1) -> Mesh:
    devices = np.array(jax.devices()[: groups * rows * cols]).reshape(groups, rows, cols)
    return Mesh(devices, ("wafer", "y", "x"), axis_types=(AxisType.Auto,) * 3)


def groups_of(wafers: int) -> list[int]:
    return [g for g in range(1, DEVICES + 1) if wafers % g == 0]


def on_groups(fun, wafers: int, groups: int, ins: list[int | None], outs: list[int | None]):
    """`fun` on every wafer, jitted: arguments and results with a leading axis of the wafers where 0, replicated where None."""
    spec = lambda axes: tuple(P() if a is None else P("wafer") for a in axes)
    return jax.jit(fabric.on_mesh(swarm.lanes(fun, wafers // groups, ins, outs), mesh(groups), spec(ins), spec(outs)))


def ordered_tree(terms: list[np.ndarray], arity: int, op=np.add) -> np.ndarray:
    """Nodes of `arity`, each combining from first to last; a child that is missing is not there."""
    while len(terms) > 1:
        terms = [functools.reduce(op, terms[i : i + arity]) for i in range(0, len(terms), arity)]
    return terms[0]


@given(st.integers(1, 12), st.integers(2, 5), st.integers(0, 2**32 - 1), st.sampled_from(["sum", "max", "prod"]))
def test_a_reduction_is_the_ordered_tree_in_the_same_bits_on_any_groups(wafers, arity, seed, op):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((wafers, 5)) * 10.0 ** rng.integers(-3, 4, (wafers, 5))).astype(np.float32)
    x[:, 0], x[:, 1] = -0.0, rng.choice([0.0, -0.0, 1e-30], wafers)
    want = ordered_tree(list(x), arity, {"sum": np.add, "max": np.maximum, "prod": np.multiply}[op])
    for groups in groups_of(wafers):
        program = on_groups(lambda x: [swarm.reduce(x, op, wafers, arity)], wafers, groups, [0], [None]).lower(x).compile()
        (got,) = program(x)
        for shard in got.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), want)
            assert np.asarray(shard.data).tobytes() == want.tobytes() or op == "max"  # which zero is the larger is XLA's to say
        assert check_hlo(program, (1, 1), groups, swarm.edges(wafers, groups, arity)).permutes or groups == 1


def test_integers_and_flags_have_their_reductions():
    flags, numbers = np.array([[1, 0], [1, 1], [1, 0]], bool), np.array([[5, 3], [6, 3], [4, 7]], np.int32)
    fun = lambda f, n: [swarm.reduce(f, "and", 3), swarm.reduce(f, "or", 3), swarm.reduce(n, "xor", 3), swarm.reduce(n, "min", 3)]
    for groups in (1, 3):
        got = on_groups(fun, 3, groups, [0, 0], [None] * 4)(flags, numbers)
        want = (flags.all(0), flags.any(0), np.bitwise_xor.reduce(numbers), numbers.min(0))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=10)  # JAX compiles for every shape
@given(st.integers(1, 9), st.integers(0, 12), st.integers(1, 3), st.integers(0, 2))
def test_what_is_dealt_is_collected_again(wafers, more, multiple, dim):
    rows = wafers + more
    shape = [2, 2, 2]
    shape[dim] = rows * multiple
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for numbers in (np.asarray, jnp.asarray):
        shares = swarm.deal(numbers(x), dim, wafers, multiple)
        assert isinstance(shares, type(numbers(x)))
        assert shares.shape == (wafers, *shape[:dim], -(-rows // wafers) * multiple, *shape[dim + 1 :])
        np.testing.assert_array_equal(swarm.collect(shares, dim, shape[dim], multiple), x)
        np.testing.assert_array_equal(np.isin(shares, x), True)  # padding is real data


@pytest.mark.parametrize(("wafers", "rows", "multiple"), [(4, 8, 1), (4, 9, 2), (3, 7, 1), (6, 6, 3), (8, 13, 1)])
def test_taking_and_gathering_are_dealing_and_collecting_on_any_groups(wafers, rows, multiple):
    x = np.random.default_rng(0).standard_normal((3, rows * multiple)).astype(np.float32)

    def fun(x):
        mine = swarm.take(x, 1, wafers, multiple)
        return mine, swarm.gather(mine, 1, rows * multiple, wafers, 2, multiple), swarm.valid(rows, wafers, multiple), swarm.index()

    for groups in groups_of(wafers):
        program = on_groups(fun, wafers, groups, [None], [0, None, 0, 0]).lower(x).compile()
        shares, back, valid, number = program(x)
        np.testing.assert_array_equal(shares, swarm.deal(x, 1, wafers, multiple))
        for shard in back.addressable_shards:
            np.testing.assert_array_equal(shard.data, x)
        np.testing.assert_array_equal(valid, np.array(swarm.counts(rows, wafers)) * multiple)
        np.testing.assert_array_equal(number, np.arange(wafers))
        check_hlo(program, (1, 1), groups, swarm.edges(wafers, groups, 2))


def test_what_a_loop_reduces_is_the_same_on_all_wafers():
    """The lane's number reaches loops from outside, and their carries stay replicated, which vmap would refuse otherwise."""

    def fun(x):
        step = lambda total, row: (total + swarm.reduce(row * total, "sum", 4, 2), row + swarm.index())
        return jax.lax.scan(step, jnp.ones(2), x)

    x = np.random.default_rng(1).standard_normal((4, 3, 2)).astype(np.float32)
    results = [on_groups(fun, 4, groups, [0], [None, 0])(x) for groups in (1, 2, 4)]
    for total, rows in results:
        assert np.asarray(total).tobytes() == np.asarray(results[0][0]).tobytes()
        np.testing.assert_array_equal(rows, x + np.arange(4, dtype=np.float32)[:, None, None])


def test_products_are_not_fused_into_the_tree():
    """A multiply-add rounds once; where the terms come from another group there is none."""
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal((4, 257)).astype(np.float32) for _ in "xy")
    want = ordered_tree(list(x * y), 4)
    for groups in (1, 2, 4):
        (got,) = on_groups(lambda x, y: [swarm.reduce(x * y, "sum", 4)], 4, groups, [0, 0], [None])(x, y)
        assert np.asarray(got).tobytes() == want.tobytes()


def test_a_value_that_differs_from_wafer_to_wafer_is_no_replicated_result():
    with pytest.raises(ValueError):
        on_groups(lambda x: [x], 4, 2, [0], [None])(np.ones((4, 2), np.float32))


def test_misuse_says_what_to_do():
    with pytest.raises(ValueError, match="5 wafers: each needs one at least"):
        swarm.deal(np.ones((3, 2)), 0, 5)
    with pytest.raises(ValueError, match="op='mean'"):
        swarm.reduce(jnp.ones(2), "mean", 2)
    with pytest.raises(ValueError, match="wafers=3: 2 groups"):
        on_groups(lambda x: [swarm.reduce(x, "sum", 3)], 4, 2, [0], [None])(np.ones((4, 2), np.float32))


@given(st.integers(1, 40), st.integers(2, 6), st.data())
def test_the_tree_reaches_every_group_over_its_edges(wafers, arity, data):
    groups = data.draw(st.sampled_from([g for g in range(1, wafers + 1) if wafers % g == 0]))
    edges, has = swarm.edges(wafers, groups, arity), {0}
    for pairs in swarm._rounds(wafers, groups, arity):
        sources, targets = zip(*pairs, strict=True)
        assert has.issuperset(sources) and has.isdisjoint(targets)
        assert len(set(sources)) == len(sources) and len(set(targets)) == len(targets)
        assert edges.issuperset(frozenset(pair) for pair in pairs)
        has.update(targets)
    assert has == set(range(groups))


def test_the_check_of_compiled_programs_knows_the_tree():
    line = lambda a, b: f"  %c = f32[2]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={{{{{a},{b}}}}}, metadata={{}}"
    tree = swarm.edges(4, 4, 2)  # 0-1, 2-3, 0-2
    assert tree == {frozenset(pair) for pair in ((0, 1), (2, 3), (0, 2))}
    assert check_hlo(line(1, 5), (2, 2), 4, tree).links == {(1, 5)}
    assert check_hlo(line(9, 1), (2, 2), 4, tree).permutes == 1
    for a, b in ((4, 8), (0, 5), (0, 12), (0, 16), (13, 17)):  # no edge, another place, no edge, no group
        with pytest.raises(FabricError, match=f"device {a} sends to {b}"):
            check_hlo(line(a, b), (2, 2), 4, tree)
    check_hlo(line(4, 5), (2, 2), 4, tree)  # inside a group
    with pytest.raises(FabricError, match="not on one line"):
        check_hlo(line(4, 7), (2, 2), 4, tree)
