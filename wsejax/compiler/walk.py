"""The walk: every op gets a rule's `Step`, operands are brought to the layouts that the step wants, results to those that were chosen.

`plan` reads a graph and writes data (steps, calls); `run` does the plan on blocks, inside the mesh. Pricing reads the first,
executing the second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from wsejax.compiler.ir import Graph, Op, UnsupportedOpError, Value, itemsize_bytes
from wsejax.compiler.layout import Layouts
from wsejax.compiler.program import Array, Call
from wsejax.compiler.work import flops_of, moved_of, moves_of, work_of
from wsejax.kernels.reduce import Partial, combine
from wsejax.kernels.relayout import Layout, block_shape, byte_hops, relayout, steps
from wsejax.kernels.work import Alone, Gather, Product, Reduction, Window


@dataclasses.dataclass
class Step:
    """How one op is done: operands in layouts `ins`, `run` on their blocks, results in layouts `outs`.

    `calls` is what it does on the fabric (nothing for local work). With `waits`, `run` gives its one result as a `Partial`
    reduction, which is combined with the others of its wave.
    """

    ins: Sequence[Layout]
    outs: Sequence[Layout]
    run: Callable[..., Sequence[Any]]
    calls: Sequence[Call] = ()
    waits: bool = False


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may ask for: the chosen layouts, the tile grid, the devices it is split over, and how the wafer adds up."""

    layouts: Layouts
    tiles: Mapping[str, int]
    devices: Mapping[str, int]
    strict: bool
    reduction: str = "chain"
    accumulate: str = "float32"
    side_by_side: bool = False  # devices may work on the blocks of several wafers at once, and on how many must not show in the bits
    numbers: dict[Value, int] = dataclasses.field(default_factory=dict, compare=False)  # by which the program's calls name values

    def number(self, value: Value) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def alias(self, values: Sequence[Value], others: Sequence[Value]) -> None:
        """`values` are called what `others` are."""
        self.numbers.update((value, self.number(other)) for value, other in zip(values, others, strict=False))

    @property
    def steady(self) -> bool:
        """Whether bits could depend on the devices: a wafer of one tile has one device, and computes as plain JAX does."""
        return self.side_by_side or math.prod(self.tiles.values()) > 1

    def steadies(self, layout: Layout) -> bool:
        """Whether the bits of a result in this layout could."""
        return self.side_by_side or (self.steady and any(layout))

    def block(self, shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
        """Shape of a device's block."""
        return block_shape(shape, layout, self.tiles, self.devices)

    def accumulator(self, dtype) -> Any:
        """The dtype in which numbers of a narrow float are added up; None for any other dtype."""
        narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
        return None if not narrow else jnp.dtype(jnp.float32) if self.accumulate == "float32" else dtype

    def tile_bytes(self, value: Value, layout: Layout) -> int:
        """Bytes of a tile's part of an array, padding included."""
        return math.prod(block_shape(value.shape, layout, self.tiles, self.tiles)) * itemsize_bytes(value.dtype)

    def call(self, kind: str, kernel: str, op: Op, ins: Sequence[Layout], outs: Sequence[Layout], **numbers) -> Call:
        return Call(
            kind,
            op.name,
            kernel,
            tuple(Array.of(v, lay, self.number(v)) for v, lay in zip(op.ins, ins, strict=True)),
            tuple(Array.of(v, lay, self.number(v)) for v, lay in zip(op.outs, outs, strict=True)),
            op.source,
            **numbers,
        )

    def plan(self, graph: Graph, outs: Sequence[Layout]) -> Plan:
        """The plan of a loop body or branch whose results must have layouts `outs`."""
        return plan(graph, self, outs)


Rule = Callable[[Op, Context], Step]
RULES: dict[str, Rule] = {}


def rule(*names: str):
    """Register the rule of some primitives. A rule chooses no layout: it says what it needs to give the chosen one, or the nearest."""

    def register(fun: Rule) -> Rule:
        for name in names:
            RULES[name] = fun
        return fun

    return register


Planned = tuple[Op, Step, list[Layout]]  # with the layouts the results are kept in


@dataclasses.dataclass
class Plan:
    """Steps of a graph in waves, with the layouts of its inputs and results. A wave ends by combining its reductions."""

    graph: Graph
    tiles: Mapping[str, int]
    reduction: str
    ins: list[Layout]
    outs: list[Layout]
    waves: list[list[Planned]]
    have: dict[Value, Layout]
    calls: list[Call]
    local_ops: int
    numbers: Mapping[Value, int]  # by which the calls name values, those of loops included


def whole(value: Value) -> Layout:
    return (None,) * value.ndim


def plan(graph: Graph, ctx: Context, outs: Sequence[Layout] | None = None, ins: Sequence[Layout] | None = None) -> Plan:
    """Plan a graph. The inputs of a loop's body or a branch have their chosen layouts (or `ins`), its results get `outs`. Without `outs` it
    is the program: what comes in and goes out is an ordinary array, whose dimensions are whole where they would have to be padded.

    Raises:
      UnsupportedOpError: an op without a rule, in strict mode.
    """
    outside = lambda v: ctx.layouts.unpadded(v) if outs is None else ctx.layouts[v]
    have: dict[Value, Layout] = dict(zip(graph.ins, ins, strict=True)) if ins is not None else {v: outside(v) for v in graph.ins}
    moved: set[tuple[int, Layout]] = set()
    calls: list[Call] = []
    done: list[Planned] = []
    local = 0

    def record_move(value: Value, src: Layout, dst: Layout, primitive: str, source: str) -> None:
        if (id(value), dst) in moved or all(move.what == "slice" for move in steps(src, dst)):
            return
        moved.add((id(value), dst))
        hops = byte_hops(value.shape, itemsize_bytes(value.dtype), src, dst, ctx.tiles)
        # what makes results ordinary arrays ends the emulation; on the wafer they stay where they are
        work = () if primitive == "result" else moves_of(value, src, dst)
        before, after = (Array.of(value, lay, ctx.number(value)) for lay in (src, dst))
        calls.append(Call("relayout", primitive, "relayout", (before,), (after,), source, hops, work=work))

    for op in graph.ops:
        if op.name == "scan":
            ctx.alias(op.bodies[0].ins, op.ins)
        step = _step(op, ctx)
        for value, want in zip(op.ins, step.ins, strict=True):
            record_move(value, have.get(value, whole(value)), want, op.name, op.source)
        with_work = _with_work(op, step, ctx)
        if op.name == "scan":
            ctx.alias(op.outs, op.bodies[0].outs)
        elif not with_work and op.ins:  # nothing is done: the result is a view
            ctx.alias(op.outs, [max(op.ins, key=lambda v: v.size_bytes)] * len(op.outs))
        calls += with_work
        local += all(c.kind == "local" for c in step.calls)
        keep = [ctx.layouts[v] for v in op.outs]
        for value, got, chosen in zip(op.outs, step.outs, keep, strict=True):
            record_move(value, got, chosen, op.name, op.source)
        have.update(zip(op.outs, keep, strict=True))
        done.append((op, step, keep))
    final = [whole(v) if v.const is not None else outside(v) for v in graph.outs] if outs is None else list(outs)
    for value, want in zip(graph.outs, final, strict=True):
        record_move(value, have.get(value, whole(value)), want, "result", "result of the function")
    return Plan(graph, ctx.tiles, ctx.reduction, [have[v] for v in graph.ins], final, _waves(done), have, calls, local, ctx.numbers)


def _with_work(op: Op, step: Step, ctx: Context) -> list[Call]:
    """The calls of a step, the first with the op's work; of an op that needs no fabric, a local one. Loops' calls have theirs."""
    if op.bodies or op.primitive is None:
        return list(step.calls)
    calls = list(step.calls) or [ctx.call("local", op.name, op, step.ins, step.outs)]
    work = work_of(op, step.ins, step.outs, ctx.reduction)
    if not step.calls and not work:
        return []
    if calls[0].kind == "unsharded":
        work = tuple(Alone(w) for w in work)
    elif (
        calls[0].kind == "kernel" and op.name != "wafer_map" and not any(isinstance(w, Product | Reduction | Gather | Window) for w in work)
    ):
        work += moved_of(op, step.ins, step.outs, calls[0].byte_hops)
    flops = calls[0].flops if op.name in ("ring_attention", "ring_attention_gradient", "wafer_map") else flops_of(op)
    return [dataclasses.replace(calls[0], work=(*calls[0].work, *work), flops=flops), *calls[1:]]


def _waves(steps: list[Planned]) -> list[list[Planned]]:
    """Every step as early as its operands allow, if reductions started in one wave are known only in the next."""
    waves = []
    while steps:
        waiting: set[Value] = set()
        now, later = [], []
        for planned in steps:
            op, step, _ = planned
            if any(v in waiting for v in op.ins):
                later.append(planned)
                waiting.update(op.outs)
            else:
                now.append(planned)
                if step.waits:
                    waiting.update(op.outs)
        waves.append(now)
        steps = later
    return waves


def _step(op: Op, ctx: Context) -> Step:
    if op.name in RULES:
        step = RULES[op.name](op, ctx)
        for what, given, values in (("operand", step.ins, op.ins), ("result", step.outs, op.outs)):
            if [len(lay) for lay in given] != [v.ndim for v in values]:
                raise ValueError(
                    f"the rule of {op.name} gives {len(given)} {what} layouts for {len(values)} {what}s: {list(given)} for "
                    f"{', '.join(map(str, values))}; it must give one for each, with an entry for each dimension"
                )
        return step
    if ctx.strict:
        shapes = ", ".join(map(str, op.ins))
        raise UnsupportedOpError(
            f"{op.name}({shapes}) at {op.source} has no rule for the fabric yet. Rewrite it with operations that do, take it out of "
            "the function, or pass strict=False to wse.jit: it is then gathered and computed whole on every block, and the audit says so"
        )
    ins, outs = [whole(v) for v in op.ins], [whole(v) for v in op.outs]
    return Step(ins, outs, op.bind, [ctx.call("unsharded", op.name, op, ins, outs)])


def _opaque(const):
    """A constant as XLA may not see it: what it folds into one, it would fold only on meshes that leave the constant whole."""
    return lax.optimization_barrier(jnp.asarray(const)) if jnp.issubdtype(const.dtype, jnp.inexact) else const


def run(plan: Plan, *blocks) -> list[Any]:
    """Do a plan on this device's blocks of the graph's inputs, in layouts `plan.ins`. Must run inside the mesh."""
    env: dict[tuple[Value, Layout], Any] = {(v, lay): b for v, lay, b in zip(plan.graph.ins, plan.ins, blocks, strict=True)}

    def move(block, value: Value, src: Layout, dst: Layout):
        return relayout(block, src, dst, value.shape, plan.tiles)

    def get(value: Value, want: Layout):
        if (value, want) not in env:
            if value.const is not None:
                env[value, want] = move(_opaque(value.const), value, whole(value), want) if any(want) else value.const
            else:
                src = plan.have[value]
                env[value, want] = move(env[value, src], value, src, want)
        return env[value, want]

    def put(op: Op, step: Step, keep: list[Layout], results: Sequence[Any]) -> None:
        for value, got, chosen, result in zip(op.outs, step.outs, keep, results, strict=True):
            env[value, got] = result
            env[value, chosen] = move(result, value, got, chosen)

    for wave in plan.waves:
        partials: list[tuple[Planned, Partial]] = []
        for planned in wave:
            op, step, _ = planned
            results = step.run(*[get(v, want) for v, want in zip(op.ins, step.ins, strict=True)])
            if step.waits:
                partials.append((planned, results[0]))
            else:
                put(*planned, results)
        for varies in (False, True):  # in one message they would all be of each wafer
            some = [(planned, partial) for planned, partial in partials if planned[0].outs[0].varies == varies]
            for (planned, _), result in zip(some, combine([p for _, p in some], plan.reduction), strict=True):
                put(*planned, [result])
    return [get(v, want) for v, want in zip(plan.graph.outs, plan.outs, strict=True)]
