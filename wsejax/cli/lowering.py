"""`wsejax audit`, `cost` and `trace`: what a program does on the fabric, what it would take, and when. Nothing is allocated or run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wsejax.cost import cost, memory, timeline
from wsejax.report import (
    audit_table,
    cost_table,
    errors_text,
    kernel_errors,
    memory_table,
    plot_memory,
    plot_timeline,
    seconds_text,
    sparsity_table,
)
from wsejax.report.errors import TWO_MODELS
from wsejax.report.pricing import verdict_text

from .machine import changed
from .output import Output, table
from .programs import ProgramArguments


@dataclasses.dataclass(frozen=True)
class Audit(ProgramArguments):
    """Which operations of a program run on the fabric, what moves, and from which source line."""

    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        asked, lowered = self.lowered()
        audit = lowered.audit()
        return Output({"program": asked.title, **audit.to_dict()}, (asked.title, audit_table(audit)))


@dataclasses.dataclass(frozen=True)
class OnSystem(ProgramArguments):
    """A program, and the machine that it is priced on."""

    system: str = "cs3"
    """Machine: cs1, cs2 or cs3."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=NUMBER")] = ()
    """A field of the machine to change, such as link_bits=64; `wsejax specs` lists them."""
    systems: int = 0
    """Systems of a cluster, through which the state streams from MemoryX as the program says; 0: one wafer, whatever it holds."""


def _as_data(errors: Mapping[str, tuple[float, str]]) -> list[dict[str, Any]]:
    return [{"group": group, "share": share, "error": text} for group, (share, text) in errors.items()]


@dataclasses.dataclass(frozen=True)
class Cost(OnSystem):
    """What a program would take on a system: modelled time, energy and memory."""

    execution: Literal["auto", "resident", "streamed"] = "auto"
    """Weights held on the wafer, or streamed in during the run; auto: streamed if they do not fit."""
    while_trips: int | None = None
    """How often a loop of unknown length runs; left out: the price is a pair of bounds."""
    weight_sparsity: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[PATTERN=]NUMBER")] = ()
    """Share of zeros of all weights, such as 0.75, or of those whose path has a regular expression, such as mlp=0.9. They save time where
    weights stream."""
    lines: int = 15
    """Rows of the table."""
    memory_out: Path | None = None
    """Picture of the bytes that each PE holds."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        if self.lines < 0:
            raise ValueError(f"--lines {self.lines}: rows of a table are 0 or more")
        machine = changed(self.system, self.set)
        asked, lowered = self.lowered(self.systems)
        trains = bool(lowered.program.state_bytes)
        options: dict[str, Any] = dict(tokens=asked.tokens, while_trips=self.while_trips, execution=self.execution)
        priced = cost(lowered, machine, weight_sparsity=_shares(self.weight_sparsity), **options)
        held = memory(lowered, machine)
        errors = kernel_errors(priced)
        said = (*errors_text(errors, trains, priced.error_group), *((TWO_MODELS,) if trains and priced.streamed is None else ()))
        fits = not verdict_text(priced.execution, held)
        data = {
            "program": asked.title, **priced.to_dict(), "fits": fits, "errors": list(said), "model_errors": _as_data(errors),
            "memory": held.to_dict(),
        }  # fmt: skip
        parts = [asked.title, cost_table(priced, self.lines, said, held), "", memory_table(held)]
        if priced.sparsity is not None:
            parts += ["", sparsity_table(priced.sparsity)]
        if self.memory_out is not None:
            plot_memory(held, self.memory_out)
            data["memory_path"] = str(self.memory_out)
            parts.append(f"memory map: {self.memory_out}")
        return Output(data, parts)


def _shares(given: tuple[str, ...]) -> float | dict[str, float] | None:
    """Of --weight-sparsity: one number, or one for each regular expression."""
    shares: dict[str, float] = {}
    for text in given:
        pattern, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            raise ValueError(
                f"--weight-sparsity {text}: give a share of zeros, such as 0.75, or a regular expression's, mlp=0.75"
            ) from None
        if pattern in shares or (shares and "" in (*shares, pattern)):
            raise ValueError(f"--weight-sparsity {text}: give one number for all weights, or one for each regular expression")
        shares[pattern] = share
    return shares.get("", shares) if shares else None


@dataclasses.dataclass(frozen=True)
class Trace(OnSystem):
    """Lay a modelled run of a program out over time, kernel by kernel, for ui.perfetto.dev or chrome://tracing."""

    out: Path = Path("trace.json")
    """Trace to write."""
    picture: Path | None = None
    """Picture of the tracks to write, such as trace.png."""
    streamed: bool = False
    """Weights stream in while the program runs."""
    max_kernels: int = 20_000
    """Kernels with events of their own; later ones only count."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> Output:
        machine = changed(self.system, self.set)
        asked, lowered = self.lowered(self.systems)
        run = timeline(lowered, machine, streamed=self.streamed, max_kernels=self.max_kernels)
        run.save(self.out)
        busy = {track: float(machine.seconds(sum(e.cycles for e in run.events if e.track == track))) for track in run.tracks}
        priced = cost(lowered, machine)
        whole, errors = float(machine.seconds(run.cycles)), kernel_errors(priced)
        said = errors_text(errors, bool(lowered.program.state_bytes), priced.error_group)
        against = verdict_text("streamed" if self.streamed or self.systems else "resident", memory(lowered, machine))
        data = {
            "modelled": True, "program": asked.title, "system": machine.name, "seconds": whole, "busy_seconds": busy,
            "events": len(run.events), "kernels_left_out": run.left_out, "path": str(self.out),
            "fits": not against, "errors": list(said), "model_errors": _as_data(errors),
        }  # fmt: skip
        rows = [(track, f"{sum(e.track == track for e in run.events):,}", seconds_text(s), f"{s / whole:.1%}") for track, s in busy.items()]
        head = f"{asked.title} on {machine.name}: modelled {seconds_text(whole)}" + (f"; {against}" if against else "")
        parts = [head, *said, table(("track", "events", "busy, modelled", "of the run"), rows)]
        if run.left_out:
            parts.append(f"{run.left_out:,} later kernels have no events; --max-kernels shows more")
        if self.picture is not None:
            plot_timeline(run, self.picture, said[0] if said else "")
            data["picture_path"] = str(self.picture)
        where = f"trace: {self.out}" + (f", picture: {self.picture}" if self.picture else "")
        return Output(data, [*parts, where])
