"""Reading the `config` of published points: what is missing or odd becomes the reason for which there is no prediction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wsejax.hardware import CS1, CS2, CS3, System
from wsejax.kernels.pe import trees
from wsejax.kernels.pe.collectives import broadcast_price

from ..points import Point, Unpredictable

# The fabric simulator of the SDK, where vector instructions reach their nominal rates and links one wavelet a cycle (ALCF: beside silicon).
CS3_SIMULATED = CS3.replace(
    wavelet_cycles=1.0,
    turn_cycles=33.0,
    sustained_fp16_fma_per_cycle=4.0,
    sustained_fp32_fma_per_cycle=0.5,
    fp16_copies_per_cycle=8.0,
    fp32_copies_per_cycle=4.0,
)
Predict = Callable[[Point, Mapping[str, float]], float]
_GENERATIONS = ((("wse-3", "wse3", "cs-3", "cs3"), CS3), (("wse-2", "wse2", "cs-2", "cs2"), CS2), (("wse-1", "wse1", "cs-1", "cs1"), CS1))


def simulated(point: Point) -> bool:
    return "simulator" in f"{point.hardware} {point.measurement_class}".lower()


def system_of(point: Point) -> System:
    """The preset that a point's hardware names.

    Raises:
      Unpredictable: no wafer, or several generations.
    """
    text = point.hardware.lower()
    found = [system for names, system in _GENERATIONS if any(name in text for name in names)]
    if len(found) != 1:
        raise Unpredictable(f"hardware={point.hardware!r}: names {len(found)} generations of the wafer; one is needed")
    return CS3_SIMULATED if found[0] is CS3 and simulated(point) else found[0]


def number(point: Point, *names: str, default: float | None = None) -> float:
    """The first of these entries of the config that is there, as a number that is not negative.

    Raises:
      Unpredictable: none is there, or it is no such number; the reason names the entry and its value.
    """
    for name in names:
        value: Any = point.config.get(name)
        if value is None:
            continue
        if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise Unpredictable(f"config has {name}={value!r}: must be a number that is not negative")
        return float(value)
    if default is not None:
        return float(default)
    raise Unpredictable(f"config={dict(point.config)!r}: does not state {' or '.join(names)}")


def positive(point: Point, *names: str, default: float | None = None) -> float:
    """As `number`, and not 0."""
    value = number(point, *names, default=default)
    if value > 0:
        return value
    name = next(n for n in names if point.config.get(n) is not None)
    raise Unpredictable(f"config has {name}={point.config[name]!r}: must be positive")


def whole(point: Point, *names: str, default: int | None = None) -> int:
    """As `positive`, and a whole number."""
    value = positive(point, *names, default=default)
    if value.is_integer():
        return int(value)
    raise Unpredictable(f"config has {names[0]}={value!r}: must be a whole number")


def sizes(point: Point, *names: str) -> tuple[int, ...]:
    """The first of these entries that is written as "86x14", as whole numbers.

    Raises:
      Unpredictable: none is.
    """
    for name in names:
        value = point.config.get(name)
        parts: Sequence[Any] = re.findall(r"\d+", value) if isinstance(value, str) else value if isinstance(value, list) else ()
        if len(parts) > 1:
            found = tuple(int(part) for part in parts)
            if min(found) < 1:
                raise Unpredictable(f"config has {name}={value!r}: sizes must be positive")
            return found
    raise Unpredictable(f"config={dict(point.config)!r}: does not state {' or '.join(names)} as sizes such as 86x14")


def itemsize_bytes(point: Point, default: str = "fp32") -> int:
    """Of the elements of a point: 4 for fp32 and i32, 2 for fp16, bf16 and i16.

    Raises:
      Unpredictable: another type.
    """
    name = str(point.config.get("dtype", default)).lower()
    bits = re.findall(r"(8|16|32|64)$", name)
    if not bits:
        raise Unpredictable(f"dtype={name!r}: unknown; known are those that end in their number of bits")
    return int(bits[0]) // 8


# ---- units -----------------------------------------------------------------------------------------------------------
_OF_A_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "µs": 1e6, "ns": 1e9}
_RATES = ("tokens/s", "token/s", "tok/s", "tokens/s/user", "tokens/second")


def time_in(point: Point, seconds: float, clock_hz: float | None = None) -> float:
    """A time in the point's unit: s, ms, us or ns, whatever follows a slash ("us/token"), and cycles where the clock is known.

    Raises:
      Unpredictable: no such unit.
    """
    name = point.unit.split("/")[0].strip()
    if name == "cycles" and clock_hz is not None:
        return seconds * clock_hz
    if name not in _OF_A_SECOND:
        raise Unpredictable(f"unit={point.unit!r}: times are predicted in {', '.join(_OF_A_SECOND)}{' and cycles' if clock_hz else ''}")
    return seconds * _OF_A_SECOND[name]


def rate_in(point: Point, tokens_per_second: float) -> float:
    """A rate of tokens in the point's unit, or the time of a token in "ms/token".

    Raises:
      Unpredictable: neither.
    """
    if point.unit in _RATES:
        return tokens_per_second
    if point.unit.endswith(("/token", "/tok")):
        return time_in(point, 1.0 / tokens_per_second)
    raise Unpredictable(f"unit={point.unit!r}: rates are predicted in tokens/s, and as s, ms or us a token")


def in_cycles(cycles: Predict) -> Predict:
    """Of a model that counts cycles: in the point's unit, by the clock that the point assumes or the machine's own."""

    def predict(point: Point, constants: Mapping[str, float]) -> float:
        value = cycles(point, constants)
        if point.unit.split("/")[0].strip() == "cycles":
            return value
        clock_hz = positive(point, "assumed_clock_GHz", default=float(system_of(point).clock_hz) / 1e9) * 1e9
        return time_in(point, value / clock_hz, clock_hz)

    return predict


def scalar_all_reduce_cycles(system: System, grid: tuple[int, int]) -> float:
    """One number of every PE, summed in the middle of the grid and copied back to all: along half lines, with the best of the K-trees."""
    up = sum(min(trees.k_tree(n // 2, k).model_cycles(1) for k in range(1, 10)) for n in grid)
    return up + sum(float(broadcast_price(system, n / 2.0, 1.0, 4.0).cycles) for n in grid)
