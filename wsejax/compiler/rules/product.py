"""Rule of dot_general: SUMMA on the fabric, or local where every block has all it needs."""

from __future__ import annotations

import jax.numpy as jnp

from wsejax.compiler.ir import Op, itemsize_bytes
from wsejax.compiler.program import dot_flops
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.gemm import summa
from wsejax.kernels.relayout import Layout, byte_hops


@rule("dot_general")
def dot_general(op: Op, ctx: Context) -> Step:
    a, b = op.ins
    (ac, bc), (ab, bb) = op.params["dimension_numbers"]
    out = ctx.layouts[op.outs[0]]
    la, lb = ctx.layouts[a], ctx.layouts[b]
    want_a = _meeting(a.ndim, ab, ac, out, 0)
    want_b = _meeting(b.ndim, bb, bc, out, a.ndim - len(ab) - len(ac))
    accumulate = ctx.accumulators(op, a.dtype) if a.dtype == b.dtype else None
    if accumulate is not None and set(accumulate) == {jnp.dtype(jnp.float32)}:
        accumulate = None  # as products are done in any case
    moves = ((la, want_a), (lb, want_b))
    hops = sum(byte_hops(v.shape, itemsize_bytes(v.dtype), *move, ctx.tiles) for v, move in zip(op.ins, moves, strict=True))

    def run(x, y):
        keep = {k: op.params[k] for k in ("preferred_element_type", "precision")}
        keep |= {"steady": ctx.steadies(out), "accumulate": accumulate}
        return [summa(x, y, op.params["dimension_numbers"], moves, [a.shape, b.shape], ctx.tiles, **keep)]

    flops = dot_flops(a, b, op.outs[0], ac)
    calls = [ctx.call("kernel", "gemm", op, [la, lb], [out], byte_hops=hops, flops=flops)] if hops else []
    return Step([la, lb], [out], run, calls)


def _meeting(ndim: int, batch, contracted, out: Layout, skip: int) -> Layout:
    """Layout in which an operand meets the output: batch and kept dimensions as in the output, contracted ones whole.

    `skip` is the number of kept dimensions of the operand before it in the output.
    """
    lay: list[str | None] = [None] * ndim
    for n, d in enumerate(batch):
        lay[d] = out[n]
    free = [d for d in range(ndim) if d not in batch and d not in contracted]
    for n, d in enumerate(free):
        lay[d] = out[len(batch) + skip + n]
    return tuple(lay)
