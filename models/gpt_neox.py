"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): rotary positions of a part of each head, attention and MLP side by side
(or not), each after a norm of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, rope_scaling, written
from .positions import Rotary
from .tables import Entry, by_head, dense, plain, same
from .transformer import Decoder, DecoderConfig

_TINY = Rotary(width=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(DecoderConfig):
    positions: Any = "rotary"
    rotary: Rotary | None = _TINY
    parallel: bool = True
    parallel_norms: int = 2
    activation: str = "gelu"
    tied: bool = False


def _size(layers: int, width: int, heads: int, vocab: int = 50304) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocab, context=2048, layers=layers, width=width, heads=heads, rotary=Rotary(width=width // heads // 4), bos_token=0,
        eos_tokens=(0,), remat="full",
    )  # fmt: skip


PRESETS = {
    "tiny": GPTNeoXConfig(),
    "20b": dataclasses.replace(_size(44, 6144, 64, 50432), activation="gelu_tanh"),
    # Biderman et al. 2023, table 1
    "pythia-70m": _size(6, 512, 8),
    "pythia-160m": _size(12, 768, 12),
    "pythia-410m": _size(24, 1024, 16),
    "pythia-1b": _size(16, 2048, 8),
    "pythia-1.4b": _size(24, 2048, 16),
    "pythia-2.8b": _size(32, 2560, 32),
    "pythia-6.9b": _size(32, 4096, 32, 50432),
    "pythia-12b": _size(36, 5120, 40, 50688),
}


def table(c: Any) -> tuple[Entry, ...]:
    layer, block = "gpt_neox.layers.{layer}.", "blocks/"
    q, k, v = (f"{block}attention/{x}/" for x in "qkv")
    entries = [
        same("gpt_neox.embed_in.weight", "tokens/embedding"),
        by_head(layer + "attention.query_key_value.weight", (q + "kernel", k + "kernel", v + "kernel")),
        dense(layer + "attention.dense.weight", block + "attention/out/kernel", ins=2),
    ]
    if c.qkv_bias:
        entries += [by_head(layer + "attention.query_key_value.bias", (q + "bias", k + "bias", v + "bias"))]
        entries += [plain(layer + "attention.dense.bias", block + "attention/out/bias")]
    for theirs, ours in {"dense_h_to_4h": "up", "dense_4h_to_h": "down"}.items():
        entries += [dense(f"{layer}mlp.{theirs}.weight", f"{block}mlp/{ours}/kernel")]
        entries += [plain(f"{layer}mlp.{theirs}.bias", f"{block}mlp/{ours}/bias")]
    norms = {layer + "input_layernorm": "blocks/norm1", layer + "post_attention_layernorm": "blocks/norm2"}
    for theirs, ours in {**norms, "gpt_neox.final_layer_norm": "norm"}.items():
        entries += [same(theirs + ".weight", ours + "/scale"), same(theirs + ".bias", ours + "/bias")]
    return (*entries, *([] if c.tied else [dense("embed_out.weight", "head/kernel")]))


def from_hf(config: Mapping[str, Any]) -> GPTNeoXConfig:
    s = Switches("gpt_neox", config)
    width, heads = s.need("hidden_size"), s.need("num_attention_heads")
    s.only("is_decoder", False)
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
        s.get(name)  # in the 20B's own file, and read by nobody
    bias, parallel = s.get("attention_bias", True), s.get("use_parallel_residual", True)
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.need("max_position_embeddings"), layers=s.need("num_hidden_layers"), width=width,
        heads=heads, ffn_width=s.whole("intermediate_size") or 0, norm_epsilon=s.get("layer_norm_eps", 1e-5),
        activation=s.activation("hidden_act", "gelu"), tied=s.get("tie_word_embeddings", False), qkv_bias=bias, out_bias=bias,
        parallel=parallel, dropout=s.get("hidden_dropout", 0.0), embedding_dropout=s.get("hidden_dropout", 0.0),
        attention_dropout=s.get("attention_dropout", 0.0),
        rotary=s.rotary(width // heads, share=s.get("rotary_pct", 0.25), base_name="rotary_emb_base"), **s.tokens(),
    )  # fmt: skip
    s.done()
    return GPTNeoXConfig(**made)


def to_hf(c: GPTNeoXConfig) -> dict[str, Any]:
    assert c.rotary is not None
    made = written("gpt_neox", "GPTNeoXForCausalLM", c, {
        "vocab_size": c.vocab_size, "max_position_embeddings": c.context, "num_hidden_layers": c.layers, "hidden_size": c.width,
        "num_attention_heads": c.heads, "intermediate_size": c.ffn_width, "layer_norm_eps": c.norm_epsilon,
        "hidden_act": NAMES_OF_ACTIVATIONS[c.activation], "tie_word_embeddings": c.tied, "attention_bias": c.qkv_bias,
        "use_parallel_residual": c.parallel, "hidden_dropout": c.dropout, "attention_dropout": c.attention_dropout,
        "rotary_pct": c.rotary.width / c.head_width, "rotary_emb_base": c.rotary.base, "rope_scaling": rope_scaling(c.rotary),
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="gpt_neox", model_type="gpt_neox", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {"embed_out.weight": "gpt_neox.embed_in.weight"} if c.tied else {}, prefix="gpt_neox.",
    ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)  # fmt: skip
