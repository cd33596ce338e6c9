"""Meshes whose logical links have a bound on their hops, and the policies that say how large a mesh is wanted."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hardware.test_remap import hops_from, places, small_wafers
from wsejax.hardware import WSE3, DefectMap, Remap, UnusableWaferError, remap
from wsejax.hardware.mend import Mender
from wsejax.hardware.routes import hops_up_to, shortest_hops


def assert_a_mesh(embedding: Remap, defects: DefectMap) -> None:
    """Distinct healthy PEs, and the hops of shortest routes between those that are neighbours."""
    row, col = embedding.physical_row, embedding.physical_col
    assert not defects.dead_pes[row, col].any()
    assert np.unique(row * defects.shape[1] + col).size == row.size
    place = np.stack([row, col])
    np.testing.assert_array_equal(embedding.east_hops, shortest_hops(defects, place[:, :, :-1], place[:, :, 1:]))
    np.testing.assert_array_equal(embedding.south_hops, shortest_hops(defects, place[:, :-1], place[:, 1:]))


@given(small_wafers(max_side=9), st.integers(1, 7), st.sampled_from(["usable", "largest", "spares"]))
def test_no_link_is_longer_than_the_bound(wafer, max_dilation, policy):
    spec, defects = wafer
    try:
        embedding = remap(spec, defects, policy=policy, max_dilation=max_dilation)
    except UnusableWaferError:
        return
    assert_a_mesh(embedding, defects)
    assert embedding.max_dilation <= max_dilation


@given(small_wafers(max_side=9))
def test_a_bound_that_does_not_bind_costs_nothing(wafer):
    spec, defects = wafer
    if defects.dead_pes.all():
        return
    free = remap(spec, defects, policy="largest")
    bounded = remap(spec, defects, policy="largest", max_dilation=max(free.max_dilation, 81))
    if free.max_dilation <= 5:
        assert bounded.rows * bounded.cols >= free.rows * free.cols


@given(small_wafers(), st.integers(1, 8))
def test_hops_up_to_a_limit(wafer, limit):
    _, defects = wafer
    healthy = [(int(r), int(c)) for r, c in np.argwhere(~defects.dead_pes)]
    if not healthy:
        return
    pairs = list(itertools.product(healthy, healthy))
    start, end = (np.array(part).T for part in zip(*pairs, strict=True))
    hops = {pe: hops_from(defects, pe) for pe in healthy}
    want = [h if (h := hops[a].get(b, -1)) <= limit else -1 for a, b in pairs]
    np.testing.assert_array_equal(hops_up_to(defects, start, end, limit), want)


@pytest.mark.parametrize("seed", range(3))
def test_the_public_yield_of_a_wafer(seed):
    """About 46 defects a wafer (0.001/mm2): more than 900,000 PEs remain, with no link above three hops."""
    defects = DefectMap.sample(WSE3, per_mm2=0.001, seed=seed)
    embedding = remap(WSE3, defects, policy="largest", max_dilation=3)
    assert_a_mesh(embedding, defects)
    assert embedding.rows * embedding.cols >= 960_000
    assert embedding.max_dilation <= 3 and embedding.mean_dilation < 1.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_percent_of_the_pes_and_half_a_percent_of_the_links_dead(seed):
    defects = DefectMap.uniform(WSE3, dead_pe_fraction=0.02, dead_link_fraction=0.005, seed=seed)
    embedding = remap(WSE3, defects, policy="largest", max_dilation=5)
    assert_a_mesh(embedding, defects)
    assert embedding.rows * embedding.cols / WSE3.pes >= 0.955
    assert embedding.max_dilation <= 5 and embedding.mean_dilation <= 1.35


def test_spares_give_the_fixed_grid_or_say_that_they_are_used_up():
    spec = dataclasses.replace(WSE3.scaled(20, 20), usable_rows=18, usable_cols=18)
    few = DefectMap.uniform(spec, dead_pe_fraction=0.02, seed=0)
    embedding = remap(spec, few, policy="spares")
    assert (embedding.rows, embedding.cols) == (18, 18)
    many = DefectMap.uniform(spec, dead_pe_fraction=0.3, seed=0)
    with pytest.raises(UnusableWaferError, match=r"the fixed grid of 18 x 18 .* the spares are used up: .*the largest has \d+ rows"):
        remap(spec, many, policy="spares")


def test_largest_uses_what_a_program_is_never_given():
    spec = dataclasses.replace(WSE3.scaled(20, 20), usable_rows=18, usable_cols=17)
    perfect = DefectMap.none(spec)
    assert remap(spec, perfect).physical_row.shape == (18, 17)
    assert remap(spec, perfect, policy="largest").physical_row.shape == (20, 20)


@pytest.mark.parametrize(("arguments", "message"), [({"policy": "best"}, "policy='best'"), ({"max_dilation": 0}, "max_dilation=0")])
def test_malformed(arguments, message):
    spec = WSE3.scaled(4, 4)
    with pytest.raises(ValueError, match=message):
        remap(spec, DefectMap.none(spec), **arguments)


def test_a_bound_that_cannot_be_kept_says_what_could():
    spec = WSE3.scaled(1, 6)
    defects = DefectMap(np.zeros((1, 6), bool), np.array([[False, False, True, False, False, False]]))
    assert remap(spec, defects, min_cols=3).cols == 3
    spec = WSE3.scaled(3, 5)
    dead = np.zeros((3, 5), bool)
    dead[1, 2] = dead[0, 2] = True
    with pytest.raises(
        UnusableWaferError, match=r"max_dilation=1 and .*: no mesh of 3 x 4 .*the largest has 3 rows and 2 cols.* links of up to 6 hops"
    ):
        remap(spec, DefectMap(dead), min_rows=3, min_cols=4, max_dilation=1)


def test_mending_a_link_moves_few():
    """One logical PE was put far away; a neighbour of its place is idle."""
    spec = WSE3.scaled(6, 6)
    defects = DefectMap.none(spec)
    row, col = (part.copy() for part in np.indices((6, 5)))
    row[2, 2], col[2, 2] = 5, 5
    place = np.stack([row, col])
    east, south = (shortest_hops(defects, a, b) > 2 for a, b in ((place[:, :, :-1], place[:, :, 1:]), (place[:, :-1], place[:, 1:])))
    assert not any(part.any() for part in Mender(defects, row, col, 2).mend(east, south))
    place = np.stack([row, col])
    assert shortest_hops(defects, place[:, :, :-1], place[:, :, 1:]).max() <= 2
    assert shortest_hops(defects, place[:, :-1], place[:, 1:]).max() <= 2
    assert len(places(Remap(row, col, np.zeros((6, 4)), np.zeros((5, 5))))) == 6
