"""One loop for every kind of training: a step, batches, and callbacks round them.

The loop knows neither models nor files. What a run tells (metrics.jsonl, a progress bar), keeps (checkpoints), measures (validation,
norms) and watches (losses that are no numbers, a wafer that loses parts) are callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
"""Of one step: `step`, the metrics as floats, `host_seconds`, and what callbacks add."""
Advance = Callable[[Any, Any], tuple[Any, Any]]


class Callback:
    """What happens round the steps. No hook does anything here; each is called on all callbacks in their order."""

    def seen(self, row: Row) -> None:
        """A row of an earlier start of this run, before `begin`: a run that goes on does as the uninterrupted one would."""

    def begin(self, trainer: Trainer) -> None:
        """Before the first step."""

    def before_step(self, trainer: Trainer) -> None:
        """Between two steps, unless a callback before it has stopped the run; may
        replace `trainer.state` and `trainer.advance`, or call `trainer.stop()`."""

    def after_step(self, trainer: Trainer) -> None:
        """`trainer.step` is the step just taken; the devices may still be working on it."""

    def row(self, trainer: Trainer, row: Row) -> None:
        """The metrics of a step have come, one step late or with a flush; may add to them."""

    def end(self, trainer: Trainer) -> None:
        """After the last step, or when stopped; all rows have come."""


class Trainer:
    """Takes steps until there are as many as asked, or somebody calls `stop`.

    advance: (state, batch) -> (state, metrics), metrics being float scalars with a `loss`. batches: an iterator. step: those done before.

    Metrics are fetched one step late: the host prepares a batch while the devices work, and yet never queues more than two steps (on CPU,
    a long queue of programs with collectives deadlocks in older releases of JAX).
    """

    def __init__(self, advance: Advance, state: Any, batches: Any, *, steps: int, step: int = 0, callbacks: Sequence[Callback] = ()):
        self.advance, self.state, self.batches = advance, state, batches
        self.steps, self.step, self.callbacks = steps, step, tuple(callbacks)
        self.begun_at, self.stopped = step, False
        self._pending: list[tuple[int, Any]] = []
        self._last_seconds = time.perf_counter()

    @property
    def complete(self) -> bool:
        """Whether no step is left to take."""
        return self.step >= self.steps

    def due(self, every: int) -> bool:
        """Whether the step just taken is the last, or one of every so many."""
        return self.complete or self.step % every == 0

    def stop(self) -> None:
        """Take no further step."""
        self.stopped = True

    def fit(self) -> Any:
        """Take the steps. Returns the state."""
        self._tell("begin")
        self.restart_clock()
        while not self.complete:
            for callback in self.callbacks:
                callback.before_step(self)
                if self.stopped:
                    break
            if self.stopped:
                break
            self.state, metrics = self.advance(self.state, next(self.batches))
            self.step += 1
            self.add(self.step, metrics)
            self._tell("after_step")
        self.flush()
        self._tell("end")
        return self.state

    def add(self, step: int, metrics: Any) -> None:
        """Take a step's metrics, still being computed, and pass on those of the step before."""
        self._pending.append((step, metrics))
        self._pass_on(keep=1)

    def flush(self) -> None:
        """Pass on all metrics; the newest row is then that of `state`."""
        self._pass_on(keep=0)

    def restart_clock(self) -> None:
        """What was done since the last step (a validation, a remapped wafer) is not of the next one."""
        self._last_seconds = time.perf_counter()

    def _pass_on(self, keep: int) -> None:
        while len(self._pending) > keep:
            step, metrics = self._pending.pop(0)
            row = {"step": step} | {name: float(value) for name, value in metrics.items()}
            row["host_seconds"] = round(time.perf_counter() - self._last_seconds, 4)
            for callback in self.callbacks:
                callback.row(self, row)
            self.restart_clock()

    def _tell(self, hook: str) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self)
