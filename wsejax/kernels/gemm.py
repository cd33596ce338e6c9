"""SUMMA matrix product in tile order (van de Geijn and Watts 1997, "SUMMA: Scalable universal matrix multiplication algorithm").

The output stays where it is and the operands' panels travel to it: A along the rows of the mesh, B along the columns. In SUMMA every
panel is a rank-k update of the output in place, in the order of the tiles that hold the contracted dimension: each output element
adds up its terms front to back, on one device. A row of such updates is one dense product over the whole contracted dimension, and
is done as that: the same sum, at the speed of the host's own product. The transposed forms (A B^T, A^T B) differ only in the way
the panels take, which `relayout` finds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax.kernels.reduce import tree_reduce
from wsejax.kernels.relayout import Layout, padded, relayout

DotDims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]

# On CPU the library behind XLA's products sums in an order that depends on the shape of the whole block, except (measured over random
# float32 shapes; tests/kernels holds it) where A has at least 64 rows, B a multiple of 64 columns, and A's contracted dimension is its last
# or at most 128 long. It is then a chain of fused multiply-adds up to 512 terms; longer ones are cut by their length alone.
ROWS, COLS, DEPTH = 64, 64, 128


def steady_dot(
    a: Shaped[Array, "..."], b: Shaped[Array, "..."], dimension_numbers: DotDims, precision=None, preferred_element_type=None
) -> Shaped[Array, "..."]:
    """`lax.dot_general` in which an output element's bits do not depend on the size of the block it is computed in.

    Small operands are padded with zero rows or columns, and a transposed A is copied.
    """
    (ac, bc), (ab, bb) = dimension_numbers
    if ab and max(_kept_size(a, ab, ac), _kept_size(b, bb, bc)) == 1:
        return _dots(a, b, dimension_numbers, preferred_element_type)
    if ab:  # although its own length changes no bits: on one mesh XLA folds a transpose into the product, on another there is none to fold
        if preferred_element_type is not None:  # XLA:CPU refuses some padded batches of BF16 x BF16 = F32; the same numbers as F32 x F32
            a, b = (x.astype(jnp.promote_types(x.dtype, preferred_element_type)) for x in (a, b))
        left = lambda dims, batch: tuple(d - (d > batch) for d in dims)
        inner = ((left(ac, ab[0]), left(bc, bb[0])), (left(ab[1:], ab[0]), left(bb[1:], bb[0])))
        one = lambda a, b: steady_dot(a, b, inner, precision, preferred_element_type)
        return jax.vmap(one, (ab[0], bb[0]))(a, b)
    free_a = [d for d in range(a.ndim) if d not in ac]
    free_b = [d for d in range(b.ndim) if d not in bc]
    shape = [a.shape[d] for d in free_a] + [b.shape[d] for d in free_b]
    rows, cols = math.prod(a.shape[d] for d in free_a), math.prod(b.shape[d] for d in free_b)
    pad_rows, pad_cols = max(0, ROWS - rows), -cols % COLS
    if pad_rows:
        a, free_a, ac = _flat(a, free_a, ac)
        a = _pad(a, free_a[0], pad_rows)
    if pad_cols:
        b, free_b, bc = _flat(b, free_b, bc)
        b = _pad(b, free_b[0], pad_cols)
    deep = [d for d in ac if a.shape[d] > 1]
    if len(deep) == 1 and a.shape[deep[0]] > DEPTH and max(ac) < min(free_a, default=0):
        # A transposed, one contracted dimension: XLA would not copy it into place. Two contracted dimensions make it do so.
        n = ac.index(deep[0])
        da, db = ac[n], bc[n]
        if a.shape[da] % 2:
            a, b = _pad(a, da, 1), _pad(b, db, 1)
        half = a.shape[da] // 2
        a = a.reshape(*a.shape[:da], 2, half, *a.shape[da + 1 :])
        b = b.reshape(*b.shape[:db], 2, half, *b.shape[db + 1 :])
        later_a, later_b = [d + (d > da) for d in ac], [d + (d > db) for d in bc]
        ac, bc = (*later_a[: n + 1], da + 1, *later_a[n + 1 :]), (*later_b[: n + 1], db + 1, *later_b[n + 1 :])
    c = lax.dot_general(a, b, ((ac, bc), ((), ())), precision=precision, preferred_element_type=preferred_element_type)
    if pad_rows or pad_cols:
        c = c.reshape(rows + pad_rows, cols + pad_cols)[:rows, :cols]
    return c.reshape(shape)


def _kept_size(x, batch, contracted) -> int:
    return math.prod(n for d, n in enumerate(x.shape) if d not in (*batch, *contracted))


def _dots(a, b, dimension_numbers: DotDims, preferred_element_type):
    """A batch of products of two vectors. XLA makes one reduction of them, whose order depends on how many there are."""
    (ac, bc), (ab, bb) = dimension_numbers
    out = preferred_element_type or jnp.result_type(a, b)
    wide = jnp.promote_types(out, jnp.float32) if jnp.issubdtype(out, jnp.floating) else out
    kept_a, kept_b = ([d for d in range(x.ndim) if d not in dims] for x, dims in ((a, (*ab, *ac)), (b, (*bb, *bc))))
    a = jnp.transpose(a, (*ab, *kept_a, *ac)).astype(wide)
    a = jnp.expand_dims(a, range(len(ab) + len(kept_a), len(ab) + len(kept_a) + len(kept_b)))
    b = jnp.expand_dims(jnp.transpose(b, (*bb, *kept_b, *bc)).astype(wide), range(len(ab), len(ab) + len(kept_a)))
    return tree_reduce(a * b, tuple(range(a.ndim - len(ac), a.ndim)), jnp.add).astype(out)


def _flat(x, free, contracted):
    """`x` with its kept dimensions merged into one, in front or behind as they were; and where they and the contracted ones are now."""
    behind = bool(contracted) and min(free, default=0) > min(contracted)
    order = [*contracted, *free] if behind else [*free, *contracted]
    kept, inner = [x.shape[d] for d in contracted], math.prod(x.shape[d] for d in free)
    x = jnp.transpose(x, order)
    n = len(contracted)
    if behind:
        return x.reshape(*kept, inner), [n], tuple(range(n))
    return x.reshape(inner, *kept), [0], tuple(range(1, n + 1))


def _pad(x, dim: int, by: int):
    return jnp.pad(x, [(0, by if d == dim else 0) for d in range(x.ndim)])


def summa(
    a: Shaped[Array, "..."],
    b: Shaped[Array, "..."],
    dimension_numbers: DotDims,
    moves: Sequence[tuple[Layout, Layout]],
    shapes: Sequence[tuple[int, ...]],
    tiles: Mapping[str, int],
    steady: bool = True,
    accumulate: tuple[Any, Any] | None = None,
    preferred_element_type=None,
    precision=None,
) -> Shaped[Array, "..."]:
    """Product of two arrays on the mesh, any `lax.dot_general` dimension numbers.

    Args:
      a, b: this device's blocks.
      dimension_numbers: as in `lax.dot_general`.
      moves: for each operand its layout, and the layout in which its panels meet the output (contracted dimensions whole).
      shapes: of the whole operands.
      tiles: number of tiles along each mesh axis.
      steady: keep the bits independent of the device mesh (`steady_dot`).
      accumulate: dtypes to which each panel's product is rounded, and the output after every panel; None for exact updates.
    """
    a, b = (relayout(x, *move, shape, tiles) for x, move, shape in zip((a, b), moves, shapes, strict=True))
    if steady:  # else XLA rewrites across the place where the operands travel, if on this mesh they need not
        a, b = lax.optimization_barrier((a, b))
    dot = steady_dot if steady else lax.dot_general
    keep = {"precision": precision, "preferred_element_type": preferred_element_type}
    if accumulate is None:
        c = dot(a, b, dimension_numbers, **keep)
    else:
        in_tile, on_line = accumulate
        dtype = preferred_element_type or jnp.result_type(a, b)
        keep["preferred_element_type"] = jnp.promote_types(dtype, in_tile)
        # XLA would leave out a rounding between two casts
        rounded = lambda x, dtype: lax.optimization_barrier(x.astype(dtype))
        product = lambda x, y: rounded(rounded(dot(x, y, dimension_numbers, **keep), in_tile), on_line)
        c = functools.reduce(jnp.add, [product(*panel) for panel in _panels(a, b, dimension_numbers, moves, tiles)]).astype(dtype)
    # nor may it fold a transpose of the result into the product: the operands would change roles, and with them the block's bits
    return lax.optimization_barrier(c) if steady else c


def _panels(a, b, dimension_numbers: DotDims, moves, tiles: Mapping[str, int]):
    """The operands cut along the first contracted dimension that one of them has split, a panel a tile."""
    for da, db in zip(*dimension_numbers[0], strict=True):
        axis = moves[0][0][da] or moves[1][0][db]
        if axis is not None and (n := a.shape[da]) >= tiles[axis]:
            size = padded(n, tiles[axis]) // tiles[axis]
            cuts = [(i, min(i + size, n)) for i in range(0, n, size)]
            return [(lax.slice_in_dim(a, *cut, axis=da), lax.slice_in_dim(b, *cut, axis=db)) for cut in cuts]
    return [(a, b)]
