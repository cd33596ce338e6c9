"""Attention of every family: multi-head, grouped and single keys; causal, bidirectional and cross; windows, biases and caches.

Who sees whom follows from places alone: a key at position p (-1: there is none) is seen by a query at q if p <= q (causal) and q - p <
window, and both belong to the same segment where there are several. So padding, ragged batches, rows of several documents and caches whose
slots are in any order need no masks of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from .layers import drop, linear

Bias = Callable[[Int[Array, "rows seq"], Int[Array, "rows keys"]], Float[Array, "rows_or_1 heads seq_or_1 keys"]]
"""From positions of queries and keys what is added to the scores."""
Segments = tuple[Int[Array, "batch seq"], Int[Array, "batch keys"]]
"""Of queries and of keys: the number of the document that each belongs to. Positions count anew in each."""
KeysValues = tuple[Float[Array, "batch keys kv_heads dim"], Float[Array, "batch keys kv_heads dim"]]


def visible(
    queries: Int[Array, "rows seq"], keys: Int[Array, "rows keys"], *, causal: bool, window: int | None, segments: Segments | None = None
) -> Bool[Array, "rows seq_or_1 keys"]:
    """Which query sees which key, by their positions and segments; of one row for all queries where all see the same."""
    q, k = queries[:, :, None], keys[:, None, :]
    seen = k >= 0
    if causal:
        seen = seen & (k <= q)
    if window is not None:
        seen = seen & (q - k < window)
    if segments is not None:
        seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
    return seen


def attend(
    q: Float[Array, "batch seq heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads dim"],
    queries_at: Int[Array, "rows seq"],
    keys_at: Int[Array, "rows keys"],
    *,
    scale: Any,
    causal: bool,
    window: int | None = None,
    bias: Bias | None = None,
    segments: Segments | None = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    query_block: int | None = None,
) -> Float[Array, "batch seq heads dim"]:
    """Softmax attention; heads / kv_heads queries share a key. Scores and softmax are float32. `rows` is batch or 1.

    A query that sees no key attends to all alike; what it gives is of no use. query_block: so many queries' scores exist at a time, each
    block recomputed in the backward pass (a rest that does not divide is one more block).
    """
    batch, seq, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = (q * jnp.asarray(scale, q.dtype)).reshape(batch, seq, kv_heads, heads // kv_heads, dim)

    def rows(some: Array, at: Array, within: Array | None, key: Any) -> Array:
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", some, k).astype(jnp.float32)
        if bias is not None:
            added = bias(at, keys_at)
            scores = scores + added.reshape(added.shape[0], kv_heads, heads // kv_heads, *added.shape[2:])
        pair = None if segments is None or within is None else (within, segments[1])
        seen = visible(at, keys_at, causal=causal, window=window, segments=pair)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
        weights = drop(weights, dropout, key).astype(v.dtype)
        return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)

    key = None if dropout == 0.0 else key
    within = None if segments is None else segments[0]
    if query_block is None or seq < 2 * query_block:
        return rows(q, queries_at, within, key).reshape(batch, seq, heads, dim)
    count = seq // query_block
    cut = lambda x: jnp.moveaxis(x[:, : count * query_block].reshape(x.shape[0], count, query_block, *x.shape[2:]), 1, 0)
    keys = None if key is None else jax.random.split(key, count + 1)
    again = jax.checkpoint(rows, prevent_cse=False)
    blocks = (cut(q), cut(queries_at), None if within is None else cut(within), None if keys is None else keys[1:])
    _, done = jax.lax.scan(lambda c, block: (c, again(*block)), None, blocks)
    done = jnp.moveaxis(done, 0, 1).reshape(batch, count * query_block, *q.shape[2:])
    if seq % query_block:
        left = lambda x: x[:, count * query_block :]
        rest = rows(left(q), left(queries_at), None if within is None else left(within), None if keys is None else keys[0])
        done = jnp.concatenate([done, rest], axis=1)
    return done.reshape(batch, seq, heads, dim)


class Attention(nnx.Module):
    """The four products round `attend`: q and out [.., heads, head_width], k and v [.., kv_heads, head_width]."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_width: int, *, qkv_bias: bool, out_bias: bool, scale: float, out_scale: float,
        dtype: Any, param_dtype: Any, rngs: nnx.Rngs, q_scale: float | None = None,
    ):  # fmt: skip
        make = functools.partial(linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q = make(width, (heads, head_width), bias=qkv_bias, scale=scale if q_scale is None else q_scale)
        self.k = make(width, (kv_heads, head_width), bias=qkv_bias, scale=scale)
        self.v = make(width, (kv_heads, head_width), bias=qkv_bias, scale=scale)
        self.out = make((heads, head_width), width, bias=out_bias, scale=out_scale)

    def keys_values(self, x: Float[Array, "batch keys width"]) -> KeysValues:
        return self.k(x), self.v(x)
