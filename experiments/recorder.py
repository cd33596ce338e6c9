"""What a training loop tells: the metrics file and the progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wsejax.training.rundir import MetricsLog
from wsejax.training.tether import tether


class DivergedError(FloatingPointError):
    """The loss is no longer a number."""


class Recorder:
    """Writes metrics down, and to the progress bar. It fetches them one step late: the host prepares a batch while the
    devices work, and yet never queues more than two steps (on CPU, a long queue of programs with collectives deadlocks
    in older releases of JAX)."""

    def __init__(self, settings: Any, tokens_per_step: int, log: MetricsLog, progress: Progress, start: int, *, unit: str = "nats/byte"):
        """settings: with `steps` and `optimiser`. unit: of the losses."""
        self.log, self._settings, self._tokens_per_step, self._unit = log, settings, tokens_per_step, unit
        self._progress, self._start = progress, start
        self._bar = progress.add_task("train", total=settings.steps, completed=start, loss=math.nan, rate="compiling")
        self._pending: list[tuple[int, Any]] = []
        self._last_seconds = time.perf_counter()

    def add(self, step: int, metrics: Any) -> None:
        """Take a step's metrics, still being computed, and write down the step before."""
        self._pending.append((step, metrics))
        self._write(keep=1)

    def flush(self, validation_loss: Callable[[], float] | None = None) -> None:
        """Write down all steps, the newest with its validation loss if there is a way to measure it."""
        self._write(keep=0, validation_loss=validation_loss)

    def restart_clock(self) -> None:
        """What was done since the last step (a remapped wafer) is not of the next one."""
        self._last_seconds = time.perf_counter()

    def _write(self, keep: int, validation_loss: Callable[[], float] | None = None) -> None:
        while len(self._pending) > keep:
            step, metrics = self._pending.pop(0)
            row = {"step": step} | {name: float(value) for name, value in metrics.items()}
            if not math.isfinite(row["loss"]):
                raise DivergedError(
                    f"the loss of step {step} is {row['loss']}; start in another --out with a lower "
                    f"--optimiser.learning-rate than {self._settings.optimiser.learning_rate}"
                )
            row["host_seconds"] = round(time.perf_counter() - self._last_seconds, 4)
            if validation_loss is not None and not self._pending:
                tether().busy()
                row["validation_loss"] = validation_loss()
                line = f"step {step:>5}  training {row['loss']:.3f}  validation {row['validation_loss']:.3f} {self._unit}"
                self._progress.console.print(line, highlight=False)
            self._last_seconds = time.perf_counter()
            self.log.append(row)
            tether().step(step)
            tokens_per_second = self._tokens_per_step / max(row["host_seconds"], 1e-4)
            rate = "compiling" if step == self._start + 1 else f"{tokens_per_second:,.0f} tokens/s of the host"
            self._progress.update(self._bar, completed=step, loss=row["loss"], rate=rate)


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
