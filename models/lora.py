"""Low-rank adapters (Hu et al. 2021): W + alpha / rank A B, of which A and B alone are trained.

Adapters are a nested dict like the parameters, with {"a": [*stack, *ins, rank], "b": [*stack, rank, *outs]} in place of a kernel
[*stack, *ins, *outs]. Stack are the axes of layers and experts. Which axes are in and which out the family's weight table knows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .family import Family
from .matching import Line, flat, lines, nested

_PROBE = (2, 3, 5, 7)  # sizes of axes, of which no two products are equal
_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Linear:
    """A parameter that multiplies what comes in.

    line: of the weight table, which it fills alone or with others. shape: [*stack, *ins, *outs]. transposed: the tensor is [out, in].
    """

    line: Line
    shape: tuple[int, ...]
    ins: int
    transposed: bool

    @property
    def cut(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Sizes of stack, ins and outs."""
        start = len(self.line.stack)
        return self.shape[:start], self.shape[start : start + self.ins], self.shape[start + self.ins :]

    @property
    def sizes(self) -> tuple[int, int]:
        """(in, out) of one layer's matrix."""
        _, ins, outs = self.cut
        return math.prod(ins), math.prod(outs)


def linears(family: Family, config: Any) -> dict[str, Linear]:
    """Every parameter that can have adapters, by its path."""
    found = {}
    for line in lines(family, config):
        if (how := _read(line)) is not None:
            found |= {path: Linear(line, (*line.stack, *shape), *how) for path, shape in zip(line.entry.paths, line.shapes, strict=True)}
    return dict(sorted(found.items()))


def _read(line: Line) -> tuple[int, bool] | None:
    """(axes that are contracted, whether the tensor is [out, in]), as the table makes the tensor; None of what is no matrix."""
    axes, count = len(line.shapes[0]), len(line.entry.paths)
    if axes < 2 or line.entry.paths[0].endswith("/embedding"):
        return None
    sizes = _PROBE[:axes]
    made = jax.eval_shape(line.entry.give, *[jax.ShapeDtypeStruct(sizes, jnp.float32)] * count).shape
    for ins in range(1, axes):
        matrix = (math.prod(sizes[:ins]), count * math.prod(sizes[ins:]))
        if made in (matrix, matrix[::-1]):
            return ins, made != matrix
    return None


def matched(family: Family, config: Any, pattern: str, rank: int) -> dict[str, Linear]:
    """The linears whose whole path a regular expression matches, such as "blocks/attention/(q|v)/kernel".

    Raises:
      ValueError: it is no regular expression, matches nothing, or a parameter that is no matrix; or the rank is below 1 or above what a
        matrix has.
    """
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise ValueError(f"pattern={pattern!r}: is no regular expression ({error})") from None
    known = linears(family, config)
    chosen = sorted(path for path in flat(family.abstract(config)) if matches(path))
    if not chosen:
        raise ValueError(f"pattern={pattern!r}: matches the whole path of no parameter; matrices of {family.name} are {_some(known)}")
    if others := [path for path in chosen if path not in known]:
        raise ValueError(f"pattern={pattern!r}: matches {_some(others)}, which is no matrix; those of {family.name} are {_some(known)}")
    for path in chosen:
        if not 1 <= rank <= min(known[path].sizes):
            ins, outs = known[path].sizes
            raise ValueError(f"rank={rank}: {path} is a matrix of {ins} x {outs}; give 1 to {min(ins, outs)}, or a pattern without it")
    return {path: known[path] for path in chosen}


def init(family: Family, config: Any, key: Key[Array, ""], *, pattern: str, rank: int) -> PyTree:
    """Adapters, float32: A normal of standard deviation in ** -0.5, B zero, so that the model is as yet the one that it was.

    What is drawn for a matrix does not depend on what else the pattern matches. Raises ValueError as `matched`.
    """
    numbers = {path: n for n, path in enumerate(linears(family, config))}
    made: dict[str, Any] = {}
    for path, linear in matched(family, config, pattern, rank).items():
        stack, ins, outs = linear.cut
        a = jax.random.normal(jax.random.fold_in(key, numbers[path]), (*stack, *ins, rank), jnp.float32)
        made |= {f"{path}/a": a * linear.sizes[0] ** -0.5, f"{path}/b": jnp.zeros((*stack, rank, *outs), jnp.float32)}
    return nested(made)


def merge(params: PyTree, adapters: PyTree, *, alpha: float) -> PyTree:
    """The parameters, with alpha / rank A B added where there are adapters: computed in float32, in the dtype that each parameter has.

    A loss of `merge(params, adapters)` is differentiated with respect to the adapters alone. Raises ValueError for adapters of parameters
    that are not there, or have other shapes.
    """
    leaves, pairs = flat(params), pairs_of(adapters)
    if unknown := sorted(pairs.keys() - leaves.keys()):
        raise ValueError(f"adapters: the model has no parameters {_some(unknown)}")
    return nested({path: _added(path, leaf, pairs[path], alpha) if path in pairs else leaf for path, leaf in leaves.items()})


def _added(path: str, kernel: Array, pair: Mapping[str, Array], alpha: float) -> Array:
    a, b = pair["a"].astype(jnp.float32), pair["b"].astype(jnp.float32)
    stack = a.ndim + b.ndim - kernel.ndim - 2
    layers = tuple(range(stack))
    product = jax.lax.dot_general(a, b, (((a.ndim - 1,), (stack,)), (layers, layers)), precision=jax.lax.Precision.HIGHEST)
    if product.shape != kernel.shape:
        raise ValueError(f"adapters: {path} has shape {list(kernel.shape)}, and A {list(a.shape)} B {list(b.shape)} has another")
    return (kernel.astype(jnp.float32) + alpha / a.shape[-1] * product).astype(kernel.dtype)


def pairs_of(adapters: PyTree) -> dict[str, dict[str, Array]]:
    """Path of the parameter -> {"a", "b"}."""
    leaves = flat(adapters)
    paths = [path.removesuffix("/a") for path in leaves if path.endswith("/a")]
    return {path: {"a": leaves[f"{path}/a"], "b": leaves[f"{path}/b"]} for path in paths}


def _some(paths: Mapping[str, Any] | list[str]) -> str:
    shown = ", ".join(list(paths)[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} and {len(paths) - _SHOWN} more"
