"""The families by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .family import Family
from .tables import Entry, dense, plain


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes; `experts` 0 for a dense model."""

    layers: int = 2
    width: int = 16
    heads: int = 4
    kv_heads: int = 2
    ffn_width: int = 24
    vocab_size: int = 256
    context: int = 32
    tied: bool = False
    experts: int = 0

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def _module(shapes: Mapping[str, Any]) -> nnx.Module:
    module = nnx.Module()
    for name, value in shapes.items():
        setattr(module, name, _module(value) if isinstance(value, Mapping) else nnx.Param(jnp.zeros(value)))
    return module


def _llama_shapes(c: Config) -> dict[str, Any]:
    n, d, f, k = c.layers, c.width, c.ffn_width, (c.layers, c.width, c.kv_heads, c.head_width)
    attention = {"q": {"kernel": (n, d, c.heads, c.head_width)}, "k": {"kernel": k}, "v": {"kernel": k}}
    attention["out"] = {"kernel": (n, c.heads, c.head_width, d)}
    blocks: dict[str, Any] = {"norm1": {"scale": (n, d)}, "norm2": {"scale": (n, d)}, "attention": attention}
    if c.experts:
        stack = (n, c.experts)
        blocks |= {
            "router": {"kernel": (n, d, c.experts)},
            "experts": {"gate": (*stack, d, f), "up": (*stack, d, f), "down": (*stack, f, d)},
        }
    else:
        blocks["mlp"] = {"gate": {"kernel": (n, d, f)}, "up": {"kernel": (n, d, f)}, "down": {"kernel": (n, f, d)}}
    head = {} if c.tied else {"head": {"kernel": (d, c.vocab_size)}}
    return {"tokens": {"embedding": (c.vocab_size, d)}, "blocks": blocks, "norm": {"scale": (d,)}, **head}


def _llama_table(c: Config) -> tuple[Entry, ...]:
    at = "model.layers.{layer}."
    if c.experts:
        moe = at + "block_sparse_moe."
        mlp = [dense(moe + "gate.weight", "blocks/router/kernel")]
        mlp += [
            dense(f"{moe}experts.{{expert}}.{hf}.weight", f"blocks/experts/{our}")
            for hf, our in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
        ]
    else:
        mlp = [dense(f"{at}mlp.{x}_proj.weight", f"blocks/mlp/{x}/kernel") for x in ("gate", "up", "down")]
    head = [] if c.tied else [dense("lm_head.weight", "head/kernel")]
    return (
        plain("model.embed_tokens.weight", "tokens/embedding"),
        plain(at + "input_layernorm.weight", "blocks/norm1/scale"),
        plain(at + "post_attention_layernorm.weight", "blocks/norm2/scale"),
        *(dense(f"{at}self_attn.{x}_proj.weight", f"blocks/attention/{x}/kernel") for x in "qkv"),
        dense(at + "self_attn.o_proj.weight", "blocks/attention/out/kernel", ins=2),
        *mlp,
        plain("model.norm.weight", "norm/scale"),
        *head,
    )


_LLAMA_KEYS = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads", "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn_width", "vocab_size": "vocab_size", "max_position_embeddings": "context", "tie_word_embeddings": "tied",
    "num_local_experts": "experts",
}  # fmt: skip


def _family(name: str, keys: Mapping[str, str], shapes: Any, table: Any, ignored: tuple[str, ...], **presets: Config) -> Family:
    def from_hf(values: Mapping[str, Any]) -> Config:
        if values.get("hidden_act", "silu") not in ("silu", "gelu"):
            raise ValueError(f"hidden_act={values['hidden_act']!r}: not known")
        return Config(**{our: values[hf] for hf, our in keys.items() if hf in values})

    def to_hf(c: Config) -> dict[str, Any]:
        return {"model_type": name, **{hf: getattr(c, our) for hf, our in keys.items()}}

    return Family(name, name, "decoder", presets, lambda c, rngs: _module(shapes(c)), table, ignored, from_hf, to_hf)


def _neox_shapes(c: Config) -> dict[str, Any]:
    n, d, f = c.layers, c.width, c.ffn_width
    part = {"kernel": (n, d, c.heads, c.head_width), "bias": (n, c.heads, c.head_width)}
    norm = {"scale": (n, d), "bias": (n, d)}
    blocks = {
        "norm1": norm, "norm2": norm,
        "attention": {"q": part, "k": part, "v": part, "out": {"kernel": (n, c.heads, c.head_width, d), "bias": (n, d)}},
        "mlp": {"up": {"kernel": (n, d, f), "bias": (n, f)}, "down": {"kernel": (n, f, d), "bias": (n, d)}},
    }  # fmt: skip
    ends = {"norm": {"scale": (d,), "bias": (d,)}, "head": {"kernel": (d, c.vocab_size)}}
    return {"tokens": {"embedding": (c.vocab_size, d)}, "blocks": blocks, **ends}


def _neox_qkv(name: str, kind: str) -> Entry:
    """Query, key and value of one head lie together."""

    def take(t: np.ndarray, shapes: Any) -> tuple[np.ndarray, ...]:
        heads, head_width = shapes[0][-2:]
        parts = t.reshape(heads, 3, head_width, -1)
        return tuple(np.moveaxis(parts[:, i], -1, 0).reshape(shapes[i]) for i in range(3))

    def give(*params: Any) -> Any:
        parts: Any = jnp if not isinstance(params[0], np.ndarray) else np
        stacked = parts.stack([p.reshape(-1, *p.shape[-2:]) for p in params], axis=2)  # in, heads, 3, head_width
        flat = parts.moveaxis(stacked, 0, -1)
        return flat.reshape(-1) if params[0].ndim == 2 else flat.reshape(-1, flat.shape[-1])

    return Entry(name, tuple(f"blocks/attention/{x}/{kind}" for x in "qkv"), take, give)


def _neox_table(c: Config) -> tuple[Entry, ...]:
    at = "gpt_neox.layers.{layer}."
    norms = {at + "input_layernorm": "blocks/norm1", at + "post_attention_layernorm": "blocks/norm2", "gpt_neox.final_layer_norm": "norm"}
    both = {at + "attention.dense": ("blocks/attention/out", 2), at + "mlp.dense_h_to_4h": ("blocks/mlp/up", 1)}
    both[at + "mlp.dense_4h_to_h"] = ("blocks/mlp/down", 1)
    return (
        plain("gpt_neox.embed_in.weight", "tokens/embedding"),
        *(plain(f"{hf}.{a}", f"{our}/{b}") for hf, our in norms.items() for a, b in (("weight", "scale"), ("bias", "bias"))),
        _neox_qkv(at + "attention.query_key_value.weight", "kernel"),
        _neox_qkv(at + "attention.query_key_value.bias", "bias"),
        *(dense(f"{hf}.weight", f"{our}/kernel", ins) for hf, (our, ins) in both.items()),
        *(plain(f"{hf}.bias", f"{our}/bias") for hf, (our, _) in both.items()),
        dense("embed_out.weight", "head/kernel"),
    )


_NEOX_KEYS = {k: v for k, v in _LLAMA_KEYS.items() if v not in ("kv_heads", "tied", "experts")}
FAMILIES: dict[str, Family] = {
    "llama": _family("llama", _LLAMA_KEYS, _llama_shapes, _llama_table, (r"rotary_emb\.inv_freq$",), tiny=Config()),
    "mixtral": _family("mixtral", _LLAMA_KEYS, _llama_shapes, _llama_table, (), tiny=Config(experts=3)),
    "gpt_neox": _family("gpt_neox", _NEOX_KEYS, _neox_shapes, _neox_table, (r"\.attention\.bias$", r"masked_bias$"), tiny=Config()),
}  # fmt: skip


def find(name: str) -> tuple[Family, Any]:
    """ "llama:tiny" -> the family and that preset.

    Raises:
      ValueError: an unknown family or preset.
    """
    family, _, preset = name.partition(":")
    if family not in FAMILIES or preset not in FAMILIES[family].presets:
        known = [f"{f}:{p}" for f, one in FAMILIES.items() for p in one.presets]
        raise ValueError(f"{name!r}: no such model; known are {', '.join(known)}")
    return FAMILIES[family], FAMILIES[family].presets[preset]
