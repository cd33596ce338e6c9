"""Seams: they go through every cell they are given, one in each column, and leave a grid in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.hardware.seams import rest, seams_through


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), st.integers(0, 2**32 - 1))
def test_the_fewest_seams_meet_every_cell_and_leave_a_grid(rows, cols, share, seed):
    cells = np.random.default_rng(seed).random((rows, cols)) < share
    seams = seams_through(cells)
    assert len(seams) == cells.sum(axis=0).max()
    assert ((seams >= 0) & (seams < rows)).all() and (np.diff(seams, axis=0) > 0).all()
    met = np.zeros_like(cells)
    met[seams, np.arange(cols)] = True
    assert met[cells].all()
    left = rest(seams, rows)
    assert left.shape == (rows - len(seams), cols) and (np.diff(left, axis=0) > 0).all()
    assert not met[left, np.arange(cols)].any()


@pytest.mark.parametrize("seed", range(5))
def test_seams_move_one_at_a_time_where_there_is_room(seed):
    rng = np.random.default_rng(seed)
    cells = np.zeros((300, 400), bool)
    cells[rng.integers(0, 300, 20), np.arange(20) * 20 + 5] = True  # one in a column, far apart
    cells[rng.integers(0, 300, 20), np.arange(20) * 20 + 5] = True
    seams = seams_through(cells)
    moving = (np.diff(seams, axis=1) != 0).sum(axis=0)
    assert moving.max() <= 1
