"""`wse.jit` on a cluster: the same numbers on any number of wafers, the same bits on any devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import wsejax as wse

SPEC = wse.WSE3.scaled(16, 16)


def cluster(systems: int = 2, devices=(1, 1), tiles=(2, 2), **options) -> wse.Cluster:
    return wse.Cluster(wse.Wafer(SPEC, tiles=tiles, devices=devices), systems, **options)


def params():
    keys = jax.random.split(jax.random.key(1), 2)
    return {"w": 0.3 * jax.random.normal(keys[0], (12, 16)), "v": 0.3 * jax.random.normal(keys[1], (16, 3))}


def data(batch: int = 8):
    x = np.random.default_rng(0).normal(size=(batch, 12)).astype(np.float32)
    return x, x[:, :3] ** 2


def loss(p, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)


TX = optax.adam(1e-2)


def step(state, batch):
    p, opt = state
    value, grads = jax.value_and_grad(loss)(p, batch)
    updates, opt = TX.update(grads, opt)
    return (optax.apply_updates(p, updates), opt), value


def train(machine, batch, steps: int = 3, **options):
    fun = wse.jit(step, machine, donate_argnums=0, **options)
    state, values = jax.tree.map(jnp.array, (params(), TX.init(params()))), []
    for _ in range(steps):
        state, value = fun(state, batch)
        values.append(float(value))
    return np.array(values), jax.device_get(state)


def same_bits(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("batch", [8, 11])
def test_any_number_of_wafers_gives_the_losses_of_plain_jax_on_the_whole_batch(batch: int) -> None:
    plain, state = [], (params(), TX.init(params()))
    for _ in range(3):
        state, value = jax.jit(step)(state, data(batch))
        plain.append(float(value))
    for systems in (1, 2, 4, 8):
        losses, _ = train(cluster(systems, groups=1), data(batch))
        np.testing.assert_allclose(losses, plain, rtol=1e-5)


@pytest.mark.parametrize("batch", [8, 11])
def test_bits_depend_on_the_number_of_wafers_not_on_devices(batch: int) -> None:
    base = train(cluster(4, groups=1), data(batch))
    for groups, devices, execution in ((2, (1, 1), "resident"), (4, (1, 1), "streamed"), (2, (1, 2), "streamed"), (1, (2, 2), "resident")):
        found = train(cluster(4, devices, groups=groups), data(batch), streamed_argnums=0, execution=execution)
        assert same_bits(base, found), (groups, devices, execution)


def test_what_crosses_between_wafers_goes_along_the_tree() -> None:
    fun = wse.jit(step, cluster(4, groups=4), donate_argnums=0)
    compiled = fun.lower((params(), TX.init(params())), data()).compile()
    report = wse.check_hlo(compiled, (1, 1), 4, frozenset(frozenset((0, n)) for n in (1, 2, 3)))
    assert report.permutes and report.groups == 4
    with pytest.raises(wse.FabricError, match="edge of the tree"):
        wse.check_hlo(compiled, (1, 1), 4, frozenset({frozenset((0, 1))}))


def test_results_that_wafers_share_come_back_whole_and_in_order() -> None:
    x, _ = data(10)
    for groups, batch in ((1, 10), (2, 10), (2, 7)):
        found = wse.jit(lambda p, x: jnp.tanh(x @ p["w"]), cluster(2, groups=groups))(params(), x[:batch])
        np.testing.assert_allclose(found, np.tanh(x[:batch] @ params()["w"]), rtol=1e-5, atol=1e-6)


def test_parameters_are_no_batch() -> None:
    """A stack of two biases is not what two wafers share, although no product reads it and nobody donates it."""
    p = {**params(), "scales": jnp.ones((2, 500))}
    fun = wse.jit(lambda p, batch: loss(p, batch) * p["scales"].mean(), cluster(2, groups=1))
    np.testing.assert_allclose(fun(p, data(6)), loss(p, data(6)), rtol=1e-5)
    assert [s is not None for s in fun.lower(p, data(6))._frame.in_shares] == [False] * 3 + [True] * 2


def test_a_pinned_dimension_is_the_one_that_is_shared() -> None:
    x, _ = data(8)
    fun = lambda a, b: jnp.sum(a * b, axis=0)
    machine = cluster(2, groups=2)
    for where, dim in ((P("wafer"), 0), (P(None, "wafer"), 1), (NamedSharding(machine.mesh, P(None, ("wafer", "y"))), 1)):
        made = wse.jit(fun, machine, in_shardings=where)
        lowered = made.lower(x, x)
        assert all("wafer" in np.ravel(s.spec[dim]) for s in lowered.in_shardings)
        np.testing.assert_allclose(made(x, x), np.sum(x * x, 0), rtol=1e-5)


def test_a_cache_that_wafers_share_keeps_its_place_between_calls() -> None:
    def decode(cache, x, at):
        cache = jax.lax.dynamic_update_slice_in_dim(cache, x[:, None], at, 1)
        return cache, cache.sum(1)

    for groups in (1, 2):
        fun = wse.jit(decode, cluster(2, groups=groups), donate_argnums=0, in_shardings=(P("wafer"), P("wafer"), None))
        cache, x = jnp.zeros((4, 3, 5)), np.arange(20, dtype=np.float32).reshape(4, 5)
        for at in range(3):
            cache, total = fun(cache, x * (at + 1), at)
        np.testing.assert_allclose(total, x * 6)
        np.testing.assert_allclose(np.asarray(cache)[:, 1], x * 2)


def test_lower_takes_shapes_alone() -> None:
    big = jax.ShapeDtypeStruct((50_000, 30_000), jnp.float32)
    fun = lambda w, x: (w, jnp.sum((x @ w) ** 2))
    x = jax.ShapeDtypeStruct((64, 50_000), jnp.float32)
    lowered = wse.jit(fun, cluster(4, groups=1), donate_argnums=0, streamed_argnums=0).lower(big, x)
    assert lowered.in_shardings[0].memory_kind == "pinned_host", "6 GB are more than the SRAM of 256 PEs"
    assert "stream" in {c.kind for c in lowered.program.calls}


def test_auto_is_resident_where_it_fits() -> None:
    fun = wse.jit(step, cluster(1), donate_argnums=0, streamed_argnums=0)
    lowered = fun.lower((params(), TX.init(params())), data())
    assert {s.memory_kind for s in jax.tree.leaves(lowered.in_shardings)} == {"device"}


BAD = [
    (lambda: wse.jit(step, cluster(), streamed_argnums=0, execution="on disk"), "execution='on disk'"),
    (lambda: wse.jit(step, cluster(), execution="streamed"), "name what lives in MemoryX"),
    (lambda: wse.jit(step, wse.Wafer(SPEC, tiles=(1, 1), devices=(1, 1)), streamed_argnums=0), r"give wse.Cluster\(wafer\)"),
    (lambda: wse.jit(step, cluster(memoryx=None), streamed_argnums=0), "memoryx=None"),
    (lambda: wse.jit(step, cluster(), streamed_argnums=0, static_argnums=0), "cannot be both"),
    (lambda: wse.jit(step, "cs3"), "give a wse.Wafer"),
    (lambda: train(cluster(8, groups=1), data(5)), "batch of 5 for 8 wafers"),
    (lambda: train(cluster(memoryx=wse.MemoryX(1e3)), data(), streamed_argnums=0, execution="streamed"), "holds 1,000 bytes.*MemoryX"),
    (lambda: cluster(4, groups=3), "does not divide systems=4"),
    (lambda: cluster(8, (2, 2), groups=8), "need 32 devices"),
    (lambda: cluster(0), "systems=0"),
    (lambda: wse.Cluster(SPEC), "wafer="),  # pyright: ignore[reportArgumentType]
    (lambda: wse.jit(lambda w: w * 2, cluster(), donate_argnums=0)(jnp.ones((4, 4))), "no argument that the wafers could share"),
    (lambda: wse.jit(loss, cluster(), in_shardings=P("wafer", "wafer"))(*data()), "'wafer' splits two dimensions"),
    (lambda: wse.MemoryX(-1), "capacity_bytes=-1"),
    (lambda: wse.SwarmX(arity=1), "arity=1"),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_bad_input(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_cluster_is_a_value() -> None:
    assert cluster(2, groups=1) == cluster(2, groups=1) and hash(cluster(2, groups=1)) == hash(cluster(2, groups=1))
    assert cluster(2, groups=1) != cluster(2, groups=2)
    assert cluster(4, groups=2).replace(swarmx=wse.SwarmX(2)).swarmx.arity == 2
    assert cluster(4, groups=2).lanes == 2 and "4 wafers on 2 groups" in repr(cluster(4, groups=2))
    with pytest.raises(AttributeError, match=r"cluster.replace\(systems="):
        cluster().systems = 3
    with pytest.raises(TypeError, match="wafers"):
        cluster().replace(wafers=2)


@pytest.mark.parametrize("execution", ["resident", "streamed"])
def test_sums_of_one_wafer_and_of_all_travel_apart(execution: str) -> None:
    """The loss is a sum of each wafer's own, the gradient's norm the same on all; they end in one wave."""

    def normed(state, batch):
        value, grads = jax.value_and_grad(loss)(state, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), (value, optax.tree.norm(grads))

    want = jax.jit(normed)(params(), data(12))
    for groups, devices in ((1, (2, 2)), (1, (1, 1)), (2, (1, 2))):
        machine = cluster(2, devices, tiles=(4, 4), groups=groups)
        fun = wse.jit(normed, machine, donate_argnums=0, streamed_argnums=0, execution=execution)
        for a, b in zip(jax.tree.leaves(fun(jax.tree.map(jnp.array, params()), data(12))), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_shardings_beside_a_state_of_an_optimiser() -> None:
    """Whose structure has empty tuples."""
    state = params(), TX.init(params())
    fun = wse.jit(step, cluster(2, groups=2), donate_argnums=0, in_shardings=(None, P("wafer")))
    _, value = fun(jax.tree.map(jnp.array, state), data(8))
    np.testing.assert_allclose(value, loss(params(), data(8)), rtol=1e-5)


@pytest.mark.parametrize("execution", ["resident", "streamed"])
def test_other_transformations_go_round_it(execution: str) -> None:
    fun = wse.jit(step, cluster(2, groups=1), streamed_argnums=0, execution=execution)
    state, batch = (params(), TX.init(params())), data(8)
    want = jax.jit(lambda s: jax.lax.scan(lambda c, _: step(c, batch), s, None, length=2))(state)
    found = jax.jit(lambda s: jax.lax.scan(lambda c, _: fun(c, batch), s, None, length=2))(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    of_loss = wse.jit(loss, cluster(2, groups=1), streamed_argnums=0, execution="resident")
    for a, b in zip(jax.tree.leaves(jax.grad(of_loss)(params(), batch)), jax.tree.leaves(jax.grad(loss)(params(), batch)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_what_streams_is_in_the_audit() -> None:
    fun = wse.jit(step, cluster(2, groups=1), donate_argnums=0, streamed_argnums=0, execution="streamed")
    text = str(fun.lower((params(), TX.init(params())), data()).audit())
    assert "2 wafers of 2 x 2 tiles" in text and "in and out of the wafers" in text and "done outside the wafers" in text
    with pytest.raises(ValueError, match="cannot be exported"):
        fun.lower((params(), TX.init(params())), data()).export()


def test_streamed_arguments_are_positions() -> None:
    streamed = {"streamed_argnums": 0, "execution": "streamed"}
    with pytest.raises(ValueError, match="streamed_argnums has 7: the function has 2 positional"):
        wse.jit(step, cluster(), streamed_argnums=7)
    with pytest.raises(ValueError, match="streamed_argnums has 'state'"):
        wse.jit(step, cluster(), streamed_argnums="state")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pass it by position"):
        wse.jit(step, cluster(), **streamed)(state=(params(), TX.init(params())), batch=data())
