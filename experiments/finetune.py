"""Fine-tune a language model on an emulated wafer: `python -m experiments.finetune --help`.

From prompts and responses (--method sft), or from pairs of responses of which one is preferred (--method dpo); all parameters, or low-rank
adapters beside them (--lora.pattern). The folder given by --out gets config.json, manifest.jsonl, metrics.jsonl, loss.png, wafer.png,
audit.txt and checkpoints/. The same command again goes on from the newest good checkpoint, as if the run had never stopped.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

import wsejax as wse
from models import peft, weights
from wsejax.inference import Bytes, FromFile
from wsejax.report import plot_loss, plot_wafer
from wsejax.training.data import name_from_here
from wsejax.training.ema import ema_of
from wsejax.training.examples import PREFERENCES, RESPONSES, Examples, fitted, laid_out, read_examples, tokenised
from wsejax.training.provenance import Provenance, as_json, file_digest, origin, program_digest
from wsejax.training.rundir import (
    MetricsLog,
    RunDirectory,
    available_host_bytes,
    check_run_directory,
    require_host_memory,
    write_atomically,
)
from wsejax.training.shares import lay_out
from wsejax.training.state import TrainState, make_train_step

from .reproduce import sources
from .running import concluded, run_steps
from .supervise import refuse
from .task import activation_bytes
from .tuning import Settings, Tuning, initial_params, model_of


@dataclass(frozen=True)
class Run:
    """A checked configuration and what it stands for; making one writes nothing. `said`: what the user should know before it begins."""

    settings: Settings
    tuning: Tuning
    examples: Examples
    held_out: Examples | None
    wafer: wse.Wafer | None
    files: list[dict[str, Any]]
    identity: dict[str, Any]
    said: tuple[str, ...]

    @cached_property
    def tx(self) -> Any:
        return self.settings.optimiser.build(self.settings.steps, model=(self.tuning.family, self.tuning.config))

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state."""
        return jax.eval_shape(lambda params: self.tuning.initial_state(params, self.tx, self.settings.seed), self.tuning.abstract)

    @property
    def abstract_base(self) -> Any:
        """Shapes of the parameters that stay."""
        return self.tuning.abstract if self.tuning.adapts else {}

    def like(self, examples: Examples) -> dict[str, Any]:
        """Shapes of a batch."""
        batch = examples.batch(np.zeros(self.settings.batch, np.int64))
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}
        rows = shapes["weights"].shape[:1]
        return shapes | ({"reference": jax.ShapeDtypeStruct(rows, np.float32)} if self.settings.method == "dpo" else {})

    def step(self, state: TrainState, base: Any, batch: Any) -> tuple[TrainState, Any]:
        """One step, as a pure function."""
        rate = self.settings.optimiser.schedule(self.settings.steps)
        loss = lambda trained, batch, key: self.tuning.loss(trained, base, batch, key)
        return make_train_step(loss, self.tx, learning_rate=rate, stochastic=self.tuning.stochastic, has_aux=True)(state, batch)

    def evaluate(self, trained: Any, base: Any, batch: Any) -> jax.Array:
        """The loss of a batch."""
        return self.tuning.loss(trained, base, batch)[0]


# ---- before it begins --------------------------------------------------------------------------------------------------
def prepare(settings: Settings) -> Run:
    """Check everything that can be wrong before anything is written. Raises ValueError, OSError or MemoryError for the user to read."""
    settings.check()
    family, config = model_of(settings.weights, settings.model)
    config = dataclasses.replace(config, param_dtype=settings.dtype)
    tuning = Tuning(family, config, settings.method, settings.lora, settings.dpo)
    if tuning.adapts and getattr(config, "mup_base_width", None) is not None:
        raise ValueError(
            "--lora.pattern with mup_base_width: muP says no learning rate of adapters; train all parameters, or leave muP out"
        )
    tokenizer = settings.tokens_of()
    examples, words = load_examples(settings, settings.data, tuning, tokenizer)
    held_out, more = (None, "") if settings.validation is None else load_examples(settings, settings.validation, tuning, tokenizer)
    said = [words, more] + ([] if settings.weights else [f"--weights is not given: {settings.model.name} begins with random parameters"])
    wafer = settings.wafer.build()
    needed = training_bytes(tuning, examples, settings.batch)
    shape = f"batches of {settings.batch} x {examples.arrays['tokens'].shape[-1]} tokens"
    require_host_memory(
        needed, f"training {family.parameters(config):,} parameters with {shape}", available_bytes=available_host_bytes(),
        instead="give a smaller model, --batch or --length, --model.remat full, or adapters (--lora.pattern)",
    )  # fmt: skip
    if settings.export is not None:
        try:
            family.to_hf(config)
        except ValueError as error:
            raise ValueError(f"--export {settings.export}: {error}") from None
    inputs = [settings.data, settings.validation, tokenizer]
    inputs += sorted(settings.weights.glob("*.safetensors")) if settings.weights else []
    files = [{"name": name_from_here(path), **file_digest(path)} for path in dict.fromkeys(inputs) if path is not None]
    read = {"digest": examples.digest, "held_out_digest": held_out and held_out.digest, "files": [file["sha256"] for file in files]}
    identity = settings.identity() | {"model": {"name": family.name, **as_json(dataclasses.asdict(config))}, "read": read}
    if wafer is not None:
        identity["wafer"]["defects_digest"] = wafer.defects.digest
    resumed = check_run_directory(settings.out, identity)
    for flag, folder in (("--export", settings.export), ("--lora.export", settings.lora.export)):
        if folder is not None and holds_something(folder) and not resumed:
            raise ValueError(f"{flag} {folder}: is a file, or a folder that is not empty; name a new one")
    return Run(settings, tuning, examples, held_out, wafer, files, identity, tuple(filter(None, said)))


def load_examples(settings: Settings, path: Path, tuning: Tuning, tokenizer: Path | None) -> tuple[Examples, str]:
    """The examples of a file, and in words how many there are and what was cut off. Raises ValueError or OSError for bad ones."""
    wanted = PREFERENCES if settings.method == "dpo" else RESPONSES
    kind, texts = read_examples(path)
    if kind != wanted:
        other = "sft" if settings.method == "dpo" else "dpo"
        raise ValueError(
            f"{path} holds {' and '.join(kind)}, and --method {settings.method} wants {' and '.join(wanted)}; give --method {other}"
        )
    config, both = tuning.config, tuning.family.kind == "encoder-decoder"
    length = config.context if settings.length is None else settings.length
    if not 2 <= length <= config.context:
        raise ValueError(f"--length {length}: the model reads {config.context} tokens; give 2 to {config.context}")
    end = config.eos_tokens[0] if config.eos_tokens else None
    tokens = tokenised(
        texts, (Bytes() if tokenizer is None else FromFile(tokenizer)).encode, end=end, vocab_size=config.vocab_size, path=path
    )
    kept, cut = fitted(tokens, length, together=not both, truncate=settings.truncate, path=path)
    made = laid_out(kept, start=config.start_token if both else None)
    size = f"{path}: {len(made):,} examples of at most {made.arrays['tokens'].shape[-1]} {'bytes' if tokenizer is None else 'tokens'}"
    return made, f"{size}, {made.padding:.0%} padding" + (f"; {cut}" if cut else "")


def training_bytes(tuning: Tuning, examples: Examples, batch: int) -> int:
    """Host memory of a training step, roughly: parameters, gradients and two moments (of adapters: parameters, those with adapters in
    them, and their gradients), and activations."""
    _, responses, time = examples.arrays["tokens"].shape
    held = (12 if tuning.adapts else 16) * tuning.family.parameters(tuning.config)
    return held + activation_bytes(tuning.config, responses * batch, time)


def holds_something(folder: Path) -> bool:
    """Whether a folder for an export is a file, or has files that are not hidden."""
    return folder.is_file() or (folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()))


# ---- on the machine ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """The functions as they run, and the layouts that they want: step(state, base, batch), evaluate(trained, base, batch), and
    score(params, batch), the log-probabilities; `audit` says where each operation ran."""

    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    score: Callable[..., Any]
    state_shardings: Any
    params_shardings: Any
    audit: str


def on_machine(run: Run) -> Machine:
    """Plan the functions for the wafer, or for one device with plain `jax.jit` where the wafer is off.

    Raises wse.UnsupportedOpError for an operation that the wafer has no rule for.
    """
    if run.wafer is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        functions = (jax.jit(run.step, donate_argnums=0), jax.jit(run.evaluate), jax.jit(run.tuning.log_probabilities))
        return Machine(*functions, device, device, "plain jax.jit on one device: nothing ran on a wafer")
    step = wse.jit(run.step, run.wafer, donate_argnums=0)
    lowered = step.lower(run.abstract_state, run.abstract_base, run.like(run.examples))
    layouts: Any = lowered.in_shardings
    state, base, _ = layouts
    params = base if run.tuning.adapts else state.params
    evaluate = wse.jit(run.evaluate, run.wafer, in_shardings=(state.params, base, None))
    score = wse.jit(run.tuning.log_probabilities, run.wafer, in_shardings=(params, None))
    return Machine(step, evaluate, score, state, params, str(lowered.audit()))


def with_reference(run: Run, machine: Machine, params: Any) -> Run:
    """The run with the log-probabilities that its examples have before training."""
    score = lambda examples: examples.with_reference([np.asarray(machine.score(params, b)) for b in examples.in_turn(run.settings.batch)])
    return replace(run, examples=score(run.examples), held_out=run.held_out and score(run.held_out))


def train(run: Run, machine: Machine, folder: Path, console: Console) -> tuple[TrainState, Any, MetricsLog, bool]:
    """Train to the last step or until told to stop. Returns the state, the parameters that stayed, the metrics, and whether the run is
    complete."""
    settings, tuning = run.settings, run.tuning

    def say(message: str) -> None:
        console.print(message, style="yellow", markup=False, soft_wrap=True)

    load = lambda: initial_params(tuning.family, tuning.config, settings.weights, settings.seed, machine.params_shardings)
    base = load() if tuning.adapts else {}
    # parameters that are trained are not held here, or they would be in memory twice
    if settings.method == "dpo":
        with console.status("log-probabilities of the reference"):
            run = with_reference(run, machine, base if tuning.adapts else load())
    batches = run.examples.shuffled(settings.batch, settings.seed)
    given = as_json(dataclasses.asdict(settings))
    program = program_digest(run.step, run.abstract_state, run.abstract_base, run.like(run.examples))
    data = {"sha256": run.identity["read"]["digest"], "library": False, "files": run.files}
    begin = origin(settings=given, config=run.identity, data=data, program=program, wafer=run.wafer, packages=sources())
    manifest = Provenance(folder, begin, say)
    write_atomically(folder / "audit.txt", machine.audit + "\n")
    if run.wafer is not None:
        plot_wafer(run.wafer, folder / "wafer.png")

    def initial() -> TrainState:
        return lay_out(tuning.initial_state(base if tuning.adapts else load(), run.tx, settings.seed), machine.state_shardings)

    state, log, complete = run_steps(
        settings, folder, console, manifest, abstract_state=run.abstract_state, shardings=machine.state_shardings, initial=initial,
        advance=lambda state, batch: machine.step(state, base, batch), batches=batches,
        tokens=run.examples.arrays["targets"][0].size * settings.batch,
        validate=None if run.held_out is None else lambda state: validation_loss(run, machine, averaged(run, state), base),
        unit=unit(settings),
    )  # fmt: skip
    return state, base, log, complete


def averaged(run: Run, state: TrainState) -> Any:
    """What is validated and exported of a state."""
    return state.params if run.settings.optimiser.ema_decay is None else jax.jit(ema_of)(state.opt_state, state.params)


def validation_loss(run: Run, machine: Machine, trained: Any, base: Any) -> float:
    """Mean loss over batches of the validation examples, the last one filled up."""
    assert run.held_out is not None
    return float(np.mean([float(machine.evaluate(trained, base, batch)) for batch in run.held_out.in_turn(run.settings.batch)]))


def unit(settings: Settings) -> str:
    return "nats/pair" if settings.method == "dpo" else "nats/token"


# ---- at its end --------------------------------------------------------------------------------------------------------
def finish(run: Run, state: TrainState, base: Any, log: MetricsLog, console: Console) -> None:
    """Draw the loss, export what is asked for, and say where everything is."""
    settings, tuning = run.settings, run.tuning
    if log.rows:  # else somebody removed them, which was said
        plot_loss(log.rows, settings.out / "loss.png", unit=unit(settings))
    trained, base = jax.device_get((averaged(run, state), base))
    lines = [f"  {settings.out}   loss.png, metrics.jsonl, audit.txt, checkpoints"]
    for folder, what in ((settings.export, "model"), (settings.lora.export, "adapters")):
        if folder is None:
            continue
        if holds_something(folder):
            console.print(f"{folder} holds something already, and stays as it is", style="yellow", markup=False, soft_wrap=True)
        elif what == "model":
            weights.save(folder, tuning.family, tuning.config, jax.jit(tuning.merged)(trained, base))
            if (tokenizer := settings.tokens_of()) is not None:
                shutil.copyfile(tokenizer, folder / "tokenizer.json")
        else:
            beside = "" if settings.weights is None else str(settings.weights)
            peft.save(folder, tuning.family, tuning.config, trained, alpha=settings.lora.alpha, base=beside)
        lines.append(f"  {folder}   the {what}, as {'Hugging Face has weights' if what == 'model' else 'PEFT has them'}")
    console.rule("done")
    for row in log.rows[-1:]:
        more = "".join(f", {name.replace('_', ' ')} {row[name]:.3f}" for name in ("validation_loss", "accuracy", "margin") if name in row)
        lines.insert(0, f"loss {row['loss']:.3f} {unit(settings)} at step {row['step']}{more}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when complete, else what `wsejax.training.outcome.Fault` has: 2 for what the user can mend, 130
    when stopped."""
    options = (tyro.conf.FlagCreatePairsOff,)
    settings = tyro.cli(Settings, args=arguments, prog="python -m experiments.finetune", description=__doc__, config=options)
    console = Console()
    try:
        run = prepare(settings)
        trained = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state.params))
        total = run.tuning.family.parameters(run.tuning.config)
        console.print(f"{run.wafer or 'plain jax.jit on one device'}", markup=False, highlight=False)
        times = settings.steps * settings.batch / len(run.examples)
        beside = f" beside {total:,} that stay" if run.tuning.adapts else ""
        size = f"{trained:,} parameters are trained{beside}; {settings.steps} steps see every example {times:.3g} times"
        console.print("\n".join((*run.said, size)), markup=False, highlight=False, soft_wrap=True)
    except (ValueError, OSError, MemoryError) as error:
        return refuse(error)

    def work() -> tuple[MetricsLog, bool]:
        with console.status("planning the step"):
            machine = on_machine(run)
        about = {"python": platform.python_version(), "jax": jax.__version__}
        with RunDirectory(settings.out, run.identity, about) as held:
            state, base, log, complete = train(run, machine, held.path, console)
            if complete:
                finish(run, state, base, log, console)
        return log, complete

    return concluded(work, console)


if __name__ == "__main__":
    sys.exit(main())
