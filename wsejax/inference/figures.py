"""What a generation took on the host, measured, and what the same programs would take on a wafer, modelled."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from wsejax.compiler import Lowered
from wsejax.cost import Cost, Memory, cost, memory
from wsejax.hardware import CS3, System

from .generator import Generation, Program, Programs


@dataclasses.dataclass(frozen=True)
class Modelled:
    """Of one program: its price, what the fullest PE holds, and bytes over links, counted once for each link (a device a tile)."""

    cost: Cost
    memory: Memory
    link_bytes: int
    store_link_bytes: int  # of them, what keeps a cache balanced

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "modelled": True, "system": self.cost.system.name, "seconds": float(self.cost.step_seconds), "joules": float(self.cost.joules),
            "execution": self.cost.execution, "fits": self.memory.verdict == self.cost.execution, "memory": self.memory.verdict,
            "link_bytes": self.link_bytes, "store_link_bytes": self.store_link_bytes,
        }  # fmt: skip


def modelled(program: Program, system: System, tokens: int) -> Modelled:
    """The price of a program on a wafer; `tokens` are those of one run. Nothing is compiled.

    Raises:
      ValueError: it runs in plain JAX.
    """
    if not isinstance(program.lowered, Lowered) or program.kept is None:
        raise ValueError("program runs in plain JAX: only a program for a wafer has a price there")
    held = memory(program.lowered, system)
    execution = "resident" if held.verdict == "resident" else "streamed"
    calls = program.lowered.program.calls
    return Modelled(
        cost(program.kept, system, tokens=tokens, execution=execution), held, program.lowered.program.byte_hops,
        sum(c.byte_hops * c.trips for c in calls if c.kind == "kernel" and c.kernel.startswith("balanced_")),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one generation. Seconds of the host are measured, after compilation; those of the wafer are modelled, and None off the wafer.

    Attributes:
      later_tokens: those after the first of each sequence.
      steps: turns after the first.
      step_seconds: of the host, the median of them; None without any.
      host_tokens_per_second: later tokens over all their turns, which also compute for sequences that have ended.
    """

    prompt_tokens: int
    new_tokens: int
    later_tokens: int
    steps: int
    slots: int
    cache_bytes: int
    compile_seconds: float
    first_seconds: float
    step_seconds: float | None
    host_tokens_per_second: float | None
    first: Modelled | None
    step: Modelled | None

    @property
    def modelled_tokens_per_second(self) -> float | None:
        """Of the wafer, for the same turns."""
        if self.step is None or not self.steps:
            return None
        return self.later_tokens / (self.steps * float(self.step.cost.step_seconds))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("first", "step")]
        return {
            **{name: getattr(self, name) for name in names},
            "modelled_tokens_per_second": self.modelled_tokens_per_second,
            "modelled_first": None if self.first is None else self.first.to_dict(),
            "modelled_step": None if self.step is None else self.step.to_dict(),
        }


def figures(run: Generation, system: System = CS3) -> Figures:
    """Of a generation that has run."""
    programs: Programs = run.programs
    made, steps = sum(map(len, run.tokens)), len(run.step_seconds)
    later = made - sum(1 for tokens in run.tokens if tokens)
    whole = sum(run.step_seconds)
    on_wafer = programs.step.kept is not None
    return Figures(
        sum(map(len, run.prompts)), made, later, steps, programs.slots, programs.cache_bytes,
        programs.first.compile_seconds + programs.step.compile_seconds, run.first_seconds,
        statistics.median(run.step_seconds) if steps else None, later / whole if whole else None,
        modelled(programs.first, system, programs.batch * programs.seq) if on_wafer else None,
        modelled(programs.step, system, programs.batch) if on_wafer else None,
    )  # fmt: skip
