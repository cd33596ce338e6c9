"""Averages of parameters: numpy's, and nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training import init_train_state, make_train_step
from wsejax.training.ema import ema_of, with_ema

PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(3.0)}


def walk(tx, steps, params=PARAMS):
    """All parameters on the way, the first included, and the state."""
    state, seen = tx.init(params), [params]
    for n in range(steps):
        updates, state = tx.update(jax.tree.map(lambda p, n=n: jnp.cos(p + n).astype(p.dtype), params), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


@given(decay=st.sampled_from([0.0, 0.5, 0.9, 0.999]), steps=st.integers(1, 6), start=st.sampled_from(["debias", "warmup"]))
def test_it_is_numpys_and_the_optimiser_is_as_without(decay, steps, start):
    tx = optax.adam(0.1)
    seen, state = walk(with_ema(tx, decay, start=start), steps)
    jax.tree.map(np.testing.assert_array_equal, seen, walk(tx, steps)[0])
    for name in PARAMS:
        values = [np.asarray(params[name], np.float64) for params in seen]
        if start == "debias":
            shares = decay ** np.arange(steps - 1, -1, -1.0)
            want = np.tensordot(shares / shares.sum(), values[1:], 1)
        else:
            want = values[0]
            for n, value in enumerate(values[1:]):
                keep = min(decay, (1 + n) / (10 + n))
                want = keep * want + (1 - keep) * value
        # the sum of weights is a difference to 1, in float32
        np.testing.assert_allclose(ema_of(state, seen[-1])[name], want, rtol=1e-5 + 1e-6 / (1 - decay))


@given(value=st.floats(-100, 100, width=32), steps=st.integers(0, 5), start=st.sampled_from(["debias", "warmup"]))
def test_of_what_stays_the_average_is_that(value, steps, start):
    params = {"w": jnp.float32(value)}
    seen, state = walk(with_ema(optax.set_to_zero(), 0.9, start=start), steps, params)
    np.testing.assert_allclose(ema_of(state, seen[-1])["w"], value, rtol=1e-5)


def test_narrow_parameters_have_a_wide_average():
    """Of 1 and 1 + 1/128 by turns: in bfloat16 a thousandth of 1/128 would be lost at every update."""
    params = {"w": jnp.ones((), jnp.bfloat16)}
    tx = with_ema(optax.stateless(lambda updates, _: updates), 0.999, start="warmup")
    state = tx.init(params)
    for _ in range(200):
        _, state = tx.update({"w": jnp.bfloat16(1 / 128)}, state, params)
    assert state.average["w"].dtype == jnp.float32 and float(state.average["w"]) == pytest.approx(1 + 1 / 128, abs=1e-3)
    assert ema_of(state, params)["w"].dtype == jnp.bfloat16


def test_it_is_part_of_a_train_state_that_resumes():
    tx = with_ema(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), 0.9)
    step = jax.jit(make_train_step(lambda p, batch, key: ((p["w"] - batch) ** 2).sum() + p["b"] ** 2, tx, stochastic=False))
    run = lambda state, steps: [state := step(state, jnp.float32(n))[0] for n in steps][-1]
    first = init_train_state(PARAMS, tx, seed=0)
    whole, half = run(first, range(4)), run(first, range(2))
    back = serialization.from_state_dict(jax.eval_shape(lambda: half), serialization.to_state_dict(half))
    jax.tree.map(np.testing.assert_array_equal, run(back, range(2, 4)), whole)
    assert not np.allclose(ema_of(whole.opt_state, whole.params)["w"], whole.params["w"])


def test_what_a_wrapped_optimiser_is_told_reaches_it():
    told = optax.GradientTransformationExtraArgs(lambda _: (), lambda u, s, p=None, *, scale: (jax.tree.map(lambda x: scale * x, u), s))
    tx = with_ema(told, 0.5)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, scale=2.0)
    jax.tree.map(lambda u, p: np.testing.assert_array_equal(u, 2 * p), updates, PARAMS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: with_ema(optax.sgd(1.0), 1.0), r"decay=1\.0"),
        (lambda: with_ema(optax.sgd(1.0), 0.5, start="none"), "start='none'"),  # type: ignore[arg-type]
        (lambda: ema_of(optax.sgd(1.0).init(PARAMS), PARAMS), "has 0 averages"),
        (lambda: ema_of([with_ema(optax.sgd(1.0), 0.5).init(PARAMS)] * 2, PARAMS), "has 2 averages"),
        (lambda: (tx := with_ema(optax.sgd(1.0), 0.5)).update(PARAMS, tx.init(PARAMS)), "params=None"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
