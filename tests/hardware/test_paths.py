"""Static routes: shortest, over live links only, counted exactly, and free of deadlock."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

from tests.hardware.test_remap import small_wafers
from wsejax.hardware import WSE3, DefectMap, Remap, remap, static_routes
from wsejax.hardware.paths import EAST, NORTH, SOUTH, WEST, in_cycles
from wsejax.hardware.routes import live_links

MOVE = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}


def walked(mesh: Remap, steps: np.ndarray, r: int, c: int) -> list[tuple[int, int]]:
    """The PEs of a route, one step at a time."""
    places = [(int(mesh.physical_row[r, c]), int(mesh.physical_col[r, c]))]
    for step in steps[r, c]:
        if step >= 0:
            (row, col), (down, right) = places[-1], MOVE[int(step)]
            places.append((row + down, col + right))
    return places


@given(small_wafers(max_side=8))
def test_every_route_is_a_shortest_one_over_live_links_and_is_counted(wafer):
    spec, defects = wafer
    if defects.dead_pes.all():
        return
    mesh = remap(spec, defects)
    routes = static_routes(defects, mesh)
    east, south = live_links(defects)
    loads = {"east": np.zeros(defects.shape, int), "south": np.zeros(defects.shape, int)}
    for steps, hops, (down, right) in ((routes.east, mesh.east_hops, (0, 1)), (routes.south, mesh.south_hops, (1, 0))):
        for r, c in np.ndindex(hops.shape):
            places = walked(mesh, steps, r, c)
            assert len(places) - 1 == hops[r, c]
            assert places[-1] == (mesh.physical_row[r + down, c + right], mesh.physical_col[r + down, c + right])
            for (row, col), (row2, col2) in itertools.pairwise(places):
                upright, at = row != row2, (min(row, row2), min(col, col2))
                assert (south if upright else east)[at]
                loads["south" if upright else "east"][at] += 1
    np.testing.assert_array_equal(routes.east_load, loads["east"])
    np.testing.assert_array_equal(routes.south_load, loads["south"])
    assert routes.congestion == max(loads["east"].max(), loads["south"].max())


def test_a_perfect_wafer_uses_every_link_once():
    spec = WSE3.scaled(5, 7)
    defects = DefectMap.none(spec)
    routes = static_routes(defects, remap(spec, defects))
    assert routes.congestion == 1 and routes.colours == 4
    assert routes.east_load.sum() == 5 * 6 and routes.south_load.sum() == 4 * 7


@pytest.mark.parametrize("seed", range(3))
def test_no_deadlock_with_a_colour_for_each_direction(seed):
    spec = WSE3.scaled(120, 120)
    defects = DefectMap.uniform(spec, dead_pe_fraction=0.02, dead_link_fraction=0.005, seed=seed)
    mesh = remap(spec, defects, policy="largest", max_dilation=5)
    assert static_routes(defects, mesh).colours == 4


def test_a_cycle_of_channels_is_found():
    """Four routes that each turn one corner of a square wait for each other; three do not."""
    start = np.array([(1, 0), (0, 0), (0, 1), (1, 1)]).T
    steps = np.array([(NORTH, EAST), (EAST, SOUTH), (SOUTH, WEST), (WEST, NORTH)], np.int8)
    assert in_cycles((2, 2), start, steps).all()
    assert not in_cycles((2, 2), start[:, :3], steps[:3]).any()
