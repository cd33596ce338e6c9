"""What defects leave of a wafer: size, dilation and congestion of the logical mesh over many wafers. `--help` for the flags."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wsejax.hardware import WSE1, WSE2, WSE3, DefectMap, UnusableWaferError, WaferSpec, most_logical_pes, remap, static_routes
from wsejax.report import Sheet, plot_yield

from .entry import console as wide_console
from .entry import start

SPECS = {"wse1": WSE1, "wse2": WSE2, "wse3": WSE3}


@dataclass(frozen=True)
class Settings:
    """Draw wafers with defects, embed a logical mesh in each, and print what is left."""

    spec: Literal["wse1", "wse2", "wse3"] = "wse3"
    """Generation."""
    rows: int | None = None
    """Physical rows of a smaller piece of it; needs `cols`."""
    cols: int | None = None
    """Physical columns of a smaller piece of it; needs `rows`."""
    per_mm2: float = 0.001
    """Defects per square millimetre (about 0.001 on TSMC 5 nm), where `dead_pes` is not given."""
    clustering: float | None = None
    """Shape of the Gamma distribution of each die's density; smaller is more clustered. None: Poisson."""
    dead_pes: float | None = None
    """Share of dead PEs instead, spread evenly; the popular figure is 0.02."""
    dead_links: float = 0.0
    """Share of dead links, with `dead_pes`."""
    max_dilation: tuple[int, ...] = (3,)
    """Bounds on the hops of a logical link; several give a trade-off curve."""
    policy: Literal["largest", "usable", "spares"] = "largest"
    """How large a mesh is wanted: the largest, at most the grid that a program gets on a real machine, or that very grid."""
    max_congestion: int | None = None
    """Most logical links over a physical one."""
    seeds: int = 5
    """Wafers to draw."""
    out: Path | None = None
    """Folder for yield.json and yield.png."""


def wafers(settings: Settings) -> tuple[WaferSpec, list[DefectMap]]:
    spec = SPECS[settings.spec]
    if (settings.rows is None) != (settings.cols is None):
        raise ValueError(f"rows={settings.rows} and cols={settings.cols}: give both or neither")
    if settings.seeds < 1:
        raise ValueError(f"--seeds {settings.seeds} is too small: draw at least 1 wafer")
    if not settings.max_dilation:
        raise ValueError("--max-dilation: give at least one bound on the hops")
    if settings.rows and settings.cols:
        spec = spec.scaled(settings.rows, settings.cols)
    if settings.dead_pes is None:
        draw = lambda seed: DefectMap.sample(spec, per_mm2=settings.per_mm2, clustering=settings.clustering, seed=seed)
    else:
        shares = {"dead_pe_fraction": settings.dead_pes, "dead_link_fraction": settings.dead_links}
        draw = lambda seed: DefectMap.uniform(spec, **shares, seed=seed)
    return spec, [draw(seed) for seed in range(settings.seeds)]


def study(settings: Settings, console: Console) -> list[dict]:
    """One record for each wafer and bound: what is dead, what is left, and the seconds it took on this host."""
    spec, maps = wafers(settings)
    records = []
    sides = (spec.rows, spec.cols) if settings.policy == "largest" else (spec.usable_rows, spec.usable_cols)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for (seed, defects), bound in progress.track(
            [(item, bound) for bound in settings.max_dilation for item in enumerate(maps)], description="wafers"
        ):
            record = {"seed": seed, "max_dilation_allowed": bound, "dead_pes": defects.dead_pe_count, "dead_links": defects.dead_link_count}
            began = time.perf_counter()
            try:
                mesh = remap(spec, defects, policy=settings.policy, max_dilation=bound, max_congestion=settings.max_congestion)
            except UnusableWaferError as error:
                records.append(record | {"failed": str(error)})
                continue
            seconds = time.perf_counter() - began
            routes = static_routes(defects, mesh)
            records.append(
                record
                | {
                    "rows": mesh.rows, "cols": mesh.cols, "pes": mesh.rows * mesh.cols, "utilisation": mesh.rows * mesh.cols / spec.pes,
                    "healthy": 1 - defects.dead_pe_count / spec.pes,
                    "utilisation_bound": most_logical_pes(defects, *sides, bound) / spec.pes, "max_dilation": mesh.max_dilation,
                    "mean_dilation": mesh.mean_dilation, "congestion": routes.congestion, "colours": routes.colours,
                    "remap_seconds": seconds,
                }
            )  # fmt: skip
    return records


def table(records: list[dict]) -> Sheet:
    """Means over the wafers of each bound, and the worst of them.

    "at most" is a bound on "used" that holds for every method (`most_logical_pes`); "healthy" counts PEs, whatever mesh they make.
    """
    columns = ("hops", "wafers", "dead", "PEs used", "least", "used", "at most", "healthy", "mean hops", "longest", "shared", "s")
    rows = []
    for bound in sorted({r["max_dilation_allowed"] for r in records}):
        some = [r for r in records if r["max_dilation_allowed"] == bound and "pes" in r]
        tried = sum(r["max_dilation_allowed"] == bound for r in records)
        if not some:
            rows.append((f"<= {bound}", f"0 of {tried}", *["-"] * 10))
            continue
        mean = lambda key, some=some: float(np.mean([r[key] for r in some]))
        rows.append((
            f"<= {bound}", f"{len(some)} of {tried}", f"{mean('dead_pes'):.1f}", f"{mean('pes'):,.0f}", f"{min(r['pes'] for r in some):,}",
            f"{mean('utilisation'):.2%}", f"{mean('utilisation_bound'):.2%}", f"{mean('healthy'):.2%}",
            f"{mean('mean_dilation'):.4f}", f"{max(r['max_dilation'] for r in some)}",
            f"{max(r['congestion'] for r in some)}", f"{mean('remap_seconds'):.1f}",
        ))  # fmt: skip
    return Sheet(columns, rows, drop=("s", "shared", "longest", "dead", "least"))


def main(settings: Settings) -> None:
    console = wide_console()
    records = study(settings, console)
    console.print(table(records))
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "yield.json").write_text(json.dumps(records, indent=1))
        if any("pes" in r for r in records):
            plot_yield(records, settings.out / "yield.png")
        console.print(f"wrote {settings.out}")


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
