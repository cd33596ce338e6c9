"""Rules of gather and scatter: a table split along the indexed dimension stays where it is; indices and rows travel."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import lax
from jax.lax import GatherScatterMode

from wsejax.compiler.dims import kept, static_update
from wsejax.compiler.ir import Op, Value
from wsejax.compiler.rules.place import update_slice
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.index import merge_rows, owned
from wsejax.kernels.relayout import Layout, gather_byte_hops, pad, padded, share


@dataclasses.dataclass(frozen=True)
class _Dims:
    """A gather's or scatter's dimension numbers by one set of names."""

    windows: list[int]  # table dimensions that come whole with each index
    offsets: tuple[int, ...]  # where they are in the rows
    collapsed: tuple[int, ...]
    batched: tuple[int, ...]
    idx_batched: tuple[int, ...]
    indexed: tuple[int, ...]


def _dims(op: Op) -> _Dims:
    dn, table = op.params["dimension_numbers"], op.ins[0]
    is_gather = op.name == "gather"
    collapsed = dn.collapsed_slice_dims if is_gather else dn.inserted_window_dims
    windows = kept(table.ndim, (*collapsed, *dn.operand_batching_dims))
    return _Dims(
        windows,
        dn.offset_dims if is_gather else dn.update_window_dims,
        collapsed,
        dn.operand_batching_dims,
        dn.start_indices_batching_dims if is_gather else dn.scatter_indices_batching_dims,
        dn.start_index_map if is_gather else dn.scatter_dims_to_operand_dims,
    )


def _layouts(op: Op, ctx: Context, rows_value) -> tuple[_Dims, Layout, Layout, Layout, str | None]:
    """(dims, table, indices, rows, axis of the indexed dimension) such that all but the indexed dimension is local."""
    d, table, idx = _dims(op), op.ins[0], op.ins[1]
    have, chosen = ctx.layouts[table], ctx.layouts[rows_value]
    lt: list[str | None] = [None] * table.ndim
    li: list[str | None] = [None] * idx.ndim
    lr: list[str | None] = [None] * rows_value.ndim
    axis = None
    if len(d.indexed) == 1 and d.collapsed == d.indexed:  # one row an index: the table may stay split
        axis = lt[d.indexed[0]] = have[d.indexed[0]]
    for i, j in zip(d.windows, d.offsets, strict=True):
        if table.shape[i] == rows_value.shape[j] and i not in d.indexed and have[i] != axis:
            lt[i] = lr[j] = have[i]
    batch = kept(rows_value.ndim, d.offsets) if op.name == "gather" else _tied(d, rows_value.ndim)
    for k, j in enumerate(kept(rows_value.ndim, d.offsets)):  # the index's dimension k is the rows' dimension j
        tied = next((i for i, m in zip(d.batched, d.idx_batched, strict=True) if m == k), None)
        want = chosen[j]
        if j in batch and want and want != axis and want not in lr and want not in lt:
            li[k] = lr[j] = want
            if tied is not None:
                lt[tied] = want
    return d, tuple(lt), tuple(li), tuple(lr), axis


def _tied(d: _Dims, ndim: int) -> list[int]:
    """Dimensions of updates that run with a table dimension: only there can blocks of updates not meet in one row."""
    return [j for k, j in enumerate(kept(ndim, d.offsets)) if k in d.idx_batched]


def _shifted(idx, table_rows: int, axis: str, clip: bool, ctx: Context):
    """Indices local to this device, and whether each is here."""
    if idx.dtype.itemsize < 4:  # else a row number may not fit
        idx = idx.astype(jnp.int32)
    if clip:
        idx = jnp.clip(idx, 0, table_rows - 1)
    return owned(idx, padded(table_rows, ctx.tiles[axis]) // ctx.devices[axis], axis)


@rule("gather")
def gather(op: Op, ctx: Context) -> Step:
    table, out = op.ins[0], op.outs[0]
    d, lt, li, lr, axis = _layouts(op, ctx, out)
    sizes = list(op.params["slice_sizes"])
    for i in d.windows:
        if lt[i] and sizes[i] == table.shape[i]:
            sizes[i] = ctx.block(table.shape, lt)[i]
    if axis is None:
        return Step([lt, li], [lr], lambda x, i: op.bind(x, i, slice_sizes=tuple(sizes)))
    batch = kept(out.ndim, d.offsets)
    # rows may be left split along the table's own axis: then they are summed there by a reduce-scatter
    spread = next((j for j in batch if ctx.layouts[out][j] == axis), None)
    outs = tuple(axis if j == spread else a for j, a in enumerate(lr))
    mode, rows = op.params["mode"], table.shape[d.indexed[0]]
    clip = mode in (GatherScatterMode.CLIP, GatherScatterMode.PROMISE_IN_BOUNDS)  # XLA clamps what the promise does not hold for

    def run(x, i):
        if spread is not None:
            i = pad(i, ctx.tiles[axis], batch.index(spread))
        local, here = _shifted(i, rows, axis, clip, ctx)
        got = op.bind(x, jnp.where(here, local, 0), slice_sizes=tuple(sizes), mode=GatherScatterMode.PROMISE_IN_BOUNDS)[0]
        expand = lambda flags: jnp.expand_dims(flags[..., 0], tuple(d.offsets))
        got = merge_rows(got, expand(here), axis, spread)
        if mode == GatherScatterMode.FILL_OR_DROP:
            inside = expand((i >= 0) & (i < rows))
            if spread is not None:
                inside = share(inside, axis, spread, ctx.tiles)
            got = jnp.where(inside, got, _fill(got.dtype, op.params.get("fill_value")))
        return [got]

    return Step(
        [lt, li],
        [outs],
        run,
        [ctx.call("kernel", "take_rows", op, [lt, li], [outs], byte_hops=_row_hops(out, outs, axis, ctx))],
    )


def _row_hops(rows: Value, lay: Layout, axis: str, ctx: Context) -> int:
    """Partial rows go once round the ring of every line along `axis`: a share in each turn if they end spread over it, else all."""
    line = ctx.tiles[axis]
    return gather_byte_hops(ctx.tile_bytes(rows, lay), line, math.prod(ctx.tiles.values()) // line)


def _fill(dtype, value):
    if value is not None:
        return jnp.asarray(value, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(True)
    info = jnp.iinfo(dtype)
    return jnp.asarray(info.min if jnp.issubdtype(dtype, jnp.signedinteger) else info.max, dtype)


@rule(
    "scatter",
    "scatter-add",
    "scatter-sub",
    "scatter-mul",
    "scatter-min",
    "scatter-max",
    "scatter_add",
    "scatter_sub",
    "scatter_mul",
    "scatter_min",
    "scatter_max",
)
def scatter(op: Op, ctx: Context) -> Step:
    """Updates travel to the table's owner, which applies them in their order: the bits are those of one device."""
    if static_update(op) is not None:
        return update_slice(op, ctx)
    table, _, updates = op.ins
    d, lt, li, lr, axis = _layouts(op, ctx, updates)
    if axis is None:
        return Step([lt, li, lr], [lt], op.bind)
    mode, rows = op.params["mode"], table.shape[d.indexed[0]]

    def run(x, i, u):
        local, here = _shifted(i, rows, axis, mode == GatherScatterMode.CLIP, ctx)
        elsewhere = x.shape[d.indexed[0]]  # out of this block's bounds: dropped
        # XLA (CPU, jaxlib 0.10.2) makes a scatter of one index a slice, and merges it with the slice that cut this block from a whole
        # table, without clamping the index to the block: the barrier keeps the two apart
        x = lax.optimization_barrier(x)
        return op.bind(x, jnp.where(here, local, elsewhere), u, mode=GatherScatterMode.FILL_OR_DROP)

    return Step([lt, li, lr], [lt], run, [ctx.call("kernel", "add_rows", op, [lt, li, lr], [lt])])
