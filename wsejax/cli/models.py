"""`wsejax fit`: language models by their dimensions alone, against wafers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from wsejax.cost.estimate import fits

from .machine import changed
from .output import Output, table, with_unit
from .programs import llm


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
    recompute: bool = True
    """Keep only the inputs of layers for the backward pass."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        machine, model = changed(self.system, self.set), llm(self.model)
        fit = fits(
            model, machine, self.task, wafers=self.wafers, tokens=self.tokens, context=self.context, batch=self.batch,
            weight_bytes=self.weight_bytes, optimizer_bytes=self.optimizer_bytes, master_bytes=self.master_bytes, recompute=self.recompute,
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
