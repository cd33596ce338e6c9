"""A picture of what transfers from narrow models to wide ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .plots import _figure, _save


def plot_transfer(trained: Sequence[Mapping[str, Any]], looked: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Figure:
    """A column for each parametrisation: loss over learning rate, a line a width; and activations over width, after the last step.

    trained: rows with `parametrisation`, `width`, `log2_rate` and `loss` (nats). looked: rows with `parametrisation`, `width`, `step` and
    `activations`, a mean |x| for each layer by name. Either may be empty. Raises ValueError where both are.
    """
    panels = [name for name, rows in (("trained", trained), ("looked", looked)) if rows]
    if not panels:
        raise ValueError("trained and looked have no rows: there is nothing to draw; train, or check coordinates")
    kinds = list(dict.fromkeys(row["parametrisation"] for row in (*trained, *looked)))
    figure = _figure(5 * len(kinds), 3.8 * len(panels))
    grid = figure.subplots(len(panels), len(kinds), squeeze=False, sharey="row")
    for column, kind in enumerate(kinds):
        for row, name in enumerate(panels):
            draw = _losses if name == "trained" else _activations
            draw(grid[row, column], [r for r in (trained if name == "trained" else looked) if r["parametrisation"] == kind])
            grid[row, column].set_title(kind)
            grid[row, column].grid(alpha=0.3)
            grid[row, column].legend(fontsize="small")
    return _save(figure, path)


def _losses(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    widths = sorted({row["width"] for row in rows})
    for width, colour in zip(widths, colormaps["viridis"](np.linspace(0, 0.85, len(widths))), strict=True):
        line = sorted((2.0 ** row["log2_rate"], row["loss"]) for row in rows if row["width"] == width)
        axes.plot(*zip(*line, strict=True), "o-", color=colour, markersize=3, label=f"width {width}")
        kept = [point for point in line if np.isfinite(point[1])]
        if kept:
            axes.plot(*min(kept, key=lambda point: point[1]), "*", color=colour, markersize=11)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="peak learning rate", ylabel="validation loss (nats)")


def _activations(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    last = max(row["step"] for row in rows)
    after = sorted((row for row in rows if row["step"] == last), key=lambda row: row["width"])
    for name in after[0]["activations"]:
        axes.plot([row["width"] for row in after], [np.mean(row["activations"][name]) for row in after], "o-", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="width", ylabel=f"mean |x| after {last} steps")
