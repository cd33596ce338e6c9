"""Bank conflicts counted by a formula against addresses walked through one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.kernels.banks import same_bank, stencil_conflicts
from wsejax.kernels.pe.stencil import box, star


def walked(tile, offsets, itemsize_bytes) -> int:
    """Passes in which every cell's two reads fall on one of the four pairs of banks."""
    reach = [max(abs(o[d]) for o in offsets) for d in range(len(tile))]
    shape = [n + 2 * r + (d == 1) for d, (n, r) in enumerate(zip(tile, reach, strict=True))]
    address = np.arange(int(np.prod(shape))).reshape(shape) * itemsize_bytes
    second = address.size * itemsize_bytes
    passes = 0
    for offset in offsets:
        if not any(offset):
            continue
        clash = []
        for cell in itertools.product(*(range(n) for n in tile)):
            at = tuple(c + r for c, r in zip(cell, reach, strict=True))
            there = tuple(a + o for a, o in zip(at, offset, strict=True))
            apart = second + address[at] - address[there]
            clash.append(apart % 16 == 0)
        assert len(set(clash)) == 1, "a pass meets the same banks all the way"
        passes += clash[0]
    return passes


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.sampled_from([star, box]), st.sampled_from([2, 4]))
def test_conflicts_are_those_of_the_addresses(height, width, radius, shape, itemsize_bytes):
    offsets = shape(radius)
    assert stencil_conflicts((height, width), offsets, itemsize_bytes) == walked((height, width), offsets, itemsize_bytes)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
def test_columns_of_cells_too(height, width, column, radius):
    tile, offsets = (height, width, column), star(radius, 3)
    assert stencil_conflicts(tile, offsets, 4) == walked(tile, offsets, 4)


def test_four_words_apart_is_the_same_bank_and_one_is_not():
    assert same_bank(4, 4) and same_bank(8, 2) and same_bank(0, 4) and same_bank(-4, 4)
    assert not same_bank(1, 4) and not same_bank(4, 2)


@pytest.mark.parametrize(("side", "conflicts"), [(20, 0), (60, 0), (64, 0), (10, 4), (30, 4), (25, 4)])
def test_the_rows_that_are_known_to_be_slow(side, conflicts):
    """Radius 2: sides of 25 and 30 take 13 to 14 cycles a cell, of 20 and 64 about 10 (SDK simulator)."""
    assert stencil_conflicts((side, side), star(2), 4) == conflicts
