"""BERT (Devlin et al. 2019) with its head for masked tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .encoder import Encoder, EncoderConfig
from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, written
from .tables import Entry, dense, plain, same


@dataclasses.dataclass(frozen=True, kw_only=True)
class BERTConfig(EncoderConfig):
    """An encoder as it stands; `EncoderConfig`'s defaults are BERT's."""


def _size(layers: int, width: int, vocab: int = 30522) -> BERTConfig:
    return BERTConfig(vocab_size=vocab, context=512, layers=layers, width=width, heads=width // 64, pad_token=0, dropout=0.1,
                      attention_dropout=0.1, remat="full")  # fmt: skip


PRESETS = {
    "tiny": BERTConfig(),
    "base-uncased": _size(12, 768),
    "large-uncased": _size(24, 1024),
    "base-cased": _size(12, 768, 28996),
}


def body(prefix: str) -> list[Entry]:
    """All but the head, which RoBERTa shares."""
    layer, block = prefix + "encoder.layer.{layer}.", "blocks/"
    names = {"tokens": "word", "positions": "position", "segments": "token_type"}
    entries = [same(f"{prefix}embeddings.{theirs}_embeddings.weight", f"{ours}/embedding") for ours, theirs in names.items()]
    for theirs, ours in {"query": "q", "key": "k", "value": "v"}.items():
        entries += [dense(f"{layer}attention.self.{theirs}.weight", f"{block}attention/{ours}/kernel")]
        entries += [plain(f"{layer}attention.self.{theirs}.bias", f"{block}attention/{ours}/bias")]
    for theirs, ours, ins in (("attention.output", "attention/out", 2), ("intermediate", "mlp/up", 1), ("output", "mlp/down", 1)):
        entries += [dense(f"{layer}{theirs}.dense.weight", f"{block}{ours}/kernel", ins)]
        entries += [plain(f"{layer}{theirs}.dense.bias", f"{block}{ours}/bias")]
    norms = {layer + "attention.output": "blocks/norm1", layer + "output": "blocks/norm2", prefix + "embeddings": "norm"}
    for theirs, ours in norms.items():
        entries += [same(theirs + ".LayerNorm.weight", ours + "/scale"), same(theirs + ".LayerNorm.bias", ours + "/bias")]
    return entries


def table(c: Any) -> tuple[Entry, ...]:
    head = "cls.predictions.transform."
    return (
        *body("bert."),
        dense(head + "dense.weight", "head/kernel"),
        plain(head + "dense.bias", "head/bias"),
        same(head + "LayerNorm.weight", "head_norm/scale"),
        same(head + "LayerNorm.bias", "head_norm/bias"),
        same("cls.predictions.bias", "head_bias"),
        *untied(c, "cls.predictions.decoder."),
    )


def untied(c: Any, name: str) -> list[Entry]:
    """What a head has that is not the token table."""
    return [] if c.tied else [dense(name + "weight", "out/kernel"), plain(name + "bias", "out/bias")]


def read(s: Switches) -> dict[str, Any]:
    """Fields that BERT and RoBERTa have in common."""
    s.only("is_decoder", False)
    s.only("add_cross_attention", False)
    s.only("position_embedding_type", "absolute")
    for name in ("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"):
        s.get(name)  # of a head that is not here
    return dict(
        vocab_size=s.need("vocab_size"), layers=s.need("num_hidden_layers"), width=s.need("hidden_size"),
        heads=s.need("num_attention_heads"), ffn_width=s.need("intermediate_size"), segments=s.get("type_vocab_size", 2),
        norm_epsilon=s.get("layer_norm_eps", 1e-12),
        activation=s.activation("hidden_act", "gelu"), dropout=s.get("hidden_dropout_prob", 0.1),
        attention_dropout=s.get("attention_probs_dropout_prob", 0.1), tied=s.get("tie_word_embeddings", True), **s.tokens(),
    )  # fmt: skip


def values(c: Any) -> dict[str, Any]:
    """Switches that BERT and RoBERTa have in common."""
    return {
        "vocab_size": c.vocab_size, "num_hidden_layers": c.layers, "hidden_size": c.width, "num_attention_heads": c.heads,
        "intermediate_size": c.ffn_width, "type_vocab_size": c.segments, "layer_norm_eps": c.norm_epsilon,
        "hidden_act": NAMES_OF_ACTIVATIONS[c.activation], "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout, "max_position_embeddings": c.position_rows, "tie_word_embeddings": c.tied,
    }  # fmt: skip


def from_hf(config: Mapping[str, Any]) -> BERTConfig:
    s = Switches("bert", config)
    made = dict(read(s), context=s.need("max_position_embeddings"))
    s.done()
    return BERTConfig(**made)


def to_hf(c: BERTConfig) -> dict[str, Any]:
    return checked(from_hf, c, written("bert", "BertForMaskedLM", c, values(c)))


OLDER = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))  # as TensorFlow named them

FAMILY = Family(
    name="bert", model_type="bert", kind="encoder", module=Encoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias": "cls.predictions.bias",
    } if c.tied else {},
    renames=OLDER, ignored=(r".*position_ids", r"bert\.pooler\..*", r"cls\.seq_relationship\..*"),
)  # fmt: skip
