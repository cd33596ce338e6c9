"""Rules of reductions: over a split dimension they are a fabric kernel, else local."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from wsejax.compiler.dims import kept
from wsejax.compiler.ir import Op, itemsize_bytes
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels import line
from wsejax.kernels.reduce import partial_reduce, tree_reduce
from wsejax.kernels.relayout import block_shape, gather_byte_hops

COMBINE = {
    "reduce_sum": jnp.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum, "reduce_prod": jnp.multiply,
    "reduce_and": jnp.bitwise_and, "reduce_or": jnp.bitwise_or, "reduce_xor": jnp.bitwise_xor,
}  # fmt: skip


def identity(name: str, dtype) -> Any:
    """The neutral element of a reduction."""
    if name in ("reduce_sum", "reduce_xor", "reduce_or", "reduce_prod"):
        return np.asarray(name == "reduce_prod", dtype)
    if name == "reduce_and":
        return np.invert(np.zeros((), dtype))
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
    # A sum over layers and more goes over the layers last, as it must where they stream through one by one (a global norm).
    late = len(axes) > 1 and 0 in axes and lay[0] is None

    def local(block, dims):
        if rounds and (ctx.steadies(lay) or (ctx.steady and late)):
            first = tuple(d for d in dims if d) if late else dims
            block = tree_reduce(block, first, COMBINE[op.name], neutral)
            return tree_reduce(block, (0,), COMBINE[op.name], neutral) if late else block
        return op.bind(block, axes=dims)[0]

    if not lines:
        return Step([lay], [outs], lambda x: [local(x, tuple(axes))])

    hops, grid = 0, ctx.tiles["y"] * ctx.tiles["x"]
    block_bytes = ctx.tile_bytes(op.outs[0], outs)
    for axis in lines:
        hops += gather_byte_hops(block_bytes, ctx.tiles[axis], grid // ctx.tiles[axis])
    flops = x.size_bytes // itemsize_bytes(x.dtype)
    call = ctx.call("kernel", op.name, op, [lay], [outs], byte_hops=hops, flops=flops)
    accumulate = ctx.accumulators(op, x.dtype) if op.name in ("reduce_sum", "reduce_prod") else None

    def run(block):
        return [partial_reduce(block, lay, axes, local, COMBINE[op.name], neutral, x.shape, ctx.tiles, accumulate)]

    return Step([lay], [outs], run, [call], waits=True)


@rule("argmax", "argmin")
def arg_reduction(op: Op, ctx: Context) -> Step:
    (x,), (dim,) = op.ins, op.params["axes"]
    lay = ctx.layouts[x]
    outs, axis = tuple(lay[d] for d in kept(len(lay), (dim,))), lay[dim]
    if axis is None:
        return Step([lay], [outs], op.bind)
    neutral = identity("reduce_max" if op.name == "argmax" else "reduce_min", x.dtype)
    pick = lambda block, d: op.bind(block, axes=(d,))[0]
    hops = _line_hops(ctx, axis, x.dtype, op.outs[0].dtype, elements=ctx.tile_bytes(op.outs[0], outs) // itemsize_bytes(op.outs[0].dtype))
    call = ctx.call("kernel", op.name, op, [lay], [outs], byte_hops=hops)
    return Step([lay], [outs], lambda block: [line.first_best(block, dim, axis, x.shape[dim], neutral, pick)], [call])


@rule("top_k")
def top_k(op: Op, ctx: Context) -> Step:
    (x,), k = op.ins, op.params["k"]
    dim = op.params.get("axis", x.ndim - 1) % x.ndim
    lay = ctx.layouts[x]
    outs, axis = tuple(None if d == dim else a for d, a in enumerate(lay)), lay[dim]
    if axis is None:
        return Step([lay], [outs, outs], op.bind)
    block = block_shape(x.shape, lay, ctx.tiles, ctx.tiles)
    elements = math.prod(min(k, n) if d == dim else n for d, n in enumerate(block))
    hops = _line_hops(ctx, axis, x.dtype, op.outs[1].dtype, elements=elements)
    call = ctx.call("kernel", "top_k", op, [lay], [outs, outs], byte_hops=hops)
    pick = lambda block, k: op.bind(block, k=k)
    lowest = identity("reduce_max", x.dtype)
    return Step([lay], [outs, outs], lambda block: line.top_k(block, k, dim, axis, x.shape[dim], lowest, pick), [call])


def _line_hops(ctx: Context, axis: str, *dtypes, elements: int) -> int:
    """Of all-gathers along `axis` of so many elements a tile, one of each dtype."""
    tiles, grid = ctx.tiles[axis], math.prod(ctx.tiles.values())
    return sum(gather_byte_hops(elements * itemsize_bytes(dtype), tiles, grid // tiles) for dtype in dtypes)


RUNNING = {
    "cumsum": ("reduce_sum", jnp.add), "cumprod": ("reduce_prod", jnp.multiply), "cummax": ("reduce_max", jnp.maximum),
    "cummin": ("reduce_min", jnp.minimum), "cumlogsumexp": ("reduce_max", jnp.logaddexp),
}  # fmt: skip


@rule(*RUNNING)
def running(op: Op, ctx: Context) -> Step:
    (x,), dim, reverse = op.ins, op.params["axis"], op.params["reverse"]
    lay = ctx.layouts[op.outs[0]]
    axis = lay[dim]
    if axis is None:
        return Step([lay], [lay], op.bind)
    like, combine = RUNNING[op.name]
    neutral, cumulative = identity(like, x.dtype), lambda block, d: op.bind(block, axis=d)[0]
    block = block_shape(x.shape, lay, ctx.tiles, ctx.tiles)
    hops = _line_hops(ctx, axis, x.dtype, elements=math.prod(block) // block[dim])
    run = lambda block: [line.running(block, dim, axis, x.shape[dim], neutral, cumulative, combine, reverse, ctx.tiles)]
    return Step([lay], [lay], run, [ctx.call("kernel", op.name, op, [lay], [lay], byte_hops=hops, flops=math.prod(x.shape))])
