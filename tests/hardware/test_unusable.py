"""Wafers on which little or nothing fits: what is still found, and errors with counts and the nearest mesh that can be had."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wsejax.hardware import WSE3, DefectMap, UnusableWaferError, Wafer, remap

SPEC = WSE3.scaled(12, 12).replace(usable_rows=10, usable_cols=10)  # two spare rows, two spare columns


def dead(rows: tuple[int, ...] = (), cols: tuple[int, ...] = ()) -> DefectMap:
    out = np.zeros((12, 12), bool)
    out[list(rows)] = True
    out[:, list(cols)] = True
    return DefectMap(out)


@pytest.mark.parametrize("bound", [None, 1, 3])
def test_a_dead_column_in_the_middle_leaves_the_larger_half(bound):
    cut = dead(cols=(6,))
    assert remap(SPEC, cut, max_dilation=bound).physical_col.shape == (10, 6)
    assert remap(SPEC, cut, policy="largest", max_dilation=bound).physical_col.shape == (12, 6)
    with pytest.raises(UnusableWaferError) as caught:
        remap(SPEC, cut, policy="spares", max_dilation=bound)
    for part in (
        "the fixed grid of 10 x 10 logical PEs",
        "72 healthy PEs of 144 reach each other",
        "of 12 physical rows 0 have 10 of them or more, of 12 columns 6 have 10",
        "(2 rows and 2 columns are spare)",
        "dead parts cut the wafer into 2 regions, of 72, 60 PEs",
        "the largest has 10 rows and 6 cols",
        "policy='usable'",
    ):
        assert part in str(caught.value)
    assert (caught.value.rows, caught.value.cols) == (10, 6)


def test_dead_links_cut_a_wafer_as_well():
    east = np.zeros((12, 12), bool)
    east[:, 3] = True
    cut = DefectMap(np.zeros((12, 12), bool), east)
    assert remap(SPEC, cut, policy="largest").physical_col.shape == (12, 8)
    with pytest.raises(UnusableWaferError, match="cut the wafer into 2 regions, of 96, 48 PEs"):
        remap(SPEC, cut, min_cols=9)


def test_a_wafer_whose_links_are_all_dead_is_a_heap_of_single_pes():
    east, south = np.ones((12, 12), bool), np.ones((12, 12), bool)
    east[:, -1] = south[-1] = False
    links = DefectMap(np.zeros((12, 12), bool), east, south)
    assert remap(SPEC, links, max_dilation=2).physical_col.shape == (1, 1)
    with pytest.raises(UnusableWaferError, match=r"into 144 regions, of 1, 1, 1, 1, \.\.\. PEs.*the largest has 1 rows and 1 cols"):
        Wafer(SPEC, links, policy="spares", devices=(1, 1))


@pytest.mark.parametrize("bound", [None, 1, 3])
def test_dead_borders_are_what_spares_are_for(bound):
    """The grid of a program is any 10 x 10 PEs: the rows and columns of the host halo are not kept free."""
    for border in (dead(rows=(0,), cols=(0,)), dead(rows=(11,), cols=(11,)), dead(rows=(0, 11), cols=(0, 11))):
        assert remap(SPEC, border, policy="spares", max_dilation=bound).physical_col.shape == (10, 10)
    with pytest.raises(UnusableWaferError, match=r"of 12 physical rows 9 have 10 of them or more.*the largest has 9 rows and 10 cols"):
        remap(SPEC, dead(rows=(0, 1, 11), cols=(0, 11)), policy="spares", max_dilation=bound)


@pytest.mark.parametrize("policy", ["usable", "spares", "largest"])
@pytest.mark.parametrize("bound", [None, 3])
def test_nothing_is_left(policy, bound):
    with pytest.raises(UnusableWaferError, match=r"0 healthy PEs of 144 .*the largest has 0 rows and 0 cols\. Use a map"):
        remap(SPEC, DefectMap(np.ones((12, 12), bool)), policy=policy, max_dilation=bound)


def test_more_than_a_policy_gives():
    with pytest.raises(UnusableWaferError, match=r"no mesh of 11 x 1 .*policy='usable' gives at most 10 x 10 of the 12 x 12 physical PEs"):
        remap(SPEC, DefectMap.none(SPEC), min_rows=11)
    assert remap(SPEC, DefectMap.none(SPEC), min_rows=11, policy="largest").rows == 12


def test_what_an_error_offers_can_be_had():
    """The nearest mesh within the bound, and the one without."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        defects = DefectMap(rng.random((12, 12)) < 0.25)
        with pytest.raises(UnusableWaferError) as caught:
            remap(SPEC, defects, policy="spares", max_dilation=3)
        left = caught.value
        mesh = remap(SPEC, defects, left.rows, left.cols, max_dilation=3)
        assert mesh.max_dilation <= 3 and mesh.rows >= left.rows and mesh.cols >= left.cols


def test_spares_without_a_bound_take_rows_that_bend_where_straight_ones_do_not_do():
    """Three dead PEs in each of three rows: too many for either way of straight lines."""
    pes = np.zeros((12, 12), bool)
    pes[np.repeat([2, 5, 8], 3), [1, 4, 8, 2, 6, 9, 3, 5, 10]] = True
    mesh = remap(SPEC.replace(usable_cols=11), DefectMap(pes), policy="spares")
    assert (mesh.rows, mesh.cols) == (10, 11)


@pytest.mark.parametrize("pe", [(1.5, 0), 3, (1, 2, 3), "ab"])
def test_what_is_no_pe(pe):
    with pytest.raises(ValueError, match=re.escape(f"PE {pe!r}: give two integers")):
        DefectMap.none(SPEC).with_dead(pes=[pe])


@pytest.mark.parametrize("pe", [(12, 0), (0, 12), (-1, 0)])
def test_pes_off_the_wafer(pe):
    with pytest.raises(ValueError, match=re.escape(f"PE {pe} is off the wafer: rows go from 0 to 11, columns from 0 to 11")):
        DefectMap.none(SPEC).with_dead(pes=[pe])


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (((0, 0), (0, 2)), "leads nowhere"),
        (((0, 0), (0, 0)), "leads nowhere"),
        (((0, 0), (1, 1)), "leads nowhere"),
        (((0, 11), (0, 12)), r"PE \(0, 12\) is off the wafer"),
        (((0, 0),), "give two neighbouring PEs"),
        ((0, 0), "PE 0: give two integers"),
    ],
)
def test_links_to_nowhere(link, message):
    with pytest.raises(ValueError, match=message):
        DefectMap.none(SPEC).with_dead(links=[link])


@pytest.mark.parametrize("arguments", [{"max_dilation": 2.5}, {"min_rows": "2"}, {"min_cols": True}, {"max_dilation": float("nan")}])
def test_numbers_that_are_no_counts(arguments):
    ((name, _),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}=.*: give an integer of at least 1"):
        remap(SPEC, DefectMap.none(SPEC), **arguments)
