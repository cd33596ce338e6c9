"""Run folders as training makes them, without training, and what is done to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import wsejax as wse
from wsejax.training import Death, Event, MetricsLog, RunDirectory
from wsejax.training.faults import EVENTS
from wsejax.training.provenance import (
    Provenance,
    checkpoint_steps,
)
from wsejax.training.verify import Verdict, verify

STEPS, KEEP = 6, 2
CONFIG = {"steps": STEPS, "model": {"width": 8}}
PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
WAFER = wse.Wafer(wse.WSE3.scaled(6, 6), tiles=(2, 2), devices=(1, 1))
TEXT = "words.txt"


class Run:
    """A run folder as training makes it, with bytes in place of arrays."""

    def __init__(self, home: Path, begin: dict):
        self.home, self.out, self.said = home, home / "run", []
        (home / TEXT).write_text("words")
        with RunDirectory(self.out, CONFIG):
            pass
        self.provenance = Provenance(self.out, begin, self.said.append)

    def write_checkpoint(self, step: int) -> None:
        state = self.out / "checkpoints" / str(step) / "state"
        state.mkdir(parents=True)
        (state / "array").write_bytes(np.random.default_rng(step).bytes(40))
        (state.parent / "meta").write_text(f'{{"step": {step}}}')
        for old in checkpoint_steps(self.out)[:-KEEP]:
            shutil.rmtree(self.out / "checkpoints" / str(old))

    def train(self, start: int, stop: int, *, every: int = 2, entries: bool = True) -> None:
        with open(self.out / "metrics.jsonl", "a") as file:
            for step in range(start + 1, stop + 1):
                file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
                file.flush()
                if step % every == 0:
                    self.write_checkpoint(step)
                    if entries:
                        self.provenance.checkpoint(step)

    def start(self, begin: dict) -> int:
        """As a process does that finds the folder as it is. Returns the step after which it goes on."""
        step = max(checkpoint_steps(self.out), default=0)
        with MetricsLog(self.out / "metrics.jsonl", step=step, report=self.said.append):
            pass
        self.provenance = Provenance(self.out, begin, self.said.append)
        self.provenance.started(step)
        return step

    def die(self, step: int, pe: tuple[int, int], entry: bool = True) -> None:
        event = Event(step, Death(None, (pe,)), ((6, 6), (5, 6)), (1.0, 1.1), (1, 2), 0.1, 0.2, 0.3)
        with open(self.out / EVENTS, "a") as file:
            file.write(json.dumps(event.as_json()) + "\n")
        if entry:
            self.provenance.fault(event, WAFER.kill([pe]))

    def verify(self, head: str = "") -> Verdict:
        return verify(self.out, data=self.home, packages={}, head=head)


def finished(home: Path, begin: dict) -> Run:
    run = Run(home, begin)
    run.provenance.started(0)
    run.train(0, 2)
    run.die(2, (1, 1))
    run.die(2, (2, 2))
    run.train(2, STEPS)
    run.provenance.end(STEPS, PARAMS)
    return run


def named_files(run: Run) -> list[Path]:
    inside = [path for path in sorted(run.out.rglob("*")) if path.is_file() and path.name != ".lock"]
    return [*inside, run.home / TEXT]


def found(verdict: Verdict, status: str) -> list:
    return [check for check in verdict.checks if check.status == status]


class changed:
    """A file with other bytes, as it was again at the end."""

    def __init__(self, path: Path, data: bytes):
        self.path, self.data = path, data

    def __enter__(self) -> None:
        self.before = self.path.read_bytes()
        self.path.write_bytes(self.data)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.before)
