"""What `experiments.finetune` can be told, what it trains (all parameters, or adapters beside them), and by which loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from models import lora, weights
from models.families import described
from models.family import Family
from models.hf_files import read_config
from models.matching import configuration
from wsejax.training.objectives import cross_entropy
from wsejax.training.preference import Kind, check_preference, preference_loss, response_log_probability
from wsejax.training.provenance import as_json
from wsejax.training.state import TrainState, init_train_state

from .settings import LoopSettings, OptimiserSettings, WaferSettings
from .task import ModelSettings, dropouts, task_of

BYTES = "bytes"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, beside a model that stays as it is."""

    pattern: str | None = None
    """Which matrices get adapters: a regular expression of whole paths, such as "blocks/attention/(q|v)/kernel". Left out, there are none,
    and all parameters are trained."""
    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """What they give is multiplied by alpha / rank."""
    export: Path | None = None
    """New folder for the adapters alone, as the PEFT library reads them."""


@dataclass(frozen=True)
class PreferenceSettings:
    """Direct preference optimisation; with --method dpo."""

    beta: float = 0.1
    """How closely the model is held to what it was."""
    label_smoothing: float = 0.0
    """Share of the pairs that may be the wrong way round."""
    kind: Kind = "sigmoid"
    """Loss: sigmoid (DPO), or ipo."""


@dataclass(frozen=True)
class Settings:
    """Fine-tune a language model on an emulated wafer with real defects."""

    data: Path
    """JSON lines of {"prompt", "response"}, or of {"prompt", "chosen", "rejected"}."""
    weights: Path | None = None
    """Hugging Face folder of the model to begin with. Left out: the model of --model, with random parameters."""
    method: Literal["sft", "dpo"] = "sft"
    """Make responses likelier, or chosen ones more so than rejected ones (Rafailov et al. 2023)."""
    out: Path = Path("runs/finetune")
    """Folder for everything that the run writes. The same command again goes on from its newest checkpoint."""
    validation: Path | None = None
    """Examples of the same kind to measure the loss on, which are not learned."""
    export: Path | None = None
    """New folder for the trained model as Hugging Face weights, adapters merged."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FILE|bytes")] = None
    """tokenizer.json. Left out: that in --weights, or without --weights the bytes of UTF-8."""
    length: int | None = None
    """Tokens of prompt and response together, at most (with an encoder: of each). Left out: as many as the model reads."""
    truncate: bool = False
    """Cut what is too long: the end of responses, to half the length at least, and then the beginning of prompts."""
    steps: int = 100
    """Training steps."""
    batch: int = 8
    """Examples in a batch."""
    eval_every: int = 50
    """Steps between measurements of the validation loss (and one at the end)."""
    checkpoint_every: int = 50
    """Steps between checkpoints (and one at the end)."""
    keep: int = 3
    """Checkpoints to keep; at least 2."""
    seed: int = 0
    """Seed of random parameters and adapters, the order of the examples and dropout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters. Those that are trained are float32."""
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    dpo: PreferenceSettings = field(default_factory=PreferenceSettings)
    wafer: WaferSettings = field(default_factory=WaferSettings)
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(learning_rate=1e-4, warmup_steps=10, beta2=0.999, weight_decay=0.0)
    )
    loop: LoopSettings = field(default_factory=LoopSettings)

    def check(self) -> None:
        """Raises ValueError for what no run can have."""
        for name, least in {"steps": 2, "batch": 1, "eval_every": 1, "checkpoint_every": 1, "keep": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least {least}")
        self.loop.check()
        if self.loop.noise_scale or self.loop.norms_every is not None:
            raise ValueError("--loop.noise-scale and --loop.norms-every are of experiments.train; leave them out")
        if self.loop.patience is not None and self.validation is None:
            raise ValueError(f"--loop.patience {self.loop.patience} waits for the validation loss: give --validation, too")
        if self.weights is not None and not self.weights.is_dir():
            raise ValueError(f"--weights {self.weights}: is no folder; name the folder of config.json and model.safetensors")
        self.optimiser.check()
        if self.lora.pattern is None and self.dtype != "float32":
            raise ValueError(f"--dtype {self.dtype}: small updates would be lost in it; train adapters (--lora.pattern), or leave it out")
        if self.lora.pattern is None and self.lora.export is not None:
            raise ValueError(f"--lora.export {self.lora.export}: without --lora.pattern there are no adapters; give --export")

    def tokens_of(self) -> Path | None:
        """The tokenizer's file; None: bytes. Raises ValueError where it is not known."""
        if self.tokenizer is not None:
            return None if str(self.tokenizer) == BYTES else self.tokenizer
        if self.weights is None:
            return None
        if not (beside := self.weights / "tokenizer.json").is_file():
            raise ValueError(f"--weights {self.weights}: holds no tokenizer.json; give --tokenizer FILE, or --tokenizer {BYTES}")
        return beside

    def identity(self) -> dict[str, Any]:
        """All flags that decide the run's numbers and files."""
        values = as_json(dataclasses.asdict(self))
        for name in ("out", "keep", "export", "model", "tokenizer"):
            del values[name]
        del values["lora"]["export"], values["loop"]["tensorboard"]
        return values | ({"wafer": {"off": True}} if self.wafer.off else {})


@dataclass(frozen=True)
class Tuning:
    """A model, and what is trained of it, as pure functions.

    `trained` are the parameters, and `base` is empty; or `trained` are adapters, and `base` the parameters, which stay.
    """

    family: Family
    config: Any
    method: Literal["sft", "dpo"] = "sft"
    lora: LoraSettings = field(default_factory=LoraSettings)
    dpo: PreferenceSettings = field(default_factory=PreferenceSettings)

    def __post_init__(self) -> None:
        if self.family.kind == "encoder":
            raise ValueError(f"{self.family.name} is an encoder, which writes no text and so has no responses; give a decoder, or t5")
        if self.adapts:
            assert self.lora.pattern is not None
            try:
                lora.matched(self.family, self.config, self.lora.pattern, self.lora.rank)
            except ValueError as error:
                raise ValueError(f"--lora.{str(error).replace('=', ' ', 1)}") from None
        if self.method == "dpo":
            try:
                check_preference(self.dpo.beta, self.dpo.label_smoothing, self.dpo.kind)
            except ValueError as error:
                raise ValueError(f"--dpo.{str(error).replace('_', '-').replace('=', ' ', 1)}") from None

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, and nothing else."""
        return self.lora.pattern is not None

    @property
    def stochastic(self) -> bool:
        """Whether steps draw random numbers: preferences are compared without dropout."""
        return self.method == "sft" and self.config.stochastic

    @cached_property
    def abstract(self) -> Any:
        """Shapes of the parameters."""
        return self.family.abstract(self.config)

    def initial_state(self, params: Any, tx: Any, seed: int) -> TrainState:
        """The state before the first step."""
        if not self.adapts:
            return init_train_state(params, tx, seed=seed)
        assert self.lora.pattern is not None
        adapters = lora.init(self.family, self.config, jax.random.key(seed), pattern=self.lora.pattern, rank=self.lora.rank)
        return init_train_state(adapters, tx, seed=seed)

    def merged(self, trained: Any, base: Any) -> Any:
        """The parameters of the model."""
        return lora.merge(base, trained, alpha=self.lora.alpha) if self.adapts else trained

    def loss(self, trained: Any, base: Any, batch: Any, key: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What is minimised, and what else there is to tell. A key turns dropout on."""
        params = self.merged(trained, base)
        if self.method == "sft":
            return self._response_loss(params, batch, key), {}
        found, reference = self.log_probabilities(params, batch), batch["reference"]
        pairs = found.shape[0] // 2
        how = dataclasses.asdict(self.dpo)
        return preference_loss(found[:pairs], found[pairs:], reference[:pairs], reference[pairs:], **how)

    def log_probabilities(self, params: Any, batch: Any) -> jax.Array:
        """log p of each response of a batch, in nats."""
        return response_log_probability(self._logits(params, batch, None)[0], batch["targets"], batch["weights"])

    def _response_loss(self, params: Any, batch: Any, key: Any) -> jax.Array:
        """Mean cross-entropy of the responses' tokens, with the load-balancing loss of a mixture of experts where there is one."""
        logits, balance = self._logits(params, batch, key)
        loss = cross_entropy(logits, batch["targets"], batch["weights"])
        return loss if balance is None else loss + balance

    def _logits(self, params: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        inputs = (batch["tokens"], batch["answer"]) if self.family.kind == "encoder-decoder" else (batch["tokens"],)
        return self.family.training_logits(self.config, params, *inputs, key=key, present=batch["present"])


def model_of(folder: Path | None, model: ModelSettings) -> tuple[Family, Any]:
    """The family and configuration of a Hugging Face folder, or of the flags.

    Raises ValueError for a folder of no known model, flags that do not fit together, or sizes given beside a folder.
    """
    if folder is None:
        task = task_of(model)
        return task.family, task.config
    usual = dataclasses.asdict(ModelSettings(dropout=model.dropout, remat=model.remat))
    if sizes := [name for name, value in dataclasses.asdict(model).items() if value != usual[name]]:
        said = ", ".join("--model" if name == "name" else f"--model.{name}" for name in sizes)
        raise ValueError(f"{said} with --weights {folder}: its config.json says what the model is; leave that out")
    values = read_config(folder)
    family = described(values, f"--weights {folder}")
    config = configuration(values, family, str(folder))
    given = {} if model.remat is None else {"remat": model.remat}
    return family, dataclasses.replace(config, **given, **dropouts(config, model.dropout))


def initial_params(family: Family, config: Any, folder: Path | None, seed: int, shardings: Any) -> Any:
    """The parameters that training begins with, laid out: of a folder, or random."""
    if folder is not None:
        return weights.load(folder, family, config, shardings=shardings, dtype=config.param_dtype)[1]
    return jax.device_put(jax.jit(lambda: family.init(config, jax.random.key(seed)))(), shardings)
