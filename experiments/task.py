"""What is trained: a model of some family, and what it learns from bytes of text."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import jax
import tyro

from models.families import find
from models.family import Family, resized
from wsejax.training.objectives import Objective, cross_entropy, objective_of, places
from wsejax.training.precision import Policy
from wsejax.training.precision import policy as policy_of

FLOAT32 = policy_of("float32")


@dataclass(frozen=True)
class ModelSettings:
    """The model. What is left at None is as the preset has it; the vocabulary is always the 256 bytes, and what stands for masked ones."""

    name: Annotated[str, tyro.conf.arg(name="model", prefix_name=False, metavar="FAMILY[:PRESET]")] = "gpt2:tiny"
    """gpt2, gptj, gpt_neox, llama, mistral, mixtral, falcon or mpt learn the next byte, bert and roberta masked ones, t5 spans that were
    cut out. The preset tiny trains in minutes on two cores."""
    layers: int | None = None
    """Blocks."""
    heads: int | None = None
    """Attention heads; must divide the width."""
    width: int | None = None
    """Features of the residual stream."""
    context: int | None = 128
    """Bytes of text that the model sees at once."""
    dropout: float | None = None
    """Probability that an activation is dropped in training."""
    remat: Literal["none", "full", "dots"] | None = None
    """What of a block is recomputed in the backward pass: nothing, everything, or all but its products. Less memory, more time."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Another field of the family's configuration, such as kv_heads=2 or window=None."""

    def family(self) -> Family:
        """Raises ValueError for a name that there is not."""
        return find(self.name)[0]

    def config(self, dtype: str = "float32") -> Any:
        """The model's own configuration. dtype: of its activations, where no flag says another. Raises ValueError for sizes that do not fit
        together."""
        family, preset = find(self.name)
        given = {name: getattr(self, name) for name in ("layers", "heads", "width", "context", "remat")}
        given = {name: value for name, value in given.items() if value is not None}
        given |= dropouts(preset, self.dropout)
        for text in self.set:
            name, value = self._field(text)
            if name in given:
                raise ValueError(f"--model.set {text}: {name} is given already; give it once")
            given[name] = value
        if dtype != "float32" and given.setdefault("dtype", dtype) != dtype:
            raise ValueError(f"--model.set dtype={given['dtype']}: --precision has the model compute in {dtype}; leave one of them out")
        context = given.get("context", preset.context)
        least = objective_of(family.kind, context).vocabulary
        if isinstance(size := given.setdefault("vocab_size", least), int) and size < least:
            raise ValueError(f"--model.set vocab_size={size}: bytes and what stands for hidden ones are {least} tokens; give at least that")
        # a preset's tokens are of its own vocabulary; T5's are bytes that no text has
        tokens = {"bos_token": None} if family.kind == "encoder-decoder" else {"bos_token": None, "eos_tokens": ()}
        if getattr(preset, "padding_token", None) is None and family.kind != "encoder-decoder":
            tokens["pad_token"] = None
        return resized(preset, **tokens, **given)

    @staticmethod
    def _field(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--model.set {text}: give FIELD=VALUE, such as kv_heads=2")
        try:
            return name, ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return name, value


def dropouts(config: Any, rate: float | None) -> dict[str, float]:
    """The fields of everything that a configuration drops, at one rate; none for None."""
    names = ("dropout", "embedding_dropout", "attention_dropout")
    return {} if rate is None else {name: rate for name in names if hasattr(config, name)}


def activation_bytes(config: Any, sequences: int, time: int) -> int:
    """Host memory of what a training step keeps for its backward pass, roughly: some 24 width-sized arrays and 3 score matrices a block, or
    the block's input alone where it is recomputed; the logits thrice."""
    layers, block = config.layers + getattr(config, "decoder_layers", 0), 24 * config.width + 3 * config.heads * time
    kept = layers * config.width + block if config.remat != "none" else layers * block
    return 4 * sequences * time * (kept + 3 * config.vocab_size)


@dataclass(frozen=True)
class Task:
    """A model and its objective, as pure functions. policy: the precision of the losses."""

    family: Family
    config: Any
    policy: Policy = FLOAT32

    @property
    def objective(self) -> Objective:
        return objective_of(self.family.kind, self.config.context)

    @property
    def maker(self) -> Callable[..., Any] | None:
        """What makes batches of windows; None: the usual."""
        return self.objective.batch if self.objective.draws else None

    @cached_property
    def parameter_count(self) -> int:
        return self.family.parameters(self.config)

    def init(self, seed: int) -> Any:
        """Random parameters."""
        return self.family.init(self.config, jax.random.key(seed))

    def apply(self, params: Any, *inputs: Any, **places: Any) -> jax.Array:
        """Logits; the last input may be a PRNG key, which turns dropout on."""
        return self.family.apply(self.config, params, *inputs, **places)

    def loss(self, params: Any, batch: Any, key: Any = None) -> jax.Array:
        """Mean loss of a batch, in nats per byte that is asked for."""
        return self.policy.apply(lambda params, batch, key: self.objective.loss(partial(self.apply, params), batch, key))(
            params, batch, key
        )

    def training_loss(self, params: Any, batch: Any, key: Any = None) -> jax.Array:
        """What is minimised: the loss, and for a mixture of experts its load-balancing loss times its weight."""
        return self.policy.apply(self._training_loss)(params, batch, key)

    def _training_loss(self, params: Any, batch: Any, key: Any) -> jax.Array:
        inputs = self.objective.inputs(batch)
        logits, balance = self.family.training_logits(self.config, params, *inputs, key=key, **places(batch))
        loss = cross_entropy(logits, batch["targets"], batch.get("weights"))
        return loss if balance is None else loss + balance

    @property
    def stochastic(self) -> bool:
        """Whether steps draw random numbers."""
        return self.config.stochastic


def task_of(settings: ModelSettings, precision: str = "float32") -> Task:
    """Raises ValueError for a name that there is not, or sizes that do not fit together."""
    policy = policy_of(precision)
    return Task(settings.family(), settings.config(policy.compute_dtype), policy)


def identity_of(settings: ModelSettings, precision: str = "float32") -> dict[str, Any]:
    """The model as it was resolved, as JSON values."""
    return {"name": settings.name, **dataclasses.asdict(task_of(settings, precision).config)}
