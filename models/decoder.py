"""A decoder-only transformer of any published dimensions (`models.presets`) in plain flax NNX: RMS norm or layer norm, rotary or learned
positions, grouped-query attention, gated or plain MLP, tied or separate head.

Llama's block (Touvron et al. 2023) if `gated`, GPT-3's (Brown et al. 2020) otherwise. Layers are stacked and applied by `lax.scan`; queries
go through attention in blocks, each recomputed in the backward pass, so that no more than a block's scores exist at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Dimensions; those of `models.presets` by `DecoderConfig.of`. Sizes count elements."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context: int
    gated: bool = True
    tied: bool = False
    rope_base: float = 10_000.0
    query_block: int = 512  # queries whose scores exist together
    loss_block: int = 128  # tokens of a sequence whose logits exist together, in a training step
    remat: bool = True
    dtype: Any = jnp.float32  # of parameters and activations; norms, softmax and logits are float32

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width}: rotary positions turn pairs of features, so it must be even")

    @classmethod
    def of(cls, dims: Mapping[str, Any], **changes: Any) -> DecoderConfig:
        """From a preset's dimensions; `name` and `causal` are ignored."""
        return cls(**{k: v for k, v in dims.items() if k not in ("name", "causal")} | changes)


def rotary(x: Float[Array, "batch seq heads dim"], base: float) -> Float[Array, "batch seq heads dim"]:
    """Pairs of features (i, i + dim / 2) turned by position / base^(2 i / dim) (Su et al. 2021, in Llama's order)."""
    half = x.shape[-1] // 2
    angle = jnp.outer(jnp.arange(x.shape[1]), base ** (-jnp.arange(half) / half))
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "batch seq heads dim"], k: Float[Array, "batch seq kv dim"], v: Float[Array, "batch seq kv dim"], block: int
) -> Float[Array, "batch seq heads dim"]:
    """Causal attention, `block` queries at a time; the last block may be shorter."""
    batch, seq, heads, dim = q.shape
    group = heads // k.shape[2]
    q = (q * dim**-0.5).reshape(batch, seq, k.shape[2], group, dim)

    def rows(start, some):
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", some, k).astype(jnp.float32)
        sees = start + jnp.arange(some.shape[1])[:, None] >= jnp.arange(seq)[None, :]
        weights = jax.nn.softmax(jnp.where(sees[None, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1).astype(v.dtype)
        return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)

    count = seq // block
    if count < 2:
        return rows(0, q).reshape(batch, seq, heads, dim)
    blocks = jnp.moveaxis(q[:, : count * block].reshape(batch, count, block, *q.shape[2:]), 1, 0)
    again = jax.checkpoint(rows, prevent_cse=False)
    _, done = jax.lax.scan(lambda start, some: (start + block, again(start, some)), jnp.zeros((), jnp.int32), blocks)
    done = jnp.moveaxis(done, 0, 1).reshape(batch, count * block, *q.shape[2:])
    if seq % block:
        done = jnp.concatenate([done, rows(count * block, q[:, count * block :])], axis=1)
    return done.reshape(batch, seq, heads, dim)


class Block(nnx.Module):
    """Pre-norm: attention, then the MLP, each added to the residual stream."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        last = nnx.initializers.normal(0.02 * (2 * c.layers) ** -0.5)
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, param_dtype=c.dtype, dtype=c.dtype, rngs=rngs)
        norm = functools.partial(nnx.RMSNorm if c.gated else nnx.LayerNorm, c.width, param_dtype=c.dtype, dtype=c.dtype, rngs=rngs)
        self.config = c
        self.norm1, self.norm2 = norm(), norm()
        self.q = linear(c.width, (c.heads, c.head_width), kernel_init=small)
        self.k, self.v = (linear(c.width, (c.kv_heads, c.head_width), kernel_init=small) for _ in range(2))
        self.out = linear((c.heads, c.head_width), c.width, axis=(-2, -1), kernel_init=last)
        self.up = linear(c.width, c.ffn_width, kernel_init=small)
        self.gate = linear(c.width, c.ffn_width, kernel_init=small) if c.gated else None
        self.down = linear(c.ffn_width, c.width, kernel_init=last)

    def __call__(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        c, h = self.config, self.norm1(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        if c.gated:
            q, k = rotary(q, c.rope_base), rotary(k, c.rope_base)
        x = x + self.out(attend(q, k, v, c.query_block))
        h = self.norm2(x)
        inner = nnx.silu(self.gate(h)) * self.up(h) if self.gate is not None else nnx.gelu(self.up(h))
        return x + self.down(inner)


class Decoder(nnx.Module):
    """`Decoder(config, rngs=nnx.Rngs(seed))(tokens)` gives float32 logits."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c, small = config, nnx.initializers.normal(0.02)
        self.config = c
        table = functools.partial(nnx.Embed, param_dtype=c.dtype, dtype=c.dtype, embedding_init=small, rngs=rngs)
        self.tokens = table(c.vocab_size, c.width)
        self.positions = None if c.gated else table(c.context, c.width)
        self.norm = (nnx.RMSNorm if c.gated else nnx.LayerNorm)(c.width, param_dtype=c.dtype, dtype=c.dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, use_bias=False, param_dtype=c.dtype, dtype=c.dtype, kernel_init=small, rngs=rngs)
        self.head = None if c.tied else linear(c.width, c.vocab_size)
        keys = jax.random.split(rngs.params(), c.layers)
        stacked = jax.vmap(lambda key: nnx.split(Block(c, rngs=nnx.Rngs(params=key)))[1])(keys)
        self.blocks = nnx.merge(nnx.split(nnx.eval_shape(lambda: Block(c, rngs=nnx.Rngs(0))))[0], stacked)

    def __call__(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        """Logits of the next token at every position.

        Raises:
          ValueError: seq is longer than the context.
        """
        return self.logits(self.features(tokens))

    def logits(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq vocab"]:
        return (self.tokens.attend(x) if self.head is None else self.head(x)).astype(jnp.float32)

    def features(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq width"]:
        """What the head reads.

        Raises:
          ValueError: seq is longer than the context.
        """
        c, seq = self.config, tokens.shape[1]
        if seq > c.context:
            raise ValueError(f"tokens has sequence length {seq}, the model's context is {c.context}: crop the input or raise `context`")
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.embedding[None, :seq]
        graph, stacked = nnx.split(self.blocks)
        layer = lambda x, params: (nnx.merge(graph, params)(x), None)
        if c.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        x, _ = jax.lax.scan(layer, x, stacked)
        return self.norm(x)


def abstract_train_step(config: DecoderConfig, tx: Any) -> tuple[Any, dict[str, Any]]:
    """(step, state): a pure `step(state, tokens) -> (state, loss)` and the shapes of its state, with nothing allocated.

    tx: an optax transformation. tokens: int32 [batch, seq + 1]; the loss is the mean cross-entropy of the next token, in nats.
    """
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)

    def loss(params: Any, tokens: Int[Array, "batch seq_and_one"]) -> Float[Array, ""]:
        model = nnx.merge(graph, params)
        x, targets = model.features(tokens[:, :-1]), tokens[:, 1:]

        def of(x, targets):
            picked = jnp.take_along_axis(jax.nn.log_softmax(model.logits(x)), targets[..., None], axis=-1)
            return -picked.sum()

        count, block = targets.shape[1] // config.loss_block, config.loss_block
        if count < 2:
            return of(x, targets) / targets.size
        cut = lambda v: jnp.moveaxis(v[:, : count * block].reshape(v.shape[0], count, block, *v.shape[2:]), 1, 0)
        again = jax.checkpoint(lambda sum_, some: (sum_ + of(*some), None), prevent_cse=False)
        total, _ = jax.lax.scan(again, jnp.zeros(()), (cut(x), cut(targets)))
        if targets.shape[1] % block:
            total = total + of(x[:, count * block :], targets[:, count * block :])
        return total / targets.size

    def step(state: dict[str, Any], tokens: Int[Array, "batch seq_and_one"]) -> tuple[dict[str, Any], Float[Array, ""]]:
        value, grads = jax.value_and_grad(loss)(state["params"], tokens)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state["params"], updates)
        return {"params": params, "opt": opt}, value

    return step, {"params": params, "opt": jax.eval_shape(tx.init, params)}
