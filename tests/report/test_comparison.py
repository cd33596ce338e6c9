"""Tables and pictures of machines and of costs: what is drawn must be what was computed; the drawing is read back to tell."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from wsejax.cost.compare import Comparison, compare
from wsejax.cost.llm import LLM
from wsejax.cost.tco import corrected_tco, sensitivity, tco
from wsejax.cost.workload import Workload
from wsejax.report import comparison_table, plot_breakdown, plot_tornado, tco_table

SEVEN = LLM(name="7B", layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn_width=11008, vocab_size=32000, context=4096)
MACHINES = compare(Workload.of_llm(SEVEN, 256, 4096), ["cs3", "16xcs3", "64xh100", "groq-lpu"])


def text_of(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_has_every_machine_and_says_modelled():
    text = text_of(comparison_table(MACHINES))
    assert "modelled" in text
    for row in MACHINES.rows:
        assert row.name in text and f"{row.step_seconds:.3g}" in text
    assert "left out: 8 x Groq LPU" in text and "tokens a step, communication is" in text


def test_bars_are_the_parts_of_each_step(tmp_path):
    axes = plot_breakdown(MACHINES, tmp_path / "bars.png").axes[0]
    assert "modelled" in axes.get_title(loc="left")
    for at, row in enumerate(MACHINES.rows):
        bars = [b for b in axes.patches if b.get_y() < at < b.get_y() + b.get_height()]
        assert [b.get_width() for b in bars] == pytest.approx([100 * s / row.step_seconds for s in row.parts.values() if s])
        assert sum(b.get_width() for b in bars) == pytest.approx(100)
    assert np.ptp(imread(tmp_path / "bars.png")) > 0


def test_the_tornado_s_ends_are_totals(tmp_path):
    inputs = corrected_tco()[0]
    swings, total = sensitivity(inputs), tco(inputs).dollars
    axes = plot_tornado(swings, total, tmp_path / "tornado.png").axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [s.name.replace("_", " ") for s in swings]
    ends = [total + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([d for s in swings for d in (s.low_dollars, s.high_dollars)])
    assert axes.yaxis_inverted()


def test_the_table_of_totals_adds_up():
    totals = [tco(inputs) for inputs in corrected_tco()]
    text = text_of(tco_table(*totals))
    for total in totals:
        assert f"{total.dollars:,.0f}" in text and total.name in text
    assert "modelled" in text


def test_nothing_to_draw_is_an_error(tmp_path):
    empty = Comparison(workload=MACHINES.workload, rows=())
    with pytest.raises(ValueError, match="comparison has no rows"):
        plot_breakdown(empty, tmp_path / "x.png")
    with pytest.raises(ValueError, match="swings is empty"):
        plot_tornado([], 1.0, tmp_path / "x.png")
