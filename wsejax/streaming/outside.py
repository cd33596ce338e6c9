"""Which values of a program live outside the wafer, and the program rewritten so that they pass through it layer by layer.

Laws:
* what lives outside is what was streamed in, what takes its place among the results, and what is made of the two on the way (gradients,
  updates);
* it comes in for one use and is not kept: a loop over layers gets a slice for each trip, everything else what it names;
* work between values that live outside is done there (`memoryx`), a slice at a time where they are stacked by layers: the optimiser;
* no number changes: every operation is the one that the program has, on slices of the same arrays.

Ops that the rewriting adds: "load" and "store" (in and out of the wafer), "stream_scan" (a scan some of whose arrays are outside),
"memoryx" (work outside on whole arrays) and "memoryx_reduce" (a reduction outside over stacked layers). `rules.py` carries them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from wsejax.compiler.ir import Graph, Op, Value, scan_split
from wsejax.compiler.layout import Layouts
from wsejax.compiler.rules.local import ELEMENTWISE
from wsejax.compiler.rules.reduction import COMBINE

POINTWISE = {*ELEMENTWISE, "div"} - {"bitcast_convert_type"}
_SMALL_BYTES = 1024  # of a layer's slice; what is smaller may come in whole without a word
VIEWS = {"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims"}


@dataclasses.dataclass(frozen=True)
class Placed:
    """A graph with its outside: which of its arguments and results live there, and what had to come in as a whole stack of layers."""

    graph: Graph
    ins: tuple[bool, ...]
    outs: tuple[bool, ...]
    whole: tuple[str, ...]


def place_outside(graph: Graph, layouts: Layouts, ins: Sequence[bool], outs: Sequence[bool]) -> Placed:
    """`graph` with the arguments `ins` outside, and the results `outs` where they have dimensions. Pins layouts of new values."""
    given = {v for v, flag in zip(graph.ins, ins, strict=True) if flag and v.ndim}
    placer = _Placer(graph, layouts, _layers(graph, layouts), given, outs)
    new = placer.place()
    return Placed(new, tuple(v in placer.given for v in graph.ins), tuple(placer.outs), tuple(dict.fromkeys(placer.whole)))


def hold_outside(graph: Graph, layouts: Layouts, ins: Sequence[bool], outs: Sequence[bool]) -> Graph:
    """`graph` with everything on the wafer, and a barrier where a value would go outside: there XLA cannot rewrite from one side to the
    other (c * (2 * x) as (2 * c) * x), so it must not here, or the last bits would tell which execution it was."""
    given = {v for v, flag in zip(graph.ins, ins, strict=True) if flag and v.ndim}
    return _Placer(graph, layouts, _layers(graph, layouts), given, outs).hold()


class _Placer:
    """One graph's rewriting, in program order; `here` holds the values on the wafer by their name in the old graph, `there` those outside.
    What is in neither is `lazy`: made of outside values by work that is done where it is needed."""

    def __init__(self, graph: Graph, layouts: Layouts, layers: set[Any], given: set[Value], outs: Sequence[bool]) -> None:
        self.graph, self.layouts, self.layers, self.given = graph, layouts, layers, given
        self.outs = [flag and v.ndim > 0 for v, flag in zip(graph.outs, outs, strict=True)]
        self.made = {out: op for op in graph.ops for out in op.outs}
        self.order = {op: n for n, op in enumerate(graph.ops)}
        self.ops: list[Op] = []
        self.whole: list[str] = []
        self.here: dict[Value, Value] = {v: v for v in graph.ins if v not in given}
        self.there: dict[Value, Value] = {v: v for v in given}
        self.chosen = {v: layouts[v] for v in given}
        self.wanted = self._wanted()
        self.lazy: set[Value] = set()
        self.stored: set[Value] = set()
        self._classify()

    # ---- who lives where -------------------------------------------------------------------------------------------------

    def _wanted(self) -> set[Value]:
        """Values from which results outside are made by work that can be done outside."""
        wanted, left = set(), [v for v, flag in zip(self.graph.outs, self.outs, strict=True) if flag]
        while left:
            v = left.pop()
            if v in wanted or v in self.given or v.ndim == 0 or v.const is not None:
                continue
            wanted.add(v)
            op = self.made.get(v)
            if op is not None and op.name == "scan":
                consts, carry = scan_split(op)
                n = op.outs.index(v)
                left += [op.ins[consts + n]] if n < carry else []
            elif op is not None and self._movable(op):
                left += op.ins
        return wanted

    def _streams(self, op: Op) -> bool:
        """Whether stacks of layers go through a loop from end to end, so that there are loops over layers inside."""
        consts, carry = scan_split(op)
        return any(map(self._stacked, op.ins[: consts + carry]))

    def _kept(self, op: Op) -> list[bool]:
        """Which results of a loop go outside as they are made. What it adds up, and is no stack, stays on the wafer until it ends."""
        carry, through = scan_split(op)[1], self._streams(op)
        return [v in self.wanted and (n >= carry or through) for n, v in enumerate(op.outs)]

    def _movable(self, op: Op) -> bool:
        """Work that can be done outside, and where its result is stacked, on a slice."""
        if len(op.outs) != 1 or op.outs[0].ndim == 0:
            return False
        return _sliced(op, self._stacked) is not None if self._stacked(op.outs[0]) else op.name in POINTWISE | VIEWS

    def _stacked(self, v: Value) -> bool:
        return v.const is None and v.ndim > 0 and self.layouts.classes.find((v, 0)) in self.layers and self.layouts[v][0] is None

    def _classify(self) -> None:
        """What is lazy; and of what is made here but used there, what must be stored."""
        free: set[Value] = set()  # made of numbers alone: anywhere
        from_loops = {v for op in self.graph.ops if op.name == "scan" for v, flag in zip(op.outs, self._kept(op), strict=True) if flag}
        for of_optimiser in (True, False):
            for op in self.graph.ops:
                if not op.outs or op.outs[0] in self.lazy or not self._movable(op):
                    continue
                (out,) = op.outs
                arrays = [v for v in op.ins if v.ndim and v.const is None and v not in free]
                if not arrays and op.name in POINTWISE | {"broadcast_in_dim"}:
                    free.add(out)
                    if self._stacked(out):
                        self.lazy.add(out)
                    continue
                outside = [v for v in arrays if v in self.given or v in self.lazy or v in self.stored or v in from_loops]
                numbers = any(v.ndim == 0 and v.const is None for v in op.ins)  # a norm, a rate: this is an optimiser's work
                if of_optimiser and out in self.wanted and (outside or numbers):
                    self.lazy.add(out)
                    self.stored.update(v for v in arrays if v not in outside)
                elif not of_optimiser and outside and len(outside) == len(arrays):
                    self.lazy.add(out)
        results = {v for v, flag in zip(self.graph.outs, self.outs, strict=True) if flag}
        self.stored |= results - self.lazy

    # ---- rewriting -------------------------------------------------------------------------------------------------------

    def place(self) -> Graph:
        """The new graph; its results that `outs` names are outside."""
        for v in self.given:
            self.layouts.pinned[v] = self.layouts.unpadded(v)
        for v in self.graph.ins:
            self._store_if_asked(v)
        for op in self.graph.ops:
            if op.outs and op.outs[0] in self.lazy:
                continue
            if op.name == "scan":
                self._scan(op)
            elif op.name in COMBINE and 0 in op.params["axes"] and self._stacked(op.ins[0]) and op.ins[0] not in self.here:
                self._reduction(op)
            else:
                self._keep(op, [self.get(v, op) for v in op.ins])
            for v in op.outs:
                self._store_if_asked(v)
        self._results()
        outs = [self.there[v] if flag else self.get(v) for v, flag in zip(self.graph.outs, self.outs, strict=True)]
        return Graph(self.graph.ins, self.ops, outs)

    def hold(self) -> Graph:
        """The graph as it was, with barriers."""
        held: dict[Value, Value] = {}
        for op in self.graph.ops:
            bodies, goes = op.bodies, [v in self.stored for v in op.outs]
            if op.name == "scan":
                (body,), (consts, carry), goes = bodies, scan_split(op), self._kept(op)
                through = self._streams(op)
                given = {b for v, b in zip(op.ins[:consts], body.ins, strict=False) if through and (v in self.given or v in self.lazy)}
                given |= {b for b, flag in zip(body.ins[consts : consts + carry], goes[:carry], strict=True) if flag and b.ndim}
                bodies = (_Placer(body, self.layouts, self.layers, given, goes).hold(),)
            ins = [held.get(v, v) for v in op.ins] if op.outs and op.outs[0] in self.lazy else op.ins
            self.ops.append(Op(op.name, op.primitive, op.params, ins, op.outs, op.source, bodies))
            for v in (v for v, flag in zip(op.outs, goes, strict=True) if flag):
                held[v] = self._new(v, self.layouts[v])
                self.ops.append(Op("optimization_barrier", None, {}, [v], [held[v]], op.source))
        return Graph(self.graph.ins, self.ops, [held.get(v, v) for v in self.graph.outs])

    def _keep(self, op: Op, ins: list[Value]) -> None:
        self.ops.append(Op(op.name, op.primitive, op.params, ins, op.outs, op.source, op.bodies))
        self.here.update((v, v) for v in op.outs)

    def _new(self, v: Value, layout, shape=None) -> Value:
        new = Value(v.shape if shape is None else shape, v.dtype, made_by=v.made_by, varies=v.varies)
        self.layouts.pinned[new] = layout
        return new

    def get(self, v: Value, user: Op | None = None) -> Value:
        """`v` on the wafer, for one use."""
        if v.const is not None:
            return v
        if v in self.here:
            return self.here[v]
        where = "a result" if user is None else f"{user.name} at {user.source}"
        if self._stacked(v) and v.size_bytes > v.shape[0] * _SMALL_BYTES:
            self.whole.append(f"{v} for {where}")
        came = self._new(v, self.chosen.get(v) or self.layouts[v])
        if v in self.there:
            self.ops.append(Op("load", None, {"quiet": False}, [self.there[v]], [came], "" if user is None else user.source))
        else:
            op = self.made[v]
            self.ops.append(Op(op.name, op.primitive, op.params, [self.get(x, user) for x in op.ins], [came], op.source, op.bodies))
        return came

    def anywhere(self, v: Value) -> Value:
        """`v` where it lies."""
        return self.there[v] if v in self.there else self.get(v)

    def _store(self, v: Value) -> None:
        kept = self._new(v, self.layouts.unpadded(v))
        source = self.made[v].source if v in self.made else ""
        self.ops.append(Op("store", None, {}, [self.here.get(v, v)], [kept], source))
        self.there[v] = kept

    def _store_if_asked(self, v: Value) -> None:
        if v in self.stored and v in self.here and v not in self.there:
            self._store(v)

    def _roots(self, values: Iterable[Value]) -> tuple[list[Op], list[Value]]:
        """The lazy work behind some values, in order, and what it starts from."""
        todo, ops, ends = list(values), set(), {}
        while todo:
            v = todo.pop()
            if v.const is not None:
                continue
            if v in self.there or v in self.here:
                ends[v] = None
            elif self.made[v] not in ops:
                ops.add(self.made[v])
                todo += self.made[v].ins
        return sorted(ops, key=self.order.__getitem__), list(ends)

    def _slices(self, values: Sequence[Value]) -> _Slices:
        ops, ends = self._roots(values)
        cut = _Slices([], [], [], [], [], [], {})
        for v in ends:
            if self._stacked(v):
                lay = self.layouts.unpadded(self.there.get(v, v))[1:]
                raw, name = self._new(v, lay, v.shape[1:]), self._new(v, lay, v.shape[1:])
                cut.stacks.append(self.anywhere(v))
                cut.outside.append(v in self.there)
                cut.raws.append(raw)
                cut.body.append(Op("load", None, {"quiet": True}, [raw], [name], ""))
            else:
                came = self.get(v)
                name = self._new(v, self.layouts[came])
                cut.fixed.append(came)
                cut.names.append(name)
            cut.inside[v] = name
        for op in ops:
            (out,) = op.outs
            stacked = self._stacked(out)
            how = _sliced(op, self._stacked) if stacked else op
            assert how is not None
            lay = self.layouts.unpadded(out)
            cut.inside[out] = self._new(out, lay[1:] if stacked else lay, out.shape[1:] if stacked else None)
            ins = [cut.inside.get(v, v) for v in op.ins]
            cut.body.append(Op(op.name, op.primitive, how.params, ins, [cut.inside[out]], op.source, op.bodies))
        return cut

    def _results(self) -> None:
        """The results that are made outside: those that share work are made together."""
        groups: list[tuple[set[Any], list[Value]]] = []
        for v in dict.fromkeys(v for v, flag in zip(self.graph.outs, self.outs, strict=True) if flag and v not in self.there):
            ops, ends = self._roots([v])
            mine: set[Any] = {*ops, *(e for e in ends if e.ndim)}
            values = [v]
            for group in [g for g in groups if g[0] & mine and self._stacked(g[1][0]) == self._stacked(v)]:
                groups.remove(group)
                mine, values = mine | group[0], group[1] + values
            groups.append((mine, values))
        for _, values in groups:
            self._outside_work(values)

    def _outside_work(self, values: list[Value]) -> None:
        source = self.made[values[0]].source
        kept = [self._new(v, self.layouts.unpadded(v)) for v in values]
        if self._stacked(values[0]):
            cut = self._slices(values)
            graph = Graph([*cut.names, *cut.raws], cut.body, [cut.inside[v] for v in values])
            params = _stream(len(cut.names), 0, values[0].shape[0], cut.outside, [True] * len(values)) | {"memory": True}
            self.ops.append(Op("stream_scan", None, params, [*cut.fixed, *cut.stacks], kept, source, (graph,)))
        else:
            ops, ends = self._roots(values)
            ins = [self.anywhere(v) for v in ends]
            raws = [self._new(v, self.layouts.unpadded(v)) for v in ins]
            names = {v: self._new(v, self.layouts.unpadded(v)) for v in [*ends, *(op.outs[0] for op in ops)]}
            body = [Op("load", None, {"quiet": True}, [raw], [names[v]], "") for raw, v in zip(raws, ends, strict=True)]
            for op in ops:
                inner = [names.get(v, v) for v in op.ins]
                body.append(Op(op.name, op.primitive, op.params, inner, [names[op.outs[0]]], op.source, op.bodies))
            self.ops.append(Op("memoryx", None, {}, ins, kept, source, (Graph(raws, body, [names[v] for v in values]),)))
        self.there.update(zip(values, kept, strict=True))

    def _reduction(self, op: Op) -> None:
        """Of a stack that is outside: slice by slice, with the operation's own order of sums."""
        (x,) = op.ins
        cut = self._slices([x])
        graph = Graph([*cut.names, *cut.raws], cut.body, [cut.inside[x]])
        params = _stream(len(cut.names), 0, x.shape[0], cut.outside, []) | {"reduce": op, "layout": self.layouts[x], "memory": True}
        self.ops.append(Op("memoryx_reduce", None, params, [*cut.fixed, *cut.stacks], op.outs, op.source, (graph,)))
        self.here.update((v, v) for v in op.outs)

    def _scan(self, op: Op) -> None:
        (body,), (consts, carry) = op.bodies, scan_split(op)
        away = lambda v: v.const is None and v not in self.here
        kept = self._kept(op)
        if not any(map(away, op.ins)) and not any(kept):
            return self._keep(op, [self.get(v) for v in op.ins])
        for v, flag in zip(op.ins[consts : consts + carry], kept[:carry], strict=True):
            if flag and v not in self.there:  # what is carried and ends outside begins there
                self._store(v) if v.const is not None or v in self.here else self._outside_work([v])
        held = op.ins[: consts + carry]
        given = [self._streams(op) and v in self.there for v in op.ins[:consts]] + kept[:carry]
        inner = _Placer(body, self.layouts, self.layers, {b for b, flag in zip(body.ins, given, strict=False) if flag}, kept)
        pairs = list(zip(op.ins[consts + carry :], body.ins[consts + carry :], strict=True))
        cut = self._slices(list(dict.fromkeys(v for v, _ in pairs if away(v))))
        # a slice comes under the name that the body has for it
        start = [*cut.body, *(Op("load", None, {"quiet": True}, [cut.inside[v]], [b], op.source) for v, b in pairs if away(v))]
        graph = inner.place()
        self.whole += inner.whole
        stay = [(v, b) for v, b in pairs if not away(v)]
        ins = [*cut.names, *body.ins[: consts + carry], *cut.raws, *(b for _, b in stay)]
        outer = [self.there[v] if flag else self.get(v, op) for v, flag in zip(held, given, strict=True)]
        params = _stream(len(cut.names) + consts, carry, op.params["length"], [*cut.outside, *[False] * len(stay)], inner.outs)
        params |= {k: op.params[k] for k in ("reverse", "unroll")} | {"loaded": tuple(b for v, b in pairs if away(v))}
        outs = [self._new(v, self.layouts.unpadded(v)) if flag else v for v, flag in zip(op.outs, inner.outs, strict=True)]
        operands = [*cut.fixed, *outer, *cut.stacks, *(self.get(v) for v, _ in stay)]
        self.ops.append(Op("stream_scan", None, params, operands, outs, op.source, (Graph(ins, [*start, *graph.ops], graph.outs),)))
        for v, flag, out in zip(op.outs, inner.outs, outs, strict=True):
            (self.there if flag else self.here)[v] = out


@dataclasses.dataclass
class _Slices:
    """How a layer's slice of some values is made: what goes in unchanged (`fixed`, called `names` inside), the stacks that are cut (of
    which some are `outside`; a slice is called by `raws`), the work, and the name of each old value inside."""

    fixed: list[Value]
    names: list[Value]
    stacks: list[Value]
    outside: list[bool]
    raws: list[Value]
    body: list[Op]
    inside: dict[Value, Value]


def _stream(consts: int, carry: int, length: int, outside: Sequence[bool], stores: Sequence[bool]) -> dict[str, Any]:
    """Parameters of a streamed loop. Its operands are constants, what is carried, and stacks, of which some are `outside`. `stores` are the
    results that go out, `loaded` the values of its body that came in, `memory`: all its work is done outside."""
    return {
        "consts": consts, "carry": carry, "length": length, "outside": tuple(outside), "stores": tuple(stores), "memory": False,
        "reverse": False, "unroll": 1, "loaded": (),
    }  # fmt: skip


def _layers(graph: Graph, layouts: Layouts) -> set[Any]:
    """The classes of the dimensions that loops run over: layers."""
    found = set()
    for op in graph.walk():
        if op.name == "scan":
            consts, carry = scan_split(op)
            found |= {layouts.classes.find((v, 0)) for v in (*op.ins[consts + carry :], *op.outs[carry:])}
    return found


def _sliced(op: Op, stacked) -> Op | None:
    """An op whose result is stacked as what it does to one slice; None where it mixes slices."""
    out, p = op.outs[0], op.params
    n = out.shape[0]
    is_whole = lambda v: stacked(v) and v.shape[0] == n
    changed: dict[str, Any] | None = None
    if op.name in POINTWISE and all(not v.ndim or is_whole(v) for v in op.ins):
        changed = {}
    elif op.name == "broadcast_in_dim" and len(op.ins) == 1:
        (x,), dims = op.ins, tuple(p["broadcast_dimensions"])
        if not is_whole(x) and 0 not in dims:
            changed = {"broadcast_dimensions": tuple(d - 1 for d in dims)}
        elif is_whole(x) and dims[0] == 0:
            changed = {"broadcast_dimensions": tuple(d - 1 for d in dims[1:])}
        if changed is not None:
            changed["shape"] = tuple(p["shape"][1:])
    elif op.name == "reshape" and is_whole(op.ins[0]) and p.get("dimensions") is None:
        changed = {"new_sizes": tuple(p["new_sizes"][1:])}
    elif op.name == "transpose" and is_whole(op.ins[0]) and p["permutation"][0] == 0:
        changed = {"permutation": tuple(d - 1 for d in p["permutation"][1:])}
    elif op.name == "squeeze" and is_whole(op.ins[0]) and 0 not in p["dimensions"]:
        changed = {"dimensions": tuple(d - 1 for d in p["dimensions"])}
    elif op.name in COMBINE and is_whole(op.ins[0]) and 0 not in p["axes"]:
        changed = {"axes": tuple(d - 1 for d in p["axes"])}
    elif op.name == "dot_general" and all(map(is_whole, op.ins)):
        (ac, bc), (ab, bb) = p["dimension_numbers"]
        if ab and bb and ab[0] == bb[0] == 0:
            less = lambda dims: tuple(d - 1 for d in dims)
            changed = {"dimension_numbers": ((less(ac), less(bc)), (less(ab[1:]), less(bb[1:])))}
    return None if changed is None else Op(op.name, op.primitive, {**p, **changed}, op.ins, op.outs, op.source, op.bodies)
