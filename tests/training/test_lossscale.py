"""Loss scaling: its trace against a table written by hand and a model in Python, and what an overflow leaves alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.lossscale import (
    GradientsNotFiniteError,
    check_gradients,
    loss_scale_of,
    loss_scaled,
    skipped_steps_of,
    unscaled,
)
from wsejax.training.state import init_train_state, make_train_step

PARAMS = {"w": jnp.array([1.0, -0.0, 0.0]), "b": jnp.array(2.0)}
KINDS = {"fine": 1.0, "inf": math.inf, "nan": math.nan}


def loss_fn(params, batch, key):
    """Its gradient is what the batch says."""
    return (params["w"] * batch).sum() + params["b"]


def trained(tx, kinds, params=PARAMS):
    """(state, metrics) before and after every step."""
    step = jax.jit(make_train_step(loss_fn, tx, stochastic=False))
    state, seen = init_train_state(params, tx, seed=0), []
    for kind in kinds:
        before = state
        state, metrics = step(state, jnp.array([0.5, KINDS[kind], 0.25]))
        seen.append((before, state, {name: float(value) for name, value in metrics.items()}))
    return seen


def test_the_trace_of_scales_is_that_of_the_table():
    """From 8, doubled after 3 clean steps, at most 16, at least 2."""
    table = [  # what happens, scale of the step, scale after it, skipped after it
        ("fine", 8, 8, 0), ("fine", 8, 8, 0), ("fine", 8, 16, 0), ("fine", 16, 16, 0), ("inf", 16, 8, 1), ("fine", 8, 8, 1),
        ("fine", 8, 8, 1), ("nan", 8, 4, 2), ("inf", 4, 2, 3), ("inf", 2, 2, 4), ("fine", 2, 2, 4), ("fine", 2, 2, 4), ("fine", 2, 4, 4),
        ("fine", 4, 4, 4), ("fine", 4, 4, 4), ("fine", 4, 8, 4), ("fine", 8, 8, 4), ("fine", 8, 8, 4), ("fine", 8, 16, 4),
        ("fine", 16, 16, 4), ("fine", 16, 16, 4), ("fine", 16, 16, 4), ("inf", 16, 8, 5),
    ]  # fmt: skip
    tx = loss_scaled(optax.adam(0.1), initial=8.0, floor=2.0, ceiling=16.0, interval=3)
    for (before, after, metrics), (kind, scale, then, skipped) in zip(trained(tx, [row[0] for row in table]), table, strict=True):
        assert (metrics["loss_scale"], float(loss_scale_of(after.opt_state))) == (scale, then)
        assert metrics["skipped_steps"] == int(skipped_steps_of(after.opt_state)) == skipped
        assert int(after.step) == int(before.step) + 1
        assert math.isfinite(metrics["grad_norm"]) == (kind == "fine")


def test_an_overflow_leaves_parameters_and_inner_state_bit_for_bit():
    tx = loss_scaled(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), initial=4.0)
    bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    for n, (before, after, _) in enumerate(trained(tx, ["inf", "fine", "nan", "inf", "fine"])):
        untouched = n in (0, 2, 3)
        assert (bits(before.params) == bits(after.params)) == untouched
        assert (bits(before.opt_state.inner) == bits(after.opt_state.inner)) == untouched


def test_scaling_by_a_power_of_two_changes_nothing_but_what_it_reports():
    """Metrics are of the loss itself, the schedule counts updates, and the parameters are those without scaling."""
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    kinds = ["fine"] * 4
    plain = trained(optax.adam(schedule), kinds)
    scaled = trained(loss_scaled(optax.adam(schedule)), kinds)
    for (_, a, ma), (_, b, mb) in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(a.params["w"], b.params["w"])
        assert mb == ma | {"loss_scale": 2.0**15, "skipped_steps": 0.0}
    tx = loss_scaled(optax.sgd(schedule))
    step = jax.jit(make_train_step(loss_fn, tx, learning_rate=schedule, stochastic=False))
    state, rates = init_train_state(PARAMS, tx, seed=0), []
    for kind in ("fine", "inf", "fine"):
        old = float(state.params["b"])
        state, metrics = step(state, jnp.full(3, KINDS[kind]))
        rates.append(float(metrics["learning_rate"]))
        if kind == "fine":
            np.testing.assert_allclose(old - float(state.params["b"]), rates[-1], rtol=1e-5)
    np.testing.assert_allclose(rates, [0.1, 0.09, 0.09], rtol=1e-6)


def test_gradients_that_float16_would_lose_are_kept():
    """1e-9 is below half of float16's smallest number; times 2^15 it is not."""
    tiny = lambda params, batch, key: (params["w"].astype(jnp.float16) * jnp.float16(1e-4)).astype(jnp.float32).sum() * 1e-5
    norms = {}
    for name, tx in {"plain": optax.sgd(1.0), "scaled": loss_scaled(optax.sgd(1.0))}.items():
        _, metrics = make_train_step(tiny, tx, stochastic=False)(init_train_state({"w": jnp.ones(4)}, tx, seed=0), None)
        norms[name] = float(metrics["grad_norm"])
    assert norms["plain"] == 0.0
    np.testing.assert_allclose(norms["scaled"], 2e-9, rtol=1e-2)


UPDATE = jax.jit(lambda tx, grads, state: tx.update(grads, state), static_argnums=0)
SMALL = loss_scaled(optax.sgd(1.0), initial=4.0, floor=0.5, ceiling=8.0, interval=2)


@given(st.lists(st.booleans(), max_size=30))
def test_any_history_of_overflows_gives_the_scale_of_the_model(history):
    state = SMALL.init(jnp.ones(2))
    scale, clean, skipped = 4.0, 0, 0
    for overflow in history:
        updates, state = UPDATE(SMALL, jnp.array([1.0, math.inf if overflow else 1.0]), state)
        np.testing.assert_array_equal(updates, [0.0, 0.0] if overflow else [-1 / scale] * 2)
        if overflow:
            scale, clean, skipped = max(scale / 2, 0.5), 0, skipped + 1
        elif clean + 1 == 2:
            scale, clean = min(scale * 2, 8.0), 0
        else:
            clean += 1
        assert (float(state.scale), int(state.clean_steps), int(state.skipped)) == (scale, clean, skipped)


def test_a_static_scale_stays_and_states_are_found_wherever_they_are():
    tx = optax.chain(optax.identity(), loss_scaled(optax.sgd(1.0), initial=16.0, floor=16.0, ceiling=16.0, interval=1))
    assert [m["loss_scale"] for *_, m in trained(tx, ["fine", "inf", "fine"])] == [16.0] * 3
    assert float(loss_scale_of(optax.adam(0.1).init(PARAMS))) == 1.0
    assert int(skipped_steps_of(optax.adam(0.1).init(PARAMS))) == 0
    with pytest.raises(ValueError, match="loss scaling twice"):
        loss_scale_of(loss_scaled(loss_scaled(optax.sgd(1.0))).init(PARAMS))
    assert unscaled(jnp.float16([3.0]), jnp.float32(2.0)).dtype == jnp.float32


def test_the_host_raises_where_the_scale_can_fall_no_further():
    row = {"step": 7, "grad_norm": math.inf, "loss_scale": 2.0**-14}
    with pytest.raises(GradientsNotFiniteError, match=r"gradients of step 7 are not finite .* lower the learning rate"):
        check_gradients(row)
    check_gradients(row | {"grad_norm": 1.0})
    check_gradients(row | {"loss_scale": 2.0**-13})
    check_gradients({"step": 7, "grad_norm": math.nan})
    with pytest.raises(GradientsNotFiniteError):
        check_gradients(row | {"loss_scale": 16.0}, floor=16.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initial": 3.0}, "initial=3.0: give a power of two"),
        ({"ceiling": math.inf}, "ceiling=inf: give a power of two"),
        ({"floor": 2.0**16}, "initial=32768.0: must lie from floor=65536.0"),
        ({"interval": 0}, "interval=0: give a number of steps"),
    ],
)
def test_bad_scales_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        loss_scaled(optax.sgd(1.0), **options)
