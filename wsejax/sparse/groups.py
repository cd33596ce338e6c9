"""Which parameters are pruned, how far and when: one kind of group, of which the known algorithms are settings."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

from . import schedules
from .schedules import Schedule
from .structures import NM, Structure, Unstructured

First = Literal["random", "magnitude", "even"]
Growth = Literal["gradient", "random"]
Distribution = Literal["uniform", "erk"]


@dataclass(frozen=True)
class Group:
    """Parameters that are pruned alike.

    At each of `steps` the masks change: of the weights that are left, the least by magnitude go, then others grow until the count is what
    `sparsity` says.

    Attributes:
      pattern: a regular expression of the whole path of a parameter, such as "blocks/mlp/(up|down)/kernel".
      sparsity: of the group by step, in [0, 1). In each tensor, of each layer, round((1 - sparsity) * weights) are kept.
      steps: when the masks change, rising.
      drop: the share of the kept weights that are exchanged for others, by step.
      grow: which weights come back, of all that are not kept: those of the greatest gradient, or any.
      first: which are kept at first: any, the greatest, or some spread evenly.
      structure: what is pruned as one; `Unstructured`, `NM` or `Block`.
      distribution: the same sparsity everywhere, or by Erdos-Renyi-Kernel (Evci et al. 2020): densities in proportion to the sum of a
        tensor's lengths over their product, so that small and narrow tensors keep more; counts are then rounded one tensor at a time.
      stack_axes: leading axes of layers, each of which is pruned by itself. None: 1 for a parameter below "blocks", where models/ stacks
        its layers, else 0. Experts of a layer are pruned together unless it is 2.
    """

    pattern: str
    sparsity: Schedule
    steps: tuple[int, ...] = ()
    drop: Schedule = field(default_factory=lambda: schedules.constant(0.0))
    grow: Growth = "gradient"
    first: First = "random"
    structure: Structure = field(default_factory=Unstructured)
    distribution: Distribution = "uniform"
    stack_axes: int | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r}: is no regular expression ({error})") from None
        if list(self.steps) != sorted({*self.steps}) or any(step < 0 for step in self.steps):
            raise ValueError(f"steps={self.steps}: give steps from 0 that rise")
        for name, value, known in (
            ("grow", self.grow, ("gradient", "random")),
            ("first", self.first, ("random", "magnitude", "even")),
            ("distribution", self.distribution, ("uniform", "erk")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(known)}")
        if self.distribution == "erk" and isinstance(self.structure, NM):
            raise ValueError(f"distribution='erk': {self.structure} keeps as many in every tensor; give distribution='uniform'")
        for step in (0, *self.steps):
            if not 0 <= self.sparsity(step) < 1:
                raise ValueError(f"sparsity={self.sparsity(step)} at step {step}: give at least 0 and less than 1")
            if not 0 <= self.drop(step) <= 1:
                raise ValueError(f"drop={self.drop(step)} at step {step}: give 0 to 1")


def static(
    pattern: str,
    sparsity: float | None = None,
    *,
    first: First = "random",
    structure: Structure | None = None,
    distribution: Distribution = "uniform",
    stack_axes: int | None = None,
) -> Group:
    """Masks that stay as they are. `sparsity` is left out for `NM`, which says it.

    Raises ValueError, as all of these do, for what cannot be.
    """
    structure = structure or Unstructured()
    at = schedules.constant(_target(sparsity, structure))
    return Group(pattern, at, first=first, structure=structure, distribution=distribution, stack_axes=stack_axes)


def gmp(
    pattern: str,
    sparsity: float | Schedule | None = None,
    *,
    begin: int = 0,
    end: int,
    every: int = 100,
    initial: float = 0.0,
    structure: Structure | None = None,
    distribution: Distribution = "uniform",
    stack_axes: int | None = None,
) -> Group:
    """Gradual magnitude pruning (Zhu & Gupta 2017): from `initial` to `sparsity` along a cubic, at step `begin`, every so many steps and at
    `end`. Where `sparsity` is a schedule of its own, it is asked at those steps, and what it gives back grows by gradient.
    """
    structure = structure or Unstructured()
    steps = _steps(begin, end, every)
    at = sparsity if callable(sparsity) else schedules.cubic(initial, _target(sparsity, structure), begin=begin, end=end)
    return Group(pattern, at, steps, first="magnitude", structure=structure, distribution=distribution, stack_axes=stack_axes)


def set_(
    pattern: str,
    sparsity: float | None = None,
    *,
    begin: int | None = None,
    end: int,
    every: int = 100,
    drop: float | Schedule = 0.3,
    first: First = "random",
    structure: Structure | None = None,
    distribution: Distribution = "uniform",
    stack_axes: int | None = None,
) -> Group:
    """Sparse evolutionary training (Mocanu et al. 2018): every so many steps, from `begin` (`every` if left out) to `end`, the share `drop`
    of the kept weights, the least of them, are exchanged for any others.
    """
    group = static(pattern, sparsity, first=first, structure=structure, distribution=distribution, stack_axes=stack_axes)
    steps = _steps(every if begin is None else begin, end, every)
    return dataclasses.replace(group, steps=steps, drop=drop if callable(drop) else schedules.constant(drop), grow="random")


def rigl(
    pattern: str,
    sparsity: float | None = None,
    *,
    begin: int | None = None,
    end: int,
    every: int = 100,
    drop: float = 0.3,
    first: First = "random",
    structure: Structure | None = None,
    distribution: Distribution = "uniform",
    stack_axes: int | None = None,
) -> Group:
    """RigL (Evci et al. 2020): as `set_`, but those grow whose gradient is greatest, and `drop` falls to 0 along a cosine until `end`. The
    paper ends at three quarters of a run, so that weights that came last can still be learned.
    """
    group = static(pattern, sparsity, first=first, structure=structure, distribution=distribution, stack_axes=stack_axes)
    steps = _steps(every if begin is None else begin, end, every)
    return dataclasses.replace(group, steps=steps, drop=schedules.cosine(drop, 0.0, begin=0, end=end), grow="gradient")


def densified(group: Group, step: int) -> Group:
    """`group` until `step`, and dense from there: sparse pre-training, dense fine-tuning (Thangarasa et al. 2023). Weights that come back
    begin at 0, and so does what the optimiser knows of them.

    A run that begins with the parameters of a sparse one and an optimiser of its own needs none of this. Raises ValueError for a step
    below 1.
    """
    if step < 1:
        raise ValueError(f"step={step}: what is dense from the beginning needs no group; give at least 1")
    steps = (*(s for s in group.steps if s < step), step)
    return dataclasses.replace(group, sparsity=schedules.zero_from(group.sparsity, step), steps=steps)


def _steps(begin: int, end: int, every: int) -> tuple[int, ...]:
    if every < 1:
        raise ValueError(f"every={every}: give at least 1 step between changes of the masks")
    if begin < 0 or end < begin:
        raise ValueError(f"begin={begin}, end={end}: the masks' changes end before they begin; give steps from 0 in their order")
    return (*range(begin, end, every), end)


def _target(sparsity: float | None, structure: Structure) -> float:
    if isinstance(structure, NM):
        if sparsity is not None and sparsity != structure.sparsity:
            raise ValueError(f"sparsity={sparsity}: {structure} has a sparsity of {structure.sparsity}; leave it out")
        return structure.sparsity
    if sparsity is None:
        raise ValueError("sparsity=None: give the share of weights to prune, or a structure that says it, such as NM(2, 4)")
    return sparsity
