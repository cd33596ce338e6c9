"""A streamed program whose outside is on disk: the host runs its loops, and layers are read and written one at a time.

The program is the one that `outside.py` has written. Where host memory holds what is outside, all of it is one compiled function; here the
ops between two that reach outside are (`_Segment`), so a layer's arrays are all that there is of the state at one time, in host and in
device memory. Values carry a leading axis of wafers from one segment to the next, unless they come from outside, which is the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.compiler import Lowered, walk
from wsejax.compiler.arguments import placed
from wsejax.compiler.ir import Graph, Op, Value
from wsejax.fabric import swarm
from wsejax.kernels.reduce import Partial, combine
from wsejax.kernels.relayout import Layout, relayout
from wsejax.streaming.frame import ClusterFrame
from wsejax.streaming.rules import LayerReduction
from wsejax.streaming.store import Stored, make_current, only_user, other_slot, scratch

OUTSIDE = {"stream_scan", "memoryx", "memoryx_reduce", "load", "store"}


@dataclasses.dataclass(frozen=True)
class Held:
    """A value on the devices, in a layout. `common`: the same for all wafers, without their axis."""

    array: Any
    layout: Layout
    common: bool


@dataclasses.dataclass
class _Segment:
    """Ops between two that reach outside, compiled as one."""

    ops: list[Op]
    ins: list[Value]
    outs: list[Value]
    compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict)


class Driver:
    """Runs a lowered program of a cluster on a state on disk."""

    def __init__(self, lowered: Lowered, frame: ClusterFrame) -> None:
        assert frame.ctx is not None
        self.lowered, self.frame, self.ctx, self.pairs = lowered, frame, frame.ctx, frame.pairs
        self.layouts, self.mesh = self.ctx.layouts, frame.mesh
        self.wafers, self.lanes = frame.cluster.systems, frame.cluster.lanes
        self.ahead = frame.cluster.memoryx.prefetch_layers if frame.cluster.memoryx else 0
        self._cut: dict[int, list[_Segment | Op]] = {}
        self._moves: dict[Any, Callable] = {}
        self._reductions: dict[Any, Callable] = {}
        self._numbers = itertools.count()
        self._home = Path()

    # ---- a call ------------------------------------------------------------------------------------------------------------

    def run(self, flat: Sequence[Any]) -> list[Any]:
        """One call on flat arguments. Those that are `Stored` are followed by results that are, in the other slot.

        Raises:
          ValueError: some of what lives outside is on disk and some is not, or what is has no result in its place.
        """
        graph, frame = self.lowered.plan.graph, self.frame
        disk = {n: x for n, x in enumerate(flat) if isinstance(x, Stored)}
        slot = next(iter(disk.values())).path.parent
        self._home = slot.parent / "scratch"
        with only_user(slot.parent):
            try:
                targets = {o: other_slot(disk[i]) for i, o in self.pairs if i in disk}
                self._check(disk, targets)
                env: dict[Value, Any] = {}
                shardings = frame.shardings(self.lowered.plan.ins)
                for n, (v, lay) in enumerate(zip(graph.ins, self.lowered.plan.ins, strict=True)):
                    if frame.ins_away[n]:
                        env[v] = disk[n]
                    else:
                        (x,) = placed([frame.deal(np.asarray(flat[n]) if n in disk else flat[n], n)], shardings[n : n + 1])
                        env[v] = Held(frame.with_wafers(x, n), lay, frame.in_shares[n] is None)
                wanted = {v: targets[o] for o, v in enumerate(graph.outs) if o in targets and frame.outs_away[o]}
                return self._results(self._graph(graph, env, wanted), targets, slot)
            finally:
                shutil.rmtree(self._home, ignore_errors=True)

    def _check(self, disk: dict[int, Stored], targets: dict[int, Stored]) -> None:
        if missing := [n for n, away in enumerate(self.frame.ins_away) if away and n not in disk]:
            raise ValueError(
                f"argument {missing[0]} (flat) is streamed and not on disk, where others are: give a whole state of open_state"
            )
        if len({x.path.parent for x in disk.values()}) != 1:
            raise ValueError("the arguments on disk are of several states: give one, of open_state or of the step before")
        for leaf in disk.values():
            leaf.check(newest=True)
        if len(targets) != len(disk):
            raise ValueError("a state on disk is replaced by the step's result, and no result has its structure: return the new state")

    def _results(self, outs: list[Any], targets: dict[int, Stored], slot: Path) -> list[Any]:
        found: list[Any] = []
        for o, x in enumerate(outs):
            if o not in targets:
                lay = self.lowered.plan.outs[o]
                found.append(self.frame.without_wafers(self._in(x, lay, self.lowered.plan.graph.outs[o].shape).array, o))
                continue
            if x is not targets[o]:
                targets[o].write(self._to_host(x, self.lowered.plan.graph.outs[o].shape)).result()
            found.append(targets[o])
        new = next(iter(targets.values()))
        make_current(slot.parent, new.path.parent.name, new.count or 0)
        return found

    # ---- graphs ------------------------------------------------------------------------------------------------------------

    def _pieces(self, graph: Graph) -> list[_Segment | Op]:
        if id(graph) in self._cut:
            return self._cut[id(graph)]
        pieces: list[_Segment | Op] = []
        away = lambda op: op.name in OUTSIDE and not op.params.get("quiet", False)
        for outside, some in itertools.groupby(graph.ops, key=away):
            group = list(some)
            pieces += group if outside else [_Segment(group, [], [])]
        for n, piece in enumerate(pieces):
            if isinstance(piece, _Segment):
                made = {v for op in piece.ops for v in op.outs}
                read = {v for op in piece.ops for v in op.ins if v.const is None}
                piece.ins = list(dict.fromkeys(v for op in piece.ops for v in op.ins if v in read - made))
                later = [v for p in pieces[n + 1 :] for op in (p.ops if isinstance(p, _Segment) else [p]) for v in op.ins]
                piece.outs = list(dict.fromkeys(v for v in (*later, *graph.outs) if v in made))
        return self._cut.setdefault(id(graph), pieces)

    def _graph(self, graph: Graph, env: dict[Value, Any], wanted: dict[Value, Stored]) -> list[Any]:
        """The results of a graph; those outside that `wanted` names are written there."""
        for piece in self._pieces(graph):
            if isinstance(piece, _Segment):
                env.update(zip(piece.outs, self._segment(piece, [env[v] for v in piece.ins]), strict=True))
            elif piece.name == "load":
                env[piece.outs[0]] = self._load(env[piece.ins[0]], self.layouts[piece.ins[0]])
            elif piece.name == "store":
                env[piece.outs[0]] = self._to_host(self._of(piece.ins[0], env), piece.ins[0].shape)
            elif piece.name == "memoryx":
                self._whole(piece, env, wanted)
            else:
                self._loop(piece, env, wanted)
        return [self._of(v, env) for v in graph.outs]

    def _of(self, v: Value, env: dict[Value, Any]) -> Any:
        return env[v] if v.const is None else Held(jnp.asarray(v.const), (None,) * v.ndim, True)

    def _segment(self, piece: _Segment, given: Sequence[Held]) -> list[Held]:
        key = tuple((x.layout, x.common) for x in given)
        if key not in piece.compiled:
            outs = [self.layouts[v] for v in piece.outs]
            plan = walk.plan(Graph(piece.ins, piece.ops, piece.outs), self.ctx, outs, [x.layout for x in given])
            piece.compiled[key] = self._compiled(lambda *xs: walk.run(plan, *xs), given, outs)
        arrays = piece.compiled[key](*(x.array for x in given))
        return [Held(x, self.layouts[v], self.wafers == 1) for x, v in zip(arrays, piece.outs, strict=True)]

    def _compiled(self, run: Callable, given: Sequence[Held], outs: Sequence[Layout]) -> Callable:
        """A function of blocks as one of arrays."""
        many = self.wafers > 1
        spec = lambda lay, common: PartitionSpec(*lay) if common or not many else PartitionSpec("wafer", *lay)
        each = swarm.lanes(run, self.lanes, [None if x.common else 0 for x in given], [0] * len(outs)) if many else run
        body = lambda *xs: tuple(each(*xs))
        ins = tuple(spec(x.layout, x.common) for x in given)
        return jax.jit(fabric.on_mesh(body, self.mesh, ins, tuple(spec(lay, False) for lay in outs)))

    def _in(self, x: Any, lay: Layout, shape: tuple[int, ...]) -> Held:
        """A value in another layout."""
        if not isinstance(x, Held):
            return self._in(self._load(x, lay), lay, shape)
        if x.layout == lay:
            return x
        key = (shape, str(x.array.dtype), x.layout, lay, x.common)
        if key not in self._moves:
            src = x.layout
            self._moves[key] = self._compiled(lambda block: [relayout(block, src, lay, shape, self.ctx.tiles)], [x], [lay])
        return Held(self._moves[key](x.array)[0], lay, self.wafers == 1)

    # ---- in and out --------------------------------------------------------------------------------------------------------

    def _load(self, x: Any, lay: Layout) -> Held:
        """Something outside, on the devices."""
        return Held(jax.device_put(np.asarray(x), NamedSharding(self.mesh, PartitionSpec(*lay))), lay, True)

    def _to_host(self, x: Any, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(x, Held):
            return np.asarray(x)
        x = self._in(x, (None,) * len(shape), shape)
        return np.asarray(x.array if x.common or self.wafers == 1 else x.array[0])

    def _space(self, v: Value, wanted: dict[Value, Stored]) -> Stored:
        return wanted[v] if v in wanted else scratch(self._home / str(next(self._numbers)), v.shape, v.dtype)

    def _whole(self, op: Op, env: dict[Value, Any], wanted: dict[Value, Stored]) -> None:
        (body,) = op.bodies
        inner = {b: self._in(self._of(v, env), self.layouts[b], v.shape) for v, b in zip(op.ins, body.ins, strict=True)}
        for v, x in zip(op.outs, self._graph(body, inner, {}), strict=True):
            env[v] = self._to_host(x, v.shape)
            if v in wanted:
                wanted[v].write(env[v]).result()
                env[v] = wanted[v]

    def _loop(self, op: Op, env: dict[Value, Any], wanted: dict[Value, Stored]) -> None:
        (body,), p = op.bodies, op.params
        start, length, carry = p["consts"] + p["carry"], p["length"], p["carry"]
        at = lambda v, b: (
            env[v] if v.const is None and not isinstance(env[v], Held) else self._in(self._of(v, env), self.layouts[b], v.shape)
        )
        fixed = {b: at(v, b) for v, b in zip(op.ins[: p["consts"]], body.ins, strict=False)}
        carried = [at(v, b) for v, b in zip(op.ins[p["consts"] : start], body.ins[p["consts"] : start], strict=True)]
        stacks = list(zip(op.ins[start:], body.ins[start:], p["outside"], strict=True))
        near = {b: self._in(self._of(v, env), (None, *self.layouts[b]), v.shape) for v, b, away in stacks if not away}
        spaces = {n: self._space(v, wanted) for n, v in enumerate(op.outs[carry:], carry) if p["stores"] and p["stores"][n]}
        kept: dict[int, list[Held]] = {}
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        ask = lambda i: {b: _entry(env[v], i) for v, b, away in stacks if away}
        coming = [ask(i) for i in order[: self.ahead + 1]]
        pending: list[list[Any]] = []  # writes, a list for each of the last trips
        reduction = self._reduction(op) if op.name == "memoryx_reduce" else None
        for n, i in enumerate(order):
            now = coming.pop(0)
            if n + self.ahead + 1 < length:
                coming.append(ask(order[n + self.ahead + 1]))
            inner: dict[Value, Any] = dict(fixed)
            inner.update(zip(body.ins[p["consts"] : start], carried, strict=True))
            inner.update((b, self._load(x.result(), self.layouts[b])) for b, x in now.items())
            inner.update((b, _slice(x, i)) for b, x in near.items())
            results = self._graph(body, inner, {})
            if reduction is not None:
                kept.setdefault(0, []).append(reduction[0](results[0]))
                continue
            carried = results[:carry]
            pending.append([])
            for m, x in enumerate(results[carry:], carry):
                if m in spaces:
                    pending[-1].append(spaces[m].write(self._to_host(x, body.outs[m].shape), i))
                else:
                    kept.setdefault(m, []).append(self._in(x, self.layouts[body.outs[m]], body.outs[m].shape))
            if len(pending) > self.ahead + 1:  # or layers would queue up in host memory before a slow disk
                _finish(pending.pop(0))
        for writes in pending:
            _finish(writes)
        if reduction is not None:
            env[op.outs[0]] = reduction[1](kept[0])
            return
        env.update(zip(op.outs[:carry], carried, strict=True))
        for m, v in enumerate(op.outs[carry:], carry):
            env[v] = spaces[m] if m in spaces else _stacked(kept[m][:: -1 if p["reverse"] else 1])

    def _reduction(self, op: Op) -> tuple[Callable[[Any], Held], Callable[[list[Held]], Held]]:
        """(a layer's part, the total of all)."""
        how = LayerReduction(op, self.ctx)
        lay, stack = how.lay[1:], (None, *how.part_layout)

        def part(x: Any) -> Held:
            x = self._in(x, lay, how.x.shape[1:])
            if (id(op), x.common) not in self._reductions:
                self._reductions[id(op), x.common] = self._compiled(lambda block: [how.part(block)], [x], [how.part_layout])
            return Held(self._reductions[id(op), x.common](x.array)[0], how.part_layout, self.wafers == 1)

        def whole(blocks):
            found = how.total(blocks)
            return combine([found], self.ctx.reduction) if isinstance(found, Partial) else [found]

        def total(parts: list[Held]) -> Held:
            x = _stacked(parts)
            if id(op) not in self._reductions:
                self._reductions[id(op)] = self._compiled(whole, [Held(x.array, stack, x.common)], [how.out])
            return Held(self._reductions[id(op)](x.array)[0], how.out, self.wafers == 1)

        return part, total


class _Ready:
    """Something that is there already, asked for as if it were on disk."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def result(self) -> np.ndarray:
        return self._value


def _finish(writes: Sequence[Any]) -> None:
    for written in writes:
        written.result()


def _entry(x: Any, index: int) -> Any:
    return x.ask(index) if isinstance(x, Stored) else _Ready(np.asarray(x)[index])


@functools.partial(jax.jit, static_argnums=2)
def _index(x, i, dim: int):
    return jax.lax.dynamic_index_in_dim(x, i, dim, keepdims=False)


def _slice(x: Held, index: int) -> Held:
    """An entry of a stack on the devices, behind the axis of wafers."""
    common = x.common
    return Held(_index(x.array, index, 0 if common else 1), x.layout[1:], common)


def _stacked(parts: list[Held]) -> Held:
    first = parts[0]
    return Held(jnp.stack([x.array for x in parts], 0 if first.common else 1), (None, *first.layout), first.common)
