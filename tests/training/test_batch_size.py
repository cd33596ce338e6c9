"""Batch sizes: curves with a known answer, rules as their papers have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsejax.training.batch_size import TradeOff, fit_trade_off, gradual_warmup, scaled_adam, scaled_rate, scaled_steps

BATCHES = np.array([2.0, 8.0, 32.0, 128.0])
size = st.floats(0.5, 1e4)


@given(least_steps=st.floats(10, 1e5), critical=st.floats(1, 500))
def test_a_curve_is_found_again(least_steps, critical):
    known = TradeOff(least_steps, least_steps * critical)
    found = fit_trade_off([(known.steps(b), known.examples(b)) for b in BATCHES])
    assert found.least_steps == pytest.approx(least_steps, rel=1e-3) and found.critical_batch == pytest.approx(critical, rel=1e-3)
    assert found.relative_error < 1e-3


@given(least_steps=st.floats(10, 1e5), critical=st.floats(1, 500), batch=size)
def test_the_curve_is_the_papers(least_steps, critical, batch):
    curve = TradeOff(least_steps, least_steps * critical)
    steps, examples = curve.steps(batch), curve.examples(batch)
    assert examples == pytest.approx(steps * batch)
    assert (steps / curve.least_steps - 1) * (examples / curve.least_examples - 1) == pytest.approx(1)
    assert curve.steps(curve.critical_batch) == pytest.approx(2 * least_steps)
    assert curve.examples(curve.critical_batch) == pytest.approx(2 * curve.least_examples)


def test_its_error_is_the_spread_over_repetitions():
    known, random = TradeOff(100, 2000), np.random.default_rng(0)
    found = []
    for _ in range(200):
        steps = known.steps(BATCHES) * np.exp(0.03 * random.normal(size=4))
        found.append(fit_trade_off([*zip(steps, steps * BATCHES, strict=True)]))
    spread = np.std(np.log([one.critical_batch for one in found]))
    assert np.sqrt(np.mean([one.relative_error**2 for one in found])) == pytest.approx(spread, rel=0.2)
    assert np.median([one.critical_batch for one in found]) == pytest.approx(20, rel=0.05)


def test_two_runs_give_a_curve_without_an_error():
    curve = fit_trade_off([(300.0, 600.0), (100.0, 3200.0)])
    assert curve.steps(2.0) == pytest.approx(300) and curve.steps(32.0) == pytest.approx(100) and math.isnan(curve.relative_error)


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "at least two batch sizes"),
        ([(10.0, 20.0), (20.0, 40.0)], "at least two batch sizes"),
        ([(10.0, 20.0), (-1.0, 40.0)], "finite and above 0"),
        ([(10.0, 20.0), (10.0, 80.0)], "steps do not fall"),
    ],
)
def test_runs_without_a_curve_are_refused(runs, says):
    with pytest.raises(ValueError, match=says):
        fit_trade_off(runs)


@given(
    rate=st.floats(1e-5, 1), batch=size, base=size, other=size, scale=size, rule=st.sampled_from(["constant", "linear", "sqrt", "noise"])
)
def test_rules_go_through_their_base_and_along_the_way(rate, batch, base, other, scale, rule):
    at = lambda rate, to, of: scaled_rate(rule, rate, to, of, scale)
    assert at(rate, base, base) == pytest.approx(rate)
    assert at(at(rate, other, base), batch, other) == pytest.approx(at(rate, batch, base))


@given(base=size, scale=size)
def test_the_rule_of_noise_is_linear_below_the_scale_and_level_above(base, scale):
    rate = lambda batch: scaled_rate("noise", 1.0, batch, base, scale)
    assert rate(2e-4 * scale) == pytest.approx(2 * rate(1e-4 * scale), rel=1e-3)
    assert rate(1e9 * scale) == pytest.approx(2 * rate(scale), rel=1e-6)


def test_rules_by_hand():
    assert scaled_rate("linear", 0.1, 8192, 256) == pytest.approx(3.2)  # Goyal et al. 2017, table 1
    assert scaled_rate("sqrt", 0.1, 1024, 256) == pytest.approx(0.2)
    found = scaled_adam(1e-3, 128, 32, b1=0.9, b2=0.95, eps=1e-8)
    assert found == pytest.approx({"learning_rate": 2e-3, "b1": 0.6, "b2": 0.8, "eps": 5e-9})


@given(k=st.floats(0.1, 8), batch=st.floats(1, 100))
def test_scaled_adam_goes_back(k, batch):
    assume(k > 0.11)
    there = scaled_adam(1e-3, k * batch, batch, b1=0.9, b2=0.99, eps=1e-6)
    back = scaled_adam(there["learning_rate"], batch, k * batch, b1=there["b1"], b2=there["b2"], eps=there["eps"])
    assert back == pytest.approx({"learning_rate": 1e-3, "b1": 0.9, "b2": 0.99, "eps": 1e-6})


@given(steps=st.integers(0, 10_000), batch=st.integers(1, 512), base=st.integers(1, 512))
def test_scaled_steps_see_the_examples_and_no_step_more(steps, batch, base):
    made = scaled_steps(steps, batch, base)
    assert made * batch >= steps * base
    assert made <= 1 or (made - 1) * batch < steps * base
    assert (made == 0) == (steps == 0)


def test_a_gradual_warm_up_goes_from_the_small_rate_to_the_large():
    warm = gradual_warmup(0.1, 3.2, 10)
    assert [float(warm(n)) for n in (0, 5, 10, 99)] == pytest.approx([0.1, 1.65, 3.2, 3.2], rel=1e-5)
    assert gradual_warmup(0.1, 3.2, 0)(0) == 3.2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scaled_rate("cubic", 0.1, 2, 1), "rule='cubic': unknown"),
        (lambda: scaled_rate("noise", 0.1, 2, 1), "noise_scale=None"),
        (lambda: scaled_rate("linear", 0.1, 0, 1), "batch=0: must be"),
        (lambda: scaled_adam(0.1, 32, 1), r"b1=0\.9 leaves no memory at 32 times the batch; give at most 10"),
        (lambda: scaled_steps(10, 1, math.inf), "base_batch=inf"),
        (lambda: gradual_warmup(0.1, 1.0, -1), "steps=-1"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
