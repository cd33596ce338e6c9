"""Train once for each value of some settings: `python -m experiments.sweep --over optimiser.learning_rate=1e-3..8e-3:8`.

Settings that are numbers of the optimiser, and the seed, are arguments of the compiled step, so a sweep over them compiles once; others
compile once for each of their values. The folder given by --out gets results.jsonl (the same command again goes on after the runs that it
has), sweep.png, and a folder for each run with its metrics.jsonl.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import wsejax as wse
from wsejax.report import plot_sweep
from wsejax.training.callbacks import Log, NaNGuard, Noise, Periodic, ProgressBar, Stopper, progress_bar
from wsejax.training.interrupt import GracefulStop
from wsejax.training.rundir import MetricsLog, RunDirectory
from wsejax.training.shares import lay_out
from wsejax.training.trainer import Trainer

from .features import loss_scale_floor
from .run import Run, checked, optimiser_of, train_step
from .settings import LoopSettings, Settings
from .supervise import refuse
from .train import validation_loss

RESULTS = "results.jsonl"
OPTIMISER = ("learning_rate", "warmup_steps", "final_fraction", "beta1", "beta2", "weight_decay", "clip_norm")
SCALARS = tuple(f"optimiser.{name}" for name in OPTIMISER)
"""Settings that the step takes as arguments."""
SHARED = (*SCALARS, "seed")
_FREE = ("out", "keep", "checkpoint_every", "sample_bytes")


@dataclass(frozen=True)
class SweepSettings:
    """A training run for each combination of values; all other flags are those of experiments.train."""

    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUES")] = ()
    """A setting and its values: optimiser.learning_rate=1e-3,2e-3 or, evenly spaced in their ratio, optimiser.learning_rate=1e-3..8e-3:8.
    May be given several times; every combination is run."""
    train: Annotated[Settings, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Settings(out=Path("runs/sweep"), steps=200, eval_every=100)
    )

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each swept setting. Raises ValueError for a setting that there is not, or values that it cannot have."""
        if not self.over:
            raise ValueError("--over is missing: give what to sweep, such as --over optimiser.learning_rate=1e-3,2e-3")
        found: dict[str, tuple[Any, ...]] = {}
        for text in self.over:
            name, equals, values = text.partition("=")
            name = name.replace("-", "_")
            if not equals or not values:
                raise ValueError(f"--over {text}: give FIELD=VALUE,VALUE")
            if name in found:
                raise ValueError(f"--over {text}: {name} is swept already; give all its values at once")
            if name in _FREE or name.startswith(("distributed", "supervision", "kill_", "from_manifest", "cluster")):
                raise ValueError(f"--over {text}: {name} changes no number of a run, or needs processes of its own; sweep something else")
            found[name] = _values(text, values, value_of(self.train, name))
        return found

    def runs(self) -> Iterator[tuple[dict[str, Any], Settings]]:
        """What is varied, and the settings with it. Raises ValueError as `axes`."""
        axes = self.axes()
        for number, values in enumerate(itertools.product(*axes.values())):
            varied = dict(zip(axes, values, strict=True))
            settings = self.train
            for name, value in varied.items():
                settings = with_value(settings, name, value)
            yield varied, dataclasses.replace(settings, out=self.train.out / f"{number:03d}")


def _values(text: str, values: str, now: Any) -> tuple[Any, ...]:
    """Raises ValueError for values of another kind than the setting has."""
    if ".." in values:
        try:
            ends, count = values.rsplit(":", 1)
            low, high = map(float, ends.split(".."))
            made: tuple[Any, ...] = tuple(float(f"{x:.6g}") for x in np.geomspace(low, high, int(count)))
        except ValueError:
            raise ValueError(f"--over {text}: give a range as LOW..HIGH:COUNT, both above 0") from None
    else:
        made = tuple(_literal(part) for part in values.split(","))
    kinds = (int, float) if isinstance(now, float) else (type(now),)
    for value in made:
        if now is not None and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(now, bool)):
            raise ValueError(f"--over {text}: {value!r} is no {type(now).__name__}, as this setting is")
    return tuple(float(value) if isinstance(now, float) else value for value in made)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def value_of(settings: Any, name: str) -> Any:
    """Of a field by its dotted name. Raises ValueError where there is none."""
    for part in name.split("."):
        known = [f.name for f in dataclasses.fields(settings)] if dataclasses.is_dataclass(settings) else []
        if part not in known:
            raise ValueError(f"--over {name}: there is no setting {part!r}; there are {', '.join(known) or 'none below it'}")
        settings = getattr(settings, part)
    if dataclasses.is_dataclass(settings):
        raise ValueError(f"--over {name}: is a group of settings; name one of them")
    return settings


def with_value(settings: Any, name: str, value: Any) -> Any:
    """The settings with one field changed."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(settings, **{first: with_value(getattr(settings, first), rest, value) if rest else value})


@dataclass(frozen=True)
class Programs:
    """The functions of all runs that differ in scalars only: init(seed), step(state, scalars, batch), evaluate(params, batch)."""

    init: Callable[..., Any]
    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    state_shardings: Any
    params_shardings: Any
    held_out: Sequence[Any]


def programs_of(run: Run) -> Programs:
    """Compiled for the run's wafer, or with plain `jax.jit` where it is off."""

    def step(state: Any, scalars: Mapping[str, Any], batch: Any) -> Any:
        optimiser = dataclasses.replace(run.settings.optimiser, **scalars)
        settings = dataclasses.replace(run.settings, optimiser=optimiser)
        return train_step(dataclasses.replace(run, settings=settings, tx=optimiser_of(settings, run.task)))(state, batch)

    one_shape = run.settings.documents.how != "bucket"  # else each shape of a batch compiles when it comes
    shapes = run.abstract_state, scalars_of(run.settings), run.held_out[0]
    if run.wafer is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        compiled: Any = jax.jit(step, donate_argnums=0)
        compiled = compiled.lower(*shapes).compile() if one_shape else compiled
        evaluate = jax.jit(run.task.loss).lower(shapes[0].params, shapes[2]).compile()
        return Programs(jax.jit(run.begun), compiled, evaluate, device, device, run.held_out)
    on_wafer = wse.jit(step, run.wafer, donate_argnums=0)
    lowered = on_wafer.lower(*shapes)
    evaluating = wse.jit(run.task.loss, run.wafer).lower(shapes[0].params, shapes[2])
    return Programs(
        jax.jit(run.begun),
        lowered.compile() if one_shape else on_wafer,
        evaluating.compile(),
        lowered.in_shardings[0],
        evaluating.in_shardings[0],
        run.held_out,
    )


def scalars_of(settings: Settings) -> dict[str, jax.Array]:
    """What a step takes besides state and batch."""
    given = {name: getattr(settings.optimiser, name) for name in OPTIMISER}
    return {name: jnp.float32(value) for name, value in given.items() if value is not None}


def key_of(settings: Settings) -> str:
    """Equal for runs that share their programs."""
    values = settings.identity()
    for name in (*SHARED, *_FREE):
        first, _, rest = name.partition(".")
        if value_of(settings, name) is not None:  # clipping or none is another program
            (values[first] if rest else values).pop(rest or first, None)
    return json.dumps(values, sort_keys=True, default=str)


def train_one(run: Run, programs: Programs, console: Console, bar: Any, stop: GracefulStop) -> dict[str, Any] | None:
    """A run from its first step. Returns its losses, `diverged` where they are no numbers; None when stopped."""
    settings, scalars = run.settings, scalars_of(run.settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    guard = NaNGuard(floor=loss_scale_floor(run.task.policy, settings.loss_scale))
    machine: Any = programs  # has what a validation asks of one

    def validate(state: Any) -> dict[str, float]:
        return {"validation_loss": validation_loss(run, machine, run.averaged(state))}

    with MetricsLog(settings.out / "metrics.jsonl", step=0, report=console.print) as log:
        callbacks = [
            Stopper(lambda: stop.asked), guard, *([Noise()] if settings.loop.noise_scale else []), Periodic(settings.eval_every, validate),
            Log(log), ProgressBar(bar, settings.batch * run.task.config.context),
        ]  # fmt: skip
        state = lay_out(programs.init(settings.seed), programs.state_shardings)
        trainer = Trainer(
            lambda state, batch: programs.step(state, scalars, batch), state, run.batches(), steps=settings.steps, callbacks=callbacks
        )
        del state
        try:
            trainer.fit()
        except FloatingPointError:
            return {"diverged": True, "steps": trainer.step, "loss": None, "validation_loss": None}
    if not trainer.complete:
        return None
    rows = log.rows
    return {"diverged": False, "steps": trainer.step, "loss": rows[-1]["loss"], "validation_loss": rows[-1]["validation_loss"]}


def sweep(settings: SweepSettings, folder: Path, console: Console) -> tuple[list[dict[str, Any]], int, bool]:
    """Train what results.jsonl has not yet. Returns its rows, how many programs were compiled, and whether all is done."""
    path = folder / RESULTS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done, programs, asked = {json.dumps(row["varied"], sort_keys=True) for row in rows}, {}, list(settings.runs())
    say = lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True)
    with GracefulStop(say) as stop, progress_bar(console) as bar:
        for varied, one in asked:
            if json.dumps(varied, sort_keys=True) in done:
                continue
            run = checked(one)
            if (key := key_of(one)) not in programs:
                programs[key] = programs_of(run)
            result = train_one(run, programs[key], console, bar, stop)
            if result is None:
                return rows, len(programs), False
            rows.append({"varied": varied, "folder": one.out.name, **result})
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            bar.console.print(_words(varied, result), highlight=False)
    order = [json.dumps(varied, sort_keys=True) for varied, _ in asked]
    return sorted(rows, key=lambda row: order.index(json.dumps(row["varied"], sort_keys=True))), len(programs), True


def _words(varied: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    loss = "diverged" if result["diverged"] else f"validation {result['validation_loss']:.4f}"
    return (
        ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in varied.items()) + f": {loss}"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The runs, the best of them marked."""
    made = Table(box=None, header_style="bold")
    for name in (*rows[0]["varied"], "training loss", "validation loss", ""):
        made.add_column(name, justify="right")
    losses = [row["validation_loss"] for row in rows if not row["diverged"]]
    for row in rows:
        numbers = ("diverged", "") if row["diverged"] else (f"{row['loss']:.4f}", f"{row['validation_loss']:.4f}")
        best = "best" if losses and row["validation_loss"] == min(losses) else ""
        made.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row["varied"].values()), *numbers, best)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when complete, 2 for what the user can mend, 130 when stopped."""
    options = (tyro.conf.FlagCreatePairsOff,)
    settings = tyro.cli(SweepSettings, args=arguments, prog="python -m experiments.sweep", description=__doc__, config=options)
    console, out = Console(), settings.train.out
    try:
        train = settings.train
        if train.loop != LoopSettings(noise_scale=train.loop.noise_scale) or train.kill_pe or train.kill_link:
            raise ValueError("--loop flags but --loop.noise-scale, --kill-pe and --kill-link are of single runs; leave them out")
        if settings.train.cluster.systems > 1 or settings.train.distributed.on or settings.train.supervision.max_restarts is not None:
            raise ValueError("a sweep runs on one wafer, in one process, without supervision; leave those flags out")
        # a wrong value is found before hours of training, and runs on other text or defects are other runs
        found = [checked(one).identity for _, one in settings.runs()]
        identity = train.identity() | {"over": list(settings.over), "runs": json.loads(json.dumps(found, default=str))}
        with RunDirectory(out, identity, {"jax": jax.__version__}) as held:
            rows, compiled, complete = sweep(settings, held.path, console)
    except (ValueError, OSError, MemoryError) as error:
        return refuse(error)
    if not complete:
        console.print("stopped; the same command goes on with the run that was not done", highlight=False)
        return 130
    plot_sweep(rows, out / "sweep.png")
    console.print(table(rows), f"{len(rows)} runs, {compiled} programs compiled now", f"  {out / 'sweep.png'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
