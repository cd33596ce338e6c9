"""GPT-2 and GPT-3 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Brown et al. 2020).

Learned positions, layer norms before attention and MLP, tanh gelu, the head tied to the token table. GPT-3's sizes are here with dense
attention throughout; which of its layers were locally banded was not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .family import Family
from .hf import NAMES_OF_ACTIVATIONS, Switches, checked, written
from .tables import Entry, beside, conv1d, dense, plain, same
from .transformer import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(DecoderConfig):
    """A decoder as it stands; `DecoderConfig`'s defaults are GPT-2's."""


def _size(layers: int, width: int, heads: int, context: int = 1024) -> GPT2Config:
    return GPT2Config(
        vocab_size=50257, context=context, layers=layers, width=width, heads=heads, bos_token=50256, eos_tokens=(50256,), remat="full"
    )


PRESETS = {
    "tiny": GPT2Config(),
    # Radford et al. 2019, table 2, sizes as released
    "small": _size(12, 768, 12),
    "medium": _size(24, 1024, 16),
    "large": _size(36, 1280, 20),
    "xl": _size(48, 1600, 25),
    # Brown et al. 2020, table 2.1. It gives XL 24 heads of 128, which is not its width of 2048, and 13B a width of 5140: 16 and 5120 here
    "gpt3-125m": _size(12, 768, 12, 2048),
    "gpt3-350m": _size(24, 1024, 16, 2048),
    "gpt3-760m": _size(24, 1536, 16, 2048),
    "gpt3-1.3b": _size(24, 2048, 16, 2048),
    "gpt3-2.7b": _size(32, 2560, 32, 2048),
    "gpt3-6.7b": _size(32, 4096, 32, 2048),
    "gpt3-13b": _size(40, 5120, 40, 2048),
    "gpt3-175b": _size(96, 12288, 96, 2048),
}


def table(c: Any) -> tuple[Entry, ...]:
    layer, block = "transformer.h.{layer}.", "blocks/"
    qkv = tuple(f"{block}attention/{x}/" for x in "qkv")
    entries = [
        same("transformer.wte.weight", "tokens/embedding"),
        same("transformer.wpe.weight", "positions/embedding"),
        beside(layer + "attn.c_attn.weight", tuple(p + "kernel" for p in qkv), transposed=False),
        beside(layer + "attn.c_attn.bias", tuple(p + "bias" for p in qkv), transposed=False),
        conv1d(layer + "attn.c_proj.weight", block + "attention/out/kernel", ins=2),
        plain(layer + "attn.c_proj.bias", block + "attention/out/bias"),
        conv1d(layer + "mlp.c_fc.weight", block + "mlp/up/kernel"),
        plain(layer + "mlp.c_fc.bias", block + "mlp/up/bias"),
        conv1d(layer + "mlp.c_proj.weight", block + "mlp/down/kernel"),
        plain(layer + "mlp.c_proj.bias", block + "mlp/down/bias"),
    ]
    norms = {layer + "ln_1": block + "norm1", layer + "ln_2": block + "norm2", "transformer.ln_f": "norm"}
    for theirs, ours in norms.items():
        entries += [same(theirs + ".weight", ours + "/scale"), same(theirs + ".bias", ours + "/bias")]
    return (*entries, *([] if c.tied else [dense("lm_head.weight", "head/kernel")]))


def from_hf(config: Mapping[str, Any]) -> GPT2Config:
    s = Switches("gpt2", config)
    s.only("add_cross_attention", False)
    s.only("n_special", 0)
    s.get("predict_special_tokens")  # of which there are none
    s.get("reorder_and_upcast_attn")  # the order of scaling; scores are float32 here in any case
    made = dict(
        vocab_size=s.need("vocab_size"), context=s.need("n_positions"), layers=s.need("n_layer"), width=s.need("n_embd"),
        heads=s.need("n_head"), ffn_width=s.whole("n_inner") or 0, norm_epsilon=s.get("layer_norm_epsilon", 1e-5),
        activation=s.activation("activation_function", "gelu_new"), tied=s.get("tie_word_embeddings", True),
        attention_scale=None if s.get("scale_attn_weights", True) else 1.0, scale_by_layer=s.get("scale_attn_by_inverse_layer_idx", False),
        dropout=s.get("resid_pdrop", 0.1), embedding_dropout=s.get("embd_pdrop", 0.1), attention_dropout=s.get("attn_pdrop", 0.1),
        **s.tokens(),
    )  # fmt: skip
    s.done()
    return GPT2Config(**made)


def to_hf(c: GPT2Config) -> dict[str, Any]:
    made = written("gpt2", "GPT2LMHeadModel", c, {
        "vocab_size": c.vocab_size, "n_positions": c.context, "n_layer": c.layers, "n_embd": c.width, "n_head": c.heads,
        "n_inner": c.ffn_width, "layer_norm_epsilon": c.norm_epsilon, "activation_function": NAMES_OF_ACTIVATIONS[c.activation],
        "tie_word_embeddings": c.tied, "scale_attn_weights": c.attention_scale != 1.0,
        "scale_attn_by_inverse_layer_idx": c.scale_by_layer, "resid_pdrop": c.dropout, "embd_pdrop": c.embedding_dropout,
        "attn_pdrop": c.attention_dropout,
    })  # fmt: skip
    return checked(from_hf, c, made)


FAMILY = Family(
    name="gpt2", model_type="gpt2", kind="decoder", module=Decoder, presets=PRESETS, table=table, from_hf=from_hf, to_hf=to_hf,
    ties=lambda c: {"lm_head.weight": "transformer.wte.weight"} if c.tied else {}, prefix="transformer.",
    ignored=(r".*\.attn\.(bias|masked_bias)",),
)  # fmt: skip
