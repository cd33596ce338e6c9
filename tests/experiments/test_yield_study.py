"""The yield study on small wafers."""

from __future__ import annotations

import json

import pytest

from experiments.yield_study import Settings, main, study
from wsejax.report import plot_yield


def test_it_prints_and_keeps_what_it_found(tmp_path, capsys):
    main(Settings(rows=40, cols=40, dead_pes=0.02, max_dilation=(4, 5), seeds=3, out=tmp_path / "study"))
    records = json.loads((tmp_path / "study" / "yield.json").read_text())
    assert len(records) == 6
    for r in records:
        assert r["pes"] == r["rows"] * r["cols"] and r["max_dilation"] <= r["max_dilation_allowed"]
        assert 0.85 < r["utilisation"] <= r["utilisation_bound"]
    assert (tmp_path / "study" / "yield.png").stat().st_size > 10_000
    assert "3 of 3" in capsys.readouterr().out


def test_wafers_without_a_mesh_are_counted(capsys):
    main(Settings(rows=6, cols=6, dead_pes=1.0, seeds=2))
    assert "0 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no wafer with a mesh"):
        plot_yield([{"failed": "", "max_dilation_allowed": 3}], "x.png")


def test_half_a_size_is_refused():
    with pytest.raises(SystemExit, match="rows=4 and cols=None"):
        study(Settings(rows=4), console=None)
