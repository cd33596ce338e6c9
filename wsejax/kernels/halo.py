"""Windows on a split dimension: a slice, a padded array or a piece of another, whose elements travel no further than they must.

A stencil's slices, u[:-2], u[1:-1] and u[2:], need one element from each neighbour; those are all that moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.kernels.index import merge_rows
from wsejax.kernels.relayout import Layout, block_shape, gather_byte_hops, padded, share


def reach(n: int, start: int, size: int, tiles: int, parts: int) -> tuple[int, int]:
    """(elements a part needs from before its own, from behind them) for its part of the window: the most that any part needs."""
    block, out = padded(n, tiles) // parts, padded(size, tiles) // parts
    before = max(max(0, c * block - (c * out + start)) for c in range(parts))
    behind = max(max(0, (c + 1) * out + start - (c + 1) * block) for c in range(parts))
    return before, behind


def _pieces(length: int, block: int, parts: int) -> Iterator[int]:
    """Of so many elements from one side, those that come from the neighbour, the one beyond it, and so on."""
    for _ in range(parts - 1):
        if length <= 0:
            return
        yield min(length, block)
        length -= block


def window(
    x: Shaped[Array, "..."],
    dim: int,
    start: int,
    size: int,
    src: str | None,
    dst: str | None,
    n: int,
    tiles: Mapping[str, int],
    fill: Shaped[Array, ""] | None = None,
) -> Shaped[Array, "..."]:
    """The block of a window: element j of dimension `dim` is element j + start of `x`, or `fill` where `x` has none.

    Args:
      x: this device's block.
      dim: dimension, of size `n` in all.
      start, size: of the window; it may reach beyond `x` on either side.
      src, dst: mesh axis that splits the dimension of `x` and of the window, or None. Both, if given, are the same.
      tiles: number of tiles along each mesh axis.
      fill: scalar of the dtype of `x`; None leaves what lies beyond unspecified.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # keys cannot be padded: their words can
        words = window(jax.random.key_data(x), dim, start, size, src, dst, n, tiles)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    inside = start >= 0 and start + size <= n
    if src is not None and dst is None and _gathers(n, size, tiles[src]):
        x, src = lax.slice_in_dim(fabric.gather(x, src, dim), 0, n, axis=dim), None
    if src is None:
        zero = jnp.zeros((), x.dtype) if fill is None else fill
        config = [(-start, start + size - n, 0) if d == dim else (0, 0, 0) for d in range(x.ndim)]
        whole = x if start == 0 and size == n else lax.pad(x, zero, config)
        return whole if dst is None else share(whole, dst, dim, tiles)
    here, block = fabric.coordinate(src), x.shape[dim]
    if dst is None:
        at = jnp.arange(size) + start
        local = at - here * block
        mine = (local >= 0) & (local < block) & (at < n)
        rows = jnp.take(x, jnp.clip(local, 0, block - 1), axis=dim)
        along = [-1 if d == dim else 1 for d in range(x.ndim)]
        result = merge_rows(rows, mine.reshape(along), src, None)
    else:
        parts = fabric.size(src)
        before, behind = reach(n, start, size, tiles[src], parts)
        out = padded(size, tiles[src]) // parts
        blocks = [x]
        for length, step in ((before, 1), (behind, -1)):
            piece = x
            for count in _pieces(length, block, parts):
                first = piece.shape[dim] - count if step == 1 else 0
                piece = fabric.hop(lax.slice_in_dim(piece, first, first + count, axis=dim), src, step)
                blocks = [piece, *blocks] if step == 1 else [*blocks, piece]
                length -= count
            if length > 0:  # beyond the border: nothing to fetch
                nothing = jnp.zeros([length if d == dim else m for d, m in enumerate(x.shape)], x.dtype)
                blocks = [nothing, *blocks] if step == 1 else [*blocks, nothing]
        near = lax.concatenate(blocks, dim) if len(blocks) > 1 else x
        result = lax.dynamic_slice_in_dim(near, before + start + here * (out - block), out, dim)
        at = here * out + jnp.arange(out) + start
    if fill is None or inside:
        return result
    real = ((at >= 0) & (at < n)).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    return jnp.where(real, result, fill)


def _gathers(n: int, size: int, tiles: int) -> bool:
    """Whether a window that ends whole is better cut from the whole dimension than picked element by element."""
    return size >= padded(n, tiles) // tiles


def window_byte_hops(
    shape: Sequence[int], itemsize_bytes: int, layout: Layout, dim: int, start: int, size: int, dst: str | None, tiles: Mapping[str, int]
) -> int:
    """Bytes times hops that `window` moves when every tile is a device."""
    axis = layout[dim]
    if axis is None:
        return 0
    n, line = shape[dim], tiles[axis]
    lines = math.prod(tiles.values()) // line
    block = block_shape(shape, layout, tiles, tiles)
    row_bytes = math.prod(m for d, m in enumerate(block) if d != dim) * itemsize_bytes
    if dst is None:
        return gather_byte_hops(row_bytes * (block[dim] if _gathers(n, size, line) else size), line, lines)
    moved = sum(sum(_pieces(length, block[dim], line)) for length in reach(n, start, size, line, line))
    return moved * row_bytes * (line - 1) * lines
