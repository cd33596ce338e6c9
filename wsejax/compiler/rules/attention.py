"""Rules of `wse.attention`: local where a device has whole sequences, round the ring where the sequence is split."""

from __future__ import annotations

import math

from wsejax import fabric
from wsejax.compiler.ir import Op
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.attention import Ring, ring_backward, ring_byte_hops, ring_forward
from wsejax.kernels.relayout import Layout


def _ring(op: Op, ctx: Context) -> tuple[Layout, Ring]:
    """The layout of everything that has (batch, tokens, heads, ...), and the ring."""
    q, k = op.ins[:2]
    batch, tokens, heads, _ = ctx.layouts[q]
    if heads and k.shape[2] % ctx.tiles[heads]:
        heads = None
    # an axis that neither batch nor heads take is the sequence's, also if it comes otherwise: one exchange is little beside the scores
    fits = [a for a in (tokens, *fabric.AXES) if a and a not in (batch, heads) and min(q.shape[1], k.shape[1]) >= ctx.tiles[a] > 1]
    tokens = next(iter(fits), None)
    p = op.params
    ring = Ring(tokens or "", ctx.tiles[tokens] if tokens else 1, q.shape[1], k.shape[1], p["scale"], p["left"], p["right"])
    return (batch, tokens, heads, None), ring


def _calls(op: Op, ctx: Context, ins, outs, ring: Ring, passes: int, accumulators: int):
    if not ring.axis:
        return []
    q, k = op.ins[:2]
    travel = sum(ctx.tile_bytes(v, lay) for v, lay in zip(op.ins[1:3], ins[1:3], strict=True))
    travel += sum(ctx.tile_bytes(v, lay) for v, lay in zip(op.ins, ins, strict=True) if v.ndim == 2)
    line, grid = ring.tiles, math.prod(ctx.tiles.values())
    wide = 2 * math.prod(n // (ctx.tiles[a] if a else 1) for n, a in zip(_padded(k.shape, ins[1], ctx), ins[1], strict=True)) * 4
    hops = ring_byte_hops(travel, line, grid // line, accumulators * wide)
    flops = 2 * passes * math.prod(q.shape) * k.shape[1]
    return [ctx.call("kernel", op.name, op, ins, outs, byte_hops=hops, flops=flops)]


def _padded(shape, lay, ctx: Context):
    return tuple(-(-n // ctx.tiles[a]) * ctx.tiles[a] if a else n for n, a in zip(shape, lay, strict=True))


@rule("ring_attention")
def forward(op: Op, ctx: Context) -> Step:
    lay, ring = _ring(op, ctx)
    ins = [lay[: v.ndim] for v in op.ins]
    outs = [lay, lay]

    def run(q, k, v, *mask):
        return ring_forward(q, k, v, mask[0] if mask else None, ring)

    return Step(ins, outs, run, _calls(op, ctx, ins, outs, ring, 2, 0))


@rule("ring_attention_gradient")
def backward(op: Op, ctx: Context) -> Step:
    lay, ring = _ring(op, ctx)
    ins = [lay[: v.ndim] for v in op.ins]
    outs = [lay, lay, lay]

    def run(q, k, v, *rest):
        *mask, out, lse, d_out = rest
        return ring_backward(q, k, v, mask[0] if mask else None, out, lse, d_out, ring)

    return Step(ins, outs, run, _calls(op, ctx, ins, outs, ring, 5, 1))
