"""Schedules: where they begin and end, how they go between, and what they refuse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sparse.oracle import zhu_gupta
from wsejax import sparse

RISING = [sparse.linear, sparse.cubic, sparse.cosine, sparse.exponential]
fractions = st.floats(0, 0.99)


@pytest.mark.parametrize("make", RISING, ids=lambda f: f.__name__)
@given(low=fractions, high=fractions, begin=st.integers(0, 50), length=st.integers(1, 100), step=st.integers(0, 200))
def test_between_its_ends_it_goes_one_way(make, low, high, begin, length, step):
    low, high = sorted((low, high))
    at = make(low, high, begin=begin, end=begin + length)
    assert at(begin) == pytest.approx(low, abs=1e-12) and at(begin + length) == high == at(begin + length + step)
    assert at(0) == at(begin)
    assert low - 1e-12 <= at(step) <= at(step + 1) + 1e-12 <= high + 2e-12


@given(final=fractions, begin=st.integers(0, 20), length=st.integers(1, 60), step=st.integers(0, 100))
def test_the_cubic_is_that_of_the_paper(final, begin, length, step):
    assert sparse.cubic(0.0, final, begin=begin, end=begin + length)(step) == pytest.approx(zhu_gupta(step, final, begin, begin + length))


def test_the_others_by_their_formulas():
    assert sparse.linear(0.2, 0.6, begin=10, end=20)(15) == pytest.approx(0.4)
    assert sparse.power(0.0, 0.8, begin=0, end=10, exponent=2)(5) == pytest.approx(0.8 - 0.8 * 0.25)
    assert sparse.cosine(0.3, 0.0, begin=0, end=300)(100) == pytest.approx(0.3 / 2 * (1 + math.cos(math.pi / 3)))
    falling = sparse.exponential(0.0, 0.99, begin=0, end=2)
    assert 1 - falling(1) == pytest.approx(0.1)
    wave = sparse.periodic(0.1, 0.5, period=8)
    assert [wave(step) for step in (0, 4, 8, 2)] == pytest.approx([0.1, 0.5, 0.1, 0.3])
    assert sparse.constant(0.7)(3) == 0.7


def test_what_cannot_be_is_refused():
    for make in RISING:
        with pytest.raises(ValueError, match="begin=5, end=5: the schedule ends before it begins"):
            make(0.0, 0.5, begin=5, end=5)
    with pytest.raises(ValueError, match=r"final=1\.0"):
        sparse.exponential(0.0, 1.0, begin=0, end=5)
    with pytest.raises(ValueError, match="period=1"):
        sparse.periodic(0.0, 0.5, period=1)
