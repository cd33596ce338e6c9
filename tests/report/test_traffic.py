"""The heat map shows the links that carry something, and how much."""

from __future__ import annotations

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from matplotlib.collections import LineCollection

import wsejax as wse
from wsejax import fabric

GRID = P("y", "x")


def counted(rows: int, cols: int, tiles: tuple[int, int]) -> wse.Traffic:
    spec = wse.WSE3.scaled(rows, cols)
    defects = wse.DefectMap.uniform(spec, dead_pe_fraction=0.05, seed=3)
    wafer = wse.Wafer(spec, defects, tiles=tiles, devices=(1, 1), execution="physical")
    program = wse.wafer_map(lambda v: fabric.run_along(v, "x", lambda a, b: a + b), wafer, (GRID,), GRID)
    return wse.traffic(program, np.ones((*tiles, 3), np.float32))


def test_every_busy_link_is_a_line_coloured_by_what_it_carries(tmp_path):
    traffic = counted(12, 14, (8, 10))
    figure = wse.plot_traffic(traffic, traffic.wafer, tmp_path / "traffic.png")
    (heat,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    north, east, south, west = traffic.on_links()
    want = {}
    for r, c in np.ndindex(12, 14):
        if c < 13 and (n := east[r, c] + west[r, c + 1]):
            want[(c, r), (c + 1, r)] = n
        if r < 11 and (n := south[r, c] + north[r + 1, c]):
            want[(c, r), (c, r + 1)] = n
    drawn = {tuple(map(tuple, np.asarray(line, int))): v for line, v in zip(heat.get_segments(), heat.get_array(), strict=True)}
    assert drawn == want
    most = max(int(np.max(part)) for part in (north, east, south, west))
    assert f"{max(want.values()):,} both ways, {most:,} one way" in figure.axes[0].get_title()
    assert (tmp_path / "traffic.png").stat().st_size > 10_000


def test_a_large_wafer_is_a_picture_of_its_pes(tmp_path):
    traffic = counted(140, 20, (100, 16))
    figure = wse.plot_traffic(traffic, traffic.wafer, tmp_path / "traffic.png")
    image = figure.axes[0].images[0].get_array()
    north, east, south, west = traffic.on_links()
    busy = east + west + south + north
    busy[:, 1:] += east[:, :-1]
    busy[:, :-1] += west[:, 1:]
    busy[1:] += south[:-1]
    busy[:-1] += north[1:]
    np.testing.assert_array_equal(~np.ma.getmaskarray(image), busy > 0)


def test_a_program_that_sends_nothing_has_an_empty_picture(tmp_path):
    wafer = counted(12, 14, (8, 10)).wafer
    silent = wse.traffic(wse.wafer_map(lambda v: v + 1, wafer, (GRID,), GRID), np.ones((8, 10), np.float32))
    figure = wse.plot_traffic(silent, wafer, tmp_path / "traffic.png")
    assert "0 wavelet hops" in figure.axes[0].get_title()


def test_traffic_of_other_tiles_is_refused(tmp_path):
    traffic = counted(12, 14, (8, 10))
    with pytest.raises(ValueError, match=r"tiles=\(4, 4\).*same tiles"):
        wse.plot_traffic(traffic, wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(4, 4), devices=(1, 1)), tmp_path / "traffic.png")
