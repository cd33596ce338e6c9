"""Programs of arithmetic, shapes, reductions and products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.compiler.registry import N, V, X, Y, floats, ints, program


# ---- element by element ----------------------------------------------------------------------------------------------
@program(X, Y)
def arithmetic(x, y):
    return x + 2 * y - x / (1 + y * y), jnp.maximum(x, y) ** 3, -x % 0.7, jnp.hypot(x, y)


@program(X)
def transcendental(x):
    return jnp.exp(x), jnp.log1p(x * x), jnp.tanh(x), jax.nn.gelu(x), lax.rsqrt(1 + x * x), jnp.sin(x), lax.erf(x), jax.nn.silu(x)


@program(N, ints(50, 8, 16, seed=4, low=1))
def integer_arithmetic(n, m):
    return n // m, n % m, n & m, n ^ m, n << 2, n == m, ~n, lax.population_count(n), n.astype(jnp.int8)


@program(X, V)
def broadcasting(x, v):
    return x + v[None], x * v[None] + x[:, :1], jnp.broadcast_to(v[:, None], (16, 4)), x / x[:, :1], v[None, :] - v[:, None]


@program(X, N)
def where_and_clamp(x, n):
    return jnp.where(n > 25, x, -1.0), jnp.clip(x, -0.5, 0.5), jnp.where(x > 0, n, 0), lax.select(n > 3, x, 2 * x)


@program(X, N)
def dtypes(x, n):
    return x.astype(jnp.bfloat16) * 2, x.astype(jnp.float16) + 1, n.astype(jnp.float32), x > 0, lax.bitcast_convert_type(x, jnp.int32)


@program(X.astype(jnp.bfloat16), Y.astype(jnp.float16))
def half_precision(x, y):
    return x * x + 1, y * 3 - y, x.astype(jnp.float32) + y, jnp.exp(x), jnp.exp(y)


@program(X > 0, Y > 0)
def booleans(p, q):
    return p & q, p | ~q, p ^ q, p.any(0), q.all(1), p.sum(), jnp.where(p, 1, 2)


@program(X, Y)
def complex_numbers(x, y):
    z = lax.complex(x, y)
    return z * z, jnp.abs(z), z.real, jnp.conj(z)


# ---- shapes ----------------------------------------------------------------------------------------------------------
@program(floats(8, 12, 4))
def reshapes(x):
    return x.reshape(96, 4), x.reshape(8, 48), x.reshape(2, 4, 12, 4), x.reshape(-1), x.reshape(8, 3, 4, 4), x.reshape(12, 32)


@program(floats(8, 12, 4))
def transposes(x):
    return x.T, x.transpose(1, 0, 2), jnp.swapaxes(x, 1, 2), x.transpose(2, 0, 1).reshape(4, 96) * 2


@program(X)
def square_plus_its_transpose(x):
    s = x[:, :8]
    return s + s.T, s @ s.T


@program(X, Y)
def splits_and_joins(x, y):
    a, b = jnp.split(x, 2, 1)
    return (
        a * b,
        jnp.concatenate([x, y], 0),
        jnp.concatenate([x, y, x[:, :4]], 1),
        jnp.stack([x, y]),
        jnp.stack([x, y], -1),
    )


@program(X)
def pads_and_flips(x):
    return (
        jnp.pad(x, ((1, 2), (0, 0))),
        jnp.pad(x, 1, constant_values=7),
        lax.pad(x, 0.0, ((-1, 0, 1), (0, 2, 0))),
        x[::-1],
        x[:, ::-1],
        jnp.roll(x, 3, 1),
    )


@program(X)
def slices(x):
    return x[2:5], x[:, 1:], x[::2, ::3], x[-1], x[:, -1:], x[1:7, 3], jnp.squeeze(x[:1], 0), x[None, :, None]


@program(X, Y, jnp.int32(3))
def dynamic_slices(x, y, i):
    row = lax.dynamic_slice(x, (i, 2), (2, 9))
    return (
        row,
        lax.dynamic_update_slice(x, y[:2], (i, 0)),
        lax.dynamic_update_slice_in_dim(x, y[:, :4], i, 1),
        x[i],
        x[:, i],
        lax.dynamic_slice(x, (i + 99, i), (8, 2)),
    )


@program(floats(4, 8, 16), ints(5, 4))
def batched_dynamic_slices(x, i):
    return jax.vmap(lambda a, j: lax.dynamic_slice_in_dim(a, j, 3))(x, i), jax.vmap(
        lambda a, j: lax.dynamic_update_slice_in_dim(a, a[:2], j, 0)
    )(x, i)


@program()
def made_from_nothing():
    return jnp.arange(16) * 2, jnp.zeros((8, 4)) + 1, jnp.eye(8), jnp.linspace(0, 1, 16), lax.iota(jnp.float32, 8), jnp.tri(8)


@program(X)
def iotas_meet_arguments(x):
    return x + jnp.arange(16.0)[None], x * lax.broadcasted_iota(jnp.float32, (8, 16), 0), jnp.where(jnp.tri(8, 16) > 0, x, 0)


# ---- reductions ------------------------------------------------------------------------------------------------------
@program(floats(8, 12, 16))
def sums(x):
    return x.sum(), x.sum(0), x.sum((0, 2)), x.mean(1), x.var(), x.std(-1), (x * x).sum((1, 2)), jnp.linalg.norm(x)


@program(X, N)
def other_reductions(x, n):
    return x.max(), x.min(0), n.max(1), n.sum(), n.prod(1), jnp.prod(1 + 0.1 * x, 0), jax.nn.logsumexp(x, axis=1), jnp.count_nonzero(n > 20)


@program(X, N)
def positions_of_extremes(x, n):
    return jnp.argmax(x, 1), jnp.argmin(x, 0), jnp.argmax(n), jnp.argmax(n, 1), (x == x.max()).sum()


@program(X, N)
def cumulative(x, n):
    return (
        jnp.cumsum(x, 0),
        jnp.cumsum(x, 1),
        jnp.cumsum(n, 1),
        jnp.cumprod(1 + 0.1 * x, 1),
        lax.cummax(x, 0),
        lax.cumlogsumexp(x, 1),
        lax.cumsum(x, 1, reverse=True),
    )


@program(X, N)
def sorting(x, n):
    return jnp.sort(x, 1), jnp.sort(n, 0), jnp.argsort(x, 1), lax.sort((n, x), num_keys=1, is_stable=True)


@program(X)
def largest(x):
    return lax.top_k(x, 3), lax.top_k(x.T, 2)[1]


# ---- products --------------------------------------------------------------------------------------------------------
@program(X, floats(16, 12), V)
def products(x, w, v):
    return x @ w, x @ x.T, x.T @ x, x @ v, v @ w, jnp.dot(v, v), jnp.outer(v, v), (x @ w).T


@program(floats(4, 6, 8), floats(4, 8, 10), floats(8, 2, 5))
def einsums(a, b, c):
    return (
        jnp.einsum("bij,bjk->bik", a, b),
        jnp.einsum("bij,bjk->kbi", a, b),
        jnp.einsum("bij,jkl->bikl", a, c),
        jnp.einsum("bij,bij->b", a, a),
        jnp.einsum("bij->ji", a),
        jnp.einsum("bij,bkj->bik", a, a),
        jnp.tensordot(a, b, ((0, 2), (0, 1))),
    )


@program(ints(9, 8, 12, dtype=np.int8), ints(9, 12, 4, dtype=np.int8))
def integer_products(a, b):
    return lax.dot(a, b, preferred_element_type=jnp.int32), a.astype(jnp.int32) @ b


@program(X.astype(jnp.bfloat16), floats(16, 8).astype(jnp.bfloat16))
def half_precision_products(x, w):
    return lax.dot(x, w, preferred_element_type=jnp.float32)


@program(floats(24, 40), floats(40, 56), floats(56, 8))
def two_layers(x, w, u):
    return jax.nn.relu(x @ w) @ u


@program(floats(4, 8, 2, 4), floats(4, 8, 2, 4, seed=5), floats(4, 8, 2, 4, seed=6))
def attention(q, k, v):
    scores = jnp.where(jnp.tri(8, dtype=bool)[None, None], jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2, -1e30)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v), jax.nn.dot_product_attention(q, k, v, is_causal=True)


@program(X, V, V + 1)
def normalisation(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    layer = centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale[None] + bias[None]
    return layer, x * lax.rsqrt((x * x).mean(-1, keepdims=True)) * scale[None], jax.nn.softmax(x, 0), jax.nn.log_softmax(x)
