"""Distillation: the loss against numpy in float64, its gradient in closed form, whom gradients reach, and the same numbers on a wafer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.training.distil import distillation_loss, distilled
from wsejax.training.state import init_train_state, make_train_step

SHAPE = (2, 3, 7)  # one for all, so that little is compiled


def drawn(seed: int):
    random = np.random.default_rng(seed)
    student, teacher = (3 * random.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    return student, teacher, random.integers(0, SHAPE[-1], SHAPE[:2]).astype(np.int32), random.random(SHAPE[:2]).astype(np.float32)


def probabilities(logits, temperature: float = 1.0):
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(-1, keepdims=True)


@given(st.integers(0, 999), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.booleans())
def test_the_loss_is_the_formula(seed, temperature, share, reverse, weighed):
    student, teacher, targets, weights = drawn(seed)
    if not weighed:
        weights = np.ones_like(weights)
    divergence = "reverse" if reverse else "forward"
    given_weights = weights if weighed else None
    value, metrics = distillation_loss(
        student, teacher, targets, given_weights, temperature=temperature, soft_weight=share, divergence=divergence
    )
    s, t = probabilities(student, temperature), probabilities(teacher, temperature)
    p, q = (s, t) if reverse else (t, s)
    mean = lambda x: (x * weights).sum() / weights.sum()
    soft = temperature**2 * mean((p * np.log(p / q)).sum(-1))
    hard = mean(-np.log(np.take_along_axis(probabilities(student), targets[..., None], -1)[..., 0]))
    np.testing.assert_allclose(value, share * soft + (1 - share) * hard, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose([metrics["soft_loss"], metrics["hard_loss"]], [soft, hard], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["agreement"], mean(student.argmax(-1) == teacher.argmax(-1)), rtol=1e-5)


@functools.cache
def gradients(temperature: float):
    loss = lambda s, t, targets: distillation_loss(s, t, targets, temperature=temperature, soft_weight=1.0)[0]
    return jax.jit(jax.grad(loss, (0, 1)))


@given(st.integers(0, 999), st.sampled_from([1.0, 3.0, 100.0]))
def test_the_gradient_is_hintons(seed, temperature):
    """Of the soft loss: T (softmax(student / T) - softmax(teacher / T)) a token, which at high temperatures is the difference of the logits
    less their means by the size of the vocabulary (Hinton et al. 2015, equations 2 to 4), whatever T. None reaches the teacher."""
    student, teacher, targets, _ = drawn(seed)
    of_student, of_teacher = gradients(temperature)(student, teacher, targets)
    tokens, vocabulary = targets.size, SHAPE[-1]
    wanted = temperature * (probabilities(student, temperature) - probabilities(teacher, temperature)) / tokens
    np.testing.assert_allclose(of_student, wanted, rtol=1e-3, atol=2e-6 * temperature)
    assert not np.asarray(of_teacher).any()
    if temperature == 100.0:
        apart = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
        np.testing.assert_allclose(wanted, apart / vocabulary / tokens, atol=0.1 * np.abs(wanted).max())


def test_a_student_that_is_the_teacher_has_nothing_to_learn_and_moving_all_logits_changes_nothing():
    student, _, targets, _ = drawn(0)
    for divergence in ("forward", "reverse"):
        loss = lambda s, divergence=divergence: distillation_loss(s, student, targets, soft_weight=1.0, divergence=divergence)[0]
        value, gradient = jax.jit(jax.value_and_grad(loss))(student + 5.0)
        assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"soft_weight": 1.5}, "soft_weight=1.5: give the teacher's share"),
        ({"divergence": "sideways"}, "divergence='sideways': give one of forward, reverse"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        distilled(lambda *_: (jnp.zeros(()), None), lambda *_: jnp.zeros(()), **given)
    with pytest.raises(ValueError, match="the student has a vocabulary of 7, and the teacher one of 9"):
        distillation_loss(jnp.zeros(SHAPE), jnp.zeros((2, 3, 9)), jnp.zeros((2, 3), jnp.int32))


def test_a_step_is_the_same_on_a_wafer(device_grid):
    """A narrow student of a wide teacher: strict `wse.jit` against `jax.jit`, the same bits on every device mesh."""
    tx = optax.sgd(0.5)
    logits = lambda params, tokens: jnp.tanh(params["in"][tokens]) @ params["out"]
    loss = distilled(lambda p, batch, key: (logits(p, batch["tokens"]), None), lambda p, batch: logits(p, batch["tokens"]), temperature=3.0)

    def step(state, frozen, batch):
        of = lambda params, batch, key: loss(params, frozen, batch, key)
        return make_train_step(of, tx, stochastic=False, has_aux=True)(state, batch)

    random = np.random.default_rng(0)
    of_width = lambda width: {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in (("in", (16, width)), ("out", (width, 16)))
    }
    tokens = random.integers(0, 16, (4, 8)).astype(np.int32)
    batch = {"tokens": tokens, "targets": tokens[:, ::-1].copy(), "weights": random.random((4, 8)).astype(np.float32)}
    state, frozen = init_train_state(of_width(4), tx, seed=0), of_width(12)
    wafer = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(4, 4), devices=device_grid)
    got, want = wse.jit(step, wafer)(state, frozen, batch), jax.jit(step)(state, frozen, batch)
    assert set(got[1]) == {"loss", "grad_norm", "soft_loss", "hard_loss", "agreement"}
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    bits = [np.asarray(x).tobytes() for x in jax.tree.leaves(got)]
    assert bits == BITS.setdefault("of the first mesh", bits)


BITS: dict = {}
