"""Batch sizes side by side: a table and a picture. Steps are measured; hours, energy and dollars modelled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..cost.converged import Converged, cheapest
from ..training.batch_size import TradeOff
from .plots import _figure, _save
from .tables import Sheet

_STEPS, _DOLLARS, _BEST = "#1f5fa8", "#d9822b", "#c0182b"


def converged_table(found: Sequence[Converged], noise_scales: Mapping[float, str] | None = None) -> Sheet:
    """A row for each batch size; noise_scales: what to say of each. Raises ValueError where there is none."""
    best = cheapest(found)
    rows = [
        (
            f"{one.batch:g}", str(one.steps), f"{one.steps.steps * one.batch:,.0f}", (noise_scales or {}).get(one.batch, "-"),
            f"{one.hours / one.steps.steps * 3.6e6:,.3g}", f"{one.hours * 3600:,.3g}", f"{one.kilowatt_hours:,.3g}", f"{one.dollars:,.3g}",
            "cheapest" if one is best else "",
        )
        for one in found
    ]  # fmt: skip
    columns = ("batch", "steps", "examples", "noise scale", "modelled ms/step", "seconds", "kWh", "$", "")
    return Sheet(columns, rows, title=f"{best.name}: to the target, modelled", left=(0, 8), drop=("kWh", "examples", "noise scale"))


def plot_batch_sizes(
    runs: Mapping[float, Sequence[Mapping[str, Any]]],
    target: float,
    found: Sequence[Converged],
    path: str | os.PathLike[str],
    curve: TradeOff | None = None,
) -> Figure:
    """Loss over examples of each batch size; steps and examples to the target with the curve through them; dollars.

    runs: by batch size, rows with `step` and in some `validation_loss`.
    Raises ValueError where no batch size reached the target.
    """
    best = cheapest(found)
    figure = _figure(13, 4.2)
    left, middle, right = figure.subplots(1, 3)
    for shade, (batch, rows) in zip(np.linspace(0.25, 1, len(runs)), sorted(runs.items()), strict=True):
        seen = [(row["step"] * batch, row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]
        left.plot(*zip(*seen, strict=True), color=_STEPS, alpha=shade, label=f"batch {batch:g}")
    left.axhline(target, color=_BEST, linestyle="--", linewidth=1, label="target")
    left.set(xlabel="examples", ylabel="validation loss (nats a byte)", title="Learning")

    batches = np.array([one.batch for one in found])
    steps = np.array([one.steps.steps for one in found])
    middle.plot(steps * batches, steps, "o", color=_STEPS, label="runs")
    for one in found:
        middle.annotate(f"{one.batch:g}", (one.steps.steps * one.batch, one.steps.steps), xytext=(5, 3), textcoords="offset points")
    if curve is not None:
        fine = np.geomspace(batches.min() / 2, batches.max() * 2, 100)
        middle.plot(curve.examples(fine), curve.steps(fine), color=_STEPS, alpha=0.5, label="(S/S_min - 1)(E/E_min - 1) = 1")
        at = curve.critical_batch
        middle.plot(curve.examples(at), curve.steps(at), "D", color=_BEST, label=f"critical batch {at:.3g}")
    middle.set(xlabel="examples to the target", ylabel="steps to the target", xscale="log", yscale="log", title="Time against compute")

    right.plot(batches, [one.dollars for one in found], "o-", color=_DOLLARS, label="dollars")
    right.plot([best.batch], [best.dollars], "D", color=_BEST, label=f"cheapest: {best.batch:g}")
    right.set(xlabel="batch", ylabel="dollars, modelled", title=f"To the target on {best.name} (modelled)")
    right.set_xscale("log", base=2)
    right.set_xticks(batches, [f"{b:g}" for b in batches])
    right.set_ylim(0, None)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return _save(figure, path)
