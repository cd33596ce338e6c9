"""Falcon (Almazrouei et al. 2023): attention and MLP side by side, keys shared by all queries or by groups; RW's are older, with ALiBi."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, rope_scaling, written
from .positions import Rotary
from .tables import Entry, by_head, dense, plain, same
from .transformer import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconConfig(DecoderConfig):
    kv_heads: int = 1
    positions: Any = "rotary"
    alibi_rounded: bool = True
    parallel: bool = True
    activation: str = "gelu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    grouped: bool = False  # the newer architecture, which names groups of keys and norms of parallel blocks


def _size(layers: int, width: int, heads: int, **other: Any) -> FalconConfig:
    given = dict(vocab_size=65024, context=2048, bos_token=11, eos_tokens=(11,), remat="full")
    return FalconConfig(layers=layers, width=width, heads=heads, **{**given, **other})


PRESETS = {
    "tiny": FalconConfig(),
    "7b": _size(32, 4544, 71),
    "40b": _size(60, 8192, 128, kv_heads=8, grouped=True, parallel_norms=2),
    "180b": _size(80, 14848, 232, kv_heads=8, grouped=True, parallel_norms=2),
    "11b": _size(60, 4096, 32, kv_heads=8, grouped=True, tied=False, context=8192, rotary=Rotary(width=128, base=500042.0)),
    "rw-1b": _size(
        24, 2048, 32, vocab_size=50304, kv_heads=32, positions="alibi", parallel=False, qkv_bias=True, out_bias=True, mlp_bias=True,
        bos_token=1, eos_tokens=(2,),
    ),
}  # fmt: skip


def table(c: Any) -> tuple[Entry, ...]:
    layer, block = "transformer.h.{layer}.", "blocks/"
    q, k, v = (f"{block}attention/{x}/" for x in "qkv")
    entries = [
        same("transformer.word_embeddings.weight", "tokens/embedding"),
        by_head(layer + "self_attention.query_key_value.weight", (q + "kernel", k + "kernel", v + "kernel")),
        dense(layer + "self_attention.dense.weight", block + "attention/out/kernel", ins=2),
    ]
    names = {"mlp.dense_h_to_4h": "mlp/up", "mlp.dense_4h_to_h": "mlp/down"}
    entries += [dense(f"{layer}{theirs}.weight", f"{block}{ours}/kernel") for theirs, ours in names.items()]
    if c.qkv_bias:
        entries += [by_head(layer + "self_attention.query_key_value.bias", (q + "bias", k + "bias", v + "bias"))]
        names = {**names, "self_attention.dense": "attention/out"}
        entries += [plain(f"{layer}{theirs}.bias", f"{block}{ours}/bias") for theirs, ours in names.items()]
    if c.grouped and c.parallel_norms == 2:
        norms = {layer + "ln_attn": "blocks/norm1", layer + "ln_mlp": "blocks/norm2"}
    else:
        norms = {layer + "input_layernorm": "blocks/norm1"}
        norms |= {} if c.parallel else {layer + "post_attention_layernorm": "blocks/norm2"}
    for theirs, ours in {**norms, "transformer.ln_f": "norm"}.items():
        entries += [same(theirs + ".weight", ours + "/scale"), same(theirs + ".bias", ours + "/bias")]
    return (*entries, *([] if c.tied else [dense("lm_head.weight", "head/kernel")]))


def from_hf(config: Mapping[str, Any]) -> FalconConfig:
    s = Switches("falcon", config)
    width, heads = s.need("hidden_size", s.whole("n_embed")), s.need("num_attention_heads")
    s.only("n_embed", width)
    grouped, bias, alibi = s.get("new_decoder_architecture", False), s.get("bias", False), s.get("alibi", False)
    single = s.get("multi_query", True) and not grouped
    kv_heads = s.get("num_kv_heads", heads)
    parallel = bool(s.get("parallel_attn", True) or grouped)
    s.only("apply_residual_connection_post_layernorm", False)
    s.only("ff_factor", 4)
    if not grouped:
        s.only("num_ln_in_parallel_attn", 1)
    rotary = s.rotary(width // heads)
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.get("max_position_embeddings", 2048), layers=s.need("num_hidden_layers"), width=width,
        heads=heads, kv_heads=1 if single else kv_heads if grouped else heads, ffn_width=s.whole("ffn_hidden_size") or 0,
        norm_epsilon=s.get("layer_norm_epsilon", 1e-5), activation=s.activation("activation", "gelu"),
        tied=s.get("tie_word_embeddings", True), qkv_bias=bias, out_bias=bias, mlp_bias=bias, positions="alibi" if alibi else "rotary",
        rotary=None if alibi else rotary, parallel=parallel, grouped=grouped,
        parallel_norms=s.get("num_ln_in_parallel_attn", 2) if grouped else 1, dropout=s.get("hidden_dropout", 0.0),
        attention_dropout=s.get("attention_dropout", 0.0), **s.tokens(),
    )  # fmt: skip
    s.done()
    return FalconConfig(**made)


def to_hf(c: FalconConfig) -> dict[str, Any]:
    rotary = {} if c.rotary is None else {"rope_theta": c.rotary.base, "rope_scaling": rope_scaling(c.rotary)}
    made = written("falcon", "FalconForCausalLM", c, {
        "vocab_size": c.vocab_size, "max_position_embeddings": c.context, "num_hidden_layers": c.layers, "hidden_size": c.width,
        "num_attention_heads": c.heads, "num_kv_heads": c.kv_heads, "ffn_hidden_size": c.ffn_width, "layer_norm_epsilon": c.norm_epsilon,
        "activation": NAMES_OF_ACTIVATIONS[c.activation], "tie_word_embeddings": c.tied, "bias": c.qkv_bias,
        "alibi": c.positions == "alibi", "new_decoder_architecture": c.grouped, "multi_query": c.kv_heads == 1 and not c.grouped,
        "parallel_attn": c.parallel, "num_ln_in_parallel_attn": c.parallel_norms if c.grouped else None, "hidden_dropout": c.dropout,
        "attention_dropout": c.attention_dropout, **rotary,
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="falcon", model_type="falcon", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {"lm_head.weight": "transformer.word_embeddings.weight"} if c.tied else {}, prefix="transformer.",
    ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
