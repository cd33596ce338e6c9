"""Policies: what they are, that every one runs on a wafer as in plain JAX, and that all learn like float32."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

import wsejax as wse
from models.gpt2 import FAMILY, GPT2Config
from wsejax.kernels.formats import CB16
from wsejax.training import init_train_state, load_corpus, make_train_step, next_token_loss, train_batches
from wsejax.training.lossscale import check_gradients, loss_scale_state
from wsejax.training.precision import LEVELS, POLICIES, policy

TINY = GPT2Config(vocab_size=32, context=8, layers=1, heads=4, width=16)
SMALL = GPT2Config(vocab_size=256, context=64, layers=2, heads=4, width=64)
BAND = 0.06  # nats a byte, between means over the last 50 of 300 steps


def pieces(name: str, config: GPT2Config):
    """(step, initial state) of a policy: float32 masters, whatever it computes in."""
    how = policy(name)
    config = dataclasses.replace(config, dtype=how.compute_dtype)
    tx = how.scaled(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3)))
    loss = how.apply(lambda params, batch, key: next_token_loss(FAMILY.apply(config, params, batch["tokens"]), batch["targets"]))
    return make_train_step(loss, tx, stochastic=False), init_train_state(FAMILY.init(config, jax.random.key(0)), tx, seed=0)


def test_policies_say_what_they_are():
    assert {name: one.compute_dtype for name, one in POLICIES.items()} == {
        "float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "cb16": "float16",
    }  # fmt: skip
    assert policy("cb16").format == CB16 and policy("cb16").initial_scale == 2.0**31
    plain = lambda params, batch, key: params
    assert all((one.apply(plain) is plain) == (one.format is None) for one in POLICIES.values())
    scale = lambda tx: loss_scale_state(tx.init(np.zeros(1, np.float32)))
    scales = {name: None if (state := scale(one.scaled(optax.sgd(0.1)))) is None else float(state.scale) for name, one in POLICIES.items()}
    assert scales == {"float32": None, "bfloat16": None, "float16": 2.0**15, "cb16": 2.0**31}
    assert float(scale(policy("bfloat16").scaled(optax.sgd(0.1), initial=4.0)).scale) == 4.0


def test_an_unknown_policy_is_answered_with_those_known_and_the_nearest():
    with pytest.raises(ValueError, match=r"precision='bfloat': give one of float32, bfloat16, float16, cb16; perhaps 'bfloat16'"):
        policy("bfloat")


@pytest.mark.parametrize("name, bits", [("bfloat16", 16), ("float16", 13), ("cb16", 14)])
def test_without_masters_rounding_at_random_keeps_updates_that_nearest_loses(name, bits):
    """400 updates of a hundredth of a step of the format each."""
    how, unit = policy(name), 2.0 ** (bits - 23)
    params = {"w": np.full((64, 64), 1.0, np.float32)}
    loss = lambda params, batch, key: -params["w"].sum() * batch
    for store, moved in ((how.stored, 4.0), (lambda params, key: how.stored(params, None), 0.0)):
        tx = optax.sgd(unit / 100)
        step = jax.jit(make_train_step(loss, tx, stochastic=False, store=store))
        state = init_train_state(params, tx, seed=0)
        for _ in range(400):
            state, _ = step(state, np.float32(1))
        w = np.asarray(state.params["w"])
        assert (w - 1).mean() / unit == pytest.approx(moved, rel=0.05, abs=1e-6)
        assert (how.stored({"w": w}, None)["w"] == w).all() and not (np.asarray(w).view(np.uint32) % 2**bits).any()


def test_float32_has_nothing_to_store_in_fewer_bits():
    with pytest.raises(ValueError, match="nothing is rounded"):
        policy("float32").stored({}, None)


def test_every_level_is_a_way_in_which_a_wafer_adds_up():
    spec = wse.WSE3.scaled(4, 4)
    assert len({wse.Wafer(spec, accumulate=how) for how in LEVELS.values()}) == len(LEVELS) == 3


TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.004, "cb16": 0.008}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_trains_on_a_wafer_as_in_plain_jax(name):
    """Losses of a few steps to the format's precision; same bits on 1 and 4 devices; masters and optimiser state stay float32."""
    rows = np.random.default_rng(0).integers(0, 32, (4, 9)).astype(np.int32)
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:]}
    step, start = pieces(name, TINY)

    def run(compiled):
        state, losses = start, []
        for _ in range(3):
            state, metrics = jax.block_until_ready(compiled(state, batch))
            losses.append(float(metrics["loss"]))
        return state, losses

    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=(2, 2))
    state, losses = run(wse.jit(step, wafer))
    other, _ = run(wse.jit(step, wafer.replace(devices=(1, 1))))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.opt_state))} <= {"float32", "int32"}
    bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    assert bits(state) == bits(other)
    _, plain = run(jax.jit(step))
    np.testing.assert_allclose(losses, plain, atol=TOLERANCE[name])
    assert losses[2] < losses[0]


@pytest.mark.slow
def test_every_policy_learns_like_float32():
    """300 steps of two layers on Python's documentation, the same batches for all."""
    corpus, ends = load_corpus(context=SMALL.context), {}
    batches = list(itertools.islice(train_batches(corpus, batch_size=8, seed=0), 300))
    for name in POLICIES:
        step, state = pieces(name, SMALL)
        compiled, losses = jax.jit(step, donate_argnums=0), []
        for batch in batches:
            state, metrics = compiled(state, batch)
            check_gradients({key: float(value) for key, value in metrics.items()})
            losses.append(float(metrics["loss"]))
        ends[name] = float(np.mean(losses[-50:]))
        assert losses[0] - ends[name] > 2.5
    assert max(abs(end - ends["float32"]) for end in ends.values()) < BAND, ends
