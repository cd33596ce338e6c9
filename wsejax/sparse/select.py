"""The k best of a tensor, exactly k, by reductions alone.

A bisection on the bits of an int32 finds the k-th greatest in 31 counts, whatever the size and however the tensor is cut up over a wafer:
nothing is sorted, nothing moves but counts. Integers are counted, so the result does not depend on any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

NEVER = -1
"""The score of what must not be chosen."""


def magnitude(x: Array) -> Int32[Array, "..."]:
    """|x| as a score from 0: the bits of a float without its sign are in the order of its size. float32 or narrower; NaN is greatest."""
    return lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.int32)


def chance(key: Array, shape: tuple[int, ...]) -> Int32[Array, "..."]:
    """A score drawn at random, from 0."""
    return (jax.random.bits(key, shape, jnp.uint32) >> 1).astype(jnp.int32)


def even(shape: tuple[int, ...]) -> Int32[Array, "..."]:
    """A score whose best are spread evenly along every axis, as on a checkerboard: multiples of powers of a generalised golden ratio,
    modulo 1 (the additive recurrence of Roberts 2018)."""
    ratio = 2.0
    for _ in range(64):  # the root of x ** (d + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (len(shape) + 1))
    total = jnp.zeros(shape, jnp.uint32)
    for d in range(len(shape)):
        total += lax.broadcasted_iota(jnp.uint32, shape, d) * jnp.uint32(int(ratio ** -(d + 1) * 2**32))
    return (total >> 1).astype(jnp.int32)


def best(score: Int32[Array, "..."], k: Int32[Array, ""] | int, axes: Sequence[int]) -> Bool[Array, "..."]:
    """True for the k greatest along `axes` together, for each place of the other axes; ties go to the lower index.

    score: at least 0, or `NEVER`. Where fewer than k are to be had, all of those.
    """
    axes = tuple(axes)
    threshold = _kth(score, k, axes, 31)
    tied = score == threshold
    size, back = 1, jnp.zeros(score.shape, jnp.int32)
    for axis in reversed(axes):
        back += lax.broadcasted_iota(jnp.int32, score.shape, axis) * size
        size *= score.shape[axis]
    above = score > threshold
    wanted = k - _count(above, axes)
    order = jnp.where(tied, size - back, NEVER)  # from 1, greatest at the lowest index
    return above | (tied & (order >= _kth(order, wanted, axes, size.bit_length())))


def _count(flags: Bool[Array, "..."], axes: tuple[int, ...]) -> Int32[Array, "..."]:
    return jnp.sum(flags, axis=axes, keepdims=True, dtype=jnp.int32)


def _kth(score: Int32[Array, "..."], k: Int32[Array, "..."] | int, axes: tuple[int, ...], bits: int) -> Int32[Array, "..."]:
    """The greatest t >= 0 of so many bits with at least k scores >= t, or 0."""

    def narrow(n: Array, t: Array) -> Array:
        higher = t | jnp.left_shift(jnp.int32(1), (bits - 1 - n).astype(jnp.int32))
        return jnp.where(_count(score >= higher, axes) >= k, higher, t)

    shape = tuple(1 if d in axes else n for d, n in enumerate(score.shape))
    return lax.fori_loop(0, bits, narrow, jnp.zeros(shape, jnp.int32))
