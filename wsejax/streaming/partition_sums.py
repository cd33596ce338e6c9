"""Partition rules of what adds up over wafers: reductions, products, convolutions, and updates of a table.

A wafer combines its own rows, padding masked, and the tree joins the wafers. Narrow floats are added up in float32 from wafer to wafer, as
inside one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wsejax.compiler.dims import kept
from wsejax.compiler.ir import Op, Value, opened
from wsejax.streaming.partition import Builder, Share, placed
from wsejax.streaming.partition_rules import leading

REDUCTIONS = {
    "reduce_sum": "sum", "reduce_prod": "prod", "reduce_max": "max", "reduce_min": "min", "reduce_and": "and", "reduce_or": "or",
    "reduce_xor": "xor",
}  # fmt: skip


def wide(dtype: Any) -> Any:
    """The dtype in which terms of `dtype` are added up."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


def cast(b: Builder, value: Value, dtype: Any, source: str) -> Value:
    if value.dtype == dtype:
        return value
    params = {"new_dtype": dtype, "weak_type": False, "sharding": None}
    return b.emit("convert_element_type", params, [value], Value(value.shape, dtype), source, lax.convert_element_type_p)


@placed(*REDUCTIONS)
def reduction(b: Builder, op: Op, shares):
    (share,), (x,), (out,), axes = shares, op.ins, op.outs, op.params["axes"]
    rest = kept(x.ndim, axes)
    if share.dim in rest:
        return b.local(op, shares, [share.at(rest.index(share.dim))])
    mine = b.masked(b.get(x, share, op.source), share, op.name, op.source)
    dtype = wide(out.dtype) if op.name in ("reduce_sum", "reduce_prod") else out.dtype
    mine = cast(b, mine, dtype, op.source)
    part = b.emit(op.name, op.params, [mine], Value(out.shape, dtype), op.source, op.primitive)
    return [(cast(b, b.joined(part, REDUCTIONS[op.name], op.source), out.dtype, op.source), None)]


@placed("argmax", "argmin", "reduce")
def without_join(b: Builder, op: Op, shares):
    """Local where the shared dimension stays."""
    gone = op.params["axes"] if "axes" in op.params else op.params["dimensions"]
    x = op.ins[0]
    share = leading(b, op.ins, shares, lambda s: s.dim not in gone)
    if share is None:
        return None
    at = share.at(kept(x.ndim, gone).index(share.dim))
    return b.local(op, [share if v.ndim == x.ndim else None for v in op.ins], [at] * len(op.outs))


def _contracted(b: Builder, op: Op, left: Share, right: Share) -> list[tuple[Value, Share | None]]:
    """A product over a shared dimension: each wafer's own terms, then the tree. Padding is masked on both sides, since zero times a
    neighbour's infinity is no zero."""
    (out,), terms = op.outs, []
    for value, share in zip(op.ins, (left, right), strict=True):
        terms.append(b.masked(b.get(value, share, op.source), share, "reduce_sum", op.source))
    dtype = wide(out.dtype)
    params = dict(op.params)
    if dtype != out.dtype:
        params["preferred_element_type"] = dtype
    part = b.emit(op.name, params, terms, Value(out.shape, dtype), op.source, op.primitive)
    return [(cast(b, b.joined(part, "sum", op.source), out.dtype, op.source), None)]


@placed("dot_general")
def dot_general(b: Builder, op: Op, shares):
    """Local where a batch or kept dimension is shared; where wafers share what is contracted, they add up. What fits neither is gathered,
    the smaller operand."""
    x, y = op.ins
    (xc, yc), (xb, yb) = op.params["dimension_numbers"]
    own = {d: n for n, d in enumerate([*xb, *kept(x.ndim, (*xc, *xb))])}  # of x, where a dimension is in the result
    its = {d: len(own) + n for n, d in enumerate(kept(y.ndim, (*yc, *yb)))}
    ways: dict[tuple[str, int], tuple[int, Share]] = {}  # (bytes that stay where they are, share)
    for value, share, batch, contracted, side in zip(op.ins, shares, (xb, yb), (xc, yc), "xy", strict=True):
        if share is None:
            continue
        if share.dim in batch:
            way = "batch", batch.index(share.dim)
        elif share.dim in contracted:
            way = "sum", contracted.index(share.dim)
        else:
            way = side, share.dim
        stays, first = ways.get(way, (0, share))
        ways[way] = stays + value.size_bytes, first
    (what, n), (_, share) = max(ways.items(), key=lambda way: (way[0][0] == "batch", way[1][0]))
    if what == "batch":
        return b.local(op, [share.at(xb[n]), share.at(yb[n])], [share.at(n)])
    if what == "sum":
        return _contracted(b, op, share.at(xc[n]), share.at(yc[n]))
    return b.local(op, [share, None] if what == "x" else [None, share], [share.at((own if what == "x" else its)[n])])


@placed("conv_general_dilated")
def conv_general_dilated(b: Builder, op: Op, shares):
    """Examples are shared; or the batch is what is contracted (the gradient of the weights): of what is read, and of what reads it."""
    dims, p = op.params["dimension_numbers"], op.params
    (xn, xc), (_, wi), (on, _) = (spec[:2] for spec in (dims.lhs_spec, dims.rhs_spec, dims.out_spec))
    if shares[0] is not None and shares[0].dim == xn and p["batch_group_count"] == 1:
        return b.local(op, [shares[0], None], [shares[0].at(on)])
    if p["batch_group_count"] != 1 or p["feature_group_count"] != 1:
        return None
    found = [None if s is None or s.dim != d else s.at(0) for s, d in zip(shares, (xc, wi), strict=True)]
    share = leading(b, op.ins, found, lambda s: True)
    return None if share is None else _contracted(b, op, share.at(xc), share.at(wi))


@placed("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max", "scatter_add", "scatter_sub", "scatter_mul",
        "scatter_min", "scatter_max")  # fmt: skip
def scatter(b: Builder, op: Op, shares):
    table, idx, updates = op.ins
    dn, of_table = op.params["dimension_numbers"], shares[0]
    rows = kept(updates.ndim, dn.update_window_dims)  # dimension k of the indices is rows[k] of the updates
    windows = kept(table.ndim, (*dn.inserted_window_dims, *dn.operand_batching_dims))
    ties = list(zip(dn.operand_batching_dims, dn.scatter_indices_batching_dims, strict=True))
    # of the updates, the share that comes with indices or updates
    found = [None, None if shares[1] is None or shares[1].dim >= idx.ndim - 1 else shares[1].at(rows[shares[1].dim]), shares[2]]
    of_updates = leading(b, [table, updates, updates], found, lambda s: True)

    for t, k in ties:  # many tables, each with its own updates
        if (of_table is not None and of_table.dim == t) or (of_updates is not None and of_updates.dim == rows[k]):
            share = of_updates if of_updates is not None and of_updates.dim == rows[k] else of_table
            assert share is not None
            return b.local(op, [share.at(t), share.at(k), share.at(rows[k])], [share.at(t)])
    for i, j in zip(windows, dn.update_window_dims, strict=True):  # whole rows
        if table.shape[i] == updates.shape[j] and (
            (of_table is not None and of_table.dim == i) or (of_updates is not None and of_updates.dim == j)
        ):
            share = of_updates if of_updates is not None and of_updates.dim == j else of_table
            assert share is not None
            return b.local(op, [share.at(i), None, share.at(j)], [share.at(i)])
    if op.name not in ("scatter-add", "scatter_add") or of_updates is None or of_updates.dim not in rows:
        return None
    return [(_added(b, op, of_updates, rows.index(of_updates.dim)), None)]


def _added(b: Builder, op: Op, share: Share, k: int) -> Value:
    """Updates dealt over wafers: each adds its own to zeros, the tree joins these, and the table is added last: (table + (w0 + w1 ...))."""
    table, idx, updates = op.ins
    dtype, source = wide(table.dtype), op.source
    terms = b.masked(b.get(updates, share, source), share, "reduce_sum", source)
    terms = cast(b, terms, dtype, source)
    zero = Value((), dtype, np.zeros((), dtype))
    params = {"shape": table.shape, "broadcast_dimensions": (), "sharding": None}
    zeros = b.emit("broadcast_in_dim", params, [zero], Value(table.shape, dtype), source, lax.broadcast_in_dim_p)
    where = b.get(idx, share.at(k), source)
    scalar = jax.ShapeDtypeStruct((), dtype)
    adding = {"update_jaxpr": opened(jax.make_jaxpr(lax.add)(scalar, scalar))[0]}  # the op's own is of the table's dtype
    part = b.emit(op.name, {**op.params, **adding}, [zeros, where, terms], Value(table.shape, dtype), source, op.primitive)
    total = cast(b, b.joined(part, "sum", source), table.dtype, source)
    return b.emit("add", {}, [b.get(table, None, source), total], Value(table.shape, table.dtype), source, lax.add_p)
