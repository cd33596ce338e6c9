"""The train step: it equals the textbook update, and only seed and step decide its random draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

from wsejax.training import abstract_like, init_train_state, make_train_step, next_token_loss, split_model


class Net(nnx.Module):
    """Two kinds of containers: attributes and a list, whose keys are integers."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 7, rngs=rngs)])

    def __call__(self, tokens):
        return self.layers[1](jnp.tanh(self.layers[0](self.embed(tokens))))


def quadratic(params, batch, key):
    noise = 0.0 if key is None else jax.random.normal(key, params["w"].shape)
    return jnp.sum((params["w"] - batch + noise) ** 2)


def test_step_equals_gradient_descent_by_hand():
    rate = 0.1
    tx = optax.sgd(rate)
    state = init_train_state({"w": jnp.array([1.0, -2.0])}, tx, seed=0)
    step = jax.jit(make_train_step(quadratic, tx, stochastic=False))
    w, target = np.array([1.0, -2.0]), np.array([0.5, 0.5])
    for k in range(4):
        state, metrics = step(state, jnp.array(target))
        np.testing.assert_allclose(metrics["loss"], np.sum((w - target) ** 2), rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(2 * (w - target)), rtol=1e-6)
        w = w - rate * 2 * (w - target)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
        assert int(state.step) == k + 1


def test_reported_grad_norm_is_from_before_clipping_and_rate_follows_the_schedule():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(schedule))
    state = init_train_state({"w": jnp.full(3, 100.0)}, tx, seed=0)
    step = jax.jit(make_train_step(quadratic, tx, learning_rate=schedule, stochastic=False))
    for k in range(3):
        before = state.params["w"]
        state, metrics = step(state, jnp.zeros(3))
        np.testing.assert_allclose(metrics["learning_rate"], k / 10, rtol=1e-6)
        assert metrics["grad_norm"] > 100
        # what was applied is clipped and scaled by the reported rate
        moved = float(jnp.linalg.norm(state.params["w"] - before))
        np.testing.assert_allclose(moved, 1e-3 * k / 10, rtol=0.1, atol=1e-6)


def test_random_draws_depend_on_seed_and_step_alone():
    tx = optax.set_to_zero()  # parameters stay, so the loss shows the draw
    step = jax.jit(make_train_step(quadratic, tx))

    def losses(state, count):
        seen = []
        for _ in range(count):
            state, metrics = step(state, jnp.zeros(3))
            seen.append(float(metrics["loss"]))
        return state, seen

    params = {"w": jnp.ones(3)}
    _, whole = losses(init_train_state(params, tx, seed=3), 6)
    middle, first = losses(init_train_state(params, tx, seed=3), 3)
    middle = jax.tree.map(lambda x: jnp.array(np.asarray(x)), middle)  # as after a checkpoint
    _, rest = losses(middle, 3)
    assert first + rest == whole
    assert len(set(whole)) == 6, "every step draws anew"
    assert losses(init_train_state(params, tx, seed=4), 1)[1][0] != whole[0]


def test_stochastic_false_traces_no_random_bits():
    tx = optax.sgd(0.1)
    state = init_train_state({"w": jnp.ones(3)}, tx, seed=0)
    with_key = str(jax.make_jaxpr(make_train_step(quadratic, tx))(state, jnp.zeros(3)))
    without = str(jax.make_jaxpr(make_train_step(quadratic, tx, stochastic=False))(state, jnp.zeros(3)))
    assert "random" in with_key and "random" not in without


def test_split_model_is_the_model():
    model = Net(nnx.Rngs(0))
    apply, params = split_model(model)
    tokens = jnp.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(apply(params, tokens), model(tokens))
    doubled = jax.tree.map(lambda x: 2 * x, params)
    assert not np.allclose(apply(doubled, tokens), apply(params, tokens))
    np.testing.assert_array_equal(apply(params, tokens), model(tokens), "a call must not keep another call's parameters")
    abstract_apply, shapes = split_model(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    np.testing.assert_array_equal(abstract_apply(params, tokens), model(tokens))


def test_state_dict_round_trip_is_plain_and_exact():
    _, params = split_model(Net(nnx.Rngs(0)))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    state = init_train_state(params, tx, seed=1)
    plain = serialization.to_state_dict(state)

    def check(node):
        if isinstance(node, dict):
            assert all(type(key) is str for key in node)
            for value in node.values():
                check(value)
        else:
            assert isinstance(node, jax.Array)

    check(plain)
    back = serialization.from_state_dict(jax.eval_shape(lambda: state), plain)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_abstract_like_carries_shardings():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.zeros((), jnp.int32)}
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for shardings in (one, {"a": one, "b": one}):
        abstract = abstract_like(tree, shardings)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract) == {
            "a": ((2, 3), jnp.float32, one),
            "b": ((), jnp.int32, one),
        }


@pytest.mark.parametrize("vocabulary", [2, 7])
def test_loss_of_uniform_logits_is_log_vocabulary(vocabulary):
    loss = next_token_loss(jnp.zeros((2, 5, vocabulary)), jnp.ones((2, 5), jnp.int32))
    np.testing.assert_allclose(loss, np.log(vocabulary), rtol=1e-6)
