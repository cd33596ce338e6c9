"""Windows, scans along a line, transforms and linear algebra, in sizes that divide by the tiles and in sizes that do not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.compiler.registry import floats, ints, program

IMAGES, KERNEL = floats(4, 3, 9, 8), floats(6, 3, 3, 3, seed=1)


def conv(x, w, stride=1, padding="SAME", **more):
    return lax.conv_general_dilated(x, w, (stride,) * (x.ndim - 2), padding, **more)


@program(IMAGES, KERNEL)
def convolution(x, w):
    nhwc = lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (
        conv(x, w),
        conv(x, w, 2),
        conv(x, w, 1, "VALID", rhs_dilation=(2, 2)),
        conv(x, w, padding=((1, 2), (0, 1)), lhs_dilation=(2, 2)),
        nhwc,
    )


@program(IMAGES, KERNEL, floats(6, seed=3))
def gradient_of_convolution(x, w, b):
    loss = lambda w, b, x: jnp.sum(jnp.tanh(conv(x, w, 2) + b[None, :, None, None]) ** 2)
    return jax.grad(loss, (0, 1, 2))(w, b, x)


@program(floats(4, 6, 12), floats(6, 1, 5, seed=1), floats(12, 3, 3, seed=2))
def grouped_convolution(x, depthwise, grouped):
    def both(x, d, g):
        return conv(conv(x, d, feature_group_count=6), g, feature_group_count=2)

    return both(x, depthwise, grouped), jax.grad(lambda *a: jnp.sum(both(*a) ** 2), (0, 1, 2))(x, depthwise, grouped)


@program(IMAGES)
def pooling(x):
    pool = functools.partial(lax.reduce_window, window_dimensions=(1, 1, 2, 2), window_strides=(1, 1, 2, 2), padding="SAME")
    most = lambda x: pool(x, -jnp.inf, lax.max)
    mean = lambda x: pool(x, 0.0, lax.add) / 4
    return most(x), mean(x), jax.grad(lambda x: jnp.sum(most(x) ** 2 + mean(x)))(x)


@program(floats(8, 7), floats(7, 8, seed=1), ints(9, 12, 7))
def largest_along_a_split_dimension(x, y, n):
    x = x.at[3, 2].set(jnp.nan)
    return [f(v, axis=a) for f in (jnp.argmax, jnp.argmin) for v in (x, y, n) for a in (0, 1)] + [jnp.argmax(n > 4, axis=0)]


@program(floats(8, 7), floats(7, 8, seed=1), ints(9, 12, 7))
def running_totals(x, y, n):
    forward = [f(v, axis=a) for f in (jnp.cumsum, jnp.cumprod, lax.cummax, lax.cummin) for v in (x, y, n) for a in (0, 1)]
    back = [f(v, axis=a, reverse=True) for f in (lax.cumsum, lax.cummax, lax.cumlogsumexp) for v in (x, y) for a in (0, 1)]
    return forward, back, jax.grad(lambda x: jnp.sum(jnp.cumsum(x, 1) ** 2))(x)


@program(floats(7, 32), ints(6, 8, 31), jnp.asarray(floats(8, 16), jnp.bfloat16))
def top_of_a_split_dimension(x, n, half):
    x = x.at[:, 5].set(-jnp.inf)
    grad = jax.grad(lambda x: jnp.sum(lax.top_k(x, 3)[0] ** 2))(jnp.where(jnp.isinf(x), 0, x))
    return lax.top_k(x, 4), lax.top_k(n, 5), lax.top_k(n.T, 8), lax.top_k(half, 16), lax.top_k(x, 32), grad


@program(floats(6, 16), floats(3, 8, 8, seed=1))
def transforms(x, cube):
    return jnp.fft.fft(x), jnp.fft.irfft(jnp.fft.rfft(x, axis=0), axis=0, n=6), jnp.abs(jnp.fft.fft2(cube)), jnp.fft.ifft(x, axis=0).real


@program(floats(4, 6, 6), floats(4, 6, 2, seed=1))
def linear_algebra(a, b):
    spd = jnp.einsum("bij,bkj->bik", a, a) + 3 * jnp.eye(6)[None]
    low = jnp.linalg.cholesky(spd)
    solved = jax.scipy.linalg.solve_triangular(low, b, lower=True), jnp.linalg.solve(spd, b)
    q, r = jnp.linalg.qr(a)
    return (
        low,
        solved,
        jnp.abs(jnp.einsum("bij,bjk->bik", q, r)),
        jnp.linalg.eigvalsh(spd),
        jnp.linalg.svd(a, compute_uv=False),
        jnp.linalg.det(a),
    )


@program(floats(10, 6), floats(10, seed=1))
def conjugate_gradients(x, y):
    def ridge(x, y, penalty):
        return jax.scipy.sparse.linalg.cg(lambda w: x.T @ (x @ w) + penalty * w, x.T @ y, maxiter=20)[0]

    return ridge(x, y, 0.5), jax.grad(lambda p: jnp.sum(ridge(x, y, p) ** 2))(0.5)


@program(floats(7, 9), np.int32(2))
def odd_sizes(x, n):
    return (
        jnp.roll(x, 2, axis=0) + x[::-1],
        x[1:-1, 2:] * 2,
        jnp.pad(x, ((1, 2), (0, 1))),
        jnp.concatenate([x, x[:2]], axis=0).sum(0),
        lax.dynamic_slice(x, (n, n), (3, 4)),
        lax.dynamic_update_slice(x, x[:3], (n, 0)),
        x.reshape(3, 21).sum(1),
        jnp.sort(x, axis=0),
        lax.reduce(x, 0.0, lambda a, b: a + b, (1,)),
        x @ x.T,
        jnp.isnan(x).any(0),
        (x > 0).all(1),
        lax.scan(lambda c, row: (c + row, c.sum()), x[0], x),
    )
