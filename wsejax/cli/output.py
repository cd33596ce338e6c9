"""What a command found, and the two ways to print it: tables for people, one JSON document for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from wsejax.report import Sheet

PIPE_WIDTH = 160  # columns in a pipe or a file, the same wherever the command runs
LEAST_WIDTH = 60  # of a table that is still read


@dataclasses.dataclass(frozen=True)
class Output:
    """Of a command: `data` is JSON-ready but for numpy's numbers and what is not finite (printed as null), `parts` are printed one below
    the other; `status` is what the command returns to the shell."""

    data: Mapping[str, Any]
    parts: Sequence[rich.console.RenderableType | str]
    status: int = 0


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "", fold: Mapping[str, int] | None = None) -> Sheet:
    """Of texts; the first column leans to the left, the others to the right. `fold` as of `Sheet`."""
    return Sheet(columns, rows, title, fold=fold or {})


def with_unit(value: float, unit: str, digits: int = 3) -> str:
    """1.2e12 b/s -> "1.2 Tb/s": decimal prefixes."""
    if not math.isfinite(value):
        return "unbounded"
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{_short(value / size, digits)} {prefix}{unit}"
    return f"{_short(value, digits)} {unit}"


def _short(value: float, digits: int) -> str:
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def plain(value: Any) -> Any:
    """Python's own numbers, lists and dicts; what is not finite becomes None, since JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray) and value.ndim:
        return plain(value.tolist())
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def show(output: Output, as_json: bool) -> None:
    """Print to stdout."""
    if as_json:
        json.dump(plain(output.data), sys.stdout, indent=1, allow_nan=False)
        sys.stdout.write("\n")
        return
    console = rich.console.Console()
    wide = max(console.width, LEAST_WIDTH) if console.is_terminal else PIPE_WIDTH
    console = rich.console.Console(width=wide, markup=False, highlight=False)
    for part in output.parts:
        console.print(part)
