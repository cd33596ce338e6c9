"""`wse.timeline`: a modelled run of a program as events on tracks, to be opened in ui.perfetto.dev or chrome://tracing.

Kernels come in the order of the walk, loops trip by trip. A kernel's track shows it from first to last cycle; "compute", "fabric x",
"fabric y" and "latency" how long its PEs compute, links carry wavelets, and wavelets are under way; "I/O" the weights that stream in, where
a program does not say what streams. Of one that does, "I/O in" shows each load, "I/O out" each store, "MemoryX" what is done outside, and
"stall" and "boundary" what the wafer waits for meanwhile; "software" what comes before a layer's pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

from wsejax.compiler import Call, Lowered, Program
from wsejax.cost.errors import UnknownTripsError, model_error
from wsejax.cost.model import price_of, stream_seconds
from wsejax.cost.stages import OUTSIDE, Streamed, apart, run, streamed_run
from wsejax.cost.training import Streaming
from wsejax.hardware import CS3, System, as_system
from wsejax.kernels.price import Price
from wsejax.kernels.work import Gather, Reduction, Shift, Window

TRACKS = ("kernels", "compute", "fabric x", "fabric y", "latency", "I/O")
STREAM_TRACKS = ("software", "I/O in", "I/O out", "stall", "boundary", "MemoryX")


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
    """A modelled run. `left_out` counts the kernels after the first `max_kernels`; `cycles` has their time all the same. `streamed` is the
    schedule of a program that says what streams."""

    system: System
    events: tuple[Event, ...]
    cycles: float
    left_out: int = 0
    streamed: Streamed | None = None

    @property
    def tracks(self) -> tuple[str, ...]:
        """In the order in which they are shown."""
        return TRACKS if self.streamed is None else (*TRACKS[:-1], *STREAM_TRACKS)

    def to_chrome(self) -> dict[str, Any]:
        """The Trace Event Format of Chrome and Perfetto: complete events ("ph": "X"), microseconds of modelled time."""
        us = lambda cycles: float(self.system.seconds(cycles)) * 1e6
        names = [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": f"{self.system.name} (modelled wafer time)"}},
            *({"ph": "M", "name": "thread_name", "pid": 1, "tid": n, "args": {"name": track}} for n, track in enumerate(self.tracks)),
        ]
        events = [
            {
                "ph": "X",
                "name": e.name,
                "cat": e.track,
                "pid": 1,
                "tid": self.tracks.index(e.track),
                "ts": us(e.start_cycles),
                "dur": us(e.cycles),
                "args": {"source": e.source, "modelled_cycles": e.cycles},
            }
            for e in self.events
        ]
        group = "whole programs" if self.streamed is None else "streamed programs"
        other = {"modelled": True, "error": f"whole training steps: {model_error(group)}", "kernels left out": self.left_out}
        return {"displayTimeUnit": "ns", "traceEvents": names + events, "otherData": other}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON, whole or not at all."""
        partial = f"{os.fspath(path)}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(self.to_chrome(), file)
        os.replace(partial, path)


def timeline(
    program: Lowered | Program,
    system: System | str = CS3,
    *,
    streamed: bool = False,
    max_kernels: int = 20_000,
    streaming: Streaming | None = None,
    prefetch: int = 1,
) -> Timeline:
    """The modelled run of a program, kernel by kernel.

    Args:
      program: what `wse.jit(f, wafer).lower(...)` gives, or its `program`.
      system: the machine, as for `wse.cost`.
      streamed: weights stream in while the program runs, evenly over all kernels that compute. A program that says itself what streams is
        laid out stage by stage, whatever this is.
      max_kernels: kernels with events of their own.
      streaming: what software and cluster add to a program that streams, as for `wse.cost`.
      prefetch: its layers on their way while one is worked on, as for `wse.cost`.

    Raises:
      UnknownTripsError: a loop of unknown length or a branch.
      ValueError: max_kernels below 1.
    """
    program, system = program.program if isinstance(program, Lowered) else program, as_system(system)
    if max_kernels < 1:
        raise ValueError(f"max_kernels={max_kernels}: must be at least 1")
    calls = [c for c in program.calls if c.work and c.kind not in OUTSIDE]
    if unknown := next((c for c in calls if c.under), None):
        raise UnknownTripsError(
            f"{unknown.kernel} is inside a loop of unknown length or a branch at {unknown.under[0].source}: no run to draw"
        )
    if any(c.kernel in ("load", "store") for c in program.of_kind("stream")):
        system = apart(system, streaming)
    memo: dict[Any, Price] = {}
    priced = lambda call: memo[call.work] if call.work in memo else memo.setdefault(call.work, price_of(call, system))
    left_out = max(0, sum(call.trips for call in calls) - max_kernels)
    if program.streams:
        seconds_of = lambda call: float(system.seconds(priced(call).cycles)) if call.work and call.kind not in OUTSIDE else 0.0
        found = streamed_run(program, seconds_of, system, streaming, prefetch)
        events = _stage_events(found, priced, max_kernels)
        return Timeline(system, tuple(events), float(found.seconds * system.clock_hz), left_out, found)
    at, events = 0.0, []
    for call in itertools.islice(run(calls), max_kernels):
        events += _events(call, priced(call), at)
        at += float(priced(call).cycles)
    at = sum(float(priced(call).cycles) * call.trips for call in calls)
    if streamed:
        arriving = float(stream_seconds(program, system) * system.clock_hz)
        events.append(Event("I/O", "weights in", 0.0, arriving))
        at = max(at, arriving)
    return Timeline(system, tuple(events), at, left_out)


def _stage_events(found: Streamed, priced: Callable[[Call], Price], max_kernels: int) -> list[Event]:
    """Loads, stores, waits and kernels of every stage, until so many kernels are drawn."""
    made, clock = found.schedule, float(found.system.clock_hz)
    events: list[Event] = []
    drawn = 0

    def add(track: str, name: str, start_seconds: float, end_seconds: float, source: str) -> None:
        if end_seconds > start_seconds:
            events.append(Event(track, name, start_seconds * clock, (end_seconds - start_seconds) * clock, source))

    for n, one in enumerate(found.staged):
        stage, start = one.stage, float(made.compute_start[n])
        add("I/O in", f"in: {stage.name}", float(made.load_start[n]), float(made.load_end[n]), one.source)
        add("I/O in", f"sum over wafers: {stage.name}", float(made.back_start[n]), float(made.back_end[n]), one.source)
        add("I/O out", f"out: {stage.name}", float(made.store_start[n]), float(made.store_end[n]), one.source)
        add("MemoryX", f"update: {stage.name}", float(made.memoryx_start[n]), float(made.memoryx_end[n]), one.source)
        waits = "boundary" if stage.fenced and n else "stall"
        add(waits, "fill" if n == 0 else f"{waits}: {stage.name}", start - float(made.wait[n]), start, one.source)
        add("software", stage.name, start, start + stage.fixed_seconds, one.source)
        at = (start + stage.fixed_seconds) * clock
        for call in itertools.chain.from_iterable(piece.run() for piece in one.pieces):
            if not call.work or call.kind in OUTSIDE:
                continue
            if drawn == max_kernels:
                return events
            drawn, price = drawn + 1, priced(call)
            events += _events(call, price, at)
            at += float(price.cycles)
    end = float(made.compute_end[-1]) if len(found.staged) else 0.0
    add("boundary", "the last gradient leaves", end, made.seconds, "")
    add("boundary", "for the slowest wafer", made.seconds, found.seconds, "")
    return events


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
