"""Steps of training on packed rows: the wafer is plain JAX, devices change no bit, and two wafers with the state in MemoryX do as well."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wsejax as wse
from models.families import find
from models.family import resized
from wsejax.training.objectives import Objective, cross_entropy, places
from wsejax.training.packing import Documents, packed_batches
from wsejax.training.state import init_train_state, make_train_step

STEPS, BATCH, CONTEXT = 4, 4, 24
SPEC = wse.WSE3.scaled(16, 16)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def training(request: Any) -> tuple[Any, Any, list[Any]]:
    family, tiny = find(request.param)
    config = resized(tiny, context=CONTEXT, layers=2, heads=4, width=32, remat="full", dropout=0.0)
    random = np.random.default_rng(0)
    documents = Documents.of([random.integers(1, 256, n) for n in random.integers(2, CONTEXT, 60)])
    objective = Objective("causal" if family.kind == "decoder" else "masked", CONTEXT)
    batches = packed_batches(documents, context=CONTEXT, batch_size=BATCH, seed=0, objective=objective)

    def loss(params: Any, batch: Any, key: Any = None) -> Any:
        logits, _ = family.training_logits(config, params, batch["tokens"], **places(batch))
        return cross_entropy(logits, batch["targets"], batch["weights"])

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = init_train_state(family.init(config, jax.random.key(0)), tx, seed=0)
    return make_train_step(loss, tx, stochastic=False), state, [next(batches) for _ in range(STEPS)]


def trained(training: Any, machine: Any = None, **how: Any) -> tuple[list[float], Any]:
    step, state, batches = training
    run = jax.jit(step) if machine is None else wse.jit(step, machine, donate_argnums=0, **how)
    state, losses = jax.tree.map(jnp.array, state), []
    for batch in batches:
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def same_bits(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_on_a_wafer_and_on_two(training) -> None:
    plain, _ = trained(training)
    wafer = lambda devices: wse.Wafer(SPEC, tiles=(4, 4), devices=devices)
    one = trained(training, wafer((1, 1)))
    np.testing.assert_allclose(one[0], plain, rtol=1e-4)
    for devices in ((1, 2), (2, 2)):
        assert same_bits(one, trained(training, wafer(devices)))
    two = [trained(training, wse.Cluster(wafer((1, 1)), 2), streamed_argnums=0, execution=e) for e in ("resident", "streamed")]
    assert same_bits(*two)
    np.testing.assert_allclose(two[0][0], plain, rtol=1e-4)
