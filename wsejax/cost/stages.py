"""A program that streams, as stages: from one load to the next, with what the wafer does meanwhile priced kernel by kernel.

Calls of kind "stream" say what comes from MemoryX and goes there. A loop in which something streams is run trip by trip, any other is one
price. What the software adds to each layer's pass and the boundary of a step are the constants of `Streaming`, fitted to whole published
runs (`measured/training.py`); here they stand beside kernels, which have constants of their own. All times are modelled.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wsejax.compiler import Call, Program
from wsejax.cost.errors import UnknownTripsError
from wsejax.cost.training import Streaming
from wsejax.hardware import SwarmX, System
from wsejax.hardware.system import GEMM_SHARE
from wsejax.streaming import Schedule, Stage, least_tokens, schedule, slack_seconds

MOST_STAGES = 200_000
SMALL = 1 / 64  # of the largest load: what is smaller, such as the scales of a norm, comes with the weights before it
OUTSIDE = ("stream", "memoryx")  # kinds of calls that no PE works on


@dataclasses.dataclass(frozen=True)
class Piece:
    """Calls that follow one another, `depth` loops deep in what is run trip by trip."""

    calls: tuple[Call, ...]
    depth: int

    def seconds(self, of: Callable[[Call], float]) -> float:
        """Of all, but for what only the run knows how often it is entered."""
        return math.fsum(of(c) * math.prod(loop.length for loop in c.loops[self.depth :]) for c in self.calls if not c.under)

    def run(self) -> Iterator[Call]:
        """Every call as often as it runs, in order."""
        return run(self.calls, self.depth)


@dataclasses.dataclass(frozen=True)
class Staged:
    """A stage with its work; `source` is the line of the loop that it is a trip of, empty outside of loops."""

    stage: Stage
    pieces: tuple[Piece, ...] = ()
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A modelled run of a program that streams.

    Attributes:
      wait_seconds: for the slowest of several wafers.
      in_bytes: into each wafer, in one run.
      out_bytes: out of each wafer.
    """

    system: System
    staged: tuple[Staged, ...]
    schedule: Schedule
    wafers: int
    prefetch: int
    wait_seconds: float
    in_bytes: float
    out_bytes: float

    @property
    def seconds(self) -> float:
        return self.schedule.seconds + self.wait_seconds

    @property
    def io_seconds(self) -> float:
        """That the link is busy in its busier direction."""
        return max(self.schedule.load_seconds, self.schedule.store_seconds)

    @property
    def stall_seconds(self) -> float:
        return self.schedule.parts()["stall"]

    def parts(self) -> dict[str, float]:
        """Seconds by what the wafers do or wait for; they sum to `seconds`."""
        return {**self.schedule.parts(), "wait": self.wait_seconds}

    def least_tokens(self, tokens: float) -> dict[str, float]:
        """Tokens of a wafer's micro-batch from which nothing in a loop waits for the link, by the loop's line, if the program has `tokens`
        of them a wafer and micro-batch: what a trip computes grows with the tokens, and its bytes and software do not. Between loops,
        where one layer follows another kind, it may wait all the same. With double buffering."""
        found: dict[str, float] = {}
        for source, group in itertools.groupby(self.staged, key=lambda s: s.source):
            if source:
                least = least_tokens([s.stage for s in group], tokens, float(self.system.io_bytes_per_second))
                found[source] = max(least, found.get(source, 0.0))
        return found

    def slack(self) -> list[tuple[str, float]]:
        """Seconds by which each stage's load is hidden, in order; of equal ones that follow one another the least."""
        slack = slack_seconds([s.stage for s in self.staged], float(self.system.io_bytes_per_second))
        named = zip((s.stage.name for s in self.staged), slack, strict=True)
        return [(name, min(float(one) for _, one in group)) for name, group in itertools.groupby(named, key=lambda pair: pair[0])]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; seconds are modelled."""
        finite = lambda x: float(x) if math.isfinite(x) else None
        return {
            "modelled": True,
            "wafers": self.wafers,
            "prefetch": self.prefetch,
            "stages": len(self.staged),
            "in_bytes": self.in_bytes,
            "out_bytes": self.out_bytes,
            "seconds": self.seconds,
            "parts_seconds": self.parts(),
            "load_seconds": self.schedule.load_seconds,
            "store_seconds": self.schedule.store_seconds,
            "slack_seconds": [{"stage": name, "seconds": finite(slack)} for name, slack in self.slack()],
        }


def apart(system: System, streaming: Streaming | None = None) -> System:
    """The system for kernels beside which software and the boundary of a step have a time of their own. `GEMM_SHARE` was fitted to runs
    that streamed, as if all of their time were kernels; with the rest counted apart, products keep `matrix_share` of the lanes busy."""
    by = Streaming() if streaming is None else streaming
    generation = system.name.replace("CS", "WSE")
    factor = by.matrix_share / GEMM_SHARE.get(generation, GEMM_SHARE["WSE-2"])
    return system.replace(
        gemm_fp16_fma_per_cycle=system.gemm_fp16_fma_per_cycle * factor, gemm_fp32_fma_per_cycle=system.gemm_fp32_fma_per_cycle * factor
    )


def streamed_run(
    program: Program, seconds_of: Callable[[Call], float], system: System, streaming: Streaming | None = None, prefetch: int = 1
) -> Streamed:
    """The modelled run of a program with calls of kind "stream".

    Args:
      seconds_of: modelled seconds of one trip of a call that PEs work on.
      streaming: what software and cluster add; `Streaming()` if None.
      prefetch: layers of weights on their way while one is worked on, as `MemoryX.prefetch_layers`.

    Raises:
      UnknownTripsError: something streams in a loop of unknown length or a branch.
      ValueError: more stages than can be laid out.
    """
    by = Streaming() if streaming is None else streaming
    found = _staged(program, seconds_of, float(by.layer_seconds))
    loads, stores = sum(s.stage.in_bytes + s.stage.back_bytes for s in found), sum(s.stage.out_bytes for s in found)
    if any(s.stage.back_bytes for s in found):
        found = _fenced_update(found)
    if any(c.kind == "stream" and c.kernel == "store" for c in program.calls):
        found.append(Staged(Stage("boundary", 0.0, fenced=True, memoryx_seconds=boundary_seconds(program, system, by))))
    wafers = program.wafers
    depth = SwarmX(arity=int(by.tree_arity)).depth(wafers)
    made = schedule(
        [s.stage for s in found],
        float(system.io_bytes_per_second),
        prefetch=prefetch,
        latency_seconds=float(system.io_latency_seconds) + depth * float(by.tree_node_seconds),
    )
    wait = made.seconds * float(by.wait_per_doubling) * math.log2(wafers)
    return Streamed(system, tuple(found), made, wafers, prefetch, wait, loads, stores)


def _fenced_update(found: list[Staged]) -> list[Staged]:
    """What follows the last sum over the wafers, the optimiser of weights that are held on them, waits for all sums."""
    last = max(n for n, s in enumerate(found) if s.stage.back_bytes)
    return [*found[: last + 1], Staged(Stage("sums over wafers", 0.0, fenced=True)), *found[last + 1 :]]


def boundary_seconds(program: Program, system: System, by: Streaming) -> float:
    """Of a step: all weights cross the link each way `program_boundary_passes` times, as 32 bits each (`Streaming`)."""
    weights = sum(math.prod(a.shape) for a in program.weights)
    if not weights:  # a program that does not say which are weights: what it stores, as often as it does
        weights = sum(math.prod(a.shape) * c.trips for c in program.calls if c.kernel == "store" and c.kind == "stream" for a in c.ins)
    return float(2.0 * by.program_boundary_passes * weights * by.weight_bytes / system.io_bytes_per_second)


# ---- from calls to stages --------------------------------------------------------------------------------------------
_PASS = "pass"  # a trip of a loop in which something streams begins
_WAITS = "waits"  # a sum over the wafers that the work after it reads
_STORED = "stored"  # a sum over the wafers on its way to MemoryX, which is where the tree ends: the store says it all
_Item = tuple[str, Any, str]  # (what, a call, a piece or nothing, source of the innermost loop that is run trip by trip)


def _sums(calls: Sequence[Call]) -> dict[int, str]:
    """Of sums over the wafers, by the call's id: which are stored, and which are read by work in the same trip. The others are first needed
    by work after the loop. A sum may be rearranged before it is stored, so a store of its size is its store (of its line, if any)."""
    found: dict[int, str] = {}
    stores = [c for c in calls if c.kind == "stream" and c.kernel == "store"]
    for n, call in enumerate(calls):
        if call.kind != "stream" or call.kernel != "swarm":
            continue
        where = lambda c: (c.loops, c.under, c.stream_bytes[1])
        mine = [c for c in stores if where(c) == where(call)]
        if (store := next((c for c in mine if c.source == call.source), next(iter(mine), None))) is not None:
            stores.remove(store)
            found[id(call)] = _STORED
            continue
        numbers = {a.number for a in call.outs} - {-1}
        trip = itertools.takewhile(lambda c, call=call: c.loops[: len(call.loops)] == call.loops, calls[n + 1 :])
        if any(c.kind not in OUTSIDE and numbers & {a.number for a in c.ins} for c in trip):
            found[id(call)] = _WAITS
    return found


def _items(calls: Sequence[Call], depth: int, source: str, how: dict[int, str]) -> list[_Item]:
    """What happens in order, loops with streams run trip by trip. `how` says which sums are waited for."""
    found: list[_Item] = []
    for loop, group in itertools.groupby(calls, key=lambda c: c.loops[depth] if len(c.loops) > depth else None):
        body = list(group)
        if loop is None:
            for streams, some in itertools.groupby(body, key=lambda c: c.kind == "stream"):
                here = tuple(some)
                found += [(how.get(id(c), c.kernel), c, source) for c in here] if streams else [("work", Piece(here, depth), source)]
        elif any(c.kind == "stream" for c in body):
            trip = _items(body, depth + 1, loop.source, how)
            inner = any(len(c.loops) > depth + 1 and c.kind == "stream" for c in body)
            trip = trip if inner else [(_PASS, None, loop.source), *trip]
            if len(found) + len(trip) * loop.length > 10 * MOST_STAGES:
                raise ValueError(f"the loop at {loop.source} streams {loop.length} times, too often to lay out: price one step of it")
            found += trip * loop.length
        else:
            found.append(("work", Piece(tuple(body), depth), source))
    return found


class _Maker:
    """Collects what happens until the next load."""

    def __init__(self, seconds_of: Callable[[Call], float], layer_seconds: float, small_bytes: float) -> None:
        self.seconds_of, self.layer_seconds, self.small = seconds_of, layer_seconds, small_bytes
        self.done: list[Staged] = []
        self.memo: dict[int, float] = {}
        self.owed = False  # the software's time of a pass: the next load's
        self.clear()

    def clear(self) -> None:
        self.names: list[str] = []
        self.pieces: list[Piece] = []
        self.in_bytes = self.out_bytes = self.back_bytes = self.fixed = 0.0
        self.source = ""

    def close(self, fenced: bool = False) -> None:
        if self.in_bytes or self.out_bytes or self.pieces:
            compute = math.fsum(self.memo[id(p)] if id(p) in self.memo else self._priced(p) for p in self.pieces)
            name = ", ".join(self.names) or (self.done[-1].stage.name if self.done else "start")
            stage = Stage(name, compute, self.in_bytes, self.out_bytes, self.fixed, fenced=fenced, back_bytes=self.back_bytes)
            self.done.append(Staged(stage, tuple(self.pieces), self.source))
            if len(self.done) > MOST_STAGES:
                raise ValueError(f"more than {MOST_STAGES:,} stages stream: price one step of the loop at {self.source}")
        self.clear()

    def _priced(self, piece: Piece) -> float:
        """Once for each piece, which all trips of a loop share."""
        return self.memo.setdefault(id(piece), piece.seconds(self.seconds_of))

    def add(self, what: str, thing: Any, source: str) -> None:
        if what == _PASS:
            self.owed = True
            return
        if what == "work":
            if not any(c.kind not in OUTSIDE for c in thing.calls):
                return
            if self.out_bytes:  # its gradient leaves while it goes on
                self.close()
            self.pieces.append(thing)
        elif what == "load":
            if thing.stream_bytes[0] < self.small and not self.owed:
                self.in_bytes += thing.stream_bytes[0]
                return
            if self.pieces or self.out_bytes:
                self.close()
            self.names += [] if thing.source in self.names else [thing.source]
            self.in_bytes += thing.stream_bytes[0]
            if self.owed and thing.source == source:  # a slice for this trip; what has a line of its own is the same in every trip
                self.fixed, self.owed = self.layer_seconds, False
        elif what == "store":
            self.out_bytes += thing.stream_bytes[1]
        elif what == "swarm":
            down, up = thing.stream_bytes
            self.out_bytes += up
            self.back_bytes += down
        elif what == _WAITS:  # up the tree and back: a round trip that the wafer waits for
            down, up = thing.stream_bytes
            self.out_bytes += up
            self.close()
            self.names, self.in_bytes, self.source = [f"sum of {thing.source}"], down, source
            self.close(fenced=True)
        self.source = source or self.source


def _staged(program: Program, seconds_of: Callable[[Call], float], layer_seconds: float) -> list[Staged]:
    for call in program.calls:
        if call.kind == "stream" and call.under:
            raise UnknownTripsError(
                f"{call.kernel} at {call.source} is inside a loop of unknown length or a branch at {call.under[0].source}: when it "
                "streams is known only when it runs; give while_trips"
            )
    largest = max((c.stream_bytes[0] for c in program.calls), default=0)
    maker = _Maker(seconds_of, layer_seconds, SMALL * largest)
    for item in _items(program.calls, 0, "", _sums(program.calls)):
        maker.add(*item)
    maker.close()
    return maker.done


def run(calls: Sequence[Call], depth: int = 0) -> Iterator[Call]:
    """Every call as often as it runs, in order: neighbours in the same loop are its body."""
    for loop, group in itertools.groupby(calls, key=lambda c: c.loops[depth] if len(c.loops) > depth else None):
        body = list(group)
        for _ in range(1 if loop is None else loop.length):
            yield from body if loop is None else run(body, depth + 1)
