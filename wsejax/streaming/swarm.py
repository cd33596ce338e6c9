"""The compiler's rules for what `partition` puts into a wafer's program: shares, masks, and what goes through the tree."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from wsejax import fabric
from wsejax.compiler import work
from wsejax.compiler.ir import Op
from wsejax.compiler.rules.reduction import identity
from wsejax.compiler.walk import Context, Step, rule
from wsejax.fabric import swarm
from wsejax.kernels.relayout import Layout

work.FREE.update(("swarm_gather", "swarm_reduce", "swarm_take"))  # nothing for PEs to compute: nodes of the tree add up


def _uncut(op: Op, ctx: Context) -> Layout:
    """The chosen layout of the result, with the dimension that wafers share whole on each."""
    return tuple(None if d == op.params["dim"] else a for d, a in enumerate(ctx.layouts[op.outs[0]]))


@rule("swarm_reduce")
def reduce(op: Op, ctx: Context) -> Step:
    p, lay = op.params, ctx.layouts[op.outs[0]]
    run = lambda x: [swarm.reduce(x, p["op"], p["wafers"], p["arity"])]
    return Step([lay], [lay], run, [ctx.call("stream", "swarm", op, [lay], [lay])])


@rule("swarm_gather")
def gather(op: Op, ctx: Context) -> Step:
    p, lay = op.params, _uncut(op, ctx)
    run = lambda x: [swarm.gather(x, p["dim"], p["size"], p["wafers"], p["arity"], p["multiple"])]
    return Step([lay], [lay], run, [ctx.call("stream", "swarm", op, [lay], [lay])])


@rule("swarm_take")
def take(op: Op, ctx: Context) -> Step:
    p, lay = op.params, _uncut(op, ctx)
    return Step([lay], [lay], lambda x: [swarm.take(x, p["dim"], p["wafers"], p["multiple"])])


@rule("swarm_mask")
def mask(op: Op, ctx: Context) -> Step:
    """The neutral element of a reduction where a wafer's share is padded."""
    p, (x,), lay = op.params, op.ins, ctx.layouts[op.outs[0]]
    dim, axis = p["dim"], lay[p["dim"]]

    def run(block):
        place = lax.broadcasted_iota(jnp.int32, block.shape, dim)
        if axis is not None:
            place = place + fabric.coordinate(axis) * block.shape[dim]
        real = place < swarm.valid(p["size"] // p["multiple"], p["wafers"], p["multiple"])
        return [jnp.where(real, block, jnp.asarray(identity(p["neutral"], x.dtype)))]

    return Step([lay], [lay], run)
