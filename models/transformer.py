"""The decoder-only transformer that GPT-2 to Mixtral are cases of: `Decoder(config, rngs=nnx.Rngs(seed))(tokens)` gives float32 logits.

A family (`gpt2.py`, `llama.py`, ...) is a subclass of `DecoderConfig` with its own defaults. Layers are stacked on a leading axis and
applied by `lax.scan`. Whole sequences, prompts and single steps are one block with keys from different places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from .attention import Attention, Bias, Segments, attend
from .config import ModelConfig
from .experts import Experts, load_balance
from .layers import MLP, drop, linear, norm, normal, split_keys, stack, through, times
from .positions import Rotary, alibi_slopes, rotate

Cache = dict[str, Any]
"""k, v: [layers, batch, slots, kv_heads, head_width]; position: int32 [batch, slots], of the token in each slot, -1 where there is none;
length: int32 [batch], tokens so far."""
Store = Callable[[Array, Array, Array], Array]
"""(leaf [batch, slots, ...], new [batch, ...], length int32 [batch]) -> leaf with the new entry of each sequence in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """Of a decoder; GPT-2's as it stands."""

    kv_heads: int = 0  # heads of keys and values; 0: as many as heads
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    positions: Literal["learned", "rotary", "alibi"] = "learned"
    rotary: Rotary | None = None  # None with rotary positions: the whole head, base 10,000
    alibi_bias_max: float = 8.0
    alibi_rounded: bool = False  # what ALiBi adds is rounded to bfloat16, and scaled like the scores (Falcon)
    parallel: bool = False  # attention and MLP side by side on the same input, rather than one after the other
    parallel_norms: int = 1  # norms of a parallel block: one for both, or one each
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = False
    window: int | None = None  # tokens that a query sees, itself included
    attention_scale: float | None = None  # None: head_width ** -0.5
    scale_by_layer: bool = False  # scores of layer i (from 0) divided by i + 1, too
    clip_qkv: float | None = None  # queries, keys and values are held within this of 0
    experts: int = 0  # a mixture of so many MLPs; 0: one MLP
    experts_per_token: int = 2
    capacity_factor: float | None = None  # of a mixture; None: dropless
    balance_weight: float = 0.0  # of the load-balancing loss in training
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_scale: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill("kv_heads", self.heads)
        self._at_least_one("kv_heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        self._one_of("norm", ("layer", "rms"))
        self._one_of("positions", ("learned", "rotary", "alibi"))
        if self.positions == "rotary":
            self._fill("rotary", Rotary(width=self.head_width))
            assert self.rotary is not None
            if self.rotary.width > self.head_width:
                raise ValueError(f"rotary.width={self.rotary.width}: a head has only head_width={self.head_width} features")
        elif self.rotary is not None:
            raise ValueError(f"rotary={self.rotary} with positions={self.positions!r}: give positions='rotary', or leave it out")
        if self.parallel_norms not in (1, 2):
            raise ValueError(f"parallel_norms={self.parallel_norms}: give 1, for both branches, or 2, one each")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: a query sees itself at least, so give 1 or more")
        if self.clip_qkv is not None and not self.clip_qkv > 0:
            raise ValueError(f"clip_qkv={self.clip_qkv}: give a bound above 0, or None")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token={self.experts_per_token}: give 1 to experts={self.experts}")
        if self.experts and (self.mlp_bias or not self.gated):
            raise ValueError(f"experts={self.experts} are gated MLPs without biases: give gated=True, mlp_bias=False")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor={self.capacity_factor}: give a number above 0, or None for no bound")
        self._probability("embedding_dropout", "attention_dropout")


class Block(nnx.Module):
    """Attention and an MLP (or a mixture of them), each after a norm and added to the residual stream."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        scale = c.init_scale * c.hidden_scale
        last = scale * (2 * c.layers) ** -0.5
        self.config = c
        make_norm = lambda: norm(c.norm, c.width, c.norm_epsilon, bias=c.norm_bias, **kinds)
        self.norm1 = make_norm()
        self.norm2 = make_norm() if not c.parallel or c.parallel_norms == 2 else None
        self.attention = Attention(
            c.width, c.heads, c.kv_heads, c.head_width, qkv_bias=c.qkv_bias, out_bias=c.out_bias, scale=scale, out_scale=last, **kinds
        )  # fmt: skip
        shared: dict[str, Any] = {"scale": scale, "out_scale": last, **kinds}
        if c.experts:
            self.experts = Experts(
                c.width, c.ffn_width, c.experts, c.experts_per_token, c.activation, capacity_factor=c.capacity_factor,
                router_scale=scale * c.hidden_scale, **shared,
            )  # fmt: skip
        else:
            self.mlp = MLP(c.width, c.ffn_width, c.activation, gated=c.gated, bias=c.mlp_bias, **shared)

    def __call__(
        self, x: Float[Array, "batch seq width"], at: Int[Array, "rows seq"], keys_from: Callable[..., tuple[Array, Array, Array]],
        layer: Any, key: Any, present: Any = None, segments: Segments | None = None,
    ) -> tuple[Float[Array, "batch seq width"], tuple[Any, Any, Any]]:  # fmt: skip
        """The stream after this block, and its keys, values and expert loads. `keys_from(k, v)` says which keys are attended to, and
        where these stand."""
        c = self.config
        of_attention, of_weights, of_mlp = split_keys(key, 3)
        h = self.norm1(x)
        q, (k, v) = self.attention.q(h), self.attention.keys_values(h)
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(y, -c.clip_qkv, c.clip_qkv) for y in (q, k, v))
        if c.rotary is not None:
            q, k = rotate(q, at, c.rotary), rotate(k, at, c.rotary)
        k, v, keys_at = keys_from(k, v)
        scale = c.scores_scale
        mixed = attend(
            q, k, v, at, keys_at, scale=scale / (layer + 1) if c.scale_by_layer else scale, causal=True, window=c.window,
            bias=alibi(c), segments=segments, dropout=c.attention_dropout, key=of_weights, query_block=c.query_block,
        )  # fmt: skip
        attended = drop(self.attention.out(mixed), c.dropout, of_attention)
        stream = x if c.parallel else x + attended
        inner = h if self.norm2 is None else self.norm2(stream)
        done, load = self.experts(inner, present) if c.experts else (self.mlp(inner), None)
        stream = stream + drop(done, c.dropout, of_mlp)
        return (stream + attended if c.parallel else stream), (k, v, load)


def alibi(c: DecoderConfig) -> Bias | None:
    """What ALiBi adds to the scores, up to a constant for each query; None without it."""
    if c.positions != "alibi":
        return None
    slopes = alibi_slopes(c.heads, c.alibi_bias_max)[None, :, None, None]
    if c.alibi_rounded:
        coarse = jnp.asarray(slopes.astype(jnp.bfloat16).astype(np.float32))
        # said to XLA, which may leave out what a cast there and back would round
        rounded = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return lambda queries, keys: rounded(coarse * rounded(keys[:, None, None, :].astype(jnp.float32))) * c.base_head_width**-0.5
    return lambda queries, keys: jnp.asarray(slopes) * keys[:, None, None, :].astype(jnp.float32)


def check_length(seq: int, context: int, what: str = "tokens") -> None:
    """Raises ValueError where a sequence is longer than the context."""
    if seq > context:
        raise ValueError(f"{what} has sequence length {seq}, the model's context is {context}: crop the input or raise `context`")


def check_places(tokens: Array, **places: Array | None) -> None:
    """Raises ValueError for segment ids or positions that are not one for each token."""
    for name, array in places.items():
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{name} has shape {array.shape}, and there are tokens of {tokens.shape}: give one for each token")


def last_of(x: Float[Array, "batch seq width"], lengths: Int[Array, " batch"]) -> Float[Array, "batch width"]:
    """The entry of each sequence's last token."""
    at = (jnp.arange(x.shape[1])[None, :] == (lengths - 1)[:, None])[:, :, None]
    return jnp.where(at, x, 0).sum(axis=1)


def store(leaf: Array, new: Array, length: Int[Array, " batch"]) -> Array:
    """The new entry of each sequence in the slot of its position: `Store` as plain JAX has it."""
    here = jnp.arange(leaf.shape[1])[None, :] == length[:, None]
    here = here.reshape(*here.shape, *(1,) * (leaf.ndim - 2))
    return jnp.where(here, new[:, None].astype(leaf.dtype), leaf)


class Decoder(nnx.Module):
    """Token table, blocks, a last norm, and a head."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.config = c
        self.tokens = nnx.Embed(c.vocab_size, c.width, embedding_init=normal(c.init_scale), **kinds)
        learned = lambda: nnx.Embed(c.context, c.width, embedding_init=normal(c.init_scale / 2), **kinds)
        self.positions = learned() if c.positions == "learned" else None
        self.norm = norm(c.norm, c.width, c.norm_epsilon, bias=c.norm_bias, **kinds)
        self.head = None if c.tied else linear(c.width, c.vocab_size, bias=c.head_bias, scale=c.init_scale, **kinds)
        self.head_bias = nnx.Param(jnp.zeros(c.vocab_size, c.param_dtype)) if c.tied and c.head_bias else None
        self.blocks = stack(lambda rngs: Block(c, rngs=rngs), c.layers, rngs)

    def __call__(
        self, tokens: Int[Array, "batch seq"], key: Key[Array, ""] | None = None, *, segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "batch seq"] | None = None,
    ) -> Float32[Array, "batch seq vocab"]:  # fmt: skip
        """Logits of the next token at every position. A typed PRNG key turns dropout on.

        segment_ids: which document of its row each token belongs to, from 1, and 0 for padding; a token sees none of another document.
        None: a row is one document. positions: from 0 in each document; None: from 0 in each row.

        Raises ValueError for a sequence longer than the context, and places that are not one for each token.
        """
        return self.logits(self.features(tokens, key, segment_ids=segment_ids, positions=positions)[0])

    def with_balance(
        self, tokens: Int[Array, "batch seq"], key: Key[Array, ""] | None = None, *, present: Int[Array, "batch seq"] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None, positions: Int[Array, "batch seq"] | None = None,
    ) -> tuple[Float32[Array, "batch seq vocab"], Float32[Array, ""]]:  # fmt: skip
        """Logits, and the load-balancing loss of a mixture of experts, as yet without its weight; 0 without one.

        present: 1 for tokens that count in that loss, 0 for padding; None: all that have a segment.
        """
        x, loads = self.features(tokens, key, present, segment_ids=segment_ids, positions=positions)
        return self.logits(x), jnp.zeros(()) if loads is None else load_balance(loads)

    def logits(self, x: Float[Array, "*batch width"]) -> Float32[Array, "*batch vocab"]:
        x = times(x, self.config.logits_scale)
        logits = (self.tokens.attend(x) if self.head is None else self.head(x)).astype(jnp.float32)
        if self.head_bias is None:
            return logits
        return logits + self.head_bias[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))

    def features(
        self, tokens: Int[Array, "batch seq"], key: Key[Array, ""] | None = None, present: Int[Array, "batch seq"] | None = None, *,
        segment_ids: Int[Array, "batch seq"] | None = None, positions: Int[Array, "batch seq"] | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """What the head reads, and the experts' loads (None without experts)."""
        check_length(tokens.shape[1], self.config.context)
        check_places(tokens, segment_ids=segment_ids, positions=positions)
        at = jnp.arange(tokens.shape[1])[None, :] if positions is None else positions
        segments = None if segment_ids is None else (segment_ids, segment_ids)
        if self.config.experts and present is None and segment_ids is not None:
            present = (segment_ids > 0).astype(jnp.int32)
        x, (_, _, loads) = self._through(
            tokens, at, lambda own: lambda k, v: (k, v, at), None, key, present, keep=False, segments=segments, counted=positions is None
        )
        return x, loads

    def new_cache(self, batch: int, slots: int) -> Cache:
        """An empty cache. Raises ValueError for more slots than the context."""
        c = self.config
        check_length(slots, c.context, "the cache")
        kv = jnp.zeros((c.layers, batch, slots, c.kv_heads, c.head_width), c.dtype)
        return {"k": kv, "v": kv, "position": jnp.full((batch, slots), -1, jnp.int32), "length": jnp.zeros(batch, jnp.int32)}

    def prefill(
        self, tokens: Int[Array, "batch seq"], lengths: Int[Array, " batch"], slots: int
    ) -> tuple[Float32[Array, "batch vocab"], Cache]:
        """Logits of the token after each prompt, and a cache of `slots` tokens that holds the prompts.

        tokens: prompts, padded at the end to one length with any token of the vocabulary. lengths: tokens of each prompt, at least 1.
        Raises ValueError where seq is longer than `slots`, or those than the context.
        """
        seq, c = tokens.shape[1], self.config
        check_length(slots, c.context, "the cache")
        if seq > slots:
            raise ValueError(f"tokens has sequence length {seq}, the cache {slots} slots: give at least as many slots")
        at = jnp.arange(seq)[None, :]
        present = (at < lengths[:, None]).astype(jnp.int32)
        x, (k, v, _) = self._through(tokens, at, lambda own: lambda k, v: (k, v, at), None, None, present, keep=True, counted=True)
        room = lambda kv: jnp.pad(kv, ((0, 0), (0, 0), (0, slots - seq), (0, 0), (0, 0)))
        place = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None, :], (tokens.shape[0], slots))
        place = jnp.where(place < lengths[:, None], place, -1)
        cache = {"k": room(k), "v": room(v), "position": place, "length": lengths.astype(jnp.int32)}
        return self.logits(last_of(x, lengths)), cache

    def decode_step(self, tokens: Int[Array, " batch"], cache: Cache, store: Store = store) -> tuple[Float32[Array, "batch vocab"], Cache]:
        """Logits of the token after this one, and the cache with this one in it. `store` puts it there.

        A sequence whose cache is full loses the new token's keys (no slot has its position), so stop before that.
        """
        length = cache["length"]
        at = length[:, None]
        position = store(cache["position"], length, length)

        def keys_from(own: Any) -> Callable[..., tuple[Array, Array, Array]]:
            return lambda k, v: (store(own[0], k[:, 0], length), store(own[1], v[:, 0], length), position)

        x, (k, v, _) = self._through(tokens[:, None], at, keys_from, (cache["k"], cache["v"]), None, None, keep=True)
        return self.logits(x[:, 0]), {"k": k, "v": v, "position": position, "length": length + 1}

    def _through(
        self, tokens: Array, at: Array, keys_from: Callable[[Any], Any], caches: Any, key: Any, present: Any, *, keep: bool,
        segments: Segments | None = None, counted: bool = False,
    ) -> tuple[Array, tuple[Any, Any, Any]]:  # fmt: skip
        """The stream after the last norm, and of every layer keys, values (where kept) and loads. counted: `at` counts from 0."""
        c = self.config
        first, keys = None, None
        if key is not None and c.stochastic:
            first, rest = jax.random.split(key)
            keys = jax.random.split(rest, c.layers)
        x = self.tokens(tokens)
        if self.positions is not None:
            # a slice of the table is no gather
            x = x + (self.positions.embedding[None, : at.shape[1]].astype(c.dtype) if counted else self.positions(at))
        x = drop(x, c.embedding_dropout, first)

        def body(block: Block, x: Array, scanned: Any) -> tuple[Array, Any]:
            own, key, layer = scanned
            x, (k, v, load) = block(x, at, keys_from(own), layer, key, present, segments)
            return x, (k if keep else None, v if keep else None, load)

        layers = jnp.arange(c.layers, dtype=jnp.float32) if c.scale_by_layer else None
        x, kept = through(self.blocks, x, (caches, keys, layers), body, layers=c.layers, remat=c.remat, scan=c.scan)
        return self.norm(x), kept
