"""MPT (MosaicML 2023): ALiBi, layer norms without biases, no biases anywhere, the head tied to the token table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import Switches, checked, written
from .tables import Entry, beside, dense, same
from .transformer import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MPTConfig(DecoderConfig):
    norm_bias: bool = False
    positions: Any = "alibi"
    activation: str = "gelu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False


PRESETS = {
    "tiny": MPTConfig(),
    "7b": MPTConfig(vocab_size=50432, context=2048, layers=32, width=4096, heads=32, remat="full"),
    "30b": MPTConfig(vocab_size=50432, context=8192, layers=48, width=7168, heads=64, remat="full"),
}


def table(c: Any) -> tuple[Entry, ...]:
    layer, block = "transformer.blocks.{layer}.", "blocks/"
    return (
        same("transformer.wte.weight", "tokens/embedding"),
        same("transformer.norm_f.weight", "norm/scale"),
        same(layer + "norm_1.weight", block + "norm1/scale"),
        same(layer + "norm_2.weight", block + "norm2/scale"),
        beside(layer + "attn.Wqkv.weight", tuple(f"{block}attention/{x}/kernel" for x in "qkv"), transposed=True),
        dense(layer + "attn.out_proj.weight", block + "attention/out/kernel", ins=2),
        dense(layer + "ffn.up_proj.weight", block + "mlp/up/kernel"),
        dense(layer + "ffn.down_proj.weight", block + "mlp/down/kernel"),
        *([] if c.tied else [dense("lm_head.weight", "head/kernel")]),
    )


def from_hf(config: Mapping[str, Any]) -> MPTConfig:
    """What a released MPT has. Its own code knows more (`qk_ln`, learned positions), which no reference implements in `transformers`."""
    s = Switches("mpt", config)
    attention = Switches("mpt", {name: value for name, value in s.section("attn_config").items() if name != "model_type"})
    attention.only("attn_type", "multihead_attention")
    attention.only("prefix_lm", False)
    attention.only("qk_ln", False)
    attention.only("alibi", True)
    attention.only("attn_uses_sequence_id", False)
    attention.get("attn_impl")
    s.only("expansion_ratio", 4)
    s.only("no_bias", True)
    s.only("logit_scale")
    s.only("norm_type", "low_precision_layernorm", "layernorm", "low_precision_layer_norm")
    for name in ("init_device", "init_config", "verbose", "embedding_fraction", "learned_pos_emb"):  # the last is off where ALiBi is on
        s.get(name)
    s.only("emb_pdrop", 0, 0.0)
    s.only("resid_pdrop", 0, 0.0)
    pdrop = float(attention.get("attn_pdrop", 0.0))
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.need("max_seq_len"), layers=s.need("n_layers"), width=s.need("d_model"),
        heads=s.need("n_heads"), norm_epsilon=s.get("layer_norm_epsilon", 1e-5), tied=s.get("tie_word_embeddings", True),
        clip_qkv=attention.number("clip_qkv"), attention_scale=attention.number("softmax_scale"),
        alibi_bias_max=float(attention.get("alibi_bias_max", 8)), attention_dropout=pdrop, dropout=pdrop, **s.tokens(),
    )  # fmt: skip
    attention.done()
    s.done()
    return MPTConfig(**made)


def to_hf(c: MPTConfig) -> dict[str, Any]:
    made = written("mpt", "MptForCausalLM", c, {
        "vocab_size": c.vocab_size, "max_seq_len": c.context, "n_layers": c.layers, "d_model": c.width, "n_heads": c.heads,
        "expansion_ratio": 4, "layer_norm_epsilon": c.norm_epsilon, "no_bias": True, "tie_word_embeddings": c.tied,
        "attn_config": {
            "alibi": True, "alibi_bias_max": int(c.alibi_bias_max), "clip_qkv": c.clip_qkv, "softmax_scale": c.attention_scale,
            "attn_pdrop": c.attention_dropout or 0,  # their check wants an int, and no dropout is what released ones have
        },
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="mpt", model_type="mpt", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {"lm_head.weight": "transformer.wte.weight"} if c.tied else {}, prefix="transformer.",
)  # fmt: skip
