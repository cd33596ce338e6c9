"""Rules of reductions: over a split dimension they are a fabric kernel, else local."""

from __future__ import annotations

import jax.numpy as jnp

from wsejax.compiler.dims import kept
from wsejax.compiler.ir import Op, itemsize_bytes
from wsejax.compiler.walk import Context, Step, rule, tile_count
from wsejax.kernels.reduce import reduce_tiles, tree_reduce
from wsejax.kernels.relayout import gather_byte_hops

COMBINE = {
    "reduce_sum": jnp.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum, "reduce_prod": jnp.multiply,
    "reduce_and": jnp.bitwise_and, "reduce_or": jnp.bitwise_or, "reduce_xor": jnp.bitwise_xor,
}  # fmt: skip


@rule(*COMBINE)
def reduction(op: Op, ctx: Context) -> Step:
    x, axes = op.ins[0], op.params["axes"]
    lay = ctx.layouts[x]
    rest = kept(x.ndim, axes)
    outs = tuple(lay[d] for d in rest)
    lines = [lay[d] for d in axes if lay[d]]
    # rounding makes the order matter; the others (max, or, ...) give the same bits in any
    rounds = op.name in ("reduce_sum", "reduce_prod") and jnp.issubdtype(x.dtype, jnp.inexact)

    def local(block, dims):
        if rounds and ctx.steady and any(lay):
            return tree_reduce(block, dims, COMBINE[op.name], identity=op.name == "reduce_prod")
        return op.bind(block, axes=dims)[0]

    if not lines:
        return Step([lay], [outs], lambda x: [local(x, tuple(axes))])

    hops, grid = 0, ctx.tiles["y"] * ctx.tiles["x"]
    block_bytes = op.outs[0].size_bytes // max(1, tile_count(outs, ctx.tiles))
    for axis in lines:
        hops += gather_byte_hops(block_bytes, ctx.tiles[axis], grid // ctx.tiles[axis])
    flops = x.size_bytes // itemsize_bytes(x.dtype)
    call = ctx.call("kernel", op.name, op, [lay], [outs], byte_hops=hops, flops=flops)
    return Step([lay], [outs], lambda x: [reduce_tiles(x, lay, axes, local, COMBINE[op.name], ctx.tiles)], [call])


@rule("argmax", "argmin")
def arg_reduction(op: Op, ctx: Context) -> Step:
    axes = op.params["axes"]
    lay = tuple(None if d in axes else a for d, a in enumerate(ctx.layouts[op.ins[0]]))
    return Step([lay], [tuple(lay[d] for d in kept(len(lay), axes))], op.bind)
