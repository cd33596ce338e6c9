"""Reading the `config` of published points: what is missing or odd becomes the reason for which there is no prediction."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    """The first of these entries of the config that is there, as a number.

    Raises:
      Unpredictable: none is there, or it is no number.
    """
    for name in names:
        value: Any = point.config.get(name)
        if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    if default is not None:
        return default
    raise Unpredictable(f"config={dict(point.config)!r}: does not state {' or '.join(names)}")


def sizes(point: Point, *names: str) -> tuple[int, ...]:
    """The first of these entries that is written as "86x14", as whole numbers.

    Raises:
      Unpredictable: none is.
    """
    for name in names:
        value = point.config.get(name)
        parts: Sequence[Any] = re.findall(r"\d+", value) if isinstance(value, str) else value if isinstance(value, list) else ()
        if len(parts) > 1:
            return tuple(int(part) for part in parts)
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


def scalar_all_reduce_cycles(system: System, grid: tuple[int, int]) -> float:
    """One number of every PE, summed in the middle of the grid and copied back to all: along half lines, with the best of the K-trees."""
    up = sum(min(trees.k_tree(n // 2, k).model_cycles(1) for k in range(1, 10)) for n in grid)
    return up + sum(float(broadcast_price(system, n / 2.0, 1.0, 4.0).cycles) for n in grid)
