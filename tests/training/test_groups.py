"""Groups of parameters: each as if it were alone, plain AdamW without any; clipping by one thing or the other."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.training.ema import ema_of, with_ema
from wsejax.training.groups import Group, clipped, grouped

PARAMS = {
    "blocks": {"mlp": {"up": {"kernel": jnp.linspace(-1, 1, 24).reshape(2, 3, 4), "bias": jnp.ones((2, 4))}}},
    "embedding": jnp.linspace(0, 2, 15).reshape(5, 3),
}
UP, TABLE = "blocks/mlp/up/kernel", "embedding"
SCHEDULE = optax.linear_schedule(1e-2, 1e-3, 5)
adamw = partial(optax.adamw, b2=0.95)


def gradients(step):
    random = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), PARAMS)


def train(tx, steps=4, params=PARAMS, pick=lambda tree: tree):
    state, params = tx.init(pick(params)), pick(params)
    for n in range(steps):
        updates, state = tx.update(pick(gradients(n)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_without_groups_it_is_optax_bit_for_bit():
    want = train(adamw(SCHEDULE, weight_decay=0.1))
    jax.tree.map(np.testing.assert_array_equal, train(grouped(adamw, [], learning_rate=SCHEDULE, weight_decay=0.1)), want)
    # optax compiles a tree's bias corrections together, so of other trees they may have another last bit
    same = train(grouped(adamw, [Group(UP), Group(".*", learning_rate=SCHEDULE)], learning_rate=SCHEDULE, weight_decay=0.1))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), same, want)


RATES = [(1e-2, None), (None, None), (SCHEDULE, None), (None, 0.3), (0.02, optax.linear_schedule(0.5, 0.0, 3))]


@given(st.sampled_from(RATES), st.sampled_from(RATES), st.sampled_from([1.0, 0.25]))
def test_each_group_learns_as_if_it_were_alone(up, table, times):
    groups = [Group(UP, times, *up), Group("emb.*", 1.0, *table)]
    got = train(grouped(adamw, groups, learning_rate=1e-3, weight_decay=0.1))
    picks = [lambda t: t["blocks"]["mlp"]["up"]["kernel"], lambda t: t["embedding"], lambda t: t["blocks"]["mlp"]["up"]["bias"]]
    for pick, (rate, decay), factor in zip(picks, [up, table, (None, None)], [times, 1.0, 1.0], strict=True):
        rate, decay = 1e-3 if rate is None else rate, 0.1 if decay is None else decay
        alone = (lambda n, rate=rate, factor=factor: factor * rate(n)) if callable(rate) else factor * rate
        np.testing.assert_allclose(pick(got), train(adamw(alone, weight_decay=decay), pick=pick), rtol=1e-6, atol=1e-7)


@given(st.integers(1, 5), st.floats(1e-4, 1e-1), st.floats(0, 1), st.floats(0, 2))
def test_adamw_with_a_schedule_of_its_decay_is_numpys(steps, rate, decay, times):
    """Loshchilov and Hutter 2019: the decay is apart from the moments, and the learning rate scales both."""
    fall = lambda n: decay / (1.0 + n)
    pick = lambda tree: tree["embedding"]
    got = train(grouped(adamw, [Group(".*", times, weight_decay=fall)], learning_rate=rate), steps, pick=lambda t: {"embedding": pick(t)})
    x, m, v = np.asarray(pick(PARAMS), np.float64), 0.0, 0.0
    for n in range(steps):
        g = np.asarray(pick(gradients(n)), np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        step = (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.95 ** (n + 1))) + 1e-8)
        x = x - times * rate * (step + fall(n) * x)
    np.testing.assert_allclose(got["embedding"], x, rtol=2e-4, atol=2e-6)


def test_a_factor_of_0_freezes():
    got = train(grouped(adamw, [Group("blocks/.*", 0.0)], learning_rate=0.1, weight_decay=0.1))
    jax.tree.map(np.testing.assert_array_equal, got["blocks"], PARAMS["blocks"])
    assert np.abs(got["embedding"] - PARAMS["embedding"]).max() > 0.1


@given(st.floats(0.01, 10))
def test_clipping_is_numpys(limit):
    flat = np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(gradients(0))])
    update = lambda tx: np.concatenate([np.asarray(u).ravel() for u in jax.tree.leaves(tx.update(gradients(0), tx.init(PARAMS))[0])])
    np.testing.assert_allclose(update(clipped(optax.identity(), value=limit)), np.clip(flat, -limit, limit), rtol=1e-6)
    np.testing.assert_allclose(update(clipped(optax.identity(), norm=limit)), flat * min(1, limit / np.linalg.norm(flat)), rtol=1e-5)
    np.testing.assert_array_equal(update(clipped(optax.identity())), flat)


def test_on_a_wafer_all_of_it_has_the_bits_of_any_device_mesh():
    groups = [Group(UP, 0.5), Group(TABLE, learning_rate=SCHEDULE, weight_decay=optax.linear_schedule(0.1, 0.0, 3))]
    tx = with_ema(clipped(grouped(adamw, groups, learning_rate=1e-2, weight_decay=0.01), norm=0.5), 0.9)

    def steps(params, gradients):
        def one(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(one, (params, tx.init(params)), gradients)
        return params, ema_of(state, params)

    given = jax.tree.map(lambda *x: jnp.stack(x), *map(gradients, range(3)))
    want, bits = jax.jit(steps)(PARAMS, given), set()
    for devices in ((1, 1), (1, 2), (2, 2)):
        got = wse.jit(steps, wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=devices))(PARAMS, given)
        bits.add(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(got)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    assert len(bits) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: grouped(adamw, [Group("mlp")], learning_rate=1.0).init(PARAMS), f"pattern='mlp': matches no parameter; there are .*{UP}"),
        (
            lambda: grouped(adamw, [Group(".*"), Group(TABLE)], learning_rate=1.0).init(PARAMS),
            "'embedding': matches no parameter that an earlier group does not have",
        ),
        (lambda: Group("("), "pattern='.': is no regular expression"),
        (lambda: Group("a", -1.0), r"times=-1\.0"),
        (lambda: clipped(optax.identity(), norm=1.0, value=1.0), r"norm=1\.0, value=1\.0: clip by one"),
        (lambda: clipped(optax.identity(), value=0.0), r"value=0\.0: must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
