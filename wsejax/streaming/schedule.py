"""When weights that stream through a wafer are under way, are worked with, and leave as gradients: a recurrence over stages.

A stage is what the wafer does with what came in for it: a layer's pass. The link is full duplex (Hot Chips 2024: 150 GB/s each way), so
loads wait only for loads, and stores for stores. With `prefetch` layers under way while one is worked on (1 is double buffering), for
stage i of those that load

    load(i)    starts when load(i-1) has ended and the buffer of stage i-1-prefetch is free
    compute(i) starts when compute(i-1) and load(i) have ended and the buffer that its gradient needs is free: that of stage i-1-drain
    store(i)   starts when compute(i) and store(i-1) have ended

Stages that load nothing go on with the weights of the stage before, and share its buffers.

The MemoryX glossary of the vendor names one exception to the overlap, the boundary of a step: a layer's update needs all of its gradient,
the next step's load of the layer needs the update, and where gradients are clipped by their global norm every update needs every gradient.
All times are modelled seconds; who calls this prices the computing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

PARTS = ("compute", "software", "fill", "stall", "boundary", "drain")
Times = Float[np.ndarray, " stages"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the wafer does between two loads.

    Attributes:
      name: for people.
      compute_seconds: of the wafer, computing and moving.
      in_bytes: that come in for it.
      out_bytes: that leave when it is done.
      fixed_seconds: of software before it computes, whatever the batch.
      layer: whose weights come in or whose gradient leaves; a load waits for the last update of the same layer.
      update_seconds: that MemoryX works on the layer when its gradient is there; None: its gradient is followed by no update.
      fenced: nothing of it, and no later load, starts before all that was stored has arrived; it takes no buffer of weights. Loads
        come in order, so a value that the wafers have together, such as a sum over them, keeps later weights waiting, too.
      memoryx_seconds: that MemoryX then works before it starts; only of a stage that is fenced.
      back_bytes: of what leaves, that comes back added up over the wafers. The link carries it beside the loads; only a fence waits for it.
    """

    name: str
    compute_seconds: float
    in_bytes: float = 0.0
    out_bytes: float = 0.0
    fixed_seconds: float = 0.0
    layer: str = ""
    update_seconds: float | None = None
    fenced: bool = False
    memoryx_seconds: float = 0.0
    back_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("compute_seconds", "in_bytes", "out_bytes", "fixed_seconds", "update_seconds", "memoryx_seconds", "back_bytes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r}: of stage {self.name!r}, must be finite and not negative")
        if self.memoryx_seconds and not self.fenced:
            raise ValueError(f"memoryx_seconds={self.memoryx_seconds!r}: stage {self.name!r} waits for MemoryX only if it is fenced")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Modelled seconds at which each stage loads, computes and stores, and MemoryX works.

    `wait` is from the end of one stage's computing to the start of the next. A stage that loads or stores nothing does so in no time.
    """

    stages: tuple[Stage, ...]
    load_start: Times
    load_end: Times
    compute_start: Times  # software included
    compute_end: Times
    store_start: Times
    store_end: Times
    memoryx_start: Times
    memoryx_end: Times
    back_start: Times
    back_end: Times
    wait: Times
    seconds: float

    @property
    def fill_seconds(self) -> float:
        """Until the first load is there, of the run or after a fence: it can hide behind nothing."""
        return math.fsum(self.wait[self._fills])

    @functools.cached_property
    def _fills(self) -> np.ndarray:
        found = np.zeros(len(self.stages), bool)
        found[[n for n, group in _groups(self.stages).items() if group.alone]] = True
        return found

    @property
    def stall_seconds(self) -> Times:
        """Of each stage: the wafer waits for the link, though stages before it have run."""
        fenced = np.array([stage.fenced for stage in self.stages], bool)
        return np.where(fenced | self._fills, 0.0, self.wait)

    def parts(self) -> dict[str, float]:
        """Seconds by what the wafer does or waits for; they sum to `seconds`."""
        fenced = np.array([stage.fenced for stage in self.stages], bool)
        found = {
            "compute": math.fsum(s.compute_seconds for s in self.stages),
            "software": math.fsum(s.fixed_seconds for s in self.stages),
            "fill": self.fill_seconds,
            "stall": math.fsum(self.stall_seconds),
            "boundary": math.fsum(self.wait[fenced]),
        }
        return {**found, "drain": self.seconds - (float(self.compute_end[-1]) if self.stages else 0.0)}

    @property
    def stall_share(self) -> float:
        """Of the time from the first stage's start on."""
        return self.parts()["stall"] / self.seconds if self.seconds else 0.0

    @property
    def load_seconds(self) -> float:
        """That the link is busy inward."""
        return float((self.load_end - self.load_start).sum() + (self.back_end - self.back_start).sum())

    @property
    def store_seconds(self) -> float:
        return float((self.store_end - self.store_start).sum())

    @property
    def memoryx_seconds(self) -> float:
        return float((self.memoryx_end - self.memoryx_start).sum())


def schedule(
    stages: Iterable[Stage],
    in_bytes_per_second: float,
    out_bytes_per_second: float | None = None,
    *,
    prefetch: int = 1,
    drain: int = 1,
    latency_seconds: float = 0.0,
) -> Schedule:
    """Lay stages out over modelled time, each as early as it can be.

    Args:
      in_bytes_per_second: of the link towards the wafer.
      out_bytes_per_second: away from it; the same if None.
      prefetch: stages whose weights are on their way, or wait, while one computes; 0: a load begins when the stage before is done.
      drain: stages whose gradients are leaving while one computes.
      latency_seconds: between memory and wafer, on top of the bytes; the link is free meanwhile.

    Raises:
      ValueError: a bandwidth that is not positive, a latency or a number of buffers that is negative.
    """
    out_rate = in_bytes_per_second if out_bytes_per_second is None else out_bytes_per_second
    for name, rate in (("in_bytes_per_second", in_bytes_per_second), ("out_bytes_per_second", out_rate)):
        if not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"{name}={rate!r}: must be a positive number")
    for name, count in (("prefetch", prefetch), ("drain", drain)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name}={count!r}: stages are 0 or more; 1 is double buffering")
    if not (math.isfinite(latency_seconds) and latency_seconds >= 0):
        raise ValueError(f"latency_seconds={latency_seconds!r}: must be finite and not negative")
    stages = tuple(stages)
    names = ("load", "loaded", "start", "end", "store", "stored", "work", "worked", "back", "came", "wait")
    at = {name: np.zeros(len(stages)) for name in names}
    link_in = link_out = before = arrived = memoryx = 0.0  # when each is free, the wafer is, and all that was stored is there
    freed: list[float] = []  # when the weights of each group are done with
    left: list[float] = []  # when the gradients of each group that stores have left
    updated: dict[str, float] = {}
    groups = _groups(stages)
    last: _Group | None = None
    for n, stage in enumerate(stages):
        ready = 0.0
        if stage.fenced:
            at["work"][n] = max(before, arrived, memoryx)
            ready = at["worked"][n] = memoryx = at["work"][n] + stage.memoryx_seconds
            link_in = max(link_in, ready)
        else:
            at["work"][n] = at["worked"][n] = memoryx
        there = ready
        if stage.in_bytes:
            begin = max(link_in, ready, updated.get(stage.layer, 0.0))
            if n in groups:
                if last is not None:
                    freed.append(before)
                    left += [link_out] if last.out_bytes else []
                if len(freed) > prefetch:
                    begin = max(begin, freed[len(freed) - 1 - prefetch])
                last = groups[n]
            link_in = begin + stage.in_bytes / in_bytes_per_second
            at["load"][n], at["loaded"][n], there = begin, link_in, link_in + latency_seconds
        else:
            at["load"][n] = at["loaded"][n] = link_in
        start = max(before, there)
        if n in groups and groups[n].out_bytes and len(left) > drain:
            start = max(start, left[len(left) - 1 - drain])
        at["wait"][n], at["start"][n] = start - before, start
        at["end"][n] = before = start + stage.fixed_seconds + stage.compute_seconds
        at["store"][n] = at["stored"][n] = max(before, link_out)
        if stage.out_bytes:
            at["stored"][n] = link_out = at["store"][n] + stage.out_bytes / out_rate
            arrived = max(arrived, link_out + latency_seconds)
            if stage.update_seconds is not None:
                at["work"][n] = max(memoryx, arrived)
                updated[stage.layer] = at["worked"][n] = memoryx = at["work"][n] + stage.update_seconds
        at["back"][n] = link_in
        at["came"][n] = link_in = link_in + stage.back_bytes / in_bytes_per_second
        if stage.back_bytes:  # a link that is free before the sum is made brings something else meanwhile, and the sum when it is there
            arrived = max(arrived, link_out + latency_seconds + stage.back_bytes / in_bytes_per_second + latency_seconds)
    seconds = float(max(before, arrived, memoryx, link_in))
    return Schedule(stages, *(at[name] for name in names), seconds=seconds)


@dataclasses.dataclass
class _Group:
    """A stage that loads, by its number, with those after it that go on with its weights."""

    first: int
    in_bytes: float
    out_bytes: float = 0.0
    compute_seconds: float = 0.0
    fixed_seconds: float = 0.0
    alone: bool = False  # its load can hide behind nothing: it is the first, or the first after a fence


def _groups(stages: Sequence[Stage]) -> dict[int, _Group]:
    """By the number of the stage that loads; stages before the first are in none."""
    found: dict[int, _Group] = {}
    now, alone = None, True
    for n, stage in enumerate(stages):
        alone = alone or stage.fenced
        if stage.in_bytes and not stage.fenced:
            now, alone = _Group(n, stage.in_bytes, alone=alone), False
            found[n] = now
        if now is not None:
            now.out_bytes += stage.out_bytes
            now.compute_seconds += stage.compute_seconds
            now.fixed_seconds += stage.fixed_seconds
    return found


# ---- what stalls -----------------------------------------------------------------------------------------------------
def _to_hide(stages: Sequence[Stage], in_rate: float, out_rate: float | None) -> list[tuple[_Group, _Group, float]]:
    """(a group, the one before, seconds on the link for which it needs the one before to compute), of all that can hide something."""
    groups = list(_groups(stages).values())
    found = []
    for n in range(1, len(groups)):
        now, before = groups[n], groups[n - 1]
        if not now.alone:
            leaving = n > 1 and now.out_bytes and before.out_bytes
            found.append((now, before, max(now.in_bytes / in_rate, groups[n - 2].out_bytes / (out_rate or in_rate) if leaving else 0.0)))
    return found


def slack_seconds(stages: Sequence[Stage], in_bytes_per_second: float, out_bytes_per_second: float | None = None) -> Times:
    """By how much each stage's load is hidden behind the stage before it, with double buffering: nothing stalls if none is negative.

    The load of stage i takes place while stage i-1 computes. Meanwhile the gradient of stage i-2 leaves, which must be gone when that of
    stage i is begun. Exact where every stage loads, and those that store follow one another. The first load is the fill, and hides behind
    nothing: its slack is infinite, as is that of the first after a fence, and of stages that load nothing.
    """
    found = np.full(len(stages), np.inf)
    for now, before, seconds in _to_hide(stages, in_bytes_per_second, out_bytes_per_second):
        found[now.first] = before.compute_seconds + before.fixed_seconds - seconds
    return found


def least_tokens(stages: Sequence[Stage], tokens: float, in_bytes_per_second: float, out_bytes_per_second: float | None = None) -> float:
    """Tokens of a wafer's micro-batch from which no stage waits for the link, if `stages` are priced at `tokens` of them.

    What a stage computes grows with the tokens, and bytes and software do not. So the tightest stage says it: tokens times what must be
    hidden over what hides it. For equal layers of P weights of b bytes this is b F / 2 BW, whatever P. Infinite where a stage that computes
    nothing is followed by one that loads; 0 where nothing is hidden.

    Raises:
      ValueError: tokens that are not positive.
    """
    if not (math.isfinite(tokens) and tokens > 0):
        raise ValueError(f"tokens={tokens!r}: must be positive")
    most = 0.0
    for _, before, seconds in _to_hide(stages, in_bytes_per_second, out_bytes_per_second):
        needed = seconds - before.fixed_seconds
        if needed > 0:
            most = max(most, needed / before.compute_seconds if before.compute_seconds else math.inf)
    return tokens * most


# ---- a training step, layer by layer ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a training step, one micro-batch of it: seconds of both passes and bytes of weights and gradient."""

    name: str
    forward_seconds: float
    backward_seconds: float
    weight_bytes: float
    gradient_bytes: float
    fixed_seconds: float = 0.0  # of software, before either pass
    update_seconds: float = 0.0  # of the optimiser in MemoryX


def layer_stages(layers: Sequence[Layer], *, micro_batches: int = 1, steps: int = 1, clipped: bool = True) -> list[Stage]:
    """Training steps as stages: each micro-batch streams all weights forward, all of them back again, and sends a gradient of each layer.

    Args:
      micro_batches: of a step. Their gradients are added up in MemoryX; the last one's is followed by the update.
      steps: one after the other.
      clipped: by the global norm of all gradients: no update before the last gradient is there, and no load before the last update.
        Else a layer is updated when its gradient is there, and loaded again when that is done.

    Raises:
      ValueError: counts below 1.
    """
    for name, count in (("micro_batches", micro_batches), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r}: must be a whole number of at least 1")
    forward = [Stage(f"{one.name} forward", one.forward_seconds, one.weight_bytes, 0.0, one.fixed_seconds, one.name) for one in layers]
    backward = [
        Stage(f"{one.name} backward", one.backward_seconds, one.weight_bytes, one.gradient_bytes, one.fixed_seconds, one.name)
        for one in reversed(layers)
    ]
    last = [dataclasses.replace(stage, update_seconds=one.update_seconds) for stage, one in zip(backward, reversed(layers), strict=True)]
    update = math.fsum(one.update_seconds for one in layers)
    boundary = Stage("boundary", 0.0, fenced=True, memoryx_seconds=update)
    step = (forward + backward) * (micro_batches - 1) + forward + (backward if clipped else last)
    return [*step, *([boundary] if clipped else [])] * steps
