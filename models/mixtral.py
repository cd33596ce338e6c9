"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts for its MLP, two of eight for each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import Switches, checked, written
from .llama import LlamaConfig, attention_table, read, tie, values
from .positions import Rotary
from .tables import Entry, dense
from .transformer import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtralConfig(LlamaConfig):
    ffn_width: int = 128
    norm_epsilon: float = 1e-5
    experts: int = 4
    experts_per_token: int = 2
    balance_weight: float = 0.001


def _size(layers: int, width: int, heads: int, ffn: int, vocab: int, context: int) -> MixtralConfig:
    return MixtralConfig(
        layers=layers, width=width, heads=heads, kv_heads=8, ffn_width=ffn, vocab_size=vocab, context=context, experts=8,
        rotary=Rotary(width=width // heads, base=1e6), bos_token=1, eos_tokens=(2,), remat="full",
    )  # fmt: skip


PRESETS = {
    "tiny": MixtralConfig(),
    "8x7b": _size(32, 4096, 32, 14336, 32000, 32768),
    "8x22b": _size(56, 6144, 48, 16384, 32768, 65536),
}


def table(c: Any) -> tuple[Entry, ...]:
    layer = "model.layers.{layer}.block_sparse_moe."
    names = {"w1": "gate", "w2": "down", "w3": "up"}
    experts = [dense(f"{layer}experts.{{expert}}.{theirs}.weight", f"blocks/experts/{ours}") for theirs, ours in names.items()]
    return (*attention_table(c), dense(layer + "gate.weight", "blocks/experts/router/kernel"), *experts)


def from_hf(config: Mapping[str, Any]) -> MixtralConfig:
    s = Switches("mixtral", config)
    s.only("router_jitter_noise", 0, 0.0)
    made = dict(
        read(s, base=1e6, epsilon=1e-5, kv_heads=8), window=s.get("sliding_window"), experts=s.get("num_local_experts", 8),
        experts_per_token=s.get("num_experts_per_tok", 2), balance_weight=s.get("router_aux_loss_coef", 0.001),
    )  # fmt: skip
    s.done()
    return MixtralConfig(**made)


def to_hf(c: MixtralConfig) -> dict[str, Any]:
    made = written("mixtral", "MixtralForCausalLM", c, {
        **values(c), "sliding_window": c.window, "num_local_experts": c.experts, "num_experts_per_tok": c.experts_per_token,
        "router_aux_loss_coef": c.balance_weight,
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="mixtral", model_type="mixtral", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=tie, prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
