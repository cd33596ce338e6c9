"""What of a batch is padding where documents have these lengths, and what packing gains: `python -m experiments.lengths --help`.

Documents are padded, put into buckets, or packed. The model's training step is priced for each shape of a batch, so times are modelled.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
import numpy as np
import optax
import tyro
from jaxtyping import Int64
from matplotlib.figure import Figure

import wsejax as wse
from wsejax.report import Sheet, errors_text, kernel_errors, seconds_text
from wsejax.report.errors import TWO_MODELS
from wsejax.training.data import find_files, library_files
from wsejax.training.examples import read_examples
from wsejax.training.objectives import cross_entropy, places
from wsejax.training.packing import Documents, How, Waste, laid_out_in_rows, pieces_of, waste
from wsejax.training.state import init_train_state, make_train_step

from .entry import console as wide_console
from .entry import start
from .task import ModelSettings, Task, task_of

TILES = (4, 4)  # they say how arrays lie; the machine is priced whole
COLOURS = {"pad": "#c0182b", "bucket": "#d9822b", "pack": "#1f5fa8"}


@dataclass(frozen=True)
class Settings:
    """Lengths of documents in bytes, and what is padding in the rows that they are read in."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|GLOB ...")] = ()
    """Files, each a document, or JSON lines (.jsonl) of {"prompt", "response"}; left out: the documentation and sources of Python's own
    library."""
    batch: int = 16
    """Rows in a batch."""
    model: ModelSettings = field(default_factory=ModelSettings)
    out: Path | None = Path("runs/lengths")
    """Folder for lengths.json and lengths.png."""


def lengths_of(patterns: Sequence[str]) -> Int64[np.ndarray, " documents"]:
    """Bytes of each document, with the one that ends it. Raises ValueError or OSError for bad data."""
    if not patterns:
        return np.array([size + 1 for _, size, _ in library_files() if size], np.int64)
    found: list[int] = []
    for path in find_files(patterns):
        if path.suffix == ".jsonl":
            found += [len("".join((one.prompt, one.responses[0])).encode()) + 1 for one in read_examples(path)[1]]
        else:
            found.append(path.stat().st_size + 1)
    return np.array(found, np.int64)


def training_step(task: Task) -> tuple[Any, Any]:
    """(step, shapes of its state): a pure training step of AdamW on rows of documents."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        logits, balance = task.family.training_logits(task.config, params, batch["tokens"], key=key, **places(batch))
        mean = cross_entropy(logits, batch["targets"], batch["weights"])
        return mean if balance is None else mean + balance

    step = make_train_step(loss, tx, stochastic=False)
    return step, jax.eval_shape(lambda params: init_train_state(params, tx, seed=0), task.family.abstract(task.config))


def priced(task: Task, batch_size: int, widths: Sequence[int]) -> dict[int, Any]:
    """The modelled cost of a training step on rows of each length."""
    step, state = training_step(task)
    compiled = wse.jit(step, wse.Wafer(wse.WSE3, tiles=TILES, devices=(1, 1)))
    (rows,) = laid_out_in_rows(Documents.of([[1, 1]]), context=2, how="pad", long="refuse").shapes
    like = rows.batch(np.zeros(1, np.int64))
    shape = lambda width: {name: jax.ShapeDtypeStruct((batch_size, width), array.dtype) for name, array in like.items()}
    return {width: wse.cost(compiled.lower(state, shape(width)), system=wse.CS3, tokens=batch_size * width) for width in widths}


def study(settings: Settings) -> dict[str, Any]:
    """What each way wastes and takes. Raises ValueError or OSError for what cannot be."""
    if settings.batch < 1:
        raise ValueError(f"--batch {settings.batch}: give at least 1 row")
    task = task_of(settings.model)
    task.objective.check_rows()
    lengths, context = lengths_of(settings.data), task.config.context
    wastes: dict[str, Waste] = {how: waste(lengths, context, settings.batch, how) for how in get_args(How)}
    costs = priced(task, settings.batch, sorted({width for one in wastes.values() for _, width in one.batches}))
    ways = {}
    for how, one in wastes.items():
        seconds = sum(count * float(costs[width].step_seconds) for count, width in one.batches)
        ways[how] = {
            "batches": [list(pair) for pair in one.batches], "places": one.places, "padding": one.share, "modelled_seconds": seconds,
            "modelled_real_tokens_per_second": one.tokens / seconds,
        }  # fmt: skip
    widest = costs[context]
    return {
        "model": settings.model.name, "context": context, "batch": settings.batch, "documents": len(lengths),
        "tokens": wastes["pad"].tokens,
        "shortest": int(lengths.min()), "median": float(np.median(lengths)), "longest": int(lengths.max()),
        "split": pieces_of(lengths, context, "split").longer, "ways": ways,
        "errors": [*errors_text(kernel_errors(widest), True, widest.error_group), TWO_MODELS], "lengths": lengths.tolist(),
    }  # fmt: skip


def table(found: dict[str, Any]) -> Sheet:
    """A line for each way; gains are over padding."""
    ways = found["ways"]
    rate = "modelled_real_tokens_per_second"
    rows = [
        (
            how, ", ".join(f"{count:,} x {width}" for count, width in one["batches"]), f"{one['places']:,}", f"{one['padding']:.1%}",
            seconds_text(one["modelled_seconds"]), f"{one[rate]:,.0f}", f"{one[rate] / ways['pad'][rate]:.2f}x",
        )
        for how, one in ways.items()
    ]  # fmt: skip
    columns = ("rows", "batches x length", "tokens read", "padding", "modelled pass", "modelled real tokens/s", "modelled gain")
    return Sheet(columns, rows, left=(0, 1), drop=("tokens read",), fold={"batches x length": 20})


def plot(found: dict[str, Any], path: Path) -> Figure:
    """How long documents are, and what of the rows is padding."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    lengths = np.array(found["lengths"])
    edges = np.geomspace(max(1, lengths.min()), lengths.max() + 1, 40)
    left.hist(lengths, bins=edges, color="#4a5568")
    left.axvline(found["context"], color="#111111", linestyle="--", linewidth=1.5, label=f"context, {found['context']:,}")
    left.set(xscale="log", xlabel="tokens of a document", ylabel="documents", title=f"{found['documents']:,} documents")
    left.legend(frameon=False)
    for how, one in found["ways"].items():
        bar = right.bar([how], [100 * one["padding"]], color=COLOURS[how])
        right.bar_label(bar, [f"{one['padding']:.1%}"])
    right.set(ylabel="padding (% of the tokens read)", ylim=(0, 100), title=f"rows of {found['context']:,}")
    figure.savefig(path, dpi=120)
    return figure


def main(settings: Settings) -> None:
    console = wide_console()
    with console.status("pricing a step for each shape of a batch"):
        found = study(settings)
    split = f", of which {found['split']:,} are split" if found["split"] else ""
    sizes = f"{found['shortest']:,} to {found['longest']:,} tokens, half of them up to {found['median']:,.0f}"
    lines = [
        f"{found['documents']:,} documents of {sizes}{split}; {found['tokens']:,} tokens in all",
        f"modelled: training steps of {found['model']} on {wse.CS3.name}, {found['batch']} rows a batch, resident",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    console.print(table(found))
    console.print("\n".join(found["errors"]), markup=False, highlight=False, soft_wrap=True)
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "lengths.json").write_text(json.dumps({"settings": dataclasses.asdict(settings), **found}, default=str, indent=1))
        plot(found, settings.out / "lengths.png")
        console.print(f"wrote {settings.out}")


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
