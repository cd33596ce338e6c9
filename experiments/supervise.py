"""Supervision of a training run: what is particular to `experiments.train` about `wsejax.training.supervisor`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wsejax.training.outcome import Fault, fault_of_error, telling_part
from wsejax.training.summary import SUMMARY, Ended, Start, Summary
from wsejax.training.supervisor import Policy, supervise

NAN_PREFIX = "nan-"


@dataclass(frozen=True)
class Supervision:
    """A process that starts the training again after faults of the system, from the newest good checkpoint."""

    max_restarts: int | None = None
    """Supervise the run: start it again after a fault of the system (killed, out of memory, hung, disk full, a lost peer; once
    after a loss that is no number), at most so many times in a row without a newer checkpoint. summary.json tells of it."""
    hang_seconds: float = 600.0
    """Longest time between two steps, a validation or a save included, before the run counts as hung."""
    compile_seconds: float = 3600.0
    """Longest time until the first step, and after a death on the wafer."""
    backoff_seconds: float = 1.0
    """Wait before a restart; doubles with each failure in a row, up to a minute."""
    min_systems: int | None = None
    """After a fault that is laid to a wafer, go on with one system fewer, but with no fewer than these."""

    def check(self, systems: int = 1) -> None:
        """Raises ValueError for what cannot be kept to. systems: that the run has."""
        if self.min_systems is not None and not 1 <= self.min_systems <= systems:
            raise ValueError(f"--min-systems {self.min_systems}: this run has {systems}; give 1 to {systems}, or leave it out")
        if self.max_restarts is None:
            return
        try:
            self.policy().check()
        except ValueError as error:
            raise ValueError(f"--{str(error).replace('_', '-').replace('=', ' ', 1)}") from None

    def policy(self) -> Policy:
        """What the flags ask for."""
        return Policy(
            max_restarts=self.max_restarts or 0,
            hang_seconds=self.hang_seconds,
            compile_seconds=self.compile_seconds,
            backoff_seconds=self.backoff_seconds,
        )


def refuse(error: Exception) -> int:
    """Say in one line why the run cannot begin: what the user can mend, or that other processes did not come. Returns the exit code."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return int(Fault.LOST_PEER if fault_of_error(error) is Fault.LOST_PEER else Fault.BAD_INPUT)


def report_end(error: Exception) -> int:
    """Say what ended the run: in one line, or for a failed assertion with its traceback. Returns the exit code; raises what is unknown."""
    fault = fault_of_error(error)
    if fault is Fault.UNKNOWN and not isinstance(error, OSError):
        raise error
    if fault is Fault.FAILED_ASSERTION:
        traceback.print_exception(error)
        return int(fault)
    words = " ".join(str(error).split()) or type(error).__name__
    if fault in (Fault.DISK_FULL, Fault.OUT_OF_MEMORY, Fault.LOST_PEER):
        words = f"{fault}: {telling_part(words, fault)}; the same command goes on from the newest checkpoint"
    print(f"error: {words}", file=sys.stderr)
    return int(fault)


def without_supervision(arguments: Sequence[str]) -> list[str]:
    """The arguments without those of Supervision, in either spelling (`--max-restarts 3`, `--max_restarts=3`)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for field in dataclasses.fields(Supervision):
        parser.add_argument(f"--{field.name}", f"--{field.name.replace('_', '-')}")
    return parser.parse_known_args(list(arguments))[1]


def newest_checkpoint(out: Path) -> int | None:
    """Step of the newest complete checkpoint in a run's folder; None: none. Orbax completes one by giving it its step as its name."""
    try:
        return max((int(entry.name) for entry in (out / "checkpoints").iterdir() if entry.name.isdigit()), default=None)
    except OSError:
        return None


def put_aside_what_gave_nan(out: Path, last_step: int | None) -> str | None:
    """Put the checkpoint aside that gave a loss that is no number, so that the one before it is gone on from.

    The loss of a step is computed from the parameters of the step before. Where those were saved, the checkpoint is suspect: a
    bit that flipped in them would be there again. Any older one gave at least one sound loss. Returns the new name, or None where there is
    no such checkpoint.
    """
    suspect = out / "checkpoints" / str(last_step)
    if last_step is None or not suspect.is_dir():
        return None
    target, count = suspect.with_name(f"{NAN_PREFIX}{last_step}"), 1
    while target.exists():
        count += 1
        target = suspect.with_name(f"{NAN_PREFIX}{last_step}-{count}")
    os.rename(suspect, target)
    return target.name


@dataclass
class Mender:
    """What is changed about a run before it is started again.

    systems: those that it has; min_systems: with how few it may go on (None: with no fewer); groups: of devices that emulate them.
    """

    out: Path
    say: Callable[[str], None]
    systems: int = 1
    min_systems: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        self.begun_with = self.systems

    def __call__(self, ended: Ended, command: Sequence[str]) -> Sequence[str] | None:
        if ended.fault is Fault.NAN_LOSS and (name := put_aside_what_gave_nan(self.out, ended.last_step)):
            self.say(f"the checkpoint of step {ended.last_step} gave a loss that is no number; it is kept as {name}")
        if ended.fault is not Fault.LOST_WAFER:
            return command
        if self.min_systems is None or self.systems - 1 < max(1, self.min_systems):
            return None
        self.systems -= 1
        self.say(f"going on with {self.systems} of {self.begun_with} systems")
        if (faults := self.out / "faults.json").exists():  # they were of the wafer that is gone
            os.replace(faults, self.out / f"faults-of-lost-wafer-{self.begun_with - self.systems}.json")
        groups = max(g for g in range(1, self.groups + 1) if self.systems % g == 0)
        # of a flag that is given twice the last one counts
        fewer = {"systems": self.systems, "instead-of": self.begun_with, "groups": groups}
        return [*command, *(part for name, n in fewer.items() for part in (f"--cluster.{name}", str(n)))]


def summary_table(starts: Sequence[Start]) -> Table:
    """The starts of a run, one a row."""
    table = Table(title="starts", box=None, header_style="bold")
    for name in ("start", "after step", "to step", "host s"):
        table.add_column(name, justify="right")
    for name in ("ended by", "then"):
        table.add_column(name)
    for start in starts:
        cells = (start.number, start.from_step, start.last_step, start.host_seconds, start.fault, start.action)
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table


def run_supervised(
    out: Path, supervision: Supervision, arguments: Sequence[str], console: Console, *, systems: int = 1, groups: int = 1
) -> int:
    """Train under supervision. Returns the exit code of the whole: the last start's, as `Fault` has it.

    Args:
      out: the run's folder.
      supervision: what the flags ask for.
      arguments: of the training, those of the supervision among them.
      console: for what is said and for the table at the end.
      systems: that the run has; groups: of devices that emulate them.

    Raises ValueError or OSError for what the user can mend.
    """

    def say(message: str) -> None:
        console.print(message, style="yellow", markup=False, soft_wrap=True)

    supervision.check(systems)
    summary = Summary(out / SUMMARY, say)
    command = [sys.executable, "-m", "experiments.train", *without_supervision(arguments)]
    fault = supervise(
        command,
        supervision.policy(),
        summary=summary,
        checkpoint=lambda: newest_checkpoint(out),
        mend=Mender(out, say, systems, supervision.min_systems, groups),
        say=say,
    )
    if fault is not Fault.BAD_INPUT:  # that has been said in one line
        console.print(summary_table(summary.starts), summary.closing_words(), highlight=False)
    return int(fault)
