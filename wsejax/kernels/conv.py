"""Convolution as one matrix product: the patches under the window are laid out as rows, and meet the weights once.

The bits of a host library's own convolution depend on the shape of the whole block; those of `steady_dot` do not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from wsejax.kernels.gemm import steady_dot

SLICES = 64  # more slices than this are taken by index, so that the program stays small


def patches(x: Shaped[Array, "n c ..."], window: Sequence[int], out: Sequence[int], strides: Sequence[int], dilation: Sequence[int]):
    """What lies under the window at every place: (n, c, ...) -> (n, *out, c, *window). `x` is padded already."""
    rank = len(window)
    if min(math.prod(window), math.prod(out)) > SLICES:
        for d in range(rank):  # (n, c, o0, w0, ..., x_d, ...)
            at = jnp.arange(out[d])[:, None] * strides[d] + jnp.arange(window[d])[None] * dilation[d]
            x = jnp.take(x, at, axis=2 + 2 * d, mode="clip")
        return jnp.transpose(x, (0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)))
    by_tap = math.prod(window) <= math.prod(out)
    loop, step, inner, inner_step = (window, dilation, out, strides) if by_tap else (out, strides, window, dilation)
    cut = []
    for at in itertools.product(*map(range, loop)):
        start = [i * s for i, s in zip(at, step, strict=True)]
        stop = [i + (n - 1) * s + 1 for i, n, s in zip(start, inner, inner_step, strict=True)]
        cut.append(lax.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *inner_step)))
    stacked = jnp.stack(cut).reshape(*loop, *cut[0].shape)  # (*loop, n, c, *inner)
    ins = list(range(rank + 2, 2 * rank + 2))
    outs, taps = (ins, list(range(rank))) if by_tap else (list(range(rank)), ins)
    return jnp.transpose(stacked, (rank, *outs, rank + 1, *taps))


def conv(
    x: Shaped[Array, "n c ..."],
    w: Shaped[Array, "o i ..."],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    x_dilation: Sequence[int],
    w_dilation: Sequence[int],
    feature_groups: int = 1,
    batch_groups: int = 1,
    precision=None,
    preferred_element_type=None,
) -> Shaped[Array, "n o ..."]:
    """`lax.conv_general_dilated` of (batch, feature, *space) and (out, in, *space), in bits that do not depend on the block's batch.

    Feature groups or batch groups are done one after the other.
    """
    groups = max(feature_groups, batch_groups)
    if groups > 1:
        xs = jnp.stack(jnp.split(x, groups, axis=1 if feature_groups > 1 else 0))
        ws = jnp.stack(jnp.split(w, groups, axis=0))
        one = lambda both: conv(both[0], both[1], strides, padding, x_dilation, w_dilation, 1, 1, precision, preferred_element_type)
        return jnp.concatenate(list(lax.map(one, (xs, ws))), axis=1)
    config = [(0, 0, 0), (0, 0, 0), *((lo, hi, d - 1) for (lo, hi), d in zip(padding, x_dilation, strict=True))]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    window = w.shape[2:]
    reach = [(n - 1) * d + 1 for n, d in zip(window, w_dilation, strict=True)]
    out = [max(0, (n - r) // s + 1) for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
    if 0 in (*out, *window, *x.shape, *w.shape):
        return jnp.zeros((x.shape[0], w.shape[0], *out), preferred_element_type or x.dtype)
    rows = patches(x, window, out, strides, w_dilation).reshape(x.shape[0] * math.prod(out), -1)
    kernel = w.reshape(w.shape[0], -1)
    y = steady_dot(rows, kernel, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=preferred_element_type)
    return jnp.moveaxis(y.reshape(x.shape[0], *out, w.shape[0]), -1, 1)
