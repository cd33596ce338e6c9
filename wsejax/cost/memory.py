"""`wse.memory`: what of a program's data each PE must hold, by liveness over the walk, and whether it fits into SRAM.

An array split along both axes is dealt evenly over the PEs of the system; one split along one axis, or along none, is repeated along
the others as its layout says, unless its copies would be larger than `REPLICATED_BYTES`: then it is dealt out, too, and read from
where it lies. Reshapes and transposes share the memory of what they rearrange, and an element-wise result takes that of an operand nobody
reads again. What a loop saves for later is one stacked array outside it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from wsejax.compiler import Graph, Layouts, Lowered, Op, Value, weights_of
from wsejax.compiler.work import FREE
from wsejax.hardware import CS3, System
from wsejax.kernels.relayout import Layout

REPLICATED_BYTES = 1024
PRODUCTS = ("dot_general", "conv_general_dilated", "ring_attention", "ring_attention_gradient")
KINDS = ("weights", "state", "inputs", "gradients", "activations", "buffers")


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
        of a weight's shape that the program makes, "buffers" the operands that are under way in a product.
      at: the operation at which it happens.
      code_bytes: program text and runtime of a real machine.
      streamed_bytes: the peak if weights, state and gradients stay outside, except two layers of weights and one of gradients.
      verdict: "resident", "streamed" or "does not fit".
    """

    system: System
    peak: dict[str, float]
    at: str
    code_bytes: float
    streamed_bytes: float
    held: tuple[Held, ...]
    advice: tuple[str, ...]

    @property
    def peak_bytes(self) -> float:
        return sum(self.peak.values()) + self.code_bytes

    @property
    def verdict(self) -> str:
        room = float(self.system.sram_per_pe_bytes)
        return "resident" if self.peak_bytes <= room else "streamed" if self.streamed_bytes <= room else "does not fit"

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
        lines = [
            f"{self.verdict}: {self.peak_bytes:,.0f} of {self.system.sram_per_pe_bytes:,.0f} bytes in the fullest PE of {self.system.name}",
            f"at {self.at}: {parts}, code {self.code_bytes:,.0f}; streamed {self.streamed_bytes:,.0f}",
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


def memory(lowered: Lowered, system: System = CS3) -> Memory:
    """The high-water mark of SRAM in the fullest PE. Needs shapes only.

    Args:
      lowered: what `wse.jit(f, wafer).lower(...)` gives. Arguments are held throughout unless they are donated.
      system: the machine, as for `wse.cost`.
    """
    plan, chosen = lowered.plan, lowered.chosen
    graph = plan.graph
    weights = set(weights_of(graph))
    given_away = {graph.ins[n] for n in lowered.donated}
    kind = {v: "weights" if v in weights else "state" if v in given_away else "inputs" for v in graph.ins}
    shapes = {tuple(sorted(shape)) for v in weights for shape in (v.shape, v.shape[1:]) if shape}  # a product may make the transpose
    mark = _Mark(chosen, system, shapes)
    mark.layouts.update(zip(graph.ins, plan.ins, strict=True))
    live = {v: kind[v] for v in graph.ins}
    peak, at, held = mark.walk(graph, live, keep={v for v in graph.ins if v not in given_away} | set(graph.outs))
    streamed = _streamed(graph, weights, peak, system)
    code = float(np.max(system.code_per_pe_bytes))
    found = Memory(system, peak, at, code, streamed + code, held, ())
    return dataclasses.replace(found, advice=_advice(found, weights))


class _Mark:
    """The walk: which values are alive, and the fullest moment."""

    def __init__(self, chosen: Layouts, system: System, weight_shapes: set[tuple[int, ...]]) -> None:
        self.chosen, self.system, self.weight_shapes = chosen, system, weight_shapes
        self.layouts: dict[Value, Layout] = {}

    def pe_bytes(self, value: Value) -> float:
        layout = self.layouts.get(value) or self.chosen[value]
        rows, cols = float(np.min(self.system.rows)), float(np.min(self.system.cols))
        elements = math.prod(value.shape)
        width = value.size_bytes / elements if elements else 0.0
        line = {"y": rows, "x": cols}
        axes = {a for a in layout if a}
        repeated = math.ceil(elements / math.prod(line[a] for a in axes)) * width if len(axes) < 2 else math.inf
        return repeated if repeated <= REPLICATED_BYTES else math.ceil(elements / (rows * cols)) * width

    def kind(self, value: Value) -> str:
        return "gradients" if tuple(sorted(value.shape)) in self.weight_shapes else "activations"

    def walk(self, graph: Graph, live: dict[Value, str], keep: set[Value]) -> tuple[dict[str, float], str, tuple[Held, ...]]:
        """(bytes by kind at the fullest moment, where, what is alive) of a graph whose inputs `live` holds already."""
        root: dict[Value, Value] = {}
        find = lambda v: find(root[v]) if v in root else v
        for op in graph.ops:
            if op.name in FREE:
                root.update((out, v) for v, out in zip(op.ins, op.outs, strict=False) if v.const is None)
        last: dict[Value, int] = {}
        for i, op in enumerate(graph.ops):
            last.update((find(v), i) for v in op.ins)
        kept = {find(v) for v in (*keep, *graph.outs)}
        now = dict(live)
        best: tuple[float, dict[str, float], str, tuple[Held, ...]] = (-1.0, dict.fromkeys(KINDS, 0.0), "the arguments", ())
        sizes = {v: self.pe_bytes(v) for v in now}
        best = self._fuller(best, now, sizes, {}, (), "the arguments")
        for i, op in enumerate(graph.ops):
            dying = [v for v in {find(v) for v in op.ins} if last.get(v) == i and v in now and v not in kept]
            if not op.bodies and op.name not in PRODUCTS:  # done in place
                for v in dying:
                    del now[v]
            for out in op.outs:
                if find(out) is out:
                    now[out] = self.kind(out)
                    sizes[out] = self.pe_bytes(out)
            extra, more = self._inside(op)
            best = self._fuller(best, now, sizes, extra, more, f"{op.name} at {op.source}")
            for v in (*dying, *(find(o) for o in op.outs if find(o) not in last and find(o) not in kept)):
                now.pop(v, None)
        return best[1:]

    def _fuller(self, best, now, sizes, extra, more, at):
        bytes_of = dict.fromkeys(KINDS, 0.0)
        for v, kind in now.items():
            bytes_of[kind] += sizes[v]
        for kind, n in extra.items():
            bytes_of[kind] += n
        total = sum(bytes_of.values())
        if total <= best[0]:
            return best
        held = tuple(Held(k, str(v), self.layouts.get(v) or self.chosen[v], v.shape, sizes[v]) for v, k in now.items())
        return total, bytes_of, at, (*held, *more)

    def _inside(self, op: Op) -> tuple[dict[str, float], tuple[Held, ...]]:
        """Bytes that an op needs besides its operands and results: the body of a loop, or operands under way."""
        if not op.bodies:
            return {"buffers": sum(self.pe_bytes(v) for v in op.ins) if op.name in PRODUCTS else 0.0}, ()
        fullest: tuple[float, dict[str, float], tuple[Held, ...]] = (-1.0, {}, ())
        for body in op.bodies:  # what comes in is held outside, or is a slice of it
            peak, _, held = self.walk(body, {}, keep=set())
            if sum(peak.values()) > fullest[0]:
                fullest = sum(peak.values()), peak, held
        return fullest[1], fullest[2]


def _streamed(graph: Graph, weights: set[Value], peak: dict[str, float], system: System) -> float:
    """Bytes a PE with two layers of weights (one in use, one arriving) and one of gradients; a layer is a slice of the loop over layers, or
    the largest weight outside of it."""
    pes = float(np.min(system.pes))
    slices = [v.size_bytes / v.shape[0] for op in graph.ops if op.name == "scan" for v in op.ins if v in weights and v.ndim > 1]
    scanned = {v for op in graph.ops if op.name == "scan" for v in op.ins}
    single = [v.size_bytes for v in weights if v not in scanned]
    layer = max([sum(slices) / max(1, _scans(graph, weights)), *single, 0.0])
    rest = peak["inputs"] + peak["activations"] + peak["buffers"]
    return rest + 3.0 * layer / pes


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
    left = room - found.code_bytes - (found.streamed_bytes - found.code_bytes - found.peak["activations"])
    if found.streamed_bytes > room and left > 0:
        parts = math.ceil(found.peak["activations"] / left)
        said.append(f"activations: {parts} micro-batches of 1/{parts} of the batch each, or jax.checkpoint round a layer")
    elif found.streamed_bytes > room:
        said.append(
            f"activations and buffers of one layer alone are too large: split them over {math.ceil(found.streamed_bytes / room)} wafers"
        )
    if any(v.dtype.itemsize >= 4 for v in weights):
        halved = found.peak["weights"] + found.peak["activations"]
        said.append(f"dtype: 16-bit weights and activations halve {halved:,.0f} bytes")
    return tuple(said)
