"""Fit the model's constants to the published measurements, and write them down: `python -m experiments.fit`.

Takes some seconds on one core, and gives the same file on every run up to rounding. Run it after a change to a price, to a model in
`wsejax/cost/measured`, or to the table of points.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from experiments import published_steps
from wsejax.cost import validation
from wsejax.cost.table import load_points, published

SHIPPED = Path(validation.__file__).with_name("fitted.json")


@dataclasses.dataclass(frozen=True)
class Settings:
    out: Path = SHIPPED
    """File to write."""
    points: Path | None = None
    """Points to fit to; by default the table that ships."""


def fitted(settings: Settings) -> dict[str, Any]:
    """For each group: constants, those of the folds, the points they were fitted to, and errors."""
    points = published() if settings.points is None else load_points(settings.points)
    fits = validation.fit_all(points)
    found = {g.name: g for g in validation.validate(points, fits).groups}
    out = {}
    for name, one in fits.items():
        errors = found.get(name)
        digits = lambda values: {key: float(f"{value:.6g}") for key, value in values.items()}
        out[name] = {
            "constants": digits(one.constants),
            "folds": [digits(fold) for fold in one.folds],
            "ids": list(one.ids),
            "points": errors.points if errors else 0,
            **{
                key: round(value, 5) if errors and (value := getattr(errors, key)) is not None else None
                for key in ("median", "p90", "held_out_median", "held_out_p90")
            },
        }
    if settings.points is None:
        out["whole programs"] = published_steps.errors()
        out["streamed programs"] = published_steps.streamed_errors()
    return out


def main(settings: Settings) -> None:
    out = fitted(settings)
    settings.out.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    for name, group in out.items():
        if group["points"]:
            held_out = "" if group["held_out_median"] is None else f", held out {group['held_out_median']:.1%}"
            print(f"{name}: {group['points']} points, median error {group['median']:.1%}{held_out}; {group['constants']}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
