"""A training run before it begins: its checked settings, what they stand for, and its functions as they run on the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import optax

import wsejax as wse
from wsejax.training import distributed
from wsejax.training.data import Batch, Corpus, load_corpus, train_batches, validation_batches
from wsejax.training.ema import ema_of
from wsejax.training.faults import Death, history
from wsejax.training.noise import squared_norms
from wsejax.training.packing import Documents, packed_batches, packed_validation_batches, pieces_of, waste
from wsejax.training.rundir import (
    available_host_bytes,
    check_run_directory,
    require_host_memory,
)
from wsejax.training.state import TrainState, init_train_state, make_train_step

from .features import pruned
from .processes import held_out_on
from .reproduce import check_same_run
from .settings import Settings
from .task import Task, activation_bytes, task_of


@dataclass(frozen=True)
class Run:
    """A checked configuration and what it stands for; making one writes nothing."""

    settings: Settings
    task: Task
    corpus: Corpus
    wafer: wse.Wafer | None
    tx: optax.GradientTransformation
    identity: dict[str, Any]
    deaths: tuple[Death, ...] = ()

    def initial_state(self) -> TrainState:
        """The state before the first step, on the default device."""
        return jax.jit(lambda: self.begun(self.settings.seed))()

    def begun(self, seed: Any) -> TrainState:
        """The state before the first step of this run with another seed, which may be traced."""
        tx = optimiser_of(replace(self.settings, seed=seed), self.task)
        state = init_train_state(self.task.init(seed), tx, seed=seed)
        params = pruned(state.params, state.opt_state, self.settings.sparsity)
        return replace(state, params=self.task.policy.stored(params, None) if self.settings.stochastic_rounding else params)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state."""
        return jax.eval_shape(self.initial_state)

    @cached_property
    def held_out(self) -> list[Batch]:
        """The validation batches."""
        settings, how = self.settings, self.settings.documents
        size = {"batch_size": settings.batch, "batches": settings.eval_batches}
        if how.how == "windows":
            return validation_batches(self.corpus, **size, maker=self.task.maker)
        context, objective = self.task.config.context, self.task.objective
        return packed_validation_batches(self.corpus, context=context, how=how.how, long=how.long, objective=objective, **size)

    def batches(self, rows: Any = None) -> Any:
        """An endless iterator over the training batches, or over these rows of each."""
        settings, how = self.settings, self.settings.documents
        size = {"batch_size": settings.batch, "seed": settings.seed, "rows": rows}
        if how.how == "windows":
            return train_batches(self.corpus, **size, maker=self.task.maker)
        context, objective = self.task.config.context, self.task.objective
        return packed_batches(self.corpus, context=context, how=how.how, long=how.long, objective=objective, **size)

    @property
    def said(self) -> str:
        """Model, text, and what becomes of its documents, in words."""
        size = f"{self.task.parameter_count:,} parameters, {len(self.corpus.tokens):,} bytes of text"
        if (how := self.settings.documents).how == "windows":
            return size
        lengths, context = Documents.of_corpus(self.corpus).lengths, self.task.config.context
        share = waste(lengths, context, self.settings.batch, how.how, how.long).share
        longer = pieces_of(lengths, context, how.long).longer
        split = f"; {longer:,} of them are longer than the context of {context} and are split" if longer else ""
        return f"{size}; {len(lengths):,} documents to train on, {share:.1%} padding{split}"

    def averaged(self, state: TrainState) -> Any:
        """The parameters that are validated and sampled: where there is an average, that, with the zeros that weights have now."""
        if self.settings.optimiser.ema_decay is None:
            return state.params
        return jax.jit(lambda opt_state, params: pruned(ema_of(opt_state, params), opt_state, self.settings.sparsity))(
            state.opt_state, state.params
        )


def prepare(settings: Settings) -> Run:
    """Check everything that can be wrong before anything is written. Raises ValueError, OSError or MemoryError for
    the user to read."""
    run = checked(settings)
    if check_run_directory(settings.out, run.identity) and run.wafer is not None:
        past = history(settings.out)
        run = replace(run, wafer=run.wafer.kill(past.pes, past.links))
    return run


def checked(settings: Settings) -> Run:
    """What the settings ask for, whatever the folder holds. Raises as `prepare`."""
    settings.check()
    task = task_of(settings.model, settings.precision)
    require_host_memory(
        training_bytes(task, settings.batch // settings.micro_batches),
        f"training {task.parameter_count:,} parameters with batches of {settings.batch} x {task.config.context}",
        available_bytes=available_host_bytes(),
    )
    wafer = settings.wafer.build(settings.cluster.groups, distributed.process_count())
    if wafer is not None:
        settings.cluster.build(wafer)  # refuses what does not fit
    corpus = load_corpus(settings.data, context=task.config.context, windows=settings.documents.how == "windows")
    identity: dict[str, Any] = settings.identity() | {"text_digest": corpus.digest}
    if wafer is not None:
        identity["wafer"] = identity["wafer"] | {"defects_digest": wafer.defects.digest}
    if settings.from_manifest is not None:
        check_same_run(settings.from_manifest, identity, corpus)
    # those that a wafer died of which is gone are not of the wafers that are left
    deaths = settings.deaths(wafer) if settings.cluster.instead_of is None else ()
    run = Run(settings, task, corpus, wafer, optimiser_of(settings, task), identity, deaths)
    _ = run.abstract_state, run.held_out  # what the flags ask of parameters and documents is there, or an error
    return run


def optimiser_of(settings: Settings, task: Task) -> optax.GradientTransformation:
    """Raises ValueError for flags that do not fit together."""
    return settings.optimiser.build(
        settings.steps, model=(task.family, task.config), policy=task.policy, loss_scale=settings.loss_scale,
        sparsity=settings.sparsity, seed=settings.seed,
    )  # fmt: skip


def training_bytes(task: Task, batch: int) -> int:
    """Host memory of a training step, roughly: float32 parameters, gradients and two moments, and activations."""
    return 16 * task.parameter_count + activation_bytes(task.config, batch, task.config.context)


@dataclass(frozen=True)
class Machine:
    """The two functions as they run, and the layouts that they want; `audit` says where each operation ran."""

    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    state_shardings: Any
    params_shardings: Any
    batch_shardings: Any
    held_out: Sequence[Any]
    audit: str


def train_step(run: Run) -> Callable[..., Any]:
    """One step of the run, as a pure function of state and batch."""
    settings = run.settings
    rate = settings.optimiser.schedule(settings.steps)
    squares = squared_norms if settings.loop.noise_scale else None
    how: dict[str, Any] = {"stochastic": run.task.stochastic, "micro_batches": settings.micro_batches, "squares": squares}
    how["store"] = run.task.policy.stored if settings.stochastic_rounding else None
    return make_train_step(run.task.training_loss, run.tx, learning_rate=rate, **how)


def on_machine(run: Run, *, compiled: bool = False) -> Machine:
    """Plan the step for the wafer, or for one device with plain `jax.jit` where the wafer is off. On a wafer `compiled`
    compiles at once instead of at the first call.

    Raises wse.UnsupportedOpError for an operation that the wafer has no rule for.
    """
    step = train_step(run)
    if run.wafer is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return Machine(
            jax.jit(step, donate_argnums=0),
            jax.jit(run.task.loss),
            device,
            device,
            device,
            run.held_out,
            "plain jax.jit on one device: nothing ran on a wafer",
        )
    target, execution = run.settings.cluster.build(run.wafer), run.settings.cluster.execution
    streamed: dict[str, Any] = {} if target is run.wafer else {"streamed_argnums": 0, "execution": execution}
    on_wafer, evaluate = wse.jit(step, target, donate_argnums=0, **streamed), wse.jit(run.task.loss, target, **streamed)
    lowered = on_wafer.lower(run.abstract_state, run.held_out[0])
    lowered_evaluate = evaluate.lower(run.abstract_state.params, run.held_out[0])
    params_shardings, held_out_shardings = lowered_evaluate.in_shardings
    state_shardings, batch_shardings = lowered.in_shardings
    held_out = held_out_on(held_out_shardings, run.held_out)
    machine = Machine(on_wafer, evaluate, state_shardings, params_shardings, batch_shardings, held_out, str(lowered.audit()))
    return replace(machine, step=lowered.compile(), evaluate=lowered_evaluate.compile()) if compiled else machine
