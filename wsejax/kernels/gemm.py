"""SUMMA matrix product in tile order (van de Geijn and Watts 1997, "SUMMA: Scalable universal matrix multiplication algorithm").

The output stays where it is and the operands' panels travel to it: A along the rows of the mesh, B along the columns. Every output
element is summed on one device, panel after panel in the order of the tiles that hold the contracted dimension, so its bits depend on
the tile grid alone. A panel's step over a device's whole block is one dense rank-k update. The transposed forms (A B^T, A^T B) differ
only in the way the panels take, which `relayout` finds.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax.kernels.relayout import Layout, relayout

DotDims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]

# On CPU XLA hands a product to Eigen, whose order of summation depends on the shape of the whole block, except (measured over
# random float32 shapes; tests/kernels/test_gemm.py holds it) where A has at least 64 rows, B a multiple of 64 columns, and, if A
# comes with its contracted dimension first, that dimension is at most 128 long.
ROWS, COLS, DEPTH = 64, 64, 128


def panel_dot(
    a: Shaped[Array, "..."],
    b: Shaped[Array, "..."],
    dimension_numbers: DotDims,
    panels: int = 1,
    pair: int = 0,
    steady: bool = False,
    preferred_element_type=None,
    precision=None,
) -> Shaped[Array, "..."]:
    """`lax.dot_general` of two dense blocks, summed over `panels` equal parts of contracted pair `pair`, first to last.

    With `steady`, an output element's bits do not depend on the size of the block it is computed in: small operands are padded with
    zero rows or columns, and deep transposed ones are cut.
    """
    (ac, bc), (ab, bb) = dimension_numbers
    free_a = [d for d in range(a.ndim) if d not in ac and d not in ab]
    free_b = [d for d in range(b.ndim) if d not in bc and d not in bb]
    shape = [a.shape[d] for d in (*ab, *free_a)] + [b.shape[d] for d in free_b]
    rows, cols = math.prod(a.shape[d] for d in free_a), math.prod(b.shape[d] for d in free_b)
    steady = steady and not ab
    pad_rows, pad_cols = (max(0, ROWS - rows), -cols % COLS) if steady else (0, 0)
    if pad_rows:
        a, free_a, ac = _flat(a, free_a, ac)
        a = _pad(a, free_a[0], pad_rows)
    if pad_cols:
        b, free_b, bc = _flat(b, free_b, bc)
        b = _pad(b, free_b[0], pad_cols)
    if steady and ac and max(ac) < min(free_a, default=0):  # A transposed: its contracted dimensions come first
        deep = math.prod(a.shape[d] for d in ac) // panels
        length = a.shape[ac[pair]] // panels
        panels *= next(cuts for cuts in range(1, length + 1) if length % cuts == 0 and (deep // cuts <= DEPTH or cuts == length))

    def update(i: int):
        def part(x, dim):
            k = x.shape[dim] // panels
            return lax.slice_in_dim(x, i * k, (i + 1) * k, axis=dim) if panels > 1 else x

        xa, xb = (part(a, ac[pair]), part(b, bc[pair])) if ac else (a, b)
        return lax.dot_general(xa, xb, ((ac, bc), (ab, bb)), precision=precision, preferred_element_type=preferred_element_type)

    c = update(0)
    for i in range(1, panels):
        c = c + update(i)
    if pad_rows or pad_cols:
        c = c.reshape(rows + pad_rows, cols + pad_cols)[:rows, :cols].reshape(shape)
    return c


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
    moves: tuple[tuple[Layout, Layout], tuple[Layout, Layout]],
    panels: int,
    pair: int = 0,
    steady: bool = True,
    preferred_element_type=None,
    precision=None,
) -> Shaped[Array, "..."]:
    """Product of two arrays on the mesh, any `lax.dot_general` dimension numbers.

    Args:
      a, b: this device's blocks.
      dimension_numbers: as in `lax.dot_general`.
      moves: for each operand its layout, and the layout in which its panels meet the output (contracted dimensions whole).
      panels: parts of the contracted dimension: the tiles that hold it.
      pair: which contracted pair the panels split.
      steady: keep the bits independent of the device mesh (`panel_dot`).
    """
    a, b = relayout(a, *moves[0]), relayout(b, *moves[1])
    if steady:  # else XLA rewrites across the place where the operands travel, if on this mesh they need not
        a, b = lax.optimization_barrier((a, b))
    return panel_dot(a, b, dimension_numbers, panels, pair, steady, preferred_element_type, precision)
