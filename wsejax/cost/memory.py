"""`wse.memory`: what of a program's data each PE must hold, by liveness over the walk, and whether it fits into SRAM.

An array split along both axes is dealt evenly over the PEs of the system; one split along one axis, or along none, is repeated along
the others as its layout says, unless its copies would be larger than `REPLICATED_BYTES`: then it is dealt out, too, and read from
where it lies. Reshapes and transposes share the memory of what they rearrange, and an element-wise result takes that of an operand nobody
reads again. What a loop saves for later is one stacked array outside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsejax.compiler import Graph, Layouts, Lowered, Op, Value
from wsejax.compiler.ir import scan_split
from wsejax.compiler.work import FREE, MATRICES, REDUCTIONS
from wsejax.hardware import CS3, System, as_system
from wsejax.kernels.relayout import Layout

REPLICATED_BYTES = 1024
PRODUCTS = ("dot_general", "conv_general_dilated", "ring_attention", "ring_attention_gradient")
STREAMED_KINDS = ("inputs", "saved", "activations", "buffers")  # what is on the wafer when weights are not
# whose result is not written over an operand
ELSEWHERE = {
    *PRODUCTS, *REDUCTIONS, *MATRICES, "concatenate", "dynamic_slice", "fft", "gather", "pad", "rev", "slice", "sort", "stack", "tile",
}  # fmt: skip
KINDS = ("weights", "state", "inputs", "gradients", "saved", "activations", "buffers")


@dataclasses.dataclass(frozen=True)
class Held:
    """An array alive at the peak."""

    kind: str
    value: str
    layout: Layout
    shape: tuple[int, ...]
    pe_bytes: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the fullest PE holds at the program's high-water mark, in bytes, and the verdict.

    Attributes:
      peak: bytes by kind. "weights" are read by products, "state" is what else is donated (moments of an optimiser), "gradients" are values
        of a weight's shape that the program makes, "saved" what loops stack up (activations for the backward pass), "buffers" the
        operands that are under way in a product.
      at: the operation at which it happens.
      code_bytes: program text and runtime of a real machine.
      streamed_peak: bytes by kind at the fullest moment of what streaming leaves on the wafer.
      layer_bytes: two layers of weights and one of gradients: what streaming holds of the others.
      verdict: "resident", "streamed" or "does not fit".
    """

    system: System
    peak: dict[str, float]
    at: str
    code_bytes: float
    streamed_peak: dict[str, float]
    layer_bytes: float
    held: tuple[Held, ...]
    advice: tuple[str, ...]
    streams: bool = False  # the program is one that streams, whatever would fit

    @property
    def peak_bytes(self) -> float:
        return sum(self.peak.values()) + self.code_bytes

    @property
    def streamed_bytes(self) -> float:
        """The peak if weights, state and gradients stay outside, but for a few layers."""
        return sum(self.streamed_peak.values()) + self.layer_bytes + self.code_bytes

    @property
    def verdict(self) -> str:
        room = float(self.system.sram_per_pe_bytes)
        resident = self.peak_bytes <= room and not self.streams
        return "resident" if resident else "streamed" if self.streamed_bytes <= room else "does not fit"

    def to_dict(self) -> dict[str, Any]:
        return {
            "system": self.system.name,
            "verdict": self.verdict,
            "sram_per_pe_bytes": float(self.system.sram_per_pe_bytes),
            "peak_bytes": self.peak_bytes,
            "streamed_bytes": self.streamed_bytes,
            "code_bytes": self.code_bytes,
            **{f"{kind}_bytes": n for kind, n in self.peak.items()},
            "at": self.at,
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {n:,.0f}" for kind, n in self.peak.items() if n >= 0.5)
        held = self.streamed_bytes if self.streams else self.peak_bytes
        lines = [
            f"{self.verdict}: {held:,.0f} of {self.system.sram_per_pe_bytes:,.0f} bytes in the fullest PE of {self.system.name}",
            f"at {self.at}: {parts}, code {self.code_bytes:,.0f}; "
            + (f"resident {self.peak_bytes:,.0f}" if self.streams else f"streamed {self.streamed_bytes:,.0f}"),
        ]
        return "\n".join([*lines, *self.advice])

    def map(self) -> Float[np.ndarray, "rows cols"]:
        """Bytes of every PE at the peak, code included; the fullest has `peak_bytes`. Dimensions are cut into blocks along their axis, so
        the last PEs may hold less; what is dealt evenly is the same everywhere."""
        rows, cols = int(np.min(self.system.rows)), int(np.min(self.system.cols))
        total = np.full((rows, cols), self.code_bytes + self.peak["buffers"])
        for held in self.held:
            shares = {"y": np.ones(rows), "x": np.ones(cols)}
            for n, axis in zip(held.shape, held.layout, strict=True):
                line = len(shares[axis]) if axis else 0
                if axis and n >= line:
                    block = -(-n // line)
                    shares[axis] = np.clip(n - block * np.arange(line), 0, block) / block
            total += held.pe_bytes * shares["y"][:, None] * shares["x"][None, :]
        return total


def memory(lowered: Lowered, system: System | str = CS3) -> Memory:
    """The high-water mark of SRAM in the fullest PE. Needs shapes only.

    Args:
      lowered: what `wse.jit(f, wafer).lower(...)` gives. Arguments are held throughout unless they are donated.
      system: the machine, as for `wse.cost`.
    """
    plan, chosen, system = lowered.plan, lowered.chosen, as_system(system)
    graph, streams = lowered.on_the_wafer, lowered.on_the_wafer is not plan.graph
    weights = set(lowered.weights)
    given_away = {graph.ins[n] for n in lowered.donated}
    kind = {v: "weights" if v in weights else "state" if v in given_away else "inputs" for v in graph.ins}
    mark = _Mark(chosen, system, weights if given_away else set())
    mark.layouts.update(zip(graph.ins, plan.ins, strict=True))
    live = {v: kind[v] for v in graph.ins}
    keep = {v for v in graph.ins if v not in given_away} | set(graph.outs)
    fullest, streamed = mark.walk(graph, live, keep, results=set(graph.outs) if given_away else frozenset())
    code = float(np.max(system.code_per_pe_bytes))
    left = {k: n for k, n in streamed.bytes_of.items() if k in STREAMED_KINDS}
    found = Memory(system, fullest.bytes_of, fullest.at, code, left, _layer_bytes(graph, weights, system), fullest.held, (), streams)
    return dataclasses.replace(found, advice=_advice(found, weights))


@dataclasses.dataclass(frozen=True)
class _Moment:
    """What is held at one op."""

    bytes_of: dict[str, float]
    at: str
    held: tuple[Held, ...]

    def total(self, kinds: tuple[str, ...]) -> float:
        return sum(self.bytes_of.get(kind, 0.0) for kind in kinds)


class _Mark:
    """The walk: which values are alive, and the fullest moment."""

    def __init__(self, chosen: Layouts, system: System, trained: set[Value]) -> None:
        self.chosen, self.system = chosen, system
        self.layouts: dict[Value, Layout] = {}
        self.gradients = {self.dims(v, first) for v in trained for first in (0, 1) if v.ndim > first}

    def dims(self, value: Value, first: int = 0) -> tuple[Any, ...]:
        """Which classes of dimensions a value has, in any order: a gradient has those of its weight, or of a layer's slice of it."""
        roots = [self.chosen.classes.find((value, d)) for d in range(first, value.ndim)]
        return tuple(sorted(roots, key=lambda root: (id(root[0]), root[1])))

    def pe_bytes(self, value: Value) -> float:
        layout = self.layouts.get(value) or self.chosen[value]
        rows, cols = float(np.min(self.system.rows)), float(np.min(self.system.cols))
        elements = math.prod(value.shape)
        width = value.size_bytes / elements if elements else 0.0
        line = {"y": rows, "x": cols}
        axes = {a for a in layout if a}
        repeated = math.ceil(elements / math.prod(line[a] for a in axes)) * width if len(axes) < 2 else math.inf
        return repeated if repeated <= REPLICATED_BYTES else math.ceil(elements / (rows * cols)) * width

    def kind(self, value: Value, op: Op) -> str:
        if value.ndim and self.gradients and self.dims(value) in self.gradients:
            return "gradients"
        stacked = op.name == "scan" and op.outs.index(value) >= scan_split(op)[1]
        return "saved" if stacked else "activations"

    def walk(
        self,
        graph: Graph,
        live: dict[Value, str],
        keep: set[Value],
        results: set[Value] | frozenset[Value] = frozenset(),
        elsewhere: Sequence[Value] = (),
    ) -> tuple[_Moment, _Moment]:
        """(the fullest moment, the fullest of what streaming leaves) of a graph whose inputs `live` holds already; `results` are the new
        state, and who runs the graph has the memory of `elsewhere`."""
        root: dict[Value, Value] = {}
        find = lambda v: find(root[v]) if v in root else v
        ends = set(graph.outs)
        for op in graph.ops:
            if op.name in FREE and op.ins:
                ins = op.ins if len(op.ins) == len(op.outs) else op.ins[:1] * len(op.outs)
                # a copy of one element for many is read in place, but handed out it is as large as it says
                spread = op.name.startswith("broadcast") and any(out in ends for out in op.outs)
                root.update((out, v) for v, out in zip(ins, op.outs, strict=True) if v.const is None and not spread)
        last: dict[Value, int] = {}
        for i, op in enumerate(graph.ops):
            last.update((find(v), i) for v in op.ins)
        kept = {find(v) for v in (*keep, *graph.outs)}
        new_state, given = {find(v) for v in results}, {find(v) for v in elsewhere}
        now, sizes = dict(live), {v: self.pe_bytes(v) for v in live}
        best = [self._moment(now, sizes, _NOTHING, "the arguments")] * 2
        for i, op in enumerate(graph.ops):
            dying = [v for v in {find(v) for v in op.ins} if last.get(v) == i and v in now and v not in kept]
            for out in op.outs:
                if find(out) is out:
                    sizes[out] = 0.0 if out in given else self.pe_bytes(out)
                    taken = None if op.bodies or op.name in ELSEWHERE else next((v for v in dying if sizes[v] == sizes[out]), None)
                    if taken is not None and taken in now:  # done in place
                        del now[taken]
                    now[out] = self.kind(out, op)
                    if out in new_state and now[out] == "gradients":
                        now[out] = "state"
            for n, (kinds, inside) in enumerate(zip((KINDS, STREAMED_KINDS), self._inside(op), strict=True)):
                moment = self._moment(now, sizes, inside, f"{op.name} at {op.source}")
                if moment.total(kinds) > best[n].total(kinds):
                    best[n] = moment
            for v in (*dying, *(find(o) for o in op.outs if find(o) not in last and find(o) not in kept)):
                now.pop(v, None)
        return best[0], best[1]

    def _moment(self, now: dict[Value, str], sizes: dict[Value, float], inside: _Moment, at: str) -> _Moment:
        bytes_of = dict.fromkeys(KINDS, 0.0) | inside.bytes_of
        for v, kind in now.items():
            bytes_of[kind] += sizes[v]
        held = lambda: tuple(Held(k, str(v), self.layouts.get(v) or self.chosen[v], v.shape, sizes[v]) for v, k in now.items())
        return _Moment(bytes_of, at, (*held(), *inside.held))

    def _inside(self, op: Op) -> tuple[_Moment, _Moment]:
        """What an op needs besides its operands and results: the body of a loop, or operands under way."""
        if not op.bodies:
            moving = {"buffers": sum(self.pe_bytes(v) for v in op.ins)} if op.name in PRODUCTS else {}
            here = _Moment(moving, "", ())
            return here, here
        # what comes in is held outside, or is a slice of it; what goes out is the op's result
        pairs = [self.walk(body, {}, keep=set(), elsewhere=body.outs) for body in op.bodies]
        return max((p[0] for p in pairs), key=lambda m: m.total(KINDS)), max((p[1] for p in pairs), key=lambda m: m.total(STREAMED_KINDS))


_NOTHING = _Moment({}, "", ())


def _layer_bytes(graph: Graph, weights: set[Value], system: System) -> float:
    """Bytes a PE of two layers of weights (one in use, one arriving) and one of gradients. A layer is a slice of the loop over layers, or
    the largest weight outside of it."""
    slices = [v.size_bytes / v.shape[0] for op in graph.ops if op.name == "scan" for v in op.ins if v in weights and v.ndim > 1]
    scanned = {v for op in graph.ops if op.name == "scan" for v in op.ins}
    single = [v.size_bytes for v in weights if v not in scanned]
    return 3.0 * max([sum(slices) / max(1, _scans(graph, weights)), *single, 0.0]) / float(np.min(system.pes))


def _scans(graph: Graph, weights: set[Value]) -> int:
    return sum(op.name == "scan" and any(v in weights for v in op.ins) for op in graph.ops)


def _advice(found: Memory, weights: set[Value]) -> tuple[str, ...]:
    """What to change, most effective first, with what it brings."""
    room, said = float(found.system.sram_per_pe_bytes), []
    over = found.peak_bytes - room
    if over <= 0:
        return ()
    fixed = found.peak["weights"] + found.peak["state"] + found.peak["gradients"]
    biggest = max(KINDS, key=lambda kind: found.peak[kind])
    said.append(f"{over:,.0f} bytes a PE too many; {biggest} take most ({found.peak[biggest]:,.0f})")
    if found.streamed_bytes <= room:
        said.append(
            f"streamed, weights, state and gradients ({fixed:,.0f}) stay outside the wafer: it fits with {found.streamed_bytes:,.0f}"
        )
    varying = sum(found.streamed_peak.values()) - found.streamed_peak["inputs"]
    fixed_bytes = {"code": found.code_bytes, "inputs": found.streamed_peak["inputs"], "weights of a few layers": found.layer_bytes}
    left = room - sum(fixed_bytes.values())
    if found.streamed_bytes > room and left > 0:
        parts = math.ceil(varying / left)
        said.append(f"batch: work through it in {parts} parts (micro-batches, or pieces of a sequence)")
        saved = found.streamed_peak["saved"]
        if saved > varying / 2:
            said.append(f"remat: {saved:,.0f} are saved for the backward pass; recompute more of it (jax.checkpoint round a layer)")
    elif found.streamed_bytes > room:
        what = max(fixed_bytes, key=lambda name: fixed_bytes[name])
        said.append(
            f"{what} alone take {fixed_bytes[what]:,.0f} of {room:,.0f} bytes a PE, {-left:,.0f} too many with the rest: use more PEs"
        )
    if any(v.dtype.itemsize >= 4 for v in weights):
        halved = found.peak["weights"] + varying
        said.append(f"dtype: 16-bit weights and activations halve {halved:,.0f} bytes")
    return tuple(said)
