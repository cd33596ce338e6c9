"""Rules of windows that slide: convolutions and pooling. The window's dimensions are whole; batches and features are split."""

from __future__ import annotations

import math

from jax import lax

from wsejax.compiler.ir import Op, itemsize_bytes
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.conv import conv
from wsejax.kernels.relayout import Layout, byte_hops, relayout


@rule("conv_general_dilated")
def conv_general_dilated(op: Op, ctx: Context) -> Step:
    """As a product: what is contracted travels to the result, which is split by batch and by output features.

    With groups, a split of the output features (or, for batch groups, of them and the batch) splits the groups.
    """
    x, w, out, p = op.ins[0], op.ins[1], op.outs[0], op.params
    dims = p["dimension_numbers"]
    (xn, xc), (wo, _), (on, oc) = (spec[:2] for spec in (dims.lhs_spec, dims.rhs_spec, dims.out_spec))
    batch, feature = (ctx.layouts[out][d] for d in (on, oc))
    feature_groups, batch_groups = p["feature_group_count"], p["batch_group_count"]
    grouped = max(feature_groups, batch_groups) > 1
    if grouped and feature and max(feature_groups, batch_groups) % ctx.tiles[feature]:
        feature = None
    if batch_groups > 1:
        batch = None  # a batch is cut into groups first
    lay_x = _put(x.ndim, {xn: batch if batch_groups == 1 else feature, xc: feature if feature_groups > 1 else None})
    lay_w, lay_out = _put(w.ndim, {wo: feature}), _put(out.ndim, {on: batch, oc: feature})
    share = ctx.devices[feature] if grouped and feature else 1
    have = [ctx.layouts[v] for v in op.ins]
    moves = list(zip(have, (lay_x, lay_w), strict=True))
    order = (*dims.out_spec,)  # conv gives (batch, feature, *space)

    def run(*blocks):
        x_, w_ = (relayout(b, *move, v.shape, ctx.tiles) for b, move, v in zip(blocks, moves, op.ins, strict=True))
        if not ctx.steadies(lay_out):
            return op.bind(x_, w_, feature_group_count=max(1, feature_groups // share), batch_group_count=max(1, batch_groups // share))
        x_, w_ = lax.optimization_barrier((x_.transpose(dims.lhs_spec), w_.transpose(dims.rhs_spec)))
        y = conv(
            x_, w_, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"],
            max(1, feature_groups // share), max(1, batch_groups // share), p["precision"], p["preferred_element_type"],
        )  # fmt: skip
        return [lax.optimization_barrier(y).transpose([order.index(d) for d in range(out.ndim)])]

    hops = sum(byte_hops(v.shape, itemsize_bytes(v.dtype), *move, ctx.tiles) for v, move in zip(op.ins, moves, strict=True))
    flops = 2 * math.prod(out.shape) * math.prod(w.shape) // w.shape[wo] if w.shape[wo] else 0
    return Step(have, [lay_out], run, [ctx.call("kernel", "conv", op, have, [lay_out], byte_hops=hops, flops=flops)] if hops else [])


def _put(ndim: int, axes: dict[int, str | None]) -> Layout:
    return tuple(axes.get(d) for d in range(ndim))


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window", "select_and_scatter_add",
      "select_and_gather_add", "select_and_scatter")  # fmt: skip
def pool(op: Op, ctx: Context) -> Step:
    lay = tuple(None if d in windowed(op) else a for d, a in enumerate(ctx.layouts[op.outs[0]]))
    return Step([lay if v.ndim == len(lay) else () for v in op.ins], [lay] * len(op.outs), op.bind)


def windowed(op: Op) -> set[int]:
    """Dimensions over which a window of a pooling operation reaches or moves by more than one."""
    p, ndim = op.params, op.outs[0].ndim
    ones = (1,) * ndim
    sizes = zip(
        p["window_dimensions"], p["window_strides"], p.get("base_dilation", ones), p.get("window_dilation", ones), p["padding"], strict=True
    )
    return {d for d, (*ones, pad) in enumerate(sizes) if set(ones) != {1} or tuple(pad) != (0, 0)}
