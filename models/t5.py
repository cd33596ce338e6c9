"""T5 and FLAN-T5 (Raffel et al. 2020; Chung et al. 2022): an encoder and a decoder that looks at it, with relative positions.

Scores are not scaled, norms are RMS norms, nothing has a bias. The tables of relative positions belong to the first layers and serve all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from .attention import Attention, Bias, Segments, attend
from .config import ModelConfig
from .family import Family
from .hf import ACTIVATIONS_OF, NAMES_OF_ACTIVATIONS, Switches, checked, written
from .layers import MLP, drop, linear, norm, normal, split_keys, stack, through, times
from .positions import relative_bucket
from .tables import Entry, dense, same
from .transformer import Cache, Store, check_length, check_places, store


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(ModelConfig):
    """Of both halves. `context` bounds both sequences, though relative positions have no end; `layers` are the encoder's. The head of T5
    1.1 and FLAN is not tied."""

    vocab_size: int = 384  # 256 bytes, and what stands for the spans that were cut out
    context: int = 512
    decoder_layers: int = 0  # 0: as many
    norm_epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False  # T5 1.1 and FLAN: gelu_tanh, gated
    buckets: int = 32
    max_distance: int = 128
    scale_logits: bool = True  # what the head reads is multiplied by width ** -0.5 (where it is the table)
    start_token: int = 0  # before the first token of the answer
    eos_tokens: tuple[int, ...] = (1,)
    pad_token: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill("decoder_layers", self.layers)
        self._at_least_one("decoder_layers")
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(f"buckets={self.buckets}, max_distance={self.max_distance}: give a multiple of 4, and more than half of it")

    @property
    def scores_scale(self) -> float:
        return self.base_head_width / self.head_width

    @property
    def logits_scale(self) -> float:
        return super().logits_scale * (self.base_width**-0.5 if self.scale_logits else 1.0)


class T5Block(nnx.Module):
    """Attention to its own sequence, in the decoder also to the encoder's, and an MLP, each after a norm and added to the stream."""

    def __init__(self, c: T5Config, *, decoder: bool, rngs: nnx.Rngs):
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        inner = (c.heads * c.head_width) ** -0.5
        attention = lambda: Attention(
            c.width, c.heads, c.heads, c.head_width, qkv_bias=False, out_bias=False, scale=c.width**-0.5, out_scale=inner,
            q_scale=(c.width * c.base_head_width) ** -0.5, **kinds,
        )  # fmt: skip
        make_norm = lambda: norm("rms", c.width, c.norm_epsilon, bias=False, **kinds)
        self.config = c
        self.norm1, self.norm2 = make_norm(), make_norm()
        self.attention = attention()
        self.cross_norm = make_norm() if decoder else None
        self.cross = attention() if decoder else None
        scales: dict[str, Any] = {"scale": c.width**-0.5, "out_scale": c.ffn_width**-0.5}
        self.mlp = MLP(c.width, c.ffn_width, c.activation, gated=c.gated, bias=False, **scales, **kinds)

    def __call__(
        self, x: Float[Array, "batch seq width"], at: Int[Array, "rows seq"], keys_from: Callable[..., tuple[Array, Array, Array]],
        bias: Bias, causal: bool, source: tuple[Array, Array, Array] | None, key: Any, own: Segments | None = None,
        across: Segments | None = None,
    ) -> tuple[Float[Array, "batch seq width"], tuple[Array, Array]]:  # fmt: skip
        """source: keys and values of the encoder for this layer, and their positions. own, across: segments of the two attentions."""
        c = self.config
        keys = split_keys(key, 5)
        h = self.norm1(x)
        k, v, keys_at = keys_from(*self.attention.keys_values(h))
        how: dict[str, Any] = {"scale": c.scores_scale, "dropout": c.dropout, "query_block": c.query_block}
        mixed = attend(self.attention.q(h), k, v, at, keys_at, causal=causal, bias=bias, segments=own, key=keys[0], **how)
        x = x + drop(self.attention.out(mixed), c.dropout, keys[1])
        if self.cross is not None and self.cross_norm is not None and source is not None:
            q = self.cross.q(self.cross_norm(x))
            mixed = attend(q, *source[:2], at, source[2], causal=False, segments=across, key=keys[2], **how)
            x = x + drop(self.cross.out(mixed), c.dropout, keys[3])
        return x + drop(self.mlp(self.norm2(x)), c.dropout, keys[4]), (k, v)


class Half(nnx.Module):
    """Blocks, their table of relative positions, and the last norm."""

    def __init__(self, c: T5Config, layers: int, *, decoder: bool, rngs: nnx.Rngs):
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.config, self.layers, self.causal = c, layers, decoder
        self.relative = nnx.Embed(c.buckets, c.heads, embedding_init=normal(c.base_width**-0.5), **kinds)
        self.blocks = stack(lambda rngs: T5Block(c, decoder=decoder, rngs=rngs), layers, rngs)
        self.norm = norm("rms", c.width, c.norm_epsilon, bias=False, **kinds)

    def bias(self, queries: Int[Array, "rows seq"], keys: Int[Array, "rows keys"]) -> Float[Array, "rows heads seq keys"]:
        c = self.config
        distance = keys[:, None, :] - queries[:, :, None]
        bucket = relative_bucket(distance, bidirectional=not self.causal, buckets=c.buckets, max_distance=c.max_distance)
        # a product with a small table, for which rows need not be gathered one by one
        picked = jax.nn.one_hot(bucket, c.buckets, dtype=jnp.float32) @ self.relative.embedding[...].astype(jnp.float32)
        return jnp.moveaxis(picked, -1, 1)

    def __call__(
        self, x: Float[Array, "batch seq width"], at: Int[Array, "rows seq"], keys_from: Callable[[Any], Any], caches: Any, source: Any,
        source_at: Any, key: Any, own: Segments | None = None, across: Segments | None = None,
    ) -> tuple[Float[Array, "batch seq width"], tuple[Array, Array]]:  # fmt: skip
        c = self.config
        keys = None if key is None or not c.stochastic else jax.random.split(key, self.layers + 2)
        x = drop(x, c.dropout, None if keys is None else keys[0])

        def body(block: T5Block, x: Array, scanned: Any) -> tuple[Array, Any]:
            cache, of_source, key = scanned
            there = None if of_source is None else (*of_source, source_at)
            return block(x, at, keys_from(cache), self.bias, self.causal, there, key, own, across)

        scanned = (caches, source, None if keys is None else keys[2:])
        x, kept = through(self.blocks, x, scanned, body, layers=self.layers, remat=c.remat, scan=c.scan)
        return drop(self.norm(x), c.dropout, None if keys is None else keys[1]), kept


class T5(nnx.Module):
    """`T5(config, rngs=nnx.Rngs(seed))(tokens, answer)` gives float32 logits of the answer's next token at each of its places."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        kinds: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.config = c
        self.tokens = nnx.Embed(c.vocab_size, c.width, embedding_init=normal(1.0), **kinds)
        self.encoder = Half(c, c.layers, decoder=False, rngs=rngs)
        self.decoder = Half(c, c.decoder_layers, decoder=True, rngs=rngs)
        self.head = None if c.tied else linear(c.width, c.vocab_size, bias=False, scale=c.base_width**-0.5, **kinds)

    def __call__(
        self, tokens: Int[Array, "batch seq"], answer: Int[Array, "batch answer"], key: Key[Array, ""] | None = None, *,
        present: Int[Array, "batch seq"] | None = None, segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "batch seq"] | None = None, answer_segment_ids: Int[Array, "batch answer"] | None = None,
        answer_positions: Int[Array, "batch answer"] | None = None,
    ) -> Float32[Array, "batch answer vocab"]:  # fmt: skip
        """answer: begins with the start token. present: 1 for tokens, 0 for padding; None: all are there. A typed PRNG key turns dropout
        on. segment_ids and positions: as in `Decoder.__call__`, of both sequences; an answer reads what has its own number.

        Raises ValueError for a sequence longer than the context, places that are not one for each token, and segments of one sequence only.
        """
        if (segment_ids is None) != (answer_segment_ids is None):
            raise ValueError("segment_ids of one sequence only: an answer reads what has its number, so give answer_segment_ids, too")
        check_places(tokens, segment_ids=segment_ids, positions=positions)
        check_places(answer, answer_segment_ids=answer_segment_ids, answer_positions=answer_positions)
        pair = lambda queries, keys: None if queries is None or keys is None else (queries, keys)
        of_encoder, of_decoder = split_keys(key, 2)
        check_length(answer.shape[1], self.config.context, "answer")
        source, source_at = self._source(tokens, present, of_encoder, pair(segment_ids, segment_ids), positions)
        at = jnp.arange(answer.shape[1])[None, :] if answer_positions is None else answer_positions
        own = lambda cache: lambda k, v: (k, v, at)
        segments = pair(answer_segment_ids, answer_segment_ids), pair(answer_segment_ids, segment_ids)
        x, _ = self.decoder(self.tokens(answer), at, own, None, source, source_at, of_decoder, *segments)
        return self._logits(x)

    def prefill(
        self, tokens: Int[Array, "batch seq"], lengths: Int[Array, " batch"], slots: int
    ) -> tuple[Float32[Array, "batch vocab"], Cache]:
        """Logits of the answer's first token, and a cache for `slots` tokens of it, the start token among them.

        tokens: what is read, padded at the end; lengths: tokens of each. The cache also holds the encoder's keys and values.
        """
        c, batch = self.config, tokens.shape[0]
        check_length(slots, c.context, "the cache")
        present = (jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]).astype(jnp.int32)
        source, source_at = self._source(tokens, present, None)
        empty = jnp.zeros((c.decoder_layers, batch, slots, c.heads, c.head_width), c.dtype)
        cache: Cache = {
            "k": empty, "v": empty, "position": jnp.full((batch, slots), -1, jnp.int32), "length": jnp.zeros(batch, jnp.int32),
            "source_k": source[0], "source_v": source[1], "source_position": jnp.broadcast_to(source_at, tokens.shape),
        }  # fmt: skip
        return self.decode_step(jnp.full(batch, c.start_token, jnp.int32), cache)

    def decode_step(self, tokens: Int[Array, " batch"], cache: Cache, store: Store = store) -> tuple[Float32[Array, "batch vocab"], Cache]:
        """As `Decoder.decode_step`."""
        length = cache["length"]
        position = store(cache["position"], length, length)

        def keys_from(own: Any) -> Callable[..., tuple[Array, Array, Array]]:
            return lambda k, v: (store(own[0], k[:, 0], length), store(own[1], v[:, 0], length), position)

        source = (cache["source_k"], cache["source_v"])
        x, (k, v) = self.decoder(
            self.tokens(tokens[:, None]), length[:, None], keys_from, (cache["k"], cache["v"]), source, cache["source_position"], None
        )  # fmt: skip
        return self._logits(x)[:, 0], {**cache, "k": k, "v": v, "position": position, "length": length + 1}

    def _source(
        self, tokens: Array, present: Array | None, key: Any, segments: Segments | None = None, positions: Array | None = None
    ) -> tuple[tuple[Array, Array], Array]:
        """The encoder's keys and values for each layer of the decoder, and their positions."""
        check_length(tokens.shape[1], self.config.context)
        at = jnp.arange(tokens.shape[1])[None, :] if positions is None else positions
        keys_at = at if present is None else jnp.where(present > 0, at, -1)
        own = lambda cache: lambda k, v: (k, v, keys_at)
        read, _ = self.encoder(self.tokens(tokens), at, own, None, None, None, key, segments)
        graph, params = nnx.split(self.decoder.blocks)
        # layer by layer inside a scan, as everything that has layers
        of_layer = lambda carry, params: (carry, nnx.merge(graph, params).cross.keys_values(read))
        return jax.lax.scan(of_layer, None, params)[1], keys_at

    def _logits(self, x: Float[Array, "batch seq width"]) -> Float32[Array, "batch seq vocab"]:
        x = times(x, self.config.logits_scale)
        return (self.tokens.attend(x) if self.head is None else self.head(x)).astype(jnp.float32)


# ---- the family ------------------------------------------------------------------------------------------------------
def _size(layers: int, width: int, heads: int, ffn: int, **other: Any) -> T5Config:
    given = dict(vocab_size=32128, layers=layers, width=width, heads=heads, head_width=64, ffn_width=ffn, dropout=0.1, remat="full")
    return T5Config(**{**given, **other})


_NEWER: dict[str, Any] = {"activation": "gelu_tanh", "gated": True, "tied": False, "scale_logits": False}

PRESETS = {
    "tiny": T5Config(),
    # Raffel et al. 2020, section 3.7.2; 3B and 11B have heads of 128
    "small": _size(6, 512, 8, 2048),
    "base": _size(12, 768, 12, 3072),
    "large": _size(24, 1024, 16, 4096),
    "3b": _size(24, 1024, 32, 16384, head_width=128),
    "11b": _size(24, 1024, 128, 65536, head_width=128),
    # Chung et al. 2022, which have the sizes of T5 1.1
    "flan-small": _size(8, 512, 6, 1024, **_NEWER),
    "flan-base": _size(12, 768, 12, 2048, **_NEWER),
    "flan-large": _size(24, 1024, 16, 2816, **_NEWER),
    "flan-xl": _size(24, 2048, 32, 5120, **_NEWER),
    "flan-xxl": _size(24, 4096, 64, 10240, **_NEWER),
}


def table(c: Any) -> tuple[Entry, ...]:
    entries = [same("shared.weight", "tokens/embedding")]
    for half in ("encoder", "decoder"):
        layer, block, last = half + ".block.{layer}.layer.", half + "/blocks/", 1 if half == "encoder" else 2
        parts = {"0.SelfAttention.": "attention", **({"1.EncDecAttention.": "cross"} if half == "decoder" else {})}
        for theirs, ours in parts.items():
            entries += [dense(f"{layer}{theirs}{x}.weight", f"{block}{ours}/{x}/kernel") for x in "qkv"]
            entries += [dense(f"{layer}{theirs}o.weight", f"{block}{ours}/out/kernel", ins=2)]
        names = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if c.gated else {"wi": "up", "wo": "down"}
        entries += [dense(f"{layer}{last}.DenseReluDense.{theirs}.weight", f"{block}mlp/{ours}/kernel") for theirs, ours in names.items()]
        norms = {"0": "norm1", str(last): "norm2", **({"1": "cross_norm"} if half == "decoder" else {})}
        entries += [same(f"{layer}{theirs}.layer_norm.weight", f"{block}{ours}/scale") for theirs, ours in norms.items()]
        entries += [same(half + ".final_layer_norm.weight", half + "/norm/scale")]
        entries += [same(f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", half + "/relative/embedding")]
    return (*entries, *([] if c.tied else [dense("lm_head.weight", "head/kernel")]))


def from_hf(config: Mapping[str, Any]) -> T5Config:
    """`tie_word_embeddings` says whether the head is the table, and whether what it reads is scaled. Since version 5 of `transformers` it
    is always true, and `scale_decoder_outputs` says what it said before."""
    s = Switches("t5", config)
    s.only("is_encoder_decoder", True)
    s.only("is_decoder", False)
    act = str(s.get("feed_forward_proj", "relu"))
    gated, name = act.startswith("gated-"), act.removeprefix("gated-")
    for follows in ("dense_act_fn", "is_gated_act"):  # from the one above
        s.get(follows)
    s.only("feed_forward_proj", *(prefix + one for prefix in ("", "gated-") for one in ACTIVATIONS_OF))
    scaled = s.get("scale_decoder_outputs", s.get("tie_word_embeddings", True))
    tied = s.get("tie_word_embeddings", True) and scaled
    activation = "gelu_tanh" if act == "gated-gelu" else ACTIVATIONS_OF.get(name, "relu")
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.get("n_positions", 512), layers=s.need("num_layers"),
        decoder_layers=s.whole("num_decoder_layers") or 0, width=s.need("d_model"), heads=s.need("num_heads"), head_width=s.need("d_kv"),
        ffn_width=s.need("d_ff"), activation=activation, gated=gated,
        buckets=s.get("relative_attention_num_buckets", 32), max_distance=s.get("relative_attention_max_distance", 128),
        norm_epsilon=s.get("layer_norm_epsilon", 1e-6), tied=tied, scale_logits=scaled,
        dropout=s.get("dropout_rate", 0.1), start_token=s.get("decoder_start_token_id", 0), **s.tokens(),
    )  # fmt: skip
    s.done()
    return T5Config(**made)


def to_hf(c: T5Config) -> dict[str, Any]:
    act = "gelu" if c.gated and c.activation == "gelu_tanh" else NAMES_OF_ACTIVATIONS[c.activation]
    made = written("t5", "T5ForConditionalGeneration", c, {
        "vocab_size": c.vocab_size, "n_positions": c.context, "num_layers": c.layers, "num_decoder_layers": c.decoder_layers,
        "d_model": c.width, "num_heads": c.heads, "d_kv": c.head_width, "d_ff": c.ffn_width,
        "feed_forward_proj": ("gated-" if c.gated else "") + act,
        "relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.norm_epsilon, "tie_word_embeddings": c.tied, "dropout_rate": c.dropout, "is_encoder_decoder": True,
        "decoder_start_token_id": c.start_token,
    })  # fmt: skip
    return checked(from_hf, c, made)


_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")

FAMILY = Family(
    name="t5", model_type="t5", kind="encoder-decoder", module=T5, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: dict.fromkeys(_TABLES[: 3 if c.tied else 2], "shared.weight"),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)  # fmt: skip
