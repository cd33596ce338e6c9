"""How sparse weights are to be at a step: pure functions of the step alone, in float64.

Masks change at steps that are known beforehand, so all that schedules say is worked out on the host when a step is traced: counts are exact
however large a tensor is, and no device has a say in a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""From a step, counted from 0, to a fraction."""


def constant(value: float) -> Schedule:
    """`value` at every step."""
    return lambda step: value


def power(initial: float, final: float, *, begin: int, end: int, exponent: float = 3.0) -> Schedule:
    """From `initial` to `final` between two steps, fast at first: what is left to go falls as (1 - x) ** exponent, x from 0 to 1.

    The exponent 3 is the schedule of Zhu & Gupta 2017. Raises ValueError where `end` is not behind `begin`.
    """
    return _between(initial, final, begin, end, lambda x: (1 - x) ** exponent)


def cubic(initial: float, final: float, *, begin: int, end: int) -> Schedule:
    """`power` with the exponent 3."""
    return power(initial, final, begin=begin, end=end)


def linear(initial: float, final: float, *, begin: int, end: int) -> Schedule:
    """A straight line between two steps. Raises ValueError where `end` is not behind `begin`."""
    return power(initial, final, begin=begin, end=end, exponent=1.0)


def cosine(initial: float, final: float, *, begin: int, end: int) -> Schedule:
    """Half a wave between two steps, flat at both. Raises ValueError where `end` is not behind `begin`."""
    return _between(initial, final, begin, end, lambda x: (1 + math.cos(math.pi * x)) / 2)


def exponential(initial: float, final: float, *, begin: int, end: int) -> Schedule:
    """Of sparsity: what is kept, 1 - sparsity, shrinks by the same factor at each step.

    Raises ValueError where `end` is not behind `begin`, or one of the two is not below 1.
    """
    for name, value in (("initial", initial), ("final", final)):
        if not value < 1:
            raise ValueError(f"{name}={value}: give a sparsity below 1, or what is kept cannot shrink by a factor")
    kept = _between(math.log1p(-initial), math.log1p(-final), begin, end, lambda x: 1 - x)
    return lambda step: final if step >= end else -math.expm1(kept(step))


def periodic(low: float, high: float, *, period: int) -> Schedule:
    """A cosine wave that begins at `low` and is at `high` half a period later. Raises ValueError where `period` is below 2."""
    if period < 2:
        raise ValueError(f"period={period}: give at least 2 steps")
    return lambda step: low + (high - low) * (1 - math.cos(2 * math.pi * step / period)) / 2


def zero_from(schedule: Schedule, step: int) -> Schedule:
    """`schedule` until `step`, and 0 from there."""
    return lambda now: schedule(now) if now < step else 0.0


def _between(initial: float, final: float, begin: int, end: int, left: Callable[[float], float]) -> Schedule:
    """`left` tells from 1 down to 0 what share of the way is yet to go."""
    if end <= begin:
        raise ValueError(f"begin={begin}, end={end}: the schedule ends before it begins; give an end behind {begin}")

    def at(step: int) -> float:
        if step >= end:  # to the last bit, which the formula need not give
            return final
        return final + (initial - final) * left(max(step - begin, 0) / (end - begin))

    return at
