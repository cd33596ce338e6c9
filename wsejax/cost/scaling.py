"""Training on more and more systems: how fast, how efficient, and how many tokens each still has against those that streaming needs.

A step is laid out layer by layer (`streaming.schedule`), each layer with its share of the workload's weights and flops. Weights are the
same for all systems and broadcast to them, so each system's link carries them all, however many systems there are: what stalls depends on
the tokens of one system alone. Weak scaling gives every system the whole workload, so the global batch grows with the systems; strong
scaling divides it, until each system has too few tokens. Constants are those of `Streaming`. All times are modelled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from wsejax.cost.training import Streaming
from wsejax.cost.workload import Workload
from wsejax.hardware import SYSTEMS, Capacity, ClusterSpec, MemoryX, SwarmX, System, as_system, capacity, cluster_spec
from wsejax.hardware.clusters import MOST_SYSTEMS
from wsejax.streaming import Layer, Schedule, layer_stages, least_tokens, schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """So many systems. Times are modelled; `efficiency` is of a linear speed-up from one system."""

    systems: int
    tokens: float  # of the global batch
    batch_growth: float  # of the global batch, from one system
    tokens_per_system: float  # of a micro-batch
    least_tokens: float  # of a micro-batch, below which streaming stalls
    step_seconds: float
    tokens_per_second: float
    speedup: float
    efficiency: float
    stall_share: float
    wait_share: float  # for the slowest system
    mfu: float

    @property
    def stalls(self) -> bool:
        return self.tokens_per_system < self.least_tokens

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "stalls": self.stalls}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Rows in the order asked for, and whether the state fits into the memory outside."""

    workload: Workload
    name: str
    weak: bool
    micro_batches: int
    rows: tuple[ScalingRow, ...]
    memory: Capacity | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; seconds and rates are modelled."""
        return {
            "modelled": True,
            "workload": self.workload.name,
            "systems": self.name,
            "weak": self.weak,
            "micro_batches": self.micro_batches,
            "rows": [row.to_dict() for row in self.rows],
            "memory": None if self.memory is None else {"fits": self.memory.fits, "verdict": str(self.memory)},
        }

    def __str__(self) -> str:
        rows = [
            f"{row.systems} x {self.name}: modelled {row.step_seconds:.4g} s a step, {row.tokens_per_second:,.0f} tokens/s, "
            f"{row.efficiency:.1%} of linear, batch x {row.batch_growth:g}, {row.tokens_per_system:,.0f} tokens a system"
            + (f", stalls below {row.least_tokens:,.0f}" if row.stalls else "")
            for row in self.rows
        ]
        return "\n".join([f"{self.workload.name}, {'weak' if self.weak else 'strong'} scaling", *rows])


def step_layers(system: System, work: Workload, systems: int, micro_batches: int, by: Streaming) -> list[Layer]:
    """The layers of one system's micro-batch: equal ones, with a third of the flops forward, and the boundary's time in their updates."""
    count = max(1, round(float(work.layers)))
    wide = float(work.itemsize_bytes) > 2
    peak = float(system.dense_peak_fp32_flops_per_second if wide else system.dense_peak_fp16_flops_per_second)
    forward = float(work.flops) / systems / micro_batches / count / (float(by.efficiency) * peak) / 3.0
    size = float(work.parameters) * float(by.weight_bytes) / count
    update = 2.0 * float(by.boundary_passes) * size / float(system.io_bytes_per_second)
    return [Layer(f"layer {n}", forward, 2.0 * forward, size, size, float(by.layer_seconds), update) for n in range(count)]


def streamed_step(
    system: System,
    work: Workload,
    systems: int = 1,
    micro_batches: int = 1,
    streaming: Streaming | None = None,
    prefetch: int = 1,
    swarmx: SwarmX | None = None,
) -> tuple[Schedule, float]:
    """(schedule, wait for the slowest system in seconds) of a modelled training step that `systems` share.

    Raises:
      ValueError: less than one system or micro-batch, or more of both than there are tokens.
    """
    for name, value in (("systems", systems), ("micro_batches", micro_batches)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    if systems * micro_batches > work.tokens:
        raise ValueError(f"systems={systems}, micro_batches={micro_batches}: {work.name} has {work.tokens:g} tokens; divide by less")
    by = Streaming() if streaming is None else streaming
    tree = SwarmX(int(by.tree_arity), float(by.tree_node_seconds)) if swarmx is None else swarmx
    latency = float(system.io_latency_seconds) + tree.depth(systems) * tree.node_seconds
    stages = layer_stages(step_layers(system, work, systems, micro_batches, by), micro_batches=micro_batches)
    made = schedule(stages, float(system.io_bytes_per_second), prefetch=prefetch, latency_seconds=latency)
    return made, made.seconds * float(by.wait_per_doubling) * math.log2(systems)


def step_least_tokens(system: System, work: Workload, micro_batches: int = 1, streaming: Streaming | None = None) -> float:
    """Tokens of one system's micro-batch below which the schedule of `work` stalls. About b F / 2 BW; attention and software lower it."""
    by = Streaming() if streaming is None else streaming
    stages = layer_stages(step_layers(system, work, 1, micro_batches, by), micro_batches=micro_batches)
    return least_tokens(stages, float(work.tokens) / micro_batches, float(system.io_bytes_per_second))


def _machine(cluster: ClusterSpec | System | str) -> tuple[System, str, int | None, MemoryX | None, SwarmX | None]:
    """(system, its name in rows, most of them, their memory and tree); a generation's name stands for any number of its systems."""
    if isinstance(cluster, System) or (isinstance(cluster, str) and cluster.lower().replace("-", "") in SYSTEMS):
        one = as_system(cluster)
        return one, one.name, MOST_SYSTEMS.get(one.name), None, None
    spec = cluster_spec(cluster)
    return spec.system, f"{spec.system.name} of {spec.name}", spec.systems, spec.memoryx, spec.swarmx


def scaling(
    cluster: ClusterSpec | System | str,
    work: Workload,
    systems: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    weak: bool = True,
    micro_batches: int = 1,
    streaming: Streaming | None = None,
    prefetch: int = 1,
) -> Scaling:
    """A training step on each number of systems.

    Args:
      cluster: a generation ("cs3", a `System`), or a cluster ("andromeda", a `ClusterSpec`), whose systems are then the most.
      work: the batch of one system (weak), or the global batch (strong).
      micro_batches: of each system, each of which streams all weights.
      streaming: what software and cluster add; fitted constants by default.
      prefetch: layers of weights on their way while one is worked on.

    Raises:
      ValueError: no systems, more than there are, or more systems and micro-batches than tokens.
    """
    system, name, most, memoryx, swarmx = _machine(cluster)
    if not systems:
        raise ValueError(f"systems={systems!r}: name at least one number of systems")
    for count in systems:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"systems={list(systems)!r}: each is a whole number of at least 1")
        if most is not None and count > most:
            raise ValueError(f"systems={count}: of {name} there are {most} at most; give no more")
    made = lambda count: streamed_step(
        system,
        work.replace(flops=work.flops * count, tokens=work.tokens * count) if weak else work,
        count, micro_batches, streaming, prefetch, swarmx,
    )  # fmt: skip
    alone = made(1)[0].seconds
    rows = []
    for count in systems:
        run, wait = made(count)
        seconds, growth = run.seconds + wait, count if weak else 1
        tokens = float(work.tokens) * growth
        share = work if weak else work.replace(flops=work.flops / count, tokens=work.tokens / count)
        speedup = alone / seconds * growth
        rows.append(
            ScalingRow(
                systems=count,
                tokens=tokens,
                batch_growth=float(growth),
                tokens_per_system=tokens / count / micro_batches,
                least_tokens=step_least_tokens(system, share, micro_batches, streaming),
                step_seconds=seconds,
                tokens_per_second=tokens / seconds,
                speedup=speedup,
                efficiency=speedup / count,
                stall_share=run.parts()["stall"] / seconds,
                wait_share=wait / seconds,
                mfu=float(work.flops * growth / seconds / (count * system.dense_peak_fp16_flops_per_second)),
            )
        )
    held = None if memoryx is None else capacity(memoryx, {"weights, moments and gradients": float(work.state_bytes)})
    return Scaling(workload=work, name=name, weak=weak, micro_batches=micro_batches, rows=tuple(rows), memory=held)


# ---- what was published ----------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class PublishedScaling:
    """A published figure of scaling beside the model's, with constants fitted to all such figures."""

    id: str
    what: str
    published: float
    modelled: float
    held_out: float | None

    @property
    def error(self) -> float:
        return self.modelled / self.published - 1.0


def published_scaling() -> list[PublishedScaling]:
    """Speed-ups and utilisations of several systems that were published (Sandia's 1 T parameters on 16 CS-3; Cerebras-GPT on Andromeda),
    by the closed form that is fitted to them (`measured/training.py`)."""
    from .table import published
    from .validation import validate

    points = [p for p in published() if p.experiment == "training_scaling"]
    found = validate(points).predictions
    say = lambda p: f"{p.config.get('model', '1 T parameters')} on {p.config.get('systems', p.config.get('cs2_systems'))}, {p.metric}"
    return [PublishedScaling(f.point.id, say(f.point), f.point.value, f.predicted, f.held_out) for f in found]
