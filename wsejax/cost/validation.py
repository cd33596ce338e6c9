"""The model against published measurements: which group a point belongs to, what the group's constants are, and how far off it is.

Constants are fitted to the table that ships (`table.published`) by least squares of log(predicted / measured), and kept in
`fitted.json` with those of five folds. A point of that table is also predicted with the constants of the fold that left it out; a point
that the table does not hold was never seen, and its only prediction is with the constants as they ship. So "held out" always means: by
constants that this point had no part in.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.resources
import json
import math
import pkgutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from . import measured
from .points import Group, Point, Unpredictable
from .table import published

FOLDS = 5
_FEW = 5  # fewer points than that: each is left out in turn
_BOUNDS = ("upper_bound", "lower_bound")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One point, in its own unit. `held_out` is by constants that the point had no part in; None where no other point would fix them."""

    point: Point
    group: str
    predicted: float
    held_out: float | None

    @property
    def error(self) -> float:
        """|predicted / measured - 1|."""
        return abs(self.predicted / self.point.value - 1.0)

    @property
    def held_out_error(self) -> float | None:
        return None if self.held_out is None else abs(self.held_out / self.point.value - 1.0)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A published inequality, and whether the model keeps it. It counts for no error."""

    point: Point
    group: str
    predicted: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class Excluded:
    """A point without a prediction, and why."""

    point: Point
    reason: str


@dataclasses.dataclass(frozen=True)
class Fit:
    """Constants of a group: by all points, and by all but those of each fold. `ids` are the points, in order."""

    constants: Mapping[str, float]
    folds: tuple[Mapping[str, float], ...] = ()
    ids: tuple[str, ...] = ()

    def without(self, point: Point) -> Mapping[str, float] | None:
        """Constants that `point` had no part in."""
        if point.id not in self.ids or not self.constants:
            return self.constants
        return self.folds[_fold(point.id, self.ids)] if self.folds else None


@dataclasses.dataclass(frozen=True)
class GroupErrors:
    """Errors of one group's points; None where there is no point."""

    name: str
    points: int
    constants: Mapping[str, float]
    aim: float | None
    median: float | None
    p90: float | None
    held_out_median: float | None
    held_out_p90: float | None


@dataclasses.dataclass(frozen=True)
class Validation:
    """What `validate` found. `groups` in the order in which they claim points, those with points only."""

    groups: tuple[GroupErrors, ...]
    predictions: tuple[Prediction, ...]
    bounds: tuple[Bound, ...]
    excluded: tuple[Excluded, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON."""
        of = lambda p: {
            "id": p.id,
            "experiment": p.experiment,
            "metric": p.metric,
            "unit": p.unit,
            "measured": None if math.isnan(p.value) else p.value,
        }
        return {
            "groups": [dict(dataclasses.asdict(g), constants=dict(g.constants)) for g in self.groups],
            "points": [
                {**of(p.point), "group": p.group, "modelled": p.predicted, "modelled_held_out": p.held_out, "error": p.error}
                for p in self.predictions
            ],
            "bounds": [{**of(b.point), "group": b.group, "modelled": b.predicted, "kept": b.kept} for b in self.bounds],
            "excluded": [{**of(e.point), "reason": e.reason} for e in self.excluded],
        }


@functools.cache
def groups() -> tuple[Group, ...]:
    """Those of all files of `wsejax.cost.measured`, file by file in the order of the alphabet."""
    found: list[Group] = []
    for module in sorted(pkgutil.iter_modules(measured.__path__), key=lambda m: m.name):
        found += getattr(importlib.import_module(f"{measured.__name__}.{module.name}"), "GROUPS", ())
    return tuple(found)


def claimant(point: Point, among: Iterable[Group] | None = None) -> Group | None:
    """The first group that claims a point."""
    return next((g for g in (groups() if among is None else among) if g.claims(point)), None)


def predict(group: Group, point: Point, constants: Mapping[str, float]) -> float:
    """The group's prediction, in the point's unit.

    Raises:
      Unpredictable: with the reason; also where the model stumbles over the config, whatever way, or gives no positive number. Files come
        from anywhere, and one odd point must not take the others with it; that no published point ends so is held by a test.
    """
    if point.problem:
        raise Unpredictable(point.problem)
    if point.value <= 0:
        raise Unpredictable(f"value={point.value!r}: errors are relative, and need a positive value")
    try:
        value = float(group.predict(point, constants))
    except Unpredictable:
        raise
    except Exception as error:
        raise Unpredictable(f"config={dict(point.config)!r} cannot be read ({type(error).__name__}: {error})") from error
    if not math.isfinite(value) or value <= 0:
        raise Unpredictable(f"the model gives {value!r}, which is no {point.unit}")
    return value


def _counts(point: Point) -> bool:
    return not any(bound in point.metric for bound in _BOUNDS)


def _predictable(group: Group, points: Iterable[Point]) -> list[Point]:
    """The group's points that count for its errors."""
    starts, out = _starts(group), []
    for point in points:
        try:
            predict(group, point, starts)
        except Unpredictable:
            continue
        if _counts(point):
            out.append(point)
    return out


def _starts(group: Group) -> dict[str, float]:
    return {name: c.start for name, c in group.constants.items()}


def fit(group: Group, points: Sequence[Point]) -> dict[str, float]:
    """The group's constants by least squares of log(predicted / measured), where an error above a tenth counts less (soft L1)."""
    if not group.constants or not points:
        return _starts(group)
    constants = list(group.constants.values())
    scale = np.array([abs(c.start) or c.high for c in constants])
    low, high = (np.array([getattr(c, side) for c in constants]) / scale for side in ("low", "high"))

    def residuals(x: np.ndarray) -> np.ndarray:
        values = dict(zip(group.constants, (x * scale).tolist(), strict=True))
        return np.array([math.log(predict(group, p, values) / p.value) for p in points])

    start = np.clip([c.start for c in constants] / scale, low, high)
    found = scipy.optimize.least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.1, x_scale="jac").x
    found = np.where(found - low < 1e-9, low, found)  # the search comes close to a bound, and never meets it
    return dict(zip(group.constants, (found * scale).tolist(), strict=True))


def _fold(point_id: str, ids: Sequence[str]) -> int:
    """Of which fold a point is: by its id alone, or one fold each where they are few."""
    return list(ids).index(point_id) if len(ids) < _FEW else zlib.crc32(point_id.encode()) % FOLDS


def fit_with_folds(group: Group, points: Iterable[Point]) -> Fit:
    """The constants by all points that the group predicts, and by all but those of each fold."""
    mine = sorted(_predictable(group, points), key=lambda p: p.id)
    ids = tuple(p.id for p in mine)
    if not group.constants:
        return Fit({}, (), ids)
    count = len(ids) if len(ids) < _FEW else FOLDS
    folds = []
    for fold in range(count if len(ids) > 1 else 0):
        folds.append(fit(group, [p for p in mine if _fold(p.id, ids) != fold]))
    return Fit(fit(group, mine), tuple(folds), ids)


def fit_all(points: Sequence[Point] | None = None) -> dict[str, Fit]:
    """Every group's constants, fitted anew: some seconds. None: to the table that ships."""
    points = published() if points is None else points
    claims: dict[str, list[Point]] = {g.name: [] for g in groups()}
    for point in points:
        if not point.problem and (group := claimant(point)):
            claims[group.name].append(point)
    return {g.name: fit_with_folds(g, claims[g.name]) for g in groups()}


@functools.cache
def shipped_fits() -> Mapping[str, Fit]:
    """Those of `fitted.json`. A group that it does not hold, or that has other constants by now, is fitted anew."""
    text = importlib.resources.files("wsejax.cost").joinpath("fitted.json").read_text(encoding="utf-8")
    kept = {name: Fit(f["constants"], tuple(f["folds"]), tuple(f["ids"])) for name, f in json.loads(text).items()}
    fits = {}
    for group in groups():
        known = kept.get(group.name)
        if known is None or set(known.constants) != set(group.constants):
            known = fit_with_folds(group, [p for p in published() if claimant(p) is group])
        fits[group.name] = known
    return fits


def validate(points: Sequence[Point] | None = None, fits: Mapping[str, Fit] | None = None) -> Validation:
    """Predict every point, or say why not.

    Args:
      points: any, of the schema of `Point`; None: the table that ships.
      fits: constants of each group; None: those that ship.
    """
    points = published() if points is None else points
    fits = shipped_fits() if fits is None else fits
    predictions, bounds, excluded = [], [], []
    for point in points:
        if point.problem:
            excluded.append(Excluded(point, point.problem))
            continue
        group = claimant(point)
        if group is None:
            excluded.append(Excluded(point, f"no model for experiment {point.experiment!r} with metric {point.metric!r}"))
            continue
        one = fits[group.name]
        try:
            value = predict(group, point, one.constants)
            if not _counts(point):
                kept = value <= point.value if "upper_bound" in point.metric else value >= point.value
                bounds.append(Bound(point, group.name, value, kept))
                continue
            without = one.without(point)
            held_out = None if without is None else predict(group, point, without)
            predictions.append(Prediction(point, group.name, value, held_out))
        except Unpredictable as reason:
            excluded.append(Excluded(point, str(reason)))
    errors = [_errors(g, [p for p in predictions if p.group == g.name], fits[g.name]) for g in groups()]
    return Validation(tuple(e for e in errors if e.points), tuple(predictions), tuple(bounds), tuple(excluded))


def _errors(group: Group, predictions: Sequence[Prediction], one: Fit) -> GroupErrors:
    of = lambda errors, q: float(np.quantile(errors, q)) if errors else None
    errors = [p.error for p in predictions]
    held_out = [p.held_out_error for p in predictions if p.held_out_error is not None]
    numbers = of(errors, 0.5), of(errors, 0.9), of(held_out, 0.5), of(held_out, 0.9)
    return GroupErrors(group.name, len(predictions), one.constants, group.aim, *numbers)
