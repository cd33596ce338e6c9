"""Rules of reductions: over a split dimension they are a fabric kernel, else local."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from wsejax.compiler.dims import kept
from wsejax.compiler.ir import Op, itemsize_bytes
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.reduce import partial_reduce, tree_reduce
from wsejax.kernels.relayout import gather_byte_hops

COMBINE = {
    "reduce_sum": jnp.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum, "reduce_prod": jnp.multiply,
    "reduce_and": jnp.bitwise_and, "reduce_or": jnp.bitwise_or, "reduce_xor": jnp.bitwise_xor,
}  # fmt: skip


def identity(name: str, dtype):
    """The neutral element of a reduction."""
    if name in ("reduce_sum", "reduce_xor", "reduce_or", "reduce_prod"):
        return np.asarray(name == "reduce_prod", dtype)
    if name == "reduce_and":
        return ~np.zeros((), dtype)
    if dtype == jnp.bool_:
        return np.asarray(name == "reduce_min")
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf if name == "reduce_max" else np.inf, dtype)
    return np.asarray(jnp.iinfo(dtype).min if name == "reduce_max" else jnp.iinfo(dtype).max, dtype)


@rule(*COMBINE)
def reduction(op: Op, ctx: Context) -> Step:
    x, axes = op.ins[0], op.params["axes"]
    lay = ctx.layouts[x]
    rest = kept(x.ndim, axes)
    outs = tuple(lay[d] for d in rest)
    lines = [lay[d] for d in axes if lay[d]]
    # Rounding makes the order of a sum matter. A maximum has the same bits in any order, but XLA would hand it, with the element-wise work
    # around it, to a library that has its own exponential, if the block is large enough.
    rounds, neutral = jnp.issubdtype(x.dtype, jnp.inexact), identity(op.name, x.dtype)

    def local(block, dims):
        if rounds and ctx.steady and any(lay):
            return tree_reduce(block, dims, COMBINE[op.name], neutral)
        return op.bind(block, axes=dims)[0]

    if not lines:
        return Step([lay], [outs], lambda x: [local(x, tuple(axes))])

    hops, grid = 0, ctx.tiles["y"] * ctx.tiles["x"]
    block_bytes = ctx.tile_bytes(op.outs[0], outs)
    for axis in lines:
        hops += gather_byte_hops(block_bytes, ctx.tiles[axis], grid // ctx.tiles[axis])
    flops = x.size_bytes // itemsize_bytes(x.dtype)
    call = ctx.call("kernel", op.name, op, [lay], [outs], byte_hops=hops, flops=flops)
    return Step([lay], [outs], lambda b: [partial_reduce(b, lay, axes, local, COMBINE[op.name], neutral, x.shape, ctx.tiles)], [call], waits=True)


@rule("argmax", "argmin")
def arg_reduction(op: Op, ctx: Context) -> Step:
    axes = op.params["axes"]
    lay = tuple(None if d in axes else a for d, a in enumerate(ctx.layouts[op.ins[0]]))
    return Step([lay], [tuple(lay[d] for d in kept(len(lay), axes))], op.bind)
