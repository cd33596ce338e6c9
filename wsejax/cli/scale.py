"""`wsejax scale`: a training step on more and more systems, with weights streamed to all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from wsejax.cost.scaling import published_scaling, scaling
from wsejax.cost.training import Streaming
from wsejax.cost.workload import Workload
from wsejax.report import error_of, plot_scaling, published_scaling_table, scaling_table

from .output import Output
from .programs import llm


@dataclasses.dataclass(frozen=True)
class Scale:
    """How training scales over systems: modelled time and efficiency, growth of the batch, and the tokens that streaming needs."""

    model: Annotated[str, tyro.conf.Positional]
    """A published model, such as llama-3-8b, or a JSON file of dimensions."""
    systems: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of systems."""
    on: str = "cs3"
    """Generation (cs2, cs3), or a cluster: andromeda, cg1, cg3, alcf."""
    weak: bool = False
    """Every system has the whole batch, so the global batch grows with the systems. The default."""
    strong: bool = False
    """The systems share the batch."""
    batch: int = 20
    """Sequences: of each system (weak), or of all (strong)."""
    seq: int | None = None
    """Tokens of a sequence; the model's context, at most 8192, where it is left out."""
    micro_batches: int = 1
    """Of each system, each streaming all weights."""
    weight_bytes: float = 4
    """Of a streamed weight and of a gradient; the vendor's white paper has 4."""
    prefetch: int = 1
    """Layers of weights on their way while one is worked on."""
    out: Path | None = None
    """Picture to write, such as scale.png."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        if self.weak and self.strong:
            raise ValueError("--weak and --strong: give one of the two")
        model = llm(self.model)
        work = Workload.of_llm(model, self.batch, min(model.context, 8192) if self.seq is None else self.seq)
        streaming = Streaming(weight_bytes=self.weight_bytes)
        found = scaling(
            self.on, work, self.systems, weak=not self.strong, micro_batches=self.micro_batches, streaming=streaming, prefetch=self.prefetch
        )
        known, error = published_scaling(), error_of("training scaling")
        data: dict[str, Any] = {
            **found.to_dict(),
            "published": [{**dataclasses.asdict(one), "error": one.error} for one in known],
            "model_errors": {"training scaling": error},
        }
        parts: list[Any] = [scaling_table(found)]
        if stalled := [str(row.systems) for row in found.rows if row.stalls]:
            parts.append(f"too few tokens a system with {', '.join(stalled)} systems: weights take longer than what they are used for")
        if found.memory is not None:
            parts.append(f"memory outside the wafers: the state {found.memory}")
        parts += ["", published_scaling_table(known), f"model of training scaling: {error}"]
        if self.out is not None:
            plot_scaling([found], self.out)
            data["picture_path"] = str(self.out)
            parts.append(f"picture: {self.out}")
        return Output(data, parts)
