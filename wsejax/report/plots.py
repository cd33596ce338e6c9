"""Pictures of a run and of a wafer. Figures are objects of their own: pyplot's global state and a display are never
touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..hardware import Wafer

_DEAD, _UNUSED, _DETOUR = "#c0182b", "#b9bec6", "#7a2fb0"
_DETOUR_HOPS, _MOST_DETOURS = 3, 5000
# two hues in two shades: tiles that touch differ, and the mesh stays readable over all four
_TILES = ("#dcebf9", "#fdf0d5", "#b9d7f1", "#f9dfa8")
_DETAIL_SIDE_PES = 128
"""Above this side a PE is smaller than a dot of the picture: lines are thinned and single links left out."""


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, unit: str = "nats per token") -> Figure:
    """Training loss of each step, its running mean, and validation loss where rows have it; over steps.

    metrics: rows with `step` and `loss`, some with `validation_loss`. Raises ValueError where there are no rows.
    """
    if not metrics:
        raise ValueError("metrics has no rows: there is no loss to draw; train at least one step")
    steps = np.array([row["step"] for row in metrics])
    losses = np.array([row["loss"] for row in metrics], float)
    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9dbfe3", linewidth=0.8, label="training, each step")
    if len(losses) >= 20:
        axes.plot(
            steps,
            _running_mean(losses, len(losses) // 20),
            color="#1f5fa8",
            linewidth=1.6,
            label="training, running mean",
        )
    seen = [(row["step"], row["validation_loss"]) for row in metrics if row.get("validation_loss") is not None]
    if seen:
        axes.plot(*zip(*seen, strict=True), "o-", color="#d9822b", linewidth=1.2, markersize=4, label="validation")
        step, loss = seen[-1]
        axes.annotate(f"{loss:.3f}", (step, loss), xytext=(-4, 8), textcoords="offset points", ha="right", color="#a85d12")
    axes.set(xlabel="step", ylabel=f"loss ({unit})", title="Training")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, path)


def plot_wafer(wafer: Wafer, path: str | os.PathLike[str]) -> Figure:
    """The physical grid with what is dead in it, and the logical mesh over it.

    Every physical PE is a cell: red where dead, grey where the mesh leaves it out, else coloured by the tile that it
    computes for. Dark lines follow the logical rows and columns, violet ones the routes of logical links of three hops or more; red bars
    are dead links, dashed lines the borders of dies. On a wafer of more than 128 PEs a side only a few of the rows and columns are drawn,
    and no dead links.
    """
    rows, cols = wafer.spec.rows, wafer.spec.cols
    detailed = max(rows, cols) <= _DETAIL_SIDE_PES
    figure = _figure(*_size(rows, cols))
    axes = figure.add_subplot()
    axes.imshow(
        _cells(wafer),
        cmap=ListedColormap([*map(to_rgb, (_UNUSED, _DEAD, *_TILES))]),
        vmin=0,
        vmax=5,
        interpolation="nearest",
    )
    axes.add_collection(_mesh_lines(wafer, every=1 if detailed else max(1, max(rows, cols) // 40)))
    axes.add_collection(_die_borders(wafer))
    detours = _detours(wafer)
    axes.add_collection(LineCollection(detours, colors=_DETOUR, linewidths=1.6 if detailed else 0.8, label="detours"))
    handles: list[Any] = [Patch(color=_TILES[2], label=f"in use, by tile ({wafer.tiles[0]} x {wafer.tiles[1]})")]
    if wafer.defects.dead_pe_count:
        if not detailed:  # one cell is less than a dot
            at_row, at_col = np.nonzero(wafer.defects.dead_pes)
            axes.scatter(at_col, at_row, s=6, color=_DEAD, linewidths=0)
        handles.append(Patch(color=_DEAD, label=f"dead PE ({wafer.defects.dead_pe_count})"))
    if wafer.defects.dead_link_count:
        if detailed:
            axes.add_collection(_dead_links(wafer.defects.dead_east_links, wafer.defects.dead_south_links))
        handles.append(Line2D([], [], color=_DEAD, linewidth=2.5, label=f"dead link ({wafer.defects.dead_link_count})"))
    if detours:
        handles.append(Line2D([], [], color=_DETOUR, linewidth=1.6, label=f"route of {_DETOUR_HOPS} hops or more ({len(detours)})"))
    handles += [
        Patch(color=_UNUSED, label="healthy, left out"),
        Line2D(
            [],
            [],
            color="#27313f",
            linewidth=1,
            label="logical rows and columns" if detailed else "some logical rows and columns",
        ),
    ]
    if detailed:
        axes.set_xticks(np.arange(-0.5, cols), minor=True)
        axes.set_yticks(np.arange(-0.5, rows), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    logical_rows, logical_cols = wafer.logical_grid
    axes.set(
        xlabel="physical column",
        ylabel="physical row",
        title=f"{wafer.spec.name}: {rows} x {cols} PEs, logical mesh {logical_rows} x {logical_cols}",
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return _save(figure, path)


def plot_yield(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Figure:
    """Histograms of the logical mesh's size and mean hops over many wafers, and what the hops allowed buy: PEs in use against the longest
    and against the mean hops, with the share of healthy PEs and the bound that no method can pass.

    records: rows with `utilisation`, `mean_dilation` and `max_dilation_allowed`, and perhaps `healthy` and `utilisation_bound`; rows
    without `utilisation` (no mesh was found) are left out. Raises ValueError where none is left.
    """
    found = [r for r in records if "utilisation" in r]
    if not found:
        raise ValueError("records has no wafer with a mesh: there is nothing to draw; allow more hops or fewer defects")
    bounds = sorted({r["max_dilation_allowed"] for r in found})
    several = len(bounds) > 1  # of one bound there is no trade-off to draw
    figure = _figure(10, 7.2 if several else 3.8)
    panels = figure.subplots(2 if several else 1, 2, squeeze=False)
    size, hops = panels[0]
    for bound in bounds:
        some = [r for r in found if r["max_dilation_allowed"] == bound]
        size.hist([100 * r["utilisation"] for r in some], bins=12, alpha=0.6, label=f"at most {bound} hops")
        hops.hist([r["mean_dilation"] for r in some], bins=12, alpha=0.6, label=f"at most {bound} hops")
    average = lambda key, bound: float(np.mean([r[key] for r in found if r["max_dilation_allowed"] == bound]))
    used = [100 * average("utilisation", bound) for bound in bounds]
    means = [average("mean_dilation", bound) for bound in bounds]
    for axes, at in zip(panels[1:].ravel(), (bounds, means), strict=False):
        axes.plot(at, used, "o-" if at is bounds else "o", color="#1f5fa8", label="logical mesh")
        for key, label, colour, style in (
            ("healthy", "healthy PEs", "#d9822b", "--"),
            ("utilisation_bound", "bound for any method", "#7a4b8f", ":"),
        ):
            if all(key in r for r in found):
                line = sorted(zip(at, [100 * average(key, bound) for bound in bounds], strict=True))
                axes.plot(*zip(*line, strict=True), style, color=colour, label=label)
    for bound, x, y in zip(bounds, means, used, strict=True) if several else ():
        panels[1, 1].annotate(f"{bound} hops", (x, y), xytext=(5, -3), textcoords="offset points", fontsize="small")
    size.set(xlabel="PEs in the logical mesh (% of physical)", ylabel="wafers")
    hops.set(xlabel="mean hops of a logical link", ylabel="wafers")
    for axes in (size, hops):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if several:
        longest, mean = panels[1]
        longest.set(xlabel="most hops of a logical link", ylabel="PEs in use (% of physical)", xticks=bounds)
        mean.set(xlabel="mean hops of a logical link", ylabel="PEs in use (% of physical)")
    for axes in panels.ravel():
        axes.ticklabel_format(useOffset=False, axis="x")
        axes.ticklabel_format(useOffset=False, axis="y")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return _save(figure, path)


def _figure(width_inches: float, height_inches: float) -> Figure:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> Figure:
    figure.savefig(path, dpi=150, metadata={"Software": "wsejax"})
    return figure


def _scale(least: float, most: float) -> Normalize:
    """Of colours: logarithmic from a decade on; within one it would have next to no ticks."""
    return LogNorm(least, most) if most >= 10 * least else Normalize(min(least, 0.9 * most), most)


def _size(rows: int, cols: int) -> tuple[float, float]:
    longest = max(rows, cols)
    return max(6.0, 8.0 * cols / longest), max(4.0, 8.0 * rows / longest) + 1.0


def _running_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Mean over a window centred on each value (a trailing one would lag behind the loss), cut off at the ends."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    at = np.arange(len(values))
    begin, end = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return (total[end] - total[begin]) / (end - begin)


def _cells(wafer: Wafer) -> np.ndarray:
    """int [rows, cols]: 0 left out, 1 dead, 2 to 5 one of four tile colours."""
    cells = np.zeros((wafer.spec.rows, wafer.spec.cols), np.int8)
    tile_row = np.repeat(np.arange(wafer.tiles[0]), wafer.tile_rows)[:, None]
    tile_col = np.repeat(np.arange(wafer.tiles[1]), wafer.tile_cols)[None, :]
    rows, cols = tile_row.size, tile_col.size  # physically a program may use less than the logical mesh
    cells[wafer.remap.physical_row[:rows, :cols], wafer.remap.physical_col[:rows, :cols]] = (
        2 + 2 * (tile_row % 2) + (tile_row + tile_col) % 2
    )
    cells[wafer.defects.dead_pes] = 1
    return cells


def _die_borders(wafer: Wafer) -> LineCollection:
    """Where one die ends and the next begins."""
    rows, cols, spec = wafer.spec.rows, wafer.spec.cols, wafer.spec
    lines = [[(-0.5, r - 0.5), (cols - 0.5, r - 0.5)] for r in range(spec.die_rows, rows, spec.die_rows)]
    lines += [[(c - 0.5, -0.5), (c - 0.5, rows - 0.5)] for c in range(spec.die_cols, cols, spec.die_cols)]
    return LineCollection(lines, colors="#5b6675", linewidths=0.9, linestyles="dashed", label="dies")


def _detours(wafer: Wafer) -> list[np.ndarray]:
    """The (column, row) of the PEs along each route of `_DETOUR_HOPS` hops or more; some thousands at most, for an eye takes no more."""
    mesh, routes = wafer.remap, wafer.routes
    place = np.stack([mesh.physical_col, mesh.physical_row], axis=-1)
    step = np.array([(0, -1), (1, 0), (0, 1), (-1, 0), (0, 0)])  # (column, row) of each direction, and of none
    out: list[np.ndarray] = []
    for steps, start in ((routes.east, place[:, :-1]), (routes.south, place[:-1])):
        far = (steps >= 0).sum(axis=-1) >= _DETOUR_HOPS
        points = start[far][:, None] + np.concatenate([np.zeros((far.sum(), 1, 2), int), np.cumsum(step[steps[far]], axis=1)], axis=1)
        out += list(points[:_MOST_DETOURS])
    return out


def _mesh_lines(wafer: Wafer, every: int) -> LineCollection:
    """One polyline through the PEs of each logical row and of each logical column."""
    points = np.stack([wafer.remap.physical_col, wafer.remap.physical_row], axis=-1)
    lines = [*points[::every], *points.swapaxes(0, 1)[::every]]
    return LineCollection(lines, colors="#27313f", linewidths=0.7 if every == 1 else 0.4, alpha=0.75, label="mesh")


def _dead_links(east: Bool[np.ndarray, "rows cols"], south: Bool[np.ndarray, "rows cols"]) -> LineCollection:
    """A bar across each dead link, on the border of the two PEs it would join."""
    bars = [[(c + 0.5, r - 0.4), (c + 0.5, r + 0.4)] for r, c in np.argwhere(east)]
    bars += [[(c - 0.4, r + 0.5), (c + 0.4, r + 0.5)] for r, c in np.argwhere(south)]
    return LineCollection(bars, colors=_DEAD, linewidths=2.5, label="dead links")
