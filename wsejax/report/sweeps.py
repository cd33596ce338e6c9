"""Pictures of many training runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .plots import _figure, _save


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, unit: str = "nats per byte") -> Figure:
    """Validation loss over the first setting that was varied, a line for each combination of the others; a cross where a run diverged.

    rows: each with `varied` (name -> value), `validation_loss` and `diverged`. Raises ValueError where there are none.
    """
    if not rows:
        raise ValueError("rows is empty: there is no run to draw; sweep over at least one value")
    first, *others = rows[0]["varied"]
    lines: dict[str, list[tuple[Any, float | None]]] = {}
    for row in rows:
        label = ", ".join(f"{name} {row['varied'][name]}" for name in others)
        lines.setdefault(label, []).append((row["varied"][first], None if row["diverged"] else row["validation_loss"]))
    known = [row["varied"][first] for row in rows]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
    place = {value: value if numbers else list(dict.fromkeys(known)).index(value) for value in known}
    found = [row["validation_loss"] for row in rows if not row["diverged"]]
    top = max(found, default=1.0)
    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    for number, (label, points) in enumerate(lines.items()):
        kept = [(place[x], y) for x, y in points if y is not None]
        lost = [place[x] for x, y in points if y is None]
        colour = f"C{number % 10}"
        axes.plot([x for x, _ in kept], [y for _, y in kept], "o-", color=colour, label=label or None)
        axes.plot(lost, np.full(len(lost), top), "x", color=colour)
    if numbers and min(known) > 0 and max(known) / min(known) >= 4:
        axes.set_xscale("log")
    if not numbers:
        axes.set_xticks(list(dict.fromkeys(place.values())), [str(value) for value in dict.fromkeys(known)])
    axes.set(xlabel=first.replace("_", " "), ylabel=f"validation loss ({unit})", title="Sweep")
    axes.grid(alpha=0.3)
    if others:
        axes.legend(fontsize="small")
    return _save(figure, path)
