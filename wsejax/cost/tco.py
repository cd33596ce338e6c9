"""What training costs in the end: machines, people and energy, until a model has converged; and which input decides.

Rates are inputs, and most are guesses: look at `sensitivity` and `break_even` before you believe a total. `popular_tco` keeps the sums of a
widely read article, whose inputs cannot be: see there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from scipy.optimize import brentq

from wsejax.hardware.records import check_fields, replaced

from .compare import Row

PLAUSIBLE: dict[str, tuple[float, float]] = {
    "tokens_per_hour": (1, 1e16), "tokens": (1, 1e18), "runs": (1, 1e5), "dollars_per_hour": (0, 1e8), "setup_hours": (0, 1e6),
    "debug_hours_per_run": (0, 1e6), "people_dollars_per_hour": (0, 1e5), "setup_billed": (0, 1), "kilowatts": (0, 1e6), "pue": (1, 5),
    "dollars_per_kwh": (0, 10), "lost_share": (0, 0.99),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of a project that trains a model. All fields but `name` are floats, and leaves of a pytree.

    Raises:
      ValueError: a value that is not finite, is negative, or that nothing has.
    """

    name: str
    tokens_per_hour: Any  # that the machine trains on: from a model or a measurement, not from a data sheet
    tokens: Any  # of one run, until the target is reached
    dollars_per_hour: Any  # of the whole machine
    runs: Any = 1.0
    setup_hours: Any = 0.0
    debug_hours_per_run: Any = 0.0
    people_dollars_per_hour: Any = 100.0
    setup_billed: Any = 1.0  # share of set-up and debugging in which the machine is paid for
    kilowatts: Any = 0.0  # of the machine, where energy is not in its rate
    pue: Any = 1.2  # energy of the site over that of the machine
    dollars_per_kwh: Any = 0.1
    lost_share: Any = 0.0  # of the machine's time: failures, restarts, checkpoints

    def __post_init__(self) -> None:
        check_fields(self, PLAUSIBLE)

    def replace(self, **changes: Any) -> Inputs:
        """The same with some fields changed. Raises ValueError where a name is no field."""
        return replaced(self, changes)


_FIELDS = [f.name for f in dataclasses.fields(Inputs) if f.name != "name"]
jax.tree_util.register_dataclass(Inputs, data_fields=_FIELDS, meta_fields=["name"])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["training_hours", "people_hours", "machine_dollars", "people_dollars", "energy_dollars"],
    meta_fields=["name"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tco:
    """Hours and dollars of all runs."""

    name: str
    training_hours: Any
    people_hours: Any
    machine_dollars: Any
    people_dollars: Any
    energy_dollars: Any

    def parts(self) -> dict[str, Any]:
        """Dollars by what they buy; they sum to the total."""
        return {"machine": self.machine_dollars, "people": self.people_dollars, "energy": self.energy_dollars}

    @property
    def dollars(self) -> Any:
        return sum(self.parts().values())

    @property
    def days(self) -> Any:
        """From the start to the end, set-up and debugging before and between the runs."""
        return (self.training_hours + self.people_hours) / 24.0

    def to_dict(self) -> dict[str, Any]:
        values = {n: float(getattr(self, n)) for n in ("training_hours", "people_hours", "days", "dollars")}
        return {"modelled": True, "name": self.name, **values, "parts": {k: float(v) for k, v in self.parts().items()}}


def tco(inputs: Inputs) -> Tco:
    """Total cost of all runs. Energy is used while the machine trains, at the site's PUE."""
    training = inputs.runs * inputs.tokens / inputs.tokens_per_hour / (1.0 - inputs.lost_share)
    people = inputs.setup_hours + inputs.runs * inputs.debug_hours_per_run
    return Tco(
        name=inputs.name,
        training_hours=training,
        people_hours=people,
        machine_dollars=inputs.dollars_per_hour * (training + inputs.setup_billed * people),
        people_dollars=inputs.people_dollars_per_hour * people,
        energy_dollars=training * inputs.kilowatts * inputs.pue * inputs.dollars_per_kwh,
    )


def inputs_of(row: Row, *, tokens: float | None = None, steps: float | None = None, energy_in_rate: bool = True, **more: Any) -> Inputs:
    """Of a machine in a comparison: its modelled throughput, its rate and its power.

    Args:
      row: of `compare`.
      tokens: of one run until the target, or
      steps: of the compared size.
      energy_in_rate: a rented machine's rate holds its energy; an own machine's power is paid for.
      more: other fields of `Inputs`.

    Raises:
      ValueError: neither tokens nor steps, or both.
    """
    if (tokens is None) == (steps is None):
        raise ValueError(f"tokens={tokens!r}, steps={steps!r}: give one of them, what a run needs to reach its target")
    of_step = row.tokens_per_second * row.step_seconds
    values = dict(
        name=row.name,
        tokens_per_hour=row.tokens_per_second * 3600,
        tokens=tokens if tokens is not None else (steps or 0.0) * of_step,
        dollars_per_hour=row.dollars / row.step_seconds * 3600,
        kilowatts=0.0 if energy_in_rate else row.joules / row.step_seconds / 1000,
    )
    return Inputs(**{**values, **more})


def cost_per_converged_model(inputs: Inputs, converged_share: Any = 1.0) -> Any:
    """Dollars of all runs over the runs that reach the target: what to compare, not dollars an hour.

    Raises:
      ValueError: a share of runs that converge outside 0 to 1, or 0.
    """
    if isinstance(converged_share, int | float) and not 0 < converged_share <= 1:
        raise ValueError(f"converged_share={converged_share!r}: a share of the runs, above 0 and at most 1")
    return tco(inputs).dollars / (inputs.runs * converged_share)


@dataclasses.dataclass(frozen=True)
class Swing:
    """What the total does when one input goes from `low` to `high`."""

    name: str
    low: float
    high: float
    low_dollars: float
    high_dollars: float

    @property
    def dollars(self) -> float:
        return abs(self.high_dollars - self.low_dollars)


def sensitivity(inputs: Inputs, spans: Mapping[str, tuple[float, float]] | float = 2.0) -> list[Swing]:
    """The total at both ends of each input's span, the rest as they are, widest swing first: the data of a tornado plot. What
    does not matter at all is left out.

    Args:
      spans: low and high by field, or a factor: from 1 / factor to the factor times each field that is not zero (shares stay below one,
        the PUE above).

    Raises:
      ValueError: an unknown field, a span from high to low, or a factor of 1 or less.
    """
    if isinstance(spans, int | float):
        if not spans > 1:
            raise ValueError(f"spans={spans!r}: a factor above 1, or low and high by field")
        values = {name: float(getattr(inputs, name)) for name in _FIELDS}
        spans = {
            name: (max(value / spans, PLAUSIBLE[name][0]), min(value * spans, PLAUSIBLE[name][1]))
            for name, value in values.items()
            if value
        }
    for name, (low, high) in spans.items():
        if not low <= high:
            raise ValueError(f"spans[{name!r}]={low, high}: low comes first")
    swings = [
        Swing(name, low, high, *(float(tco(inputs.replace(**{name: end})).dollars) for end in (low, high)))
        for name, (low, high) in spans.items()
    ]
    return sorted((swing for swing in swings if swing.dollars), key=lambda swing: (-swing.dollars, swing.name))


def break_even(one: Inputs, other: Inputs, field: str) -> float | None:
    """The value of `one`'s field at which both cost the same, None where no plausible value does it.

    Raises:
      ValueError: an unknown field.
    """
    if field not in _FIELDS:
        raise ValueError(f"field={field!r}: unknown; known are {', '.join(_FIELDS)}")
    target = float(tco(other).dollars)
    excess = lambda value: float(tco(one.replace(**{field: value})).dollars) - target
    low, high = PLAUSIBLE[field]
    low, high = float(max(low, 1e-9 if field == "tokens_per_hour" else low)), float(high)
    if excess(low) * excess(high) > 0:
        return None
    return float(brentq(excess, low, high, xtol=1e-9))  # type: ignore[arg-type]


def popular_tco() -> tuple[Inputs, Inputs]:
    """A cautionary example: the inputs of a popular article on the cost of training 20 B parameters, for which `tco` gives its totals,
    51,100 dollars on a wafer-scale system against 81,333 on eight H100.

    The throughputs cannot be. 500 billion tokens an hour of 20 B parameters are 6 x 20e9 x 500e9 / 3600 = 16.7 exaflops a second, a
    thousand times the dense peak of a wafer; 300 billion are 10 on eight H100, whose dense peak is 0.008. 2,500 dollars an hour are some
    twenty times a system of 2 to 3 million dollars over three years, 800 for eight H100 eight to forty times what clouds ask. The winner
    that comes out is that of the inputs: see `corrected_tco`.
    """
    common = dict(tokens=100e9, runs=5.0, people_dollars_per_hour=200.0)
    wafer = Inputs(
        name="wafer (article)", tokens_per_hour=500e9, dollars_per_hour=2500.0, setup_hours=8.0, debug_hours_per_run=2.0, **common
    )
    gpus = Inputs(
        name="8 x H100 (article)", tokens_per_hour=300e9, dollars_per_hour=800.0, setup_hours=40.0, debug_hours_per_run=8.0, **common
    )
    return wafer, gpus


def corrected_tco(gpu_dollars_per_hour: float = 32.0) -> tuple[Inputs, Inputs]:
    """The same project with throughputs that machines have reached: 6.1 Pflop/s on one CS-3 (Argonne's log of Llama-2-7B, 2025) and 45% of
    the dense peak on eight H100, at 110 and 32 dollars an hour, both assumptions. The GPUs are then cheaper and slower; at 98 dollars an
    hour they are dearer, too."""
    wafer, gpus = popular_tco()
    flops_per_token = 6.0 * 20e9
    return (
        wafer.replace(name="CS-3", tokens_per_hour=6.1e15 / flops_per_token * 3600, dollars_per_hour=110.0),
        gpus.replace(name="8 x H100", tokens_per_hour=8 * 989e12 * 0.45 / flops_per_token * 3600, dollars_per_hour=gpu_dollars_per_hour),
    )
