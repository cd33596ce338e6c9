"""Hugging Face's config.json: every switch is read, known to change nothing, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from . import int8_files
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
    "tokenizer_name", "decoder_start_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "chunk_size_feed_forward",
    "output_router_logits", "n_ctx", "directionality",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip


class Switches:
    """Reads a config.json; `done` refuses what nobody asked for."""

    def __init__(self, family: str, config: Mapping[str, Any]):
        self.family, self.config = family, config
        self._read: set[str] = set(_NEUTRAL)
        self._wrong: list[str] = []
        self.only("pruned_heads", {}, [])
        self.only("tie_encoder_decoder", False)
        if family != "t5":
            self.only("is_encoder_decoder", False)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, of the default's kind; the default where it is not there or null."""
        self._read.add(name)
        if (value := self.config.get(name)) is None:
            return default
        if (kind := _kind(default)) is not None and _kind(value) != kind:
            self._wrong.append(f"{name}={value!r} is not {kind}")
            return default
        return value

    def whole(self, name: str) -> int | None:
        """A whole number, or None where it is not there or null."""
        value = self.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        self._wrong.append(f"{name}={value!r} is no whole number")
        return None

    def need(self, name: str, default: int | None = None) -> Any:
        """A whole number of at least 1, which must be there if it has no default."""
        value = default if self.config.get(name) is None else self.whole(name)
        if value is None and self.config.get(name) is None:
            self._wrong.append(f"{name} is missing")
        if value is not None and value < 1:
            self._wrong.append(f"{name}={value}: must be at least 1")
        return max(1, value or 1)

    def number(self, name: str) -> float | None:
        """A number, or None where it is not there or null."""
        return None if self.config.get(name) is None else self.get(name, 1.0)

    def section(self, name: str) -> dict[str, Any]:
        """Switches under a name of their own; none where it is not there or null."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._wrong.append(f"{name}={value!r} is not a group of switches")
            return {}
        return dict(value or {})

    def only(self, name: str, *allowed: Any) -> None:
        """What is there must be one of these; null or nothing is always allowed."""
        if (value := self.get(name)) is not None and value not in allowed:
            self._wrong.append(f"{name}={value!r} is not supported (only {', '.join(map(repr, allowed)) or 'leaving it out'})")

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS_OF:
            self._wrong.append(f"{name}={value!r} is not supported (only {', '.join(ACTIVATIONS_OF)})")
            return "gelu"
        return ACTIVATIONS_OF[value]

    def tokens(self) -> dict[str, Any]:
        """Fields of the tokens that begin, end and pad a text."""
        several = isinstance(self.get("eos_token_id"), list)
        ends = self.get("eos_token_id") if several else [self.whole("eos_token_id")]
        return {
            "bos_token": self.whole("bos_token_id"), "eos_tokens": tuple(end for end in ends if end is not None),
            "pad_token": self.whole("pad_token_id"),
        }  # fmt: skip

    def rotary(self, head_width: int, *, base: float = 10_000.0, share: float = 1.0, base_name: str = "rope_theta") -> Rotary:
        """From `rope_parameters`, or from what it was before version 5: `rope_theta` (or base_name) and `rope_scaling`."""
        both = self.section("rope_scaling") | self.section("rope_parameters")
        kind = both.pop("rope_type", None) or both.pop("type", None) or "default"
        both.pop("type", None)
        beside = self.get(base_name, self.get("rope_theta", base))
        base = self._number("rope_theta", both.pop("rope_theta", None), beside)
        given = self._number("partial_rotary_factor", both.pop("partial_rotary_factor", None), self.get("partial_rotary_factor", share))
        if base_name == "rope_theta" and given != share:  # only GPT-NeoX's reference turns a part of a head
            self._wrong.append(f"partial_rotary_factor={given} is not supported (only {share})")
        width = self.pairs(int(head_width * given), f"{given} of the head's {head_width}")
        return Rotary(width=width, base=base, scaling=self._scaling(kind, both))

    def _number(self, name: str, value: Any, default: float) -> float:
        """A number above 0 (a share may be 0, which is then too few features); the default for None."""
        value = default if value is None else value
        if _kind(value) != "a number" or value < 0 or (value == 0 and name == "rope_theta"):
            self._wrong.append(f"{name}={value!r} is no number above 0")
            return 1.0
        return float(value)

    def pairs(self, width: int, said: str) -> int:
        """A number of features that are turned in pairs."""
        if width >= 2 and width % 2 == 0:
            return width
        if not self._wrong:  # else it may follow from what is missing
            self._wrong.append(f"rotary positions of {width} features ({said}) are not supported (only an even number of them)")
        return 2

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
        needed = ("factor", *_NEEDED.get(kind, ()))
        if missing := [f"rope_scaling.{name}" for name in needed if rest.get(name) is None]:
            self._wrong.append(f"{', '.join(missing)} missing for rope type {kind!r}")
            return None
        if odd := [f"rope_scaling.{name}={value!r}" for name, value in rest.items() if value is not None and _kind(value) is None]:
            self._wrong.append(f"{', '.join(odd)} is no number")
            return None
        given = {names[name]: value for name, value in rest.items() if value is not None}
        try:
            return RopeScaling(kind=kind, **given)  # type: ignore[arg-type]
        except ValueError as error:
            self._wrong.append(f"rope_scaling: {error}")
            return None

    def done(self) -> None:
        """Raises ValueError that lists everything that is missing, unsupported or unknown."""
        if (given := self.config.get("model_type")) is not None and given != self.family:
            self._wrong.insert(0, f"model_type={given!r} is another family's")
        if (quantised := self.get("quantization_config")) is not None and (why := int8_files.refusal(quantised)):
            self._wrong.append(f"quantization_config: weights are quantised, and {why}")
        unknown = [f"{name}={value!r}" for name, value in self.config.items() if name not in self._read and value is not None]
        if unknown:
            self._wrong.append(f"unknown switches {', '.join(unknown)}: remove them if they change nothing")
        if self._wrong:
            raise ValueError(f"config.json of {self.family}: {'; '.join(self._wrong)}")


def _kind(value: Any) -> str | None:
    return "true or false" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else None


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
_NEEDED = {
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
}


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


# What is no part of a trained model: how it runs, how it began, and what was dropped in training.
_APART = ("remat", "scan", "query_block", "dtype", "param_dtype", "init_scale", "dropout", "embedding_dropout", "attention_dropout")


def checked(from_hf: Any, config: Any, made: dict[str, Any]) -> dict[str, Any]:
    """`made`, if it says all that config does; ValueError names the fields that config.json has no words for."""
    if config.mup_base_width is not None:
        raise ValueError(
            f"mup_base_width={config.mup_base_width}: config.json of {made['model_type']} cannot say so; fold muP's multipliers into the "
            "parameters (models.mup.folded), or use orbax"
        )
    again = from_hf(made)
    fields = [f.name for f in dataclasses.fields(config) if f.name not in _APART]
    if lost := [name for name in fields if getattr(config, name) != getattr(again, name)]:
        said = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(f"{said}: config.json of {made['model_type']} cannot say so; use orbax, or another family")
    return made
