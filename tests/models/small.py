"""Small models of all families, with random numbers everywhere: also in biases and norms, which a fresh model has at 0 and 1."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from models.families import find
from models.family import Family, resized
from models.positions import RopeScaling, Rotary

CONTEXT, VOCAB = 12, 29

_SIZES = {"vocab_size": VOCAB, "context": CONTEXT, "layers": 2, "width": 16, "heads": 4, "ffn_width": 20}
_YARN = Rotary(width=4, base=100.0, scaling=RopeScaling(kind="yarn", factor=4.0, original_context=6))

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2_by_layer": ("gpt2", {"scale_by_layer": True, "tied": False}),
    "gptj": ("gptj", {"rotary": Rotary(width=2, interleaved=True)}),
    "gpt_neox": ("gpt_neox", {"rotary": Rotary(width=2)}),
    "gpt_neox_sequential": ("gpt_neox", {"rotary": Rotary(width=4), "parallel": False}),
    "llama": ("llama", {"kv_heads": 2}),
    "llama_yarn": ("llama", {"kv_heads": 1, "rotary": _YARN}),
    "mistral": ("mistral", {"kv_heads": 2, "window": 3}),
    "mixtral": ("mixtral", {"kv_heads": 2}),
    "mixtral_window": ("mixtral", {"kv_heads": 4, "window": 3, "experts": 3, "experts_per_token": 1, "tied": True}),
    "falcon": ("falcon", {}),
    "falcon_grouped": ("falcon", {"kv_heads": 2, "grouped": True, "parallel_norms": 2}),
    "falcon_alibi": ("falcon", {"kv_heads": 4, "positions": "alibi", "rotary": None, "parallel": False, "qkv_bias": True}),
    "mpt": ("mpt", {"clip_qkv": 0.7}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {"decoder_layers": 2, "buckets": 8, "max_distance": 6}),
    "t5_gated": ("t5", {"decoder_layers": 3, "buckets": 8, "max_distance": 6, "gated": True, "activation": "gelu_tanh", "tied": False}),
    "bert": ("bert", {}),
    "roberta": ("roberta", {"tied": False}),
}


def small(name: str, **other: Any) -> tuple[Family, Any]:
    """One of these, with other fields."""
    family, tiny = find((DECODERS | OTHERS)[name][0])
    return family, resized(tiny, **{**_SIZES, **(DECODERS | OTHERS)[name][1], **other})


@functools.cache
def parameters(name: str) -> Any:
    """float32 arrays; the same for all configurations that differ only in how they run."""
    family, config = small(name)
    random = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        values = random.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.2 * values if "scale" in jax.tree_util.keystr(path) else 0.3 * values

    return jax.tree_util.tree_map_with_path(leaf, family.abstract(config))


def quickly(function: Any) -> Any:
    """Compiled without optimisations: these models take far longer to compile than to run."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def close(got: Any, want: Any, relative: float = 1e-5) -> None:
    """Equal up to a part of the largest value."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape and np.abs(want).max() > 0.1
    assert np.abs(got - want).max() <= relative * np.abs(want).max(), np.abs(got - want).max() / np.abs(want).max()
