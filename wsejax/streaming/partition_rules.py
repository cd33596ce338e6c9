"""Partition rules of ops that a wafer does on its share as they are: element by element, shapes, windows and rows by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from wsejax.compiler.dims import batch_dims, kept, major, reshape_groups
from wsejax.compiler.ir import Op, Value
from wsejax.compiler.rules.local import ELEMENTWISE
from wsejax.compiler.rules.window import windowed
from wsejax.streaming.partition import Builder, Share, placed


def leading(b: Builder, values: Sequence[Value], shares: Sequence[Share | None], fits: Callable[[Share], bool]) -> Share | None:
    """The share that an op should work on, of those its operands come in and that fit: that of the most bytes, so that the least is
    gathered."""
    size: dict[Share, int] = {}
    for value, share in zip(values, shares, strict=True):
        if share is not None and fits(share):
            same = next((s for s in size if b.alike(s, share)), share)
            size[same] = size.get(same, 0) + value.size_bytes
    return max(size, key=lambda s: size[s]) if size else None


def _along(share: Share, value: Value, ndim: int) -> Share | None:
    """The share of an operand: none for a scalar, or where its dimension of size 1 is stretched."""
    return share if value.ndim == ndim and value.shape[share.dim] == share.size else None


def _alike(b: Builder, op: Op, shares: Sequence[Share | None], touched: set[int]):
    """Ops of operands and results of one rank that run along every dimension but those in `touched`."""
    ndim = op.outs[0].ndim
    if any(v.ndim not in (0, ndim) for v in op.ins):  # a bitcast to another width adds or drops a dimension
        return None
    share = leading(b, op.ins, shares, lambda s: s.dim not in touched and all(v.shape[s.dim] == s.size for v in op.outs))
    if share is None:
        return None
    return b.local(op, [_along(share, v, ndim) for v in op.ins], [share] * len(op.outs))


@placed(*ELEMENTWISE, "div", "with_layout")
def elementwise(b: Builder, op: Op, shares):
    return _alike(b, op, shares, set())


@placed("optimization_barrier", "device_put", "reshard")
def each_by_itself(b: Builder, op: Op, shares):
    return b.local(op, shares, shares)


def along(names: str, dims: Callable[[Op], set[int]]) -> None:
    """Ops that touch only the dimensions `dims(op)`."""

    @placed(*names.split())
    def _(b: Builder, op: Op, shares):
        return _alike(b, op, shares, dims(op))


along("rev", lambda op: set(op.params["dimensions"]))
along("sort", lambda op: {op.params["dimension"]})
along("cumsum cumprod cummax cummin cumlogsumexp", lambda op: {op.params["axis"]})
along("concatenate", lambda op: {op.params["dimension"]})
along("tile", lambda op: {d for d, n in enumerate(op.params["reps"]) if n != 1})
along("approx_top_k", lambda op: {op.params["reduction_dimension"]})
along("top_k", lambda op: {op.params.get("axis", op.ins[0].ndim - 1) % op.ins[0].ndim})
along("pad", lambda op: {d for d, config in enumerate(op.params["padding_config"]) if tuple(config) != (0, 0, 0)})
along("split", lambda op: {op.params["axis"]})
along("reduce_window_sum reduce_window_max reduce_window_min reduce_window select_and_scatter_add select_and_gather_add select_and_scatter",
      windowed)  # fmt: skip


@placed("stack", "unstack")
def stacked(b: Builder, op: Op, shares):
    axis, more = op.params["axis"], op.name == "stack"
    share = leading(b, op.ins, shares, lambda s: more or s.dim != axis)
    if share is None:
        return None
    at = share.at(share.dim + (share.dim >= axis if more else -(share.dim > axis)))
    return b.local(op, [share] * len(op.ins), [at] * len(op.outs))


@placed("broadcast_in_dim")
def broadcast_in_dim(b: Builder, op: Op, shares):
    share, out = shares[0], op.outs[0]
    if len(op.ins) > 1:
        return None
    at = share.at(op.params["broadcast_dimensions"][share.dim])
    return b.local(op, [share], [at], shape=b.shape(out.shape, at)) if out.shape[at.dim] == share.size else None


@placed("transpose")
def transpose(b: Builder, op: Op, shares):
    (share,) = shares
    return b.local(op, shares, [share.at(list(op.params["permutation"]).index(share.dim))])


@placed("squeeze")
def squeeze(b: Builder, op: Op, shares):
    (share,), rest = shares, kept(op.ins[0].ndim, op.params["dimensions"])
    return b.local(op, shares, [share.at(rest.index(share.dim))]) if share.dim in rest else None


@placed("reshape")
def reshape(b: Builder, op: Op, shares):
    """The shared dimension may be merged with others or taken apart if it is the slowest, and rows stay together."""
    share, x, out = shares[0], op.ins[0], op.outs[0]
    if len(op.ins) > 1 or math.prod(x.shape) == 0:
        return None
    left, right = next(group for group in reshape_groups(x.shape, out.shape) if share.dim in group[0])
    at = major(out.shape, right)
    if major(x.shape, left) != share.dim or at is None:
        return None
    size = out.shape[at]
    if size % share.rows == 0:
        to = Share(at, share.rows, size // share.rows)
    elif share.rows % b.wafers == 0 == size % b.wafers:  # dealt evenly: the same elements also as fewer, larger rows
        to = Share(at, size)
    else:
        return None
    return b.local(op, shares, [to], new_sizes=b.shape(out.shape, to))


@placed("slice")
def slice_(b: Builder, op: Op, shares):
    (share,), p = shares, op.params
    d, n = share.dim, share.size
    if (p["start_indices"][d], p["limit_indices"][d]) != (0, n) or (p["strides"] or (1,) * op.ins[0].ndim)[d] != 1:
        return None
    return b.local(op, shares, shares, limit_indices=b.shape(p["limit_indices"], share))


@placed("dynamic_slice")
def dynamic_slice(b: Builder, op: Op, shares):
    share, sizes = shares[0], op.params["slice_sizes"]
    if share is None or sizes[share.dim] != share.size:
        return None
    return b.local(op, [share, *[None] * (len(op.ins) - 1)], [share], slice_sizes=b.shape(sizes, share))


@placed("dynamic_update_slice")
def dynamic_update_slice(b: Builder, op: Op, shares):
    x, update = op.ins[:2]
    share = leading(b, [x, update], shares[:2], lambda s: x.shape[s.dim] == update.shape[s.dim])
    return None if share is None else b.local(op, [share, share, *[None] * (len(op.ins) - 2)], [share])


@placed("ring_attention", "ring_attention_gradient")
def attention(b: Builder, op: Op, shares):
    share = leading(b, op.ins, shares, lambda s: s.dim == 0)
    return None if share is None else b.local(op, [share] * len(op.ins), [share] * len(op.outs))


@placed("fft", "cholesky", "triangular_solve", "lu", "qr", "eigh", "svd", "householder_product", "tridiagonal_solve", "eig", "schur",
        "hessenberg", "tridiagonal")  # fmt: skip
def matrices(b: Builder, op: Op, shares):
    share = leading(b, op.ins, shares, lambda s: s.dim < batch_dims(op))
    if share is None or any(v.ndim <= share.dim or v.shape[share.dim] != share.size for v in (*op.ins, *op.outs)):
        return None
    return b.local(op, [share] * len(op.ins), [share] * len(op.outs))


@placed("gather")
def gather(b: Builder, op: Op, shares):
    (table, idx), out, dn = op.ins[:2], op.outs[0], op.params["dimension_numbers"]
    sizes, rows = op.params["slice_sizes"], kept(out.ndim, dn.offset_dims)
    of_table, of_idx = shares[:2]
    windows = kept(table.ndim, (*dn.collapsed_slice_dims, *dn.operand_batching_dims))
    if of_idx is not None and of_idx.dim < idx.ndim - 1:
        tied = dict(zip(dn.start_indices_batching_dims, dn.operand_batching_dims, strict=True)).get(of_idx.dim)
        return b.local(op, [None if tied is None else of_idx.at(tied), of_idx], [of_idx.at(rows[of_idx.dim])])
    if of_table is not None and of_table.dim in dn.operand_batching_dims:
        tied = dict(zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True))[of_table.dim]
        return b.local(op, [of_table, of_table.at(tied)], [of_table.at(rows[tied])])
    if of_table is not None and of_table.dim in windows and sizes[of_table.dim] == of_table.size:
        at = of_table.at(dn.offset_dims[windows.index(of_table.dim)])
        return b.local(op, [of_table, None], [at], slice_sizes=b.shape(sizes, of_table))
    return None
