"""The model against published measurements: a table, what was left out and why, and a scatter plot."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Group as Renderables
from rich.text import Text

from ..cost.validation import GroupErrors, Validation, groups
from .plots import _figure, _save
from .tables import Sheet

_MARKERS = "os^Dv<>PX*"
_PEERS = "Published errors of others: 4% for collectives on WSE-2 (HPDC 2024), 3.65% Calculon, 4.1% LLMCompass, 5.82% GenZ."
_NOTE = (
    "Errors are |modelled / measured - 1|. Held out: predicted by constants that the point had no part in (five folds, or each left out in "
    "turn where there are fewer than five). Rates of single instructions, hops and links of WSE-3 were read from the same sources."
)


def validation_table(v: Validation) -> Renderables:
    """Errors and constants group by group, published inequalities, and the points without a prediction, for a rich console."""
    units = {g.name: {name: c.unit for name, c in g.constants.items()} for g in groups()}
    rows = [
        (
            g.name, str(g.points), *(_percent(e) for e in (g.median, g.p90, g.held_out_median, g.held_out_p90)), _aim(g),
            _constants(g.constants, units.get(g.name, {})),
        )
        for g in v.groups
    ]  # fmt: skip
    table = Sheet(
        ("group", "points", "median", "p90", "held out", "its p90", "aim", "fitted constants"),
        rows, title="Modelled against published measurements", left=(0, 7), drop=("p90", "its p90"),
        fold={"group": 18, "fitted constants": 18},
    )  # fmt: skip
    notes = (Text(note) for note in ("", _NOTE, _PEERS, ""))
    return Renderables(table, *notes, *([_bounds(v), Text()] if v.bounds else []), *([_excluded(v)] if v.excluded else []))


def plot_validation(v: Validation, path: str | os.PathLike[str]) -> Figure:
    """Modelled over measured on logarithmic axes, and below it their ratio, with lines at a factor of 1.2. A group has a colour and a mark;
    points are predicted by constants that they had no part in, where other points fix these.

    Raises:
      ValueError: no point has a prediction.
    """
    if not v.predictions:
        raise ValueError("the validation holds no prediction: there is nothing to draw; see its excluded points for the reasons")
    of: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for p in v.predictions:
        of[p.group].append((p.point.value, p.predicted if p.held_out is None else p.held_out))
    figure = _figure(12, 9)
    (above, below) = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    values = np.array([pair for pairs in of.values() for pair in pairs])
    ends = np.array([values.min() / 2.0, values.max() * 2.0])
    for factor, style in ((1.0, "-"), (1.2, ":"), (1 / 1.2, ":")):
        above.plot(ends, ends * factor, style, color="#5b6675", linewidth=0.9)
        below.axhline(factor, linestyle=style, color="#5b6675", linewidth=0.9)
    colours = matplotlib.color_sequences["tab10"]  # few that tell apart; groups of the same colour have other marks
    for n, (name, pairs) in enumerate(sorted(of.items())):
        measured, modelled = (np.array(side) for side in zip(*pairs, strict=True))
        mark, colour = _MARKERS[n // len(colours) % len(_MARKERS)], colours[n % len(colours)]
        style = dict(marker=mark, color=colour, markersize=4, alpha=0.75, linewidth=0)
        above.plot(measured, modelled, label=name, **style)
        below.plot(measured, np.clip(modelled / measured, 0.5, 2.0), **style)
    above.set(xscale="log", yscale="log", ylabel="modelled", xlim=ends, ylim=ends)
    above.set_title(f"Modelled, held out where a fit had a part in them, against {len(v.predictions)} published measurements")
    below.set(
        xlabel="measured (each point in its own unit)", ylabel="modelled / measured (cut off at 0.5 and 2)", yscale="log", ylim=(0.5, 2.0)
    )
    below.set_yticks([0.5, 0.7, 1 / 1.2, 1.0, 1.2, 1.4, 2.0], labels=["0.5", "0.7", "0.83", "1", "1.2", "1.4", "2"])
    below.minorticks_off()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    handles, _ = above.get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle=":", color="#5b6675", label="a factor of 1.2"))
    figure.legend(handles=handles, loc="outside right upper", fontsize="x-small", frameon=False)
    return _save(figure, path)


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:.1%}"


def _aim(g: GroupErrors) -> str:
    if g.aim is None:
        return ""
    error = g.median if g.held_out_median is None else g.held_out_median
    return f"{g.aim:.0%} " + ("met" if error is not None and error <= g.aim else "missed")


def _constants(constants: Mapping[str, float], units: Mapping[str, str]) -> str:
    if not constants:
        return "none"
    return ", ".join(_constant(name, value, units.get(name, "")) for name, value in constants.items())


def _constant(name: str, value: float, unit: str) -> str:
    """ "network_gbs" in GB/s -> "network 1.5 GB/s"; a pure number has no unit."""
    for spelled in (f"_{unit}", *(("_gb_per_second", "_gbs") if unit == "GB/s" else ())):
        name = name.removesuffix(spelled)
    return f"{name.replace('_', ' ')} {value:.4g} {'' if unit == '1' else unit}".strip()


def _bounds(v: Validation) -> Sheet:
    rows = []
    for b in v.bounds:
        sign = "<=" if "upper_bound" in b.point.metric else ">="
        bound = f"{sign} {b.point.value:.4g} {b.point.unit}"
        rows.append((b.point.id, b.point.metric, bound, f"{b.predicted:.4g}", "yes" if b.kept else "no"))
    columns = ("point", "metric", "bound", "modelled", "kept")
    return Sheet(columns, rows, "Published inequalities", left=range(5), fold={"point": 12, "metric": 12, "bound": 12})


def _excluded(v: Validation) -> Sheet:
    of = defaultdict(list)
    for e in v.excluded:
        of[e.point.experiment, e.reason].append(e.point.id)
    rows = [(experiment, ", ".join(ids), reason) for (experiment, reason), ids in of.items()]
    title = f"Points without a prediction ({len(v.excluded)})"
    return Sheet(("experiment", "points", "reason"), rows, title, left=range(3), fold={"experiment": 16, "points": 14, "reason": 30})
