"""Micro-batches: the whole batch's mean however their weights fall, on a wafer and streamed too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.training.accumulate import count_targets, value_and_grad
from wsejax.training.ema import with_ema
from wsejax.training.groups import Group, clipped, grouped
from wsejax.training.noise import ALL, estimates, squared_norms
from wsejax.training.objectives import cross_entropy

ROWS, TIME, WIDTH, VOCABULARY = 8, 4, 6, 5
PARAMS = {
    "table": jax.random.normal(jax.random.key(0), (VOCABULARY, WIDTH)),
    "head": jax.random.normal(jax.random.key(1), (WIDTH, VOCABULARY)),
}


def loss(params, batch, key=None):
    return cross_entropy(jnp.tanh(params["table"][batch["tokens"]]) @ params["head"], batch["targets"], batch.get("weights"))


def data(weights=None):
    draw = np.random.default_rng(0).integers(0, VOCABULARY, (2, ROWS, TIME)).astype(np.int32)
    batch = {"tokens": draw[0], "targets": draw[1]}
    return batch if weights is None else batch | {"weights": np.asarray(weights, np.float32).reshape(ROWS, TIME)}


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


whole = jax.jit(jax.value_and_grad(loss))
in_parts = {n: jax.jit(value_and_grad(loss, micro_batches=n, weigh=count_targets)) for n in (2, 4)}


@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.25]), min_size=ROWS * TIME, max_size=ROWS * TIME), st.sampled_from([2, 4]))
def test_the_mean_is_that_of_the_whole_batch_however_weights_fall(weights, parts):
    weights[5] = 1.0
    batch = data(weights)
    (value, aux), gradients = in_parts[parts](PARAMS, batch)
    close((value, gradients), whole(PARAMS, batch))
    assert aux == {}


def test_a_mean_of_means_would_be_another():
    weights = np.zeros((ROWS, TIME))
    weights[0], weights[1, 0] = 1, 1
    batch = data(weights)
    plain = np.mean([whole(PARAMS, jax.tree.map(lambda x, n=n: x[n::2], batch))[0] for n in range(2)])
    assert abs(plain - whole(PARAMS, batch)[0]) > 1e-2


def test_an_empty_micro_batch_counts_for_nothing_and_an_empty_batch_has_no_mean():
    weights = np.ones((ROWS, TIME))
    weights[1::4] = 0  # all of micro-batch 1, whose own mean is 0 / 0
    batch = data(weights)
    assert np.isnan(whole(PARAMS, jax.tree.map(lambda x: x[1::4], batch))[0])
    (value, _), gradients = in_parts[4](PARAMS, batch)
    close((value, gradients), whole(PARAMS, batch))
    assert np.isnan(in_parts[4](PARAMS, data(0 * weights))[0][0])


def test_one_micro_batch_is_jax_bit_for_bit_key_and_all():
    noisy = lambda p, b, key: (loss(p, b) * jax.random.uniform(key), {"more": p["head"].sum()})
    key = jax.random.key(3)
    got = jax.jit(value_and_grad(noisy, micro_batches=1, weigh=count_targets, has_aux=True))(PARAMS, data(), key)
    want = jax.jit(jax.value_and_grad(noisy, has_aux=True))(PARAMS, data(), key)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_each_micro_batch_draws_its_own_and_aux_is_weighed_as_the_loss_is():
    def drawn(params, batch, key):
        return loss(params, batch), {"draw": jax.random.uniform(key), "weight": count_targets(batch)}

    weights = np.ones((ROWS, TIME))
    weights[1::2] = 0.5
    key = jax.random.key(7)
    (_, aux), _ = value_and_grad(drawn, micro_batches=2, weigh=count_targets, has_aux=True)(PARAMS, data(weights), key)
    draws = [float(jax.random.uniform(k)) for k in jax.random.split(key, 2)]
    assert draws[0] != draws[1]
    np.testing.assert_allclose(aux["draw"], (2 * draws[0] + draws[1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(aux["weight"], (2 * 16 + 8) / 3, rtol=1e-6)


def test_squares_are_those_of_the_micro_batches():
    weights = np.ones((ROWS, TIME))
    weights[0::4], weights[1::4, 1:] = 0, 0  # weights 0, 2, 8, 8
    batch = data(weights)
    groups = {"head": "head", "both": ".*"}
    f = value_and_grad(loss, micro_batches=4, weigh=count_targets, squares=lambda g: squared_norms(g, groups))
    (_, aux), gradients = f(PARAMS, batch)
    parts = [jax.tree.map(lambda x, n=n: x[n::4], batch) for n in range(1, 4)]
    shares = np.array([2, 8, 8]) / 18
    for name, suffix in ((ALL, ""), ("head", "/head"), ("both", "/both")):
        square = lambda g, name=name: squared_norms(g, groups)[name]
        small = sum(s * square(whole(PARAMS, part)[1]) for s, part in zip(shares, parts, strict=True))
        signal, noise = estimates(small, square(gradients), 18 / 3, 18)
        np.testing.assert_allclose(aux["gradient_signal" + suffix], signal, rtol=1e-3)
        np.testing.assert_allclose(aux["gradient_noise" + suffix], noise, rtol=1e-3)


def test_narrow_parameters_are_summed_in_float32():
    """Sixteen gradients of 1 and 1/512 in turn: bfloat16 would drop the small ones from a sum of shares."""
    params = {"w": jnp.ones((), jnp.bfloat16)}
    batch = {"x": np.array([1.0, 1 / 512] * 8, np.float32)}
    f = value_and_grad(lambda p, b, key: (p["w"].astype(jnp.float32) * b["x"]).mean(), micro_batches=16, weigh=lambda b: jnp.float32(1))
    (_, _), gradients = f(params, batch, None)
    assert gradients["w"].dtype == jnp.bfloat16
    assert gradients["w"] == jnp.bfloat16((1 + 1 / 512) / 2)


def test_on_a_wafer_it_has_the_same_bits_on_every_device_mesh():
    weights = np.random.default_rng(1).integers(0, 2, (ROWS, TIME))
    weights[2::4] = 0
    f = value_and_grad(loss, micro_batches=4, weigh=count_targets, squares=squared_norms)
    bits = set()
    for devices in ((1, 1), (1, 2), (2, 2)):
        wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=devices)
        got = wse.jit(f, wafer)(PARAMS, data(weights), None)
        bits.add(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(got)))
        close((got[0][0], got[1]), whole(PARAMS, data(weights)))
    assert len(bits) == 1


def test_a_streamed_step_over_two_wafers_is_the_plain_one():
    tx = with_ema(clipped(grouped(optax.adamw, [Group("head", 0.5)], learning_rate=1e-2), norm=1.0), 0.9)
    f = value_and_grad(loss, micro_batches=2, weigh=count_targets, squares=squared_norms)

    def step(state, batch):
        params, opt = state
        (value, aux), gradients = f(params, batch)
        updates, opt = tx.update(gradients, opt, params)
        return (optax.apply_updates(params, updates), opt), {"loss": value, **aux}

    state, batch = (PARAMS, tx.init(PARAMS)), data(np.random.default_rng(2).integers(0, 2, (ROWS, TIME)))
    cluster = wse.Cluster(wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=(1, 1)), systems=2)
    lowered = wse.jit(step, cluster, streamed_argnums=0, execution="streamed").lower(state, batch)
    got = lowered.compile()(jax.device_put(state, lowered.in_shardings[0]), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, jax.jit(step)(state, batch))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"micro_batches": 0}, "micro_batches=0: give at least 1"),
        ({"micro_batches": 1, "squares": squared_norms}, "micro_batches=1: give at least 2, to compare gradients"),
    ],
)
def test_what_cannot_be_is_refused(more, says):
    with pytest.raises(ValueError, match=says):
        value_and_grad(loss, weigh=count_targets, **more)


def test_a_batch_that_does_not_divide_is_refused_by_name():
    with pytest.raises(ValueError, match="leading axis of 8, which micro_batches=3 does not divide"):
        value_and_grad(loss, micro_batches=3, weigh=count_targets)(PARAMS, data())
    with pytest.raises(ValueError, match="a scalar, which micro_batches=2"):
        value_and_grad(loss, micro_batches=2, weigh=count_targets)(PARAMS, data() | {"scale": 1.0})
    with pytest.raises(ValueError, match=r"weigh: gives an array of shape \(4, 4\)"):
        value_and_grad(loss, micro_batches=2, weigh=lambda b: b["targets"])(PARAMS, data())
