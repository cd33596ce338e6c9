"""Every family learns a text on a wafer with defects, by plain optax: its loss falls below a figure of its own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

import wsejax as wse
from models.families import FAMILIES, find
from models.family import resized
from wsejax.training.objectives import objective_of

pytestmark = pytest.mark.slow  # eleven compilations of a train step

TEXT = b"the quick brown fox jumps over the lazy dog, and the dog sleeps on. a wafer is one large chip; " * 4
BATCH, CONTEXT, LINES, STEPS = 8, 32, 4, 100
SPEC = wse.WSE3.scaled(24, 24)
DEFECTS = wse.DefectMap.uniform(SPEC, dead_pe_fraction=0.05, seed=1)
TINY = {"context": CONTEXT, "layers": 2, "width": 32, "heads": 4}

# Nats per byte after so many steps. A uniform guess has 5.5, one by how often bytes occur in the text 3.0.
REACHED = {
    "gpt2": 0.8, "gptj": 0.4, "gpt_neox": 0.4, "llama": 0.4, "mistral": 0.4, "mixtral": 0.4, "falcon": 0.4, "mpt": 0.6, "bert": 2.2,
    "roberta": 2.2, "t5": 2.2,
}  # fmt: skip


def small(name: str) -> tuple[Any, Any]:
    family, tiny = find(name)
    other: dict[str, Any] = {"mistral": {"window": 8}, "t5": {"decoder_layers": 1}}.get(name, {})
    return family, resized(tiny, **TINY, vocab_size=objective_of(family.kind, CONTEXT).vocabulary, **other)


def test_every_family_has_a_figure():
    assert set(REACHED) == set(FAMILIES)


@pytest.mark.parametrize("name", REACHED)
def test_it_learns(name):
    family, config = small(name)
    objective = objective_of(family.kind, CONTEXT)
    tx = optax.adam(optax.warmup_constant_schedule(0.0, 1e-2, STEPS // 5))

    def step(state, batch):
        params, moments = state

        def loss(params):
            if not getattr(config, "experts", 0):
                return objective.loss(lambda *inputs: family.apply(config, params, *inputs), batch)
            logits, balance = family.bound(config, params).with_balance(batch["tokens"])
            return objective.loss(lambda *_: logits, batch) + config.balance_weight * balance

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    params = jax.jit(lambda key: family.init(config, key))(jax.random.key(0))
    state, losses = (params, tx.init(params)), []
    on_wafer = wse.jit(step, wse.Wafer(SPEC, DEFECTS, tiles=(4, 4), devices=(2, 2)), donate_argnums=0)
    random, text = np.random.default_rng(0), np.frombuffer(TEXT, np.uint8)
    for number in range(STEPS):
        # few lines for those that only learn what is missing, of which there is less
        starts = random.integers(0, len(text) - CONTEXT, BATCH) if family.kind == "decoder" else CONTEXT * random.integers(0, LINES, BATCH)
        batch = objective.batch(np.stack([text[at : at + CONTEXT + 1] for at in starts]), number * BATCH + np.arange(BATCH))
        state, value = on_wafer(state, batch)
        losses.append(float(value))
    reached = float(np.mean(losses[-5:]))
    print(f"{name}: {losses[0]:.2f} -> {reached:.3f} nats per byte in {STEPS} steps")
    assert losses[0] > 5.4 and reached < REACHED[name]
