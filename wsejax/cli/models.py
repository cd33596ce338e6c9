"""`wsejax fit`, `compare` and `validate`: language models by their dimensions alone, and the models of time against what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wsejax.cost.compare import compare
from wsejax.cost.estimate import fits
from wsejax.cost.table import load_points
from wsejax.cost.validation import validate
from wsejax.cost.workload import Workload
from wsejax.hardware.cluster import MEMORYX
from wsejax.report import Sheet, comparison_table, error_of, plot_breakdown, plot_validation, validation_table

from .machine import changed
from .output import Output, table, with_unit
from .programs import llm, published_models


@dataclasses.dataclass(frozen=True)
class Fit:
    """Does a model train, or infer, on so many wafers: resident, with streamed weights, or not at all, and with how many tokens a batch?"""

    model: Annotated[str, tyro.conf.Positional]
    """A published model, such as llama-3-8b, or a JSON file of dimensions."""
    task: Literal["train", "infer"] = "train"
    """What it is to do."""
    system: str = "cs3"
    """Machine: cs1, cs2 or cs3."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=NUMBER")] = ()
    """A field of the machine to change, such as io_bytes_per_second=3e11; `wsejax specs` lists them."""
    wafers: int = 1
    """Machines."""
    tokens: int | None = None
    """Of a batch on one wafer, in training; one sequence of the model's context where it is left out."""
    context: int | None = None
    """Tokens of a sequence whose keys and values are kept, in inference; the model's own where it is left out."""
    batch: int = 1
    """Sequences at once, in inference."""
    weight_bytes: float = 2
    """Of a weight as it is multiplied and streamed."""
    master_bytes: float = 4
    """Of a weight's master copy, in training."""
    optimizer_bytes: float = 8
    """Of a weight's moments, in training."""
    memoryx: Literal["1.5TB", "12TB", "1.2PB"] = "12TB"
    """Memory outside the wafers."""
    recompute: bool = True
    """Keep only the inputs of layers for the backward pass."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        machine, model = changed(self.system, self.set), llm(self.model)
        fit = fits(
            model, machine, self.task, wafers=self.wafers, tokens=self.tokens, context=self.context, batch=self.batch,
            weight_bytes=self.weight_bytes, optimizer_bytes=self.optimizer_bytes, master_bytes=self.master_bytes, recompute=self.recompute,
            outside_bytes=MEMORYX[self.memoryx].capacity_bytes,
        )  # fmt: skip
        data = {"dimensions": dataclasses.asdict(model), "parameters": model.parameters, **fit.to_dict()}
        where = f"{self.wafers} x {machine.name}" if self.wafers > 1 else machine.name
        head = f"{model.name}, {with_unit(model.parameters, '')}weights, to {self.task} on {where}: {fit.verdict}"
        size = lambda n: with_unit(n, "B")
        rows = [(name, size(n)) for name, n in fit.on_wafer.items()]
        rows += [("all of it", size(sum(fit.on_wafer.values()))), ("SRAM for data", size(fit.on_wafer_capacity))]
        parts = [head, table(("on the wafer" if self.wafers == 1 else "on the wafers", ""), rows)]
        if fit.outside:
            rows = [(name, size(n)) for name, n in fit.outside.items()]
            rows += [("all of it", size(sum(fit.outside.values()))), ("memory", size(fit.outside_capacity))]
            parts += ["", table(("outside", ""), rows)]
        what = "activations" if self.task == "train" else "keys and values"
        parts += ["", f"{what} of at most {max(0, int(fit.most_tokens)):,} tokens fit beside the rest"]
        if fit.min_tokens is not None:
            parts.append(f"streaming keeps up from {fit.min_tokens:,.0f} tokens a batch and wafer on (modelled)")
        return Output(data, [*parts, *fit.notes])


@dataclasses.dataclass(frozen=True)
class Compare:
    """The same training step on wafers and on clusters: modelled seconds, energy and dollars, and what each waits for."""

    model: Annotated[str, tyro.conf.Positional]
    """A published model, such as llama-3-8b, or a JSON file of dimensions."""
    systems: tuple[str, ...] = ("cs3", "8xh100")
    """Machines with their number, such as cs3, 16xcs3, 64xh100, 256xa100 or tpu-v5p."""
    batch: int = 64
    """Sequences of a step, over all machines."""
    seq: int | None = None
    """Tokens of a sequence; the model's context, at most 2048, where it is left out."""
    micro_batches: int | None = None
    """Of each wafer, each streaming all weights; as many as activations need, at what they cost in published runs, where it is left out."""
    dollars_per_hour: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SYSTEM=NUMBER")] = ()
    """Rate of a whole machine, such as 8xh100=24; the presets' are assumptions."""
    out: Path | None = None
    """Picture to write of where each step goes, such as compare.png."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> Output:
        model = llm(self.model)
        work = Workload.of_llm(model, self.batch, min(model.context, 2048) if self.seq is None else self.seq)
        found = compare(work, self.systems, dollars_per_hour=_rates(self.dollars_per_hour, self.systems), micro_batches=self.micro_batches)
        errors = {row.error_group: error_of(row.error_group) for row in found.rows if row.error_group}
        data: dict[str, Any] = {**found.to_dict(), "model_errors": errors}
        parts: list[Any] = [comparison_table(found), *(f"model of {group}: {error}" for group, error in errors.items())]
        if self.out is not None:
            plot_breakdown(found, self.out)
            data["picture_path"] = str(self.out)
            parts.append(f"picture: {self.out}")
        return Output(data, parts)


def _rates(texts: tuple[str, ...], systems: tuple[str, ...]) -> dict[str, float]:
    rates: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            raise ValueError(f"--dollars-per-hour {text}: give SYSTEM=NUMBER, such as 8xh100=24") from None
        if name not in systems:
            raise ValueError(f"--dollars-per-hour {text}: {name!r} is not compared; --systems has {', '.join(systems)}")
    return rates


@dataclasses.dataclass(frozen=True)
class Models:
    """The models that are known by name, with their dimensions."""

    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> Output:
        found = [llm(name) for name in published_models()]
        data = {"models": [{**dataclasses.asdict(one), "parameters": one.parameters} for one in found]}
        count = lambda one: (with_unit(one.parameters, "").strip(), one.layers, one.width, f"{one.heads}/{one.kv_heads}", one.ffn_width)
        rows = [(one.name, *count(one), one.vocab_size, one.context) for one in found]
        columns = ("model", "weights", "layers", "width", "heads/kv", "ffn", "vocabulary", "context")
        made = Sheet(columns, rows, drop=("ffn", "heads/kv", "vocabulary"))
        return Output(data, [made, "any of these, or a JSON file with these dimensions, wherever a command takes a model"])


@dataclasses.dataclass(frozen=True)
class Validate:
    """Hold the models of time against published measurements, group by group, with what was left out and why."""

    points: Path | None = None
    """A JSON file of other points of the same schema; left out: the table that ships."""
    out: Path | None = None
    """Picture to write, modelled over measured, such as validation.png."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        found = validate(None if self.points is None else load_points(self.points))
        data: dict[str, Any] = found.to_dict()
        parts: list[Any] = [validation_table(found)]
        if self.out is not None:
            plot_validation(found, self.out)
            data["picture_path"] = str(self.out)
            parts.append(f"picture: {self.out}")
        return Output(data, parts)
