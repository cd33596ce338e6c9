"""Learning rates and weight decays by group of parameters, and clipping: an optax optimiser for each group, made by the same function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import jax
import optax
from jaxtyping import PyTree

Scheduled = float | optax.Schedule
_REST = "rest"


@dataclass(frozen=True)
class Group:
    """The parameters whose whole path a regular expression matches, such as "blocks/mlp/(up|down)/kernel".

    Attributes:
      pattern: of the path.
      times: the learning rate is this times the usual one, or times `learning_rate`.
      learning_rate: a number or schedule; None: the usual one.
      weight_decay: a number or schedule; None: the usual one.
    """

    pattern: str
    times: float = 1.0
    learning_rate: Scheduled | None = None
    weight_decay: Scheduled | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r}: is no regular expression ({error})") from None
        if not (math.isfinite(self.times) and self.times >= 0):
            raise ValueError(f"times={self.times!r}: must be finite and not negative; 0 keeps parameters as they are")


def grouped(
    make: Callable[..., optax.GradientTransformation],
    groups: Sequence[Group],
    *,
    learning_rate: Scheduled,
    weight_decay: Scheduled = 0.0,
) -> optax.GradientTransformation:
    """An optimiser that gives each group its own learning rate and weight decay, and what no group matches the usual ones.

    Args:
      make: (learning_rate, weight_decay) -> optimiser, such as `optax.adamw` or a `partial` of it. It sees the parameters of a group alone,
        so what looks at all of them (clipping by the global norm) goes round the whole: `clipped`.
      groups: the first that matches a parameter has it. Without any, this is `make` itself.
      learning_rate, weight_decay: the usual ones, numbers or schedules over steps.

    Raises:
      ValueError: at init and update, a group that has no parameter; the message names the pattern and all parameters.
    """
    if not groups:
        return make(learning_rate=learning_rate, weight_decay=weight_decay)
    made: dict[Hashable, optax.GradientTransformation] = {_REST: make(learning_rate=learning_rate, weight_decay=weight_decay)}
    for number, group in enumerate(groups):
        rate = learning_rate if group.learning_rate is None else group.learning_rate
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        made[str(number)] = make(learning_rate=_times(group.times, rate), weight_decay=decay)
    return optax.partition(made, lambda params: _labels(params, groups))


def _times(factor: float, rate: Scheduled) -> Scheduled:
    if factor == 1.0:
        return rate
    return (lambda step: factor * rate(step)) if callable(rate) else factor * rate


def _labels(params: PyTree, groups: Sequence[Group]) -> PyTree:
    named = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    first = lambda name: next((str(n) for n, group in enumerate(groups) if re.fullmatch(group.pattern, name)), _REST)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: first(named(path)), params)
    names = [named(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for number, group in enumerate(groups):
        if str(number) not in jax.tree.leaves(labels):
            earlier = " that an earlier group does not have" if any(re.fullmatch(group.pattern, name) for name in names) else ""
            raise ValueError(f"pattern={group.pattern!r}: matches no parameter{earlier}; there are {', '.join(names)}")
    return labels


def clipped(tx: optax.GradientTransformation, *, norm: float | None = None, value: float | None = None) -> optax.GradientTransformation:
    """`tx` on gradients that are clipped first: all of them to a global norm, or each number to [-value, value]. Neither: `tx` itself.

    Raises:
      ValueError: both, or one that is not above 0.
    """
    if norm is not None and value is not None:
        raise ValueError(f"norm={norm!r}, value={value!r}: clip by one of them")
    for name, limit in (("norm", norm), ("value", value)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name}={limit!r}: must be above 0; None clips nothing")
    if norm is not None:
        return optax.chain(optax.clip_by_global_norm(norm), tx)
    return tx if value is None else optax.chain(optax.clip(value), tx)
