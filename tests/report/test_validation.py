"""The table and the picture of a validation: every group, every reason, and as many marks as predictions."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from wsejax.cost.table import published
from wsejax.cost.validation import Validation, validate
from wsejax.report import plot_validation, validation_table


@pytest.fixture(scope="module")
def some() -> Validation:
    kinds = ("multicast_line", "spmm", "reduce", "molecular_dynamics", "gemm")
    return validate([p for p in published() if p.experiment in kinds])


def printed(v: Validation, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(validation_table(v))
    return out.getvalue()


def test_groups_errors_aims_and_reasons_are_printed(some):
    text = printed(some)
    assert "Modelled against published measurements" in text
    for g in some.groups:
        assert g.name in text and f"{g.median:.1%}" in text
    assert "5% met" in text and "dispatch 56.5" in text
    for e in some.excluded:
        assert e.point.id in text
    for b in some.bounds:
        assert b.point.id in text


def test_a_missed_aim_is_called_missed(some):
    bad = dataclasses.replace(some.groups[0], median=0.5, held_out_median=0.5, aim=0.05)
    assert "5% missed" in printed(dataclasses.replace(some, groups=(bad,)))


def test_a_mark_for_every_prediction(some, tmp_path):
    figure = plot_validation(some, tmp_path / "v.png")
    axes = figure.axes[0]
    marks = [line for line in axes.lines if line.get_label() in {g.name for g in some.groups}]
    assert sum(len(line.get_xdata()) for line in marks) == len(some.predictions)
    assert len({str(line.get_color()) for line in marks}) == len(marks)
    assert axes.get_xscale() == axes.get_yscale() == "log" and "modelled" in axes.get_ylabel()
    assert (tmp_path / "v.png").stat().st_size > 10_000


def test_nothing_predicted_is_nothing_to_draw(some, tmp_path):
    with pytest.raises(ValueError, match="no prediction"):
        plot_validation(dataclasses.replace(some, predictions=()), tmp_path / "v.png")
