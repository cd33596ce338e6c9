"""Cost to a target: synthetic curves whose answer is known, and the sums of `tco`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.cost.compare import Row
from wsejax.cost.converged import Steps, TargetNotReachedError, cheapest, converged, power_law, steps_to
from wsejax.cost.tco import tco

FLOOR, SCALE, POWER = 1.5, 4.0, 0.4


def curve(last, every=1, floor=FLOOR, scale=SCALE, power=POWER):
    """Rows of loss = floor + scale step^-power, a validation loss in every so many."""
    loss = lambda step: floor + scale * step**-power
    return [{"step": s, "loss": loss(s), **({"validation_loss": loss(s)} if s % every == 0 else {})} for s in range(1, last + 1)]


@given(st.floats(2.0, 5.0), st.sampled_from([1, 7]))
def test_steps_of_a_known_curve_are_its_inverse(target, every):
    known = (SCALE / (target - FLOOR)) ** (1 / POWER)
    found = steps_to(curve(500, every), target)
    assert not found.extrapolated
    if known >= every:
        assert abs(found.steps - known) <= every and math.floor(known / every) * every <= found.steps <= math.ceil(known / every) * every
        assert found.steps >= known - 1e-6, "a chord lies above what bends like this"
    else:
        assert found.steps == every, "nothing is known of before the first measurement"


def test_between_two_measurements_it_is_a_straight_line():
    rows = [
        {"step": 0, "validation_loss": 4.0},
        {"step": 5, "loss": 1.0},
        {"step": 10, "validation_loss": 2.0},
        {"step": 20, "validation_loss": 3.0},
    ]
    assert steps_to(rows, 3.5) == Steps(2.5) and steps_to(rows, 2.0) == Steps(10.0)
    assert steps_to(rows, 1.0, metric="loss") == Steps(5.0) and steps_to(rows, 9.0) == Steps(0.0)


@given(floor=st.sampled_from([0.0, 0.5, 1.5]), scale=st.floats(0.5, 10), power=st.floats(0.1, 1.5), share=st.floats(0.2, 0.95))
def test_a_power_law_is_found_again_and_extrapolates(floor, scale, power, share):
    rows = curve(40, 2, floor, scale, power)
    assert power_law([(row["step"], row["loss"]) for row in rows]) == pytest.approx(
        (floor, scale, power), rel=1e-3, abs=1e-3 * (floor + scale)
    )
    target = floor + share * (rows[-1]["loss"] - floor)
    found = steps_to(rows, target, extrapolate=True)
    assert found.extrapolated and found.steps == pytest.approx((scale / (target - floor)) ** (1 / power), rel=0.02)
    assert "extrapolated" in str(found)


def test_a_target_that_was_reached_is_not_extrapolated():
    assert steps_to(curve(500), 2.0, extrapolate=True) == steps_to(curve(500), 2.0)


def test_of_noisy_losses_the_extrapolation_is_near():
    random = np.random.default_rng(0)
    rows = [row | {"loss": row["loss"] + 0.01 * random.normal()} for row in curve(300, 5)]
    known = (SCALE / (1.85 - FLOOR)) ** (1 / POWER)
    assert steps_to(rows, 1.85, metric="loss", extrapolate=True).steps == pytest.approx(known, rel=0.25) and known > 400


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda: steps_to(curve(50), 1.0),
            TargetNotReachedError,
            r"target=1\.0: not reached in 50 steps, the lowest validation_loss is 2\.3",
        ),
        (lambda: steps_to(curve(50), 1.4, extrapolate=True), TargetNotReachedError, r"levels off at 1\.5"),
        (
            lambda: steps_to([{"step": n, "loss": 2.0} for n in range(9)], 1.0, metric="loss", extrapolate=True),
            TargetNotReachedError,
            "levels off at 2",
        ),
        (lambda: steps_to(curve(3), 1.6, extrapolate=True), ValueError, "3 measurements; a power law needs at least 4"),
        (
            lambda: steps_to(curve(50), 2.0, metric="accuracy"),
            ValueError,
            "none has a finite 'accuracy'; there are loss, step, validation_loss",
        ),
        (lambda: steps_to([{"step": 1, "validation_loss": math.nan}], 2.0), ValueError, "none has a finite"),
        (lambda: cheapest([]), ValueError, "found is empty"),
        (lambda: converged(row(), Steps(10.0), batch=8, converged_share=0.0), ValueError, "converged_share"),
    ],
)
def test_what_has_no_answer_says_so(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


def row(step_seconds=0.5, tokens=1000.0, dollars_per_hour=72.0, watts=20_000.0):
    return Row(
        name="wafer", plan="", model="kernels", error_group=None, step_seconds=step_seconds, tokens_per_second=tokens / step_seconds,
        mfu=0.1, joules=watts * step_seconds, dollars=dollars_per_hour * step_seconds / 3600, parts={}, communication_share=0.0,
    )  # fmt: skip


def test_a_cost_by_hand():
    one = converged(row(), Steps(7200.0), batch=8)
    assert one.hours == pytest.approx(1) and one.dollars == pytest.approx(72) and one.kilowatt_hours == pytest.approx(20 * 1.2)
    own = converged(
        row(), Steps(7200.0), batch=8, energy_in_rate=False, runs=2.0, lost_share=0.2, pue=1.5, converged_share=0.5, setup_hours=1.0
    )
    assert own.hours == pytest.approx(2.5) and own.kilowatt_hours == pytest.approx(50 * 1.5)
    assert own.dollars == pytest.approx(float(tco(own.inputs).dollars)) and own.total.energy_dollars == pytest.approx(75 * 0.1)
    assert own.to_dict()["modelled"] and own.to_dict()["steps"] == 7200 and not own.to_dict()["extrapolated"]


@given(critical=st.floats(5, 200), fixed=st.floats(0.01, 10))
def test_the_cheapest_batch_is_where_the_known_curve_has_it(critical, fixed):
    """Steps 1 + Bc / B times a step of fixed + B seconds are least at B = sqrt(Bc fixed)."""
    batches = np.geomspace(1, 256, 17)
    found = [converged(row(fixed + b), Steps(1000 * (1 + critical / b)), batch=b) for b in batches]
    seconds = (1 + critical / batches) * (fixed + batches)
    assert cheapest(found).batch == batches[np.argmin(seconds)] == cheapest(found, "hours").batch
    if batches[0] < math.sqrt(critical * fixed) < batches[-1]:
        assert abs(math.log(cheapest(found).batch / math.sqrt(critical * fixed))) <= math.log(256) / 16
