"""Host time of training on documents of many lengths, padded, in buckets and packed: `python -m experiments.packing_bench`.

All run the same training step of the same model in plain JAX; what is compared is real tokens a second of this host, loading included. Ways
take their steps in turn, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from wsejax.report import Sheet
from wsejax.training.packing import Documents, How, laid_out_in_rows, waste

from .entry import console as wide_console
from .entry import start
from .lengths import training_step
from .task import ModelSettings, task_of

SPREAD = 2048 / 100  # the longest document over the shortest


@dataclass(frozen=True)
class Settings:
    """Lengths are drawn so that their logarithms are spread evenly, up to the model's context and down to a twentieth of it."""

    documents: int = 4000
    """How many are drawn."""
    batch: int = 8
    """Rows in a batch."""
    steps: int = 24
    """Timed steps of each way, after one of each shape of a batch that is not."""
    seed: int = 0
    """Of lengths, tokens and parameters."""
    model: ModelSettings = field(default_factory=lambda: ModelSettings(context=256))
    out: Path | None = None
    """File for the results as JSON."""


def drawn(settings: Settings, context: int) -> Documents:
    random = np.random.default_rng(settings.seed)
    lengths = np.maximum(2, np.round(context * SPREAD ** -random.random(settings.documents))).astype(np.int64)
    return Documents.of([random.integers(1, 256, length, dtype=np.uint8) for length in lengths])


def measure(settings: Settings) -> dict[str, dict[str, float]]:
    """For each way: real tokens a second, the share of padding in one pass, and the seconds of its timed steps."""
    for name in ("documents", "batch", "steps"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} {getattr(settings, name)}: give at least 1")
    task = task_of(settings.model)
    task.objective.check_rows()
    context = task.config.context
    documents = drawn(settings, context)
    step, abstract = training_step(task)
    run = jax.jit(step, donate_argnums=0)
    params = task.init(settings.seed)
    moments = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    fresh = lambda: jax.tree.map(jnp.copy, type(moments)(params, moments.opt_state, moments.step, moments.rng))
    feeds: dict[str, Any] = {}
    states = {how: fresh() for how in get_args(How)}
    found = {how: {"real_tokens": 0.0, "seconds": 0.0} for how in get_args(How)}
    for how in get_args(How):
        layout = laid_out_in_rows(documents, context=context, how=how, long="split", objective=task.objective)
        feeds[how] = layout.batches(batch_size=settings.batch, seed=settings.seed, objective=task.objective)
        widths = {rows.width for rows in layout.shapes}
        while widths:  # each shape is compiled once, before any time counts
            batch = next(feeds[how])
            states[how], metrics = run(states[how], batch)
            widths -= {batch["tokens"].shape[1]}
        jax.block_until_ready(metrics)
    for _ in range(settings.steps):
        for how, feed in feeds.items():
            began = time.perf_counter()
            batch = next(feed)
            states[how], metrics = run(states[how], batch)
            jax.block_until_ready(metrics)
            found[how]["seconds"] += time.perf_counter() - began
            found[how]["real_tokens"] += float((batch["segment_ids"] > 0).sum())
    return {
        how: {
            "real_tokens_per_second": one["real_tokens"] / one["seconds"], "seconds": one["seconds"],
            "padding": waste(documents.lengths, context, settings.batch, how).share,
        }
        for how, one in found.items()
    }  # fmt: skip


def main(settings: Settings) -> None:
    found = measure(settings)
    least = found["pad"]["real_tokens_per_second"]
    rows = [
        (how, f"{one['padding']:.1%}", f"{one['seconds'] / settings.steps * 1e3:,.1f}", f"{one['real_tokens_per_second']:,.0f}",
         f"{one['real_tokens_per_second'] / least:.2f}x")
        for how, one in found.items()
    ]  # fmt: skip
    console = wide_console()
    console.print(Sheet(("rows", "padding", "ms a step", "real tokens/s", "over padding"), rows, title="measured on this host"))
    if settings.out is not None:
        settings.out.write_text(json.dumps(found, indent=1))
        console.print(f"wrote {settings.out}")


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
