"""Batch sizes as a table and a picture."""

from __future__ import annotations

import pytest
from rich.console import Console

from wsejax.cost.compare import Row
from wsejax.cost.converged import Steps, converged
from wsejax.report.batch_size import converged_table, plot_batch_sizes
from wsejax.training.batch_size import TradeOff


def priced(batch: int, steps: Steps):
    row = Row(
        name="wafer", plan="", model="kernels", error_group=None, step_seconds=1.0 + 0.1 * batch, tokens_per_second=100.0, mfu=0.1,
        joules=2e4, dollars=0.03 * (1 + 0.1 * batch), parts={}, communication_share=0.0,
    )  # fmt: skip
    return converged(row, steps, batch=batch)


def test_the_table_marks_the_cheapest_and_what_is_extrapolated(capsys):
    found = [priced(2, Steps(900.0, extrapolated=True)), priced(8, Steps(300.0))]
    Console(width=140).print(converged_table(found, {8: "5.2 +- 0.4"}))
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith(("2 ", "8 "))]
    assert "modelled" in said and "900 (extrapolated)" in lines[0] and "cheapest" not in lines[0]
    assert "cheapest" in lines[1] and "5.2 +- 0.4" in lines[1] and "2,400" in lines[1] and "1.8e+03" in lines[1]


def test_the_picture_has_a_point_of_each_run_and_the_critical_batch(tmp_path):
    runs = {b: [{"step": 0, "validation_loss": 5.0}, {"step": 9, "loss": 4.0}, {"step": 300, "validation_loss": 2.0}] for b in (2, 8)}
    figure = plot_batch_sizes(runs, 2.5, [priced(2, Steps(900.0)), priced(8, Steps(300.0))], tmp_path / "a.png", TradeOff(100, 1600))
    left, middle, right = figure.axes
    assert [list(line.get_xdata()) for line in left.lines[:2]] == [[0, 600], [0, 2400]]
    assert list(middle.lines[0].get_xdata()) == [1800, 2400] and list(middle.lines[-1].get_ydata()) == [200]
    assert list(right.lines[-1].get_xdata()) == [8] and (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="found is empty"):
        plot_batch_sizes(runs, 2.5, [], tmp_path / "b.png")
