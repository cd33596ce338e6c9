"""When streaming stalls: a sweep over the tokens of a wafer's micro-batch, with published recipes, and scaling against published figures.

Three minima of tokens stand side by side: the closed form b F / 2 BW at the rate that was measured, that of a schedule of the model's
layers (attention computes, too, so fewer tokens do), and that of whole programs, compiled for a cluster and priced kernel by kernel (they
compute layers again in the backward pass, so fewer still do). All times are modelled.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import wsejax as wse
from models.decoder import abstract_train_step, decoder_config
from models.presets import find
from wsejax.cost.estimate import MEASURED_SHARE_OF_PEAK
from wsejax.cost.scaling import published_scaling, scaling, step_least_tokens, streamed_step
from wsejax.cost.training import Streaming, least_tokens
from wsejax.report import Sheet, plot_scaling, plot_stall, published_scaling_table, scaling_table

from .entry import console as wide_console
from .entry import start

# Micro-batches of the vendor's model zoo (release 2.10.0, 2026): sequences x tokens on one system.
RECIPES = {"llama-3.1-8b": (20, 8192), "llama-3.1-70b": (8, 8192), "llama-3.1-405b": (1, 131072)}


@dataclass(frozen=True)
class Settings:
    """Sweep tokens, price programs and scale over systems."""

    models: tuple[str, ...] = tuple(RECIPES)
    """Names of `models.presets`."""
    weight_bytes: tuple[float, ...] = (2.0, 4.0)
    """Of a streamed weight and of a gradient: 16 bits, and the 32 of the vendor's white paper."""
    points: int = 60
    """Of a sweep, from 4,000 to 400,000 tokens."""
    program: str = "llama-3.1-8b"
    """Model whose training step is compiled, streamed, and priced kernel by kernel; empty: none."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 20)
    """Sequences of its micro-batch."""
    out: Path | None = None
    """Folder for streaming.json and two pictures."""


def bare(weight_bytes: float) -> Streaming:
    """The measured rate and the link, without what software and cluster add."""
    return Streaming(
        efficiency=MEASURED_SHARE_OF_PEAK, layer_seconds=0.0, boundary_passes=0.0, wait_per_doubling=0.0, weight_bytes=weight_bytes
    )


def workload(name: str, tokens: float, seq_len: int) -> wse.Workload:
    """A micro-batch of so many tokens, in sequences of that length."""
    llm = wse.LLM.from_dict(find(name))
    return wse.Workload.of_llm(llm, 1, seq_len).replace(flops=tokens * llm.train_flops_per_token(seq_len), tokens=float(tokens))


def sweep(name: str, weight_bytes: float, points: int) -> list[dict[str, Any]]:
    """Rows of tokens, stalls and the modelled minimum."""
    batch, seq_len = RECIPES.get(name, (0, 8192))
    by, calm = bare(weight_bytes), wse.CS3.replace(io_latency_seconds=0.0)
    least = step_least_tokens(calm, workload(name, 1e5, seq_len), 1, by)
    rows = []
    for tokens in sorted({*np.geomspace(4e3, 4e5, points).tolist(), 0.999 * least, 1.001 * least}):
        made, _ = streamed_step(calm, workload(name, tokens, seq_len), 1, 1, by)
        rows.append(
            {
                "model": name, "weight_bytes": weight_bytes, "tokens": tokens, "stall_seconds": made.parts()["stall"],
                "stall_share": made.stall_share, "step_seconds": made.seconds, "least_tokens": least, "recipe": batch * seq_len or None,
            }
        )  # fmt: skip
    return rows


@functools.cache
def streamed_program(name: str, batch: int, seq_len: int) -> wse.Lowered:
    """A training step in bfloat16 whose state streams, from shapes alone."""
    dims = find(name)
    config = decoder_config({**dims, "context": max(seq_len, dims["context"])}, dtype="bfloat16", param_dtype="bfloat16")
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    cluster = wse.Cluster(wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1)))
    tokens = jax.ShapeDtypeStruct((batch, seq_len + 1), jnp.int32)
    return wse.jit(step, cluster, donate_argnums=0, streamed_argnums=0, execution="streamed").lower(state, tokens)


def programs(name: str, batches: tuple[int, ...], seq_len: int = 8192) -> list[dict[str, Any]]:
    """The loop over layers of a compiled step: what it needs, what it has, and whether it waits. Weights and gradients of 16 bits."""
    by, calm = Streaming(layer_seconds=0.0), wse.CS3.replace(io_latency_seconds=0.0)
    rows = []
    for batch in batches:
        found = wse.cost(streamed_program(name, batch, seq_len), calm, streaming=by).streamed
        assert found is not None
        tokens = float(batch * seq_len)
        loop, least = max(found.least_tokens(tokens).items(), key=lambda item: "features" in item[0])
        inside = [n for n, s in enumerate(found.staged) if n and s.source == loop == found.staged[n - 1].source]
        stall = float(found.schedule.stall_seconds[inside].sum())
        rows.append({"model": name, "batch": batch, "tokens": tokens, "loop": loop, "least_tokens": least, "stall_seconds": stall})
    return rows


def study(settings: Settings, console: Console) -> dict[str, Any]:
    measured = MEASURED_SHARE_OF_PEAK * wse.CS3.dense_peak_fp16_flops_per_second
    closed = {b: least_tokens(wse.CS3, measured, b) for b in settings.weight_bytes}
    sweeps = {f"{name}, {8 * b:g} bits": sweep(name, b, settings.points) for name in settings.models for b in settings.weight_bytes}
    rows = []
    for label, found in sweeps.items():
        form, first = closed[found[0]["weight_bytes"]], found[0]
        agree = all((row["stall_seconds"] > 1e-12) == (row["tokens"] < row["least_tokens"]) for row in found)
        recipe = "-" if first["recipe"] is None else f"{first['recipe']:,}"
        obeys = "-" if first["recipe"] is None else "yes" if first["recipe"] >= first["least_tokens"] else "no"
        rows.append((label, f"{form['forward']:,.0f}", f"{form['step']:,.0f}", f"{first['least_tokens']:,.0f}", recipe, obeys, str(agree)))
    columns = ("streamed weights", "b F / 2 BW", "b F / 3 BW", "modelled minimum", "recipe", "obeys", "stalls just below it")
    console.print(Sheet(columns, rows, title="tokens of a wafer's micro-batch on a CS-3 (modelled)"))
    compiled = programs(settings.program, settings.batches) if settings.program else []
    if compiled:
        table = [
            (f"{row['batch']} x 8192", f"{row['tokens']:,.0f}", f"{row['least_tokens']:,.0f}", f"{row['stall_seconds']:.3g}")
            for row in compiled
        ]
        title = f"{settings.program}, compiled and priced kernel by kernel: its loop over layers (modelled)"
        console.print(Sheet(("micro-batch", "tokens", "minimum", "stall (s)"), table, title=title))
    work = wse.Workload.of_llm(wse.LLM.from_dict(find(settings.models[0])), *RECIPES.get(settings.models[0], (20, 8192)))
    scaled = [scaling("cs3", work, weak=weak) for weak in (True, False)]
    for one in scaled:
        console.print(scaling_table(one))
    known = published_scaling()
    console.print(published_scaling_table(known))
    record = {
        "modelled": True, "closed_form": {f"{b:g}": form for b, form in closed.items()}, "sweeps": sweeps, "programs": compiled,
        "scaling": [one.to_dict() for one in scaled],
        "published": [{"id": one.id, "published": one.published, "modelled": one.modelled, "error": one.error} for one in known],
    }  # fmt: skip
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "streaming.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        plot_stall(sweeps, settings.out / "stall.png")
        plot_scaling(scaled, settings.out / "scaling.png")
        console.print(f"figures and pictures: {settings.out}")
    return record


def main(settings: Settings) -> None:
    if settings.points < 2 or not settings.models:
        raise ValueError(f"points={settings.points}, models={settings.models}: a sweep has at least two points of one model")
    study(settings, wide_console())


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
