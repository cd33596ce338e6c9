"""The same training step on wafers and on clusters, side by side: seconds, tokens, energy, dollars, and what each waits for.

All times are modelled. A cluster gets its fastest plan whose memory suffices, with kernels at `Cluster.kernel_efficiency`; wafers stream
weights and share the batch. Energy is that of whole systems (boxes at their peak; wafers by their idle and peak power), without cooling.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wsejax.compiler import Lowered
from wsejax.hardware import System
from wsejax.hardware.system import SYSTEMS, system

from .accelerators import ACCELERATORS, Cluster, accelerator, cluster
from .baselines import Plan, best_plan, check_plan, train_step
from .estimate import OUTSIDE_BYTES
from .model import Cost
from .training import Streaming, wafer_step
from .workload import Workload

# Nobody publishes what a wafer rents for. A system of 2 to 3 million dollars over three years is 76 to 114 dollars an hour: an assumption.
WAFER_DOLLARS_PER_HOUR = 110.0
_GPUS = ("A100", "H100", "H200", "B200")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wafers:
    """So many equal systems that train together."""

    system: System
    count: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count={self.count!r}: wafers are a positive whole number")


Machine = str | System | Cluster | Wafers | Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one machine makes of the step. Times are modelled."""

    name: str
    plan: str
    error_group: str | None  # of published points that the model was held against; None: there are none, or each kernel has its own
    step_seconds: float
    tokens_per_second: float
    mfu: float  # model flops over the dense peak at the workload's precision
    joules: float  # of a step
    dollars: float  # of a step, at the rate given
    parts: Mapping[str, float]  # seconds; they sum to the step
    communication_share: float  # of the step: what the critical path waits for messages or streams

    def to_dict(self) -> dict[str, Any]:
        return {"modelled": True, **dataclasses.asdict(self), "parts": dict(self.parts)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows in the order that was asked for; `left_out` are the machines that cannot, each with its reason."""

    workload: Workload
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    conditions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "modelled": True,
            "workload": {k: v if isinstance(v, str) else float(v) for k, v in dataclasses.asdict(self.workload).items()},
            "rows": [row.to_dict() for row in self.rows],
            "left_out": [{"name": name, "reason": reason} for name, reason in self.left_out],
            "conditions": list(self.conditions),
        }


def machine(name: str) -> Wafers | Cluster:
    """ "cs3", "16 x CS-3", "64xh100" or "tpu-v5p". A chip without a number is a box of them.

    Raises:
      ValueError: an unknown preset, with the known ones, or no number of them.
    """
    found = re.fullmatch(r"\s*(?:(\d+)\s*[xX×*]\s*)?(\S.*?)\s*", name)
    kind = found[2] if found else name
    plain = re.sub(r"[\s_-]", "", kind.lower())
    if plain.replace("wse", "cs") in SYSTEMS:
        return Wafers(system=system(plain), count=int(found[1] or 1) if found else 1)
    if plain in ACCELERATORS:
        chip = accelerator(plain)
        return cluster(chip, int(found[1] or chip.chips_per_box) if found else chip.chips_per_box)
    raise ValueError(f"system={name!r}: unknown; known are {', '.join([*SYSTEMS, *ACCELERATORS])}, with a number as in 16xcs3 or 64xh100")


def _joined(one: Machine) -> Wafers | Cluster | Cost:
    if isinstance(one, str):
        return machine(one)
    return Wafers(system=one) if isinstance(one, System) else one


def _label(one: Wafers | Cluster | Cost) -> str:
    if isinstance(one, Wafers):
        return f"{one.count} x {one.system.name}" if one.count > 1 else one.system.name
    return one.name if isinstance(one, Cluster) else one.system.name


def _wafer_row(work: Workload, one: Wafers, rate: float, streaming: Streaming | None, micro_batches: int) -> Row:
    if work.state_bytes > OUTSIDE_BYTES:
        raise ValueError(
            f"{work.name} does not fit {_label(one)}: weights and optimizer state are {work.state_bytes / 1e12:.3g} TB, the memory outside"
            f" the wafers holds {OUTSIDE_BYTES / 1e12:g} TB, {(work.state_bytes - OUTSIDE_BYTES) / 1e12:.3g} TB too little"
        )
    step = wafer_step(one.system, work, one.count, micro_batches, streaming)
    seconds = float(step.seconds)
    parts = {name: float(value) for name, value in step.parts().items()}
    moving = parts["stall"] + parts["boundary"] + parts["tree"] + parts["wait"]
    return Row(
        name=_label(one),
        plan=f"weights streamed, {micro_batches} micro-batch{'es' if micro_batches > 1 else ''}",
        error_group="training throughput",
        step_seconds=seconds,
        tokens_per_second=float(step.tokens_per_second),
        mfu=float(step.mfu),
        joules=float(step.joules),
        dollars=rate * one.count * seconds / 3600,
        parts=parts,
        communication_share=moving / seconds,
    )


def _cluster_row(work: Workload, one: Cluster, rate: float, plan: Plan | None) -> Row:
    if plan is None:
        plan = best_plan(work, one)
    check_plan(work, one, plan)
    step = train_step(work, one, plan)
    seconds = float(step.seconds)
    return Row(
        name=one.name,
        plan=str(plan),
        error_group="GPU training hours" if one.chip.name in _GPUS else None,
        step_seconds=seconds,
        tokens_per_second=float(work.tokens) / seconds,
        mfu=float(work.flops / seconds / one.dense_peak_flops_per_second(int(work.itemsize_bytes))),
        joules=float(one.watts) * seconds,
        dollars=rate * seconds / 3600,
        parts={name: float(value) for name, value in step.parts().items()},
        communication_share=float(step.communication_share),
    )


def _program_row(work: Workload, one: Cost, rate: float) -> Row:
    """A program that the compiler has laid out: priced kernel by kernel, not by a rate that was fitted."""
    price, seconds = one.price, one.step_seconds
    fabric = one.system.seconds(price.fabric_cycles + price.wait_cycles)
    compute = max(0.0, one.compute_seconds - fabric)
    parts = {"compute": compute, "fabric": one.compute_seconds - compute, "stall": seconds - one.compute_seconds}
    return Row(
        name=f"{one.system.name} (program)",
        plan=f"weights {one.execution}",
        error_group=None,
        step_seconds=seconds,
        tokens_per_second=float(work.tokens) / seconds,
        mfu=one.mfu,
        joules=one.joules,
        dollars=rate * seconds / 3600,
        parts=parts,
        communication_share=1.0 - compute / seconds,
    )


def compare(
    work: Workload | Lowered,
    systems: Sequence[Machine] = ("cs3", "8xh100"),
    *,
    tokens: int | None = None,
    dollars_per_hour: Mapping[str, float] | None = None,
    plans: Mapping[str, Plan] | None = None,
    streaming: Streaming | None = None,
    micro_batches: int = 1,
) -> Comparison:
    """The same step on each machine.

    Args:
      work: of one training step: a lowered program, `Workload.of_llm(...)`, or its numbers.
      systems: presets by name ("cs3", "16xcs3", "64xh100"), a `System`, `Wafers`, a `Cluster`, or what `wse.cost` gave for the program.
      tokens: of one run, where `work` is a lowered program.
      dollars_per_hour: of the whole machine, by the name in its row or by what was asked for; presets have assumptions.
      plans: of clusters, likewise; else the fastest whose memory suffices.
      streaming: constants of weight streaming, fitted ones by default.
      micro_batches: of each wafer; each streams all weights.

    Raises:
      ValueError: nothing to compare, an unknown preset, or a rate that is negative. A machine that cannot hold the step is left out, with
        its reason, unless it is the only one.
    """
    if isinstance(work, Lowered):
        if tokens is None:
            raise ValueError("tokens=None: a program does not say how many tokens (or samples) a run is; give them")
        work = Workload.of_program(work, float(tokens))
    if not systems:
        raise ValueError(f"systems={systems!r}: name at least one machine")
    rates, asked_plans = dict(dollars_per_hour or {}), dict(plans or {})
    if bad := [name for name, rate in rates.items() if not 0 <= rate < float("inf")]:
        raise ValueError(f"dollars_per_hour[{bad[0]!r}]={rates[bad[0]]!r}: must be finite and not negative")
    rows, left_out, notes = [], [], []
    for asked in systems:
        one = _joined(asked)
        label = _label(one)
        default = float(one.dollars_per_hour) if isinstance(one, Cluster) else WAFER_DOLLARS_PER_HOUR
        given = rates.get(label, rates.get(asked) if isinstance(asked, str) else None)
        try:
            if isinstance(one, Wafers):
                each = WAFER_DOLLARS_PER_HOUR if given is None else given / one.count
                rows.append(_wafer_row(work, one, each, streaming, micro_batches))
            elif isinstance(one, Cost):
                rows.append(_program_row(work, one, default if given is None else given))
            else:
                plan = asked_plans.get(label, asked_plans.get(asked) if isinstance(asked, str) else None)
                rows.append(_cluster_row(work, one, default if given is None else given, plan))
                if float(one.chips) > 1:
                    notes.append(str(communication_tax(work, one)))
        except ValueError as error:
            if len(systems) == 1:
                raise
            left_out.append((label, str(error)))
    return Comparison(workload=work, rows=tuple(rows), left_out=tuple(left_out), conditions=tuple(notes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tax:
    """What a plain data-parallel step pays for its gradients, and when: the bytes do not depend on the tokens, the compute does."""

    name: str
    tokens: float  # of a step
    share: float  # of the step, if nothing overlaps
    overlapped_share: float  # if gradients travel behind the backward pass
    tokens_for_half: float  # tokens of a step at which half of it is communication, without overlap

    def __str__(self) -> str:
        return (
            f"{self.name}: modelled, data parallel with {self.tokens:,.0f} tokens a step, communication is {self.share:.1%} of it"
            f" ({self.overlapped_share:.1%} behind the backward pass); half at {self.tokens_for_half:,.0f} tokens"
        )


def communication_tax(work: Workload, one: Cluster) -> Tax:
    """The "communication tax" with its conditions: it is not a property of GPUs but of tokens a step and of bytes a second."""
    if float(one.chips) < 2:
        raise ValueError(f"chips={one.chips!r}: one chip has nobody to reduce with; give at least two")
    plan = Plan(data=round(float(one.chips)), overlap=0.0)
    bare, hiding = train_step(work, one, plan), train_step(work, one, dataclasses.replace(plan, overlap=1.0))
    compute, messages = float(bare.compute_seconds), float(bare.data_seconds)
    return Tax(
        name=one.name,
        tokens=float(work.tokens),
        share=messages / (compute + messages),
        overlapped_share=float(hiding.data_seconds / (hiding.compute_seconds + hiding.data_seconds)),
        tokens_for_half=float(work.tokens) * messages / compute,
    )
