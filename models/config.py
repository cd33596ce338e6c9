"""What the configurations of all families have in common: sizes, special tokens, how a model runs, and what is checked."""

from __future__ import annotations

import dataclasses
from typing import get_args

from .layers import ACTIVATIONS, Remat
from .positions import Rotary

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "int | None": (int, type(None)),
    "float | None": (int, float, type(None)), "str | None": (str, type(None)), "tuple[int, ...]": (tuple,),
    "Rotary | None": (Rotary, type(None)),
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes count elements, dropouts are probabilities, scales of initial values standard deviations.

    Raises:
      ValueError: sizes that do not fit together, or a value that there is not; the message names field and value.
    """

    vocab_size: int = 256
    context: int = 128  # longest sequence
    layers: int = 4
    width: int = 128  # features of the residual stream
    heads: int = 8
    head_width: int = 0  # 0: width / heads
    ffn_width: int = 0  # 0: four times the width
    norm_epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    tied: bool = True  # the head is the token table
    dropout: float = 0.0  # of what a block adds
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()
    pad_token: int | None = None
    mup_base_width: int | None = None  # muP, which is the standard parametrisation at this width (`mup.py`); None: standard at every width
    mup_base_head_width: int = 0  # head_width at that width; 0: of as many heads
    # how it runs; none of these is part of the model
    remat: Remat = "none"
    scan: bool = True  # one compiled block run `layers` times; False unrolls
    query_block: int | None = None  # queries whose scores exist at a time; None: all
    dtype: str = "float32"  # of activations; norms' statistics, softmax and logits are float32
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        self._kinds()
        if not self.head_width:
            self._heads_divide_width()
        self._fill("head_width", self.width // max(1, self.heads))
        self._fill("ffn_width", 4 * self.width)
        self._at_least_one("vocab_size", "context", "layers", "width", "heads", "head_width", "ffn_width")
        self._one_of("activation", tuple(ACTIVATIONS))
        self._one_of("remat", get_args(Remat))
        self._one_of("dtype", DTYPES)
        self._one_of("param_dtype", DTYPES)
        self._probability("dropout")
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon={self.norm_epsilon}: must be above 0")
        if self.query_block is not None:
            self._at_least_one("query_block")
        self._base()

    def _kinds(self) -> None:
        """What a field is declared to hold, for those of plain kinds: a text from a command line is no number, and no is not False."""
        for field in dataclasses.fields(self):
            kinds, value = _KINDS.get(str(field.type)), getattr(self, field.name)
            if kinds is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
                continue
            raise ValueError(f"{field.name}={value!r}: give {field.type}".replace(" | ", " or "))

    def _heads_divide_width(self) -> None:
        if self.heads > 0 and self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}: every head needs width / heads features")

    def _base(self) -> None:
        base, given = self.mup_base_width, self.mup_base_head_width
        if base is None:
            if given:
                raise ValueError(f"mup_base_head_width={given} without mup_base_width: give both, or neither")
            return
        self._at_least_one("mup_base_width")
        if given < 0:
            raise ValueError(f"mup_base_head_width={given}: give a whole number of at least 1, or 0 for as many heads")
        if not given and self.head_width * base % self.width:
            raise ValueError(
                f"mup_base_width={base} does not divide by heads={self.heads} into heads of whole features, as width={self.width} has them "
                f"of {self.head_width}: give another width, or mup_base_head_width"
            )

    @property
    def base_width(self) -> int:
        """Where muP and the standard parametrisation are one; this width, without muP."""
        return self.mup_base_width or self.width

    @property
    def base_head_width(self) -> int:
        return self.mup_base_head_width or self.head_width * self.base_width // self.width

    @property
    def hidden_scale(self) -> float:
        """Of initial values of matrices between features, against the base's: their variance falls with what they sum over."""
        return (self.base_width / self.width) ** 0.5

    @property
    def scores_scale(self) -> float:
        """Of attention's scores: `attention_scale` (None: head_width ** -0.5) at the base, and 1 / head_width beside it."""
        base, at_base = self.base_head_width, getattr(self, "attention_scale", None)
        return (base**-0.5 if at_base is None else at_base) * (base / self.head_width)

    @property
    def logits_scale(self) -> float:
        """Of what the head reads."""
        return self.base_width / self.width

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers."""
        rates = (getattr(self, name, 0.0) for name in ("dropout", "embedding_dropout", "attention_dropout"))
        return max(rates) > 0

    def _fill(self, name: str, value: object) -> None:
        """What follows from other fields, where the field is 0 or None."""
        object.__setattr__(self, name, getattr(self, name) or value)

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        if getattr(self, name) not in known:
            raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(known)}")

    def _probability(self, *names: str) -> None:
        for name in names:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
