"""`wse.cost`: what a program would take on a real machine, from the `Program` alone.

The wafer does one kernel after the other, each on the whole grid, so cycles add up; inside a kernel computing and moving overlap as its
closed form says. A program that itself says what streams is laid out stage by stage (`stages.py`). Of any other whose weights do not fit
they stream in while the wafer computes, and the longer of the two counts. All of it is modelled.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsejax.compiler import Call, Loop, Lowered, Program, Unknown
from wsejax.cost.errors import UnknownTripsError, model_error
from wsejax.cost.memory import memory
from wsejax.cost.path import critical_path
from wsejax.cost.sparsity import Sparsity, with_sparsity
from wsejax.cost.stages import OUTSIDE, Streamed, apart, streamed_run
from wsejax.cost.training import Streaming
from wsejax.hardware import CS3, System, as_system
from wsejax.kernels.price import Price, most
from wsejax.kernels.work import SparseProduct, Work

EXECUTIONS = ("auto", "resident", "streamed")


@dataclasses.dataclass(frozen=True)
class Line:
    """Calls of the same kernel from the same source line, with their modelled price together. `count` is None where it is not known; the
    price is then that of one entry into the innermost loop of unknown length."""

    kind: str
    primitive: str
    kernel: str
    source: str
    count: int | None
    price: Price

    @property
    def bound(self) -> str:
        """What takes most of the time: "compute", "fabric" (wavelets on links) or "latency" (wavelets under way, software stages)."""
        parts = {"compute": self.price.compute_cycles, "fabric": self.price.fabric_cycles, "latency": self.price.wait_cycles}
        return max(parts, key=lambda name: parts[name])


@dataclasses.dataclass(frozen=True)
class Cost:
    """The modelled cost of one run of a program on a system. Times are modelled wafer time, never measured.

    Attributes:
      price: of all kernels; where loops of unknown length or branches are in the program, the least it can be.
      most_cycles: the most it can be; infinite if a loop may run for ever.
      execution: "resident", or "streamed": weights come from outside during the run, and gradients leave.
      io_seconds: that streaming takes, the busier direction of the link; 0 if resident.
      critical_cycles: of the longest chain of kernels that wait for one another: what is left if all others ran beside it on PEs of their
        own. Loops of unknown length count for nothing.
      critical: the chain, as cycles by kernel and source line, in order.
      tokens: of one run, all wafers together, if they were given.
      streamed: of a program that itself says what streams, when each stage loads, computes and stores.
      wafers: that share the run. `price` and `lines` are of one of them, `joules` of all.
      sparsity: what zero weights save, if a share of them was given.
    """

    system: System
    lines: tuple[Line, ...]
    price: Price
    most_cycles: float
    execution: str
    io_seconds: float
    critical_cycles: float
    critical: Mapping[tuple[str, str], float]
    tokens: int | None = None
    streamed: Streamed | None = None
    wafers: int = 1
    sparsity: Sparsity | None = None

    @property
    def compute_seconds(self) -> float:
        """Of the wafer, computing and moving."""
        return self.system.seconds(self.price.cycles)

    @property
    def step_seconds(self) -> float:
        return max(self.compute_seconds, self.io_seconds, 0.0 if self.streamed is None else self.streamed.seconds)

    @property
    def most_step_seconds(self) -> float:
        """With what is not known added to a run without it: more than it can be where it would hide a load."""
        if self.most_cycles == self.price.cycles:
            return self.step_seconds
        known = 0.0 if self.streamed is None else self.streamed.seconds - self.system.seconds(self.known_cycles)
        return max(self.system.seconds(self.most_cycles) + max(0.0, known), self.io_seconds)

    @property
    def known_cycles(self) -> float:
        """Of kernels that run as often as the program says."""
        return math.fsum(float(line.price.cycles) for line in self.lines if line.count is not None)

    @property
    def joules(self) -> float:
        waiting = self.step_seconds - self.compute_seconds
        return self.wafers * (self.price.joules(self.system) + waiting * self.system.idle_watts)

    @property
    def watts(self) -> float:
        return self.joules / self.step_seconds if self.step_seconds else self.wafers * self.system.idle_watts

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.tokens is None or not self.step_seconds else self.tokens / self.step_seconds

    @property
    def mfu(self) -> float:
        """Share of the dense 16-bit peak (no sparsity) that the program's operations make."""
        peak = self.system.dense_peak_fp16_flops_per_second
        return self.price.flops / (self.step_seconds * peak) if self.step_seconds else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the wafer's time in which its busiest PEs compute."""
        return self.price.compute_cycles / self.price.cycles if self.price.cycles else 0.0

    @property
    def roofline(self) -> dict[str, float | str]:
        """Where the program stands under the roofs of computing, SRAM and links: intensities in flops a byte, and the lowest roof."""
        p, s = self.price, self.system
        sram, links = s.pes * s.sram_bytes_per_cycle * s.clock_hz, 4.0 * s.pes * s.link_bits / 8.0 / s.wavelet_cycles * s.clock_hz
        roofs = {"compute": s.dense_peak_fp16_flops_per_second}
        if p.sram_bytes:
            roofs["sram"] = p.flops / p.sram_bytes * sram
        if p.byte_hops:
            roofs["fabric"] = p.flops / (p.byte_hops * s.dilation) * links
        lowest = min(roofs, key=lambda name: roofs[name])
        return {
            "flops_per_sram_byte": p.flops / p.sram_bytes if p.sram_bytes else math.inf,
            "flops_per_link_byte": p.flops / p.byte_hops if p.byte_hops else math.inf,
            "attainable_flops_per_second": roofs[lowest],
            "achieved_flops_per_second": p.flops / self.step_seconds if self.step_seconds else 0.0,
            "roof": lowest,
        }

    def __str__(self) -> str:
        known, endless = self.most_cycles == self.price.cycles, math.isinf(self.most_cycles)
        most = "" if known else " or more" if endless else f" to {self.most_step_seconds:.4g} s"
        many = f"{self.wafers} x " if self.wafers > 1 else ""
        return (
            f"modelled step on {many}{self.system.name}, {self.execution}: {self.step_seconds:.4g} s{most}, {self.mfu:.1%} of the dense "
            f"peak, {self.joules:.4g} J (whole training steps: {model_error(self.error_group)})"
        )

    @property
    def error_group(self) -> str:
        """Of published points that whole training steps so priced were held against."""
        return "whole programs" if self.streamed is None or self.execution == "resident" else "streamed programs"

    def by_kernel(self) -> dict[str, Price]:
        return _grouped(self.lines, lambda line: line.kernel)

    def by_source(self) -> dict[str, Price]:
        return _grouped(self.lines, lambda line: line.source)

    def costliest(self, count: int = 10) -> list[tuple[Line, float]]:
        """The lines that take longest, with their share of the cycles."""
        total = self.price.cycles or 1.0
        longest = sorted((line for line in self.lines if line.count is not None), key=lambda line: -line.price.cycles)
        return [(line, line.price.cycles / total) for line in longest[:count]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; seconds and joules are modelled. What is unbounded is None."""
        finite = lambda x: float(x) if math.isfinite(x) else None
        fields = [f.name for f in dataclasses.fields(Price)]
        as_dict = lambda price: {name: float(getattr(price, name)) for name in fields}
        return {
            "modelled": True,
            "system": self.system.name,
            "execution": self.execution,
            "step_seconds": float(self.step_seconds),
            "most_step_seconds": finite(self.most_step_seconds),
            "compute_seconds": float(self.compute_seconds),
            "io_seconds": float(self.io_seconds),
            "wafers": self.wafers,
            "streaming": None if self.streamed is None else self.streamed.to_dict(),
            "weight_sparsity": None if self.sparsity is None else self.sparsity.to_dict(),
            "joules": float(self.joules),
            "tokens_per_second": None if self.tokens_per_second is None else float(self.tokens_per_second),
            "mfu": float(self.mfu),
            "utilisation": float(self.utilisation),
            "roofline": {k: v if isinstance(v, str) else finite(v) for k, v in self.roofline.items()},
            "price": as_dict(self.price),
            "critical_cycles": float(self.critical_cycles),
            "critical_path": [{"kernel": k, "source": source, "cycles": float(n)} for (k, source), n in self.critical.items()],
            "lines": [
                {**{n: getattr(line, n) for n in ("kind", "primitive", "kernel", "source", "count", "bound")}, **as_dict(line.price)}
                for line in self.lines
            ],
        }


def _grouped(lines: Sequence[Line], key) -> dict[str, Price]:
    found: dict[str, Price] = {}
    for line in lines:
        if line.count is not None:
            found[key(line)] = found.get(key(line), Price()) + line.price
    return dict(sorted(found.items(), key=lambda item: -item[1].cycles))


def price_of(call: Call, system: System) -> Price:
    """Of one trip of a call."""
    return sum((w.price(system) for w in call.work), Price())


def cost(
    program: Lowered | Program,
    system: System | str = CS3,
    *,
    tokens: int | None = None,
    while_trips: int | Mapping[str, int] | None = None,
    execution: str = "auto",
    streaming: Streaming | None = None,
    prefetch: int = 1,
    weight_sparsity: Any = None,
) -> Cost:
    """The modelled cost of one run. Needs shapes only: nothing is allocated or compiled.

    Args:
      program: what `wse.jit(f, wafer).lower(...)` gives, or its `program`. Priced on the PEs of `system`, whatever the wafer's tiles are;
        their layouts are those of the program.
      system: `wse.CS1`, `wse.CS2`, `wse.CS3` or their names, one with other numbers (`replace`), or a wafer's defects (`CS3.of(wafer)`).
      tokens: of one run, for tokens a second.
      while_trips: how often a `while` runs, for all or by source line. Without it the cost is a pair of bounds.
      execution: "resident", "streamed", or "auto": resident if `wse.memory` says so (of a bare `Program`: if its state fits). A program
        that says what streams is streamed.
      streaming: what software and cluster add to such a program's layers and steps; `Streaming()` if None.
      prefetch: layers of its weights on their way while one is worked on, as `MemoryX.prefetch_layers`.
      weight_sparsity: share of zeros, by weight or of all (`sparsity.shares_of`). It saves time where weights stream, none where they are
        resident; `Cost.sparsity` says how much and where. No published run was held against it.

    Raises:
      ValueError: an unknown execution, "resident" of a program that streams, numbers that are not positive, or a share outside [0, 1).
      UnknownTripsError: something streams in a loop of unknown length or a branch.
    """
    system = as_system(system)
    if execution not in EXECUTIONS:
        raise ValueError(f"execution={execution!r}: must be one of {', '.join(EXECUTIONS)}")
    if tokens is not None and not tokens >= 1:
        raise ValueError(f"tokens={tokens!r}: must be at least 1, or None")
    plan = program.program if isinstance(program, Lowered) else program
    if weight_sparsity is not None:
        options: dict[str, Any] = dict(tokens=tokens, streaming=streaming, prefetch=prefetch)
        dense = cost(program, system, while_trips=while_trips, execution=execution, **options)
        settled = dataclasses.replace(plan, calls=tuple(_settled(c, while_trips) for c in plan.calls))
        return with_sparsity(dense, settled, weight_sparsity, lambda new: cost(new, system, execution="streamed", **options))
    streams, away = plan.streams, any(c.kernel in ("load", "store") for c in plan.of_kind("stream"))
    if away and execution == "resident":
        raise ValueError("execution='resident': this program streams its weights; compile it without streamed_argnums to price it resident")
    if streams:  # sums over wafers alone leave weights where they are
        execution = "streamed" if away else "resident"
        system = apart(system, streaming) if away else system
    elif execution == "auto" and isinstance(program, Lowered):
        execution = "resident" if memory(program, system).verdict == "resident" else "streamed"
    program = plan
    _checked_trips(program, while_trips)
    calls = [_settled(call, while_trips) for call in program.calls]
    memo: dict[Any, Price] = {}
    groups: dict[Any, list[tuple[Call, Price]]] = collections.defaultdict(list)
    priced: list[tuple[Call, Price]] = []
    once: list[tuple[Call, float]] = []
    for call in calls:
        if not call.work or call.kind in OUTSIDE:
            once.append((call, 0.0))
            continue
        one = memo[call.work] if call.work in memo else memo.setdefault(call.work, price_of(call, system))
        one = one if any(isinstance(w, SparseProduct) for w in call.work) else dataclasses.replace(one, flops=float(call.flops))
        once.append((call, 0.0 if call.under else float(one.cycles)))
        priced.append((call, one * call.trips))
        groups[call.kind, call.primitive, call.kernel, call.source, bool(call.under)].append(priced[-1])
    lines = tuple(
        Line(kind, op, kernel, source, None if unknown else sum(call.trips for call, _ in items), sum((p for _, p in items), Price()))
        for (kind, op, kernel, source, unknown), items in groups.items()
    )
    low, high = _bounds(priced)
    if execution == "auto":
        held = max(program.weight_bytes, program.state_bytes)  # weights that are donated are part of the state
        execution = "resident" if held <= float(np.min(system.sram_bytes)) else "streamed"
    path = critical_path(once)
    if streams:
        seconds_of = lambda call: float(system.seconds(memo[call.work].cycles)) if call.work in memo and call.kind not in OUTSIDE else 0.0
        run = streamed_run(dataclasses.replace(program, calls=tuple(calls)), seconds_of, system, streaming, prefetch)
        return Cost(system, lines, low, high, execution, run.io_seconds, *path, tokens, run, program.wafers)
    io = stream_seconds(program, system) if execution == "streamed" else 0.0
    return Cost(system, lines, low, high, execution, io, *path, tokens, None, program.wafers)


def stream_seconds(program: Program, system: System) -> Any:
    """Of the weights: in for the forward and the backward pass while gradients go out, or in once if nothing is trained (no argument that
    products read is donated). The link is full duplex (Hot Chips 2024: 150 GB/s each way)."""
    passes = 2.0 if program.state_bytes else 1.0
    return passes * program.weight_bytes / system.io_bytes_per_second + system.io_latency_seconds


def _settled(call: Call, while_trips: int | Mapping[str, int] | None) -> Call:
    """The call with the loops of unknown length that the user knows."""
    if while_trips is None or not call.under:
        return call
    times, under = 1, []
    for unknown in call.under:
        trips = while_trips.get(unknown.source) if isinstance(while_trips, Mapping) else while_trips
        if unknown.branch >= 0 or trips is None:
            under.append(unknown)
        else:
            times *= int(trips)
    return dataclasses.replace(call, under=tuple(under), loops=(Loop("while", times), *call.loops))


def _checked_trips(program: Program, while_trips: int | Mapping[str, int] | None) -> None:
    given = list(while_trips.values()) if isinstance(while_trips, Mapping) else [] if while_trips is None else [while_trips]
    for trips in given:
        if isinstance(trips, bool) or not isinstance(trips, int | np.integer) or trips < 0:
            raise ValueError(f"while_trips={while_trips!r}: a loop runs a whole number of times, 0 or more")
    if isinstance(while_trips, Mapping):
        known = sorted({unknown.source for call in program.calls for unknown in call.under if unknown.branch < 0})
        if missing := [source for source in while_trips if source not in known]:
            raise ValueError(
                f"while_trips has {missing[0]!r}: no loop of unknown length is there; they are at {', '.join(known) or 'no line'}"
            )


def _bounds(priced: Sequence[tuple[Call, Price]], depth: int = 0) -> tuple[Price, float]:
    """(least, most cycles): a `while` runs never or for ever, a `cond` takes one of its branches."""
    low, high = Price(), 0.0
    inner: dict[Unknown, dict[int, list[tuple[Call, Price]]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for call, price in priced:
        if len(call.under) == depth:
            low, high = low + price, high + float(price.cycles)
        else:
            unknown = call.under[depth]
            inner[dataclasses.replace(unknown, branch=min(unknown.branch, 0))][unknown.branch].append((call, price))
    for unknown, branches in inner.items():
        ends = [_bounds(items, depth + 1) for items in branches.values()]
        if unknown.branch < 0:
            high = math.inf if any(end > 0 for _, end in ends) else high
            continue
        if len(ends) < unknown.branches:  # a branch without work has no calls
            ends.append((Price(), 0.0))
        low = low + min((least for least, _ in ends), key=lambda p: p.cycles)
        high += max(end for _, end in ends)
    return low, high


# ---- as a pure function of the machine -------------------------------------------------------------------------------
StackedWork = list[tuple[Work, Any]]  # work of one formula with stacked sizes, and how often each piece is done


def stacked_work(program: Lowered | Program, while_trips: int | Mapping[str, int] | None = None) -> StackedWork:
    """A program's work with equal pieces merged and their sizes stacked, for `price`: a pytree of a few arrays.

    Raises:
      UnknownTripsError: a loop of unknown length or a branch; the message names its source line.
    """
    program = program.program if isinstance(program, Lowered) else program
    counts: dict[Work, int] = collections.defaultdict(int)
    _checked_trips(program, while_trips)
    for call in (_settled(c, while_trips) for c in program.calls):
        if call.kind in OUTSIDE:
            continue
        if call.under and call.work:
            raise UnknownTripsError(
                f"{call.kernel} is inside a loop of unknown length or a branch at {call.under[0].source}: give while_trips, or ask "
                "wse.cost for bounds"
            )
        for piece in call.work:
            counts[piece] += call.trips
    groups: dict[Any, list[tuple[Work, int]]] = collections.defaultdict(list)
    for piece, times in counts.items():
        groups[jax.tree.structure(piece)].append((piece, times))
    stack = lambda *xs: np.asarray(xs, np.float64)
    return [(jax.tree.map(stack, *(w for w, _ in items)), stack(*(n for _, n in items))) for items in groups.values()]


def price(work: StackedWork, system: System) -> Price:
    """The modelled price of `stacked_work`: a pure function, to be jitted, differentiated and mapped over systems."""
    total = Price()
    for stacked, times in work:
        each = jax.vmap(lambda piece: piece.price(system))(stacked)
        total = total + jax.tree.map(lambda x, times=times: jnp.sum(x * times), each)
    return total


def seconds(work: StackedWork, system: System, io_bytes: Any = 0.0) -> Any:
    """Modelled seconds of `stacked_work`; with `io_bytes`, the longer of computing and streaming so many bytes in."""
    return most(system.seconds(price(work, system).cycles), io_bytes / system.io_bytes_per_second)
