"""A picture of what a program sends over the links of a wafer."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ..compiler.traffic import Traffic
from ..hardware import Wafer
from .plots import _DEAD, _DETAIL_SIDE_PES, _figure, _save, _scale, _size


def plot_traffic(program: Traffic, wafer: Wafer, path: str | os.PathLike[str]) -> Figure:
    """Heat map of the wavelets over each physical link, both directions together, on a logarithmic scale if they span a decade.

    Up to 128 PEs a side every link is a line between its PEs; on larger wafers every PE is a dot, coloured by the busiest of its links.

    Args:
      program: what `wse.traffic(program, ...)` counted.
      wafer: where it would run: that on which it was counted, or one with the same tiles and other defects.
      path: of the picture.

    Raises:
      ValueError: other tiles, or tiles of several PEs (see `Traffic.on_links`).
    """
    north, east, south, west = program.on_links(wafer)
    between_cols = east[:, :-1] + west[:, 1:]
    between_rows = south[:-1] + north[1:]
    rows, cols = wafer.defects.shape
    busy = np.concatenate([between_cols[between_cols > 0], between_rows[between_rows > 0]])
    most, least = (int(busy.max()), int(busy.min())) if busy.size else (1, 1)
    norm = _scale(least, most)
    one_way = max(int(np.max(part)) for part in (north, east, south, west))
    figure = _figure(*_size(rows, cols))
    axes = figure.add_subplot()
    if max(rows, cols) <= _DETAIL_SIDE_PES:
        across, down = np.argwhere(between_cols), np.argwhere(between_rows)
        lines = [[(c, r), (c + 1, r)] for r, c in across] + [[(c, r), (c, r + 1)] for r, c in down]
        values = np.concatenate([between_cols[tuple(across.T)], between_rows[tuple(down.T)]])
        heat = LineCollection(lines, cmap="viridis", norm=norm, linewidths=3.0)
        heat.set_array(values)
        axes.add_collection(heat)
        axes.set(xlim=(-0.6, cols - 0.4), ylim=(rows - 0.4, -0.6), aspect="equal")
    else:
        busiest = np.zeros((rows, cols), np.int64)
        for part, here, there in (
            (between_cols, (slice(None), slice(None, -1)), (slice(None), slice(1, None))),
            (between_rows, (slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ):
            busiest[here] = np.maximum(busiest[here], part)
            busiest[there] = np.maximum(busiest[there], part)
        heat = axes.imshow(np.ma.masked_equal(busiest, 0), cmap="viridis", norm=norm, interpolation="nearest")
    if wafer.defects.dead_pe_count:
        at_row, at_col = np.nonzero(wafer.defects.dead_pes)
        axes.scatter(at_col, at_row, s=14 if rows <= _DETAIL_SIDE_PES else 4, color=_DEAD, marker="s", linewidths=0)
    axes.set(
        xlabel="physical column",
        ylabel="physical row",
        title=f"{program.wavelet_hops:,} wavelet hops between logical neighbours\n"
        f"busiest link {most if busy.size else 0:,} both ways, {one_way:,} one way",
    )
    figure.colorbar(heat, ax=axes, label="wavelets over a link, both directions", shrink=0.8)
    return _save(figure, path)
