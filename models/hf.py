"""Hugging Face's config.json: every switch is read, known to change nothing, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .positions import RopeScaling, Rotary

ACTIVATIONS_OF = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "quick_gelu": "gelu_quick", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip
"""Their name -> ours."""
NAMES_OF_ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_new", "gelu_quick": "quick_gelu", "relu": "relu", "silu": "silu", "tanh": "tanh",
}  # fmt: skip
"""Ours -> the name that we write."""

# What says nothing of a model's numbers: where it came from, how other libraries run it, what other heads than a language model's want.
_NEUTRAL = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range", "initializer_factor",
    "_name_or_path", "name_or_path", "gradient_checkpointing", "id2label", "label2id", "num_labels", "task_specific_params", "auto_map",
    "problem_type", "return_dict", "output_attentions", "output_hidden_states", "output_past", "torchscript", "finetuning_task",
    "classifier_dropout", "_attn_implementation", "attn_implementation", "_commit_hash", "tokenizer_class", "prefix", "keys_to_ignore",
    "decoder_start_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "chunk_size_feed_forward", "pruned_heads",
    "output_router_logits", "n_ctx", "directionality", "tie_encoder_decoder",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip


class Switches:
    """Reads a config.json; `done` refuses what nobody asked for."""

    def __init__(self, family: str, config: Mapping[str, Any]):
        self.family, self.config = family, config
        self._read: set[str] = set(_NEUTRAL)
        self._wrong: list[str] = []
        if family != "t5":
            self.only("is_encoder_decoder", False)

    def get(self, name: str, default: Any = None) -> Any:
        """The value; the default where it is not there or null."""
        self._read.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        """A value that has no default."""
        if (value := self.get(name)) is None:
            self._wrong.append(f"{name} is missing")
            return 1
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """What is there must be one of these; null or nothing is always allowed."""
        if (value := self.get(name)) is not None and value not in allowed:
            self._wrong.append(f"{name}={value!r} is not supported (only {', '.join(map(repr, allowed)) or 'leaving it out'})")

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if value not in ACTIVATIONS_OF:
            self._wrong.append(f"{name}={value!r} is not supported (only {', '.join(ACTIVATIONS_OF)})")
        return ACTIVATIONS_OF.get(value, "gelu")

    def tokens(self) -> dict[str, Any]:
        """Fields of the tokens that begin, end and pad a text."""
        ends = self.get("eos_token_id")
        ends = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
        return {"bos_token": self.get("bos_token_id"), "eos_tokens": ends, "pad_token": self.get("pad_token_id")}

    def rotary(self, head_width: int, *, base: float = 10_000.0, share: float = 1.0, base_name: str = "rope_theta") -> Rotary:
        """From `rope_parameters`, or from what it was before version 5: `rope_theta` (or base_name) and `rope_scaling`."""
        both = dict(self.get("rope_scaling") or {}) | dict(self.get("rope_parameters") or {})
        kind = both.pop("rope_type", None) or both.pop("type", None) or "default"
        both.pop("type", None)
        base = self.get(base_name, base) if both.get("rope_theta") is None else both["rope_theta"]
        share = both.get("partial_rotary_factor") or self.get("partial_rotary_factor", share)
        both = {k: v for k, v in both.items() if k not in ("rope_theta", "partial_rotary_factor")}
        width = int(head_width * share)
        return Rotary(width=width, base=float(base), scaling=self._scaling(kind, both))

    def _scaling(self, kind: str, rest: dict[str, Any]) -> RopeScaling | None:
        names = _SCALING.get(kind)
        if kind == "default":
            names = {}
        if names is None:
            self._wrong.append(f"rope type {kind!r} is not supported (only default, {', '.join(_SCALING)})")
            return None
        if unknown := [f"rope_scaling.{name}={value!r}" for name, value in rest.items() if name not in names and value is not None]:
            self._wrong.append(f"{', '.join(unknown)} is not known for rope type {kind!r}")
            return None
        if kind == "default":
            return None
        given = {names[name]: value for name, value in rest.items() if value is not None}
        if "factor" not in given:
            self._wrong.append(f"rope_scaling.factor is missing for rope type {kind!r}")
            return None
        return RopeScaling(kind=kind, **given)  # type: ignore[arg-type]

    def done(self) -> None:
        """Raises ValueError that lists everything that is missing, unsupported or unknown."""
        if (given := self.config.get("model_type")) is not None and given != self.family:
            self._wrong.insert(0, f"model_type={given!r} is another family's")
        if self.get("quantization_config") is not None:
            self._wrong.append("quantization_config: weights are quantised; give a checkpoint in float32, float16 or bfloat16")
        unknown = [f"{name}={value!r}" for name, value in self.config.items() if name not in self._read and value is not None]
        if unknown:
            self._wrong.append(f"unknown switches {', '.join(unknown)}: remove them if they change nothing")
        if self._wrong:
            raise ValueError(f"config.json of {self.family}: {'; '.join(self._wrong)}")


_LONG = {"factor": "factor", "original_max_position_embeddings": "original_context"}
_SCALING: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": _LONG,
    "llama3": {**_LONG, "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"},
    "yarn": {
        **_LONG,
        **{name: name for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")},
    },
}
"""Kind -> their name of a field -> ours."""


def rope_scaling(rotary: Rotary) -> dict[str, Any] | None:
    """`rope_scaling` as it is written, which all versions read."""
    if (s := rotary.scaling) is None:
        return None
    values = {name: getattr(s, ours) for name, ours in _SCALING[s.kind].items()}
    return {"rope_type": s.kind, **{name: value for name, value in values.items() if value is not None}}


def written(family: str, architecture: str, config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what all families have."""
    ends: Any = list(config.eos_tokens)
    ends = None if not ends else ends[0] if len(ends) == 1 else ends
    tokens = {"bos_token_id": config.bos_token, "eos_token_id": ends, "pad_token_id": config.pad_token}
    return {"architectures": [architecture], "model_type": family, **values, **tokens}


_HOW_IT_RUNS = ("remat", "scan", "query_block", "dtype", "param_dtype", "init_scale", "capacity_factor")


def checked(from_hf: Any, config: Any, made: dict[str, Any]) -> dict[str, Any]:
    """`made`, if it says all that config does; ValueError names the fields that config.json has no words for."""
    again = from_hf(made)
    fields = [f.name for f in dataclasses.fields(config) if f.name not in _HOW_IT_RUNS]
    if lost := [name for name in fields if getattr(config, name) != getattr(again, name)]:
        said = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(f"{said}: config.json of {made['model_type']} cannot say so; use orbax, or another family")
    return made
