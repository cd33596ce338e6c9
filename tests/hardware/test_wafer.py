"""A wafer's tiles and devices: what fits, what the defaults are, and an error that says what to do when it does not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from wsejax.hardware import WSE3, DefectMap, UnusableWaferError, Wafer

SPEC = WSE3.scaled(12, 10)
BAD = DefectMap.uniform(SPEC, dead_pe_fraction=0.05, dead_link_fraction=0.02, seed=3)


@given(st.integers(1, 12), st.integers(1, 10))
def test_tiles_cover_the_logical_grid_and_differ_by_at_most_one(rows: int, cols: int):
    wafer = Wafer(SPEC, tiles=(rows, cols), devices=(1, 1))
    for sizes, tiles, pes in zip((wafer.tile_rows, wafer.tile_cols), wafer.tiles, wafer.logical_grid, strict=True):
        assert len(sizes) == tiles and sum(sizes) == pes
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_a_perfect_wafer_uses_every_pe():
    wafer = Wafer(SPEC, devices=(1, 1))
    assert wafer.logical_grid == (12, 10)
    assert wafer.utilisation == wafer.physical_utilisation == 1.0
    assert wafer.defects == DefectMap.none(SPEC)


def test_utilisation_counts_healthy_and_physical_pes():
    wafer = Wafer(SPEC, BAD, devices=(1, 1))
    assert wafer.logical_pes == wafer.logical_grid[0] * wafer.logical_grid[1] == wafer.remap.physical_row.size
    assert wafer.healthy_pes == 120 - 6
    assert wafer.utilisation == wafer.logical_pes / 114
    assert wafer.physical_utilisation == wafer.logical_pes / 120


@pytest.mark.parametrize(
    ("tiles", "devices"),
    [
        (None, (2, 2)),
        ((1, 1), (1, 1)),
        ((1, 4), (1, 4)),
        ((3, 2), (3, 1)),
        ((3, 3), (1, 3)),
        ((4, 3), (4, 1)),
        ((5, 7), (1, 1)),
        ((6, 1), (3, 1)),
        ((6, 6), (2, 2)),
        ((9, 8), (1, 4)),
    ],
)
def test_default_devices_are_the_most_that_divide_the_tiles(tiles, devices):
    """On four devices; of equally many, the grid nearest to a square, then the wider one."""
    assert jax.device_count() == 4
    wafer = Wafer(SPEC, tiles=tiles)
    assert wafer.devices == devices
    assert wafer.tiles == (tiles or devices)


def test_default_devices_fit_a_narrow_wafer():
    assert Wafer(WSE3.scaled(1, 8)).devices == (1, 4)
    assert Wafer(WSE3.scaled(3, 1)).devices == (3, 1)
    assert Wafer(WSE3.scaled(1, 1)).devices == (1, 1)


def test_the_mesh_is_made_of_the_first_devices(device_grid: tuple[int, int]):
    wafer = Wafer(SPEC, BAD, tiles=(4, 4), devices=device_grid)
    assert wafer.mesh.axis_names == ("y", "x")
    assert wafer.mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert (wafer.mesh.shape["y"], wafer.mesh.shape["x"]) == device_grid
    assert wafer.mesh.devices.ravel().tolist() == jax.devices()[: device_grid[0] * device_grid[1]]
    assert wafer.mesh is wafer.mesh


def test_a_given_mesh_is_kept():
    mesh = Mesh(np.array(jax.devices()[::-1]).reshape(2, 2), ("y", "x"))
    wafer = Wafer(SPEC, tiles=(4, 4), mesh=mesh)
    assert wafer.mesh is mesh and wafer.devices == (2, 2)
    assert wafer != Wafer(SPEC, tiles=(4, 4), devices=(2, 2))
    assert wafer.replace(devices=(2, 2)) == Wafer(SPEC, tiles=(4, 4), devices=(2, 2))
    assert wafer.replace(devices=(2, 2)).replace(mesh=mesh) == wafer


def test_wafers_are_values():
    def build(**changes) -> Wafer:
        return Wafer(**({"spec": WSE3.scaled(12, 10), "defects": BAD, "tiles": (4, 4), "devices": (2, 2)} | changes))

    one, same = build(), build(defects=DefectMap(BAD.dead_pes, BAD.dead_east_links, BAD.dead_south_links))
    assert one == same and hash(one) == hash(same)
    assert one.mesh == same.mesh and one == build()  # whether the mesh was made yet does not matter
    for changes in ({"defects": None}, {"tiles": (2, 2)}, {"devices": (1, 2)}, {"spec": SPEC.replace(clock_hz=1e9)}):
        assert build(**changes) != one
        assert one.replace(**changes) == build(**changes)
    with pytest.raises(AttributeError, match=r"use wafer.replace\(tiles=\.\.\.\)"):
        one.tiles = (2, 2)
    with pytest.raises(TypeError, match=r"tile: .* takes spec, defects, tiles, devices, mesh"):
        one.replace(tile=(2, 2))


def test_replace_chooses_defaults_anew():
    assert Wafer(SPEC).replace(devices=(1, 2)).tiles == (1, 2)
    assert Wafer(SPEC).replace(tiles=(3, 3)).devices == (1, 3)


def test_a_wafer_bends_its_mesh_to_fit_the_tiles():
    """Of the meshes left, one that the tiles fit on is taken, even where a larger one exists."""
    dead = np.zeros((4, 6), bool)
    dead[1:, 2:] = True  # the largest mesh is 4 x 2; one row has 6
    spec = WSE3.scaled(4, 6)
    assert Wafer(spec, DefectMap(dead), devices=(1, 1)).logical_grid == (4, 2)
    assert Wafer(spec, DefectMap(dead), tiles=(1, 5), devices=(1, 1)).logical_grid == (1, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tiles": (13, 2)},
            r"tiles=\(13, 2\): more tiles than logical PEs, of which .* has 12 x 10 at most.*fewer tiles",
        ),
        ({"devices": (1, 11)}, r"devices=\(1, 11\): more devices than logical PEs"),
        ({"tiles": (4, 3), "devices": (2, 2)}, r"tiles=\(4, 3\): not divisible by devices=\(2, 2\).*tiles=\(4, 4\)"),
        ({"devices": (2, 4)}, r"devices=\(2, 4\): 8 devices, but JAX has 4 \(cpu\).*request_cpu_devices\(8\)"),
        ({"defects": DefectMap(np.zeros((12, 11), bool))}, r"defects=.*12 x 10 physical PEs.*spec.scaled\(12, 11\)"),
        ({"defects": 0.02}, "defects=0.02: give a DefectMap"),
        ({"spec": "WSE3"}, "spec='WSE3': give a WaferSpec"),
        ({"mesh": "2x2"}, "mesh='2x2': give a jax.sharding.Mesh"),
        ({"mesh": Mesh(np.array(jax.devices()), ("x",))}, r"mesh=Mesh\(.*two axes"),
        ({"devices": (1, 1), "mesh": "2x2"}, "give one of the two"),
    ]
    + [
        ({name: grid}, f"{name}=.*: give two positive integers")
        for name in ("tiles", "devices")
        for grid in ((0, 1), (-1, 2), (1.5, 2), (True, 1), (2,), (1, 2, 3), 4, "22")
    ],
)
def test_each_bad_argument_has_one_clear_error(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Wafer(**({"spec": SPEC} | arguments))


def test_defects_that_leave_nothing():
    with pytest.raises(UnusableWaferError, match="the largest has 0 rows and 0 cols"):
        Wafer(SPEC, DefectMap(np.ones((12, 10), bool)), tiles=(2, 2))


def test_defects_that_leave_too_little_for_the_tiles():
    dead = np.ones((12, 10), bool)
    dead[3:5, 2:9] = False
    with pytest.raises(ValueError, match=r"tiles=\(4, 4\).*of which .* has 2 x 7 at most"):
        Wafer(SPEC, DefectMap(dead), tiles=(4, 4))


def test_repr_tells_the_whole_story():
    text = repr(Wafer(SPEC, BAD, tiles=(4, 4), devices=(2, 2)))
    rows, cols = Wafer(SPEC, BAD).logical_grid
    for part in (
        "WSE-3 scaled to 12 x 10",
        "12 x 10 PEs",
        "6 PEs (5.000%), 4 links",
        f"{rows} x {cols} PEs (",
        "mean 1.",
    ):
        assert part in text
    assert "tiles         4 x 4 of" in text and "devices       2 x 2" in text


def test_what_dies_later_changes_the_mesh_and_not_the_tiles():
    wafer = Wafer(WSE3.scaled(16, 16), tiles=(4, 4), devices=(2, 2), policy="largest")
    after = wafer.kill(pes=[(3, 5)], links=[((0, 1), (0, 0)), ((4, 4), (5, 4))])
    assert after.defects.dead_pe_count == 1 and after.defects.dead_link_count == 2
    assert after.defects.dead_east_links[0, 0] and after.defects.dead_south_links[4, 4]
    assert (after.tiles, after.devices, after.policy) == (wafer.tiles, wafer.devices, wafer.policy)
    assert after.logical_pes < wafer.logical_pes and wafer.defects.dead_pe_count == 0
    assert after.kill(pes=[(3, 5)]) == after


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        ({"pes": [(16, 0)]}, r"PE \(16, 0\) is off the wafer: rows go from 0 to 15"),
        ({"links": [((0, 0), (0, -1))]}, "off the wafer"),
        ({"links": [((0, 0), (1, 1))]}, "leads nowhere"),
    ],
)
def test_what_cannot_die(dead, message):
    with pytest.raises(ValueError, match=message):
        Wafer(WSE3.scaled(16, 16)).kill(**dead)
