"""What `experiments.train` and `experiments.finetune` share: the loop with all its callbacks, and how a command ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from wsejax.training import distributed
from wsejax.training.callbacks import (
    Callback,
    Checkpointer,
    EarlyStop,
    Log,
    NaNGuard,
    Periodic,
    ProgressBar,
    Stopper,
    TensorBoard,
    Throughput,
    progress_bar,
)
from wsejax.training.checkpoint import Checkpoints
from wsejax.training.lossscale import FLOOR
from wsejax.training.provenance import Provenance
from wsejax.training.rundir import MetricsLog
from wsejax.training.state import abstract_like
from wsejax.training.tether import tether
from wsejax.training.trainer import Trainer

from .processes import open_log, stopper
from .supervise import report_end


def run_steps(
    settings: Any, folder: Path, console: Console, manifest: Provenance, *, abstract_state: Any, shardings: Any,
    initial: Callable[[], Any], advance: Callable[..., Any], batches: Any, tokens: int, validate: Callable[[Any], float] | None,
    unit: str = "nats/byte", measures: Sequence[Callback] = (), deadline_seconds: float | None = None,
    watching: Callable[[Checkpointer, distributed.Watch], Callback] | None = None, 
    where: Callable[[int], str] = lambda step: "", floor: float = FLOOR,
) -> tuple[Any, MetricsLog, bool]:  # fmt: skip
    """Go on from the newest good checkpoint in a folder, or begin, and train to the end or until told to stop.

    Args:
      settings: with steps, eval_every, checkpoint_every, keep, optimiser and loop.
      abstract_state, shardings: of the state; initial: makes the first one, laid out.
      advance: the step. batches: an iterator with get_state and set_state. tokens: in a batch.
      validate: the loss of a state on what is held out; None: there is nothing.
      measures: callbacks that add to rows.
      floor: the least loss scale. where: says of a step whose loss is not finite where that came from.
      watching: makes what looks after the machine between two steps, from what saves and what watches other processes.

    Returns the state, the metrics, and whether the run is complete.
    """

    def say(message: str) -> None:
        console.print(message, style="yellow", markup=False, soft_wrap=True)

    with (
        Checkpoints(folder / "checkpoints", keep=settings.keep, report=say, completed=manifest.checkpoint) as checkpoints,
        stopper(say) as stop,
        distributed.Watch(deadline_seconds or sys.maxsize) as peers,
        ExitStack() as stack,
    ):
        restored = checkpoints.restore_newest(abstract_like(abstract_state, shardings), manifest.differs)
        if restored is None:
            state, start = initial(), 0
        else:
            state, start = restored.state, restored.step
            batches.set_state(restored.data_state or {})
            console.print(f"going on from the checkpoint of step {start}")
        tether().start(start, first=distributed.is_first())
        log = stack.enter_context(open_log(folder / "metrics.jsonl", step=start, report=say))
        saver = Checkpointer(checkpoints, log, every=settings.checkpoint_every)
        looks_after = [] if watching is None else [watching(saver, peers)]
        manifest.started(start)
        bar = stack.enter_context(progress_bar(console))
        loop = settings.loop
        early = None if loop.patience is None else EarlyStop(patience=loop.patience, least=loop.least_fall, say=say)
        writes: list[Callback] = [Log(log, bar.console, unit), ProgressBar(bar, tokens)]
        if loop.tensorboard and distributed.is_first():
            writes.append(stack.enter_context(TensorBoard(folder / "tensorboard", step=start)))
        rate = settings.optimiser.learning_rate
        guard = NaNGuard(f"start in another --out with a lower --optimiser.learning-rate than {rate}", where, floor)
        evaluate = [] if validate is None else [Periodic(settings.eval_every, lambda state: {"validation_loss": validate(state)})]
        callbacks = [
            Stopper(lambda: stop.asked or (early is not None and early.over)), *looks_after,
            _Peers(peers), guard, *evaluate, *measures, Throughput(tokens),
            *([early] if early else []), *writes, saver,
        ]  # fmt: skip
        for row in rows_of_all(log) if early or measures else ():
            for callback in callbacks:
                callback.seen(row)
        over = early is not None and early.over
        trainer = Trainer(advance, state, batches, steps=settings.steps, step=start, callbacks=callbacks)
        del state
        state = trainer.fit()
        complete = trainer.complete or over or (early is not None and early.stopped)
        if complete:
            manifest.end(trainer.step, state.params)
    return state, log, complete


def rows_of_all(log: MetricsLog) -> list[dict[str, Any]]:
    """The rows that the run has. Of several processes the first alone has the file, and tells the others."""
    if distributed.process_count() == 1:
        return log.rows
    return json.loads(distributed.gather_text(json.dumps(log.rows))[0])


class _Peers(Callback):
    """Tells the watch over the other processes that a step is done."""

    def __init__(self, watch: distributed.Watch):
        self._watch = watch

    def after_step(self, trainer: Trainer) -> None:
        self._watch.step()


def concluded(work: Callable[[], tuple[MetricsLog, bool]], console: Console) -> int:
    """Do the work of a command, which returns its metrics and whether it is complete. Returns the exit code: 0 when complete, else what
    `wsejax.training.outcome.Fault` has, 130 when stopped."""
    try:
        log, complete = work()
    except Exception as error:
        return report_end(error)
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130
    if complete:
        return 0
    step = log.rows[-1]["step"] if log.rows else 0
    console.print(f"stopped after step {step}; the same command goes on from there", highlight=False)
    return 130
