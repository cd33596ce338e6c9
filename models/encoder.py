"""The bidirectional encoder that BERT and RoBERTa are cases of: `Encoder(config, rngs=nnx.Rngs(seed))(tokens)` gives float32 logits of what
stands at each place (masked language modelling; Devlin et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from .attention import Attention, Segments, attend
from .config import ModelConfig
from .layers import ACTIVATIONS, MLP, drop, linear, norm, normal, split_keys, stack, through, times
from .transformer import check_length, check_places


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Of an encoder; BERT's as it stands. An untied head has a matrix and a bias of its own."""

    vocab_size: int = 257  # 256 bytes, and one that stands for what is masked
    segments: int = 2  # kinds of segments that tokens may belong to
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    head_activation: str | None = None  # of the head's own layer; None: as everywhere
    padding_token: int | None = None  # positions count from the one after it, and skip it (RoBERTa); None: they count from 0
    attention_dropout: float = 0.0
    init_scale: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("segments")
        self._heads_divide_width()
        if self.head_width * self.heads != self.width:
            raise ValueError(f"head_width={self.head_width}: heads of an encoder have width / heads = {self.width // self.heads} features")
        if self.head_activation is not None:
            self._one_of("head_activation", tuple(ACTIVATIONS))
        self._probability("attention_dropout")

    @property
    def position_rows(self) -> int:
        """Of the position table; RoBERTa's has unused ones up to the padding token."""
        return self.context + (0 if self.padding_token is None else self.padding_token + 1)


class EncoderBlock(nnx.Module):
    """Attention, then the MLP, each added to its input and then normalised."""

    def __init__(self, c: EncoderConfig, *, rngs: nnx.Rngs):
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        scales: dict[str, Any] = dict.fromkeys(("scale", "out_scale"), c.init_scale * c.hidden_scale)
        self.config = c
        self.attention = Attention(
            c.width, c.heads, c.heads, c.head_width, qkv_bias=True, out_bias=True, **scales, **kinds
        )  # fmt: skip
        self.mlp = MLP(c.width, c.ffn_width, c.activation, gated=False, bias=True, **scales, **kinds)
        self.norm1, self.norm2 = (norm("layer", c.width, c.norm_epsilon, bias=True, **kinds) for _ in range(2))

    def __call__(
        self, x: Float[Array, "batch seq width"], at: Array, keys_at: Array, key: Any, within: Segments | None = None
    ) -> Float[Array, "batch seq width"]:
        c = self.config
        of_attention, of_weights, of_mlp = split_keys(key, 3)
        q, (k, v) = self.attention.q(x), self.attention.keys_values(x)
        mixed = attend(
            q, k, v, at, keys_at, scale=c.scores_scale, causal=False, segments=within, dropout=c.attention_dropout,
            key=of_weights, query_block=c.query_block,
        )  # fmt: skip
        x = self.norm1(x + drop(self.attention.out(mixed), c.dropout, of_attention))
        return self.norm2(x + drop(self.mlp(x), c.dropout, of_mlp))


class Encoder(nnx.Module):
    """Tables of tokens, positions and segments, blocks, and a head.

    An untied head has a bias of its own; `head_bias` is then unused, as in the reference, and there so that checkpoints lose nothing.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        c = config
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        table = lambda rows: nnx.Embed(rows, c.width, embedding_init=normal(c.init_scale), **kinds)
        self.config = c
        self.tokens, self.positions, self.segments = table(c.vocab_size), table(c.position_rows), table(c.segments)
        self.norm = norm("layer", c.width, c.norm_epsilon, bias=True, **kinds)
        self.blocks = stack(lambda rngs: EncoderBlock(c, rngs=rngs), c.layers, rngs)
        self.head = linear(c.width, c.width, bias=True, scale=c.init_scale * c.hidden_scale, **kinds)
        self.head_norm = norm("layer", c.width, c.norm_epsilon, bias=True, **kinds)
        self.out = None if c.tied else linear(c.width, c.vocab_size, bias=True, scale=c.init_scale, **kinds)
        self.head_bias = nnx.Param(jnp.zeros(c.vocab_size, c.param_dtype))

    def __call__(
        self, tokens: Int[Array, "batch seq"], key: Key[Array, ""] | None = None, *, present: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None, segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "batch seq"] | None = None,
    ) -> Float32[Array, "batch seq vocab"]:  # fmt: skip
        """Logits of the token at every place.

        present: 1 for tokens, 0 for padding, which nobody sees; None: all are there. segments: the kind that each token is of; None: all
        to the first. segment_ids and positions: as in `Decoder.__call__`; the same numbers as of a row to each document unless padding
        tokens stand inside it, over which positions that are given do not skip. A typed PRNG key turns dropout on. Raises ValueError for a
        sequence longer than the context, and places that are not one for each token.
        """
        c, seq = self.config, tokens.shape[1]
        check_length(seq, c.context)
        check_places(tokens, segment_ids=segment_ids, positions=positions)
        at = jnp.arange(seq)[None, :] if positions is None else positions
        within = None if segment_ids is None else (segment_ids, segment_ids)
        keys_at = at if present is None else jnp.where(present > 0, at, -1)
        if c.padding_token is not None:
            real = (tokens != c.padding_token).astype(jnp.int32)
            count = jnp.cumsum(real, axis=1) if positions is None else positions + 1
            place = self.positions(count * real + c.padding_token)
        else:
            place = self.positions.embedding[None, :seq].astype(c.dtype) if positions is None else self.positions(positions)
        kind = self.segments.embedding[None, :1].astype(c.dtype) if segments is None else self.segments(segments)
        first, keys = None, None
        if key is not None and c.stochastic:
            first, rest = jax.random.split(key)
            keys = jax.random.split(rest, c.layers)
        x = drop(self.norm(self.tokens(tokens) + place + kind), c.dropout, first)
        body = lambda block, x, key: (block(x, at, keys_at, key, within), None)
        x, _ = through(self.blocks, x, keys, body, layers=c.layers, remat=c.remat, scan=c.scan)
        act = ACTIVATIONS[c.activation if c.head_activation is None else c.head_activation]
        x = times(self.head_norm(act(self.head(x))), c.logits_scale)
        if self.out is not None:
            return self.out(x).astype(jnp.float32)
        return self.tokens.attend(x).astype(jnp.float32) + self.head_bias[...].astype(jnp.float32)[None, None, :]
