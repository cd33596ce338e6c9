"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side after one norm, interleaved rotary positions of a part of each head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, written
from .positions import Rotary
from .tables import Entry, dense, plain, same
from .transformer import Decoder, DecoderConfig

_TINY = Rotary(width=8, interleaved=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTJConfig(DecoderConfig):
    positions: Any = "rotary"
    rotary: Rotary | None = _TINY
    parallel: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    tied: bool = False
    head_bias: bool = True


PRESETS = {
    "tiny": GPTJConfig(),
    "6b": GPTJConfig(
        vocab_size=50400, context=2048, layers=28, width=4096, heads=16, rotary=Rotary(width=64, interleaved=True), bos_token=50256,
        eos_tokens=(50256,), remat="full",
    ),
}  # fmt: skip


def table(c: Any) -> tuple[Entry, ...]:
    layer, block = "transformer.h.{layer}.", "blocks/"
    entries = [
        same("transformer.wte.weight", "tokens/embedding"),
        *(dense(f"{layer}attn.{x}_proj.weight", f"{block}attention/{x}/kernel") for x in "qkv"),
        dense(layer + "attn.out_proj.weight", block + "attention/out/kernel", ins=2),
        plain("lm_head.bias", "head_bias" if c.tied else "head/bias"),
    ]
    for theirs, ours in {"fc_in": "up", "fc_out": "down"}.items():
        entries += [dense(f"{layer}mlp.{theirs}.weight", f"{block}mlp/{ours}/kernel")]
        entries += [plain(f"{layer}mlp.{theirs}.bias", f"{block}mlp/{ours}/bias")]
    for theirs, ours in {layer + "ln_1": block + "norm1", "transformer.ln_f": "norm"}.items():
        entries += [same(theirs + ".weight", ours + "/scale"), same(theirs + ".bias", ours + "/bias")]
    return (*entries, *([] if c.tied else [dense("lm_head.weight", "head/kernel")]))


def from_hf(config: Mapping[str, Any]) -> GPTJConfig:
    s = Switches("gptj", config)
    width, heads = s.need("n_embd"), s.need("n_head")
    s.only("rotary", True)
    s.only("scale_attn_weights", True)
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.need("n_positions"), layers=s.need("n_layer"), width=width, heads=heads,
        ffn_width=s.whole("n_inner") or 0, norm_epsilon=s.get("layer_norm_epsilon", 1e-5), tied=s.get("tie_word_embeddings", False),
        activation=s.activation("activation_function", "gelu_new"), dropout=s.get("resid_pdrop", 0.0),
        embedding_dropout=s.get("embd_pdrop", 0.0), attention_dropout=s.get("attn_pdrop", 0.0),
        rotary=Rotary(width=s.pairs(s.get("rotary_dim", 64), "rotary_dim"), interleaved=True), **s.tokens(),
    )  # fmt: skip
    s.done()
    return GPTJConfig(**made)


def to_hf(c: GPTJConfig) -> dict[str, Any]:
    assert c.rotary is not None
    made = written("gptj", "GPTJForCausalLM", c, {
        "vocab_size": c.vocab_size, "n_positions": c.context, "n_layer": c.layers, "n_embd": c.width, "n_head": c.heads,
        "n_inner": c.ffn_width, "layer_norm_epsilon": c.norm_epsilon, "activation_function": NAMES_OF_ACTIVATIONS[c.activation],
        "tie_word_embeddings": c.tied, "rotary_dim": c.rotary.width, "resid_pdrop": c.dropout, "embd_pdrop": c.embedding_dropout,
        "attn_pdrop": c.attention_dropout,
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="gptj", model_type="gptj", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {"lm_head.weight": "transformer.wte.weight"} if c.tied else {}, prefix="transformer.",
    ignored=(r".*\.attn\.(bias|masked_bias|embed_positions)",),
)  # fmt: skip
