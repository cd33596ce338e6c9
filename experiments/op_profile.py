"""Where the host time of a step goes, by operation of the compiled program, read from a trace of JAX's profiler."""

from __future__ import annotations

import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

_CONTAINERS = ("while", "call", "conditional")  # their time is that of the operations inside them
# Names of compiled operations by what they are for; the first that matches. A fusion bears the names of its operations.
_KINDS = (
    ("moves between devices, waiting for them included", re.compile(r"ppermute|collective|all-|all_|reduce-scatter|psum")),
    ("matrix products", re.compile(r"^dot|^ynn|dot_|onednn|custom-call")),
    ("slices, pads and updates in place", re.compile(r"slice|pad|concatenate|gather|scatter")),
    ("copies and transposes", re.compile(r"^copy|^transpose|^bitcast")),
)
_REST = "arithmetic and sums"


@dataclass(frozen=True)
class OpTime:
    """Operations of one name, their `.number` left off. Seconds are summed over threads: with devices in parallel, more than the step's."""

    kind: str
    name: str
    calls_per_step: float
    thread_seconds_per_step: float


def profile(step: Callable[[], Any], steps: int = 3) -> list[OpTime]:
    """Trace `steps` calls of `step`, which must block on its results; the costliest operations first. Empty where the trace names none."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                step()
        found = list(Path(folder).rglob("*.trace.json.gz"))
        events = [event for file in found for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    return by_operation(events, steps)


def by_operation(events: Iterable[Mapping[str, Any]], steps: int) -> list[OpTime]:
    """Sum the events of compiled operations (`ph` X with an `hlo_op`; `dur` is in microseconds) by name."""
    seconds: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    for event in events:
        operation = (event.get("args") or {}).get("hlo_op")
        if event.get("ph") != "X" or operation is None or str(event.get("name", "")).startswith("end: "):
            continue
        name = re.sub(r"(\.\d+|\.clone|\.remat)+$", "", operation)
        if name.partition(".")[0] not in _CONTAINERS:
            seconds[name] += event["dur"] * 1e-6
            calls[name] += 1
    times = [OpTime(kind_of(name), name, calls[name] / steps, seconds[name] / steps) for name in seconds]
    return sorted(times, key=lambda op: (-op.thread_seconds_per_step, op.name))


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), _REST)


def as_lines(times: list[OpTime], top: int = 12) -> list[str]:
    """The shares of each kind, then the `top` costliest operations, as text."""
    total = sum(op.thread_seconds_per_step for op in times)
    if not total:
        return ["the profiler's trace names no operation here"]
    kinds: dict[str, float] = collections.defaultdict(float)
    for op in times:
        kinds[op.kind] += op.thread_seconds_per_step
    lines = [
        f"{seconds * 1e3:9.1f} ms {seconds / total:6.1%}  {kind}" for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    lines += ["of which"]
    lines += [
        f"{op.thread_seconds_per_step * 1e3:9.1f} ms {op.thread_seconds_per_step / total:6.1%}  {op.name} x {op.calls_per_step:.0f}"
        for op in times[:top]
    ]
    return lines
