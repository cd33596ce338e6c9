"""Vector times matrix (WaferLLM, OSDI 2025, MeshGEMV): each PE multiplies its own block, and columns are added up along a K-tree.

Law: y = x B. The matrix never moves; of the vector a PE needs the part that meets its rows. Traffic: the tree's energy up every column, and
with `everywhere` the way back.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.hardware import System
from wsejax.kernels.pe import collectives
from wsejax.kernels.pe.gemm import local_product
from wsejax.kernels.pe.trees import Tree, k_tree
from wsejax.kernels.price import Price, computing, fma_per_cycle, least, share, vector_cycles


def gemv(
    x: Shaped[Array, "R C k"], b: Shaped[Array, "R C k n"], tree: Tree | None = None, everywhere: bool = True
) -> Shaped[Array, "R C n"]:
    """A piece of y = x B in every column of PEs.

    Args:
      x: the piece of the vector that belongs to the PE's rows of B.
      tree: along "y"; a K-tree with K = 2 if None, as in the paper.
      everywhere: on all PEs of the column; else on its first.
    """
    tree = k_tree(fabric.extent(b, "y")) if tree is None else tree
    y = local_product(x[:, :, None, :], b)[:, :, 0, :]
    return (collectives.all_reduce if everywhere else collectives.reduce)(y, "y", tree)


def gemv_element_hops(grid: tuple[int, int], n: int, tree: Tree, everywhere: bool = True) -> int:
    """`n` is the width of a block."""
    rows, cols = grid
    return cols * n * (tree.energy + (rows - 1 if everywhere else 0))


def gemv_price(
    system: System,
    rows: Any,
    cols: Any,
    k: Any,
    n: Any,
    itemsize_bytes: int,
    everywhere: bool = True,
    topology: str = "two_phase",
    fma_rate: Any = None,
) -> Price:
    """A vector of `k` times a k x n matrix on rows x cols PEs: the local product, then columns added up.

    A PE multiplies with a vector instruction for each element of the shorter side of its block. `fma_rate`: multiply-adds a cycle, by
    default what vector instructions sustain.
    """
    kt, nt = share(k, rows), share(n, cols)
    rate = fma_per_cycle(system, itemsize_bytes) if fma_rate is None else fma_rate
    busy = vector_cycles(system, kt * nt, rate, instructions=least(kt, nt))
    product = computing(busy, 2.0 * k * n, 1.0 * itemsize_bytes * k * n)
    add_up = collectives.all_reduce_price if everywhere else collectives.reduce_price
    return product + add_up(system, rows, cols, nt * itemsize_bytes, topology, itemsize_bytes)
