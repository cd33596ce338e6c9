"""Machines side by side, and what a total depends on: tables and pictures. Times are modelled, and say so."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Group
from rich.text import Text

from ..cost.compare import Comparison
from ..cost.tco import Swing, Tco
from .plots import _figure, _save
from .tables import Sheet

# What keeps machines busy is blue, what they wait for is warm.
_COLOURS = {
    "compute": "#1f5fa8", "update": "#9dbfe3", "layers": "#5b6675", "tensor parallel": "#d9822b", "fabric": "#d9822b",
    "pipeline": "#f0b775", "bubble": "#b9bec6", "data parallel": "#c0182b", "stall": "#c0182b", "boundary": "#e58a94", "tree": "#7a2fb0",
    "wait": "#b58cd0",
}  # fmt: skip
_LOW, _HIGH = "#9dbfe3", "#d9822b"


def comparison_table(comparison: Comparison) -> Group:
    """A row for each machine. Below stand what could not hold the step, each with its reason, and which models the times are of."""
    rows = [
        (
            row.name, f"{row.step_seconds:.3g}", f"{row.tokens_per_second:,.0f}", f"{row.mfu:.1%}", f"{row.communication_share:.1%}",
            f"{row.joules / 1e6:.3g}", f"{row.dollars:.3g}", row.plan, row.model,
        )
        for row in comparison.rows
    ]  # fmt: skip
    table = Sheet(
        ("machine", "modelled s/step", "tokens/s", "MFU", "waits", "MJ/step", "$/step", "plan", "model"),
        rows, title=f"{comparison.workload.name}: one training step, modelled", left=(0, 7, 8),
        drop=("MJ/step", "waits", "MFU"), fold={"machine": 9, "plan": 16, "model": 10},
    )  # fmt: skip
    out = [f"left out: {name}: {reason}" for name, reason in comparison.left_out]
    what = table if rows else Text(f"{comparison.workload.name}: no machine asked for can hold the step")
    return Group(what, *(Text(line) for line in (*out, *comparison.models(), *comparison.conditions)))


def plot_breakdown(comparison: Comparison, path: str | os.PathLike[str]) -> Figure:
    """Stacked bars of modelled seconds: what each machine's critical path spends a step on, as shares, with the step beside them.

    Raises:
      ValueError: no machine could hold the step.
    """
    if not comparison.rows:
        raise ValueError("comparison has no rows: no machine could hold the step; compare others")
    rows = comparison.rows
    figure = _figure(10, 1.8 + 0.45 * len(rows))
    axes = figure.add_subplot()
    drawn: set[str] = set()
    for at, row in enumerate(rows):
        left = 0.0
        for part, seconds in row.parts.items():
            share = 100 * seconds / row.step_seconds
            if share:
                axes.barh(at, share, left=left, color=_COLOURS.get(part, "#27313f"), label=None if part in drawn else part)
                drawn.add(part)
            left += share
        axes.annotate(f"{row.step_seconds:.3g} s", (100, at), xytext=(4, 0), textcoords="offset points", va="center", annotation_clip=False)
    axes.set(xlabel="of the modelled step (%)", xlim=(0, 100), yticks=range(len(rows)), yticklabels=[row.name for row in rows])
    axes.set_title(f"{comparison.workload.name}: where a modelled step goes", loc="left")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return _save(figure, path)


def tco_table(*totals: Tco) -> Sheet:
    """Hours and dollars of projects side by side."""
    columns = ("project", "training (h)", "people (h)", "days", "machine ($)", "people ($)", "energy ($)", "total ($)")
    rows = []
    for total in totals:
        hours = (f"{float(total.training_hours):,.1f}", f"{float(total.people_hours):,.0f}", f"{float(total.days):,.1f}")
        rows.append((total.name, *hours, *(f"{float(d):,.0f}" for d in total.parts().values()), f"{float(total.dollars):,.0f}"))
    title = "total cost, on modelled throughput"
    return Sheet(columns, rows, title, drop=("people (h)", "energy ($)", "people ($)"), fold={"project": 16})


def plot_tornado(
    swings: Sequence[Swing], total_dollars: float, path: str | os.PathLike[str], title: str = "What the cost depends on"
) -> Figure:
    """The total at both ends of each input's span, widest on top, round the total as it is.

    Raises:
      ValueError: no swings.
    """
    if not swings:
        raise ValueError("swings is empty: there is nothing to draw; give `sensitivity` at least one input that matters")
    figure = _figure(9, 1.5 + 0.4 * len(swings))
    axes = figure.add_subplot()
    for at, swing in enumerate(swings):
        for end, dollars, colour in ((swing.low, swing.low_dollars, _LOW), (swing.high, swing.high_dollars, _HIGH)):
            axes.barh(at, dollars - total_dollars, left=total_dollars, color=colour)
            right = dollars >= total_dollars
            axes.annotate(
                f"{end:.3g}",
                (dollars, at),
                xytext=(3 if right else -3, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize="small",
            )
    axes.legend(handles=[Patch(color=_LOW, label="low end"), Patch(color=_HIGH, label="high end")], loc="lower right")
    axes.axvline(total_dollars, color="#27313f", linewidth=0.8)
    axes.set(xlabel="total ($), on modelled throughput", yticks=range(len(swings)), yticklabels=[s.name.replace("_", " ") for s in swings])
    axes.set_title(title, loc="left")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    return _save(figure, path)
