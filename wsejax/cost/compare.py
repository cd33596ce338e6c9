"""The same training step on wafers and on clusters, side by side: seconds, tokens, energy, dollars, and what each waits for.

All times are modelled. A cluster gets its fastest plan whose memory suffices, with kernels at `Cluster.kernel_efficiency`; wafers stream
weights and share the batch. A lowered program that a wafer holds whole is priced kernel by kernel instead. These are two models (`MODELS`):
whole steps are fitted to whole published runs, with what software adds to each layer and step, and kernels are priced without. Energy is
that of whole systems (boxes at their peak; wafers by their idle and peak power), without cooling.

Activations that no wafer holds at once take micro-batches. The published runs that whole steps are fitted to needed up to 86 of them, by
the same count, and were not slower for it: with all weights streamed for each, the best fit misses the largest by 21% to 37%. So what
micro-batches cost is taken to be in the fitted constants, and the bound with all of them charged is given beside it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wsejax.compiler import Lowered
from wsejax.hardware import System
from wsejax.hardware.system import SYSTEMS, system

from .accelerators import ACCELERATORS, Cluster, accelerator, cluster
from .baselines import Plan, best_plan, check_plan, train_step
from .errors import model_error
from .estimate import OUTSIDE_BYTES
from .memory import memory
from .model import Cost, cost
from .training import Streaming, wafer_step
from .workload import Workload

# Nobody publishes what a wafer rents for. A system of 2 to 3 million dollars over three years is 76 to 114 dollars an hour: an assumption.
WAFER_DOLLARS_PER_HOUR = 110.0
_GPUS = ("A100", "H100", "H200", "B200")
MODELS = {
    "whole steps": "from dimensions, fitted to ALCF's whole runs, with what weight streaming adds to each layer and step; `wsejax cost` "
    "prices kernels alone, and usually says less",
    "kernels": "the program product by product, as `wse.cost`, without what software adds to each layer and step",
    "alpha-beta": "kernels at a fitted share of the peak, messages by latency and bandwidth",
}


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
    model: str  # of `MODELS`: by what the time was modelled
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
            "models": {name: MODELS[name] for name in dict.fromkeys(row.model for row in self.rows)},
        }

    def models(self) -> tuple[str, ...]:
        """A line for each model that a row's time is of."""
        return tuple(f"modelled, {name}: {MODELS[name]}" for name in dict.fromkeys(row.model for row in self.rows))

    def __str__(self) -> str:
        rows = [
            f"{row.name}: modelled {row.step_seconds:.4g} s a step, {row.tokens_per_second:,.0f} tokens/s, {row.joules / 1e6:.3g} MJ, "
            f"{row.dollars:.3g} $, {row.plan} ({row.model})"
            for row in self.rows
        ]
        out = [f"left out: {name}: {reason}" for name, reason in self.left_out]
        groups = dict.fromkeys(row.error_group for row in self.rows if row.error_group)
        errors = [f"model of {group}: {model_error(group)}" for group in groups]
        return "\n".join([f"{self.workload.name}: one training step, modelled", *rows, *out, *self.models(), *errors, *self.conditions])


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


def _whole(count: float, one: str, many: str) -> str:
    return f"{count:,.0f} {one if count == 1 else many}"


def least_micro_batches(work: Workload, one: Wafers) -> int:
    """The fewest micro-batches whose activations each wafer holds beside two layers of weights and a gradient, with the inside of layers
    computed again, as `wse.fits`. 1 where the workload says nothing of its activations.

    Raises:
      ValueError: not even one sequence fits, or there are fewer of them than wafers; the message names what is too large, and by how much.
    """
    room, layers = float(one.system.sram_bytes), 3.0 * float(work.layer_bytes)
    if layers > room:
        raise ValueError(
            f"{work.name} does not fit {_label(one)}: weights of two layers and a gradient are {layers / 1e9:.3g} GB, a wafer holds"
            f" {room / 1e9:.3g} GB, {(layers - room) / 1e9:.3g} GB too little"
        )
    sequences = float(work.sequences)
    if not sequences:
        return 1
    if one.count > sequences:
        raise ValueError(f"{work.name} has {_whole(sequences, 'sequence', 'sequences')} for {one.count} wafers: each needs at least one")
    each = float(work.recomputed_bytes) / sequences
    if layers + each > room:
        raise ValueError(
            f"{work.name} does not fit {_label(one)}: activations of one sequence are {each / 1e9:.3g} GB, beside {layers / 1e9:.3g} GB of"
            f" weights and a gradient; a wafer holds {room / 1e9:.3g} GB, {(layers + each - room) / 1e9:.3g} GB too little: shorten it"
        )
    at_once = (room - layers) // each if each else sequences
    return math.ceil(math.ceil(sequences / one.count) / at_once)


def _least_parts(lowered: Lowered, one: Wafers) -> int:
    """The same of a program, by what `wse.memory` finds alive on the fullest PE where weights are streamed; inputs are all there."""
    held = memory(lowered, one.system)
    varying = (sum(held.streamed_peak.values()) - held.streamed_peak["inputs"]) / one.count
    fixed = held.code_bytes + held.layer_bytes + held.streamed_peak["inputs"] / one.count
    room = float(one.system.sram_per_pe_bytes)
    if fixed >= room:
        raise ValueError(
            f"the program does not fit {_label(one)}: its inputs and the weights of a few layers, with code, are {fixed:,.0f} bytes in the"
            f" fullest PE, which has {room:,.0f}, {fixed - room:,.0f} too little"
        )
    return max(1, math.ceil(varying / (room - fixed)))


def _wafer_row(
    work: Workload, one: Wafers, rate: float, streaming: Streaming | None, asked: int | None, lowered: Lowered | None
) -> tuple[Row, str | None]:
    """The row, and a bound on its time if micro-batches cost more than in the published runs."""
    if work.state_bytes > OUTSIDE_BYTES:
        raise ValueError(
            f"{work.name} does not fit {_label(one)}: weights and optimizer state are {work.state_bytes / 1e12:.3g} TB, the memory outside"
            f" the wafers holds {OUTSIDE_BYTES / 1e12:g} TB, {(work.state_bytes - OUTSIDE_BYTES) / 1e12:.3g} TB too little"
        )
    least = least_micro_batches(work, one) if lowered is None else _least_parts(lowered, one)
    if asked is not None and 1 <= asked < least:
        raise ValueError(
            f"micro_batches={asked}: activations of {work.name} do not fit {_label(one)} in less than {least} micro-batches; give as many,"
            " or None"
        )
    step = wafer_step(one.system, work, one.count, 1 if asked is None else asked, streaming)
    note = None
    if asked is None and least > 1:
        bound = float(wafer_step(one.system, work, one.count, least, streaming).seconds)
        note = (
            f"{_label(one)}: activations take {least} micro-batches, as they did in the runs that the model is fitted to; modelled at most"
            f" {bound:.3g} s, if all weights were streamed for each"
        )
    seconds = float(step.seconds)
    parts = {name: float(value) for name, value in step.parts().items()}
    moving = parts["stall"] + parts["boundary"] + parts["tree"] + parts["wait"]
    row = Row(
        name=_label(one),
        plan=f"weights streamed, {_whole(asked or least, 'micro-batch', 'micro-batches')}",
        model="whole steps",
        error_group="training throughput",
        step_seconds=seconds,
        tokens_per_second=float(step.tokens_per_second),
        mfu=float(step.mfu),
        joules=float(step.joules),
        dollars=rate * one.count * seconds / 3600,
        parts=parts,
        communication_share=moving / seconds,
    )
    return row, note


def _cluster_row(work: Workload, one: Cluster, rate: float, plan: Plan | None) -> Row:
    if plan is None:
        plan = best_plan(work, one)
    check_plan(work, one, plan)
    step = train_step(work, one, plan)
    seconds = float(step.seconds)
    return Row(
        name=one.name,
        plan=str(plan),
        model="alpha-beta",
        error_group="GPU training hours" if one.chip.name in _GPUS else None,
        step_seconds=seconds,
        tokens_per_second=float(work.tokens) / seconds,
        mfu=float(work.flops / seconds / one.dense_peak_flops_per_second(int(work.itemsize_bytes))),
        joules=float(one.watts) * seconds,
        dollars=rate * seconds / 3600,
        parts={name: float(value) for name, value in step.parts().items()},
        communication_share=float(step.communication_share),
    )


def _program_row(work: Workload, one: Cost, rate: float, name: str) -> Row:
    """A program that the compiler has laid out: priced kernel by kernel, not by a rate that was fitted."""
    price, seconds = one.price, one.step_seconds
    fabric = one.system.seconds(price.fabric_cycles + price.wait_cycles)
    compute = max(0.0, one.compute_seconds - fabric)
    streamed = {} if one.streamed is None else {k: v for k, v in one.streamed.parts().items() if k not in ("compute", "stall")}
    rest = max(0.0, seconds - one.compute_seconds - sum(streamed.values()))
    parts = {"compute": compute, "fabric": one.compute_seconds - compute, "stall": rest, **streamed}
    return Row(
        name=name,
        plan=f"weights {one.execution}" + (", at least: a loop's length is not known" if one.most_cycles > one.price.cycles else ""),
        model="kernels",
        error_group=one.error_group if work.gradient_bytes else None,
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
    micro_batches: int | None = None,
) -> Comparison:
    """The same step on each machine.

    Args:
      work: of one training step: a lowered program, `Workload.of_llm(...)`, or its numbers.
      systems: presets by name ("cs3", "16xcs3", "64xh100"), a `System`, `Wafers`, a `Cluster`, or what `wse.cost` gave for the program.
      tokens: of one run, where `work` is a lowered program.
      dollars_per_hour: of the whole machine, by the name in its row or by what was asked for; presets have assumptions.
      plans: of clusters, likewise; else the fastest whose memory suffices.
      streaming: constants of weight streaming, fitted ones by default.
      micro_batches: of each wafer, each of which streams all weights. None: as many as activations need (`least_micro_batches`), at what
        they cost in published runs.

    A program that one wafer holds whole, by `wse.memory`, is priced there by `wse.cost`; on several wafers, and where it does not fit, its
    weights are streamed.

    Raises:
      ValueError: nothing to compare, an unknown preset, or a rate that is negative. A machine that cannot hold the step is left out, with
        its reason, unless it is the only one.
    """
    lowered = work if isinstance(work, Lowered) else None
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
                if lowered is not None and one.count == 1 and memory(lowered, one.system).verdict == "resident":
                    rows.append(_program_row(work, cost(lowered, one.system, execution="resident"), each, label))
                else:
                    row, note = _wafer_row(work, one, each, streaming, micro_batches, lowered)
                    rows.append(row)
                    notes += [note] if note else []
            elif isinstance(one, Cost):
                rows.append(_program_row(work, one, default if given is None else given, f"{label} (program)"))
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
