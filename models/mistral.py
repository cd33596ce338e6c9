"""Mistral (Jiang et al. 2023): Llama with a window beyond which nothing is seen, where the checkpoint has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import Switches, checked, written
from .llama import LlamaConfig, read, table, tie, values
from .positions import Rotary
from .transformer import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    window: int | None = 64


def _size(context: int, base: float, window: int | None, vocab: int = 32000) -> MistralConfig:
    return MistralConfig(
        layers=32, width=4096, heads=32, kv_heads=8, ffn_width=14336, vocab_size=vocab, context=context, norm_epsilon=1e-5, window=window,
        rotary=Rotary(width=128, base=base), bos_token=1, eos_tokens=(2,), remat="full",
    )  # fmt: skip


PRESETS = {
    "tiny": MistralConfig(),
    "7b-v0.1": _size(32768, 1e4, 4096),
    "7b-v0.2": _size(32768, 1e6, None),
    "7b-v0.3": _size(32768, 1e6, None, 32768),
}


def from_hf(config: Mapping[str, Any]) -> MistralConfig:
    s = Switches("mistral", config)
    window = s.get("sliding_window", None if "sliding_window" in config else 4096)
    made = dict(read(s, kv_heads=8), window=window)
    s.done()
    return MistralConfig(**made)


def to_hf(c: MistralConfig) -> dict[str, Any]:
    return checked(from_hf, c, written("mistral", "MistralForCausalLM", c, {**values(c), "sliding_window": c.window}))


FAMILY = Family(
    name="mistral", model_type="mistral", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=tie, prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
