"""A training step on a cluster: data, tensor, pipeline and 3-D parallelism and FSDP, by the algebra of messages in `alphabeta`.

Where things lie is the usual way: tensor parallelism inside a scale-up domain, data parallelism across what is left of it and across
domains, pipeline stages furthest apart. Compute runs at `Cluster.kernel_efficiency` of the dense peak, or at what the memory delivers.
Parts of a step are what the critical path sees, so they sum to it; what hides behind compute is told beside them.

Sources: Narayanan et al. (SC21) for tensor parallelism's four all-reduces a layer and the bubble (p-1)/m of GPipe and 1F1B; Rajbhandari et
al. (2020) for FSDP's volume, 3/2 of an all-reduce; Korthikanti et al. (2022) for recomputation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from wsejax.kernels.price import least, most

from .accelerators import Cluster
from .alphabeta import ALL_REDUCES, Link, hierarchical_all_gather
from .workload import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is divided. Degrees multiply to the number of chips.

    Raises:
      ValueError: a degree that is no positive integer, an overlap outside 0 to 1, or an unknown schedule.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batches: int = 1  # of each data-parallel replica
    fsdp: bool = False  # state and gradients divided over the data-parallel replicas
    recompute: bool = False  # keep only what passes between layers, and compute the rest again
    schedule: str = "1f1b"  # or "gpipe": the same time, but all micro-batches' activations are held
    all_reduce: str = "pipelined"  # the algorithm, one of `alphabeta.ALL_REDUCES`
    overlap: float = 1.0  # of the backward pass (FSDP: of the whole) that gradients may travel behind

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "micro_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a positive integer")
        if self.schedule not in ("1f1b", "gpipe"):
            raise ValueError(f"schedule={self.schedule!r}: unknown; known are 1f1b and gpipe")
        if self.all_reduce not in ALL_REDUCES:
            raise ValueError(f"all_reduce={self.all_reduce!r}: unknown; known are {', '.join(ALL_REDUCES)}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap={self.overlap!r}: a share, from 0 to 1")

    @property
    def chips(self) -> int:
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        parts = [f"{name} {n}" for name in ("data", "tensor", "pipeline") if (n := getattr(self, name)) > 1] or ["one chip"]
        parts += [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        return ", ".join(parts + [word for word in ("fsdp", "recompute") if getattr(self, word)])


_PARTS = ("compute_seconds", "tensor_seconds", "pipeline_seconds", "bubble_seconds", "data_seconds", "update_seconds")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*_PARTS, "hidden_seconds", "chip_bytes"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A modelled training step of a cluster, by what the critical path waits for."""

    compute_seconds: Any
    tensor_seconds: Any  # all-reduces of activations
    pipeline_seconds: Any  # activations between stages
    bubble_seconds: Any  # stages that have no micro-batch
    data_seconds: Any  # gradients (FSDP: and weights) that compute does not hide
    update_seconds: Any  # of the optimizer, by the memory
    hidden_seconds: Any  # of the same messages, behind compute: no part of the step
    chip_bytes: Any  # in the fullest chip's memory

    def parts(self) -> dict[str, Any]:
        """Seconds by name; they sum to the step."""
        return {
            "compute": self.compute_seconds,
            "tensor parallel": self.tensor_seconds,
            "pipeline": self.pipeline_seconds,
            "bubble": self.bubble_seconds,
            "data parallel": self.data_seconds,
            "update": self.update_seconds,
        }

    @property
    def seconds(self) -> Any:
        return sum(self.parts().values())

    @property
    def communication_share(self) -> Any:
        """Of the step, that the critical path waits for messages."""
        return (self.tensor_seconds + self.pipeline_seconds + self.data_seconds) / self.seconds


def bubble_share(pipeline: Any, micro_batches: Any) -> Any:
    """Of a pipelined step, in which a stage has nothing to do: (p-1) / (m+p-1), for GPipe and for 1F1B."""
    return (pipeline - 1) / (micro_batches + pipeline - 1)


def links(machine: Cluster) -> tuple[Link, Link]:
    """A chip's ways to others of its domain, and out of it."""
    chip = machine.chip
    inside = Link(chip.scale_up_latency_seconds, chip.scale_up_bytes_per_second * machine.network_efficiency)
    return inside, Link(chip.scale_out_latency_seconds, chip.scale_out_bytes_per_second * machine.network_efficiency)


def _split(machine: Cluster, ranks: int, stride: int) -> tuple[Any, Any]:
    """How many of `ranks` chips, each `stride` from the next, share a domain, and over how many domains they spread."""
    per_domain = most(1.0, least(float(ranks), machine.chip.chips_per_domain / stride))
    return per_domain, ranks / per_domain


def _all_reduce(machine: Cluster, ranks: int, stride: int, size_bytes: Any, algorithm: str) -> Any:
    if ranks == 1:
        return 0.0
    return machine.chip.launch_seconds + ALL_REDUCES[algorithm](*_split(machine, ranks, stride), size_bytes, *links(machine))


def _all_gather(machine: Cluster, ranks: int, stride: int, size_bytes: Any) -> Any:
    if ranks == 1:
        return 0.0
    return machine.chip.launch_seconds + hierarchical_all_gather(*_split(machine, ranks, stride), size_bytes, *links(machine))


def chip_bytes(work: Workload, plan: Plan) -> dict[str, Any]:
    """Bytes in the fullest chip's memory, by what they are."""
    model = plan.tensor * plan.pipeline
    shards = model * (plan.data if plan.fsdp else 1)
    held = work.boundary_bytes * work.layers if plan.recompute else work.activation_bytes
    in_flight = min(plan.micro_batches, plan.pipeline) if plan.schedule == "1f1b" else plan.micro_batches
    parts = {"state": work.state_bytes / shards, "activations": held / plan.data / model / plan.micro_batches * in_flight}
    if plan.recompute:  # the layer that is computed again
        parts["recomputed layer"] = work.activation_bytes / work.layers / plan.data / plan.tensor / plan.micro_batches
    if plan.fsdp:  # a layer's weights and gradients, whole, and the next layer's on their way
        parts["gathered weights"] = 2 * (work.parameter_bytes + work.gradient_bytes) / work.layers / plan.tensor
    return parts


def check_plan(work: Workload, machine: Cluster, plan: Plan) -> None:
    """Whether a plan can run.

    Raises:
      ValueError: more or fewer chips than the cluster has, more stages than layers, more replicas than tokens, or too little memory (with
        the largest component and how much is missing).
    """
    if plan.chips != machine.chips:
        raise ValueError(
            f"plan={plan}: data x tensor x pipeline are {plan.chips} chips, {machine.name} has {machine.chips:g}; make them equal"
        )
    if plan.pipeline > work.layers:
        raise ValueError(f"pipeline={plan.pipeline}: {work.name} has {work.layers:g} layers; use as many stages at most")
    if plan.data * plan.micro_batches > work.tokens:
        raise ValueError(f"data={plan.data}, micro_batches={plan.micro_batches}: {work.name} has {work.tokens:g} tokens; divide by less")
    parts = chip_bytes(work, plan)
    short = sum(parts.values()) - machine.chip.memory_bytes
    if short > 0:
        largest = max(parts, key=lambda name: parts[name])
        raise ValueError(
            f"{work.name} does not fit {machine.name} ({plan}): a chip has {machine.chip.memory_bytes / 1e9:g} GB and is short of"
            f" {short / 1e9:.3g} GB; most of it goes to {largest}, {parts[largest] / 1e9:.3g} GB"
        )


def train_step(work: Workload, machine: Cluster, plan: Plan) -> Step:
    """The modelled time of a step. Pure: whether the plan can run, `check_plan` says. `work` and `machine` may hold traced values."""
    d, t, p, m = plan.data, plan.tensor, plan.pipeline, plan.micro_batches
    chip, share = machine.chip, 1.0 / plan.chips
    again = 4.0 / 3.0 if plan.recompute else 1.0
    peak = chip.flops_per_second(2) if not isinstance(work.itemsize_bytes, int | float) else chip.flops_per_second(int(work.itemsize_bytes))
    at_peak = work.flops * again * share / (peak * machine.kernel_efficiency)
    weights = 3.0 * m * work.parameter_bytes / (t * p) / chip.memory_bytes_per_second
    from_memory = weights + work.memory_traffic_bytes * again * share / chip.memory_bytes_per_second
    compute = most(at_peak, from_memory)

    passes = 6.0 if plan.recompute else 4.0
    of_layer = _all_reduce(machine, t, 1, work.boundary_bytes / d / m, plan.all_reduce)
    tensor = passes * work.layers / p * m * of_layer
    message = links(machine)[1].seconds(work.boundary_bytes / d / m / t)
    pipeline = 2.0 * (m + p - 1) * message if p > 1 else 0.0
    bubble = (compute + tensor) * (p - 1) / m

    gradients = work.gradient_bytes / (t * p)
    if plan.fsdp:
        gather = _all_gather(machine, d, t, work.parameter_bytes / (t * p))
        messages = 2.0 * m * gather + _all_gather(machine, d, t, gradients)
        room = plan.overlap * compute
    else:
        messages = _all_reduce(machine, d, t, gradients, plan.all_reduce)
        room = plan.overlap * compute * 2.0 / 3.0
    hidden = least(messages, room)
    update = 2.0 * work.state_bytes / (t * p) / (d if plan.fsdp else 1) / chip.memory_bytes_per_second
    return Step(
        compute_seconds=compute,
        tensor_seconds=tensor,
        pipeline_seconds=pipeline,
        bubble_seconds=bubble,
        data_seconds=messages - hidden,
        update_seconds=update,
        hidden_seconds=hidden,
        chip_bytes=sum(chip_bytes(work, plan).values()),
    )


def plans(work: Workload, machine: Cluster) -> Iterator[Plan]:
    """Plans for all chips of a cluster: factors of their number, micro-batches in powers of two."""
    chips, layers = round(machine.chips), int(work.layers)
    tensors = [t for t in range(1, min(chips, int(machine.chip.chips_per_domain), 64) + 1) if chips % t == 0]
    for t in tensors:
        for p in (p for p in range(1, min(chips // t, layers) + 1) if chips // t % p == 0):
            d = chips // t // p
            micro = [2**i for i in range(9) if d * 2**i <= work.tokens]
            for m in micro if p > 1 else micro[:1] + micro[2::2]:
                for recompute in (False, True):
                    for fsdp in (False, True) if d > 1 and p == 1 else (False,):
                        yield Plan(data=d, tensor=t, pipeline=p, micro_batches=m, recompute=recompute, fsdp=fsdp)


def best_plan(work: Workload, machine: Cluster) -> Plan:
    """The fastest plan whose memory suffices.

    Raises:
      ValueError: none does; the message names the plan that comes closest, its largest component and what is missing.
    """
    if not isinstance(machine.chips, int | float) or machine.chips != round(machine.chips):
        raise ValueError(f"chips={machine.chips!r}: a plan needs a whole number")
    tried = [(sum(chip_bytes(work, plan).values()), plan) for plan in plans(work, machine)]
    fitting = [plan for size, plan in tried if size <= machine.chip.memory_bytes]
    if not fitting:
        check_plan(work, machine, min(tried, key=lambda pair: pair[0])[1])
    return min(fitting, key=lambda plan: train_step(work, machine, plan).seconds)
