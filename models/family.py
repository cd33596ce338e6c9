"""A family of models: its configurations, its parameters, and where they stand in Hugging Face's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from .tables import Entry


@dataclass(frozen=True)
class Family:
    """Attributes:
    kind: "decoder", "encoder" or "encoder-decoder".
    ignored: regexes of names of tensors that hold nothing trained.
    """

    name: str
    model_type: str
    kind: str
    presets: Mapping[str, Any]
    build: Callable[[Any, nnx.Rngs], nnx.Module]
    table: Callable[[Any], tuple[Entry, ...]]
    ignored: tuple[str, ...]
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]

    def abstract(self, config: Any) -> dict[str, Any]:
        """Parameters as a nested dict of `jax.ShapeDtypeStruct`."""
        model = nnx.eval_shape(lambda: self.build(config, nnx.Rngs(0)))
        return nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])
