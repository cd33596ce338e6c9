"""A training run on the wafer against plain JAX, an oracle that knows nothing of the wafer."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import wsejax as wse
from models.gpt2 import GPT2Config
from models.transformer import Decoder
from wsejax.training import init_train_state, make_train_step, next_token_loss, split_model

DROPOUT = {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
CONFIG = GPT2Config(vocab_size=64, context=16, layers=2, heads=4, width=32, remat="full", **DROPOUT)
STEPS = 8

pytestmark = pytest.mark.slow  # four compilations of a train step
SPEC = wse.WSE3.scaled(24, 24)
DEFECTS = wse.DefectMap.uniform(SPEC, dead_pe_fraction=0.05, seed=1)


@functools.cache
def parts():
    model = jax.jit(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))()
    apply, params = split_model(model)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 3, 50)))
    step = make_train_step(lambda p, b, key: next_token_loss(apply(p, b["inputs"], key), b["targets"]), tx)
    return step, jax.tree.map(np.asarray, init_train_state(params, tx, seed=3))


def batch(n: int):
    """Text with something to learn: a token follows from the one before, but for noise."""
    r = np.random.default_rng(n)
    tokens = (np.cumsum(r.integers(1, 3, (8, 17)), 1) + r.integers(0, 64, (8, 1))) % 64
    return {"inputs": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32)}


def run(step):
    state, losses = parts()[1], []
    for n in range(STEPS):
        state, metrics = step(state, batch(n))
        losses.append(np.asarray(metrics["loss"]))
    return np.array(losses), jax.tree.map(np.asarray, state)


@functools.cache
def on_wafer(devices, defective: bool):
    wafer = wse.Wafer(SPEC, DEFECTS if defective else None, tiles=(4, 2), devices=devices)
    return run(wse.jit(parts()[0], wafer, donate_argnums=0))


def test_losses_equal_plain_jax():
    plain, _ = run(jax.jit(parts()[0]))
    losses, _ = on_wafer((1, 1), False)
    assert plain[-1] < plain[0] - 0.1  # it learns
    np.testing.assert_allclose(losses, plain, rtol=1e-5)


@pytest.mark.parametrize(("devices", "defective"), [((1, 2), False), ((2, 2), False), ((1, 1), True)], ids=str)
def test_losses_and_parameters_have_the_same_bits_on_any_device_mesh_and_with_any_defects(devices, defective):
    want, want_state = on_wafer((1, 1), False)
    losses, state = on_wafer(devices, defective)
    np.testing.assert_array_equal(losses, want)
    different = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(want_state), strict=True)
        if a.tobytes() != b.tobytes()
    ]
    assert not different
