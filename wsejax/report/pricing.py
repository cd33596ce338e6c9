"""Tables and pictures of what a program would cost: every time in them is modelled wafer time, with the error of the model beside it."""

from __future__ import annotations

import os

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from matplotlib.figure import Figure

from ..cost.errors import model_error
from ..cost.memory import Memory
from ..cost.model import Cost
from ..cost.timeline import TRACKS, Timeline
from .plots import _figure, _save

_COLOURS = {
    "kernels": "#4a5568", "compute": "#1f5fa8", "fabric x": "#d9822b", "fabric y": "#e0b03a", "latency": "#7a2fb0", "I/O": "#2f855a",
}  # fmt: skip


def seconds_text(seconds: float) -> str:
    """1.23 s, 4.56 ms, 7.89 us."""
    if not np.isfinite(seconds):
        return "unbounded"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def cost_table(cost: Cost, lines: int = 15, error: str = "") -> rich.console.Group:
    """The modelled cost with its costliest source lines.

    Args:
      cost: of `wse.cost`.
      lines: at most so many rows.
      error: of the model, printed beside the time.
    """
    roof = cost.roofline
    time = seconds_text(cost.step_seconds)
    if cost.most_step_seconds != cost.step_seconds:
        time = f"{time} to {seconds_text(cost.most_step_seconds)} (a loop's length or a branch is not known)"
    rate = f", {cost.tokens_per_second:,.0f} tokens/s" if cost.tokens_per_second is not None else ""
    head = [
        f"modelled step on {cost.system.name}, {cost.execution}: {time}{rate}" + (f"; {error}" if error else ""),
        f"modelled: {cost.price.flops:.4g} flops, {cost.mfu:.1%} of the dense peak, PEs compute {cost.utilisation:.0%} of the "
        f"time, {cost.price.byte_hops:.3g} bytes x hops, {cost.joules:.3g} J, {cost.watts / 1e3:.3g} kW",
        f"modelled roofline: {roof['flops_per_sram_byte']:.3g} flops an SRAM byte, {roof['flops_per_link_byte']:.3g} a link byte; the "
        f"lowest roof is {roof['roof']}",
    ]
    if cost.critical_cycles < cost.price.cycles:
        longest = seconds_text(cost.system.seconds(cost.critical_cycles))
        head.append(f"modelled critical path: {longest}, were all that does not wait for it done beside it")
    if cost.io_seconds:
        head.append(
            f"modelled streaming of weights: {seconds_text(cost.io_seconds)} beside {seconds_text(cost.compute_seconds)} of the wafer"
        )
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("share", "modelled", "kernel", "count", "bound by", "flops", "bytes x hops", "source"):
        table.add_column(name, justify="left" if name in ("kernel", "bound by", "source") else "right", overflow="fold")
    for line, share in cost.costliest(lines):
        p = line.price
        cells = (
            f"{share:.1%}", seconds_text(cost.system.seconds(p.cycles)), line.kernel, str(line.count), line.bound, f"{p.flops:.3g}",
            f"{p.byte_hops:.3g}", line.source,
        )  # fmt: skip
        table.add_row(*(rich.text.Text(cell) for cell in cells))
    return rich.console.Group(*(rich.text.Text(line) for line in head), table)


def memory_table(memory: Memory) -> rich.console.Group:
    """What the fullest PE holds, kind by kind."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("held by the fullest PE")
    table.add_column("bytes", justify="right")
    for kind, size in (*memory.peak.items(), ("code", memory.code_bytes), ("all", memory.peak_bytes)):
        table.add_row(kind, f"{size:,.0f}")
    table.add_row("SRAM", f"{float(memory.system.sram_per_pe_bytes):,.0f}")
    head = rich.text.Text(f"modelled memory on {memory.system.name}: {memory.verdict}; fullest at {memory.at}")
    return rich.console.Group(head, table, *(rich.text.Text(line) for line in memory.advice))


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
    right.axhline(limit, color="#c0182b", linewidth=1.2, label="SRAM")
    right.set(ylabel="bytes")
    right.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return _save(figure, path)


def plot_timeline(timeline: Timeline, path: str | os.PathLike[str]) -> Figure:
    """The tracks of a modelled run over modelled time."""
    figure = _figure(10, 3.6)
    axes = figure.add_subplot()
    scale = float(timeline.system.seconds(1.0)) * 1e3
    for n, track in enumerate(TRACKS):
        spans = [(e.start_cycles * scale, e.cycles * scale) for e in timeline.events if e.track == track]
        if spans:
            axes.broken_barh(spans, (n - 0.4, 0.8), color=_COLOURS[track], linewidth=0)
    axes.set_yticks(range(len(TRACKS)), TRACKS)
    axes.invert_yaxis()
    left = f", {timeline.left_out:,} later kernels not drawn" if timeline.left_out else ""
    error = f"modelled milliseconds (whole training steps: {model_error('whole programs')})"
    axes.set(xlabel=error, title=f"Modelled run on {timeline.system.name}{left}", xlim=(0, timeline.cycles * scale or 1))
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, path)
