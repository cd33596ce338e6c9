"""Learning rates by parameter: each update times its number, and the same bits on every machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wsejax as wse
from experiments.task import ModelSettings, task_of
from models import mup
from wsejax.training import init_train_state, make_train_step
from wsejax.training.scaled import scale_by_tree

NUMBERS = {"a": 0.25, "b": {"c": 1.0}}
PARAMS = {"a": jnp.array([1.0, -2.0]), "b": {"c": jnp.array([3.0])}}


def test_each_update_is_multiplied_and_decay_is_not():
    rate, decay = 0.1, 0.5
    tx = optax.chain(scale_by_tree(NUMBERS), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))
    grads = {"a": jnp.array([4.0, 8.0]), "b": {"c": jnp.array([-6.0])}}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["a"], -rate * (0.25 * np.array([4.0, 8.0]) + decay * np.array([1.0, -2.0])), rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["c"], -rate * (-6.0 + decay * 3.0), rtol=1e-6)


def test_at_one_everywhere_it_is_no_part_of_the_program():
    ones = jax.tree.map(lambda _: 1.0, NUMBERS)
    step = lambda tx: str(jax.make_jaxpr(lambda p, g: tx.update(g, tx.init(p), p)[0])(PARAMS, PARAMS))
    assert step(optax.chain(optax.scale_by_adam(), scale_by_tree(ones))) == step(optax.chain(optax.scale_by_adam()))


def test_kinds_of_numbers_stay():
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    updates, _ = scale_by_tree({"w": 0.5}).update(half, optax.EmptyState(), None)
    assert updates["w"].dtype == jnp.bfloat16 and updates["w"].tolist() == [0.5] * 3


def test_a_tree_of_another_structure_is_refused():
    with pytest.raises(ValueError, match=r"multipliers: missing \['b/c'\], of no parameter \['d'\]"):
        scale_by_tree({"a": 1.0, "d": 2.0}).init(PARAMS)


@pytest.mark.slow
def test_a_train_step_in_mup_gives_the_same_bits_on_every_device_mesh():
    """A model of twice the base's width, strictly on tiles, and in plain JAX up to rounding."""
    task = task_of(ModelSettings(width=16, heads=2, layers=1, context=8, set=("mup_base_width=8",)))
    rates = mup.learning_rates(task.family, task.config)
    tx = optax.chain(optax.scale_by_adam(eps=1e-3), scale_by_tree(rates), optax.scale_by_learning_rate(0.01))
    step = make_train_step(lambda params, batch, key: task.loss(params, batch), tx, stochastic=False)
    state = init_train_state(jax.jit(lambda: task.init(0))(), tx, seed=0)
    text = np.random.default_rng(0).integers(0, 256, (4, 9)).astype(np.int32)
    batch = {"tokens": text[:, :-1], "targets": text[:, 1:]}
    wanted, _ = jax.jit(step)(state, batch)
    found = []
    for devices in ((1, 1), (2, 2)):
        wafer = wse.Wafer(wse.WSE3.scaled(32, 32), tiles=(4, 4), devices=devices)
        compiled = wse.jit(step, wafer).lower(state, batch).compile()
        wse.check_hlo(compiled)
        found.append([np.asarray(x) for x in jax.tree.leaves(compiled(state, batch)[0].params)])
    for one, two, plain, before in zip(*found, jax.tree.leaves(wanted.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, plain, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(one, before)
