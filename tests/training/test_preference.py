"""Preference losses: against the formulas in numpy, the gradient in closed form, and that padding changes nothing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training import preference_loss, response_log_probability

LOGS = st.lists(st.tuples(*[st.floats(-50, 0, width=32)] * 4), min_size=3, max_size=3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def four(rows):
    return [np.asarray(column, np.float32) for column in zip(*rows, strict=True)]


@given(LOGS, st.sampled_from([0.05, 0.1, 0.7]), st.sampled_from([0.0, 0.2]))
def test_dpo_equals_the_formula_of_the_paper(rows, beta, smoothing):
    loss, metrics = preference_loss(*four(rows), beta=beta, label_smoothing=smoothing)
    losses, margins, hits = [], [], []
    for w, s, ref_w, ref_s in rows:
        margin = beta * ((w - ref_w) - (s - ref_s))
        losses.append(-(1 - smoothing) * math.log(sigmoid(margin)) - smoothing * math.log(sigmoid(-margin)))
        margins.append(margin)
        hits.append(w - ref_w > s - ref_s)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["margin"], np.mean(margins), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["chosen_reward"], np.mean([beta * (r[0] - r[2]) for r in rows]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["rejected_reward"], np.mean([beta * (r[1] - r[3]) for r in rows]), rtol=1e-4, atol=1e-4)
    if all(abs(margin) > 1e-4 for margin in margins):
        np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-6)


@given(LOGS, st.sampled_from([0.1, 0.5]))
def test_ipo_is_the_squared_distance_of_the_margin_to_half_an_inverse_beta(rows, beta):
    loss, _ = preference_loss(*four(rows), beta=beta, kind="ipo")
    wanted = np.mean([((w - rw) - (s - rs) - 1 / (2 * beta)) ** 2 for w, s, rw, rs in rows])
    np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-3)


@given(LOGS)
def test_a_policy_that_is_the_reference_has_a_loss_of_ln_2(rows):
    w, s, _, _ = four(rows)
    for smoothing in (0.0, 0.3):
        loss, metrics = preference_loss(w, s, w, s, label_smoothing=smoothing)
        np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
        assert metrics["margin"] == 0 and metrics["accuracy"] == 0
    np.testing.assert_allclose(preference_loss(w, s, w, s, beta=0.1, kind="ipo")[0], 25.0, rtol=1e-6)


@given(LOGS, st.sampled_from([0.1, 1.0]), st.sampled_from([0.0, 0.1]))
def test_the_gradient_weighs_a_pair_by_how_wrong_its_rewards_are(rows, beta, smoothing):
    """Rafailov et al. 2023, section 4: -beta sigmoid(r(rejected) - r(chosen)) (grad log p(chosen) - grad log p(rejected))."""
    w, s, rw, rs = four(rows)
    g_w, g_s = jax.grad(lambda w, s: preference_loss(w, s, rw, rs, beta=beta, label_smoothing=smoothing)[0], (0, 1))(w, s)
    margin = beta * ((w - rw) - (s - rs)).astype(np.float64)
    wanted = -beta * ((1 - smoothing) * sigmoid(-margin) - smoothing * sigmoid(margin)) / len(rows)
    np.testing.assert_allclose(g_w, wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(g_s, -wanted, rtol=1e-4, atol=1e-7)


def test_a_response_counts_the_tokens_of_its_mask_and_padding_is_nothing():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(2, 5, 7)).astype(np.float32), random.integers(0, 7, (2, 5)).astype(np.int32)
    mask = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], np.float32)
    logs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    wanted = [sum(logs[row, t, targets[row, t]] for t in range(5) if mask[row, t]) for row in range(2)]
    np.testing.assert_allclose(response_log_probability(logits, targets, mask), wanted, rtol=1e-5)

    wide = lambda x, fill: np.concatenate([x, np.full((2, 3, *x.shape[2:]), fill, x.dtype)], axis=1)
    padded = response_log_probability(wide(logits, 9.0), wide(targets, 6), wide(mask, 0))
    np.testing.assert_allclose(padded, response_log_probability(logits, targets, mask), rtol=1e-6)
    gradient = jax.grad(lambda x: response_log_probability(x, targets, mask).sum())(jnp.asarray(logits))
    assert (np.abs(gradient).max(-1) > 0).tolist() == (mask == 1).tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"beta": 0.0}, "beta=0.0: must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "IPO has none"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    one = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=words):
        preference_loss(one, one, one, one, **given)
