"""Sparse times dense: non-zeros stream past the PEs as wavelets of an index and a value, and what is zero costs nothing.

Law: Y = A X for a sparse A. PE (r, c) holds the rows of X that belong to its row of PEs, and partial results of some columns of Y; the
non-zeros of A's columns for row r enter that row at its western end and go east one hop a step, and every PE they pass multiplies and adds
(the weight streaming of the CS-2, HC34). At the end partial results are added up along the columns. Traffic: two wavelets a non-zero and
hop, and the reduction.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from wsejax import fabric
from wsejax.hardware import System
from wsejax.kernels.pe import collectives
from wsejax.kernels.pe.trees import Tree, k_tree
from wsejax.kernels.price import Price, computing, fma_per_cycle, most, travel, wavelets


@functools.partial(jax.tree_util.register_dataclass, data_fields=["index", "value"], meta_fields=["rows", "width"])
@dataclasses.dataclass(frozen=True)
class Stream:
    """The non-zeros of a matrix by row of PEs, ready to enter at their western ends, with as many zeros behind as the longest has more.
    A pytree of its two arrays.

    Attributes:
      index: row x width + column within the piece; -1 behind the end.
      value: of the non-zero.
      rows: of the matrix.
      width: columns of the matrix in a row of PEs.
    """

    index: Int[Array, "R C entries"]
    value: Float[Array, "R C entries"]
    rows: int
    width: int


def stream_of(a: Shaped[np.ndarray, "M K"], grid: tuple[int, int], room: int = 1) -> Stream:
    """The non-zeros of a dense array, or of a scipy sparse one; those of PE row r are its columns r K / R and on.

    Args:
      room: entries that a row of PEs has at least, so that one compiled program serves matrices with more and fewer non-zeros.

    Raises:
      ValueError: so many rows and columns that an index does not fit into a wavelet.
    """
    coo = scipy.sparse.coo_array(a)
    (rows, cols), m, k = grid, coo.shape[0], coo.shape[1]  # pyright: ignore[reportOptionalSubscript]
    width = -(-k // rows)
    row, column, value = coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data
    keep = value != 0
    row, column, value = row[keep], column[keep], value[keep]
    if m * width >= 2**31:
        raise ValueError(f"a has {m} rows and {width} columns for each row of PEs: an index wavelet has 32 bits; use more rows of PEs")
    of = column // width
    entries = max(int(np.bincount(of, minlength=rows).max(initial=0)), room, 1)
    index, values = np.full((rows, cols, entries), -1, np.int32), np.zeros((rows, cols, entries), value.dtype)
    for r in range(rows):
        mine = np.flatnonzero(of == r)
        mine = mine[np.lexsort((row[mine], column[mine]))]
        index[r, 0, : mine.size] = row[mine] * width + column[mine] % width
        values[r, 0, : mine.size] = value[mine]
    return Stream(jnp.asarray(index), jnp.asarray(values), m, width)


def stream_of_layer(kernel: Shaped[ArrayLike, "..."], grid: tuple[int, int], contracted: int = 1, room: int = 1) -> Stream:
    """A layer's weights as `spmm` takes them, so that its results are columns: (x @ w).T = w.T @ x.T. Masked weights are the zeros that it
    has. In float32.

    Args:
      kernel: first the dimensions that the layer contracts, then those of its results.
      contracted: how many they are.

    Raises:
      ValueError: `contracted` leaves nothing on one side.
    """
    w = np.asarray(kernel, np.float32)
    if not 0 < contracted < w.ndim:
        raise ValueError(f"contracted={contracted!r}: of a kernel of shape {w.shape}, name from 1 to {w.ndim - 1} leading dimensions")
    return stream_of(w.reshape(math.prod(w.shape[:contracted]), -1).T, grid, room)


def spmm(a: Stream, x: Float[Array, "R C width n"], tree: Tree | None = None) -> Float[Array, "R C rows n"]:
    """Y = A X, its columns n in each column of PEs, whole at the first PE of each (the others hold partial results).

    Args:
      a: from `stream_of`.
      x: the rows of X that belong to this row of PEs, n columns for each column of PEs.
      tree: along "y"; a K-tree if None.

    Raises:
      ValueError: a PE has more or fewer rows of X than its row of PEs has columns of A.
    """
    index, value, rows, width = a.index, a.value, a.rows, a.width
    if x.shape[2] != width:
        raise ValueError(f"x has {x.shape[2]} rows in a PE, and the stream {width} columns: cut both for the same grid and size")
    entries, cols = index.shape[2], fabric.extent(x, "x")
    west = fabric.index(x[..., 0, 0], "x") == 0
    slot = jnp.arange(rows).reshape(1, 1, -1, 1)

    def step(t, state):
        index_here, value_here, y = state
        # a PE passes on what it had, and takes what comes; the first one reads its memory
        passing = index_here >= 0
        index_next = fabric.shift(index_here + 1, "east", sends=passing) - 1  # nothing arrives as 0
        value_next = fabric.shift(value_here, "east", sends=passing)
        t_in = jnp.minimum(t, entries - 1)
        load = west & (t < entries)
        index_here = jnp.where(load, lax.dynamic_index_in_dim(index, t_in, 2, False), jnp.where(west, -1, index_next))
        value_here = jnp.where(load, lax.dynamic_index_in_dim(value, t_in, 2, False), value_next)
        live = (index_here >= 0)[..., None]
        at = jnp.clip(index_here, 0)[..., None, None]
        term = value_here[..., None] * jnp.take_along_axis(x, at % width, axis=2)[:, :, 0]
        y = jnp.where((slot == at // width) & live[..., None], y + term[:, :, None], y)
        return index_here, value_here, y

    y = jnp.zeros((*x.shape[:2], rows, x.shape[3]), jnp.result_type(value, x))
    nothing = (jnp.full(x.shape[:2], -1, index.dtype), jnp.zeros(x.shape[:2], value.dtype))
    _, _, y = lax.fori_loop(0, entries + cols - 1, step, (*nothing, y))
    return collectives.reduce(y, "y", k_tree(fabric.extent(x, "y")) if tree is None else tree)


def spmv(a: Stream, x: Float[Array, "R C width"], tree: Tree | None = None) -> Float[Array, "R C rows"]:
    """y = A x: `spmm` with one column, for which one column of PEs is enough."""
    return spmm(a, x[..., None], tree)[..., 0]


def spmm_element_hops(grid: tuple[int, int], nonzeros: int, rows: int, n: int, tree: Tree) -> int:
    """Two wavelets a non-zero past all the PEs of its row, and the reduction of M x n partial results in every column."""
    return 2 * nonzeros * (grid[1] - 1) + tree.energy * grid[1] * rows * n


def entries_price(system: System, entries: Any, n: Any, itemsize_bytes: int = 4, lookup_cycles: Any = 21.0) -> Any:
    """Cycles of a PE for so many non-zeros: each finds its row and column, and starts a vector instruction over `n` columns.

    `lookup_cycles`: loads of index and value, and two addresses set. By default as fitted to SpMM_Cerebras, whose loops these are.
    """
    return entries * (system.launch_cycles + lookup_cycles + n / fma_per_cycle(system, itemsize_bytes))


def spmm_price(
    system: System, grid: tuple[int, int], nonzeros: Any, rows: Any, n: Any, itemsize_bytes: int = 4, topology: str = "two_phase"
) -> Price:
    """`spmm`: the non-zeros of a row of PEs, evenly divided among these rows, stream past all PEs of the row, and partial results of
    `rows` x `n` are added up along the columns. An index takes as much room as a value."""
    stream_bytes = 2.0 * itemsize_bytes * nonzeros
    links = grid[0] * (grid[1] - 1.0)
    taken = wavelets(system, stream_bytes / grid[0])
    hops_bytes = stream_bytes * (grid[1] - 1.0)
    streaming = travel(system, taken, wavelets(system, hops_bytes), links, grid[1] - 1.0, depth=1.0, byte_hops=hops_bytes)
    busy = entries_price(system, nonzeros / grid[0], n, itemsize_bytes)
    product = computing(busy, 2.0 * nonzeros * n * grid[1], 3.0 * nonzeros * n * grid[1] * itemsize_bytes)
    # what comes is multiplied as it passes: the slower of the two, and the flight to the last PE
    both = dataclasses.replace(streaming + product, cycles=most(busy, streaming.fabric_cycles) + streaming.wait_cycles)
    return both + collectives.reduce_price(system, grid[0], grid[1], rows * n * itemsize_bytes, topology, itemsize_bytes)


def spmv_price(
    system: System, grid: tuple[int, int], nonzeros: Any, rows: Any, itemsize_bytes: int = 4, topology: str = "two_phase"
) -> Price:
    """`spmv`: `spmm` with one column."""
    return spmm_price(system, grid, nonzeros, rows, 1, itemsize_bytes, topology)
