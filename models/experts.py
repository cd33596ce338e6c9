"""A mixture of experts (Shazeer et al. 2017; Jiang et al. 2024): each token goes to those gated MLPs that its router likes best."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .layers import ACTIVATIONS, linear, normal

Load = tuple[Float[Array, "top experts"], Float[Array, " experts"]]
"""Shares of the tokens that chose each expert first, second, ..., and the mean of the router's probabilities."""


class Experts(nnx.Module):
    """Softmax over the router's logits, the best `top` of them normalised to sum to one.

    capacity_factor: None is dropless: every token gets its experts, exactly (all experts see all, weighted by zero where they were
    not chosen). A number gives each expert room for capacity_factor * top * tokens / experts tokens of a call; who comes later, in the
    order of choices, then of tokens, passes by with zero (Lepikhin et al. 2021).
    """

    def __init__(
        self, width: int, ffn_width: int, experts: int, top: int, activation: str, *, capacity_factor: float | None, scale: float,
        out_scale: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs, router_scale: float | None = None,
    ):  # fmt: skip
        kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.router = linear(width, experts, bias=False, scale=scale if router_scale is None else router_scale, **kinds)
        made = lambda *shape, scale: nnx.Param(normal(scale)(rngs.params(), shape, param_dtype))
        self.gate = made(experts, width, ffn_width, scale=scale)
        self.up = made(experts, width, ffn_width, scale=scale)
        self.down = made(experts, ffn_width, width, scale=out_scale)
        self.top, self.capacity_factor, self.activation, self.dtype = top, capacity_factor, activation, dtype

    def __call__(
        self, x: Float[Array, "batch seq width"], present: Int[Array, "batch seq"] | None = None
    ) -> tuple[Float[Array, "batch seq width"], Load]:
        """present: 1 for tokens that count in the load and take room, 0 for padding (whose result is of no use); None: all count."""
        probabilities = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(probabilities, self.top)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        picks = jax.nn.one_hot(chosen, probabilities.shape[-1])  # [batch, seq, top, experts]
        counts = jnp.ones(x.shape[:2]) if present is None else present.astype(jnp.float32)
        mean = lambda y, weights: (y * weights).sum(axis=(0, 1)) / counts.sum()
        load = (mean(picks, counts[:, :, None, None]), mean(probabilities, counts[:, :, None]))
        x = x.astype(self.dtype)
        if self.capacity_factor is None:
            share = jnp.einsum("bske,bsk->bse", picks, weights).astype(self.dtype)
            return jnp.einsum("ebsd,bse->bsd", self._mlp("bsd,edf->ebsf", "ebsf,efd->ebsd", x), share), load
        return self._with_capacity(x, weights, picks * counts[:, :, None, None]), load

    def _mlp(self, into: str, out: str, x: Array) -> Array:
        gate, up, down = (p[...].astype(self.dtype) for p in (self.gate, self.up, self.down))
        inner = ACTIVATIONS[self.activation](jnp.einsum(into, x, gate)) * jnp.einsum(into, x, up)
        return jnp.einsum(out, inner, down)

    def _with_capacity(
        self, x: Float[Array, "batch seq width"], weights: Float[Array, "batch seq top"], picks: Float[Array, "batch seq top experts"]
    ) -> Float[Array, "batch seq width"]:
        batch, seq, top, experts = picks.shape
        assert self.capacity_factor is not None
        room = max(1, min(batch * seq, math.ceil(self.capacity_factor * top * batch * seq / experts)))
        flat = picks.reshape(batch * seq, top, experts)
        ordered = jnp.moveaxis(flat, 1, 0).reshape(top * batch * seq, experts)  # all first choices before any second
        before: Int[Array, "choices experts"] = (jnp.cumsum(ordered, axis=0) - ordered).astype(jnp.int32)
        place = jnp.moveaxis(before.reshape(top, batch * seq, experts), 0, 1)
        # [tokens, experts, room]: 1 where a token stands in an expert's room; one_hot of what is beyond it is zero
        stands = (jax.nn.one_hot(place, room) * flat[..., None]).sum(axis=1)
        share = (jax.nn.one_hot(place, room) * flat[..., None] * weights.reshape(batch * seq, top)[:, :, None, None]).sum(axis=1)
        there = jnp.einsum("tec,td->ecd", stands.astype(self.dtype), x.reshape(batch * seq, -1))
        done = self._mlp("ecd,edf->ecf", "ecf,efd->ecd", there)
        return jnp.einsum("ecd,tec->td", done, share.astype(self.dtype)).reshape(x.shape)


def load_balance(loads: Load) -> Float[Array, ""]:
    """The auxiliary loss that keeps experts evenly used (Fedus et al. 2021, equation 4): `top` where they are, and more the more the
    router settles on few, `experts` at the most.

    loads: means over tokens, of one layer or with a leading axis of layers, over which they are averaged first (as the reference
    implementation of Mixtral does).
    """
    picks, probabilities = loads
    if picks.ndim == 3:
        picks, probabilities = picks.mean(axis=0), probabilities.mean(axis=0)
    return (picks * probabilities[None, :]).sum() * probabilities.shape[-1]
