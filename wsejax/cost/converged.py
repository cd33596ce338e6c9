"""What it costs until a model is good enough: steps to a target loss, read from runs, times the modelled step of a machine.

The cheapest batch size is no matter of speed alone: larger batches take fewer steps, and more examples. Steps are measured, on any machine
(they do not depend on it); hours, energy and dollars are modelled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from .compare import Row
from .tco import Inputs, Tco, cost_per_converged_model, inputs_of, tco

LEAST_ROWS = 4  # of a power law, which has three constants


class TargetNotReachedError(ValueError):
    """No step of a run has the loss that was asked for."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps to a target, a fraction where it lies between two measurements.

    extrapolated: True if the run never came so far, and a power law says how long it would have taken.
    """

    steps: float
    extrapolated: bool = False

    def __str__(self) -> str:
        return f"{self.steps:,.0f}" + (" (extrapolated)" if self.extrapolated else "")


def steps_to(rows: Sequence[Mapping[str, Any]], target: float, *, metric: str = "validation_loss", extrapolate: bool = False) -> Steps:
    """The step at which a run first has `target` or less, on straight lines between its measurements.

    Args:
      rows: of metrics.jsonl (`wsejax.training.read_metrics`): `step`, and in some rows the metric.
      target: of the metric, which falls.
      metric: its name. Of "loss", the loss of one batch, the first low one would count: smooth it first.
      extrapolate: where the target is not reached, ask the power law (`power_law`) of all rows from step 1 on.

    Raises:
      TargetNotReachedError: no row has it; or not even the power law, which levels off above it or does not fall.
      ValueError: no row has the metric, or, to extrapolate, fewer than four do.
    """
    seen = [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric) is not None and math.isfinite(row[metric])]
    if not seen:
        raise ValueError(
            f"rows: none has a finite {metric!r}; there are {', '.join(sorted({name for row in rows for name in row})) or 'no rows'}"
        )
    before: tuple[float, float] | None = None
    for step, value in seen:
        if value <= target:
            return Steps(step if before is None else before[0] + (step - before[0]) * (before[1] - target) / (before[1] - value))
        before = step, value
    best, last = min(value for _, value in seen), seen[-1][0]
    if not extrapolate:
        raise TargetNotReachedError(
            f"target={target}: not reached in {last:g} steps, the lowest {metric} is {best:.4g}; train longer, or extrapolate"
        )
    floor, scale, power = power_law([(step, value) for step, value in seen if step >= 1])
    if scale <= 0 or target <= floor:
        raise TargetNotReachedError(
            f"target={target}: not reached in {last:g} steps, and by a power law {metric} levels off at {floor:.4g}"
        )
    # the law goes through the middle of the measurements, so it may have the target where they just have not
    return Steps(max(last, (scale / (target - floor)) ** (1 / power)), extrapolated=True)


def power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """(floor, scale, power) of the least-squares loss = floor + scale step^-power, floor and scale not negative, power from 0.01 to 4.

    Raises:
      ValueError: fewer than four points.
    """
    if len(points) < LEAST_ROWS:
        raise ValueError(f"points: {len(points)} measurements; a power law needs at least {LEAST_ROWS}")
    step, value = np.array(points, float).T

    def at(power: float) -> tuple[np.ndarray, float]:
        columns = np.stack([np.ones_like(step), (step / step[0]) ** -power], axis=1)
        return nnls(columns, value)

    # the best floor and scale of each power are a linear problem; its residual may have several valleys, so look everywhere first
    powers = np.geomspace(0.01, 4, 80)
    least = int(np.argmin([at(power)[1] for power in powers]))
    bounds = powers[max(0, least - 1)], powers[min(len(powers) - 1, least + 1)]
    power = float(minimize_scalar(lambda p: at(p)[1], bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)  # type: ignore[union-attr]
    floor, scale = at(power)[0]
    return float(floor), float(scale * step[0] ** power), power


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converged:
    """A model that has reached its target on a machine. Hours, energy and dollars are modelled, and of all runs of the project."""

    name: str
    batch: float  # of a step, in the unit of the caller
    steps: Steps  # of one run
    inputs: Inputs
    joules: float  # of the machine, training
    converged_share: float = 1.0

    @property
    def total(self) -> Tco:
        return tco(self.inputs)

    @property
    def hours(self) -> float:
        """Of training."""
        return float(self.total.training_hours)

    @property
    def dollars(self) -> float:
        """For each run that reaches the target."""
        return float(cost_per_converged_model(self.inputs, self.converged_share))

    @property
    def kilowatt_hours(self) -> float:
        """Of the site, paid for apart or not."""
        return self.joules / 3.6e6 * float(self.inputs.pue)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        figures = {name: getattr(self, name) for name in ("hours", "dollars", "kilowatt_hours")}
        return {"modelled": True, "name": self.name, "batch": self.batch, **dataclasses.asdict(self.steps), **figures}


def converged(row: Row, steps: Steps, *, batch: float, energy_in_rate: bool = True, converged_share: float = 1.0, **more: Any) -> Converged:
    """What so many steps of a modelled machine come to.

    Args:
      row: of `compare`, of a step of that batch.
      steps: of `steps_to`.
      batch: of that step.
      energy_in_rate: as in `inputs_of`.
      converged_share: of the runs that reach the target.
      more: other fields of `Inputs`: runs, people, failures.

    Raises:
      ValueError: what `Inputs` and `cost_per_converged_model` refuse.
    """
    inputs = inputs_of(row, steps=steps.steps, energy_in_rate=energy_in_rate, **more)
    cost_per_converged_model(inputs, converged_share)  # refuses a share that nothing has
    joules = row.joules * steps.steps * float(inputs.runs) / (1.0 - float(inputs.lost_share))
    return Converged(name=row.name, batch=batch, steps=steps, inputs=inputs, joules=joules, converged_share=converged_share)


def cheapest(found: Sequence[Converged], by: Literal["dollars", "hours", "kilowatt_hours"] = "dollars") -> Converged:
    """The one with the least; of equals the first. Raises ValueError where there is none."""
    if not found:
        raise ValueError("found is empty: price at least one batch size that reaches the target")
    return min(found, key=lambda one: getattr(one, by))
