"""Rows by index from a table whose indexed dimension is split over the mesh: the table stays, indices and rows travel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from wsejax import fabric

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


def owned(indices: Int[Array, "..."], rows_here: int, axis: str) -> tuple[Int[Array, "..."], Shaped[Array, "..."]]:
    """(index into this device's rows, whether the row is here) of global row indices."""
    local = indices - fabric.coordinate(axis).astype(indices.dtype) * rows_here
    return local, (local >= 0) & (local < rows_here)


def merge_rows(rows: Shaped[Array, "..."], here: Shaped[Array, "..."], axis: str, dim: int | None) -> Shaped[Array, "..."]:
    """Combine rows of which exactly one device along `axis` holds each (`here`), bit for bit.

    Sums bit patterns, so that not even the sign of a zero is lost.

    Args:
      rows: this device's candidates, zero or not where `here` is False.
      here: bool, broadcastable against `rows`.
      axis: mesh axis that splits the table's indexed dimension.
      dim: dimension of `rows` to leave split over `axis`, or None for rows on every device.
    """
    if jnp.issubdtype(rows.dtype, jnp.complexfloating):
        return lax.complex(*(merge_rows(part, here, axis, dim) for part in (rows.real, rows.imag)))
    return (_merged_floats if jnp.issubdtype(rows.dtype, jnp.floating) else _merged)(rows, here, axis, dim)


def _merged(rows, here, axis: str, dim: int | None):
    dtype = rows.dtype
    bits = rows.astype(jnp.uint8) if dtype == jnp.bool_ else lax.bitcast_convert_type(rows, _BITS[dtype.itemsize])
    bits = _summed(jnp.where(here, bits, jnp.zeros_like(bits)), axis, dim)
    return bits.astype(jnp.bool_) if dtype == jnp.bool_ else lax.bitcast_convert_type(bits, dtype)


def _summed(rows, axis: str, dim: int | None):
    if dim is not None:
        return fabric.collect(rows, axis, dim)
    return fabric.in_order(fabric.gather(rows[None], axis, 0), 0) if fabric.size(axis) > 1 else rows


# What is done on bits has no derivative of its own; that of the sum is the sum.
_merged_floats = jax.custom_jvp(_merged, nondiff_argnums=(2, 3))


@_merged_floats.defjvp
def _(axis: str, dim: int | None, primals, tangents):
    (rows, here), (change, _) = primals, tangents
    return _merged_floats(rows, here, axis, dim), _summed(jnp.where(here, change, jnp.zeros_like(change)), axis, dim)
