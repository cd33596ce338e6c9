"""A million machines that do not exist, each priced for the same training step: the front of throughput against power and area.

Designs differ in clock, SRAM, lanes, links, hops and I/O; a PE that holds more takes more area, so fewer fit. All times are modelled.
"""

from __future__ import annotations

import bisect
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from rich.console import Console

import wsejax as wse
from models.decoder import abstract_train_step, decoder_config
from models.presets import find
from wsejax.cost.design import Step, on_area, price_step, step_of
from wsejax.report import Sheet

from .entry import console as wide_console
from .entry import start

# Factors on CS-3's own figures, between which designs are drawn evenly in the logarithm. Area is that of the wafer used.
RANGES: dict[str, tuple[float, float]] = {
    "clock_hz": (0.5, 2.0), "sram_per_pe_bytes": (0.75, 8.0), "fp16_fma_per_cycle": (0.5, 8.0), "link_bits": (0.5, 8.0),
    "hop_cycles": (0.5, 1.0), "io_bytes_per_second": (0.5, 32.0), "area_mm2": (0.25, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Draw designs, price a training step on each, and keep those that no other beats in throughput, power and area at once."""

    models: tuple[str, ...] = ("gpt3-175b", "llama-3.1-70b")
    """Names of `models.presets`."""
    batch: int = 64
    """Sequences of a step."""
    seq_len: int = 2048
    designs: int = 1_000_000
    chunk: int = 8192
    """Designs priced at a time."""
    seed: int = 0
    out: Path | None = None
    """Folder for design_space.json and a picture of each model."""


def lowered_step(name: str, batch: int, seq_len: int) -> wse.Lowered:
    """A training step in bfloat16, from shapes alone."""
    dims = find(name)
    config = decoder_config({**dims, "context": max(seq_len, dims["context"])}, dtype="bfloat16", param_dtype="bfloat16")
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    wafer = wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1))
    tokens = jax.ShapeDtypeStruct((batch, seq_len + 1), jnp.int32)
    return wse.jit(step, wafer, donate_argnums=0).lower(state, tokens)


def design(factors: Float[Array, "knobs"]) -> wse.System:
    """CS-3 with its knobs turned, and as many PEs as its area then holds."""
    turned = {name: getattr(wse.CS3, name) * factors[n] for n, name in enumerate(RANGES)}
    area_mm2 = turned.pop("area_mm2")
    return on_area(wse.CS3.replace(**turned), wse.CS3, area_mm2)


def draw(count: int, seed: int) -> Float[np.ndarray, "designs knobs"]:
    low, high = np.log(np.array(list(RANGES.values()))).T
    return np.exp(np.random.default_rng(seed).uniform(low, high, (count, len(RANGES)))).astype(np.float32)


def evaluate(step: Step, chunk: int):
    """A compiled function of designs -> (seconds, watts, area), all modelled."""

    def one(factors):
        system = design(factors)
        priced = price_step(step, system)
        return priced.seconds, priced.watts, system.area_mm2

    return jax.jit(lambda factors: jax.lax.map(one, factors, batch_size=chunk))


def front(seconds: np.ndarray, watts: np.ndarray, area_mm2: np.ndarray) -> np.ndarray:
    """Indices of the designs that no other matches in all three and beats in one, the fastest first."""
    kept, powers, areas = [], [], []  # a staircase: more power, less area
    for i in np.lexsort((area_mm2, watts, seconds)):
        if not np.isfinite(seconds[i]):
            break
        at = bisect.bisect_right(powers, watts[i])
        if at and areas[at - 1] <= area_mm2[i]:
            continue
        kept.append(i)
        end = at
        while end < len(areas) and areas[end] >= area_mm2[i]:
            end += 1
        powers[at:end], areas[at:end] = [watts[i]], [area_mm2[i]]
    return np.array(kept, int)


def plot(name: str, found: dict[str, Any], path: Path) -> Figure:
    from wsejax.report.plots import _figure, _save, _scale

    figure = _figure(8, 5)
    axes = figure.add_subplot()
    some = found["sample"]
    axes.scatter(some["watts"], some["tokens_per_second"], s=1, color="#c9d3df", label="designs (a sample)", rasterized=True)
    best = found["front"]
    dots = axes.scatter(
        best["watts"],
        best["tokens_per_second"],
        s=8,
        c=best["area_mm2"],
        cmap="viridis",
        label="the front",
        zorder=2,
        norm=_scale(min(best["area_mm2"]), max(best["area_mm2"])),
    )
    axes.scatter([found["cs3"]["watts"]], [found["cs3"]["tokens_per_second"]], s=60, marker="*", color="#c0182b", label="CS-3", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="modelled watts", ylabel="modelled tokens/s", title=f"One training step of {name}")
    figure.colorbar(dots, ax=axes, label="area of the wafer (mm2)")
    axes.legend(loc="lower right")
    return _save(figure, path)


def study(name: str, settings: Settings, console: Console) -> dict[str, Any]:
    began = time.perf_counter()
    lowered = lowered_step(name, settings.batch, settings.seq_len)
    step = step_of(lowered, wse.memory(lowered))
    shaped = time.perf_counter() - began
    factors = draw(settings.designs, settings.seed)
    run = evaluate(step, min(settings.chunk, settings.designs)).lower(factors).compile()
    began = time.perf_counter()
    seconds, watts, area_mm2 = (np.asarray(x) for x in jax.block_until_ready(run(factors)))
    elapsed = time.perf_counter() - began
    best = front(seconds, watts, area_mm2)
    if not len(best):
        raise ValueError(f"--designs {settings.designs}: none of them can hold a step of {name}; draw more, or give a smaller --batch")
    tokens = settings.batch * settings.seq_len
    own = price_step(step, wse.CS3)
    by_link = jax.grad(lambda bits: price_step(step, wse.CS3.replace(link_bits=bits)).seconds)(wse.CS3.link_bits)
    console.print(
        f"{name}: shapes to data in {shaped:.1f} s; {settings.designs:,} designs in {elapsed:.2f} s of this host after compiling; "
        f"{len(best):,} on the front; CS-3 modelled at {tokens / float(own.seconds):,.0f} tokens/s, {float(own.micro_batches):.0f} "
        f"micro-batches; d seconds / d link bits = {float(by_link):.3g}; whole training steps: {wse.model_error('whole programs')}",
        highlight=False,
    )
    sample = np.random.default_rng(0).choice(settings.designs, min(5000, settings.designs), replace=False)
    pick = lambda which: {
        "tokens_per_second": (tokens / seconds[which]).tolist(),
        "watts": watts[which].tolist(),
        "area_mm2": area_mm2[which].tolist(),
    }
    knobs = {f"{knob}_factor": factors[best, n].tolist() for n, knob in enumerate(RANGES)}
    cs3 = {"tokens_per_second": tokens / float(own.seconds), "watts": float(own.watts)}
    return {"modelled": True, "host_seconds": elapsed, "front": pick(best) | knobs, "sample": pick(sample), "cs3": cs3}


def table(found: dict[str, Any]) -> Sheet:
    """Of the front: the fastest, the most tokens a joule, and the most tokens a second and mm2."""
    best = {k: np.array(v) for k, v in found["front"].items()}
    turned = [knob for knob in RANGES if knob != "area_mm2"]
    names = [f"{knob.split('_')[0]} x" for knob in turned]
    measures = {
        "fastest": best["tokens_per_second"],
        "most per joule": best["tokens_per_second"] / best["watts"],
        "most per mm2": best["tokens_per_second"] / best["area_mm2"],
    }
    rows = []
    for name, measure in measures.items():
        i = int(np.argmax(measure))
        rate, watts = best["tokens_per_second"][i], best["watts"][i]
        knobs = [f"{best[f'{knob}_factor'][i]:.2f}" for knob in turned]
        rows.append((name, f"{rate:,.0f}", f"{watts / 1e3:.1f}", f"{best['area_mm2'][i]:,.0f}", f"{rate / watts:.2f}", *knobs))
    return Sheet(("modelled", "tokens/s", "kW", "mm2", "tokens/J", *names), rows, drop=("hop x", "io x", "link x"))


def check(settings: Settings) -> None:
    """Raises ValueError for a model that is not known, or a number that no study can have."""
    for name, value in (("batch", settings.batch), ("seq-len", settings.seq_len), ("designs", settings.designs), ("chunk", settings.chunk)):
        if value < 1:
            raise ValueError(f"--{name} {value} is too small; give at least 1")
    if not settings.models:
        raise ValueError("--models: name at least one")
    for name in settings.models:
        find(name)


def main(settings: Settings) -> None:
    check(settings)
    console = wide_console()
    found = {name: study(name, settings, console) for name in settings.models}
    for name, result in found.items():
        console.print(name, table(result))
        if settings.out is not None:
            settings.out.mkdir(parents=True, exist_ok=True)
            plot(name, result, settings.out / f"{name}.png")
    if settings.out is not None:
        (settings.out / "design_space.json").write_text(json.dumps(found))
        console.print(f"wrote {settings.out}")


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
