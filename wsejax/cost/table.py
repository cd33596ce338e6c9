"""Tables of published measurements: the one that ships with wsejax, and files of the same schema."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .points import Point

_TEXTS = ("id", "source", "hardware", "experiment", "metric", "unit")
_OPTIONAL_TEXTS = ("algorithm", "measurement_class", "note")


def load_points(path: str | os.PathLike[str]) -> tuple[Point, ...]:
    """The points of a JSON file: a list of entries, or an object of `points` whose `source` and `hardware` may be places in lists of
    these names (as the table that ships is written). Unknown fields are ignored. An entry that holds no measurement (a field that is
    missing or of another type, an id that was there before) becomes a point with a `problem`, so that it does not take the others with it.

    Raises:
      ValueError: no JSON, or no list of points.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return points_of(text, os.fspath(path))


@functools.cache
def published() -> tuple[Point, ...]:
    """The table that ships with wsejax: published measurements, each with its source."""
    name = "published.json"
    return points_of(importlib.resources.files("wsejax.cost").joinpath(name).read_text(encoding="utf-8"), name)


def points_of(text: str, name: str) -> tuple[Point, ...]:
    """Points of the text of a file that errors call `name`."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: line {error.lineno} is no JSON ({error.msg}); give a list of points") from error
    lists = data if isinstance(data, Mapping) else {}
    entries = data.get("points") if isinstance(data, Mapping) else data
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError(f"{name}: holds no list of points; give a list, or an object with a list called 'points'")
    points: list[Point] = []
    seen: set[str] = set()
    for n, entry in enumerate(entries):
        try:
            point = _point(entry, lists)
            if point.id in seen:
                raise ValueError(f"id={point.id!r}: twice in the file; give each point an id of its own")
        except ValueError as error:
            point = _unread(entry, n, str(error))
        seen.add(point.id)
        points.append(point)
    return tuple(points)


def _unread(entry: Any, n: int, problem: str) -> Point:
    """What can be shown of the n-th entry, which is no measurement."""
    fields = entry if isinstance(entry, Mapping) else {}
    text = lambda name: str(fields[name]) if isinstance(fields.get(name), str | int | float) else ""
    name = f"entry {n}" + (f" ({text('id')})" if text("id") else "")
    source, hardware, experiment, metric, unit = (text(field) for field in ("source", "hardware", "experiment", "metric", "unit"))
    return Point(name, source, hardware, experiment, metric, unit, math.nan, problem=problem)


def _point(entry: Any, lists: Mapping[str, Any]) -> Point:
    if not isinstance(entry, Mapping):
        raise ValueError(f"the entry is {type(entry).__name__}, not an object; a point has {', '.join(_TEXTS)} and a value")
    texts = {}
    for field in _TEXTS + _OPTIONAL_TEXTS:
        value = entry.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and field in ("source", "hardware"):
            names = lists.get("sources" if field == "source" else "hardware", ())
            if not 0 <= value < len(names):
                raise ValueError(f"{field}={value}: the file lists {len(names)} of these; give a place in the list, or the text")
            value = names[value]
        if value is None and field in _OPTIONAL_TEXTS:
            continue
        if not isinstance(value, str) or (field in _TEXTS and not value):
            raise ValueError(f"{field}={value!r}: must be text that is not empty")
        texts[field] = value
    value, config, year = entry.get("value"), entry.get("config") or {}, entry.get("year") or 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"value={value!r}: must be a finite number, in the point's unit")
    if not isinstance(config, Mapping):
        raise ValueError(f"config={config!r}: must be an object")
    if isinstance(year, bool) or not isinstance(year, int):
        raise ValueError(f"year={year!r}: must be a whole number")
    return Point(value=float(value), config=config, year=year, **texts)
