"""Pictures: what is dead, left out or in use must be so in the drawing; the drawing is read back to tell."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from wsejax.hardware import WSE3, DefectMap, Wafer
from wsejax.report import plot_loss, plot_wafer, plot_yield
from wsejax.report.plots import _DEAD, _UNUSED


def wafer_of(rows=16, cols=12, tiles=(4, 3), **defects) -> Wafer:
    spec = WSE3.scaled(rows, cols)
    return Wafer(spec, DefectMap.uniform(spec, seed=1, **defects), tiles=tiles, devices=(1, 1))


def cells_of(figure) -> np.ndarray:
    """RGB of every PE as drawn."""
    image = figure.axes[0].images[0]
    return image.to_rgba(image.get_array())[..., :3]


def painted(cells, colour) -> np.ndarray:
    return np.isclose(cells, to_rgb(colour)).all(-1)


def test_dead_unused_and_used_cells_are_those_of_the_wafer(tmp_path):
    wafer = wafer_of(dead_pe_fraction=0.05, dead_link_fraction=0.02)
    cells = cells_of(plot_wafer(wafer, tmp_path / "wafer.png"))
    used = np.zeros(wafer.defects.shape, bool)
    used[wafer.remap.physical_row, wafer.remap.physical_col] = True
    np.testing.assert_array_equal(painted(cells, _DEAD), wafer.defects.dead_pes)
    np.testing.assert_array_equal(painted(cells, _UNUSED), ~used & ~wafer.defects.dead_pes)
    assert wafer.defects.dead_pes.any() and used.any()


def test_neighbouring_tiles_have_different_colours(tmp_path):
    wafer = wafer_of(dead_pe_fraction=0.0)
    cells = cells_of(plot_wafer(wafer, tmp_path / "wafer.png"))
    on_mesh = cells[wafer.remap.physical_row, wafer.remap.physical_col]
    tile_row = np.repeat(np.arange(4), wafer.tile_rows)
    tile_col = np.repeat(np.arange(3), wafer.tile_cols)
    changes_down = (on_mesh[1:] != on_mesh[:-1]).any(-1)
    changes_right = (on_mesh[:, 1:] != on_mesh[:, :-1]).any(-1)
    np.testing.assert_array_equal(changes_down, np.broadcast_to((np.diff(tile_row) > 0)[:, None], changes_down.shape))
    np.testing.assert_array_equal(changes_right, np.broadcast_to(np.diff(tile_col) > 0, changes_right.shape))


def test_long_routes_and_the_borders_of_dies_are_drawn(tmp_path):
    spec = WSE3.scaled(140, 80)
    wafer = Wafer(spec, DefectMap.uniform(spec, dead_pe_fraction=0.05, seed=1), tiles=(2, 2), devices=(1, 1))
    drawn = plot_wafer(wafer, tmp_path / "wafer.png").axes[0].collections
    lines = {item.get_label(): item.get_segments() for item in drawn if isinstance(item, LineCollection)}
    hops = np.concatenate([wafer.remap.east_hops.ravel(), wafer.remap.south_hops.ravel()])
    assert len(lines["detours"]) == (hops >= 3).sum() > 0
    for line in lines["detours"]:
        steps = np.abs(np.diff(line, axis=0)).sum(axis=1)
        assert set(steps) <= {0, 1} and steps.sum() >= 3
        col, row = np.asarray(line, int).T
        assert not wafer.defects.dead_pes[row, col].any()
    borders = {round(line[0][1] + 0.5) for line in lines["dies"] if line[0][1] == line[1][1]}
    assert borders == set(range(spec.die_rows, 140, spec.die_rows))


def test_lines_follow_the_logical_mesh_and_bars_are_the_dead_links(tmp_path):
    wafer = wafer_of(dead_pe_fraction=0.05, dead_link_fraction=0.05)
    figure = plot_wafer(wafer, tmp_path / "wafer.png")
    lines = {item.get_label(): item for item in figure.axes[0].collections if isinstance(item, LineCollection)}
    mesh, bars = lines["mesh"], lines["dead links"]
    rows, cols = wafer.logical_grid
    lines = mesh.get_segments()
    assert len(lines) == rows + cols
    for r in range(rows):
        np.testing.assert_array_equal(lines[r][:, 1], wafer.remap.physical_row[r])
        np.testing.assert_array_equal(lines[r][:, 0], wafer.remap.physical_col[r])
    for c in range(cols):
        np.testing.assert_array_equal(lines[rows + c][:, 0], wafer.remap.physical_col[:, c])
    assert len(bars.get_segments()) == wafer.defects.dead_link_count > 0
    for bar in bars.get_segments():
        (x, y), upright = bar.mean(0), bar[0, 0] == bar[1, 0]
        links = wafer.defects.dead_east_links if upright else wafer.defects.dead_south_links
        assert links[int(np.floor(y)), int(np.floor(x))]


def test_a_full_wafer_is_drawn_with_its_dead_pes_seen(tmp_path):
    wafer = Wafer(WSE3, DefectMap.sample(WSE3, per_mm2=0.001, seed=0), tiles=(8, 8), devices=(1, 1))
    figure = plot_wafer(wafer, tmp_path / "wafer.png")
    dots = next(item for item in figure.axes[0].collections if not isinstance(item, LineCollection))
    assert len(dots.get_offsets()) == wafer.defects.dead_pe_count > 10
    picture = imread(tmp_path / "wafer.png")[..., :3]
    assert np.isclose(picture, to_rgb(_DEAD), atol=0.02).all(-1).sum() > wafer.defects.dead_pe_count
    height, width = picture.shape[:2]
    assert 500 < width < 4000 and 500 < height < 4000


def test_loss_curves_are_the_rows(tmp_path):
    rows = [{"step": k, "loss": 5.0 / k} | ({"validation_loss": 6.0 / k} if k % 10 == 0 else {}) for k in range(1, 41)]
    figure = plot_loss(rows, tmp_path / "loss.png")
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["training, each step"], [[row["step"], row["loss"]] for row in rows])
    np.testing.assert_allclose(lines["validation"], [[k, 6.0 / k] for k in (10, 20, 30, 40)])
    assert imread(tmp_path / "loss.png").std() > 0.01


@pytest.mark.parametrize("count", [1, 20, 57])
def test_running_mean_of_a_constant_is_that_constant(tmp_path, count):
    figure = plot_loss([{"step": k, "loss": 3.0} for k in range(1, count + 1)], tmp_path / "loss.png")
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_ydata(), 3.0)


def test_no_rows_is_an_error_and_pyplot_is_never_imported(tmp_path):
    with pytest.raises(ValueError, match="metrics has no rows"):
        plot_loss([], tmp_path / "loss.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_one_bound_on_hops_has_no_trade_off_to_draw(tmp_path):
    rows = [{"utilisation": 0.9 + n / 1000, "mean_dilation": 1.03 + n / 1e4, "max_dilation_allowed": 3} for n in range(4)]
    figure = plot_yield(rows, tmp_path / "yield.png")
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert not axes.lines and all(float(tick).is_integer() for tick in axes.get_yticks())  # wafers are whole
        assert not axes.xaxis.get_offset_text().get_text()
    assert len(plot_yield([*rows, dict(rows[0], max_dilation_allowed=4)], tmp_path / "yield.png").axes) == 4
