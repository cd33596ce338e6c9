"""Tables of points: what ships is complete, both ways of writing one are read alike, and what is wrong is named."""

from __future__ import annotations

import json

import pytest

from wsejax.cost.table import load_points, points_of, published

ENTRY = {"id": "a", "source": "S", "hardware": "CS-3", "experiment": "e", "metric": "m", "unit": "cycles", "value": 3}


def test_the_table_that_ships_has_a_source_and_a_number_for_every_point():
    points = published()
    assert len(points) == 596 == len({p.id for p in points})
    assert all(p.source and p.hardware and p.year > 2000 for p in points)
    assert {"silicon", "sdk-simulator"} < {p.measurement_class for p in points}


def test_a_list_and_a_compact_object_are_the_same_points(tmp_path):
    path = tmp_path / "points.json"
    path.write_text(json.dumps([{**ENTRY, "config": {"n": 1}, "provenance": "ignored"}]))
    compact = {"sources": ["x", "S"], "hardware": ["CS-3"], "points": [{**ENTRY, "config": {"n": 1}, "source": 1, "hardware": 0}]}
    assert load_points(path) == points_of(json.dumps(compact), "compact")
    assert load_points(path)[0].value == 3.0 and load_points(path)[0].config == {"n": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "t: line 1 is no JSON"),
        ("3", "t: holds no list of points"),
        ('{"points": "many"}', "holds no list of points"),
        ("[7]", "entry 0: is int, not an object"),
        (json.dumps([{**ENTRY, "value": "3"}]), r"entry 0 \(a\): value='3': must be a finite number"),
        (json.dumps([{**ENTRY, "value": True}]), "value=True"),
        (json.dumps([{**ENTRY, "value": float("nan")}]), "value=nan"),
        (json.dumps([{k: v for k, v in ENTRY.items() if k != "metric"}]), r"entry 0 \(a\): metric=None: must be text"),
        (json.dumps([{**ENTRY, "unit": ""}]), "unit=''"),
        (json.dumps([{**ENTRY, "config": [1]}]), r"config=\[1\]: must be an object"),
        (json.dumps([{**ENTRY, "year": "2024"}]), "year='2024'"),
        (json.dumps([{**ENTRY, "source": 4}]), "source=4: the file lists 0"),
        (json.dumps([ENTRY, ENTRY]), "id='a': twice"),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        points_of(text, "t")
