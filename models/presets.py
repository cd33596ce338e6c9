"""Dimensions of published models, as plain data. Keys are those of `wsejax`'s `LLM.from_dict`, which knows nothing of this file.

Sources: the papers named with each family, and the model cards that go with the released weights (`config.json`). Context is the longest
that the model was released for. `PUBLISHED_PARAMETERS` holds the counts that the authors or the released files state, norms, biases and
position tables included; what is computed from the dimensions leaves these out and is up to 1.5% less for small models.
"""

from __future__ import annotations

import difflib
from typing import Any


def _gpt(layers: int, width: int, heads: int, vocab: int, context: int, **other: Any) -> dict[str, Any]:
    """GPT-2's shape: two matrices of four times the width, and the head tied to the table."""
    return dict(
        dict(layers=layers, width=width, heads=heads, kv_heads=heads, head_width=width // heads, ffn_width=4 * width, vocab_size=vocab),
        **{"context": context, "gated": False, "tied": True, "causal": True, **other},
    )


def _llama(layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int, **other: Any) -> dict[str, Any]:
    """Llama's shape: three matrices in the MLP, and a head of its own."""
    return dict(
        dict(layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_width=width // heads, ffn_width=ffn, vocab_size=vocab),
        **{"context": context, "gated": True, "tied": False, "causal": True, **other},
    )


PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, sizes as released
    "gpt2": _gpt(12, 768, 12, 50257, 1024),
    "gpt2-medium": _gpt(24, 1024, 16, 50257, 1024),
    "gpt2-large": _gpt(36, 1280, 20, 50257, 1024),
    "gpt2-xl": _gpt(48, 1600, 25, 50257, 1024),
    # Brown et al. 2020, table 2.1. It gives XL 24 heads of 128, which is not its width of 2048, and 13B a width of 5140: 16 and 5120 here
    "gpt3-125m": _gpt(12, 768, 12, 50257, 2048),
    "gpt3-350m": _gpt(24, 1024, 16, 50257, 2048),
    "gpt3-760m": _gpt(24, 1536, 16, 50257, 2048),
    "gpt3-1.3b": _gpt(24, 2048, 16, 50257, 2048),
    "gpt3-2.7b": _gpt(32, 2560, 32, 50257, 2048),
    "gpt3-6.7b": _gpt(32, 4096, 32, 50257, 2048),
    "gpt3-13b": _gpt(40, 5120, 40, 50257, 2048),
    "gpt3-175b": _gpt(96, 12288, 96, 50257, 2048),
    # Wang and Komatsuzaki 2021; Black et al. 2022
    "gpt-j-6b": _gpt(28, 4096, 16, 50400, 2048, tied=False),
    "gpt-neox-20b": _gpt(44, 6144, 64, 50432, 2048, tied=False),
    # Dey et al. 2023, table 1
    "cerebras-gpt-111m": _gpt(10, 768, 12, 50257, 2048),
    "cerebras-gpt-256m": _gpt(14, 1088, 17, 50257, 2048),
    "cerebras-gpt-590m": _gpt(18, 1536, 12, 50257, 2048),
    "cerebras-gpt-1.3b": _gpt(24, 2048, 16, 50257, 2048),
    "cerebras-gpt-2.7b": _gpt(32, 2560, 32, 50257, 2048),
    "cerebras-gpt-6.7b": _gpt(32, 4096, 32, 50257, 2048),
    "cerebras-gpt-13b": _gpt(40, 5120, 40, 50257, 2048),
    # Biderman et al. 2023, table 1; the head is not tied
    "pythia-70m": _gpt(6, 512, 8, 50304, 2048, tied=False),
    "pythia-160m": _gpt(12, 768, 12, 50304, 2048, tied=False),
    "pythia-410m": _gpt(24, 1024, 16, 50304, 2048, tied=False),
    "pythia-1b": _gpt(16, 2048, 8, 50304, 2048, tied=False),
    "pythia-1.4b": _gpt(24, 2048, 16, 50304, 2048, tied=False),
    "pythia-2.8b": _gpt(32, 2560, 32, 50304, 2048, tied=False),
    "pythia-6.9b": _gpt(32, 4096, 32, 50432, 2048, tied=False),
    "pythia-12b": _gpt(36, 5120, 40, 50688, 2048, tied=False),
    # Zhang et al. 2022, table 1
    "opt-125m": _gpt(12, 768, 12, 50272, 2048),
    "opt-1.3b": _gpt(24, 2048, 32, 50272, 2048),
    "opt-2.7b": _gpt(32, 2560, 32, 50272, 2048),
    "opt-6.7b": _gpt(32, 4096, 32, 50272, 2048),
    "opt-13b": _gpt(40, 5120, 40, 50272, 2048),
    "opt-30b": _gpt(48, 7168, 56, 50272, 2048),
    "opt-66b": _gpt(64, 9216, 72, 50272, 2048),
    "opt-175b": _gpt(96, 12288, 96, 50272, 2048),
    # Scao et al. 2022
    "bloom-176b": _gpt(70, 14336, 112, 250880, 2048),
    # MosaicML 2023, model cards
    "mpt-7b": _gpt(32, 4096, 32, 50432, 2048),
    "mpt-30b": _gpt(48, 7168, 64, 50432, 8192),
    # Almazrouei et al. 2023: one key for all heads, and eight
    "falcon-7b": _gpt(32, 4544, 71, 65024, 2048, kv_heads=1),
    "falcon-40b": _gpt(60, 8192, 128, 65024, 2048, kv_heads=8),
    # Devlin et al. 2019
    "bert-base": _gpt(12, 768, 12, 30522, 512, causal=False),
    "bert-large": _gpt(24, 1024, 16, 30522, 512, causal=False),
    # Touvron et al. 2023 (a), table 2
    "llama-7b": _llama(32, 4096, 32, 32, 11008, 32000, 2048),
    "llama-13b": _llama(40, 5120, 40, 40, 13824, 32000, 2048),
    "llama-33b": _llama(60, 6656, 52, 52, 17920, 32000, 2048),
    "llama-65b": _llama(80, 8192, 64, 64, 22016, 32000, 2048),
    # Touvron et al. 2023 (b)
    "llama-2-7b": _llama(32, 4096, 32, 32, 11008, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 64, 8, 28672, 32000, 4096),
    # Rozière et al. 2023
    "codellama-7b": _llama(32, 4096, 32, 32, 11008, 32016, 16384),
    "codellama-13b": _llama(40, 5120, 40, 40, 13824, 32016, 16384),
    "codellama-34b": _llama(48, 8192, 64, 8, 22016, 32000, 16384),
    # Dubey et al. 2024, table 3, and model cards
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256, 8192),
    "llama-3-70b": _llama(80, 8192, 64, 8, 28672, 128256, 8192),
    "llama-3.1-8b": _llama(32, 4096, 32, 8, 14336, 128256, 131072),
    "llama-3.1-70b": _llama(80, 8192, 64, 8, 28672, 128256, 131072),
    "llama-3.1-405b": _llama(126, 16384, 128, 8, 53248, 128256, 131072),
    "llama-3.2-1b": _llama(16, 2048, 32, 8, 8192, 128256, 131072, tied=True),
    "llama-3.2-3b": _llama(28, 3072, 24, 8, 8192, 128256, 131072, tied=True),
    "llama-3.3-70b": _llama(80, 8192, 64, 8, 28672, 128256, 131072),
    # Jiang et al. 2023; Mistral AI 2024, model card
    "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000, 32768),
    # Yang et al. 2024 and 2025; Qwen3's heads are 128 wide whatever the width
    "qwen2-7b": _llama(28, 3584, 28, 4, 18944, 152064, 131072),
    "qwen2-72b": _llama(80, 8192, 64, 8, 29568, 152064, 131072),
    "qwen2.5-7b": _llama(28, 3584, 28, 4, 18944, 152064, 131072),
    "qwen2.5-32b": _llama(64, 5120, 40, 8, 27648, 152064, 131072),
    "qwen2.5-72b": _llama(80, 8192, 64, 8, 29568, 152064, 131072),
    "qwen3-0.6b": _llama(28, 1024, 16, 8, 3072, 151936, 40960, head_width=128, tied=True),
    "qwen3-1.7b": _llama(28, 2048, 16, 8, 6144, 151936, 40960, tied=True),
    "qwen3-4b": _llama(36, 2560, 32, 8, 9728, 151936, 40960, head_width=128, tied=True),
    "qwen3-8b": _llama(36, 4096, 32, 8, 12288, 151936, 40960),
    "qwen3-14b": _llama(40, 5120, 40, 8, 17408, 151936, 40960),
    "qwen3-32b": _llama(64, 5120, 64, 8, 25600, 151936, 40960, head_width=128),
}

PUBLISHED_PARAMETERS: dict[str, float] = {
    "gpt2": 124.4e6, "gpt2-medium": 354.8e6, "gpt2-large": 774.0e6, "gpt2-xl": 1557.6e6,
    "gpt3-125m": 125e6, "gpt3-350m": 350e6, "gpt3-760m": 760e6, "gpt3-1.3b": 1.3e9, "gpt3-2.7b": 2.7e9, "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13.0e9, "gpt3-175b": 175.0e9, "gpt-j-6b": 6.0509e9, "gpt-neox-20b": 20.5546e9,
    "cerebras-gpt-111m": 111e6, "cerebras-gpt-256m": 256e6, "cerebras-gpt-590m": 590e6, "cerebras-gpt-1.3b": 1.3e9,
    "cerebras-gpt-2.7b": 2.7e9, "cerebras-gpt-6.7b": 6.7e9, "cerebras-gpt-13b": 13e9,
    "pythia-70m": 70.4e6, "pythia-160m": 162.3e6, "pythia-410m": 405.3e6, "pythia-1b": 1.0118e9, "pythia-1.4b": 1.4147e9,
    "pythia-2.8b": 2.7752e9, "pythia-6.9b": 6.8573e9, "pythia-12b": 11.8461e9,
    "opt-125m": 125.2e6, "opt-1.3b": 1.3158e9, "opt-2.7b": 2.6516e9, "opt-6.7b": 6.6585e9, "opt-13b": 12.853e9, "opt-30b": 29.975e9,
    "opt-66b": 66e9, "opt-175b": 175e9, "bloom-176b": 176.247e9, "mpt-7b": 6.649e9, "mpt-30b": 29.957e9,
    "falcon-7b": 6.9217e9, "falcon-40b": 41.303e9, "bert-base": 109.5e6, "bert-large": 335.1e6,
    "llama-7b": 6.7384e9, "llama-13b": 13.0159e9, "llama-33b": 32.529e9, "llama-65b": 65.286e9,
    "llama-2-7b": 6.7384e9, "llama-2-13b": 13.0159e9, "llama-2-70b": 68.9767e9,
    "codellama-7b": 6.7385e9, "codellama-13b": 13.016e9, "codellama-34b": 33.744e9,
    "llama-3-8b": 8.0303e9, "llama-3-70b": 70.5537e9, "llama-3.1-8b": 8.0303e9, "llama-3.1-70b": 70.5537e9,
    "llama-3.1-405b": 405.85e9, "llama-3.2-1b": 1.2358e9, "llama-3.2-3b": 3.2128e9, "llama-3.3-70b": 70.5537e9,
    "mistral-7b": 7.2417e9, "qwen2-7b": 7.6156e9, "qwen2-72b": 72.7062e9, "qwen2.5-7b": 7.6156e9, "qwen2.5-32b": 32.7639e9,
    "qwen2.5-72b": 72.7062e9, "qwen3-0.6b": 0.596e9, "qwen3-1.7b": 1.7206e9, "qwen3-4b": 4.0225e9, "qwen3-8b": 8.1907e9,
    "qwen3-14b": 14.7683e9, "qwen3-32b": 32.7621e9,
}  # fmt: skip


def _plain(name: str) -> str:
    """Letters and digits only, so that "LLaMA3-8B", "Llama-3-8B" and "llama 3 8b" are one name."""
    return "".join(c for c in name.lower() if c.isalnum() or c == ".").replace(".", "p")


_ALIASES = {_plain(alias): name for alias, name in {
    "gpt2-small": "gpt2", "gpt2-124m": "gpt2", "gpt2-355m": "gpt2-medium", "gpt2-774m": "gpt2-large", "gpt2-1.5b": "gpt2-xl",
    "gpt3": "gpt3-175b", "gpt3-small": "gpt3-125m", "gpt3-medium": "gpt3-350m", "gpt3-large": "gpt3-760m", "gpt3-xl": "gpt3-1.3b",
    "gptj": "gpt-j-6b", "neox-20b": "gpt-neox-20b", "bloom": "bloom-176b", "llama-1-7b": "llama-7b", "llama-1-13b": "llama-13b",
    "llama-30b": "llama-33b", "code-llama-34b": "codellama-34b", "meta-llama-3-8b": "llama-3-8b", "meta-llama-3-70b": "llama-3-70b",
    "llama-405b": "llama-3.1-405b", "mistral-7b-v0.1": "mistral-7b",
}.items()}  # fmt: skip
_NAMES = {_plain(name): name for name in PRESETS} | _ALIASES


def names() -> list[str]:
    return list(PRESETS)


def find(name: str) -> dict[str, Any]:
    """Dimensions of a published model, with its `name`; spelling of case, hyphens and blanks does not matter.

    Raises:
      ValueError: an unknown name; the message lists near matches, if there are any.
    """
    known = _NAMES.get(_plain(name))
    if known is None:
        near = difflib.get_close_matches(_plain(name), _NAMES, n=5, cutoff=0.6)
        hint = f"near it: {', '.join(dict.fromkeys(_NAMES[n] for n in near))}" if near else "and none whose name is near"
        raise ValueError(f"name={name!r}: no such model, {hint}")
    return {"name": known, **PRESETS[known]}
