"""Rules of windows at places known when compiling: slices, padding, concatenation, and updates of a slice. A split dimension stays
split, and only what crosses a border between tiles moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from wsejax import fabric
from wsejax.compiler.dims import static_update
from wsejax.compiler.ir import Op, Value, itemsize_bytes
from wsejax.compiler.walk import Context, Step, rule
from wsejax.kernels.halo import window, window_byte_hops
from wsejax.kernels.relayout import Layout, block_shape


@dataclasses.dataclass(frozen=True)
class Windows:
    """A window over several dimensions of one value, and its layout before and after."""

    value: Value
    layout: Layout
    starts: Sequence[int]
    sizes: Sequence[int]
    out: Layout
    ctx: Context

    def dims(self) -> list[int]:
        """Those that change, the ones that shrink most first."""
        changed = [d for d, n in enumerate(self.value.shape) if (self.starts[d], self.sizes[d]) != (0, n)]
        return sorted(changed, key=lambda d: self.sizes[d] / max(self.value.shape[d], 1))

    def run(self, x, fill=None):
        for d in self.dims():
            src, dst = self.layout[d], self.out[d]
            x = window(x, d, self.starts[d], self.sizes[d], src, dst, self.value.shape[d], self.ctx.tiles, fill)
        return x

    @property
    def byte_hops(self) -> int:
        shape, now, total = list(self.value.shape), list(self.layout), 0
        for d in self.dims():
            where = (d, self.starts[d], self.sizes[d], self.out[d], self.ctx.tiles)
            total += window_byte_hops(shape, itemsize_bytes(self.value.dtype), tuple(now), *where)
            shape[d], now[d] = self.sizes[d], self.out[d]
        return total


def _windows(value: Value, have: Layout, starts, sizes, chosen: Layout, ctx: Context) -> Windows:
    """`have` before; after it the chosen layout, as far as one pass of windows can give it."""
    out: list[str | None] = list(have)
    for d, n in enumerate(value.shape):
        if (starts[d], sizes[d]) != (0, n):
            free = have[d] is None and chosen[d] not in (*have, *out)
            out[d] = chosen[d] if chosen[d] is not None and (chosen[d] == have[d] or free) else None
    return Windows(value, have, starts, sizes, tuple(out), ctx)


def _step(op: Op, ctx: Context, ins: list[Layout], outs: list[Layout], run: Callable, hops: int) -> Step:
    return Step(ins, outs, run, [ctx.call("kernel", "halo", op, ins, outs, byte_hops=hops)] if hops else [])


@rule("slice")
def slice_(op: Op, ctx: Context) -> Step:
    (x,), p = op.ins, op.params
    strides = p["strides"] or (1,) * x.ndim
    have = tuple(None if s != 1 else a for a, s in zip(ctx.layouts[x], strides, strict=True))
    sizes = [
        n if s != 1 else stop - start for n, s, start, stop in zip(x.shape, strides, p["start_indices"], p["limit_indices"], strict=True)
    ]
    starts = [0 if s != 1 else start for s, start in zip(strides, p["start_indices"], strict=True)]
    cut = _windows(x, have, starts, sizes, ctx.layouts[op.outs[0]], ctx)

    def run(block):
        for d, s in enumerate(strides):
            if s != 1:
                block = lax.slice_in_dim(block, p["start_indices"][d], p["limit_indices"][d], s, d)
        return [cut.run(block)]

    return _step(op, ctx, [have], [cut.out], run, cut.byte_hops)


@rule("split")
def split(op: Op, ctx: Context) -> Step:
    (x,), dim = op.ins, op.params["axis"]
    have, cuts, start = ctx.layouts[x], [], 0
    for out in op.outs:
        cuts.append(_windows(x, have, [start if d == dim else 0 for d in range(x.ndim)], out.shape, ctx.layouts[out], ctx))
        start += out.shape[dim]
    return _step(op, ctx, [have], [c.out for c in cuts], lambda b: [c.run(b) for c in cuts], sum(c.byte_hops for c in cuts))


@rule("pad")
def pad(op: Op, ctx: Context) -> Step:
    x, config = op.ins[0], op.params["padding_config"]
    have = tuple(None if inner else a for a, (_, _, inner) in zip(ctx.layouts[x], config, strict=True))
    starts = [0 if inner else -lo for lo, _, inner in config]
    sizes = [n if inner else n + lo + hi for n, (lo, hi, inner) in zip(x.shape, config, strict=True)]
    grown = _windows(x, have, starts, sizes, ctx.layouts[op.outs[0]], ctx)
    inner = [c if c[2] else (0, 0, 0) for c in config]

    def run(block, fill):
        block = grown.run(block, fill)
        return [lax.pad(block, fill, inner) if any(c[2] for c in config) else block]

    return _step(op, ctx, [have, ()], [grown.out], run, grown.byte_hops)


@rule("concatenate")
def concatenate(op: Op, ctx: Context) -> Step:
    dim, out = op.params["dimension"], op.outs[0]
    lay = ctx.layouts[out]
    axis = lay[dim]
    if axis is None:
        return Step([lay] * len(op.ins), [lay], op.bind)
    parts, offsets, start = [], [], 0
    for x in op.ins:
        have = tuple((axis if ctx.layouts[x][dim] == axis else None) if d == dim else a for d, a in enumerate(lay))
        parts.append(Windows(x, have, [-start if d == dim else 0 for d in range(x.ndim)], out.shape, lay, ctx))
        offsets.append(start)
        start += x.shape[dim]

    def run(*blocks):
        moved = [part.run(block) for part, block in zip(parts, blocks, strict=True)]
        place = _places(moved[0].shape, dim, axis)
        result = moved[0]
        for later, offset in zip(moved[1:], offsets[1:], strict=True):
            result = jnp.where(place >= offset, later, result)
        return [result]

    return _step(op, ctx, [part.layout for part in parts], [lay], run, sum(part.byte_hops for part in parts))


def _places(shape: Sequence[int], dim: int, axis: str | None):
    """Numbers, in the whole dimension, of a block's elements."""
    here = fabric.coordinate(axis) * shape[dim] if axis else 0
    return here + lax.broadcasted_iota(jnp.int32, shape, dim)


UPDATES = {
    "scatter": lambda x, u: u, "scatter-add": jnp.add, "scatter_add": jnp.add, "scatter-sub": jnp.subtract, "scatter_sub": jnp.subtract,
    "scatter-mul": jnp.multiply, "scatter_mul": jnp.multiply, "scatter-min": jnp.minimum, "scatter_min": jnp.minimum,
    "scatter-max": jnp.maximum, "scatter_max": jnp.maximum,
}  # fmt: skip


def update_slice(op: Op, ctx: Context) -> Step:
    """A scatter to one place that is known: the update is moved to where it goes, and combined there."""
    x, indices, update = op.ins
    starts, inserted = static_update(op) or ([], [])
    lay, have = ctx.layouts[x], iter(ctx.layouts[update])
    full = [1 if d in inserted else None for d in range(x.ndim)]
    sizes = iter(update.shape)
    shape = tuple(n or next(sizes) for n in full)
    src = [None if n else next(have) for n in full]
    # a dimension of the update that lies as the table's stays; a whole one is placed locally
    src = [a if a == lay[d] else None for d, a in enumerate(src)]
    src = [lay[d] if shape[d] == x.shape[d] and not full[d] else a for d, a in enumerate(src)]
    placed = Windows(Value(shape, update.dtype), tuple(src), [-s for s in starts], x.shape, lay, ctx)
    want = tuple(a for d, a in enumerate(src) if not full[d])
    combine = UPDATES[op.name]

    def run(table, _, u):
        u = placed.run(u.reshape(block_shape(shape, tuple(src), ctx.tiles, ctx.devices)))
        inside = jnp.ones((), bool)
        for d in range(x.ndim):
            if shape[d] != x.shape[d]:
                at = _places(table.shape, d, lay[d])
                inside = inside & (at >= starts[d]) & (at < starts[d] + shape[d])
        return [jnp.where(inside, combine(table, u), table)]

    return _step(op, ctx, [lay, (None,) * indices.ndim, want], [lay], run, placed.byte_hops)
