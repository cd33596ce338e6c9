"""What all families are made of besides attention: norms, activations, the MLP, dropout, and stacks of equal blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

Remat = Literal["none", "full", "dots"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""By name. `gelu` is the exact one, `gelu_tanh` GPT-2's approximation, `gelu_quick` that by a sigmoid."""


def normal(scale: float) -> Any:
    return nnx.initializers.normal(scale)


def linear(ins: Any, outs: Any, *, bias: bool, scale: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LinearGeneral:
    """A product over `ins` (an int or a tuple of trailing axes); kernel [*ins, *outs], normal of standard deviation `scale`."""
    axis = tuple(range(-len(ins), 0)) if isinstance(ins, tuple) else -1
    return nnx.LinearGeneral(
        ins, outs, axis=axis, use_bias=bias, kernel_init=normal(scale), dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


def norm(kind: Literal["layer", "rms"], width: int, epsilon: float, *, bias: bool, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> Any:
    """Layer norm (with or without a bias) or RMS norm; statistics are float32, the variance that of differences to the mean."""
    if kind == "rms":
        return nnx.RMSNorm(width, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    return nnx.LayerNorm(width, epsilon=epsilon, use_bias=bias, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def times(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """x times a number; at 1, x itself."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def drop(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Dropout; without a key, or at rate 0, x itself."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


def split_keys(key: Key[Array, ""] | None, count: int) -> Any:
    """`count` keys, or as many times None."""
    return (None,) * count if key is None else jax.random.split(key, count)


class MLP(nnx.Module):
    """width -> ffn_width -> width; `gated`: the activation of one product times another (Shazeer 2020)."""

    def __init__(
        self, width: int, ffn_width: int, activation: str, *, gated: bool, bias: bool, scale: float, out_scale: float, dtype: Any,
        param_dtype: Any, rngs: nnx.Rngs,
    ):  # fmt: skip
        make = functools.partial(linear, bias=bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.up = make(width, ffn_width, scale=scale)
        self.gate = make(width, ffn_width, scale=scale) if gated else None
        self.down = make(ffn_width, width, scale=out_scale)
        self.activation = activation

    def __call__(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        act = ACTIVATIONS[self.activation]
        return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


def stack(build: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> Any:
    """`layers` modules of one shape as one module, whose parameters have a leading `layers` axis."""
    keys = jax.random.split(rngs.params(), layers)
    params = jax.vmap(lambda key: nnx.split(build(nnx.Rngs(params=key)))[1])(keys)
    return nnx.merge(nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0], params)


def through(
    blocks: nnx.Module, x: Any, scanned: Any, body: Callable[[Any, Any, Any], tuple[Any, Any]], *, layers: int, remat: Remat, scan: bool
) -> tuple[Any, Any]:
    """`x, out = body(block, x, scanned_of_layer)` for each layer of a stack, by `lax.scan`; outs are stacked.

    remat: "full" recomputes a block in the backward pass, "dots" all but its products with weights. scan=False unrolls.
    """
    graph, params = nnx.split(blocks)

    def step(x: Any, layer: Any) -> tuple[Any, Any]:
        params, own = layer
        return body(nnx.merge(graph, params), x, own)

    if remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        step = jax.checkpoint(step, prevent_cse=not scan, policy=policy)
    return jax.lax.scan(step, x, (params, scanned), unroll=1 if scan else layers)
