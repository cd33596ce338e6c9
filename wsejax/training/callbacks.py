"""What runs put round their steps: see `Trainer`. The order that they are given in is the order of a row's way: what adds to rows comes
before what writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .checkpoint import Checkpoints
from .lossscale import FLOOR, check_gradients
from .noise import NoiseScale
from .rundir import MetricsLog
from .tether import tether
from .trainer import Callback, Row, Trainer

_REMEMBERED = 2000  # rows of gradient noise; of older ones a decay of 0.99 leaves nothing


class DivergedError(FloatingPointError):
    """The loss is no longer a number."""


class NaNGuard(Callback):
    """Ends the run when a loss is not finite, or gradients are not: with loss scaling, when its factor is as small as it may be.

    advice: what to do, for the message. floor: the least loss scale.
    where: called with the step, says where the first such value came from ("" if unknown).
    """

    def __init__(self, advice: str = "lower the learning rate", where: Callable[[int], str] = lambda step: "", floor: float = FLOOR):
        self._advice, self._where, self._floor = advice, where, floor

    def row(self, trainer: Trainer, row: Row) -> None:
        """Raises DivergedError, or `lossscale.GradientsNotFiniteError`."""
        bad = "" if math.isfinite(row["loss"]) else f"the loss of step {row['step']} is {row['loss']}"
        if not bad and "loss_scale" not in row and not math.isfinite(row.get("grad_norm", 0.0)):
            bad = f"the gradients of step {row['step']} are not finite (norm {row['grad_norm']})"
        if bad:
            found = self._where(row["step"])
            raise DivergedError(f"{bad}{found and f' ({found})'}; {self._advice}")
        check_gradients(row, self._floor)


class Stopper(Callback):
    """Stops between two steps when asked to. asked: such as `lambda: graceful_stop.asked`."""

    def __init__(self, asked: Callable[[], bool]):
        self._asked = asked

    def before_step(self, trainer: Trainer) -> None:
        if self._asked():
            trainer.stop()


class Periodic(Callback):
    """Adds measurements of the state to the rows of every so many steps, and of the last.

    every: steps. measure: from the state a mapping of names to numbers; called when the row is the newest. slow: whether it may take as
    long as compiling.
    """

    def __init__(self, every: int, measure: Callable[[Any], Mapping[str, Any]], *, slow: bool = True):
        if every < 1:
            raise ValueError(f"every={every}: give 1 or more steps")
        self._every, self._measure, self._slow = every, measure, slow

    def after_step(self, trainer: Trainer) -> None:
        if trainer.due(self._every):
            trainer.flush()

    def row(self, trainer: Trainer, row: Row) -> None:
        if row["step"] == trainer.step and trainer.due(self._every):
            if self._slow:
                tether().busy()
            row.update({name: float(value) for name, value in self._measure(trainer.state).items()})


class Noise(Callback):
    """Adds noise_scale, the ratio of the means so far (`NoiseScale`), to rows of a step that measures gradient noise.

    decay: as of `NoiseScale`.
    """

    def __init__(self, decay: float = 0.99):
        self.found = NoiseScale(decay=decay)

    def seen(self, row: Row) -> None:
        self.found.add(row)
        del self.found.rows[:-_REMEMBERED]

    def row(self, trainer: Trainer, row: Row) -> None:
        self.seen(row)
        if len(self.found) and math.isfinite(scale := self.found.b_simple):
            row["noise_scale"] = scale


class Throughput(Callback):
    """Adds host_tokens_per_second; the first row, which has the compiling in it, has none. tokens: in a step."""

    def __init__(self, tokens: int | Callable[[Row], float]):
        self._tokens = tokens

    def row(self, trainer: Trainer, row: Row) -> None:
        if row["step"] > trainer.begun_at + 1:
            tokens = self._tokens(row) if callable(self._tokens) else self._tokens
            row["host_tokens_per_second"] = round(tokens / max(row["host_seconds"], 1e-4), 1)


class EarlyStop(Callback):
    """Stops when a metric has not fallen for so many of its measurements.

    metric: its name in the rows. patience: measurements in a row without a fall. least: a smaller fall is none. `best` is (step, value).
    `stopped`: it has stopped this trainer.

    Raises ValueError for a patience below 1, or a negative `least`.
    """

    def __init__(
        self, metric: str = "validation_loss", *, patience: int, least: float = 0.0, say: Callable[[str], None] = lambda text: None
    ):
        if patience < 1:
            raise ValueError(f"patience={patience}: give 1 or more measurements without a better one")
        if not least >= 0:
            raise ValueError(f"least={least}: give a fall of 0 or more")
        self.best: tuple[int, float] | None = None
        self.stopped = False
        self._metric, self._patience, self._least, self._say, self._worse = metric, patience, least, say, 0

    def seen(self, row: Row) -> None:
        """Take a row into account."""
        if (value := row.get(self._metric)) is None:
            return
        if self.best is None or value < self.best[1] - self._least:
            self.best, self._worse = (row["step"], value), 0
        else:
            self._worse += 1

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self._worse >= self._patience

    def row(self, trainer: Trainer, row: Row) -> None:
        if self.stopped:
            return
        self.seen(row)
        if self.over:
            assert self.best is not None
            self.stopped = True
            self._say(f"{self._metric} was best after step {self.best[0]} ({self.best[1]:.4f}), {self._worse} measurements ago: stopping")
            trainer.stop()


class Checkpointer(Callback):
    """Saves every so many steps, after the last one, and when the run is stopped; rows first, so that no checkpoint is ahead of them.

    checkpoints: entered. log: whose rows are to be on disk. every: steps.
    """

    def __init__(self, checkpoints: Checkpoints, log: MetricsLog, *, every: int):
        self._checkpoints, self._log, self._every = checkpoints, log, every
        self._saved: int | None = None

    def begin(self, trainer: Trainer) -> None:
        self._saved = trainer.step

    def after_step(self, trainer: Trainer) -> None:
        if trainer.due(self._every):
            self.save(trainer)

    def end(self, trainer: Trainer) -> None:
        self.save(trainer)
        self._checkpoints.wait()

    def save(self, trainer: Trainer) -> None:
        """Save now, unless this step is saved."""
        if trainer.step == self._saved:
            return
        trainer.flush()
        self._log.sync()
        self._checkpoints.save(trainer.step, trainer.state, data_state=trainer.batches.get_state())
        self._saved = trainer.step


class Log(Callback):
    """Writes rows to metrics.jsonl, and says those with a validation loss. unit: of losses."""

    def __init__(self, log: MetricsLog, console: Console | None = None, unit: str = "nats/byte"):
        self._log, self._console, self._unit = log, console, unit

    def row(self, trainer: Trainer, row: Row) -> None:
        if self._console is not None and "validation_loss" in row:
            line = f"step {row['step']:>5}  training {row['loss']:.3f}  validation {row['validation_loss']:.3f} {self._unit}"
            self._console.print(line, highlight=False)
        self._log.append(row)
        tether().step(row["step"])


class ProgressBar(Callback):
    """Steps, loss, rate and time left. tokens: in a step. bar: entered, of `progress_bar`."""

    def __init__(self, bar: Progress, tokens: int):
        self._bar, self._tokens = bar, tokens

    def begin(self, trainer: Trainer) -> None:
        self._task = self._bar.add_task("train", total=trainer.steps, completed=trainer.step, loss=math.nan, rate="compiling")

    def row(self, trainer: Trainer, row: Row) -> None:
        per_second = self._tokens / max(row["host_seconds"], 1e-4)
        rate = "compiling" if row["step"] == trainer.begun_at + 1 else f"{per_second:,.0f} tokens/s of the host"
        self._bar.update(self._task, completed=row["step"], loss=row["loss"], rate=rate)


class TensorBoard(Callback):
    """Writes all numbers of the rows as TensorBoard's event files, in a folder. Enter it as a context.

    A run that goes on begins a file with the step after `step`, from which on TensorBoard leaves out what an earlier file had.
    """

    def __init__(self, folder: Path, *, step: int = 0):
        from tensorboardX import SummaryWriter  # its import takes a while, and few runs write such files

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def row(self, trainer: Trainer, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()


@jax.jit
def _norms(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum()), params)


def parameter_norms(params: PyTree) -> dict[str, Any]:
    """L2 norm of each parameter, as "norm/path"."""
    found = jax.tree_util.tree_leaves_with_path(_norms(params))
    return {f"norm/{jax.tree_util.keystr(path, simple=True, separator='/')}": norm for path, norm in found}


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
