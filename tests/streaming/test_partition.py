"""One program on N wafers equals plain JAX, with the same bits on any number of groups that emulate them."""

from __future__ import annotations

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats, ints
from tests.compiler.test_same_numbers import assert_same_numbers, leaves
from tests.streaming.on_cluster import OnCluster, graph_of
from wsejax.compiler.check import check_hlo
from wsejax.fabric import swarm
from wsejax.streaming import partition


@pytest.fixture(autouse=True)
def fast(request):
    """Without LLVM's optimisations, which take half of the time, except in slow tests; those of XLA stay."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("slow") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def counted(cluster: OnCluster) -> Counter:
    """How often each op stands in the wafer's graph."""
    return Counter(op.name for op in cluster.parts.graph.walk())


def check(fun, args, split, wafers: int, runs, tiles=(1, 1)) -> OnCluster:
    """Equal to plain JAX on each of `runs`, (groups, devices), with the bits of the first."""
    want, cluster, first = jax.jit(fun)(*args), OnCluster(fun, args, split, wafers, tiles), None
    for groups, devices in runs:
        got = cluster(groups, devices)
        assert_same_numbers(got, want)
        bits = [x.tobytes() for x in leaves(got)]
        first = first or bits
        different = [n for n, (a, b) in enumerate(zip(bits, first, strict=True)) if a != b]
        assert not different, f"results {different} have other bits on {groups} groups of {devices} devices than on {runs[0]}"
    return cluster


def splits(args, wafers: int) -> list[dict[int, int]]:
    """The first argument that is long enough along its first dimension; and with it all that are as long."""
    shapes = {n: np.shape(x) for n, x in enumerate(jax.tree.leaves(args))}
    long = [n for n, shape in shapes.items() if shape and shape[0] >= wafers]
    every = {n: 0 for n in long if shapes[n][0] == shapes[long[0]][0]} if long else {}
    return [{long[0]: 0}, every] if len(every) > 1 else [every] if every else []


ONE = (1, 1)
QUICK = ["embedding", "normalisation", "products", "cross_entropy", "while_loops", "gradient_of_convolution"]


@pytest.mark.parametrize("name", QUICK)
def test_a_program_on_wafers_equals_plain_jax(name):
    fun, args = PROGRAMS[name]
    check(fun, args, splits(args, 2)[-1], 2, [(1, ONE), (2, ONE)])


@pytest.mark.slow
@pytest.mark.parametrize("wafers", [3, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_on_wafers_equals_plain_jax_in_the_same_bits_on_all_groups(name, wafers):
    fun, args = PROGRAMS[name]
    for split in splits(args, wafers):
        check(fun, args, split, wafers, [(groups, ONE) for groups in (1, 2, 3, 4) if wafers % groups == 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_tiles_and_devices_of_a_wafer_change_nothing(name):
    fun, args = PROGRAMS[name]
    check(fun, args, splits(args, 4)[-1], 4, [(1, ONE), (2, (1, 2)), (4, ONE), (1, (2, 2))], tiles=(2, 2))


# ---- networks --------------------------------------------------------------------------------------------------------
def perceptron(rows: int):
    """(loss and gradients, arguments, the batch among them)."""
    params = {"a": floats(20, 36) * 0.1, "b": floats(36), "c": floats(36, 10) * 0.1}

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["a"] + params["b"][None]) @ params["c"] - y) ** 2)

    return jax.value_and_grad(loss), (params, floats(rows, 20, seed=1), floats(rows, 10, seed=2)), {3: 0, 4: 0}


def transformer(rows: int, tokens=6, width=16, heads=2, words=20, layers=2):
    """The same of a small one whose layers are scanned and computed again on the way back."""
    shapes = {
        "qkv": (width, 3, heads, width // heads),
        "o": (heads, width // heads, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
    }
    params = {k: floats(layers, *shape, seed=n) * 0.2 for n, (k, shape) in enumerate(shapes.items())}
    unit = lambda h: h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-5)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def layer(h, p):
        q, k, v = jnp.moveaxis(jnp.einsum("bsd,dchx->bschx", unit(h), p["qkv"]), 2, 0)
        seen = jnp.tri(tokens, dtype=bool)[None, None]
        scores = jax.nn.softmax(jnp.where(seen, jnp.einsum("bqhx,bkhx->bhqk", q, k), -1e30))
        h = h + jnp.einsum("bhqk,bkhx,hxd->bqd", scores, v, p["o"])
        return h + jax.nn.gelu(unit(h) @ p["up"]) @ p["down"], None

    def loss(params, table, ids):
        h, _ = lax.scan(layer, table[ids], params)
        logits = jax.nn.log_softmax((h.reshape(-1, width) @ table.T).reshape(*ids.shape, words))
        return -jnp.mean(jnp.take_along_axis(logits[:, :-1], ids[:, 1:, None], -1))

    return jax.value_and_grad(loss, (0, 1)), (params, floats(words, width, seed=9), ints(words, rows, tokens)), {5: 0}


@pytest.mark.parametrize(("network", "rows"), [(perceptron, 8), (perceptron, 7), (transformer, 5)])
def test_losses_and_gradients_on_two_wafers_are_those_on_one(network, rows):
    fun, args, split = network(rows)
    cluster = OnCluster(fun, args, split, 2)
    one = OnCluster(fun, args, split, 1)
    for a, b in zip(leaves(cluster()), leaves(one()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())
    found = counted(cluster)
    assert not found["swarm_gather"]  # data parallel: activations stay where they are
    assert found["swarm_reduce"] >= len(leaves(cluster.args)) - len(split)  # a gradient each, and the loss


@pytest.mark.parametrize(("network", "rows"), [(perceptron, 9), (transformer, 4)])
def test_a_training_step_has_the_same_bits_on_any_groups_and_talks_over_the_tree_only(network, rows):
    fun, args, split = network(rows)
    cluster = check(fun, args, split, 4, [(1, ONE), (4, ONE)])
    program, _ = cluster.compiled(4)
    assert check_hlo(program, ONE, 4, swarm.edges(4, 4, 4)).permutes


@pytest.mark.slow
@pytest.mark.parametrize("wafers", [3, 8])
@pytest.mark.parametrize("network", [perceptron, transformer])
def test_networks_have_the_same_bits_on_any_groups_and_devices(network, wafers):
    fun, args, split = network(11)
    runs = [(g, d) for g in (1, 2, 3, 4) for d in (ONE, (1, 2), (2, 1), (2, 2)) if wafers % g == 0 and g * d[0] * d[1] <= 4]
    check(fun, args, split, wafers, runs, tiles=(2, 2))


def test_attention_that_says_what_it_is_shares_its_batch():
    q, k = floats(4, 8, 2, 4), floats(4, 8, 2, 4, seed=1)
    fun = jax.value_and_grad(lambda q, k: jnp.sum(wse.attention(q, k, k, causal=True) ** 2), (0, 1))
    cluster = OnCluster(fun, (q, k), {0: 0, 1: 0}, 2)
    assert_same_numbers(cluster(), jax.jit(fun)(q, k))
    assert counted(cluster)["swarm_gather"] == 0


def test_a_kernel_of_the_users_gets_whole_arrays():
    """What it does with rows only it knows."""
    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=ONE)
    spec = jax.P("y", "x")
    kernel = wse.wafer_map(lambda x: wse.fabric.shift(x, "south"), wafer, (spec,), spec)
    fun, x = lambda x: kernel(x * 2) + x, floats(4, 2)
    cluster = OnCluster(fun, (x,), {0: 0}, 4, tiles=(2, 2))
    assert counted(cluster)["swarm_gather"] == 1
    assert_same_numbers(cluster(2), x + np.concatenate([np.zeros((1, 2), np.float32), 2 * x[:-1]]))


# ---- what stays local, and what is done about the rest -----------------------------------------------------------------
X = floats(6, 4)
KEPT = {
    "batch merged with tokens": (lambda x: jnp.sin(x.reshape(-1)).reshape(6, 2, 2), X),
    "transposed": (lambda x: (x.T * 2).T, X),
    "zeros of its shape": (lambda x: jnp.zeros_like(x) + x, X),
    "numbers of rows": (lambda x: x * jnp.arange(6.0)[:, None], X),
    "sorted rows": (lambda x: jnp.sort(x, 1)[:, 1:].cumsum(1), X),
    "a carry that starts as zeros": (lambda x: lax.scan(lambda c, _: (c + x, None), jnp.zeros((6, 4)), None, length=3)[0], X),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_runs_along_the_batch_is_done_without_talking(name):
    fun, x = KEPT[name]
    cluster = OnCluster(fun, (x,), {0: 0}, 3)
    found = counted(cluster)
    assert not found["swarm_gather"] and not found["swarm_reduce"] and cluster.parts.outs == (0,)
    assert all(v.size_bytes <= x.nbytes // 3 for op in cluster.parts.graph.ops for v in op.outs)
    assert_same_numbers(cluster(), jax.jit(fun)(x))


def test_uneven_rows_are_merged_and_taken_apart_with_their_padding():
    x = floats(7, 6)
    fun = lambda x: ((x.reshape(42) * 2).reshape(7, 2, 3).sum((1, 2)), x.reshape(42).sum(), x.reshape(42).max())
    cluster = check(fun, (x,), {0: 0}, 4, [(1, ONE), (2, ONE)])
    assert cluster.parts.outs == (0, None, None) and not counted(cluster)["swarm_gather"]


def test_padding_that_is_infinite_where_the_data_are_is_masked():
    x = floats(5, 3)
    x[1] = np.inf  # the second wafer's first row, and the padding of the first where rows are dealt 3 and 2
    fun = lambda x, y: (x.T @ y, jnp.sum(x, 0), jnp.max(x), jnp.prod(x, 0))
    for wafers in (2, 3, 4):
        assert_same_numbers(OnCluster(fun, (x, np.abs(X[:5])), {0: 0, 1: 0}, wafers)(), jax.jit(fun)(x, np.abs(X[:5])))


def test_different_batches_meet():
    fun = lambda x, y, z: (x @ y, x + z.reshape(6, 4), jnp.concatenate([x, z.reshape(6, 4)], 1), y.T @ y)
    args = floats(6, 4), floats(4, 5), floats(4, 6)
    check(fun, args, {0: 0, 1: 0, 2: 0}, 4, [(1, ONE), (2, ONE)])


def test_narrow_floats_are_added_up_in_float32_from_wafer_to_wafer():
    x = np.full((256, 2), 1 + 2**-7, jnp.bfloat16)  # sums of 32 of them have more digits than a bfloat16
    fun = lambda x: (lax.dot_general(x, x, (((0,), (0,)), ((), ()))), lax.reduce_sum_p.bind(x, axes=(0,), out_sharding=None))
    cluster = OnCluster(fun, (x,), {0: 0}, 8)
    assert counted(cluster)["swarm_reduce"] == 2
    exact = np.float64(x[0, 0])
    for got, want in zip(cluster(), (256 * exact**2, 256 * exact), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, np.full(got.shape, want, jnp.bfloat16))


def test_masks_of_dropout_are_those_of_one_wafer():
    fun = lambda key, x: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
    key, x = jax.random.key(1), floats(8, 4)
    np.testing.assert_array_equal(OnCluster(fun, (key, x), {1: 0}, 4)(2), jax.jit(fun)(key, x))


# ---- the interface ---------------------------------------------------------------------------------------------------
def test_one_wafer_runs_the_program_as_it_is():
    graph, _ = graph_of(jnp.sin, (X,))
    parts = partition(graph, {graph.ins[0]: 0}, 1)
    assert parts.graph is graph and parts.ins == (0,) and parts.outs == (None,)


@pytest.mark.parametrize(
    ("split", "wafers", "says"),
    [({0: 0}, 7, "a batch of 6 for 7 wafers"), ({0: 2}, 2, "one of its dimensions"), ({0: 0}, 0, "wafers=0")],
)
def test_misuse_says_what_to_do(split, wafers, says):
    graph, _ = graph_of(jnp.sin, (X,))
    with pytest.raises(ValueError, match=says):
        partition(graph, {graph.ins[n]: d for n, d in split.items()}, wafers)


def test_updates_of_a_narrow_table_are_added_up_in_float32_from_wafer_to_wafer():
    """The gradient of an embedding in bfloat16, a sequence a wafer."""
    table, tokens = jnp.asarray(floats(6, 4), jnp.bfloat16), jnp.asarray([[0, 1, 5], [1, 1, 2]])
    fun = lambda tokens, table: jax.grad(lambda t: (t[tokens].astype(jnp.float32) ** 2).sum())(table)
    check(fun, (tokens, table), {0: 0}, 2, [(1, ONE), (2, ONE)])
