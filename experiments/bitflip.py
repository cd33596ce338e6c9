"""What one flipped bit does to training: a campaign over kinds of state and classes of bits. `--help` for the flags.

Each run starts from the same state of a clean run, flips one bit of one word in the SRAM of a random PE, and trains on over the same
batches. Masked: every later loss has the bits of the clean run's. Benign: the final loss is at most `tolerance` above the clean one.
Diverged: a loss is no number, or the final one is above that of the untrained model. Degraded: what is between.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import wsejax as wse
from wsejax.report import plot_bitflips
from wsejax.report.faults import OUTCOMES
from wsejax.training.bitflip import flip_bit, leaf_paths
from wsejax.training.data import load_corpus, train_batches
from wsejax.training.state import init_train_state, make_train_step

from .entry import console as wide_console
from .entry import start
from .settings import OptimiserSettings, WaferSettings
from .task import ModelSettings, task_of

BITS = {"sign": range(31, 32), "exponent": range(23, 31), "mantissa": range(23)}  # of float32, which all of this state is
STATES = {"params": "params/", "first moment": "/mu/", "second moment": "/nu/"}


@dataclass(frozen=True)
class Settings:
    """Flip one bit a run while a small GPT trains on an emulated wafer, and count what becomes of the loss."""

    runs: int = 40
    """Runs for each kind of state and class of bits."""
    steps: int = 100
    """Training steps of a run."""
    flip_after: int = 50
    """The bit flips after this step."""
    tolerance: float = 0.01
    """A final loss that is by at most this share above the clean one is benign."""
    seed: int = 0
    """Seed of the parameters, the order of the text, and the flips. More runs of the same seed contain those of fewer."""
    batch: int = 8
    """Sequences in a batch."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|GLOB ...")] = ()
    """Text files or glob patterns; left out: the documentation and sources of Python's own library on this machine."""
    out: Path | None = None
    """Folder for bitflip.json and bitflip.png."""
    model: ModelSettings = field(default_factory=lambda: ModelSettings(layers=2, heads=2, width=32, context=32))
    wafer: WaferSettings = field(default_factory=lambda: WaferSettings(rows=16, cols=16, tiles=(2, 2), devices=(1, 1)))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(warmup_steps=5))

    def check(self) -> None:
        """Raises ValueError for a number that no campaign can have."""
        for name, least in (("runs", 1), ("steps", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)} is too small; give at least {least}")
        if not 0 <= self.flip_after < self.steps:
            raise ValueError(f"--flip-after {self.flip_after}: give a step from 0 to {self.steps - 1}, so that one comes after it")
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance {self.tolerance}: give a share of 0 or more, such as 0.01")
        if self.wafer.off:
            raise ValueError("--wafer.off: without a wafer no PE holds a word; leave it out")


def outcome(losses: Sequence[float], clean: Sequence[float], untrained: float, tolerance: float) -> str:
    """One of OUTCOMES; the losses are those after the flip, fewer than the clean ones where the run has broken off."""
    if not all(map(math.isfinite, losses)) or losses[-1] > untrained:
        return "diverged"
    if list(losses) == list(clean):  # floats that came out of float32: equal numbers are equal bits, and no loss is zero
        return "masked"
    return "benign" if losses[-1] <= clean[-1] * (1 + tolerance) else "degraded"


def campaign(settings: Settings, console: Console) -> dict[str, Any]:
    """All runs: the clean losses, and a record for each flip. Raises ValueError or OSError for the user to read."""
    settings.check()
    wafer = settings.wafer.build()
    assert wafer is not None
    task = task_of(settings.model)
    corpus = load_corpus(settings.data, context=task.config.context)
    source = train_batches(corpus, batch_size=settings.batch, seed=settings.seed, maker=task.maker)
    batches = [next(source) for _ in range(settings.steps)]
    tx = settings.optimiser.build(settings.steps, model=(task.family, task.config))
    state = init_train_state(task.init(settings.seed), tx, seed=settings.seed)
    step = wse.jit(make_train_step(task.training_loss, tx, stochastic=task.stochastic), wafer)
    shardings = step.lower(state, batches[0]).in_shardings[0]

    def train(state: Any, batches: Sequence[Any]) -> tuple[Any, list[float]]:
        losses: list[float] = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            if not math.isfinite(losses[-1]):
                break
        return state, losses

    with console.status("compiling the step, and the clean run"):
        state, before = train(jax.device_put(state, shardings), batches[: settings.flip_after])
        _, clean = train(state, batches[settings.flip_after :])
    untrained = (before or clean)[0]
    groups = [(kind, bits) for kind in STATES for bits in BITS]
    paths = {kind: [path for path in leaf_paths(state) if mark in path] for kind, mark in STATES.items()}
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TextColumn("left"))
    records, began = [], time.perf_counter()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("runs", total=len(groups) * settings.runs, rate="")
        for run in range(settings.runs):  # group after group within, so that the rate is soon a fair one
            for number, (kind, bits) in enumerate(groups):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), number), run)
                hit, flip = flip_bit(key, state, shardings, wafer, bit=BITS[bits], leaf=paths[kind])
                _, losses = train(hit, batches[settings.flip_after :])
                ratio = losses[-1] / clean[-1] if math.isfinite(losses[-1]) else None
                result = outcome(losses, clean, untrained, settings.tolerance)
                what = {"state": kind, "bits": bits, "run": run, "outcome": result, "ratio": ratio, "steps_after": len(losses)}
                records.append(what | flip.as_json())
                progress.update(bar, advance=1, rate=f"{len(records) / (time.perf_counter() - began):.1f} runs/s")
    return {
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "jax": jax.__version__,
        "text_digest": corpus.digest,
        "defects_digest": wafer.defects.digest,
        "logical_grid": wafer.logical_grid,
        "clean_losses": before + clean,
        "table": summary(records),
        "records": sorted(records, key=lambda r: groups.index((r["state"], r["bits"]))),
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts of each group, and its largest finite final loss over the clean run's."""
    rows = []
    for kind in STATES:
        for bits in BITS:
            some = [r for r in records if (r["state"], r["bits"]) == (kind, bits)]
            worst = max((r["ratio"] for r in some if r["ratio"] is not None), default=None)
            counts = {name: sum(r["outcome"] == name for r in some) for name in OUTCOMES}
            rows.append({"state": kind, "bits": bits, "runs": len(some), **counts, "worst_ratio": worst})
    return rows


def table(result: dict[str, Any]) -> Table:
    settings = result["settings"]
    out = Table(
        box=box.SIMPLE_HEAD,
        title=f"one flip after step {settings['flip_after']} of {settings['steps']}, benign within {settings['tolerance']:.1%}, "
        f"seed {settings['seed']}; clean loss {result['clean_losses'][0]:.3f} -> {result['clean_losses'][-1]:.3f}",
    )
    for name in ("state", "bits"):
        out.add_column(name, no_wrap=True)
    for name in ("runs", *OUTCOMES, "worst / clean"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in result["table"]:
        ratio = row["worst_ratio"]
        worst = "-" if ratio is None else f"{ratio:.4f}" if ratio < 1000 else f"{ratio:.0e}"
        out.add_row(row["state"], row["bits"], *(str(row[name]) for name in ("runs", *OUTCOMES)), worst)
    return out


def main(settings: Settings) -> None:
    console = wide_console()
    result = campaign(settings, console)
    console.print(table(result))
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "bitflip.json").write_text(json.dumps(result, indent=1, allow_nan=False))
        plot_bitflips(result["records"], settings.out / "bitflip.png")
        console.print(f"wrote {settings.out}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__, config=(tyro.conf.FlagCreatePairsOff,)))
