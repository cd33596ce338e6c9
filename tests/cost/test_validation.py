"""Fitting and validating: laws on groups made up here, and that no point of any shape is without a prediction or a reason."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsejax.cost import validation as V
from wsejax.cost.points import Constant, Group, Point, Unpredictable
from wsejax.cost.table import published


def point(n: int, value: float, **changes) -> Point:
    known = dict(id=f"p{n}", source="s", hardware="CS-3", experiment="line", metric="time", unit="cycles", value=value, config={"n": n})
    return Point(**{**known, **changes})


LINE = Group(
    "line",
    lambda p: p.experiment == "line",
    lambda p, c: c["start"] + c["each"] * p.config["n"],
    {"start": Constant(1.0, 0.0, 1e4, "cycles", "before"), "each": Constant(1.0, 0.0, 1e3, "cycles", "of one")},
)


@settings(max_examples=25, deadline=None)
@given(st.floats(1.0, 1e3), st.floats(0.1, 50.0), st.permutations(range(1, 13)))
def test_a_fit_finds_the_constants_that_made_the_points_in_any_order(start, each, order):
    found = V.fit(LINE, [point(n * n, start + each * n * n) for n in order])
    assert found["start"] == pytest.approx(start, rel=1e-3, abs=1e-3) and found["each"] == pytest.approx(each, rel=1e-3)


def test_an_outlier_does_not_carry_the_fit_away():
    found = V.fit(LINE, [point(n, (10.0 + 2.0 * n) * (5.0 if n == 20 else 1.0)) for n in range(1, 40)])
    assert found["each"] == pytest.approx(2.0, rel=0.05)


@given(st.permutations(range(23)))
@settings(max_examples=10, deadline=None)
def test_folds_know_points_by_their_ids_alone(order):
    points = [point(n, 10.0 + 3.0 * n) for n in range(23)]
    whole = V.fit_with_folds(LINE, points)
    assert len(whole.folds) == V.FOLDS
    assert V.fit_with_folds(LINE, [points[n] for n in order]).ids == whole.ids


def test_a_point_is_held_out_of_its_own_fold():
    """Change one value: of the constants, only those that predict this point held out stay the same."""
    points = [point(n, 10.0 + 3.0 * n) for n in range(1, 20)]
    changed = [dataclasses.replace(p, value=p.value * 1.3) if p.id == "p7" else p for p in points]
    before, after = V.fit_with_folds(LINE, points), V.fit_with_folds(LINE, changed)
    assert before.without(points[6]) == after.without(changed[6])
    assert before.constants != after.constants
    assert sum(a != b for a, b in zip(before.folds, after.folds, strict=True)) == V.FOLDS - 1


def test_few_points_are_left_out_in_turn_and_one_alone_is_never_held_out():
    few = V.fit_with_folds(LINE, [point(n, 5.0 + n) for n in (1, 2, 3)])
    assert len(few.folds) == 3
    alone = V.fit_with_folds(LINE, [point(1, 6.0)])
    assert alone.folds == () and alone.without(point(1, 6.0)) is None
    assert alone.without(point(2, 7.0)) == alone.constants  # a point that it never saw


def test_an_unseen_point_is_predicted_by_the_constants_that_ship():
    seen = next(p for p in published() if p.id == "epcc-multicast-1024B-N64-median")
    unseen = dataclasses.replace(seen, id="new", config={**seen.config, "receivers": 100})
    result = V.validate([unseen])
    (one,) = result.predictions
    assert one.predicted == one.held_out
    assert one.predicted - V.validate([seen]).predictions[0].predicted == pytest.approx(36.0)  # 36 more hops, each shown as one cycle
    assert result.groups[0].constants == V.shipped_fits()["Multicast"].constants


def test_inequalities_are_kept_apart():
    few = [p for p in published() if p.id in ("lit-md-speed", "lit-md-ta")]
    broken = dataclasses.replace(few[0], id="x", metric="timesteps_per_second_upper_bound", value=1.0)
    result = V.validate([*few, broken])
    kept = {b.point.id: b.kept for b in result.bounds}
    assert kept == {"lit-md-speed": True, "x": False}
    assert sum(g.points for g in result.groups) == 1


def test_every_published_point_has_a_prediction_or_a_reason():
    result = V.validate()
    told = [p.point.id for p in (*result.predictions, *result.bounds, *result.excluded)]
    assert sorted(told) == sorted(p.id for p in published())
    assert all(len(e.reason) > 10 and "cannot be read" not in e.reason for e in result.excluded)
    assert all(math.isfinite(p.predicted) and p.predicted > 0 for p in result.predictions)
    assert json.loads(json.dumps(result.to_dict()))["groups"][0]["points"] > 0


MET = {
    "Router": 0.05, "Multicast": 0.05, "PE instructions": 0.15, "2-D stencil, WSE-2": 0.12, "2-D stencil, WSE-3": 0.12, "SpMM": 0.12,
    "GEMM, local": 0.12, "GEMV": 0.20,
}  # fmt: skip


def test_aims_are_met_by_points_held_out():
    found = {g.name: g for g in V.validate().groups}
    for name, aim in MET.items():
        assert found[name].aim == aim
        error = found[name].held_out_median
        assert error is not None and error <= aim, name


MINE = ("fabric", "pe", "sparse", "stencil", "whole")
junk = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(allow_nan=True), st.text(max_size=8), st.just("3x4"), st.lists(st.none())
)


@st.composite
def odd_points(draw: st.DrawFn) -> Point:
    """A published point with entries of its config, its metric, unit or algorithm changed, or gone."""
    p = draw(st.sampled_from([p for p in published() if V.claimant(p) is not None]))
    config = dict(p.config)
    for key in draw(st.lists(st.sampled_from(sorted(config)), unique=True)) if config else []:
        if draw(st.booleans()):
            config[key] = draw(junk)
        else:
            del config[key]
    texts = {f: draw(st.text(max_size=6)) for f in draw(st.sets(st.sampled_from(["metric", "unit", "algorithm", "hardware"])))}
    return dataclasses.replace(p, id="odd", config=config, **texts)


@settings(max_examples=300, deadline=None)
@given(odd_points())
def test_no_odd_point_breaks_the_model(p):
    result = V.validate([p])
    assert len(result.predictions) + len(result.bounds) + len(result.excluded) == 1


def test_an_experiment_that_nobody_knows_has_a_reason():
    (excluded,) = V.validate([point(1, 1.0, experiment="tea_making")]).excluded
    assert excluded.reason == "no model for experiment 'tea_making' with metric 'time'"
    (negative,) = V.validate([dataclasses.replace(next(p for p in published() if p.experiment == "spmm"), id="n", value=-1.0)]).excluded
    assert "positive" in negative.reason


def test_a_group_that_stumbles_says_over_what():
    broken = Group("b", lambda p: True, lambda p, c: 1 / 0)
    with pytest.raises(Unpredictable, match="ZeroDivisionError"):
        V.predict(broken, point(1, 1.0), {})
    with pytest.raises(Unpredictable, match="the model gives inf"):
        V.predict(Group("i", lambda p: True, lambda p, c: math.inf), point(1, 1.0), {})
    with pytest.raises(Unpredictable, match=r"config=.*'n': 1.* cannot be read .IndexError"):
        V.predict(Group("x", lambda p: True, lambda p, c: [][0]), point(1, 1.0), {})


@pytest.mark.parametrize("name", ["Multicast", "SpMM", "GEMM, local", "Molecular dynamics, an atom a PE"])
def test_fitting_again_gives_what_ships(name):
    group = next(g for g in V.groups() if g.name == name)
    again, ships = V.fit_with_folds(group, [p for p in published() if V.claimant(p) is group]), V.shipped_fits()[name]
    assert again.ids == ships.ids
    for one, other in ((again.constants, ships.constants), *zip(again.folds, ships.folds, strict=True)):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_fitting_all_again_gives_what_ships():
    for name, again in V.fit_all().items():
        assert again.constants == pytest.approx(dict(V.shipped_fits()[name].constants), rel=1e-2, abs=1e-2), name
