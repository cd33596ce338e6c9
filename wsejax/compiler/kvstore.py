"""The balanced cache of keys and values (`kernels.pe.kvcache`) for programs that keep it as whole arrays: in `wse.jit`, or in `jax.jit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from wsejax.compiler.extend import wafer_map
from wsejax.hardware.wafer import Wafer
from wsejax.kernels.pe import kvcache
from wsejax.kernels.pe.tiles import Grid

Lengths = Int[Array, "batch"]
Leaf = Shaped[Array, "batch slots kv_heads width"]
Positions = Int[Array, "batch slots"]


def balanced_store(wafer: Wafer) -> BalancedStore:
    """Programs of `wafer_map` that keep a cache of (batch, slots, kv_heads, width) balanced over the rows of tiles."""
    return BalancedStore(wafer)


@dataclasses.dataclass(frozen=True)
class BalancedStore:
    """What a decode step needs of a balanced cache; slots are dealt to the rows of tiles in equal runs.

    Heads lie over the columns of tiles if these divide them; else every column does the same. `lengths` are int32 (batch,), tokens of
    each sequence before the new one; where they are negative or the cache is full nothing is stored (`kernels.pe.kvcache.check_room`).
    In `wse.jit` pin a cache among the arguments to `spec`, or it may be laid out anew for every call.

    All raise ValueError for slots that the rows of tiles do not divide.
    """

    wafer: Wafer

    def __call__(self, leaf: Leaf, new: Shaped[Array, "batch kv_heads width"], lengths: Lengths) -> Leaf:
        """The keys (or the values) with those of one more token of every sequence, rows having passed their oldest on."""
        grid, spec, heads = self._cut(leaf.shape[2])

        def balanced_store(leaf, new, lengths):
            return kvcache.from_rows(kvcache.pass_up(kvcache.to_rows(leaf, grid), _on_rows(new, grid), lengths))

        return wafer_map(balanced_store, self.wafer, (spec, heads, PartitionSpec()), spec)(leaf, new, lengths)

    def positions(self, position: Positions, lengths: Lengths) -> Positions:
        """The position of each slot's token, -1 where it is empty, after the same. Nothing travels."""
        return self._positions(position, lengths, kvcache.next_position)

    def spread(self, leaf: Leaf, lengths: Lengths) -> Leaf:
        """The keys (or the values) balanced, from sequences that fill the slots from the first on, as a prefill leaves them."""
        grid, spec, _ = self._cut(leaf.shape[2])

        def balanced_spread(leaf, lengths):
            rows = kvcache.to_rows(leaf, grid)
            return kvcache.from_rows(kvcache.deal(rows, lengths, rows.shape[3]))

        return wafer_map(balanced_spread, self.wafer, (spec, PartitionSpec()), spec)(leaf, lengths)

    def spread_positions(self, position: Positions, lengths: Lengths) -> Positions:
        """The position of each slot's token after `spread`."""
        return self._positions(position, lengths, kvcache.held)

    def attend(
        self,
        q: Float[Array, "batch heads width"],
        keys: Leaf,
        values: Leaf,
        position: Positions,
        at: Lengths,
        window: int | None = None,
        scale: float | None = None,
    ) -> Float[Array, "batch heads width"]:
        """`kernels.pe.kvcache.attend` of a query a sequence: rows attend to their own tokens and combine."""
        grid, spec, heads = self._cut(keys.shape[2])

        def balanced_attend(q, keys, values, position, at):
            cache = kvcache.Cache(*(kvcache.to_rows(x, grid) for x in (keys, values, position)))
            out = kvcache.attend(_on_rows(q, grid), cache, at, window, scale)
            return jnp.moveaxis(out[0], 0, 1).reshape(q.shape[0], -1, out.shape[-1])

        ins = heads, spec, spec, PartitionSpec(None, "y"), PartitionSpec()
        return wafer_map(balanced_attend, self.wafer, ins, heads)(q, keys, values, position, at)

    def spec(self, kv_heads: int) -> PartitionSpec:
        """How keys and values of so many heads lie."""
        return self._cut(kv_heads)[1]

    def _cut(self, kv_heads: int) -> tuple[Grid, PartitionSpec, PartitionSpec]:
        """A device's rows and columns of tiles; the specs of a cache, and of one token's heads."""
        (rows, cols), (down, across) = self.wafer.tiles, self.wafer.devices
        apart = kv_heads % cols == 0
        axis = "x" if apart else None
        return (rows // down, cols // across if apart else 1), PartitionSpec(None, "y", axis), PartitionSpec(None, axis)

    def _positions(self, position: Positions, lengths: Lengths, of: Callable[[Any, Any], Any]) -> Positions:
        grid, spec = (self.wafer.tiles[0] // self.wafer.devices[0], 1), PartitionSpec(None, "y")

        def balanced_positions(position, lengths):
            return kvcache.from_rows(of(kvcache.to_rows(position, grid), lengths))

        return wafer_map(balanced_positions, self.wafer, (spec, PartitionSpec()), spec)(position, lengths)


def _on_rows(x: Shaped[Array, "batch heads width"], grid: Grid) -> Shaped[Array, "R C batch heads width"]:
    """A token of every sequence on all rows, columns its heads."""
    batch, heads, width = x.shape
    cut = x.reshape(1, batch, grid[1], heads // grid[1], width).swapaxes(1, 2)
    return jnp.broadcast_to(cut, (grid[0], *cut.shape[1:]))
