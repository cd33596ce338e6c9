"""What groups ask of the parameters at hand, worked out on the host from shapes alone: who is pruned, and how many are kept when."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int32, PyTree

from .groups import Group
from .structures import Shape, size

_SHOWN = 8
_VECTORS = ("bias", "scale")  # names of what is added or multiplied element by element, whatever its shape


@dataclass(frozen=True)
class Plan:
    """Of one parameter. Counts are of cells, in each layer: how many are kept at first, and at each of the group's steps how many of them
    survive and how many are then kept. number: of the parameter among all, which random draws depend on."""

    shape: Shape
    stack: int
    number: int
    first: int
    survive: Int32[np.ndarray, " steps"]
    kept: Int32[np.ndarray, " steps"]


def path_name(path: tuple) -> str:
    """Such as "blocks/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def plan(groups: Sequence[Group], params: PyTree) -> list[dict[str, Plan]]:
    """For each group its parameters by their paths; `params` may be abstract.

    Raises:
      ValueError: a pattern matches nothing, or what is no matrix; a structure does not fit; a parameter is in two groups.
    """
    leaves = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    numbers = {path: n for n, path in enumerate(leaves)}
    owner: dict[str, str] = {}
    plans = []
    for group in groups:
        shapes = _matched(group, {path: tuple(x.shape) for path, x in leaves.items()})
        for path in shapes:
            if path in owner:
                raise ValueError(f"pattern={group.pattern!r}: {path} is already in the group of {owner[path]!r}; give each to one group")
            owner[path] = group.pattern
        plans.append(_counts(group, shapes, numbers))
    return plans


def _stack(group: Group, path: str) -> int:
    return group.stack_axes if group.stack_axes is not None else int("blocks" in path.split("/")[:-1])


def _matched(group: Group, leaves: Mapping[str, Shape]) -> dict[str, Shape]:
    what = f"pattern={group.pattern!r}"
    fits = lambda path: len(leaves[path]) - _stack(group, path) >= 2 and path.split("/")[-1] not in _VECTORS
    known = [path for path in leaves if fits(path)]
    chosen = {path: shape for path, shape in leaves.items() if re.fullmatch(group.pattern, path)}
    if not chosen:
        raise ValueError(f"{what}: matches the whole path of no parameter; there are {_some(known)}")
    if others := [path for path in chosen if path not in known]:
        listed = _some([f"{path} {list(leaves[path])}" for path in others])
        raise ValueError(f"{what}: matches {listed}, which is no matrix in each layer; those that are: {_some(known)}")
    for path, shape in chosen.items():
        if (problem := group.structure.problem(shape, _stack(group, path))) is not None:
            raise ValueError(f"{what}, structure={group.structure}: does not fit {path} {list(shape)}: {problem}")
    return chosen


def _counts(group: Group, shapes: Mapping[str, Shape], numbers: Mapping[str, int]) -> dict[str, Plan]:
    times = (0, *group.steps)
    by_step = [densities(group, shapes, group.sparsity(step)) for step in times]
    found = {}
    for path, shape in shapes.items():
        stack = _stack(group, path)
        cells = size(group.structure, shape, stack)
        kept = [round(density[path] * cells) for density in by_step]
        survive = []
        for step, before, after in zip(group.steps, kept, kept[1:], strict=False):
            stay = min(before, after)
            survive.append(stay - round(group.drop(step) * stay))
        found[path] = Plan(shape, stack, numbers[path], kept[0], np.array(survive, np.int32), np.array(kept[1:], np.int32))
    return found


def densities(group: Group, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    """What share of each tensor is kept when `sparsity` of the group is pruned."""
    if group.distribution == "uniform":
        return dict.fromkeys(shapes, 1 - sparsity)
    inner = {path: shape[_stack(group, path) :] for path, shape in shapes.items()}
    weights = {path: math.prod(shape) for path, shape in shapes.items()}
    share = {path: sum(shape) / math.prod(shape) for path, shape in inner.items()}
    wanted, dense = (1 - sparsity) * sum(weights.values()), set()
    while True:  # a tensor that would keep more than it has is dense, and the others share what is left
        left = [path for path in shapes if path not in dense]
        scale = (wanted - sum(weights[p] for p in dense)) / sum(share[p] * weights[p] for p in left) if left else 0.0
        full = {path for path in left if scale * share[path] > 1}
        if not full:
            return {path: 1.0 if path in dense else scale * share[path] for path in shapes}
        dense |= full


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])]) or "none"
