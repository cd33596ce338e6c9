"""Rules of the operations that bring values into the wafer and out of it (`outside.py` writes them into programs).

What lives outside lies in host memory (JAX's memory space `Host`), split over the devices of the mesh as on the wafer. A streamed loop
fetches the slices of a layer while the one before is worked on: they are carried by the loop, as many layers ahead as the MemoryX says.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wsejax.compiler import walk
from wsejax.compiler.ir import Op, Value
from wsejax.compiler.program import Array, Call, Loop
from wsejax.compiler.rules.reduction import COMBINE, identity
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.reduce import Partial, partial_reduce, tree_reduce

PREFETCH: contextvars.ContextVar[int] = contextvars.ContextVar("prefetch", default=1)  # layers ahead, while a program is planned


def fetch(x):
    """An array as it is needed on the wafer: moved there if it is outside."""
    return jax.device_put(x, jax.memory.Space.Device) if jax.typeof(x).memory_space == jax.memory.Space.Host else x


def put_out(x):
    """An array outside the wafer."""
    return x if jax.typeof(x).memory_space == jax.memory.Space.Host else jax.device_put(x, jax.memory.Space.Host)


def _stream_call(kernel: str, ctx: Context, values: Sequence[Value], source: str) -> Call:
    arrays = tuple(Array.of(v, ctx.layouts[v], ctx.number(v)) for v in values)
    return Call("stream", kernel, kernel, arrays, arrays, source)


@rule("load")
def load(op: Op, ctx: Context) -> Step:
    lay = ctx.layouts[op.ins[0]]
    calls = [] if op.params["quiet"] else [_stream_call("load", ctx, op.outs, op.source)]
    return Step([lay], [lay], lambda x: [fetch(x)], calls)


@rule("store")
def store(op: Op, ctx: Context) -> Step:
    lay = ctx.layouts[op.outs[0]]
    return Step([lay], [lay], lambda x: [put_out(x)], [_stream_call("store", ctx, op.ins, op.source)])


@rule("memoryx")
def memoryx(op: Op, ctx: Context) -> Step:
    """Work outside the wafer on whole arrays: done on this device's blocks, brought in and put back."""
    (body,) = op.bodies
    outs = [ctx.layouts[v] for v in op.outs]
    plan = ctx.plan(body, outs)
    run = lambda *xs: [put_out(x) for x in walk.run(plan, *map(fetch, xs))]
    return Step(plan.ins, outs, run, [_outside(c) for c in plan.calls])


def _outside(call: Call) -> Call:
    """A call as work that MemoryX does: no PE takes part."""
    return call if call.kind == "stream" else dataclasses.replace(call, kind="memoryx", work=(), byte_hops=0)


class _Stream:
    """How a streamed loop runs over its trips."""

    def __init__(self, op: Op, ctx: Context, outs: Sequence[Any]) -> None:
        (self.body,), p = op.bodies, op.params
        self.consts, self.carry, self.length, self.outside = p["consts"], p["carry"], p["length"], p["outside"]
        self.plan = ctx.plan(self.body, outs)
        self.ahead = min(PREFETCH.get(), self.length)
        self.order = {"reverse": p["reverse"], "unroll": p["unroll"]}
        lead = lambda lay: (None, *lay)
        self.ins = [*self.plan.ins[: self.consts + self.carry], *map(lead, self.plan.ins[self.consts + self.carry :])]
        loop = Loop(op.source, self.length, ctx.number(op.outs[0]) if op.outs else -1)
        loaded = [_stream_call("load", ctx, p["loaded"], op.source)] if p["loaded"] else []
        inner = [_outside(c) for c in self.plan.calls] if p["memory"] else self.plan.calls
        self.calls = [c.looped(loop) for c in (*loaded, *inner)]
        self.stores = p["stores"] or (False,) * len(self.body.outs)

    def scan(self, xs: Sequence[Any], each) -> tuple[list[Any], list[Any]]:
        """`each(*operands of the body)` gives (carry, results); slices of what is outside are under way `ahead` trips early."""
        start = self.consts + self.carry
        fixed, init, stacks = list(xs[: self.consts]), list(xs[self.consts : start]), list(xs[start:])
        away = [x for x, flag in zip(stacks, self.outside, strict=True) if flag]
        near = [x for x, flag in zip(stacks, self.outside, strict=True) if not flag]
        step = -1 if self.order["reverse"] else 1
        first = self.length - 1 if step < 0 else 0

        def slices(i):
            at = jnp.clip(i, 0, self.length - 1)
            return [fetch(lax.dynamic_index_in_dim(x, at, 0, keepdims=False)) for x in away]

        def trip(state, now):
            (carry, queue), (i, here) = state, now
            got = queue[0] if self.ahead else slices(i)
            queue = [*queue[1:], slices(i + step * self.ahead)] if self.ahead else []
            came, stayed = iter(got), iter(here)
            operands = [next(came) if flag else next(stayed) for flag in self.outside]
            carry, results = each(*fixed, *carry, *operands)
            return (carry, queue), results

        queue = [slices(first + step * n) for n in range(self.ahead)]
        (last, _), stacked = lax.scan(trip, (init, queue), (jnp.arange(self.length), near), length=self.length, **self.order)
        return last, stacked


@rule("stream_scan")
def stream_scan(op: Op, ctx: Context) -> Step:
    (body,), start, carry = op.bodies, op.params["consts"], op.params["carry"]
    inner = [*(ctx.layouts[v] for v in body.ins[start : start + carry]), *(ctx.layouts[v] for v in body.outs[carry:])]
    stream = _Stream(op, ctx, inner)

    def run(*xs):
        def each(*operands):
            results = walk.run(stream.plan, *operands)
            results = [put_out(r) if flag else r for r, flag in zip(results, stream.stores, strict=True)]
            return results[:carry], results[carry:]

        last, stacked = stream.scan(xs, each)
        return [*last, *stacked]

    return Step(stream.ins, [*inner[:carry], *((None, *lay) for lay in inner[carry:])], run, stream.calls)


class LayerReduction:
    """A reduction over layers and more of a stack outside: first in each layer, tile by tile (`part`), then over the layers, then over
    tiles (`total`), as the rule of reductions has it where the whole stack is on the wafer."""

    def __init__(self, op: Op, ctx: Context) -> None:
        self.reduced, self.lay, self.ctx = op.params["reduce"], op.params["layout"], ctx
        axes = self.reduced.params["axes"]
        self.x, self.op = self.reduced.ins[0], COMBINE[self.reduced.name]
        self.axes = tuple(d - 1 for d in axes if d)
        self.rounds, self.neutral = jnp.issubdtype(self.x.dtype, jnp.inexact), identity(self.reduced.name, self.x.dtype)
        self.out = tuple(a for d, a in enumerate(self.lay) if d not in axes)
        kept = [(d, a) for d, a in enumerate(self.lay) if d and (d not in axes or a is not None)]
        self.part_layout = tuple(a for _, a in kept)
        self.lines = tuple((a, n) for n, (d, a) in enumerate(kept) if d in axes)
        sums = self.reduced.name in ("reduce_sum", "reduce_prod")
        self.accumulate = ctx.accumulators(self.reduced, self.x.dtype) if self.lines and sums else None

    def local(self, block, dims):
        if self.rounds:
            return tree_reduce(block, dims, self.op, self.neutral)
        return self.reduced.bind(block, axes=dims)[0] if dims else block

    def part(self, block):
        """Of a layer, a device's block in the layout of the stack."""
        in_tile = None if self.accumulate is None else (self.accumulate[0], self.accumulate[0])
        how = (self.local, self.op, self.neutral, self.x.shape[1:], self.ctx.tiles, in_tile)
        return partial_reduce(block, self.lay[1:], self.axes, *how).x

    def total(self, parts) -> Any:
        """Of the parts of all layers: a `Partial` where the layout splits what is reduced."""
        total = self.local(parts, (0,))
        if self.accumulate is not None:
            total = lax.optimization_barrier(total.astype(self.accumulate[1]))
        return Partial(total, self.lines, self.op, self.x.dtype) if self.lines else total.astype(self.x.dtype)


@rule("memoryx_reduce")
def memoryx_reduce(op: Op, ctx: Context) -> Step:
    how = LayerReduction(op, ctx)
    stream = _Stream(op, ctx, [how.lay[1:]])

    def run(*xs):
        each = lambda *operands: ([], [how.part(*walk.run(stream.plan, *operands))])
        _, (parts,) = stream.scan(xs, each)
        return [how.total(parts)]

    return Step(stream.ins, [how.out], run, stream.calls, waits=bool(how.lines))
