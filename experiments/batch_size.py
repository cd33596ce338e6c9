"""Which batch size is cheapest: tiny runs to one loss, their gradient noise, the critical batch size, and a price on a wafer.

Runs are plain JAX on this host, since losses do not depend on the machine. A step of each batch size is then priced on the machine asked
for, kernel by kernel where it fits: those times are modelled. Batch sizes and noise scales are counted in sequences.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress

import wsejax as wse
from wsejax.cost.compare import compare
from wsejax.cost.converged import Converged, Steps, TargetNotReachedError, cheapest, converged, steps_to
from wsejax.report.batch_size import converged_table, plot_batch_sizes
from wsejax.training.accumulate import value_and_grad
from wsejax.training.batch_size import Rule, TradeOff, fit_trade_off, scaled_rate, scaled_steps
from wsejax.training.callbacks import progress_bar
from wsejax.training.data import Corpus, load_corpus, train_batches, validation_batches
from wsejax.training.noise import NoiseScale, squared_norms

from .entry import console as wide_console
from .entry import start
from .task import ModelSettings, Task, task_of

MEASUREMENTS = 40  # of the validation loss, evenly over the examples of a run
HELD_OUT = 64  # sequences
MICRO_BATCHES = 4


@dataclass(frozen=True)
class Settings:
    """Train at several batch sizes until one loss."""

    batches: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Sequences of a batch, each 2 or more."""
    target: float = 2.4
    """Validation loss to reach, nats a byte."""
    base_batch: int = 8
    """Batch size, one of --batches, that --learning-rate is good for."""
    learning_rate: float = 2e-3
    """Of AdamW at --base-batch, constant after the warm-up."""
    rule: Rule = "sqrt"
    """How the learning rate follows the batch. noise: by the noise scale that is measured at --base-batch."""
    warmup_steps: int = 20
    """At --base-batch; at others as many examples."""
    examples: int = 12000
    """Sequences of a run at most."""
    steps: int = 2000
    """Steps of a run at most."""
    extrapolate: bool = False
    """Ask a power law about runs that have not reached the target; what it says is marked."""
    system: str = "cs3"
    """Machine to price: a preset of `wsejax specs`, or such as 2xcs3 and 8xh100."""
    dollars_per_hour: float | None = None
    """Of the whole machine; left out: an assumption of the preset."""
    energy_in_rate: bool = True
    """The rate holds the energy (rented), or it is paid for apart (owned)."""
    seed: int = 0
    """Of parameters and of the order of the text."""
    data: tuple[str, ...] = ()
    """Text files or glob patterns; left out: Python's own library on this machine."""
    model: ModelSettings = field(default_factory=lambda: ModelSettings(layers=2, heads=2, width=64, context=64))
    out: Path = Path("runs/batch_size")
    """Folder for batch_size.json and batch_size.png."""

    def check(self) -> None:
        """Raises ValueError for what no study can have."""
        if len(set(self.batches)) < 2 or min(self.batches) < 2:
            raise ValueError(
                f"--batches {' '.join(map(str, self.batches))}: give at least two sizes, each 2 or more (noise needs two parts)"
            )
        if self.base_batch not in self.batches:
            raise ValueError(f"--base-batch {self.base_batch}: is none of --batches {' '.join(map(str, self.batches))}")
        for name in ("learning_rate", "target", "examples", "steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"--warmup-steps {self.warmup_steps}: must be 0 or more")


@dataclass(frozen=True)
class Run:
    """A run at one batch size: its metrics, the noise scale over all its steps, and the steps to the target, None where it was not
    reached."""

    batch: int
    learning_rate: float
    rows: list[dict[str, float]]
    noise: NoiseScale
    steps: Steps | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        # JSON knows no infinity
        finite = lambda x: x if math.isfinite(x) else None
        steps = None if self.steps is None else dataclasses.asdict(self.steps)
        noise = {"b_simple": finite(self.noise.b_simple), "standard_error": finite(self.noise.standard_error)}
        return {"batch": self.batch, "learning_rate": self.learning_rate, **noise, "to_target": steps, "rows": self.rows}


def train_step(task: Task, tx: optax.GradientTransformation, micro_batches: int) -> Callable[..., Any]:
    """(params, opt_state), batch -> the same and metrics; of several micro-batches with gradient signal and noise."""
    squares = squared_norms if micro_batches > 1 else None
    rows = lambda batch: jnp.float32(len(batch["tokens"]))
    gradients = value_and_grad(task.training_loss, micro_batches=micro_batches, weigh=rows, squares=squares)

    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        (loss, aux), grads = gradients(params, batch, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss, **aux}

    return step


def micro_batches_of(batch: int) -> int:
    """The most that divide the batch, of `MICRO_BATCHES` or fewer; 2 or more, so that there are gradients to compare."""
    return next((n for n in range(MICRO_BATCHES, 1, -1) if batch % n == 0), batch)


def optimiser(settings: Settings, batch: int, rate: float) -> optax.GradientTransformation:
    """AdamW with a warm-up of as many examples, clipped."""
    warm = scaled_steps(settings.warmup_steps, batch, settings.base_batch)
    schedule = optax.linear_schedule(0.0, rate, warm) if warm else rate
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.0))


def run(
    settings: Settings, task: Task, corpus: Corpus, batch: int, rate: float, params: Any, evaluate: Callable[[Any], Any], progress: Progress
) -> Run:
    """Train until the target is reached or examples or steps are used up. evaluate: parameters -> validation loss.

    Raises FloatingPointError where the loss is no longer a number.
    """
    tx = optimiser(settings, batch, rate)
    step = jax.jit(train_step(task, tx, micro_batches_of(batch)))
    state = (params, jax.jit(tx.init)(params))
    last = max(2, min(settings.steps, settings.examples // batch))
    every = max(1, last // MEASUREMENTS)
    rows: list[dict[str, float]] = [{"step": 0, "validation_loss": float(evaluate(params))}]
    noise = NoiseScale()
    bar = progress.add_task(f"batch {batch}", total=last, loss=rows[0]["validation_loss"], rate=f"batch {batch}")
    batches = train_batches(corpus, batch_size=batch, seed=settings.seed, maker=task.maker)
    for number in range(1, last + 1):
        state, metrics = step(state, next(batches))
        row = {"step": number, **{name: float(x) for name, x in metrics.items()}}
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"batch {batch}: the loss of step {number} is {row['loss']}; lower --learning-rate, or take another --rule"
            )
        noise.add(row)
        rows.append(row)
        if number % every == 0 or number == last:
            row["validation_loss"] = float(evaluate(state[0]))
            progress.update(bar, completed=number, loss=row["validation_loss"])
            if row["validation_loss"] <= settings.target:
                break
    progress.update(bar, completed=last)
    try:
        steps = steps_to(rows, settings.target, extrapolate=settings.extrapolate)
    except TargetNotReachedError as error:
        progress.console.print(f"batch {batch}: {error}", style="yellow", markup=False, highlight=False)
        steps = None
    return Run(batch, rate, rows, noise, steps)


def price(settings: Settings, task: Task, done: Run) -> Converged:
    """The run on the machine. Its step takes the batch whole: micro-batches were there to measure noise."""
    assert done.steps is not None
    tx = optimiser(settings, done.batch, done.learning_rate)
    params = task.family.abstract(task.config)
    state = (params, jax.eval_shape(tx.init, params))
    windows = np.zeros((done.batch, task.config.context + 1), np.uint8)
    batch = task.objective.batch(windows, range(done.batch))
    wafer = wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1))
    lowered = wse.jit(train_step(task, tx, 1), wafer).lower(state, batch)
    rates = None if settings.dollars_per_hour is None else {settings.system: settings.dollars_per_hour}
    row = compare(lowered, [settings.system], tokens=batch["targets"].size, dollars_per_hour=rates).rows[0]
    return converged(row, done.steps, batch=done.batch, energy_in_rate=settings.energy_in_rate)


def train_all(settings: Settings, task: Task, corpus: Corpus, console: Console) -> list[Run]:
    """A run of each batch size, in their order; that of the base first, since the rule may need its noise scale."""
    done: dict[int, Run] = {}
    params = jax.jit(task.init)(settings.seed)
    held_out = validation_batches(corpus, batch_size=HELD_OUT, batches=1, maker=task.maker)[0]
    evaluate = partial(jax.jit(lambda held_out, params: task.loss(params, held_out)), held_out)
    with progress_bar(console) as progress:
        for batch in sorted(set(settings.batches), key=lambda b: (b != settings.base_batch, b)):
            scale = done[settings.base_batch].noise.b_simple if done else None
            rate = settings.learning_rate
            if done:
                rate = scaled_rate(settings.rule, rate, batch, settings.base_batch, scale)
            done[batch] = run(settings, task, corpus, batch, rate, params, evaluate, progress)
    return [done[batch] for batch in sorted(done)]


def study(settings: Settings, console: Console) -> dict[str, Any]:
    settings.check()
    task = task_of(settings.model)
    corpus = load_corpus(settings.data, context=task.config.context)
    console.print(
        f"{task.parameter_count:,} parameters, {len(corpus.tokens):,} bytes of text, to {settings.target} nats a byte", highlight=False
    )
    runs = train_all(settings, task, corpus, console)
    there = [one for one in runs if one.steps is not None]
    if not there:
        raise ValueError(
            f"--target {settings.target}: no run reached it; give more --examples and --steps, a higher target, or --extrapolate"
        )
    with console.status("pricing the steps"):
        found = [price(settings, task, one) for one in there]
    curve = trade_off(there, console)
    console.print(converged_table(found, {one.batch: noise_text(one.noise) for one in runs}))
    best = cheapest(found)
    quickest, least = cheapest(found, "hours"), cheapest(found, "kilowatt_hours")
    console.print(
        f"cheapest on {best.name}: batch {best.batch:g}, modelled {best.dollars:.3g} $; quickest: batch {quickest.batch:g}; least energy: "
        f"batch {least.batch:g}",
        highlight=False,
    )
    record = {
        "modelled": True, "target": settings.target, "rule": settings.rule, "runs": [one.to_dict() for one in runs],
        "trade_off": None if curve is None else dataclasses.asdict(curve) | {"critical_batch": curve.critical_batch},
        "converged": [one.to_dict() for one in found], "cheapest": best.batch,
    }  # fmt: skip
    if curve is not None and math.isnan(curve.relative_error):
        record["trade_off"]["relative_error"] = None
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "batch_size.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    plot_batch_sizes({one.batch: one.rows for one in runs}, settings.target, found, settings.out / "batch_size.png", curve)
    console.print(f"figures and a picture: {settings.out}", highlight=False)
    return record


def trade_off(runs: Sequence[Run], console: Console) -> TradeOff | None:
    """The curve through steps and examples, said; None where there is none."""
    try:
        curve = fit_trade_off([(one.steps.steps, one.steps.steps * one.batch) for one in runs if one.steps is not None])
    except ValueError as error:
        console.print(f"no critical batch size: {error}", style="yellow", markup=False, highlight=False)
        return None
    error = "" if math.isnan(curve.relative_error) else f" +- {curve.relative_error:.0%}"
    console.print(
        f"critical batch size {curve.critical_batch:.3g}{error} sequences; at least {curve.least_steps:,.0f} steps, and "
        f"{curve.least_examples:,.0f} sequences",
        highlight=False,
    )
    return curve


def noise_text(noise: NoiseScale) -> str:
    return f"{noise.b_simple:.3g} +- {noise.standard_error:.2g}" if len(noise) else "-"


def main(settings: Settings) -> None:
    study(settings, wide_console())


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
