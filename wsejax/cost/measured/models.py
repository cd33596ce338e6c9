"""Dimensions of the models that published measurements name, as on their papers and model cards; norms and biases are left out.

The same numbers as in the presets that the command line offers, which this package may not import: a test holds the two together.
"""

from __future__ import annotations

import difflib
import re

from ..llm import LLM
from ..points import Unpredictable

# (layers, width, heads, keys' heads, width of the MLP, tokens known, context). Gated MLP, a head of its own, heads that share the width.
_GATED: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "llama-33b": (60, 6656, 52, 52, 17920, 32000, 2048),  # Touvron et al. 2023 (a); 7B and 13B are those of Llama 2 but for the context
    "llama-65b": (80, 8192, 64, 64, 22016, 32000, 2048),
    "llama-2-7b": (32, 4096, 32, 32, 11008, 32000, 4096),  # Touvron et al. 2023 (b)
    "llama-2-13b": (40, 5120, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": (80, 8192, 64, 8, 28672, 32000, 4096),
    "codellama-7b": (32, 4096, 32, 32, 11008, 32016, 16384),  # Roziere et al. 2023
    "codellama-13b": (40, 5120, 40, 40, 13824, 32016, 16384),
    "codellama-34b": (48, 8192, 64, 8, 22016, 32000, 16384),
    "llama-3-8b": (32, 4096, 32, 8, 14336, 128256, 8192),  # Dubey et al. 2024
    "llama-3-70b": (80, 8192, 64, 8, 28672, 128256, 8192),
    "llama-3.1-8b": (32, 4096, 32, 8, 14336, 128256, 131072),
    "llama-3.1-70b": (80, 8192, 64, 8, 28672, 128256, 131072),
    "llama-3.1-405b": (126, 16384, 128, 8, 53248, 128256, 131072),
    "llama-3.2-1b": (16, 2048, 32, 8, 8192, 128256, 131072),
    "llama-3.2-3b": (28, 3072, 24, 8, 8192, 128256, 131072),
    "llama-3.3-70b": (80, 8192, 64, 8, 28672, 128256, 131072),
    "mistral-7b": (32, 4096, 32, 8, 14336, 32000, 32768),  # Jiang et al. 2023
    "qwen2-7b": (28, 3584, 28, 4, 18944, 152064, 131072),  # Yang et al. 2024 and 2025
    "qwen2-72b": (80, 8192, 64, 8, 29568, 152064, 131072),
    "qwen2.5-7b": (28, 3584, 28, 4, 18944, 152064, 131072),
    "qwen2.5-32b": (64, 5120, 40, 8, 27648, 152064, 131072),
    "qwen2.5-72b": (80, 8192, 64, 8, 29568, 152064, 131072),
    "qwen3-0.6b": (28, 1024, 16, 8, 3072, 151936, 40960),
    "qwen3-1.7b": (28, 2048, 16, 8, 6144, 151936, 40960),
    "qwen3-4b": (36, 2560, 32, 8, 9728, 151936, 40960),
    "qwen3-8b": (36, 4096, 32, 8, 12288, 151936, 40960),
    "qwen3-14b": (40, 5120, 40, 8, 17408, 151936, 40960),
    "qwen3-32b": (64, 5120, 64, 8, 25600, 151936, 40960),
}
# (layers, width, heads, tokens known, context). An MLP of two matrices, four times as wide; as many keys as queries.
_PLAIN: dict[str, tuple[int, int, int, int, int]] = {
    "gpt2": (12, 768, 12, 50257, 1024),  # Radford et al. 2019
    "gpt2-medium": (24, 1024, 16, 50257, 1024),
    "gpt2-large": (36, 1280, 20, 50257, 1024),
    "gpt2-xl": (48, 1600, 25, 50257, 1024),
    "gpt3-175b": (96, 12288, 96, 50257, 2048),  # Brown et al. 2020; its smaller ones have the dimensions of Cerebras-GPT
    "gpt-j-6b": (28, 4096, 16, 50400, 2048),  # Wang and Komatsuzaki 2021
    "gpt-neox-20b": (44, 6144, 64, 50432, 2048),  # Black et al. 2022
    "cerebras-gpt-111m": (10, 768, 12, 50257, 2048),  # Dey et al. 2023
    "cerebras-gpt-256m": (14, 1088, 17, 50257, 2048),
    "cerebras-gpt-590m": (18, 1536, 12, 50257, 2048),
    "cerebras-gpt-1.3b": (24, 2048, 16, 50257, 2048),
    "cerebras-gpt-2.7b": (32, 2560, 32, 50257, 2048),
    "cerebras-gpt-6.7b": (32, 4096, 32, 50257, 2048),
    "cerebras-gpt-13b": (40, 5120, 40, 50257, 2048),
    "pythia-70m": (6, 512, 8, 50304, 2048),  # Biderman et al. 2023
    "pythia-160m": (12, 768, 12, 50304, 2048),
    "pythia-410m": (24, 1024, 16, 50304, 2048),
    "pythia-1b": (16, 2048, 8, 50304, 2048),
    "pythia-1.4b": (24, 2048, 16, 50304, 2048),
    "pythia-2.8b": (32, 2560, 32, 50304, 2048),
    "pythia-6.9b": (32, 4096, 32, 50432, 2048),
    "pythia-12b": (36, 5120, 40, 50688, 2048),
    "opt-1.3b": (24, 2048, 32, 50272, 2048),  # Zhang et al. 2022
    "opt-6.7b": (32, 4096, 32, 50272, 2048),
    "opt-13b": (40, 5120, 40, 50272, 2048),
    "opt-30b": (48, 7168, 56, 50272, 2048),
    "opt-66b": (64, 9216, 72, 50272, 2048),
    "opt-175b": (96, 12288, 96, 50272, 2048),
    "bloom-176b": (70, 14336, 112, 250880, 2048),  # Scao et al. 2022
    "mpt-7b": (32, 4096, 32, 50432, 2048),  # MosaicML 2023
    "mpt-30b": (48, 7168, 64, 50432, 8192),
    "falcon-7b": (32, 4544, 71, 65024, 2048),  # Almazrouei et al. 2023
    "falcon-40b": (60, 8192, 128, 65024, 2048),
    "bert-base": (12, 768, 12, 30522, 512),  # Devlin et al. 2019
    "bert-large": (24, 1024, 16, 30522, 512),
    "esm-2-35m": (12, 480, 20, 33, 1024),  # Lin et al. 2023
    "esm-2-150m": (30, 640, 20, 33, 1024),
    "esm-2-650m": (33, 1280, 20, 33, 1024),
    "esm-2-3b": (36, 2560, 40, 33, 1024),
}
_TIED = ("gpt2", "gpt3", "cerebras", "opt", "bloom", "mpt", "falcon", "bert", "esm", "llama-3.2", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
_OTHER: dict[str, dict[str, int]] = {  # that do not follow from the width: heads of Qwen 3, and keys that Falcon's heads share
    **{name: {"head_width": 128} for name in ("qwen3-0.6b", "qwen3-4b", "qwen3-32b")},
    "falcon-7b": {"kv_heads": 1},
    "falcon-40b": {"kv_heads": 8},
}
_ALIASES = {
    "llama-7b": "llama-2-7b", "llama-1-7b": "llama-2-7b", "llama-13b": "llama-2-13b", "llama-1-13b": "llama-2-13b",
    "llama-30b": "llama-33b", "llama-70b": "llama-2-70b", "llama-8b": "llama-3.1-8b", "llama-405b": "llama-3.1-405b",
    "pythia-1.0b": "pythia-1b", "gptj": "gpt-j-6b", "gpt2-small": "gpt2", "gpt2-1.5b": "gpt2-xl", "bloom": "bloom-176b",
} | {f"gpt3-{size}": f"cerebras-gpt-{size}" for size in ("111m", "256m", "590m", "1.3b", "2.7b", "6.7b", "13b")}  # fmt: skip


def _llm(name: str) -> LLM:
    if name in _GATED:
        layers, width, heads, kv_heads, ffn, vocab, context = _GATED[name]
    else:
        layers, width, heads, vocab, context = _PLAIN[name]
        kv_heads, ffn = heads, 4 * width
    dims = dict(layers=layers, width=width, heads=heads, kv_heads=kv_heads, ffn_width=ffn, vocab_size=vocab, context=context)
    flags = dict(gated=name in _GATED, tied=name.startswith(_TIED), causal=not name.startswith(("bert", "esm")))
    return LLM.from_dict({"name": name, **dims, **flags, **_OTHER.get(name, {})})


MODELS: dict[str, LLM] = {name: _llm(name) for name in (*_GATED, *_PLAIN)}


def _key(name: str) -> str:
    """Without spelling: "LLaMA3-8B" and "Meta Llama 3 8B" are one name."""
    plain = re.sub(r"[^a-z0-9.]", "", re.sub(r"\(.*?\)", "", name.lower())).replace(".", "p")
    return plain.removeprefix("meta")


_BY_KEY = {_key(name): llm for name, llm in MODELS.items()} | {_key(alias): MODELS[name] for alias, name in _ALIASES.items()}


def known(name: str) -> LLM | None:
    """By its name, whatever follows it ("Qwen3-1.7B prefill", "Llama-3-8B-Instruct") and however it is spelled; None if it is not here."""
    key = _key(name)
    fitting = [k for k in _BY_KEY if key.startswith(k) and not key[len(k) :][:1].isdigit()]
    return _BY_KEY[max(fitting, key=len)] if fitting else None


def find(name: str) -> LLM:
    """As `known`.

    Raises:
      Unpredictable: an unknown name; the reason lists near ones.
    """
    if (llm := known(name)) is not None:
        return llm
    near = [_BY_KEY[k].name for k in difflib.get_close_matches(_key(name), _BY_KEY, n=3, cutoff=0.6)]
    hint = (
        f"; near it: {', '.join(dict.fromkeys(near))}" if near else f"; known are {len(MODELS)} models from {min(MODELS)} to {max(MODELS)}"
    )
    raise Unpredictable(f"model={name!r}: dimensions not known here{hint}")
