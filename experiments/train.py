"""Train a language model on an emulated wafer: `python -m experiments.train --help`.

The folder given by --out gets config.json, manifest.jsonl, metrics.jsonl, loss.png, wafer.png, audit.txt, sample.txt
and checkpoints/. The same command again goes on from the newest good checkpoint, as if the run had never stopped.
Parts of the wafer may die on the way (--kill-pe, --kill-link, or a list of deaths written to faults.json in the
folder while the run goes): events.jsonl tells of it, and no loss changes. With --max-restarts another process
starts the run again after faults of the system, and summary.json tells of it.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

import wsejax as wse
from wsejax.report import plot_loss, plot_wafer
from wsejax.training import distributed
from wsejax.training.callbacks import Callback, Checkpointer, Noise, Periodic, parameter_norms
from wsejax.training.checkpoint import Checkpoints
from wsejax.training.faults import Death, DeathWatch, Event, LostWaferError, survive
from wsejax.training.objectives import places
from wsejax.training.provenance import Provenance, program_digest
from wsejax.training.rundir import (
    MetricsLog,
    write_atomically,
)
from wsejax.training.sampling import continue_text
from wsejax.training.shares import lay_out
from wsejax.training.state import TrainState, abstract_like
from wsejax.training.tether import tether
from wsejax.training.trainer import Trainer

from .features import loss_scale_floor, pruned_shares
from .processes import Feed, facts
from .reproduce import origin_of, settings_of
from .run import Machine, Run, on_machine, prepare, train_step
from .running import concluded, run_steps
from .settings import Settings
from .supervise import refuse, run_supervised

PROMPT = b"def "


def without(run: Run, state: TrainState, died: Death, step: int) -> tuple[Run, Machine, TrainState, Event]:
    """Go on on what is left of the wafer, the state moved in memory. Raises LostWaferError where nothing usable is."""
    assert run.wafer is not None

    def build(wafer: wse.Wafer) -> tuple[Machine, Any]:
        one_shape = run.settings.documents.how != "bucket"  # else each shape of a batch compiles when it comes
        made = on_machine(replace(run, wafer=wafer), compiled=one_shape)
        return made, made.state_shardings

    wafer, machine, state, event = survive(run.wafer, state, died, step=step, build=build)
    return replace(run, wafer=wafer), machine, state, event


def describe(run: Run, machine: Machine, folder: Path) -> None:
    """Write down which operations run on the fabric, and draw the wafer."""
    if not distributed.is_first():
        return
    write_atomically(folder / "audit.txt", machine.audit + "\n")
    if run.wafer is not None:
        plot_wafer(run.wafer, folder / "wafer.png")


def train(run: Run, machine: Machine, folder: Path, console: Console) -> tuple[TrainState, Any, bool]:
    """Train to the last step or until told to stop. Returns the state, the metrics, and whether the run is
    complete."""
    settings = run.settings

    def say(message: str) -> None:
        console.print(message, style="yellow", markup=False, soft_wrap=True)

    batches = Feed(run.batches, machine.batch_shardings, run.held_out[0])
    program = program_digest(train_step(run), run.abstract_state, run.held_out[0])
    manifest = Provenance(folder, origin_of(settings, run.identity, run.corpus, run.wafer, program, say), say)
    describe(run, machine, folder)
    deaths = Deaths(run, machine, folder, manifest, say)
    measures: list[Callback] = [Noise()] if settings.loop.noise_scale else []
    if settings.loop.norms_every is not None:
        measures.append(Periodic(settings.loop.norms_every, lambda state: parameter_norms(state.params)))
    if settings.sparsity.method != "none":
        measures.append(Periodic(settings.eval_every, pruned_shares))
    return run_steps(
        settings, folder, console, manifest, abstract_state=run.abstract_state, shardings=machine.state_shardings,
        initial=lambda: lay_out(run.initial_state(), machine.state_shardings), advance=machine.step, batches=batches,
        tokens=settings.batch * run.task.config.context, validate=lambda state: validation_loss(run, deaths.machine, run.averaged(state)),
        measures=measures, deadline_seconds=settings.distributed.deadline_seconds, watching=deaths.watching,
        where=lambda step: first_bad(run, deaths.machine, folder, step),
        floor=loss_scale_floor(run.task.policy, settings.loss_scale),
    )  # fmt: skip


class Deaths(Callback):
    """Goes on without what dies of the wafer between two steps; `machine` is the one that there now is."""

    def __init__(self, run: Run, machine: Machine, folder: Path, manifest: Provenance, say: Callable[[str], None]):
        self.run, self.machine, self._folder, self._manifest, self._say = run, machine, folder, manifest, say
        self._watch = DeathWatch(folder, run.wafer, run.deaths, say)

    def watching(self, saver: Checkpointer, peers: distributed.Watch) -> Deaths:
        self._saver, self._peers = saver, peers
        return self

    def before_step(self, trainer: Trainer) -> None:
        """Raises LostWaferError where nothing usable is left."""
        if not (died := self._watch.due(trainer.step, self.run.wafer)):
            return
        trainer.flush()
        self._peers.pause()
        tether().busy()
        try:
            self.run, self.machine, trainer.state, event = without(self.run, trainer.state, died, trainer.step)
        except LostWaferError as error:
            self._saver.save(trainer)
            raise LostWaferError(
                f"{error}. Nothing is lost: the same command without this death goes on after step {trainer.step}"
            ) from error
        trainer.advance = self.machine.step
        self._watch.record(event)
        self._manifest.fault(event, self.run.wafer)
        self._say(str(event))
        describe(self.run, self.machine, self._folder)
        trainer.restart_clock()


def validation_loss(run: Run, machine: Machine, params: Any) -> float:
    """Mean loss over the validation batches, nats per byte. Each counts by how many bytes it asks for."""
    params = jax.device_put(params, machine.params_shardings)
    asked = [float(batch["weights"].sum()) if "weights" in batch else batch["targets"].size for batch in run.held_out]
    return float(np.average([float(machine.evaluate(params, batch)) for batch in machine.held_out], weights=asked))


def first_bad(run: Run, machine: Machine, folder: Path, step: int) -> str:
    """Which operation of a step, and in which layer, first gave what is not finite. The steps from the newest checkpoint on are taken
    again, since they come out the same. Nothing where several processes run, or plain JAX finds nothing."""
    if distributed.process_count() > 1:
        return ""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(abstract_like(run.abstract_state, machine.state_shardings))
    state, start = (lay_out(run.initial_state(), machine.state_shardings), 0) if restored is None else (restored.state, restored.step)
    if start >= step:
        return ""
    batches = run.batches()
    if restored is not None:
        batches.set_state(restored.data_state or {})
    for _ in range(start, step - 1):
        state, _ = machine.step(state, next(batches))
        tether().busy()
    state, batch = jax.device_put(jax.device_get(state), jax.devices()[0]), next(batches)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step) if run.task.stochastic else None
    found = wse.first_nonfinite(jax.value_and_grad(lambda params: run.task.training_loss(params, batch, key)), state.params)
    return f"first in {found}" if found else ""


def sample(run: Run, params: Any) -> str:
    """Text that a causal model goes on with; of others a validation window with its gaps, and with what the model puts there."""
    task, settings = run.task, run.settings
    if not task.maker:
        made = continue_text(
            task.apply, params, PROMPT, count=settings.sample_bytes, context=task.config.context, seed=settings.seed
        )  # fmt: skip
        return made.decode("utf-8", "replace")
    batch = run.held_out[0]
    logits = jax.jit(task.apply)(jax.device_put(jax.device_get(params), jax.devices()[0]), *task.objective.inputs(batch), **places(batch))
    return "\n".join(part.decode("utf-8", "replace") for part in task.objective.filled(logits, batch))


def finish(run: Run, state: TrainState, log: Any, console: Console, given: Sequence[str]) -> None:
    """Write the sample and the picture of the loss, and say where everything is."""
    out = run.settings.out
    params = distributed.fetch(run.averaged(state))
    if not distributed.is_first():
        return
    text = sample(run, params)
    write_atomically(out / "sample.txt", text + "\n")
    if log.rows:  # else somebody removed them, which was said
        plot_loss(log.rows, out / "loss.png")
    console.rule("sample")
    console.print("\n".join(text.splitlines()[:12]), markup=False, highlight=False)
    console.rule("done")
    wafer_lines = [f"  {out / 'wafer.png'}   the wafer: dead PEs, and the mesh that avoids them"] if run.wafer else []
    kept = [
        flag for n, flag in enumerate(given) if flag != "--out" and not (n and given[n - 1] == "--out") and not flag.startswith("--out=")
    ]
    again = shlex.join([_this_python(), "-m", "experiments.train", *kept])
    beside = shlex.quote(str(out))
    lines = [
        *(f"validation loss {row['validation_loss']:.3f} nats/byte after {row['step']} steps" for row in log.rows[-1:]),
        "Look at",
        f"  {out / 'loss.png'}    training and validation loss",
        *wafer_lines,
        f"  {out / 'audit.txt'}   which operations ran on the fabric, and which could not",
        f"  {out / 'sample.txt'}  the whole sample",
        "Try next",
        f"  {again} --wafer.dead-pe-fraction 0.05 --out {beside}-5pct   more dead PEs, the very same losses",
        f"  {again} --wafer.off --out {beside}-plain   the same run in plain JAX",
        f"  {again} --data '*.md' --out {beside}-mine   your own text",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _this_python() -> str:
    """How to start this very Python again from here: an environment inside the folder is rarely activated."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else "python"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when complete, else what `wsejax.training.outcome.Fault` has: 2 for what the user can mend,
    130 when stopped."""
    tether()
    try:
        return _main(arguments)
    finally:
        distributed.leave()


def _main(arguments: Sequence[str] | None) -> int:
    read_flags = partial(tyro.cli, Settings, args=arguments, prog="python -m experiments.train", config=(tyro.conf.FlagCreatePairsOff,))
    settings = read_flags()
    try:
        if settings.supervision.max_restarts is not None:
            given, of = sys.argv[1:] if arguments is None else arguments, settings.cluster
            return run_supervised(settings.out, settings.supervision, given, Console(), systems=of.systems, groups=of.groups)
        settings.distributed.join()
        if settings.from_manifest is not None:  # then its settings are what stands where no flag does
            origin = settings.from_manifest
            settings = distributed.together(lambda: read_flags(default=settings_of(origin)), (ValueError, OSError))
        run = distributed.together(lambda: prepare(settings), (ValueError, OSError, MemoryError))
        distributed.agree("configuration, code or data", facts(run.identity, run.corpus.digest, run.wafer and run.wafer.defects.digest))
        console = Console(quiet=not distributed.is_first())
        about = {"python": platform.python_version(), "jax": jax.__version__, "text_bytes": len(run.corpus.tokens)}
        console.print(f"{run.wafer or 'plain jax.jit on one device'}\n{run.said}", markup=False, highlight=False)
    except (ValueError, OSError, MemoryError) as error:
        return refuse(error)

    def work() -> tuple[MetricsLog, bool]:
        with console.status("planning the step"):
            machine = on_machine(run)
        distributed.agree("the planned program", {"audit": machine.audit})
        with distributed.run_folder(settings.out, run.identity, about) as folder:
            state, log, complete = train(run, machine, folder, console)
            if complete:
                tether().busy()
                finish(run, state, log, console, sys.argv[1:] if arguments is None else arguments)
        return log, complete

    return concluded(work, console)


if __name__ == "__main__":
    sys.exit(main())
