"""Host time of programs for PEs on a full wafer, as ratios to named peers of the same run. `--help` for the flags.

Nothing here is a modelled wafer time. Rounds are interleaved, and medians taken, since a shared machine has fast and slow minutes.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import wsejax as wse
from wsejax import fabric
from wsejax.kernels.pe import collectives, krylov, stencil

from .entry import console as wide_console
from .entry import start

GRID = PartitionSpec("y", "x")


@dataclass(frozen=True)
class Settings:
    """Time shifts, a stencil, an all-reduce and a BiCGSTAB iteration on a wafer's worth of PEs."""

    rows: int = 1200
    """Logical rows of PEs."""
    cols: int = 750
    """Logical columns of PEs."""
    floats: int = 64
    """float32 numbers a PE."""
    per_mm2: float = 0.001
    """Defects per square millimetre of the wafer on which the physical execution runs."""
    rounds: int = 5
    """Times that everything is timed."""
    solver: bool = True
    """Also time a full-wafer all-reduce and a BiCGSTAB iteration (once; a minute or so)."""
    out: Path | None = None
    """File for the figures, as JSON."""


def jnp_stencil(v):
    """Five points, by an author who knows no wafer."""
    p = jnp.pad(v, ((1, 1), (1, 1), (0, 0)))
    return 0.6 * v + 0.1 * (p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2])


STEPS = 64
WEIGHTS = {offset: 0.1 if any(offset) else 0.6 for offset in stencil.star(1)}


def pe_stencil(v):
    """The same on PEs of one column of cells each."""
    return stencil.stencil(v[:, :, None, None], WEIGHTS)[:, :, 0, 0]


class Loop:
    """Seconds of one step of a jitted loop; what is done once a call, such as laying an array over the physical grid, is timed by a loop of
    no steps and taken off."""

    def __init__(self, repeat: Callable[[int], Callable], x: np.ndarray) -> None:
        self.none, self.many = (jax.jit(repeat(n), donate_argnums=0) for n in (0, STEPS))
        self.state = self.many(self.none(jnp.asarray(x)))

    def _timed(self, run: Callable) -> float:
        began = time.perf_counter()
        self.state = jax.block_until_ready(run(self.state))
        return time.perf_counter() - began

    def seconds(self) -> float:
        return (self._timed(self.many) - self._timed(self.none)) / STEPS


def contenders(settings: Settings) -> dict[str, Callable[[], float]]:
    """Name -> one measurement, in seconds of a step."""
    spec, grid = wse.WSE3, (settings.rows, settings.cols)
    spec = spec.scaled(min(spec.rows, settings.rows + 60), min(spec.cols, settings.cols + 60))
    defects = wse.DefectMap.sample(spec, per_mm2=settings.per_mm2, seed=0)
    physical = wse.Wafer(spec, defects, tiles=grid, devices=(1, 1), policy="largest", max_dilation=3, execution="physical")
    logical = physical.replace(execution="logical")
    x = np.random.default_rng(0).random((*grid, settings.floats), np.float32)
    spare = np.empty_like(x)

    def copy() -> float:
        began = time.perf_counter()
        np.copyto(spare, x)
        return time.perf_counter() - began

    def program(wafer: wse.Wafer, step: Callable, unroll: int, n: int) -> Callable:
        return wse.wafer_map(lambda v: lax.fori_loop(0, n, lambda _, v: step(v), v, unroll=unroll), wafer, (GRID,), GRID)

    def plain(step: Callable, n: int) -> Callable:
        return lambda v: lax.fori_loop(0, n, lambda _, v: step(v), v)

    out: dict[str, Callable[[], float]] = {"numpy.copyto": copy}
    for way in ("east", "south"):
        # a barrier, else XLA does several shifts of the unrolled loop at once
        step = lambda v, way=way: lax.optimization_barrier(fabric.shift(v, way))
        out[f"shift {way}"] = Loop(partial(program, logical, step, 4), x).seconds
        out[f"shift {way}, physical"] = Loop(partial(program, physical, step, 4), x).seconds
    out["stencil in jnp"] = Loop(partial(plain, jnp_stencil), x).seconds
    out["stencil on PEs"] = Loop(partial(program, logical, pe_stencil, 1), x).seconds
    return out


RATIOS = (
    ("shift east", "numpy.copyto", "at most 1.67: a shift moves 60% of what copyto does in a second"),
    ("shift south", "numpy.copyto", "at most 1.67"),
    ("shift east, physical", "shift east", "at most 12"),
    ("shift south, physical", "shift south", "at most 12"),
    ("stencil on PEs", "stencil in jnp", "at most 1"),
)


def whole_wafer(settings: Settings) -> dict[str, float]:
    """Seconds, after compiling, of an all-reduce of a number a PE and of a BiCGSTAB iteration; what that leaves of the residual."""
    grid = (settings.rows, settings.cols)
    wafer = wse.Wafer(wse.WSE3.replace(usable_rows=grid[0], usable_cols=grid[1]), tiles=grid, devices=(1, 1))
    cells = (*grid, 1, 1, settings.floats)
    rng = np.random.default_rng(0)

    def timed(run: Callable, *args) -> tuple[float, list[np.ndarray]]:
        compiled = jax.jit(run).lower(*args).compile()
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(*args))
        return time.perf_counter() - began, jax.tree.leaves(out)

    ones = rng.integers(0, 9, grid).astype(np.int32)
    reduce_seconds, (total,) = timed(wse.wafer_map(collectives.all_reduce_2d, wafer, (GRID,), GRID), ones)
    assert int(total[0, 0]) == int(total[-1, -1]) == int(ones.sum())
    a = jnp.asarray(krylov.laplacian((*grid, settings.floats))).reshape(*grid, 1, 1, 7, settings.floats)
    b = jnp.asarray(rng.random(cells, np.float32))
    solve = lambda a, b: krylov.bicgstab(a, b, 1)
    seconds, (_, rr) = timed(wse.wafer_map(solve, wafer, (GRID, GRID), (GRID, GRID)), a, b)
    return {
        "all_reduce_seconds": reduce_seconds,
        "bicgstab_seconds": seconds,
        "residual": float((rr[0, 0, 0, 0, 0] / (b * b).sum()) ** 0.5),
    }


def main(settings: Settings) -> None:
    console = wide_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with console.status("compiling"):
        those = contenders(settings)
    times: dict[str, list[float]] = {name: [] for name in those}
    with Progress(*columns, console=console, transient=True) as progress:
        for _ in progress.track(range(settings.rounds), description="rounds"):
            for name, seconds in those.items():
                times[name].append(seconds())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("step", "median ms", "GB/s (read and written)"):
        table.add_column(name, justify="left" if name == "step" else "right")
    moved = 2 * 4 * settings.rows * settings.cols * settings.floats
    for name, values in times.items():
        median = statistics.median(values)
        table.add_row(name, f"{median * 1e3:.2f}", f"{moved / median / 1e9:.1f}")
    console.print(f"{settings.rows} x {settings.cols} PEs, {settings.floats} float32 each, host time", table)
    figures: dict[str, Any] = {"milliseconds": {name: statistics.median(v) * 1e3 for name, v in times.items()}, "ratios": {}}
    for one, other, aim in RATIOS:
        ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
        figures["ratios"][f"{one} / {other}"] = statistics.median(ratios)
        low, high = np.quantile(ratios, [0.25, 0.75])
        console.print(f"{one} / {other}: {statistics.median(ratios):.2f}  ({low:.2f} to {high:.2f})  {aim}", highlight=False)
    if settings.solver:
        those.clear()
        with console.status("all-reduce and BiCGSTAB over the whole wafer"):
            figures |= whole_wafer(settings)
        cells = settings.rows * settings.cols * settings.floats
        console.print(f"all-reduce of a number a PE: {figures['all_reduce_seconds']:.1f} s", highlight=False)
        console.print(
            f"an iteration of BiCGSTAB on {cells:,} cells: {figures['bicgstab_seconds']:.1f} s, residual x {figures['residual']:.3f}",
            highlight=False,
        )
    figures["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"peak memory of the process {figures['peak_memory_gib']:.1f} GiB", highlight=False)
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    wse.request_cpu_devices(1)
    sys.exit(start(main, Settings, __doc__))
