"""The gradient noise scale: of losses whose noise is known, and laws of its estimators."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.accumulate import value_and_grad
from wsejax.training.noise import NoiseScale, estimates, squared_norms

HESSIAN = np.array([4.0, 1.0, 0.25, 0.5], np.float32)
DEVIATION = np.array([1.0, 3.0, 0.5, 2.0], np.float32)  # of the gradient of one example
PARAMS = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([2.0, 1.0])}
GRADIENT = HESSIAN * np.concatenate(list(PARAMS.values()))
SIGNAL, NOISE = float((GRADIENT**2).sum()), float((DEVIATION**2).sum())


def quadratic(params, batch, key=None):
    """x H x / 2 + x n, with n ~ N(0, diag(DEVIATION^2)) of each example: its gradient is H x + n."""
    x = jnp.concatenate([params["a"], params["b"]])
    each = 0.5 * (HESSIAN * x * x).sum() + batch["noise"] @ x
    return (each * batch["weights"]).sum() / batch["weights"].sum()


def rows_of(weights, steps, seed=0, groups=None):
    """Signal and noise of so many steps, each with new noise for a batch of these weights in four micro-batches."""
    squares = lambda g: squared_norms(g, groups)
    f = value_and_grad(quadratic, micro_batches=4, weigh=lambda b: b["weights"].sum(), squares=squares)
    draws = DEVIATION * np.random.default_rng(seed).normal(size=(steps, len(weights), 4)).astype(np.float32)
    of_step = lambda noise: f(PARAMS, {"noise": noise, "weights": jnp.asarray(weights, jnp.float32)})[0][1]
    many = jax.device_get(jax.jit(jax.vmap(of_step))(draws))
    return [dict(zip(many, values, strict=True)) for values in zip(*(x.tolist() for x in many.values()), strict=True)]


def scale_of(rows, **more):
    scale = NoiseScale(**more)
    for row in rows:
        scale.add(row)
    return scale


@pytest.mark.parametrize(
    "weights",
    [[1] * 16, [0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1], [1, 0, 1, 1] * 4],
    ids=["alike", "ragged", "one micro-batch empty"],
)
def test_of_a_quadratic_with_known_noise_both_estimators_are_unbiased_and_the_ratio_is_found(weights):
    """Ragged: micro-batches of 1 to 4 examples."""
    scale = scale_of(rows_of(weights, 20_000))
    spread = np.array(scale.rows).std(0) / math.sqrt(len(scale))
    assert abs(scale.signal - SIGNAL) < 4 * spread[0] and abs(scale.noise - NOISE) < 4 * spread[1]
    assert spread[0] < 0.02 * SIGNAL and spread[1] < 0.02 * NOISE, "the test could tell a bias of a few per cent"
    assert scale.b_simple == pytest.approx(NOISE / SIGNAL, rel=0.05)


def test_its_standard_error_is_the_spread_over_repetitions():
    rows = rows_of([1] * 8, 200 * 200)
    parts = [scale_of(rows[n : n + 200]) for n in range(0, len(rows), 200)]
    spread = np.std([part.b_simple for part in parts])
    assert np.mean([part.standard_error for part in parts]) == pytest.approx(spread, rel=0.15)


def test_groups_have_scales_of_their_own():
    rows = rows_of([1] * 16, 10_000, groups={"first": "a", "second": "b"})
    for group, part in (("first", slice(0, 2)), ("second", slice(2, 4))):
        want = (DEVIATION[part] ** 2).sum() / (GRADIENT[part] ** 2).sum()
        assert scale_of(rows, group=group).b_simple == pytest.approx(want, rel=0.1)
    with pytest.raises(ValueError, match=r"groups\['c'\]='c.\*': matches no parameter; there are a, b"):
        squared_norms(PARAMS, {"c": "c.*"})


def test_the_ratio_of_means_is_not_the_mean_of_ratios():
    rows = rows_of([1] * 4, 2000)
    ratios = [row["gradient_noise"] / row["gradient_signal"] for row in rows]
    assert abs(scale_of(rows).b_simple - NOISE / SIGNAL) < 0.1 * NOISE / SIGNAL < abs(np.mean(ratios) - NOISE / SIGNAL)


positive = st.floats(0.01, 100)


@given(signal=st.floats(0, 100), noise=st.floats(0, 100), small=positive, factor=st.floats(1.5, 50))
def test_estimates_invert_the_law_of_expected_norms(signal, noise, small, factor):
    at = lambda batch: signal + noise / batch
    found = estimates(at(small), at(factor * small), small, factor * small)
    np.testing.assert_allclose(found, (signal, noise), rtol=1e-6, atol=1e-6 * (signal + noise + noise / small) * max(1, small))


@given(small=positive, big=positive, unit=st.sampled_from([0.5, 4.0, 128.0]))
def test_in_other_units_the_scale_is_the_same_batch(small, big, unit):
    signal, noise = estimates(small, big, 2.0, 8.0)
    same, other = estimates(small, big, 2.0 * unit, 8.0 * unit)
    np.testing.assert_allclose((same, other), (signal, noise * unit), rtol=1e-9, atol=1e-9)


def row(signal, noise):
    return {"gradient_signal": signal, "gradient_noise": noise}


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=6), st.sampled_from([0.5, 0.9]))
def test_a_decayed_scale_is_the_ratio_of_two_moving_averages(rows, decay):
    scale, averages = NoiseScale(decay=decay), np.zeros(2)
    for pair in rows:
        scale.add(row(*pair))
        averages = decay * averages + (1 - decay) * np.array(pair)
    assert scale.b_simple == pytest.approx(averages[1] / averages[0])
    assert np.isfinite(scale.standard_error)


def test_rows_that_tell_nothing_are_passed_over():
    scale = scale_of([row(1.0, 6.0), {"loss": 3.0}, row(math.nan, math.nan), row(3.0, 2.0)])
    assert len(scale) == 2 and scale.b_simple == 2.0
    assert math.isinf(scale_of([row(-1.0, 2.0)]).b_simple) and math.isinf(scale_of([row(-1.0, 2.0), row(0.5, 1.0)]).standard_error)
    assert math.isinf(scale_of([row(1.0, 2.0)]).standard_error)
    with pytest.raises(ValueError, match="no row has 'gradient_signal/mlp'"):
        _ = NoiseScale(group="mlp").b_simple
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        NoiseScale(decay=1.5)
