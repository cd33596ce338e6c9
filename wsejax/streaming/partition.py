"""One program on N wafers: the graph that each of them runs, from the graph of the whole (data parallel).

Every value is *replicated* (the same on all wafers, of its global shape) or *shared* along one dimension. What is shared comes from the
batch, so a shared dimension is a static multiple of rows that are dealt: with B = q N + r rows the first r wafers have q + 1, the others q
and a row of padding, which holds a copy of a neighbour's row: real data, since zeros could divide or overflow where data do not. Rows
lie in global order, wafer by wafer.

Op by op, forward: a rule (`partition_rules.py`, `partition_sums.py`, `partition_loops.py`) says which shares of the operands keep the op
local. An op without a rule, or whose rule finds nothing, gets its operands gathered and is done alike on every wafer: always right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax import lax

from wsejax.compiler.ir import Graph, Op, Value


@dataclasses.dataclass(frozen=True)
class Share:
    """How wafers share a value: dimension `dim` is `rows` times `multiple` long, and the rows are dealt."""

    dim: int
    rows: int
    multiple: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.multiple

    def at(self, dim: int) -> Share:
        return dataclasses.replace(self, dim=dim)


@dataclasses.dataclass(frozen=True)
class Partitioned:
    """The graph of one wafer. `ins` and `outs` name the dimension along which wafers share an input or result, None where all have it
    whole; the shared dimension has (see `in_shares`, `out_shares`) a multiple of the rows that are dealt."""

    graph: Graph
    ins: tuple[int | None, ...]
    outs: tuple[int | None, ...]
    in_shares: tuple[Share | None, ...] = ()
    out_shares: tuple[Share | None, ...] = ()


def partition(graph: Graph, split: Mapping[Value, int], wafers: int, arity: int = 4, like: Sequence[tuple[int, int]] = ()) -> Partitioned:
    """The graph that each of `wafers` wafers runs.

    Args:
      graph: of the whole program.
      split: the dimension along which wafers share an input of it, for some of them. The others are replicated.
      wafers: how many.
      arity: children of a node of the tree that joins them, which decides how sums over wafers round.
      like: pairs of an input and a result, by number, that are to be shared alike: a state and the one that takes its place.

    Raises:
      ValueError: an input that the graph does not have, a dimension that the input does not have, or a batch of fewer rows than wafers.
    """
    if wafers < 1:
        raise ValueError(f"wafers={wafers}: give 1 or more")
    shares: list[Share | None] = []
    for value, dim in split.items():
        if value not in graph.ins or not 0 <= dim < value.ndim:
            raise ValueError(f"split={{{value}: {dim}}}: give inputs of the graph, each with one of its dimensions (from 0)")
        if value.shape[dim] < wafers:
            raise ValueError(
                f"a batch of {value.shape[dim]} for {wafers} wafers (dimension {dim} of {value}): each needs a row at least; give a "
                f"batch of {wafers} or more, fewer systems, or say with in_shardings what the wafers share"
            )
    if wafers == 1:
        ins = [Share(split[v], v.shape[split[v]]) if v in split else None for v in graph.ins]
        return Partitioned(graph, tuple(split.get(v) for v in graph.ins), (None,) * len(graph.outs), tuple(ins), (None,) * len(graph.outs))
    shares = [Share(split[v], v.shape[split[v]]) if v in split else None for v in graph.ins]
    local, outs = Builder(wafers, arity).body(graph, shares)
    wanted = list(outs)
    for i, o in like:
        wanted[o] = shares[i]
    if wanted != list(outs):
        local, outs = Builder(wafers, arity).body(graph, shares, wanted)
    dims = lambda found: tuple(None if s is None else s.dim for s in found)
    return Partitioned(local, dims(shares), dims(outs), tuple(shares), tuple(outs))


PlacedRule = Callable[["Builder", Op, list["Share | None"]], "Sequence[tuple[Value, Share | None]] | None"]
PLACED: dict[str, PlacedRule] = {}


def placed(*names: str):
    """Register the rule of some primitives: `rule(builder, op, shares)` of the global op and its operands' shares, at least one of them
    not None. It emits local ops and returns (value, share) of every result, or None for the fallback, before it has emitted anything."""

    def register(fun: PlacedRule) -> PlacedRule:
        for name in names:
            PLACED[name] = fun
        return fun

    return register


class Builder:
    """The ops of one graph (the program's, a loop's body, a branch) as they become a wafer's."""

    def __init__(self, wafers: int, arity: int) -> None:
        self.wafers, self.arity = wafers, arity
        self.ops: list[Op] = []
        self.now: dict[Value, tuple[Value, Share | None]] = {}  # of a global value
        self.brought: dict[tuple[Value, Share | None], Value] = {}
        self.maker: dict[Value, Op] = {}  # of a replicated value

    # -- shares
    def alike(self, a: Share | None, b: Share | None) -> bool:
        """Whether two shares give every wafer the same elements of a dimension."""
        if a is None or b is None:
            return a is b
        even = a.rows % self.wafers == 0 == b.rows % self.wafers and a.size == b.size
        return a.dim == b.dim and (even or (a.rows, a.multiple) == (b.rows, b.multiple))

    def ragged(self, share: Share) -> bool:
        return share.rows % self.wafers != 0

    def local_size(self, share: Share) -> int:
        return -(-share.rows // self.wafers) * share.multiple

    def shape(self, shape: Sequence[int], share: Share | None) -> tuple[int, ...]:
        """A wafer's shape of an array of global `shape`."""
        return tuple(self.local_size(share) if share is not None and d == share.dim else n for d, n in enumerate(shape))

    def like(self, value: Value, share: Share | None) -> Value:
        """A fresh value: what a wafer has of `value`."""
        return Value(self.shape(value.shape, share), value.dtype, made_by=value.made_by, varies=share is not None)

    def share(self, value: Value) -> Share | None:
        return self.now.get(value, (value, None))[1]

    # -- ops
    def emit(self, name: str, params: dict[str, Any], ins: Sequence[Value], out: Value, source: str, primitive: Any = None) -> Value:
        out.made_by = out.made_by or name
        self.ops.append(Op(name, primitive, params, list(ins), [out], source))
        return out

    def local(self, op: Op, ins: Sequence[Share | None], outs: Sequence[Share | None], **changes) -> list[tuple[Value, Share | None]]:
        """The op itself on a wafer's shares, with some parameters changed."""
        got = [self.get(v, s, op.source) for v, s in zip(op.ins, ins, strict=True)]
        made = [self.like(v, s) for v, s in zip(op.outs, outs, strict=True)]
        self.ops.append(Op(op.name, op.primitive, {**op.params, **changes}, got, made, op.source, op.bodies))
        return list(zip(made, outs, strict=True))

    def get(self, value: Value, share: Share | None, source: str) -> Value:
        """What a wafer has of a global value, brought to the share that is wanted."""
        mine, have = self.now.get(value, (value, None))
        return self.bring(mine, have, share, source)

    def bring(self, mine: Value, have: Share | None, want: Share | None, source: str) -> Value:
        """A wafer's value in another share: gathered over the wafers, then its own part taken."""
        if self.alike(have, want):
            return mine
        if have is not None and want is not None:
            return self.bring(self.bring(mine, have, None, source), None, want, source)
        if (mine, want) not in self.brought:
            if want is None:
                assert have is not None
                shape = tuple(have.size if d == have.dim else n for d, n in enumerate(mine.shape))
                params = {"dim": have.dim, "size": have.size, "wafers": self.wafers, "arity": self.arity, "multiple": have.multiple}
                self.brought[mine, want] = self.emit("swarm_gather", params, [mine], Value(shape, mine.dtype), source)
            else:
                self.brought[mine, want] = self._taken(mine, want, source)
        return self.brought[mine, want]

    def _taken(self, value: Value, share: Share, source: str) -> Value:
        """A wafer's share of what all have. What is spread out from less is made in the share's size."""
        op, out = self.maker.get(value), self.like(value, share)
        if op is not None and op.name == "broadcast_in_dim" and len(op.ins) == 1:
            (x,), dims = op.ins, op.params["broadcast_dimensions"]
            at = dims.index(share.dim) if share.dim in dims else None
            if at is not None and x.shape[at] == share.size:
                x = self.bring(x, None, share.at(at), source)
            return self.emit(op.name, {**op.params, "shape": out.shape}, [x], out, op.source, op.primitive)
        if op is not None and op.name == "iota" and value.ndim > 1:
            if op.params["dimension"] != share.dim:
                return self.emit(op.name, {**op.params, "shape": out.shape}, [], out, op.source, op.primitive)
            line = self.emit(
                "iota", {**op.params, "shape": (share.size,), "dimension": 0}, [], Value((share.size,), value.dtype), source, op.primitive
            )
            here = self.bring(line, None, share.at(0), source)
            params = {"shape": out.shape, "broadcast_dimensions": (share.dim,), "sharding": None}
            return self.emit("broadcast_in_dim", params, [here], out, source, lax.broadcast_in_dim_p)
        if op is not None and op.name == "convert_element_type":
            return self.emit(op.name, op.params, [self.bring(op.ins[0], None, share, source)], out, op.source, op.primitive)
        params = {"dim": share.dim, "size": share.size, "wafers": self.wafers, "multiple": share.multiple}
        return self.emit("swarm_take", params, [value], Value(out.shape, out.dtype), source)

    def masked(self, value: Value, share: Share, neutral: str, source: str) -> Value:
        """A wafer's value with the neutral element of the reduction `neutral` where it is padded."""
        if not self.ragged(share):
            return value
        params = {"dim": share.dim, "size": share.size, "wafers": self.wafers, "multiple": share.multiple, "neutral": neutral}
        return self.emit("swarm_mask", params, [value], Value(value.shape, value.dtype), source)

    def joined(self, value: Value, op: str, source: str) -> Value:
        """The wafers' values combined over the tree."""
        value.varies = True
        params = {"op": op, "wafers": self.wafers, "arity": self.arity}
        return self.emit("swarm_reduce", params, [value], Value(value.shape, value.dtype), source)

    # -- graphs
    def body(self, graph: Graph, ins: Sequence[Share | None], outs: Sequence[Share | None] | None = None):
        """(a graph of its own on shares, the shares of its results): those wanted, or those that come."""
        inner = Builder(self.wafers, self.arity)
        mine = [v if s is None else inner.like(v, s) for v, s in zip(graph.ins, ins, strict=True)]
        inner.now.update((v, (m, s)) for v, m, s in zip(graph.ins, mine, ins, strict=True))
        for op in graph.ops:
            inner.place(op)
        got = [inner.share(v) for v in graph.outs] if outs is None else list(outs)
        last = [inner.get(v, s, "result of the function") for v, s in zip(graph.outs, got, strict=True)]
        return Graph(mine, _alive(inner.ops, last), last), got

    def place(self, op: Op) -> None:
        """Append what one op of the whole program becomes."""
        shares = [self.share(v) for v in op.ins]
        found = PLACED[op.name](self, op, shares) if any(s is not None for s in shares) and op.name in PLACED else None
        if found is None:
            ins = [self.get(v, None, op.source) for v in op.ins]
            op = op if ins == op.ins else dataclasses.replace(op, ins=ins)
            self.ops.append(op)
            self.maker.update((v, op) for v in op.outs)
            return
        self.now.update(zip(op.outs, found, strict=True))


def _alive(ops: list[Op], outs: Sequence[Value]) -> list[Op]:
    """The ops that the results need: what was made whole before it turned out that only shares are wanted is gone."""
    wanted, kept = set(outs), []
    for op in reversed(ops):
        if wanted.intersection(op.outs):
            wanted.update(op.ins)
            kept.append(op)
    return kept[::-1]
