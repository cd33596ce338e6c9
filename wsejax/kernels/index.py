"""Rows by index from a table whose indexed dimension is split over the mesh: the table stays, indices and rows travel."""

from __future__ import annotations

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
    dtype = rows.dtype
    if dtype == jnp.bool_:
        bits = rows.astype(jnp.uint8)
    elif jnp.issubdtype(dtype, jnp.complexfloating):
        parts = [merge_rows(part, here, axis, dim) for part in (rows.real, rows.imag)]
        return lax.complex(*parts)
    else:
        bits = lax.bitcast_convert_type(rows, _BITS[dtype.itemsize])
    bits = jnp.where(here, bits, jnp.zeros_like(bits))
    if dim is not None:
        bits = fabric.collect(bits, axis, dim)
    elif fabric.size(axis) > 1:
        bits = fabric.in_order(fabric.gather(bits[None], axis, 0), 0)
    return bits.astype(jnp.bool_) if dtype == jnp.bool_ else lax.bitcast_convert_type(bits, dtype)
