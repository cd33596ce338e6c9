"""Reductions and broadcasts over lines and over the whole grid.

Law: a reduction combines the entries of a line in its order, bracketed by the tree. Traffic: a reduction along a tree takes its `energy` in
hops of an entry; a broadcast crosses every link once, for routers copy what passes (multicast).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped

from wsejax import fabric
from wsejax.fabric.line import ALONG
from wsejax.hardware import System
from wsejax.kernels.pe import trees
from wsejax.kernels.pe.trees import Tree, chain
from wsejax.kernels.price import Price, computing, copies_per_cycle, most, travel, wavelets

Op = Callable[[Array, Array], Array]


def reduce(
    x: Shaped[Array, "R C ..."], axis: str, tree: Tree | None = None, op: Op = jnp.add, lines: Bool[Array, "R|1 C|1 ..."] | None = None
) -> Shaped[Array, "R C ..."]:
    """The entries of every line along `axis`, combined at its first PE; what the others are left with is partial.

    Args:
      tree: its shape (`trees`), a chain if None.
      op: (sum so far, what arrives) -> sum; any associative one.
      lines: which lines do this, the same for all PEs of a line; the others keep their entries. None: all.

    Raises:
      ValueError: a tree of another size than the line.
    """
    n = fabric.extent(x, axis)
    tree = chain(n) if tree is None else tree
    if len(tree.parent) != n:
        raise ValueError(f"tree has {len(tree.parent)} PEs, and a line along {axis!r} has {n}; make it with n={n}")
    here = jnp.clip(fabric.line_index(x, axis), 0, n - 1)

    def step(state, now):
        total, moving = state
        starts, sends, adds = (now[i][here] if lines is None else now[i][here] & lines for i in range(3))
        moving = fabric.shift(jnp.where(starts, total, moving), ALONG[axis][1], sends=sends)
        return (jnp.where(adds, op(total, moving), total), moving), None

    (total, _), _ = lax.scan(step, (x, x), jnp.asarray(tree.steps), unroll=fabric.unrolling(len(tree.steps), x))
    return total


def broadcast(x: Shaped[Array, "R C ..."], axis: str, root: int = 0) -> Shaped[Array, "R C ..."]:
    """The entry of the PE at `root` of every line, on all of it."""
    return fabric.spread_along(x, axis, root)


def all_reduce(x: Shaped[Array, "R C ..."], axis: str, tree: Tree | None = None, op: Op = jnp.add) -> Shaped[Array, "R C ..."]:
    """`reduce`, then `broadcast`."""
    return broadcast(reduce(x, axis, tree, op), axis)


def reduce_2d(
    x: Shaped[Array, "R C ..."], trees: tuple[Tree | None, Tree | None] = (None, None), op: Op = jnp.add
) -> Shaped[Array, "R C ..."]:
    """All entries combined at PE (0, 0): along the rows, then down the first column. `trees` are those of a column and of a row."""
    return reduce(reduce(x, "x", trees[1], op), "y", trees[0], op, lines=fabric.line_index(x, "x") == 0)


def broadcast_2d(x: Shaped[Array, "R C ..."]) -> Shaped[Array, "R C ..."]:
    """The entry of PE (0, 0), everywhere: down the first column, then along the rows."""
    return broadcast(fabric.spread_along(x, "y", 0, sends=fabric.line_index(x, "x") == 0), "x")


def all_reduce_2d(
    x: Shaped[Array, "R C ..."], trees: tuple[Tree | None, Tree | None] = (None, None), op: Op = jnp.add
) -> Shaped[Array, "R C ..."]:
    """All entries combined, on every PE."""
    return broadcast_2d(reduce_2d(x, trees, op))


def ring_all_reduce(x: Shaped[Array, "R C b"], axis: str) -> Shaped[Array, "R C b"]:
    """Sums of every line, on all of it, by the folded ring: n - 1 steps that add up a share of the vector, n - 1 that hand the shares on.

    Shares are of ceil(b / n) elements. Share s is added up in the order of the ring, from the PE behind the one that keeps it.
    """
    n, b = fabric.extent(x, axis), x.shape[2]
    share = -(-b // n)
    parts = jnp.pad(x, [(0, 0), (0, 0), (0, n * share - b)]).reshape(*x.shape[:2], n, share)
    place = jnp.asarray(fabric.ring_places(n))[jnp.clip(fabric.line_index(x, axis), 0, n - 1)][..., None]  # (R|1, C|1, 1, 1)
    slot = jnp.arange(n).reshape(1, 1, n, 1)

    def add(k, parts):
        arrived = fabric.ring_shift(_pick(parts, (place - k) % n), axis)
        mine = (place - k - 1) % n
        return jnp.where(slot == mine, arrived[:, :, None] + parts, parts)

    def hand_on(k, parts):
        arrived = fabric.ring_shift(_pick(parts, (place + 1 - k) % n), axis)
        return jnp.where(slot == (place - k) % n, arrived[:, :, None], parts)

    parts = fabric.repeat(n - 1, hand_on, fabric.repeat(n - 1, add, parts))
    return parts.reshape(*x.shape[:2], n * share)[:, :, :b]


def _pick(parts: Shaped[Array, "R C n share"], k: Array) -> Shaped[Array, "R C share"]:
    """Of each PE the share number `k`."""
    k = jnp.broadcast_to(k, (*parts.shape[:2], 1, parts.shape[3]))
    return jnp.take_along_axis(parts, k, axis=2)[:, :, 0]


def broadcast_hops(n: int, lines: int) -> int:
    """Hops of an entry in `broadcast`."""
    return (n - 1) * lines


def all_reduce_2d_hops(grid: tuple[int, int]) -> int:
    """Hops of an entry in `all_reduce_2d` by chains: every link of the rows and of the first column, there and back."""
    rows, cols = grid
    return 2 * (broadcast_hops(cols, rows) + broadcast_hops(rows, 1))


def ring_hops(n: int) -> int:
    """Hops of all entries of a line in one step of the folded ring."""
    return 2 * (n - 1) if n > 1 else 0


def ring_all_reduce_hops(n: int, lines: int) -> int:
    """Hops of a share of ceil(b / n) elements in `ring_all_reduce`."""
    return 2 * (n - 1) * ring_hops(n) * lines


# ---- prices ----------------------------------------------------------------------------------------------------------
# `n` is the length of a line, `lines` how many do it side by side, `size_bytes` what one PE holds.
def broadcast_price(system: System, n: Any, lines: Any, size_bytes: Any) -> Price:
    """One message to all of a line, copied by the routers: B + P - 1 + (2 ramp + 1) cycles on WSE-2 (HPDC 2024)."""
    b = wavelets(system, size_bytes)
    hops = (n - 1.0) * lines
    return travel(system, b, b * hops, hops, n - 1.0, depth=1.0, byte_hops=size_bytes * hops)


def reduce_price(system: System, n: Any, lines: Any, size_bytes: Any, topology: str = "chain", itemsize_bytes: int = 4) -> Price:
    """`reduce` along a tree: "chain", "star", "tree" or "two_phase". Adding up keeps pace with what arrives."""
    b = wavelets(system, size_bytes)
    energy, contention, depth = trees.numbers(topology, n)
    moving = travel(
        system, b * contention, b * energy * lines, (n - 1.0) * lines, n - 1.0, depth=depth, byte_hops=size_bytes * energy * lines
    )
    elements = size_bytes / itemsize_bytes
    busy = elements * contention / copies_per_cycle(system, itemsize_bytes)
    adding = computing(busy, elements * (n - 1.0) * lines, 3.0 * size_bytes * (n - 1.0) * lines)
    both = moving + adding
    return dataclasses.replace(both, cycles=most(moving.cycles, busy + moving.wait_cycles))


def all_reduce_price(system: System, n: Any, lines: Any, size_bytes: Any, topology: str = "chain", itemsize_bytes: int = 4) -> Price:
    """`all_reduce`: a reduction, then a broadcast."""
    return reduce_price(system, n, lines, size_bytes, topology, itemsize_bytes) + broadcast_price(system, n, lines, size_bytes)


def all_reduce_2d_price(system: System, rows: Any, cols: Any, size_bytes: Any, topology: str = "chain", itemsize_bytes: int = 4) -> Price:
    """`all_reduce_2d`: along all rows, down the first column, and back the same way."""
    down = all_reduce_price(system, rows, 1.0, size_bytes, topology, itemsize_bytes)
    return all_reduce_price(system, cols, rows, size_bytes, topology, itemsize_bytes) + down


def ring_price(system: System, n: Any, lines: Any, size_bytes: Any, turns: Any) -> Price:
    """`turns` steps round the folded ring with a message of `size_bytes` from every PE: two hops and a receive each."""
    b = wavelets(system, size_bytes)
    hops = 2.0 * (n - 1.0) * lines  # of all messages in a turn, over as many directed links
    return travel(system, b, b * hops, hops, 2.0, depth=1.0, byte_hops=size_bytes * hops) * turns


def ring_all_reduce_price(system: System, n: Any, lines: Any, size_bytes: Any, itemsize_bytes: int = 4) -> Price:
    """`ring_all_reduce`: 2 (n - 1) turns with a share each, of which n - 1 add."""
    part_bytes = -(-(size_bytes // itemsize_bytes) // n) * itemsize_bytes if isinstance(n, int) else size_bytes / n
    elements = part_bytes / itemsize_bytes * (n - 1.0)
    adding = computing(elements / copies_per_cycle(system, itemsize_bytes), elements * n * lines, 3.0 * part_bytes * (n - 1.0) * n * lines)
    return ring_price(system, n, lines, part_bytes, 2.0 * (n - 1.0)) + adding


def all_gather_price(system: System, n: Any, lines: Any, size_bytes: Any) -> Price:
    """Every PE's message to all of its line, n - 1 turns of the folded ring (what `relayout` does)."""
    return ring_price(system, n, lines, size_bytes, n - 1.0)
