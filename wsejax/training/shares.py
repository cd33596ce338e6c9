"""Which rows of a batch the devices of this process need, and global arrays made of them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int64, PyTree

from .distributed import process_count


def rows_here(sharding: Sharding, shape: tuple[int, ...]) -> Int64[np.ndarray, " rows"]:
    """The rows (places along the first axis) of an array of `shape` that devices of this process hold, in order, each once."""
    held = np.zeros(shape[0], bool)
    for index in sharding.addressable_devices_indices_map(shape).values():
        held[index[0] if index else slice(None)] = True
    return np.flatnonzero(held)


@dataclass(frozen=True)
class Share:
    """This process's part of batches of so many rows, laid out as `shardings` (a pytree like a batch) say.

    rows: those that its devices need; where the layout does not split rows, all of them.
    """

    rows: Int64[np.ndarray, " rows"]
    shardings: PyTree
    batch_size: int

    @classmethod
    def of(cls, shardings: PyTree, shapes: PyTree) -> Share:
        """The share of this process in batches of these `shapes` (a pytree of anything with a shape), which all have the same rows."""
        leaves = jax.tree.leaves(shapes)
        needed = [rows_here(sharding, x.shape) for sharding, x in zip(jax.tree.leaves(shardings), leaves, strict=True)]
        return cls(np.unique(np.concatenate(needed)), shardings, leaves[0].shape[0])

    def spread(self, batch: PyTree) -> PyTree:
        """Global arrays from the rows of this process alone, in the order of `rows`. Nothing is sent."""
        return jax.tree.map(self._global_array, batch, self.shardings)

    def _global_array(self, local: np.ndarray, sharding: Sharding) -> jax.Array:
        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            rows, *others = index or (slice(None),)
            start, stop, _ = rows.indices(self.batch_size)
            low, high = np.searchsorted(self.rows, (start, stop))
            return local[(slice(low, high), *others)]

        return jax.make_array_from_callback((self.batch_size, *local.shape[1:]), sharding, block)


def lay_out(tree: PyTree, shardings: PyTree) -> PyTree:
    """Whole arrays, equal in every process, laid out over the devices of all (one sharding, or a pytree of them). Where there is one
    process, what `jax.device_put` does; else each process puts its own devices' blocks, and nothing is sent."""
    if process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: PyTree, sharding: Sharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index or ...])

    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: put(x, shardings), tree)
    return jax.tree.map(put, tree, shardings)
