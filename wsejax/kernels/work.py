"""What an operation of a program asks of the PE grid, as data with a price: products, element-wise work, reductions, gathers, windows.

A program's layouts say which dimensions lie along y and x. On the full grid a dimension that is shorter than its axis does not fill it,
so the rest of the axis takes what else there is to split: a batch of products gets a rectangle of PEs for each, elements are dealt
evenly. Products take the cheapest of the algorithms of `kernels.pe`, on the whole grid or a part of it; every price is a pure function
of the `System`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.hardware import System
from wsejax.kernels.pe.collectives import all_gather_price, all_reduce_price
from wsejax.kernels.pe.gemm import mesh_gemm_price, summa_price
from wsejax.kernels.pe.sparse import spmm_price
from wsejax.kernels.price import Price, computing, copies_per_cycle, least, most, share, travel, vector_cycles, wavelets

# Rectangles of PEs (rows, columns) that a product may take of its grid: a small one is done sooner where wavelets need not go far.
PARTS = ((8, 8), (32, 32), (128, 128), (32, None), (None, None))
# Of the two operands of a multiply-add one comes from the fabric; the other is read, and the sum written: ALCF's 5.3 fp16 multiply-adds a
# cycle of the matrix kernels would not fit through 24 bytes a cycle otherwise.
ACCESSES = 2.0


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """Work on `elements` one by one; `special` of them through a function that PEs compute in software (exp, log, tanh, a quotient)."""

    elements: int
    itemsize_bytes: int
    operands: int = 2
    special: int = 0
    flops: int = 0

    def price(self, system: System) -> Price:
        mine, accesses = share(self.elements, system.pes), self.operands + 1
        ports = system.sram_bytes_per_cycle / (accesses * self.itemsize_bytes)
        busy = vector_cycles(system, mine, least(copies_per_cycle(system, self.itemsize_bytes), ports))
        busy = busy + share(self.special, system.pes) * system.special_cycles
        return computing(busy, 1.0 * self.flops, 1.0 * self.elements * self.itemsize_bytes * accesses)


@dataclasses.dataclass(frozen=True)
class Product:
    """`batch` products of m x k and k x n, each in a rectangle of PEs of its own as long as there are some.

    `terms` are those that count as operations in all of them, where a convolution's window meets padding or holes; 0 for all.
    """

    m: int
    k: int
    n: int
    itemsize_bytes: int
    batch: int = 1
    terms: int = 0

    @property
    def flops(self) -> int:
        return 2 * (self.terms or self.batch * self.m * self.k * self.n)

    def price(self, system: System) -> Price:
        size = self.itemsize_bytes
        rate = system.gemm_fp16_fma_per_cycle if size <= 2 else system.gemm_fp32_fma_per_cycle * least(1.0, 4.0 / size)
        rate = least(rate, system.sram_bytes_per_cycle / (ACCESSES * size))
        side_y, side_x = least(self.batch**0.5, system.rows), least(self.batch**0.5, system.cols)
        own = system.rows / side_y, system.cols / side_x  # the rectangle of one product
        m, k, n = 1.0 * self.m, 1.0 * self.k, 1.0 * self.n
        ways = []
        for part in PARTS:
            rows, cols = (mine if side is None else least(mine, 1.0 * side) for mine, side in zip(own, part, strict=True))
            # any of the three matrices may stay where it is: the other two travel. Where all are small it matters little
            stays = ((m, k, n), (m, n, k), (k, m, n)) if part == PARTS[-1] else ((m, k, n),)
            ways += [mesh_gemm_price(system, rows, cols, *dims, size, rate) for dims in stays]
            ways += [_reduced(system, rows, cols, m, k, n, size, rate), _reduced(system, cols, rows, n, k, m, size, rate)]
        ways.append(summa_price(system, *own, m, k, n, size, rate))
        one, times = cheapest(ways), most(self.batch / (side_y * side_x), 1.0)
        elapsed = {f: getattr(one, f) * times for f in ("cycles", "compute_cycles", "fabric_cycles", "wait_cycles")}
        every = 1.0 * self.batch
        flops = 2.0 * jnp.where(self.terms, self.terms, every * m * k * n) if isinstance(m, jax.Array) else 1.0 * self.flops
        return Price(**elapsed, byte_hops=one.byte_hops * every, sram_bytes=ACCESSES * size * every * m * k * n, flops=flops)


def _reduced(system: System, rows: Any, cols: Any, m: Any, k: Any, n: Any, itemsize_bytes: int, fma_rate: Any) -> Price:
    """The larger matrix stays, cut along what is contracted, too, and partial sums are added up: a `gemv` of m vectors at once."""
    kt, nt = share(k, rows), share(n, cols)
    busy = vector_cycles(system, m * kt * nt, fma_rate, instructions=least(m, kt, nt))
    product = computing(busy, 2.0 * m * k * n)
    return product + all_reduce_price(system, rows, cols, m * nt * itemsize_bytes, "two_phase", itemsize_bytes)


def cheapest(prices: list[Price]) -> Price:
    """The price with the fewest cycles."""
    if all(isinstance(p.cycles, int | float) for p in prices):
        return min(prices, key=lambda p: p.cycles)
    best = prices[0]
    for other in prices[1:]:
        better = other.cycles < best.cycles
        best = jax.tree.map(lambda b, o, better=better: jnp.where(better, o, b), best, other)
    return best


def _line(system: System, axis: str) -> tuple[Any, Any]:
    """(PEs of a line along `axis`, lines)."""
    return (system.rows, system.cols) if axis == "y" else (system.cols, system.rows)


BANDS = (1, 4, 16, 64)  # groups of rows of PEs, each with tokens of its own, into which a sparse product may cut the grid


@dataclasses.dataclass(frozen=True)
class SparseProduct:
    """A product of which operand number `streamed` comes in as the wavelets of its non-zeros; done dense where that takes no longer.

    `sparsity` is the share of zeros, at least 0 and less than 1; non-zeros lie evenly.
    """

    product: Product
    sparsity: Any
    streamed: int

    def price(self, system: System) -> Price:
        """The cheaper of the two. Sparse it is the price of `pe.sparse.spmm`, whose non-zeros each need a look-up and a vector instruction
        over the columns of a PE; but no less than its share of the dense price, which overlaps more."""
        dense = self.product.price(system)
        return cheapest([dense, self.sparse_price(system, dense)])

    def sparse_price(self, system: System, dense: Price) -> Price:
        p, share_left = self.product, 1.0 - self.sparsity
        side_y, side_x = least(p.batch**0.5, system.rows), least(p.batch**0.5, system.cols)
        rows, cols = system.rows / side_y, system.cols / side_x
        results, columns = (p.m, p.n) if self.streamed == 0 else (p.n, p.m)
        nonzeros = share_left * results * p.k
        ways = []
        for bands in BANDS:
            deep, wide = most(rows / bands, 1.0), cols * least(1.0 * bands, rows)
            ways.append(spmm_price(system, (deep, wide), nonzeros, 1.0 * results, share(columns, wide), p.itemsize_bytes))
        one, times, every = cheapest(ways), most(p.batch / (side_y * side_x), 1.0), 1.0 * p.batch
        return Price(
            cycles=most(one.cycles * times, share_left * dense.cycles),
            **{f: getattr(one, f) * times for f in ("compute_cycles", "fabric_cycles", "wait_cycles")},
            flops=share_left * dense.flops,
            byte_hops=one.byte_hops * every,
            sram_bytes=one.sram_bytes * every,
        )


@dataclasses.dataclass(frozen=True)
class Reduction:
    """`elements` results, dealt over the lines along `axis`, each combined from the PEs of its line in the order of a topology and handed
    to all of them. A dimension of `extent` is cut along the line."""

    axis: str
    extent: int
    elements: int
    itemsize_bytes: int
    topology: str = "chain"

    def price(self, system: System) -> Price:
        line, lines = _line(system, self.axis)
        holders, mine_bytes = least(1.0 * self.extent, line), share(self.elements, lines) * self.itemsize_bytes
        found = all_reduce_price(system, holders, lines, mine_bytes, self.topology, self.itemsize_bytes)
        return dataclasses.replace(found, flops=0.0)  # what it adds up is counted with the elements, wherever they are


@dataclasses.dataclass(frozen=True)
class Gather:
    """A dimension of `extent`, split along `axis`, made whole on all PEs of the line; `size_bytes` are those of the whole array, dealt over
    the lines."""

    axis: str
    extent: int
    size_bytes: int

    def price(self, system: System) -> Price:
        line, lines = _line(system, self.axis)
        holders = least(1.0 * self.extent, line)
        message_bytes = self.size_bytes / holders / lines
        return all_gather_price(system, holders, lines, message_bytes)


@dataclasses.dataclass(frozen=True)
class Window:
    """A window at another place of a dimension of `extent` split along `axis`: every PE needs `reach` elements from its neighbours, of
    `row_bytes` each over all PEs of the other axis."""

    axis: str
    extent: int
    reach: int
    row_bytes: int

    def price(self, system: System) -> Price:
        line, lines = _line(system, self.axis)
        line = least(1.0 * self.extent, line)
        block = share(self.extent, line)
        message_bytes = self.reach * self.row_bytes / lines
        b, hops = wavelets(system, message_bytes), share(self.reach, block)
        links = (line - 1.0) * lines
        carried = least(1.0 * self.reach, block) / self.reach  # of each message, on every hop but what is dropped on the way
        energy = b * hops * most(carried, 1.0 / hops) * links
        return travel(system, b, energy, links, hops, depth=hops, byte_hops=energy * system.link_bits / 8.0)


@dataclasses.dataclass(frozen=True)
class Shift:
    """One `fabric.shift` of a program for PEs: every tile hands `message_bytes` to its neighbour along `axis`, on a grid of `line` tiles
    along it by `lines`. With a PE a tile that is one hop and a receive; else it crosses the tile, on all its rows or columns."""

    axis: str
    line: int
    lines: int
    message_bytes: int

    def price(self, system: System) -> Price:
        pes_line, pes_lines = _line(system, self.axis)
        hops, side = most(pes_line / self.line, 1.0), most(pes_lines / self.lines, 1.0)  # of a tile
        b, links = wavelets(system, self.message_bytes / side), (self.line - 1.0) * hops * self.lines * side
        moved = self.message_bytes * (self.line - 1.0) * self.lines * hops
        return travel(system, b, b * links, links, hops, depth=1.0, byte_hops=moved)


@dataclasses.dataclass(frozen=True)
class Alone:
    """Work that one PE does, since nobody knows how to share it."""

    work: Work

    def price(self, system: System) -> Price:
        return self.work.price(system.replace(rows=1.0, cols=1.0))


Work = Elementwise | Product | SparseProduct | Reduction | Gather | Window | Shift | Alone

# Work whose sizes are arrays is many pieces of work at once. What chooses a formula is static.
_STATIC = {"itemsize_bytes", "axis", "topology", "operands", "streamed"}
for _kind in (Elementwise, Product, SparseProduct, Reduction, Gather, Window, Shift, Alone):
    _names = [f.name for f in dataclasses.fields(_kind)]
    jax.tree_util.register_dataclass(_kind, [n for n in _names if n not in _STATIC], [n for n in _names if n in _STATIC])
