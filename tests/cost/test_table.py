"""Tables of points: what ships is complete, both ways of writing one are read alike, and what is wrong is named and set aside."""

from __future__ import annotations

import json

import pytest

from wsejax.cost.table import load_points, points_of, published
from wsejax.cost.validation import validate

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
    [("{", "t: line 1 is no JSON"), ("3", "t: holds no list of points"), ('{"points": "many"}', "holds no list of points")],
)
def test_a_file_that_holds_no_points_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        points_of(text, "t")


BAD = [
    (7, "is int, not an object"),
    ({**ENTRY, "id": "b", "value": "12"}, "value='12': must be a finite number"),
    ({**ENTRY, "id": "b", "value": None}, "value=None"),
    ({**ENTRY, "id": "b", "value": True}, "value=True"),
    ({**ENTRY, "id": "b", "value": float("nan")}, "value=nan"),
    ({**{k: v for k, v in ENTRY.items() if k != "metric"}, "id": "b"}, "metric=None: must be text"),
    ({**ENTRY, "id": "b", "hardware": ""}, "hardware=''"),
    ({**ENTRY, "id": 5}, "id=5: must be text"),
    ({**ENTRY, "id": "b", "config": [1]}, r"config=[1]: must be an object"),
    ({**ENTRY, "id": "b", "year": "2024"}, "year='2024'"),
    ({**ENTRY, "id": "b", "source": 4}, "source=4: the file lists 0"),
    (ENTRY, "id='a': twice"),
]


@pytest.mark.parametrize(("entry", "words"), BAD, ids=[words[:12] for _, words in BAD])
def test_a_bad_entry_is_told_apart_and_takes_no_other_with_it(entry, words):
    points = points_of(json.dumps([ENTRY, entry, {**ENTRY, "id": "c"}]), "t")
    assert [p.problem == "" for p in points] == [True, False, True]
    assert words in points[1].problem and points[1].id.startswith("entry 1")
    found = validate(points)
    assert sorted(e.point.id for e in found.excluded) == sorted(p.id for p in points)  # nobody models experiment "e"
    assert next(e.reason for e in found.excluded if e.point is points[1]) == points[1].problem
    assert "NaN" not in json.dumps(found.to_dict())


def test_all_bad_entries_at_once_leave_the_good_points_their_predictions():
    good = next(p for p in published() if p.id == "alcf-west-8")
    one = {k: getattr(good, k) for k in ("id", "source", "hardware", "experiment", "metric", "unit", "value", "algorithm")}
    points = points_of(json.dumps([{**one, "config": dict(good.config)}, ENTRY, *(entry for entry, _ in BAD)]), "t")
    found = validate(points)
    assert [p.point.id for p in found.predictions] == ["alcf-west-8"]
    assert len(found.excluded) == len(BAD) + 1
