"""A transformer by its dimensions: all that a price of training or inference needs to know of a model, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLM:
    """Dimensions of a transformer. Counts, no units.

    Raises:
      ValueError: a dimension that is no positive integer, a flag that is neither true nor false, or heads that do not divide.
    """

    name: str
    layers: int
    width: int  # of the residual stream
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context: int
    gated: bool = True  # three matrices in the MLP (SwiGLU), else two
    tied: bool = False  # the output head is the token table
    causal: bool = True

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "kv_heads", "head_width", "ffn_width", "vocab_size", "context"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field}={value!r}: a dimension of a model is a positive integer")
        for field in ("gated", "tied", "causal"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field}={getattr(self, field)!r}: must be true or false")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")

    @classmethod
    def from_dict(cls, dims: Mapping[str, Any]) -> LLM:
        """From JSON of dimensions. `kv_heads` defaults to `heads`, `head_width` to width / heads, `name` to "model".

        Raises:
          ValueError: a missing or an unknown key; the message lists both kinds.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values = {"name": "model", **dims}
        values.setdefault("kv_heads", values.get("heads"))
        if "head_width" not in values and isinstance(values.get("width"), int) and isinstance(values.get("heads"), int):
            values["head_width"] = values["width"] // max(1, values["heads"])
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        missing, unknown = sorted(needed - set(values)), sorted(set(values) - known)
        if missing or unknown:
            raise ValueError(
                f"dims={dict(dims)!r}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; known are {sorted(known)}"
            )
        return cls(**values)

    @property
    def block_parameters(self) -> int:
        """Weights of the matrices of one layer."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return attention + (3 if self.gated else 2) * self.width * self.ffn_width

    @property
    def parameters(self) -> int:
        """Weights of all matrices and tables; norms and biases, under 0.1%, are left out."""
        return self.layers * self.block_parameters + (1 if self.tied else 2) * self.vocab_size * self.width

    def train_flops_per_token(self, seq_len: int) -> float:
        """6 N + 12 layers width seq_len, with N the weights that multiply (the table of tokens does not) and full attention."""
        multiplied = self.layers * self.block_parameters + self.vocab_size * self.width
        return 6.0 * multiplied + 12.0 * self.layers * self.heads * self.head_width * seq_len

    def kv_bytes_per_token(self, itemsize_bytes: int = 2) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * itemsize_bytes
