"""Tables fit where they are printed: no line is wider, nothing but what they say is missing, and texts fold instead of being cut."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from wsejax.report import Sheet

WORDS = st.text("abcdefgh", min_size=1, max_size=30)


def printed(sheet: Sheet, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(sheet)
    return out.getvalue().splitlines()


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), st.integers(60, 200))
def test_it_is_never_wider_and_says_what_it_leaves_out(rows, width):
    sheet = Sheet(("one", "two", "three", "four"), rows, drop=("two", "four"), fold={"three": 8})
    lines = printed(sheet, width)
    assert max(map(cell_len, lines)) <= width
    said = [line for line in lines if line.startswith("no room for:")]
    header = lines[0].split()
    left_out = [name for name in ("two", "four") if name not in header]
    assert bool(said) == bool(left_out) and all(name in said[0] for name in left_out)
    assert left_out in ([], ["two"], ["two", "four"])  # the least important first
    for kept, cells in ((0, 0), (2, 2)):  # what may not be left out is there, folded or not
        together = "".join("".join(lines).split())
        assert all(char in together for row in rows for char in row[cells]), kept


def test_with_room_for_all_of_it_nothing_is_left_out_or_folded():
    sheet = Sheet(("name", "value"), [("a" * 40, "1"), ("b", "2")], drop=("value",), fold={"name": 8})
    lines = printed(sheet, 80)
    assert len(lines) == 4 and "a" * 40 in lines[2] and lines[2].rstrip().endswith("1")


@pytest.mark.parametrize(("width", "parts"), [(80, 1), (30, 2)])
def test_texts_fold_before_columns_go(width, parts):
    sheet = Sheet(("name", "value"), [("a" * 40, "1234567890")], drop=("value",), fold={"name": 10})
    lines = printed(sheet, width)
    assert sum("a" in line for line in lines[2:]) >= parts and any("1234567890" in line for line in lines)
    assert sum(line.count("a") for line in lines[2:]) == 40
