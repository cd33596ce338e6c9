"""The yield study on small wafers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments.yield_study import Settings, main, study
from wsejax.hardware import WSE1
from wsejax.report import plot_yield


def test_it_prints_and_keeps_what_it_found(tmp_path, capsys):
    main(Settings(rows=40, cols=40, dead_pes=0.02, max_dilation=(4, 5), seeds=3, out=tmp_path / "study"))
    records = json.loads((tmp_path / "study" / "yield.json").read_text())
    assert len(records) == 6
    for r in records:
        assert r["pes"] == r["rows"] * r["cols"] and r["max_dilation"] <= r["max_dilation_allowed"]
        assert 0.85 < r["utilisation"] <= r["utilisation_bound"] <= r["healthy"]
    assert (tmp_path / "study" / "yield.png").stat().st_size > 10_000
    assert "3 of 3" in capsys.readouterr().out


def test_the_fixed_grid_of_a_real_machine(capsys):
    """A whole WSE-1: the spares take up its defects, and no other grid is given."""
    records = study(Settings(spec="wse1", policy="spares", seeds=1), Console())
    assert (records[0]["rows"], records[0]["cols"]) == (WSE1.usable_rows, WSE1.usable_cols)
    assert records[0]["utilisation"] == records[0]["utilisation_bound"]


def test_the_trade_off_is_drawn_against_the_longest_and_the_mean_hops(tmp_path):
    rows = [
        {"utilisation": 0.8 + bound / 100, "healthy": 0.98, "utilisation_bound": 0.97, "mean_dilation": 1.5 - bound / 20,
         "max_dilation_allowed": bound} for bound in (3, 5, 9)
    ]  # fmt: skip
    longest, mean = plot_yield(rows, tmp_path / "yield.png").axes[2:]
    assert np.ravel(longest.lines[0].get_xdata()).tolist() == [3, 5, 9]
    np.testing.assert_allclose(np.ravel(mean.lines[0].get_xdata()), [1.35, 1.25, 1.05])
    for axes in (longest, mean):
        np.testing.assert_allclose(np.ravel(axes.lines[0].get_ydata()), [83, 85, 89])
        assert [np.ravel(line.get_ydata()).tolist() for line in axes.lines[1:]] == [[98] * 3, [97] * 3]


def test_wafers_without_a_mesh_are_counted(capsys):
    main(Settings(rows=6, cols=6, dead_pes=1.0, seeds=2))
    assert "0 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no wafer with a mesh"):
        plot_yield([{"failed": "", "max_dilation_allowed": 3}], "x.png")


def test_half_a_size_is_refused():
    with pytest.raises(ValueError, match="rows=4 and cols=None"):
        study(Settings(rows=4), Console())


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_wafers_are_refused(seeds):
    with pytest.raises(ValueError, match=f"--seeds {seeds} is too small"):
        study(Settings(rows=8, cols=8, seeds=seeds), Console())


def test_who_reads_no_more_ends_the_help_quietly():
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.yield_study", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:  # fmt: skip
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() in (0, 1, 141)
