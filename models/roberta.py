"""RoBERTa (Liu et al. 2019): BERT with one kind of segment, and positions that count real tokens from the one after the padding token's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .bert import OLDER, body, read, untied, values
from .encoder import Encoder, EncoderConfig
from .family import Family
from .hf import Switches, checked, written
from .tables import Entry, dense, plain, same


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoBERTaConfig(EncoderConfig):
    segments: int = 1
    norm_epsilon: float = 1e-5
    head_activation: str | None = "gelu"
    padding_token: int | None = 1
    pad_token: int | None = 1


def _size(layers: int, width: int) -> RoBERTaConfig:
    return RoBERTaConfig(vocab_size=50265, context=512, layers=layers, width=width, heads=width // 64, bos_token=0, eos_tokens=(2,),
                         dropout=0.1, attention_dropout=0.1, remat="full")  # fmt: skip


PRESETS = {"tiny": RoBERTaConfig(), "base": _size(12, 768), "large": _size(24, 1024)}


def table(c: Any) -> tuple[Entry, ...]:
    return (
        *body("roberta."),
        dense("lm_head.dense.weight", "head/kernel"),
        plain("lm_head.dense.bias", "head/bias"),
        same("lm_head.layer_norm.weight", "head_norm/scale"),
        same("lm_head.layer_norm.bias", "head_norm/bias"),
        same("lm_head.bias", "head_bias"),
        *untied(c, "lm_head.decoder."),
    )


def from_hf(config: Mapping[str, Any]) -> RoBERTaConfig:
    s = Switches("roberta", config)
    padding = s.get("pad_token_id", 1)
    made = dict(read(s), context=s.need("max_position_embeddings") - padding - 1, padding_token=padding, pad_token=padding)
    s.done()
    return RoBERTaConfig(**made)


def to_hf(c: RoBERTaConfig) -> dict[str, Any]:
    return checked(from_hf, c, written("roberta", "RobertaForMaskedLM", c, values(c)))


FAMILY = Family(
    name="roberta", model_type="roberta", kind="encoder", module=Encoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias",
    } if c.tied else {},
    renames=OLDER, ignored=(r".*position_ids", r"roberta\.pooler\..*"),
)  # fmt: skip
