"""Train a small language model to think as a trained large one does, on an emulated wafer: `python -m experiments.distil --help`.

The folder given by --out gets config.json, metrics.jsonl, loss.png and audit.txt. There are no checkpoints: the same command again begins
anew.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import tyro
from rich.progress import Progress

import wsejax as wse
from models import hf_files, weights
from wsejax.cli.checkpoints import Checkpoint, open_checkpoint
from wsejax.report import plot_loss
from wsejax.training.callbacks import DivergedError, Log, NaNGuard, Periodic, ProgressBar, Throughput, progress_bar
from wsejax.training.data import Batch, Corpus, load_corpus, train_batches, validation_batches
from wsejax.training.distil import Divergence, check_distillation, distilled
from wsejax.training.provenance import as_json
from wsejax.training.rundir import (
    MetricsLog,
    RunDirectory,
    available_host_bytes,
    check_run_directory,
    require_host_memory,
    write_atomically,
)
from wsejax.training.shares import lay_out
from wsejax.training.state import TrainState, init_train_state, make_train_step
from wsejax.training.trainer import Trainer

from .entry import console, start
from .settings import OptimiserSettings, WaferSettings
from .task import ModelSettings, Task, activation_bytes, identity_of


@dataclass(frozen=True)
class StudentSettings(ModelSettings):
    """The student. What is left at None is as the preset has it."""

    name: Annotated[str, tyro.conf.arg(name="student", prefix_name=False, metavar="FAMILY[:PRESET]")] = "gpt2:tiny"
    """Any family of the teacher's kind."""


@dataclass(frozen=True)
class Settings:
    """Distil a trained language model into a smaller one."""

    teacher: Annotated[Path, tyro.conf.arg(metavar="FOLDER|RUN")]
    """Folder of Hugging Face's or orbax's, or of a run of experiments.train, of which the newest checkpoint is read. It reads bytes."""
    out: Path = Path("runs/distil")
    """Folder for everything that the run writes."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|GLOB ...")] = ()
    """Text files or glob patterns; left out: the documentation and sources of Python's own library on this machine."""
    temperature: float = 1.0
    """Softens what teacher and student think likely; 1 leaves it as it is."""
    soft_weight: float = 0.5
    """The teacher's share of the loss; the rest is that of the text itself."""
    divergence: Divergence = "forward"
    """forward: the student covers all that the teacher thinks likely; reverse: it keeps to the likeliest."""
    export: Path | None = None
    """New folder for the student as Hugging Face weights."""
    steps: int = 600
    """Training steps."""
    batch: int = 16
    """Sequences in a batch."""
    eval_every: int = 50
    """Steps between measurements of the validation loss (and one at the end)."""
    eval_batches: int = 8
    """Validation batches each time; always the same ones."""
    seed: int = 0
    """Seed of the student's parameters, the order of the text and dropout."""
    student: StudentSettings = field(default_factory=StudentSettings)
    wafer: WaferSettings = field(default_factory=WaferSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)

    def check(self) -> None:
        """Raises ValueError for what no run can have."""
        for name, least in {"steps": 2, "batch": 1, "eval_every": 1, "eval_batches": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least {least}")
        if self.optimiser.ema_decay is not None:
            raise ValueError("--optimiser.ema-decay is of experiments.train and finetune; leave it out")
        check_distillation(self.temperature, self.soft_weight, self.divergence)


@dataclass(frozen=True)
class Run:
    """A checked configuration and what it stands for; making one writes nothing."""

    settings: Settings
    task: Task
    teacher: Checkpoint
    corpus: Corpus
    wafer: wse.Wafer | None
    tx: optax.GradientTransformation

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the run's numbers, as JSON values."""
        values = as_json(dataclasses.asdict(self.settings))
        for name in ("out", "export"):
            del values[name]
        more = {"student": identity_of(self.settings.student), "text_digest": self.corpus.digest}
        return values | as_json(more | {"teacher_model": dataclasses.asdict(self.teacher.config)})

    @cached_property
    def held_out(self) -> list[Batch]:
        """The validation batches."""
        how: Any = dict(batch_size=self.settings.batch, batches=self.settings.eval_batches, maker=self.task.maker)
        return validation_batches(self.corpus, **how)

    def batches(self) -> Iterator[Batch]:
        """The training batches, without end."""
        return train_batches(self.corpus, batch_size=self.settings.batch, seed=self.settings.seed, maker=self.task.maker)

    def initial_state(self) -> TrainState:
        """The state before the first step, on the default device."""
        seed = self.settings.seed
        return jax.jit(lambda: init_train_state(self.task.init(seed), self.tx, seed=seed))()

    def step(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        """One step, as a pure function of state, the teacher's parameters and a batch."""
        settings, task, teacher = self.settings, self.task, self.teacher
        loss = distilled(
            lambda params, batch, key: task.family.training_logits(task.config, params, *task.objective.inputs(batch), key=key),
            lambda params, batch: teacher.family.apply(teacher.config, params, *task.objective.inputs(batch)),
            temperature=settings.temperature, soft_weight=settings.soft_weight, divergence=settings.divergence,
        )  # fmt: skip
        of = lambda params, batch, key: loss(params, frozen, batch, key)
        rate = settings.optimiser.schedule(settings.steps)
        return make_train_step(of, self.tx, learning_rate=rate, stochastic=task.stochastic, has_aux=True)(state, batch)


def prepare(settings: Settings) -> Run:
    """Check everything that can be wrong before anything is written. Raises ValueError, OSError or MemoryError for the user to read."""
    settings.check()
    task, teacher = Task(settings.student.family(), settings.student.config()), open_checkpoint(settings.teacher)
    if teacher.family is None:
        raise ValueError(f"--teacher {settings.teacher}: its model is not known ({teacher.unknown})")
    ours, theirs = task.config, teacher.config
    if task.family.kind != teacher.family.kind:
        raise ValueError(
            f"--student {settings.student.name}: is no {teacher.family.kind}, as the teacher {teacher.family.name} is; give one"
        )
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"--student {settings.student.name}: has a vocabulary of {ours.vocab_size}, and the teacher one of {theirs.vocab_size}; "
            f"give --student.set vocab_size={theirs.vocab_size}, or a teacher of bytes"
        )
    if ours.context > theirs.context:
        raise ValueError(f"--student.context {ours.context}: the teacher reads {theirs.context} tokens; give at most that")
    taught, size = task.parameter_count, teacher.family.parameters(theirs)
    activations = sum(activation_bytes(config, settings.batch, ours.context) for config in (ours, theirs))
    require_host_memory(
        16 * taught + 4 * size + activations, f"training {taught:,} parameters beside a teacher of {size:,}",
        available_bytes=available_host_bytes(), instead="give a smaller --student, --student.context or --batch",
    )  # fmt: skip
    if settings.export is not None:
        hf_files.check_writable(settings.export, False)
        try:
            task.family.to_hf(ours)
        except ValueError as error:
            raise ValueError(f"--export {settings.export}: {error}") from None
    teacher = dataclasses.replace(teacher, config=dataclasses.replace(theirs, param_dtype="float32"))
    wafer, corpus = settings.wafer.build(), load_corpus(settings.data, context=ours.context)
    run = Run(settings, task, teacher, corpus, wafer, settings.optimiser.build(settings.steps, model=(task.family, task.config)))
    check_run_directory(settings.out, run.identity)
    return run


@dataclass(frozen=True)
class Machine:
    """The functions as they run, and the layouts that they want: step(state, frozen, batch), and the losses of student and teacher on the
    text itself, of (params, batch)."""

    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    evaluate_teacher: Callable[..., Any]
    state_shardings: Any
    teacher_shardings: Any
    audit: str


def on_machine(run: Run) -> Machine:
    """Plan the functions for the wafer, or for one device with plain `jax.jit` where the wafer is off.

    Raises wse.UnsupportedOpError for an operation that the wafer has no rule for.
    """
    losses = (run.task.loss, Task(run.teacher.family, run.teacher.config).loss)
    if run.wafer is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        student, teacher = map(jax.jit, losses)
        said = "plain jax.jit on one device: nothing ran on a wafer"
        return Machine(jax.jit(run.step, donate_argnums=0), student, teacher, device, device, said)
    step = wse.jit(run.step, run.wafer, donate_argnums=0)
    frozen = run.teacher.family.abstract(run.teacher.config)
    lowered = step.lower(jax.eval_shape(run.initial_state), frozen, run.held_out[0])
    layouts: Any = lowered.in_shardings
    student = wse.jit(losses[0], run.wafer, in_shardings=(layouts[0].params, None))
    teacher = wse.jit(losses[1], run.wafer, in_shardings=(layouts[1], None))
    return Machine(step, student, teacher, layouts[0], layouts[1], str(lowered.audit()))


def mean_loss(evaluate: Callable[..., Any], params: Any, run: Run) -> float:
    """Over the validation batches, in nats per byte that is asked for."""
    return float(np.mean([float(evaluate(params, batch)) for batch in run.held_out]))


def train(run: Run, machine: Machine, frozen: Any, log: MetricsLog, bar: Progress) -> TrainState:
    """Take all steps, and write a row for each. Returns the state."""
    settings = run.settings
    tokens = settings.batch * run.task.config.context
    measured = lambda state: {"validation_loss": mean_loss(machine.evaluate, state.params, run)}
    callbacks = [
        NaNGuard(f"start in another --out with a lower --optimiser.learning-rate than {settings.optimiser.learning_rate}"),
        Periodic(settings.eval_every, measured), Throughput(tokens), Log(log, bar.console), ProgressBar(bar, tokens),
    ]  # fmt: skip
    state = lay_out(run.initial_state(), machine.state_shardings)
    advance = lambda state, batch: machine.step(state, frozen, batch)
    return Trainer(advance, state, run.batches(), steps=settings.steps, callbacks=callbacks).fit()


def distil(settings: Settings) -> None:
    """The whole run. Raises ValueError or OSError for what the user can mend."""
    run, printed = prepare(settings), console()
    machine = on_machine(run)
    with RunDirectory(settings.out, run.identity) as held, progress_bar(printed) as bar:
        say = lambda message: printed.print(message, style="yellow", markup=False, soft_wrap=True)
        frozen = run.teacher.load(shardings=machine.teacher_shardings, dtype="float32")
        write_atomically(held.path / "audit.txt", machine.audit + "\n")
        best = mean_loss(machine.evaluate_teacher, frozen, run)
        with MetricsLog(held.path / "metrics.jsonl", step=0, report=say) as log:
            state = train(run, machine, frozen, log, bar)
    plot_loss(log.rows, settings.out / "loss.png", unit="nats/byte, of teacher and text")
    if settings.export is not None:
        weights.save(settings.export, run.task.family, run.task.config, jax.device_get(state.params))
    lines = [
        f"validation loss {log.rows[-1]['validation_loss']:.3f} nats/byte of the student ({run.task.parameter_count:,} parameters), "
        f"{best:.3f} of the teacher ({run.teacher.family.parameters(run.teacher.config):,})",
        f"  {settings.out}   loss.png, metrics.jsonl, audit.txt",
        *([] if settings.export is None else [f"  {settings.export}   the student, as Hugging Face has weights"]),
    ]
    printed.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, or 2 for what the user can mend."""

    def work(settings: Settings) -> None:
        try:
            distil(settings)
        except (MemoryError, DivergedError) as error:
            raise ValueError(str(error)) from error

    return start(work, Settings, __doc__, arguments, prog="python -m experiments.distil", config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
