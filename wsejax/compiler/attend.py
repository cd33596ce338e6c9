"""`wse.attention`: attention that says what it is, so that the compiler can do it round a ring where the sequence is split."""

from __future__ import annotations

import functools
import math

import jax
import jax.core
import jax.numpy as jnp
from jax.interpreters import batching
from jaxtyping import Array, Bool, Float

from wsejax.compiler.extend import inside_wse_jit
from wsejax.compiler.ir import Primitive

forward_p, backward_p = Primitive("ring_attention"), Primitive("ring_attention_gradient")
forward_p.multiple_results = backward_p.multiple_results = True


@forward_p.def_abstract_eval
def _(q, k, v, *mask, **_):
    wide = jnp.result_type(q.dtype, k.dtype, jnp.float32)
    return [jax.core.ShapedArray(q.shape, q.dtype), jax.core.ShapedArray((*q.shape[:3], 1), wide)]


@backward_p.def_abstract_eval
def _(q, k, v, *rest, **_):
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in (q, k, v)]


def _batched(primitive):
    """Many attentions are one with a larger batch."""

    def rule(args, dims, **params):
        count = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        front = [
            jnp.broadcast_to(x[None], (count, *x.shape)) if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)
        ]
        outs = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in front), **params)
        return [x.reshape(count, -1, *x.shape[1:]) for x in outs], [0] * len(outs)

    batching.primitive_batchers[primitive] = rule


_batched(forward_p)
_batched(backward_p)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(q, k, v, mask, scale, left, right):
    return forward_p.bind(q, k, v, *mask, scale=scale, left=left, right=right)[0]


def _fwd(q, k, v, mask, scale, left, right):
    out, lse = forward_p.bind(q, k, v, *mask, scale=scale, left=left, right=right)
    return out, (q, k, v, mask, out, lse)


def _bwd(scale, left, right, saved, d_out):
    q, k, v, mask, out, lse = saved
    dq, dk, dv = backward_p.bind(q, k, v, *mask, out, lse, d_out, scale=scale, left=left, right=right)
    return dq, dk, dv, tuple(None for _ in mask)


_attention.defvjp(_fwd, _bwd)


def attention(
    q: Float[Array, "batch q_tokens heads dim"],
    k: Float[Array, "batch kv_tokens kv_heads dim"],
    v: Float[Array, "batch kv_tokens kv_heads dim"],
    *,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    kv_mask: Bool[Array, "batch kv_tokens"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch q_tokens heads dim"]:
    """Softmax attention, as `jax.nn.dot_product_attention`. On the wafer the batch lies on y and the heads on x where they fit; else the
    sequence lies on y, and keys and values travel round the ring (`kernels/attention.py`). Outside `wse.jit` it is plain JAX.

    Args:
      q, k, v: `heads` is a multiple of `kv_heads`.
      causal: a query sees no later key.
      window: a query at position i sees keys i - window[0] to i + window[1] only.
      kv_mask: False hides a key from all queries of its batch entry.
      scale: of the scores, by default 1 / sqrt(dim).

    Returns:
      Of the shape and dtype of `q`; zeros for a query that sees no key. Scores and sums are at least float32.

    Raises:
      ValueError: shapes that do not fit together.
    """
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k is {k.dtype}{list(k.shape)}, v is {v.dtype}{list(v.shape)}: they must be alike")
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or q.shape[2] % k.shape[2]:
        raise ValueError(f"q has shape {q.shape}, k {k.shape}: give (batch, tokens, heads, dim), heads a multiple of k's")
    if kv_mask is not None and kv_mask.shape != k.shape[:2]:
        raise ValueError(f"kv_mask has shape {kv_mask.shape}, k {k.shape}: give (batch, tokens) of k")
    left, right = window or (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    if inside_wse_jit.get():
        return _attention(q, k, v, () if kv_mask is None else (kv_mask,), scale, left, right)
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    seen = (j >= i - (math.inf if left is None else left)) & (j <= i + (math.inf if right is None else right))
    seen = seen[None, None] & (True if kv_mask is None else jnp.asarray(kv_mask)[:, None, None, :])
    out = jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale)
    return jnp.where(jnp.any(seen, -1)[:, 0, :, None, None], out, jnp.zeros_like(out))
