"""Rules of operations that rearrange elements: a split dimension stays split where its elements stay together."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from wsejax.compiler.dims import batch_dims, kept, major, reshape_groups
from wsejax.compiler.ir import ENTANGLED, Op
from wsejax.compiler.walk import Context, Step, rule, whole
from wsejax.kernels.relayout import Layout


@rule("broadcast_in_dim")
def broadcast_in_dim(op: Op, ctx: Context) -> Step:
    x, out = op.ins[0], op.outs[0]
    lay = ctx.layouts[out]
    ins = tuple(lay[j] if x.shape[i] == out.shape[j] else None for i, j in enumerate(op.params["broadcast_dimensions"]))
    shape = ctx.block(out.shape, lay)
    return Step([ins], [lay], lambda x: op.bind(x, shape=shape))


@rule("transpose")
def transpose(op: Op, ctx: Context) -> Step:
    lay = ctx.layouts[op.outs[0]]
    ins: list[str | None] = [None] * op.ins[0].ndim
    for j, i in enumerate(op.params["permutation"]):
        ins[i] = lay[j]
    return Step([tuple(ins)], [lay], op.bind)


@rule("squeeze")
def squeeze(op: Op, ctx: Context) -> Step:
    lay = ctx.layouts[op.outs[0]]
    ins: list[str | None] = [None] * op.ins[0].ndim
    for j, i in enumerate(kept(op.ins[0].ndim, op.params["dimensions"])):
        ins[i] = lay[j]
    return Step([tuple(ins)], [lay], op.bind)


@rule("reshape")
def reshape(op: Op, ctx: Context) -> Step:
    """A group's sharding passes between its slowest dimensions; other split dimensions of a group that changes are gathered first."""
    x, out = op.ins[0], op.outs[0]
    chosen, have = ctx.layouts[out], ctx.layouts[x]
    ins: list[str | None] = [None] * x.ndim
    outs: list[str | None] = [None] * out.ndim
    for left, right in reshape_groups(x.shape, out.shape) if math.prod(x.shape) else ():
        i, j = major(x.shape, left), major(out.shape, right)
        if i is None or j is None:
            continue
        for axis in (chosen[j], have[i]):
            if axis and axis not in outs and x.shape[i] % ctx.tiles[axis] == 0 == out.shape[j] % ctx.tiles[axis]:
                ins[i] = outs[j] = axis
                break
    shape = ctx.block(out.shape, tuple(outs))
    return Step([tuple(ins)], [tuple(outs)], lambda x: op.bind(x, new_sizes=shape))


def along(names: str, dims: Callable[[Op], set[int]]):
    """Rule of ops that touch only the dimensions `dims(op)`: those are made whole, the others keep the result's layout."""

    @rule(*names.split())
    def _(op: Op, ctx: Context) -> Step:
        touched, lay = dims(op), ctx.layouts[op.outs[0]]
        lay = tuple(None if d in touched else a for d, a in enumerate(lay))
        return Step([lay if v.ndim == len(lay) else whole(v) for v in op.ins], [lay] * len(op.outs), op.bind)


along("rev", lambda op: set(op.params["dimensions"]))
along("sort", lambda op: {op.params["dimension"]})
along("approx_top_k", lambda op: {op.params["reduction_dimension"]})
along("tile", lambda op: {d for d, n in enumerate(op.params["reps"]) if n != 1})


@rule("fft", "cholesky", "triangular_solve", "lu", "qr", "eigh", "svd", "householder_product", "tridiagonal_solve", "eig", "schur",
      "hessenberg", "tridiagonal")  # fmt: skip
def matrices(op: Op, ctx: Context) -> Step:
    """Each matrix is whole on its device; many of them are split."""
    lead = ctx.layouts[op.ins[0]][: batch_dims(op)]
    lay = lambda v: (*lead, *(None,) * (v.ndim - len(lead)))
    return Step([lay(v) for v in op.ins], [lay(v) for v in op.outs], op.bind)


@rule("reduce")
def reduce_any(op: Op, ctx: Context) -> Step:
    """A reduction by a function of the user's: whole along what it reduces."""
    gone, have = op.params["dimensions"], ctx.layouts[op.ins[0]]
    lay = tuple(None if d in gone else a for d, a in enumerate(have))
    out = tuple(lay[d] for d in kept(len(lay), gone))
    return Step([lay if v.ndim else () for v in op.ins], [out] * len(op.outs), op.bind)


@rule("stack")
def stack(op: Op, ctx: Context) -> Step:
    axis, lay = op.params["axis"], ctx.layouts[op.outs[0]]
    lay = tuple(None if d == axis else a for d, a in enumerate(lay))
    return Step([tuple(a for d, a in enumerate(lay) if d != axis)] * len(op.ins), [lay], op.bind)


@rule("unstack")
def unstack(op: Op, ctx: Context) -> Step:
    axis, lay = op.params["axis"], list(ctx.layouts[op.ins[0]])
    lay[axis] = None
    return Step([tuple(lay)], [tuple(a for d, a in enumerate(lay) if d != axis)] * len(op.outs), op.bind)


def _cut(op: Op, ctx: Context) -> tuple[Layout, Callable]:
    """Layout with the cut dimensions whole, and a function that replaces full lengths by the block's."""
    x, out = op.ins[0], op.outs[0]
    lay = tuple(a if x.shape[d] == out.shape[d] else None for d, a in enumerate(ctx.layouts[out]))
    block = ctx.block(x.shape, lay)
    return lay, lambda sizes: tuple(block[d] if lay[d] else n for d, n in enumerate(sizes))


@rule("dynamic_slice")
def dynamic_slice(op: Op, ctx: Context) -> Step:
    lay, local = _cut(op, ctx)
    return Step(
        [lay, *[()] * (len(op.ins) - 1)],
        [lay],
        lambda x, *at: op.bind(x, *at, slice_sizes=local(op.params["slice_sizes"])),
    )


@rule("dynamic_update_slice")
def dynamic_update_slice(op: Op, ctx: Context) -> Step:
    x, update = op.ins[:2]
    lay = tuple(a if x.shape[d] == update.shape[d] else None for d, a in enumerate(ctx.layouts[op.outs[0]]))
    run = (lambda x, update, *at: [_updated(x, update, at)]) if op.outs[0].made_by == ENTANGLED else op.bind
    return Step([lay, lay, *[()] * (len(op.ins) - 2)], [lay], run)


def _updated(x, update, at):
    """`lax.dynamic_update_slice`, element by element: never in place."""
    inside = jnp.ones((), bool)
    for d, start in enumerate(at):
        n, size = x.shape[d], update.shape[d]
        start = jnp.clip(jnp.where(start < 0, start + n, start).astype(jnp.int32), 0, n - size)
        place = jnp.arange(n, dtype=jnp.int32) - start
        update = jnp.take(update, jnp.clip(place, 0, size - 1), axis=d)
        inside = inside & ((place >= 0) & (place < size)).reshape([-1 if i == d else 1 for i in range(x.ndim)])
    return jnp.where(inside, update, x)
