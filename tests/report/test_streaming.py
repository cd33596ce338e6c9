"""Tables and pictures of streaming."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rich.console

import wsejax as wse
from models.presets import find
from wsejax.cost.scaling import PublishedScaling, scaling
from wsejax.hardware import CLUSTERS
from wsejax.report import clusters_table, plot_scaling, plot_stall, published_scaling_table, scaling_table

WORK = wse.Workload.of_llm(wse.LLM.from_dict(find("llama-2-7b")), 64, 4096)


def printed(part, width: int = 200) -> str:
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(part)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("weak", [True, False])
def test_a_row_for_each_number_of_systems(weak: bool):
    found = scaling("cs3", WORK, (1, 8), weak=weak)
    text = printed(scaling_table(found))
    assert "modelled" in text and ("weak" if weak else "strong") in text
    for row in found.rows:
        assert f"{row.efficiency:.1%}" in text and f"{row.tokens_per_system:,.0f}" in text
    assert "no room for" in printed(scaling_table(found), 90)


def test_clusters_stand_with_both_peaks():
    text = printed(clusters_table(list(CLUSTERS.values())))
    assert "54.4 M" in text and "478.7 PF" in text and "4,000 PF" in text and "119.7 PF" in text


def test_errors_stand_beside_published_figures():
    text = printed(
        published_scaling_table([PublishedScaling("a", "1 T on 16", 15.3, 15.9, 16.0), PublishedScaling("b", "x", 1.0, 0.9, None)])
    )
    assert "+3.9%" in text and "-10.0%" in text and "+4.6%" in text


def test_pictures_have_what_was_priced(tmp_path):
    both = [scaling("cs3", WORK, (1, 4, 16), weak=weak) for weak in (True, False)]
    figure = plot_scaling(both, tmp_path / "scaling.png")
    assert "odelled" in figure.axes[0].get_ylabel() and len(figure.axes[1].get_lines()) == 4
    assert np.asarray(figure.axes[0].get_lines()[1].get_ydata()).tolist() == [row.speedup for row in both[0].rows]
    rows = [{"tokens": t, "stall_share": 0.1, "least_tokens": 3e4, "recipe": 6e4} for t in (1e4, 5e4)]
    figure = plot_stall({"a": rows, "b": rows}, tmp_path / "stall.png")
    assert "modelled" in figure.axes[0].get_ylabel()
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("scaling.png", "stall.png"))
    with pytest.raises(ValueError, match="scalings is empty"):
        plot_scaling([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="sweeps is empty"):
        plot_stall({}, tmp_path / "none.png")
