"""Published measurements, and what it takes to predict them: the schema of a point, and a group of points that share a model.

A group has few constants, each with a physical meaning, fitted to the points by `wsejax.cost.validation`; everything else comes from
the machine (`System`) and the closed forms beside the kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Point:
    """One published measurement. Unknown fields of a file are ignored; `config` is the experiment's own.

    A `problem` stands for an entry that could not be read: its value is no number, and no model predicts it.
    """

    id: str
    source: str
    hardware: str
    experiment: str
    metric: str
    unit: str
    value: float
    algorithm: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    year: int = 0
    measurement_class: str = "silicon"
    note: str = ""
    problem: str = ""  # of an entry of a file that holds no measurement: what is wrong with it


class Unpredictable(Exception):
    """Raised by a model for a point that it does not cover; the message is the reason that is printed."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """A fitted number: where the search starts, between what bounds, in what unit, and what it stands for."""

    start: float
    low: float
    high: float
    unit: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Points that one model predicts.

    Attributes:
      claims: whether a point belongs here. Every point goes to the first group that claims it.
      predict: (point, constants by name) -> the value in the point's own unit. Raises `Unpredictable` with a reason.
      constants: fitted together over the group's points, by least squares of log(predicted / measured).
      aim: median absolute relative error that the project aims at, None for none.
    """

    name: str
    claims: Callable[[Point], bool]
    predict: Callable[[Point, Mapping[str, float]], float]
    constants: Mapping[str, Constant] = dataclasses.field(default_factory=dict)
    aim: float | None = None
