"""The largest rectangle without defects, against all rectangles; and the bound on the PEs of any mesh."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hardware.test_remap import small_wafers
from wsejax.hardware import WSE3, DefectMap, most_logical_pes, remap
from wsejax.hardware.clear import clear_rectangle
from wsejax.hardware.routes import live_links


@given(small_wafers(), st.integers(1, 3), st.integers(1, 3), st.integers(3, 7), st.integers(3, 7))
def test_no_rectangle_is_larger(wafer, min_rows, min_cols, max_rows, max_cols):
    _, defects = wafer
    east, south = live_links(defects)
    best = 0
    for (r, r2), (c, c2) in itertools.product(*(itertools.combinations(range(side + 1), 2) for side in defects.shape)):
        fits = min_rows <= r2 - r <= max_rows and min_cols <= c2 - c <= max_cols
        if fits and not defects.dead_pes[r:r2, c:c2].any() and east[r:r2, c : c2 - 1].all() and south[r : r2 - 1, c:c2].all():
            best = max(best, (r2 - r) * (c2 - c))
    placed = clear_rectangle(defects, (min_rows, min_cols), (max_rows, max_cols))
    assert (placed[0].size if placed else 0) == best
    if placed:
        (r, c), (rows, cols) = (int(part[0, 0]) for part in placed), placed[0].shape
        assert east[r : r + rows, c : c + cols - 1].all() and south[r : r + rows - 1, c : c + cols].all()
        assert not defects.dead_pes[placed].any() and min_rows <= rows <= max_rows and min_cols <= cols <= max_cols


def test_one_dead_pe_costs_a_whole_column_or_row():
    dead = np.zeros((10, 8), bool)
    dead[4, 4] = True
    defects = DefectMap(dead)
    assert most_logical_pes(defects, 10, 8) == 72
    assert most_logical_pes(defects, 10, 8, max_dilation=1) == 40
    assert most_logical_pes(defects, 9, 6) == 54
    assert most_logical_pes(DefectMap(np.ones((3, 3), bool)), 3, 3) == most_logical_pes(DefectMap(np.ones((3, 3), bool)), 3, 3, 1) == 0


@pytest.mark.parametrize("seed", range(3))
def test_links_of_one_hop_leave_a_clear_rectangle(seed):
    spec = WSE3.scaled(60, 70)
    defects = DefectMap.uniform(spec, dead_pe_fraction=0.005, dead_link_fraction=0.002, seed=seed)
    mesh = remap(spec, defects, policy="largest", max_dilation=1)
    assert mesh.max_dilation == 1
    assert mesh.rows * mesh.cols == most_logical_pes(defects, 60, 70, max_dilation=1)


def test_a_mesh_may_lie_turned():
    """At most 2 x 6, and the only clear place is 6 x 2."""
    spec = WSE3.scaled(6, 6).replace(usable_rows=2, usable_cols=6)
    dead = np.ones((6, 6), bool)
    dead[:, 2:4] = False
    mesh = remap(spec, DefectMap(dead), max_dilation=1)
    assert (mesh.rows, mesh.cols, mesh.max_dilation) == (2, 6, 1)
    assert most_logical_pes(DefectMap(dead), 2, 6, max_dilation=1) == 12
