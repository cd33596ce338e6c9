"""GPT-2 style decoder (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") in plain flax NNX.

Learned positions, pre-norm blocks, tanh gelu, causal attention, output head tied to the token table. The blocks' parameters are
stacked on a leading `layers` axis and applied by `lax.scan`, so that compile time does not grow with depth.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT. Sizes count elements; `dropout` is a probability."""

    vocab_size: int = 256
    context: int = 128  # longest sequence: rows of the position table
    layers: int = 4
    heads: int = 8
    width: int = 256  # features of the residual stream
    dropout: float = 0.0
    remat: bool = False  # recompute each block in the backward pass instead of keeping its activations
    scan: bool = True  # one compiled block run `layers` times; False unrolls (longer compile, faster small steps)

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}: every head needs width / heads features")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def parameter_count(self) -> int:
        """Trained scalars, the tied head counted once (GPT-2 small: 124,439,808)."""
        d = self.width
        block = 12 * d * d + 13 * d  # attention 4d^2 + 4d, MLP 8d^2 + 5d, two norms 4d
        return (self.vocab_size + self.context) * d + self.layers * block + 2 * d


PRESETS = {
    "tiny": GPTConfig(vocab_size=256, context=128, layers=4, heads=8, width=128),
    "small": GPTConfig(vocab_size=50257, context=1024, layers=12, heads=12, width=768, remat=True),
}


def _drop(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


class Attention(nnx.Module):
    """Causal multi-head self-attention. The fused projection keeps heads outermost: (heads, [q k v], head_width)."""

    def __init__(self, c: GPTConfig, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal
        self.qkv = nnx.LinearGeneral(c.width, (c.heads, 3, c.head_width), kernel_init=normal(0.02), rngs=rngs)
        self.out = nnx.LinearGeneral(
            (c.heads, c.head_width),
            c.width,
            axis=(-2, -1),
            kernel_init=normal(0.02 * (2 * c.layers) ** -0.5),
            rngs=rngs,
        )
        self.dropout = c.dropout

    def __call__(self, x: Float[Array, "batch seq width"], key: Key[Array, ""] | None = None) -> Float[Array, "batch seq width"]:
        q, k, v = jnp.moveaxis(self.qkv(x), -2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        seq = x.shape[1]
        causal = (jnp.arange(seq)[:, None] >= jnp.arange(seq)[None, :])[None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = _drop(weights, self.dropout, key)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v))


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then a four times wider gelu MLP, each added to the residual stream."""

    def __init__(self, c: GPTConfig, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal
        self.norm1, self.norm2 = (
            nnx.LayerNorm(c.width, epsilon=1e-5, rngs=rngs),
            nnx.LayerNorm(c.width, epsilon=1e-5, rngs=rngs),
        )
        self.attention = Attention(c, rngs=rngs)
        self.up = nnx.Linear(c.width, 4 * c.width, kernel_init=normal(0.02), rngs=rngs)
        self.down = nnx.Linear(4 * c.width, c.width, kernel_init=normal(0.02 * (2 * c.layers) ** -0.5), rngs=rngs)
        self.dropout = c.dropout

    def __call__(self, x: Float[Array, "batch seq width"], key: Key[Array, ""] | None = None) -> Float[Array, "batch seq width"]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + _drop(self.attention(self.norm1(x), keys[0]), self.dropout, keys[1])
        return x + _drop(self.down(nnx.gelu(self.up(self.norm2(x)))), self.dropout, keys[2])


class GPT(nnx.Module):
    """Decoder-only language model. `GPT(config, rngs=nnx.Rngs(seed))(tokens)` gives float32 logits."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        c, normal = config, nnx.initializers.normal
        self.config = c
        self.token_embed = nnx.Embed(c.vocab_size, c.width, embedding_init=normal(0.02), rngs=rngs)
        self.position_embed = nnx.Embed(c.context, c.width, embedding_init=normal(0.01), rngs=rngs)
        self.final_norm = nnx.LayerNorm(c.width, epsilon=1e-5, rngs=rngs)
        keys = jax.random.split(rngs.params(), c.layers)
        stacked = jax.vmap(lambda key: nnx.split(Block(c, rngs=nnx.Rngs(params=key)))[1])(keys)
        self.blocks = nnx.merge(nnx.split(nnx.eval_shape(lambda: Block(c, rngs=nnx.Rngs(0))))[0], stacked)

    def __call__(self, tokens: Int[Array, "batch seq"], key: Key[Array, ""] | None = None) -> Float[Array, "batch seq vocab"]:
        """Logits of the next token at every position.

        Args:
          tokens: int32 [batch, seq], seq <= config.context.
          key: a typed PRNG key turns dropout on; None (evaluation) turns it off.

        Raises:
          ValueError: seq is longer than the position table.
        """
        c, (_, seq) = self.config, tokens.shape
        if seq > c.context:
            raise ValueError(f"tokens has sequence length {seq}, the model's context is {c.context}: crop the input or raise `context`")
        first, keys = None, None
        if key is not None and c.dropout > 0.0:
            first, rest = jax.random.split(key)
            keys = jax.random.split(rest, c.layers)
        x = _drop(self.token_embed(tokens) + self.position_embed.embedding[None, :seq], c.dropout, first)
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x, scanned):
            params, key = scanned
            return nnx.merge(graphdef, params)(x, key), None

        if c.remat:
            layer = functools.partial(jax.checkpoint, prevent_cse=not c.scan)(layer)
        x, _ = jax.lax.scan(layer, x, (stacked, keys), unroll=1 if c.scan else c.layers)
        return self.token_embed.attend(self.final_norm(x))
