"""LLaMA 1, 2 and 3 (Touvron et al. 2023 a, b; Dubey et al. 2024): RMS norms, rotary positions, a gated MLP, grouped keys, no biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, rope_scaling, written
from .positions import RopeScaling, Rotary
from .tables import Entry, dense, plain, same
from .transformer import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    kv_heads: int = 4
    ffn_width: int = 384
    norm: Any = "rms"
    norm_epsilon: float = 1e-6
    positions: Any = "rotary"
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


def _size(
    layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int, base: float = 1e4, **other: Any
) -> LlamaConfig:
    rotary = Rotary(width=width // heads, base=base, scaling=other.pop("scaling", None))
    ends = {"bos_token": 1, "eos_tokens": (2,)} if vocab < 100_000 else {"bos_token": 128_000, "eos_tokens": (128_001,)}
    return LlamaConfig(**{
        **dict(layers=layers, width=width, heads=heads, kv_heads=kv_heads, ffn_width=ffn, vocab_size=vocab, context=context),
        **dict(rotary=rotary, remat="full", norm_epsilon=1e-5), **ends, **other,
    })  # fmt: skip


def _longer(factor: float) -> RopeScaling:
    return RopeScaling(kind="llama3", factor=factor, original_context=8192)


PRESETS = {
    "tiny": LlamaConfig(),
    # Touvron et al. 2023 (a), table 2
    "7b": _size(32, 4096, 32, 32, 11008, 32000, 2048, norm_epsilon=1e-6),
    "13b": _size(40, 5120, 40, 40, 13824, 32000, 2048, norm_epsilon=1e-6),
    "33b": _size(60, 6656, 52, 52, 17920, 32000, 2048, norm_epsilon=1e-6),
    "65b": _size(80, 8192, 64, 64, 22016, 32000, 2048),
    # Touvron et al. 2023 (b)
    "2-7b": _size(32, 4096, 32, 32, 11008, 32000, 4096),
    "2-13b": _size(40, 5120, 40, 40, 13824, 32000, 4096),
    "2-70b": _size(80, 8192, 64, 8, 28672, 32000, 4096),
    # Dubey et al. 2024, table 3, and model cards
    "3-8b": _size(32, 4096, 32, 8, 14336, 128256, 8192, 5e5),
    "3-70b": _size(80, 8192, 64, 8, 28672, 128256, 8192, 5e5),
    "3.1-8b": _size(32, 4096, 32, 8, 14336, 128256, 131072, 5e5, scaling=_longer(8)),
    "3.1-70b": _size(80, 8192, 64, 8, 28672, 128256, 131072, 5e5, scaling=_longer(8)),
    "3.1-405b": _size(126, 16384, 128, 8, 53248, 128256, 131072, 5e5, scaling=_longer(8)),
    "3.2-1b": _size(16, 2048, 32, 8, 8192, 128256, 131072, 5e5, scaling=_longer(32), tied=True),
    "3.2-3b": _size(28, 3072, 24, 8, 8192, 128256, 131072, 5e5, scaling=_longer(32), tied=True),
}


def attention_table(c: Any) -> list[Entry]:
    """All but the MLP, which Mistral and Mixtral share."""
    layer, block = "model.layers.{layer}.", "blocks/"
    entries = [same("model.embed_tokens.weight", "tokens/embedding"), same("model.norm.weight", "norm/scale")]
    entries += [same(layer + "input_layernorm.weight", "blocks/norm1/scale")]
    entries += [same(layer + "post_attention_layernorm.weight", "blocks/norm2/scale")]
    for x, ins in {"q": 1, "k": 1, "v": 1, "o": 2}.items():
        ours = f"{block}attention/{'out' if x == 'o' else x}/"
        entries += [dense(f"{layer}self_attn.{x}_proj.weight", ours + "kernel", ins)]
        entries += [plain(f"{layer}self_attn.{x}_proj.bias", ours + "bias")] if c.qkv_bias else []
    return [*entries, *([] if c.tied else [dense("lm_head.weight", "head/kernel")])]


def table(c: Any) -> tuple[Entry, ...]:
    entries = attention_table(c)
    for x in ("gate", "up", "down"):
        theirs = f"model.layers.{{layer}}.mlp.{x}_proj."
        entries += [dense(theirs + "weight", f"blocks/mlp/{x}/kernel")]
        entries += [plain(theirs + "bias", f"blocks/mlp/{x}/bias")] if c.mlp_bias else []
    return tuple(entries)


def read(s: Switches, *, base: float = 10_000.0, epsilon: float = 1e-6, kv_heads: int = 0, context: int | None = None) -> dict[str, Any]:
    """Fields that Llama, Mistral and Mixtral have in common. context: where config.json does not say it; None: it must."""
    width, heads = s.need("hidden_size"), s.need("num_attention_heads")
    head_width = s.get("head_dim", width // heads)
    return dict(
        vocab_size=s.need("vocab_size"), context=s.need("max_position_embeddings", context), layers=s.need("num_hidden_layers"),
        width=width, heads=heads, kv_heads=s.need("num_key_value_heads", kv_heads or heads), head_width=head_width,
        ffn_width=s.need("intermediate_size"), norm_epsilon=s.get("rms_norm_eps", epsilon), activation=s.activation("hidden_act", "silu"),
        tied=s.get("tie_word_embeddings", False), attention_dropout=float(s.get("attention_dropout", 0.0)),
        rotary=s.rotary(head_width, base=base), **s.tokens(),
    )  # fmt: skip


def values(c: Any) -> dict[str, Any]:
    """Switches that Llama, Mistral and Mixtral have in common."""
    assert c.rotary is not None
    return {
        "vocab_size": c.vocab_size, "max_position_embeddings": c.context, "num_hidden_layers": c.layers, "hidden_size": c.width,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_width, "intermediate_size": c.ffn_width,
        "rms_norm_eps": c.norm_epsilon, "hidden_act": NAMES_OF_ACTIVATIONS[c.activation], "tie_word_embeddings": c.tied,
        "attention_dropout": c.attention_dropout, "rope_theta": c.rotary.base, "rope_scaling": rope_scaling(c.rotary),
    }  # fmt: skip


def from_hf(config: Mapping[str, Any]) -> LlamaConfig:
    s = Switches("llama", config)
    s.get("pretraining_tp")  # a way to split products, of no effect on what they are
    bias = s.get("attention_bias", False)
    context = s.whole("max_sequence_length")  # the name in the first conversions
    made = dict(read(s, context=context), qkv_bias=bias, out_bias=bias, mlp_bias=s.get("mlp_bias", False))
    s.done()
    return LlamaConfig(**made)


def to_hf(c: LlamaConfig) -> dict[str, Any]:
    made = written("llama", "LlamaForCausalLM", c, {**values(c), "attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias})
    return checked(from_hf, c, made)


def tie(c: Any) -> Mapping[str, str]:
    return {"lm_head.weight": "model.embed_tokens.weight"} if c.tied else {}


FAMILY = Family(
    name="llama", model_type="llama", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf, ties=tie,
    prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
