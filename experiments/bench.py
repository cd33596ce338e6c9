"""Host time of one GPT training step on the emulated wafer, in plain JAX and in PyTorch: `python -m experiments.bench --help`.

Contenders take their steps in turn, in a new order every round, so that drift of the machine hits all alike. Only
contenders that compute the reference's losses are compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import wsejax as wse
from models.gpt2 import FAMILY

from .contenders import NARROW, WAFERS, WHAT, Contender, MissingError, Workload, build, build_here
from .op_profile import as_lines, profile

WARMUP_STEPS = 2  # the first call compiles, the second may again where results come laid out otherwise than arguments
BUSY_SPREAD = 1.15  # quartiles of the reference further apart than this: the machine has other work
LOSS_TOLERANCE = 1e-4  # relative, at every step; float32 sums in another order stay well below
NARROW_TOLERANCE = 2e-2  # the same of bfloat16, which rounds to 1 in 256


@dataclass(frozen=True)
class Settings:
    """Measure the host time of a GPT training step: the wafer against plain JAX, XLA's partitioning and PyTorch."""

    rounds: int = 15
    """Timed steps of every contender, after two that are not."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Contenders to run beside the reference; left out: all."""
    program: Literal["scan", "remat", "unrolled"] = "remat"
    """How the layers are written in the reference and on the wafer: scanned, scanned and recomputed in the backward pass, or unrolled."""
    layers: int = 4
    """Blocks."""
    width: int = 256
    """Features of the residual stream."""
    heads: int = 8
    """Attention heads; must divide the width."""
    vocab: int = 512
    """Tokens of the vocabulary."""
    batch: int = 8
    """Sequences in a batch."""
    sequence: int = 128
    """Tokens in a sequence."""
    torch_threads: int = field(default_factory=lambda: _cores())
    """Threads of PyTorch; XLA takes as many as there are cores."""
    profile: bool = False
    """Also say where the time of the slowest wafer contender goes, by operation."""
    out: Path | None = None
    """File for the results as JSON."""

    @property
    def reference(self) -> str:
        return f"plain-{self.program}"

    def names(self) -> list[str]:
        """The contenders to run, the reference among them, in the order of the table."""
        return [name for name in WHAT if not self.only or name in self.only or name == self.reference]

    def workload(self) -> Workload:
        return Workload(
            self.layers, self.width, self.heads, self.vocab, self.batch, self.sequence, self.program, self.torch_threads
        )  # fmt: skip

    def check(self) -> None:
        """Raises ValueError for what cannot be measured."""
        for name in ("rounds", "batch", "sequence", "torch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least 1")
        if unknown := [name for name in self.only if name not in WHAT]:
            raise ValueError(f"--only {unknown[0]}: no such contender; there are {', '.join(WHAT)}")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: the folder {self.out.parent} does not exist; make it, or give another path")
        self.workload().config()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Measured:
    """What one contender did. Losses are of every step, seconds of the timed ones alone; `fault` says why it does not count."""

    name: str
    first_step_seconds: float = math.nan  # build, trace, compile and the first step
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    fault: str | None = None
    missing: bool = False  # something it needs is not installed here: no failure

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.step_seconds)) if self.step_seconds else math.nan


def measure(
    names: Sequence[str],
    build: Callable[[str], Contender],
    rounds: int,
    *,
    reference: str,
    say: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Build every contender, warm it up, then take `rounds` rounds in which each takes one step, in a new order every round.

    One that cannot be built, fails, or computes other losses than the reference gets a `fault`.
    """
    results = {name: Measured(name) for name in names}
    alive: dict[str, Contender] = {}
    try:
        for name, result in results.items():
            say(f"compiling {name}")
            start = time.perf_counter()
            try:
                contender = alive[name] = build(name)
                result.losses.append(contender.step()[0])
                result.first_step_seconds = time.perf_counter() - start
                result.losses.extend(contender.step()[0] for _ in range(WARMUP_STEPS - 1))
            except (MissingError, wse.UnsupportedOpError, ValueError, RuntimeError) as error:
                if name == reference:
                    raise
                result.fault, result.missing = str(error), isinstance(error, MissingError)
                if name in alive:
                    alive.pop(name).close()
        order, shuffle = list(alive), random.Random(0).shuffle
        for n in range(rounds):
            say(f"round {n + 1} of {rounds}")
            shuffle(order)  # no contender always follows the same one, whose caches and idle threads it would inherit
            for name in order:
                loss, seconds = alive[name].step()
                results[name].losses.append(loss)
                results[name].step_seconds.append(seconds)
    finally:
        for contender in alive.values():
            contender.close()
    for name in alive:
        tolerance = NARROW_TOLERANCE if name in NARROW else LOSS_TOLERANCE
        results[name].fault = _wrong_losses(results[name].losses, results[reference].losses, tolerance)
    return list(results.values())


def _wrong_losses(losses: Sequence[float], reference: Sequence[float], tolerance: float) -> str | None:
    for n, (loss, wanted) in enumerate(zip(losses, reference, strict=True)):
        if not abs(loss - wanted) <= tolerance * abs(wanted):  # a loss that is no number fails too
            return f"not the same training: loss {loss:.6f} at step {n + 1}, the reference has {wanted:.6f}"
    return None


@dataclass(frozen=True)
class Ratio:
    """Host time of one contender over another's: of the medians, the quartiles of the ratios within a round, and of the
    minima, which another program on the machine disturbs least."""

    value: float
    low: float
    high: float
    of_minima: float

    @staticmethod
    def of(one: Measured, other: Measured) -> Ratio:
        """Raises ValueError where either does not count."""
        for measured in (one, other):
            if measured.fault or not measured.step_seconds:
                raise ValueError(f"{measured.name} does not count: {measured.fault or 'no timed steps'}")
        low, high = np.quantile(np.array(one.step_seconds) / np.array(other.step_seconds), [0.25, 0.75])
        of_minima = min(one.step_seconds) / min(other.step_seconds)
        return Ratio(one.median_seconds / other.median_seconds, float(low), float(high), of_minima)

    def __str__(self) -> str:
        return f"{self.value:5.2f}  ({self.low:.2f} to {self.high:.2f}) {self.of_minima:6.2f}"


def comparisons(results: Sequence[Measured], reference: str) -> list[tuple[str, str, Ratio]]:
    """The comparisons beside that with the reference, as (what it says, which pair, ratio), of those that count."""
    counted = {r.name: r for r in results if not r.fault and r.step_seconds}
    pairs = [
        ("what remat costs", "plain-remat", "plain-scan"),
        ("what scan costs", "plain-scan", "plain-unrolled"),
        ("loss-scaled bfloat16 step against float32", "plain-bfloat16", reference),
        ("JAX over PyTorch, each alone in its process", "plain-alone", "torch"),
        ("what the settings for virtual devices cost", reference, "plain-alone"),
        ("the fabric over XLA's choice", "wafer-2x2", "xla-2x2"),
        ("with 8x8 tiles", "wafer-8x8-on-2x2", "xla-2x2"),
    ]
    seen: set[tuple[str, str]] = set()
    found = []
    for what, one, other in pairs:
        if one in counted and other in counted and (one, other) not in seen:
            seen.add((one, other))
            found.append((what, f"{one} / {other}", Ratio.of(counted[one], counted[other])))
    return found


def table(results: Sequence[Measured], reference: str) -> Table:
    """Host times as a table that fits 80 columns, ratios to the reference; empty for contenders that do not count.

    `first` is building, compiling and the first step. Ratios: of medians, quartiles of those within a round, of minima.
    """
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    shown.add_column("contender", no_wrap=True)
    for heading in ("first s", "med. ms", "min ms", "ratio  (quartiles)    of min"):
        shown.add_column(heading, justify="right", no_wrap=True)
    base = next(result for result in results if result.name == reference)
    for result in results:
        if result.fault:
            shown.add_row(result.name, *"----")
            continue
        milliseconds = (f"{1e3 * result.median_seconds:.1f}", f"{1e3 * min(result.step_seconds):.1f}")
        shown.add_row(result.name, f"{result.first_step_seconds:.1f}", *milliseconds, str(Ratio.of(result, base)))
    return shown


def notes(results: Sequence[Measured], reference: str) -> list[str]:
    """What the names stand for, why one does not count, and whether the machine was too busy to believe the ratios."""
    lines = []
    for result in results:
        what = WHAT.get(result.name, "") + (" (reference)" if result.name == reference else "")
        lines.append(f"{result.name:<18}{what}" + (f": {result.fault}" if result.fault else ""))
    base = next(result for result in results if result.name == reference)
    low, high = np.quantile(base.step_seconds, [0.25, 0.75])
    if high > BUSY_SPREAD * low:
        lines.append(
            f"the reference itself took {1e3 * low:.0f} to {1e3 * high:.0f} ms between its quartiles: the machine was busy with other "
            "work; the ratios of the minima say most, and a quiet machine says more"
        )
    return lines


def as_json(settings: Settings, about: Mapping[str, Any], results: Sequence[Measured]) -> str:
    """Settings, machine, every measured step and the ratios."""
    plain_settings = dataclasses.asdict(settings) | {"out": None if settings.out is None else str(settings.out)}
    base = next(result for result in results if result.name == settings.reference)
    contenders = {}
    for result in results:
        ratio = None if result.fault else dataclasses.asdict(Ratio.of(result, base))
        seconds = result.first_step_seconds
        contenders[result.name] = dataclasses.asdict(result) | {
            "first_step_seconds": None if math.isnan(seconds) else seconds,
            "losses": [loss if math.isfinite(loss) else None for loss in result.losses],
            "ratio_to_reference": ratio,
        }
    ratios = {pair: dataclasses.asdict(ratio) for _, pair, ratio in comparisons(results, settings.reference)}
    values = {"settings": plain_settings, "about": dict(about), "contenders": contenders, "comparisons": ratios}
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, 1 where a contender failed or trained otherwise, 2 for what the user can mend."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m experiments.bench", config=(tyro.conf.FlagCreatePairsOff,))
    console = Console()
    try:
        settings.check()
        if not os.environ.get("JAX_PLATFORMS"):
            jax.config.update("jax_platforms", "cpu")  # host time means the CPU's, also beside an accelerator
        wse.request_cpu_devices(4)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    work = settings.workload()
    about = {"jax": jax.__version__, "python": platform.python_version(), "machine": platform.machine(), "cores": _cores()}
    console.print(
        f"GPT of {work.layers} layers, width {work.width}, {work.heads} heads, {work.vocab} tokens; batch {work.batch} x {work.sequence}; "
        f"{FAMILY.parameters(work.config()):,} parameters, float32, AdamW, clipping\n"
        f"jax {about['jax']}, Python {about['python']}, {about['machine']}, {about['cores']} cores; {settings.rounds} rounds, in turn",
        highlight=False,
    )  # fmt: skip
    with console.status("starting") as status:
        results = measure(
            settings.names(), lambda name: build(name, work), settings.rounds, reference=settings.reference, say=status.update
        )
    console.print(table(results, settings.reference))
    for what, pair, ratio in comparisons(results, settings.reference):
        console.print(f"{pair:<29}{ratio}  {what}", highlight=False, soft_wrap=True)
    console.print("\n".join(["", *notes(results, settings.reference)]), highlight=False, markup=False, soft_wrap=True)
    if settings.out is not None:
        settings.out.write_text(as_json(settings, about, results), encoding="utf-8")
    wafers = [result for result in results if result.name in WAFERS and not result.fault]
    if settings.profile and wafers:
        slowest = max(wafers, key=lambda result: result.median_seconds).name
        with console.status(f"profiling {slowest}"):
            contender = build_here(slowest, work)
            for _ in range(WARMUP_STEPS):
                contender.step()
            lines = as_lines(profile(contender.step))
            contender.close()
        console.print(f"where {slowest} spends its time, all threads together, a step", highlight=False)
        console.print("\n".join(lines), highlight=False, markup=False)
    return 1 if any(result.fault and not result.missing for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
