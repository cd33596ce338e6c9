"""Partition rules of loops and branches. Conditions and branch numbers are scalars, hence the same on all wafers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from wsejax.compiler.ir import Op, Value, scan_split
from wsejax.streaming.partition import Builder, Share, placed


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A carry that must stay whole: it comes in shares that differ."""


def _join(b: Builder, old: Share | _Whole | None, new: Share | None) -> Share | _Whole | None:
    if new is None or isinstance(old, _Whole):
        return old
    return new if old is None else old if b.alike(old, new) else _Whole()


def _meant(share: Share | _Whole | None) -> Share | None:
    return None if isinstance(share, _Whole) else share


def _results(b: Builder, op: Op, ins: Sequence[Value], shares: Sequence[Share | None], bodies) -> list[tuple[Value, Share | None]]:
    made = [b.like(v, s) for v, s in zip(op.outs, shares, strict=True)]
    b.ops.append(dataclasses.replace(op, ins=list(ins), outs=made, bodies=tuple(bodies)))
    return list(zip(made, shares, strict=True))


@placed("scan")
def scan(b: Builder, op: Op, shares):
    (body,), (consts, carry) = op.bodies, scan_split(op)
    # what a step reads of the scanned arrays: the scanned dimension itself must be whole
    scanned = [None if s is None or s.dim == 0 else s for s in shares[consts + carry :]]
    rows = [None if s is None else s.at(s.dim - 1) for s in scanned]
    state: list[Share | _Whole | None] = list(shares[consts : consts + carry])
    while True:
        held = [_meant(s) for s in state]
        _, outs = b.body(body, [*shares[:consts], *held, *rows])
        after = [_join(b, old, new) for old, new in zip(state, outs[:carry], strict=True)]
        if after == state:
            break
        state = after
    graph, outs = b.body(body, [*shares[:consts], *held, *rows], [*held, *outs[carry:]])
    wants = [*shares[:consts], *held, *scanned]
    ins = [b.get(v, s, op.source) for v, s in zip(op.ins, wants, strict=True)]
    stacked = [None if s is None else s.at(s.dim + 1) for s in outs[carry:]]
    return _results(b, op, ins, [*held, *stacked], [graph])


@placed("while")
def while_(b: Builder, op: Op, shares):
    cond, body = op.bodies
    nc, nb = op.params["cond_nconsts"], op.params["body_nconsts"]
    state: list[Share | _Whole | None] = list(shares[nc + nb :])
    while True:
        held = [_meant(s) for s in state]
        _, outs = b.body(body, [*shares[nc : nc + nb], *held])
        after = [_join(b, old, new) for old, new in zip(state, outs, strict=True)]
        if after == state:
            break
        state = after
    graph, _ = b.body(body, [*shares[nc : nc + nb], *held], held)
    going, _ = b.body(cond, [*shares[:nc], *held], [None])
    ins = [b.get(v, s, op.source) for v, s in zip(op.ins, [*shares[: nc + nb], *held], strict=True)]
    return _results(b, op, ins, held, [going, graph])


@placed("cond")
def cond(b: Builder, op: Op, shares):
    outs: list[Share | _Whole | None] = [None] * len(op.outs)
    for branch in op.bodies:
        outs = [_join(b, old, new) for old, new in zip(outs, b.body(branch, shares[1:])[1], strict=True)]
    held = [_meant(s) for s in outs]
    graphs = [b.body(branch, shares[1:], held)[0] for branch in op.bodies]
    ins = [b.get(v, s, op.source) for v, s in zip(op.ins, shares, strict=True)]
    return _results(b, op, ins, held, graphs)
