"""What is printed beside modelled times is what was found."""

from __future__ import annotations

import pytest

from wsejax.cost import validation as V
from wsejax.cost.errors import constants, model_error


def test_errors_and_constants_are_those_of_the_validation():
    for g in V.validate().groups:
        error = model_error(g.name)
        assert error.points == g.points
        assert error.median == pytest.approx(g.median if g.held_out_median is None else g.held_out_median, abs=2e-5)
        assert constants(g.name) == g.constants


def test_it_reads_as_a_sentence():
    error = model_error("Multicast")
    assert str(error) == f"median error {error.median:.1%} (5-fold) on 25 published points"
    assert "in-sample" in str(model_error("KV park and reload"))


def test_one_point_is_one_and_what_is_not_fitted_is_not_held_out():
    assert str(model_error("Reduction")).endswith("(nothing fitted) on 1 published point")
    assert "nothing fitted" in str(model_error("PE instructions")) and not constants("PE instructions")


def test_unknown_groups_are_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"group='Tea'.*known are .*'SpMM'"):
        model_error("Tea")
    with pytest.raises(ValueError, match="no published point counts"):
        model_error("FFT")
