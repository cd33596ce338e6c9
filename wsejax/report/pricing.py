"""Tables and pictures of what a program would cost: every time in them is modelled wafer time, with the error of the model beside it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.text
from matplotlib.figure import Figure

from ..cost.memory import Memory
from ..cost.model import Cost
from ..cost.stages import Streamed
from ..cost.timeline import Timeline
from .plots import _figure, _save
from .tables import Sheet, source_text

_COLOURS = {
    "kernels": "#4a5568", "compute": "#1f5fa8", "fabric x": "#d9822b", "fabric y": "#e0b03a", "latency": "#7a2fb0", "I/O": "#2f855a",
    "software": "#5b6675", "I/O in": "#2f855a", "I/O out": "#7bb899", "stall": "#c0182b", "boundary": "#e58a94", "MemoryX": "#8a6d3b",
}  # fmt: skip


def seconds_text(seconds: float) -> str:
    """1.23 s, 4.56 ms, 7.89 us."""
    if not np.isfinite(seconds):
        return "unbounded"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def verdict_text(execution: str, memory: Memory) -> str:
    """What stands beside the modelled time of a program that cannot run so; empty if it can."""
    if memory.verdict == "does not fit":
        over = min(memory.peak_bytes, memory.streamed_bytes) - float(memory.system.sram_per_pe_bytes)
        return f"DOES NOT FIT as it is, by {over:,.0f} bytes a PE: the time is of kernels alone, see below what to change"
    if memory.verdict == "streamed" and execution == "resident":
        return "DOES NOT FIT resident: it does if weights are streamed"
    return ""


def streamed_text(streamed: Streamed) -> str:
    """Where a run goes, and what the link does meanwhile."""
    parts = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in streamed.parts().items() if seconds > 0)
    made = streamed.schedule
    return (
        f"modelled stages ({len(streamed.staged):,}): {parts}; the link is busy {seconds_text(made.load_seconds)} in and "
        f"{seconds_text(made.store_seconds)} out"
    )


def cost_table(cost: Cost, lines: int = 15, error: str | Sequence[str] = (), memory: Memory | None = None) -> rich.console.Group:
    """The modelled cost with its costliest source lines.

    Args:
      cost: of `wse.cost`.
      lines: at most so many rows.
      error: of the model, a line or several to stand below the time.
      memory: of `wse.memory`; if the program does not fit, that stands beside the time.
    """
    roof = cost.roofline
    time = seconds_text(cost.step_seconds)
    if cost.most_step_seconds != cost.step_seconds:
        time = f"{time} to {seconds_text(cost.most_step_seconds)} (a loop's length or a branch is not known)"
    rate = f", {cost.tokens_per_second:,.0f} tokens/s" if cost.tokens_per_second is not None else ""
    many = f"{cost.wafers} x " if cost.wafers > 1 else ""
    against = verdict_text(cost.execution, memory) if memory is not None else ""
    head = [
        f"modelled step on {many}{cost.system.name}, {cost.execution}: {time}{rate}" + (f"; {against}" if against else ""),
        *((error,) if isinstance(error, str) and error else error),
        f"modelled: {cost.price.flops:.4g} flops, {cost.mfu:.1%} of the dense peak, PEs compute {cost.utilisation:.0%} of the "
        f"time, {cost.price.byte_hops:.3g} bytes x hops, {cost.joules:.3g} J, {cost.watts / 1e3:.3g} kW",
        f"modelled roofline: {roof['flops_per_sram_byte']:.3g} flops an SRAM byte, {roof['flops_per_link_byte']:.3g} a link byte; the "
        f"lowest roof is {roof['roof']}",
    ]
    if cost.critical_cycles < cost.price.cycles:
        longest = seconds_text(cost.system.seconds(cost.critical_cycles))
        head.append(f"modelled critical path: {longest}, were all that does not wait for it done beside it")
    if cost.streamed is not None:
        head.append(streamed_text(cost.streamed))
    elif cost.io_seconds:
        head.append(
            f"modelled streaming of weights: {seconds_text(cost.io_seconds)} beside {seconds_text(cost.compute_seconds)} of the wafer"
        )
    rows = [
        (
            f"{share:.1%}", seconds_text(cost.system.seconds(line.price.cycles)), line.kernel, str(line.count), line.bound,
            f"{line.price.flops:.3g}", f"{line.price.byte_hops:.3g}", source_text(line.source),
        )
        for line, share in cost.costliest(lines)
    ]  # fmt: skip
    table = Sheet(
        ("share", "modelled", "kernel", "count", "bound by", "flops", "bytes x hops", "source"),
        rows, left=(2, 4, 7), drop=("bytes x hops", "flops", "count"), fold={"source": 24, "kernel": 12},
    )  # fmt: skip
    return rich.console.Group(*(rich.text.Text(line) for line in head), table)


def memory_table(memory: Memory) -> rich.console.Group:
    """What the fullest PE holds, kind by kind; of a program that does not fit resident also what is left of it if weights are streamed."""
    fits = memory.verdict == "resident"
    size = lambda n: "-" if n is None else f"{n:,.0f}"
    rows = [(kind, size(n), size(memory.streamed_peak.get(kind))) for kind, n in memory.peak.items()]
    rows += [
        ("weights and gradient of a few layers", "-", size(memory.layer_bytes)),
        ("code", size(memory.code_bytes), size(memory.code_bytes)),
        ("all", size(memory.peak_bytes), size(memory.streamed_bytes)),
        ("SRAM", *[size(float(memory.system.sram_per_pe_bytes))] * 2),
    ]
    columns = ("held by the fullest PE (bytes)", "resident", "weights streamed")
    if fits:
        rows, columns = [row[:2] for row in rows if row[1] != "-"], columns[:2]
    head = rich.text.Text(f"modelled memory on {memory.system.name}: {memory.verdict}; fullest at {memory.at}")
    return rich.console.Group(head, Sheet(columns, rows), *(rich.text.Text(line) for line in memory.advice))


def plot_memory(memory: Memory, path: str | os.PathLike[str]) -> Figure:
    """Heat map of the bytes that each PE holds at the program's high-water mark, with the kinds as bars."""
    held = memory.map()
    figure = _figure(9, 6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    limit = float(memory.system.sram_per_pe_bytes)
    heat = left.imshow(held, cmap="viridis", vmin=0, vmax=max(limit, memory.peak_bytes), interpolation="nearest", aspect="auto")
    figure.colorbar(heat, ax=left, label="bytes held by a PE (modelled)", shrink=0.8)
    left.set(xlabel="logical column", ylabel="logical row", title=f"{memory.system.name}: {memory.verdict}")
    bottom = 0.0
    for kind, size in (("code", memory.code_bytes), *memory.peak.items()):
        right.bar(["fullest PE"], [size], bottom=bottom, label=kind)
        bottom += size
    right.axhline(limit, color="#111111", linestyle="--", linewidth=1.5, label="SRAM")
    right.set(ylabel="bytes", ylim=(0, 1.05 * max(limit, memory.peak_bytes)))
    figure.legend(*right.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=5, frameon=False)
    return _save(figure, path)


def plot_timeline(timeline: Timeline, path: str | os.PathLike[str], error: str = "") -> Figure:
    """The tracks of a modelled run over modelled time. `error` of the model stands below, if one is given."""
    tracks = timeline.tracks
    figure = _figure(10, 1.2 + 0.4 * len(tracks))
    axes = figure.add_subplot()
    scale = float(timeline.system.seconds(1.0)) * 1e3
    for n, track in enumerate(tracks):
        spans = [(e.start_cycles * scale, e.cycles * scale) for e in timeline.events if e.track == track]
        if spans:
            axes.broken_barh(spans, (n - 0.4, 0.8), color=_COLOURS[track], linewidth=0)
    axes.set_yticks(range(len(tracks)), tracks)
    axes.invert_yaxis()
    left = f", {timeline.left_out:,} later kernels not drawn" if timeline.left_out else ""
    below = "modelled milliseconds" + "".join(f"\n{line}" for line in textwrap.wrap(error, 110))
    axes.set(xlabel=below, title=f"Modelled run on {timeline.system.name}{left}", xlim=(0, timeline.cycles * scale or 1))
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, path)
