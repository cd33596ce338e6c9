"""Pictures of what faults do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .plots import _figure, _save

OUTCOMES = ("masked", "benign", "degraded", "diverged")
_COLOURS = {"masked": "#b9bec6", "benign": "#9dbfe3", "degraded": "#d9822b", "diverged": "#c0182b"}
_LEAST, _MOST = 1e-8, 10.0
"""Relative change of the loss that is drawn at the bottom (none, or less than float32 tells apart) and at the top."""


def plot_bitflips(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Figure:
    """What became of runs with one bit flipped: shares for each kind of state and class of bits, and how far each bit moved the final
    loss.

    records: rows with `state`, `bits`, `bit` (its number), `outcome` (one of OUTCOMES) and `ratio`, the final loss over that of the
    clean run (None where it is no number; drawn at the top, as what is very large). Raises ValueError where there are no rows.
    """
    if not records:
        raise ValueError("records has no runs: there is nothing to draw; give at least one")
    figure = _figure(11, 4.2)
    shares, losses = figure.subplots(1, 2)
    groups = list(dict.fromkeys((r["state"], r["bits"]) for r in records))
    for row, group in enumerate(groups):
        of_group = [r["outcome"] for r in records if (r["state"], r["bits"]) == group]
        left = 0.0
        for outcome in OUTCOMES:
            share = 100 * of_group.count(outcome) / len(of_group)
            shares.barh(row, share, left=left, color=_COLOURS[outcome], label=outcome if row == 0 else None)
            left += share
    shares.set(xlabel="runs (%)", xlim=(0, 100), yticks=range(len(groups)), yticklabels=[f"{state}, {bits}" for state, bits in groups])
    shares.invert_yaxis()
    for state, marker in zip(dict.fromkeys(r["state"] for r in records), "os^Dv", strict=False):
        some = [r for r in records if r["state"] == state]
        height = [_MOST if r["ratio"] is None else min(max(abs(r["ratio"] - 1), _LEAST), _MOST) for r in some]
        losses.scatter([r["bit"] for r in some], height, s=22, marker=marker, c=[_COLOURS[r["outcome"]] for r in some], alpha=0.8)
        losses.scatter([], [], marker=marker, color="#27313f", label=state)
    losses.set(xlabel="bit that flipped (0: least significant)", ylabel="final loss, change from the clean run", yscale="log")
    losses.set_yticks([_LEAST, 1e-6, 1e-4, 1e-2, 1, _MOST], labels=["none", "1e-6", "1e-4", "1%", "100%", "NaN, huge"])
    losses.grid(alpha=0.3)
    losses.legend(fontsize="small", loc="center left")
    figure.legend(loc="outside lower center", ncols=len(OUTCOMES), frameon=False, handles=shares.get_legend_handles_labels()[0])
    return _save(figure, path)
