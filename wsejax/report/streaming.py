"""Tables and pictures of streaming: clusters, what stalls, and how training scales. Times in them are modelled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..cost.scaling import PublishedScaling, Scaling
from ..hardware import ClusterSpec
from ..hardware.clusters import size_text
from .plots import _figure, _save
from .tables import Sheet

_COLOURS = ("#1f5fa8", "#d9822b", "#2f855a", "#7a2fb0", "#c0182b", "#5b6675")
_LINEAR = "#b9bec6"


def scaling_table(scaling: Scaling) -> Sheet:
    """A row for each number of systems."""
    rows = [
        (
            str(row.systems), f"{row.step_seconds:.3g}", f"{row.tokens_per_second:,.0f}", f"{row.speedup:.2f}", f"{row.efficiency:.1%}",
            f"x {row.batch_growth:g}", f"{row.tokens_per_system:,.0f}", f"{row.least_tokens:,.0f}", f"{row.stall_share:.1%}",
            f"{row.wait_share:.1%}", f"{row.mfu:.1%}",
        )
        for row in scaling.rows
    ]  # fmt: skip
    kind = "weak: the batch of each system stays" if scaling.weak else "strong: the global batch stays"
    return Sheet(
        (
            scaling.name, "modelled s/step", "tokens/s", "speed-up", "of linear", "global batch", "tokens a system", "needed", "stall",
            "slowest", "MFU",
        ),
        rows, title=f"{scaling.workload.name}, modelled; {kind}", drop=("slowest", "MFU", "speed-up", "global batch"),
    )  # fmt: skip


def published_scaling_table(found: Sequence[PublishedScaling]) -> Sheet:
    """Published figures of several systems beside the model's."""
    rows = [
        (
            one.what, f"{one.published:.3g}", f"{one.modelled:.3g}", f"{one.error:+.1%}",
            "-" if one.held_out is None else f"{one.held_out / one.published - 1:+.1%}",
        )
        for one in found
    ]  # fmt: skip
    return Sheet(("published", "value", "modelled", "error", "held out"), rows, fold={"published": 24})


def clusters_table(specs: Sequence[ClusterSpec]) -> Sheet:
    """Clusters with their marketing figures beside what programs get."""
    peak = lambda flops: "not published" if flops is None else f"{flops / 1e15:,.4g} PF"
    rows = [
        (
            one.name, f"{one.systems} x {one.system.name}", f"{one.marketing_cores / 1e6:,.4g} M", f"{one.pes / 1e6:,.4g} M",
            peak(one.marketing_peak_flops_per_second), peak(one.vendor_dense_peak_fp16_flops_per_second),
            peak(one.dense_peak_fp16_flops_per_second), size_text(one.sram_bytes),
            "-" if one.memoryx is None else size_text(one.memoryx.capacity_bytes), f"{one.most_parameters / 1e9:,.4g} G",
        )
        for one in specs
    ]  # fmt: skip
    columns = (
        "cluster", "systems", "cores by data sheets", "PEs for programs", '"AI" peak', "dense at 1.1 GHz", "dense for programs", "SRAM",
        "MemoryX", "parameters at 16 B",
    )  # fmt: skip
    return Sheet(columns, rows, left=(0, 1), drop=("SRAM", "PEs for programs", "dense at 1.1 GHz", '"AI" peak'), fold={"systems": 8})


def plot_scaling(scalings: Sequence[Scaling], path: str | os.PathLike[str]) -> Figure:
    """Modelled speed-up over systems, and the tokens of each system against those that streaming needs.

    Raises:
      ValueError: nothing to draw.
    """
    if not scalings or not all(one.rows for one in scalings):
        raise ValueError("scalings is empty: price at least one number of systems")
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    ticks = sorted({1, *(row.systems for one in scalings for row in one.rows)})
    most = max(row.systems for one in scalings for row in one.rows)
    left.plot([1, most], [1, most], color=_LINEAR, linestyle="--", label="linear")
    for one, colour in zip(scalings, _COLOURS * len(scalings), strict=False):
        label = "weak" if one.weak else "strong"
        label = label if len({s.workload.name for s in scalings}) == 1 else f"{one.workload.name}, {label}"
        counts = [row.systems for row in one.rows]
        left.plot(counts, [row.speedup for row in one.rows], "o-", color=colour, markersize=4, label=label)
        right.plot(counts, [row.tokens_per_system for row in one.rows], "o-", color=colour, markersize=4, label=f"{label}: has")
        right.plot(counts, [row.least_tokens for row in one.rows], ":", color=colour, label=f"{label}: needs")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2 if axes is left else 10)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xlabel(f"systems ({scalings[0].name})")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    left.set_yticks(ticks, [str(n) for n in ticks])
    left.set(ylabel="modelled speed-up", title="Speed-up")
    right.set(ylabel="tokens of a system's micro-batch", title="What streaming needs (modelled)")
    return _save(figure, path)


def plot_stall(sweeps: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike[str]) -> Figure:
    """Share of a modelled step in which the wafer waits for weights, over the tokens of its micro-batch.

    sweeps: by label, rows with `tokens`, `stall_share` and `least_tokens` (one value of a sweep, drawn as a line), and perhaps `recipe`:
    tokens of a published recipe, drawn as a triangle on the axis.

    Raises:
      ValueError: nothing to draw.
    """
    if not any(sweeps.values()):
        raise ValueError("sweeps is empty: there is no stall to draw; sweep at least one model")
    figure = _figure(9, 4.6)
    axes = figure.add_subplot()
    for (label, rows), colour in zip(sweeps.items(), _COLOURS * len(sweeps), strict=False):
        axes.plot([row["tokens"] for row in rows], [100 * row["stall_share"] for row in rows], color=colour, label=label)
        axes.axvline(rows[0]["least_tokens"], color=colour, linestyle=":", linewidth=1)
        if rows[0].get("recipe"):
            axes.plot([rows[0]["recipe"]], [0], "^", color=colour, markersize=9, clip_on=False)
    if any(rows[0].get("recipe") for rows in sweeps.values()):
        axes.plot([], [], "^", color=_LINEAR, markersize=9, label="published recipes, in the colour of their model")
    axes.set_xscale("log")
    axes.set(
        xlabel="tokens of a wafer's micro-batch (dotted: the modelled minimum)",
        ylabel="waiting for weights (% of passes, modelled)",
        title="Streaming stalls below a number of tokens",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _save(figure, path)
