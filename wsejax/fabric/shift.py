"""The one way data moves: a hop to the neighbour.

Everything here runs inside `on_mesh`, where an array is this device's block. Two views of a block are used:

* a *grid* block has the tile grid as its two leading axes, (rows, cols, ...), one entry a tile: `shift` moves it by one tile;
* a *dense* block is any array this device holds: `hop` moves it whole to the next device, as many tiles further as a device has.

The mesh has borders: what leaves it is lost, and zeros come in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, Shaped

AXES: tuple[str, str] = ("y", "x")  # mesh axes: rows grow to the south, columns to the east
DIRECTIONS = {"north": ("y", -1), "south": ("y", 1), "west": ("x", -1), "east": ("x", 1)}


def size(axis: str) -> int:
    """Number of devices along a mesh axis."""
    return lax.axis_size(axis)


def coordinate(axis: str) -> Int[Array, ""]:
    """This device's position along a mesh axis, 0 at the north or west border."""
    return lax.axis_index(axis)


def on_mesh(fun: Callable, mesh: Mesh, in_specs: Any = PartitionSpec(*AXES), out_specs: Any = PartitionSpec(*AXES)) -> Callable:
    """`fun` on every device's block of its arguments; by default grid blocks, leading axes (rows, cols) over ("y", "x").

    Replication over a mesh axis is the caller's law to keep (the compiler's layouts do): a value that only `ppermute` made
    equal everywhere cannot be proven so by `jax.shard_map`, hence `check_vma=False`.
    """
    return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def permute(x: Shaped[Array, "..."], axis: str, pairs: list[tuple[int, int]]) -> Shaped[Array, "..."]:
    """Send `x` along static (source, destination) pairs of a mesh axis; a device that nobody sends to gets zeros."""
    if not pairs:
        return jnp.zeros_like(x)
    return lax.ppermute(x, axis, pairs)


def hop(x: Shaped[Array, "..."], axis: str, step: int) -> Shaped[Array, "..."]:
    """The dense block of the neighbour `step` (+1 or -1) before this device on `axis`; zeros at the border."""
    if step not in (1, -1):
        raise ValueError(f"step={step}: a hop goes to the next device, +1 or -1; use several hops to go further")
    n = size(axis)
    return permute(x, axis, [(i, i + step) for i in range(n) if 0 <= i + step < n])


def shift(x: Shaped[Array, "rows cols ..."], direction: str) -> Shaped[Array, "rows cols ..."]:
    """Every tile sends its entry to the neighbour in `direction` ("north", "south", "east", "west").

    Args:
      x: grid block, any dtype.
      direction: where the data goes. Tiles at the border that nobody sends to receive zeros.

    Raises:
      ValueError: an unknown direction, or an array without the two leading grid axes.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r}: must be one of {', '.join(DIRECTIONS)}")
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}: a grid block has leading axes (rows, cols), one entry a tile")
    axis, step = DIRECTIONS[direction]
    dim = AXES.index(axis)
    n = x.shape[dim]
    leaving = lax.slice_in_dim(x, n - 1, n, axis=dim) if step == 1 else lax.slice_in_dim(x, 0, 1, axis=dim)
    entering = hop(leaving, axis, step)
    if step == 1:
        return jnp.concatenate([entering, lax.slice_in_dim(x, 0, n - 1, axis=dim)], axis=dim)
    return jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=dim), entering], axis=dim)
