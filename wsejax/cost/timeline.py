"""`wse.timeline`: a modelled run of a program as events on tracks, to be opened in ui.perfetto.dev or chrome://tracing.

Kernels come in the order of the walk, loops trip by trip. A kernel's track shows it from first to last cycle; "compute", "fabric x",
"fabric y" and "latency" how long its PEs compute, links carry wavelets, and wavelets are under way; "I/O" the weights that stream in.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from wsejax.compiler import Call, Lowered, Program
from wsejax.cost.errors import model_error
from wsejax.cost.model import UnknownTripsError, price_of, stream_seconds
from wsejax.hardware import CS3, System, as_system
from wsejax.kernels.price import Price
from wsejax.kernels.work import Gather, Reduction, Shift, Window

TRACKS = ("kernels", "compute", "fabric x", "fabric y", "latency", "I/O")


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that takes modelled time on a track."""

    track: str
    name: str
    start_cycles: float
    cycles: float
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A modelled run. `left_out` counts the kernels after the first `max_kernels`, whose time is in `cycles` all the same."""

    system: System
    events: tuple[Event, ...]
    cycles: float
    left_out: int = 0

    def to_chrome(self) -> dict[str, Any]:
        """The Trace Event Format of Chrome and Perfetto: complete events ("ph": "X"), microseconds of modelled time."""
        us = lambda cycles: float(self.system.seconds(cycles)) * 1e6
        names = [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": f"{self.system.name} (modelled wafer time)"}},
            *({"ph": "M", "name": "thread_name", "pid": 1, "tid": n, "args": {"name": track}} for n, track in enumerate(TRACKS)),
        ]
        events = [
            {
                "ph": "X",
                "name": e.name,
                "cat": e.track,
                "pid": 1,
                "tid": TRACKS.index(e.track),
                "ts": us(e.start_cycles),
                "dur": us(e.cycles),
                "args": {"source": e.source, "modelled_cycles": e.cycles},
            }
            for e in self.events
        ]
        other = {"modelled": True, "error": f"whole training steps: {model_error('whole programs')}", "kernels left out": self.left_out}
        return {"displayTimeUnit": "ns", "traceEvents": names + events, "otherData": other}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON, whole or not at all."""
        partial = f"{os.fspath(path)}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(self.to_chrome(), file)
        os.replace(partial, path)


def timeline(program: Lowered | Program, system: System | str = CS3, *, streamed: bool = False, max_kernels: int = 20_000) -> Timeline:
    """The modelled run of a program, kernel by kernel.

    Args:
      program: what `wse.jit(f, wafer).lower(...)` gives, or its `program`.
      system: the machine, as for `wse.cost`.
      streamed: weights stream in while the program runs, evenly over all kernels that compute.
      max_kernels: kernels with events of their own.

    Raises:
      UnknownTripsError: a loop of unknown length or a branch.
      ValueError: max_kernels below 1.
    """
    program, system = program.program if isinstance(program, Lowered) else program, as_system(system)
    if max_kernels < 1:
        raise ValueError(f"max_kernels={max_kernels}: must be at least 1")
    calls = [c for c in program.calls if c.work]
    if unknown := next((c for c in calls if c.under), None):
        raise UnknownTripsError(
            f"{unknown.kernel} is inside a loop of unknown length or a branch at {unknown.under[0].source}: no run to draw"
        )
    memo: dict[Any, Price] = {}
    priced = lambda call: memo[call.work] if call.work in memo else memo.setdefault(call.work, price_of(call, system))
    at, events = 0.0, []
    for call in itertools.islice(_run(calls), max_kernels):
        events += _events(call, priced(call), at)
        at += float(priced(call).cycles)
    left_out = max(0, sum(call.trips for call in calls) - max_kernels)
    at = sum(float(priced(call).cycles) * call.trips for call in calls)
    if streamed:
        arriving = float(stream_seconds(program, system) * system.clock_hz)
        events.append(Event("I/O", "weights in", 0.0, arriving))
        at = max(at, arriving)
    return Timeline(system, tuple(events), at, left_out)


def _run(calls: Sequence[Call], depth: int = 0) -> Iterator[Call]:
    """Every call as often as it runs, in order: neighbours in the same loop are its body."""
    for loop, group in itertools.groupby(calls, key=lambda c: c.loops[depth] if len(c.loops) > depth else None):
        body = list(group)
        for _ in range(1 if loop is None else loop.length):
            yield from body if loop is None else _run(body, depth + 1)


def _events(call: Call, price: Price, start: float) -> list[Event]:
    name = f"{call.kernel} {', '.join(map(str, call.outs))}"
    found = [Event("kernels", name, start, float(price.cycles), call.source)]
    axes = {w.axis for w in call.work if isinstance(w, Reduction | Gather | Window | Shift)} or {"x", "y"}
    parts = {"compute": price.compute_cycles, "latency": price.wait_cycles}
    parts |= {f"fabric {axis}": price.fabric_cycles for axis in sorted(axes)}
    for track, cycles in parts.items():
        if cycles:
            # waiting is at the end: first wavelets are sent, then the last is under way
            begin = start + (float(price.cycles) - float(cycles) if track == "latency" else 0.0)
            found.append(Event(track, call.kernel, begin, float(cycles), call.source))
    return found
