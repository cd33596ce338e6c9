"""Keys and values on rows of PEs, balanced by shifts or concatenated: what fits is emulated, what a step takes modelled.

After WaferLLM (OSDI 2025), shift-based KV cache management. `--help` for the flags.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Int
from matplotlib.figure import Figure

import wsejax as wse
from models.presets import find
from wsejax.kernels.pe import kvcache
from wsejax.report import Sheet

from .entry import console as wide_console
from .entry import start

VARIANTS = {"shift": kvcache.append, "concat": kvcache.append_concat}
GRID = PartitionSpec("y", "x")


@dataclass(frozen=True)
class Published:
    """Table 5 of WaferLLM (OSDI 2025): the longest outputs, in tokens, on a square grid of `side` PEs."""

    model: str
    side: int
    concat: int
    shift: int


PUBLISHED = (Published("llama-3-8b", 360, 382, 137_548), Published("llama-2-13b", 375, 16, 6_168))


@dataclass(frozen=True)
class Settings:
    """Fill caches token by token, and price decode steps on squares of WSE-2's PEs."""

    model: str = "llama-3-8b"
    """Name of `models.presets`, for the decode steps."""
    sides: tuple[int, ...] = (360, 480, 600, 720)
    """PEs along a side, for the decode steps."""
    prompt: int = 2048
    """Tokens that prefill leaves, balanced."""
    tokens: tuple[int, ...] = (64, 256, 1024, 4096)
    """Tokens generated after the prompt."""
    capacity: bool = True
    """Also fill caches to the last slot, as large as published ones (some ten seconds)."""
    out: Path | None = None
    """Folder for kv_cache.json and kv_cache.png."""


def fill(rows: int, slots: int, variant: str, prompt: int, tokens: int) -> Int[np.ndarray, " rows"]:
    """Tokens that each row holds after `prompt` and `tokens` more, emulated on a column of PEs; what finds no room is left out.

    A token counts where its key is the one that its position says.
    """
    high = -(-prompt // rows)
    wafer = wse.Wafer(wse.WSE2.scaled(rows, 1), tiles=(rows, 1), devices=(1, 1))
    number = lambda n: jnp.full((rows, 1, 1), n, jnp.int32)

    def program(of_prompt):
        cache = kvcache.spread(of_prompt, of_prompt, number(prompt), slots)
        step = lambda n, cache: VARIANTS[variant](cache, (number(n), number(n)), number(n))
        return lax.fori_loop(prompt, prompt + tokens, step, cache)

    positions = np.arange(rows * high, dtype=np.int32).reshape(rows, 1, 1, high)
    cache = jax.tree.map(np.asarray, jax.jit(wse.wafer_map(program, wafer, (GRID,), GRID))(positions))
    return ((cache.position >= 0) & (cache.keys == cache.position)).sum(axis=(1, 2, 3))


def longest_outputs(point: Published) -> dict[str, Any]:
    """Tokens that fit, in both variants, into rows of as many slots as the published concatenating cache has."""
    offered = point.side * point.concat + 1
    held = {variant: int(fill(point.side, point.concat, variant, 0, offered).sum()) for variant in VARIANTS}
    return dataclasses.asdict(point) | {f"emulated_{variant}": tokens for variant, tokens in held.items()}


def decode_step(model: str, side: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Modelled cycles of the cache's part of a decode step, all layers: heads side by side, a head's features over its own columns."""
    dims = find(model)
    cols = side // dims["kv_heads"]
    if not cols:
        raise ValueError(f"sides={side}: fewer columns of PEs than the {dims['kv_heads']} key-value heads of {model}; give larger ones")
    length, width = float(prompt + tokens), -(-dims["head_width"] // cols)
    group, layers = dims["heads"] // dims["kv_heads"], dims["layers"]
    record: dict[str, Any] = {"side": side, "prompt": prompt, "tokens": tokens}
    for variant in VARIANTS:
        longest = kvcache.longest_row(length, float(side), float(prompt), balanced=variant == "shift")
        attend = kvcache.attend_price(
            wse.CS2, float(side), float(cols), length, group, width, itemsize_bytes=2, longest=longest, parted=True
        )
        record |= {f"{variant}_longest_row": int(longest), f"{variant}_attention_cycles": float(attend.cycles) * layers}
    most = max((n % side for n in range(prompt, prompt + tokens)), default=0)  # of the steps that lead there, the one with most to move
    record["shift_cycles"] = float(kvcache.append_price(wse.CS2, float(side), float(cols), float(most), 2.0 * width).cycles) * layers
    return record


def total(record: dict[str, Any], variant: str) -> float:
    """Modelled cycles of attention, and of the shift where there is one."""
    return record[f"{variant}_attention_cycles"] + (record["shift_cycles"] if variant == "shift" else 0.0)


def capacity_table(found: list[dict[str, Any]]) -> Sheet:
    columns = ("model", "PEs", "slots a row", "concat", "shift", "ratio", "published", "published ratio")
    rows = [
        (
            r["model"], f"{r['side']} x {r['side']}", r["concat"], f"{r['emulated_concat']:,}", f"{r['emulated_shift']:,}",
            f"{r['emulated_shift'] / r['emulated_concat']:.0f}", f"{r['shift']:,}", f"{r['shift'] / r['concat']:.0f}",
        )
        for r in found
    ]  # fmt: skip
    return Sheet(columns, rows, title="Longest output in tokens, emulated, from the slots of a published concatenating cache")


def step_table(found: list[dict[str, Any]], model: str) -> Sheet:
    columns = ("side", "prompt", "generated", "longest row", "shifted", "attention", "shifted attention", "shift", "times as fast")
    rows = [
        (
            r["side"], r["prompt"], f"{r['tokens']:,}", f"{r['concat_longest_row']:,}", f"{r['shift_longest_row']:,}",
            f"{r['concat_attention_cycles']:,.0f}", f"{r['shift_attention_cycles']:,.0f}", f"{r['shift_cycles']:,.0f}",
            f"{total(r, 'concat') / total(r, 'shift'):.2f}",
        )
        for r in found
    ]  # fmt: skip
    title = f"Modelled cycles of the cache in one decode step of {model} on WSE-2, all layers: concatenated, and shifted"
    return Sheet(columns, rows, title=title, drop=("prompt",))


def plot(rows: dict[str, Int[np.ndarray, " rows"]], steps: list[dict[str, Any]], settings: Settings, path: Path) -> Figure:
    from wsejax.report.plots import _figure, _save

    figure = _figure(11, 4.5)
    used, cycles = figure.subplots(1, 2)
    styles = {"shift": "-", "concat": "--"}
    for variant, held in rows.items():
        used.step(np.arange(len(held)), held, styles[variant], where="mid", label=variant)
    used.set(xlabel="row of PEs", ylabel="slots in use", yscale="log", title=_filled(settings))
    for n, side in enumerate(settings.sides):
        some = [r for r in steps if r["side"] == side]
        for variant, style in styles.items():
            cycles.plot(
                [r["tokens"] for r in some],
                [total(r, variant) for r in some],
                style,
                color=f"C{n}",
                marker=".",
                label=f"{variant}, {side} rows",
            )
    cycles.set(xlabel="tokens after the prompt", ylabel="modelled cycles of a decode step", xscale="log", yscale="log")
    cycles.set_title(f"Attention and shift of {settings.model}, modelled")
    for axes in (used, cycles):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return _save(figure, path)


def _filled(settings: Settings) -> str:
    return f"{settings.sides[0]} rows after {settings.prompt:,} + {settings.tokens[-1]:,} tokens, emulated"


def check(settings: Settings) -> None:
    """Raises ValueError for a model that is not known, or a number that no cache can have."""
    find(settings.model)
    for name, values in (("sides", settings.sides), ("tokens", settings.tokens), ("prompt", (settings.prompt,))):
        if not values or min(values) < 1:
            raise ValueError(f"--{name} {' '.join(map(str, values))}: give at least one, each at least 1")
    if max(settings.sides) > wse.WSE2.usable_rows:
        raise ValueError(f"--sides {max(settings.sides)}: WSE-2 has {wse.WSE2.usable_rows} rows of PEs for programs; give at most that")


def main(settings: Settings) -> None:
    check(settings)
    console = wide_console()
    with console.status("filling caches"):
        capacity = [longest_outputs(point) for point in PUBLISHED if settings.capacity]
    if capacity:
        console.print(capacity_table(capacity), "")
    steps = [decode_step(settings.model, side, settings.prompt, n) for side in settings.sides for n in settings.tokens]
    console.print(step_table(steps, settings.model))
    console.print("Modelled from the figures of WSE-2 alone, memory aside: of these kernels by themselves no measurement is published.")
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        slots = settings.prompt + settings.tokens[-1]
        with console.status("filling caches"):
            rows = {variant: fill(settings.sides[0], slots, variant, settings.prompt, settings.tokens[-1]) for variant in VARIANTS}
        found = {"capacity": capacity, "modelled_steps": steps, "rows": {variant: held.tolist() for variant, held in rows.items()}}
        (settings.out / "kv_cache.json").write_text(json.dumps(found, indent=1))
        plot(rows, steps, settings, settings.out / "kv_cache.png")
        console.print(f"wrote {settings.out}")


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
