"""How far off the model is where it was measured: what is printed beside every modelled time, and the fitted constants. And what has no
price."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any


class UnknownTripsError(ValueError):
    """A price asked for as one number depends on a loop whose length is known only when the program runs."""


@dataclasses.dataclass(frozen=True)
class ModelError:
    """Median absolute relative error of a group; `held_out` where every point was predicted by constants that it had no part in.
    `fitted` says whether there are constants at all."""

    group: str
    median: float
    points: int
    held_out: bool
    fitted: bool = True

    def __str__(self) -> str:
        apart = "5-fold" if self.points >= 5 else "each left out in turn"
        how = "nothing fitted" if not self.fitted else apart if self.held_out else "in-sample"
        if self.points == 1:
            return f"error {self.median:.1%} ({how}) on 1 published point"
        return f"median error {self.median:.1%} ({how}) on {self.points} published points"


@functools.cache
def _fitted() -> Mapping[str, Any]:
    return json.loads(importlib.resources.files("wsejax.cost").joinpath("fitted.json").read_text(encoding="utf-8"))


def _of(group: str) -> Mapping[str, Any]:
    if group not in _fitted():
        raise ValueError(f"group={group!r}: has no fitted constants; known are {', '.join(map(repr, _fitted()))}; run experiments.fit")
    return _fitted()[group]


def model_error(group: str) -> ModelError:
    """Of a group of published points, such as "2-D stencil, WSE-3", as `experiments.fit` last found it.

    Raises:
      ValueError: an unknown group, or one without a point.
    """
    known = _of(group)
    if not known["points"]:
        raise ValueError(f"group={group!r}: no published point counts for it, so there is no error to state")
    held_out = known["held_out_median"] is not None
    return ModelError(group, known["held_out_median"] if held_out else known["median"], known["points"], held_out, bool(known["constants"]))


def constants(group: str) -> dict[str, float]:
    """The fitted constants of a group by name; their units and meanings stand in `wsejax.cost.measured`.

    Raises:
      ValueError: an unknown group.
    """
    return dict(_of(group)["constants"])
