"""Blocks and devices: what everything else of the fabric is made of. The one file that calls `ppermute`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Shaped

AXES: tuple[str, str] = ("y", "x")  # mesh axes: rows grow to the south, columns to the east
DIRECTIONS = {"north": ("y", -1), "south": ("y", 1), "west": ("x", -1), "east": ("x", 1)}


def on_mesh(fun: Callable, mesh: Mesh, in_specs: Any = PartitionSpec(*AXES), out_specs: Any = PartitionSpec(*AXES)) -> Callable:
    """`fun` on every device's block of its arguments; by default grid blocks, leading axes (rows, cols) over ("y", "x").

    Replication over a mesh axis is the caller's law to keep (the compiler's layouts do): a value that only `ppermute` made
    equal everywhere cannot be proven so by `jax.shard_map`, hence `check_vma=False`.
    """
    return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


PERMUTE = lax.ppermute_p.name  # of the one collective, in a jaxpr


def permute(x: Shaped[Array, "..."], axis: str, pairs: list[tuple[int, int]]) -> Shaped[Array, "..."]:
    """Send `x` along static (source, destination) pairs of a mesh axis; a device that nobody sends to gets zeros."""
    if not pairs:
        return jnp.zeros_like(x)
    return lax.ppermute(x, axis, pairs)


def raw_hop(x: Shaped[Array, "..."], axis: str, step: int) -> Shaped[Array, "..."]:
    """The dense block of the neighbour `step` (+1 or -1) before this device on `axis`; zeros at the border."""
    n = lax.axis_size(axis)
    return permute(x, axis, [(i, i + step) for i in range(n) if 0 <= i + step < n])


def neighbour(x: Shaped[Array, "rows cols ..."], direction: str) -> Shaped[Array, "rows cols ..."]:
    """The entries of a block one place further, whatever the places stand for."""
    axis, step = DIRECTIONS[direction]
    dim = AXES.index(axis)
    n = x.shape[dim]
    leaving = lax.slice_in_dim(x, n - 1, n, axis=dim) if step == 1 else lax.slice_in_dim(x, 0, 1, axis=dim)
    entering = raw_hop(leaving, axis, step)
    if step == 1:
        return jnp.concatenate([entering, lax.slice_in_dim(x, 0, n - 1, axis=dim)], axis=dim)
    return jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=dim), entering], axis=dim)
