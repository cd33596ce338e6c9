"""What is pruned as one: single weights, weights of which each group keeps so many, or blocks.

A structure folds a tensor of scores into cells, says which axes of the cells one count is of, and spreads a choice of cells over the
weights again. The first `stack` axes are layers, each of which is counted by itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

Shape = tuple[int, ...]


class Structure(Protocol):
    """A way to prune. `problem` says why a shape does not fit, or nothing."""

    def problem(self, shape: Shape, stack: int) -> str | None: ...

    def cells(self, shape: Shape, stack: int) -> tuple[Shape, tuple[int, ...]]:
        """Shape of the cells, and the axes that one count is of."""
        ...

    def fold(self, score: Int32[Array, "..."], stack: int) -> Int32[Array, "..."]: ...

    def spread(self, chosen: Bool[Array, "..."], shape: Shape, stack: int) -> Bool[Array, "..."]: ...


@dataclass(frozen=True)
class Unstructured:
    """Each weight by itself."""

    def problem(self, shape: Shape, stack: int) -> str | None:
        return None

    def cells(self, shape: Shape, stack: int) -> tuple[Shape, tuple[int, ...]]:
        return shape, tuple(range(stack, len(shape)))

    def fold(self, score: Int32[Array, "..."], stack: int) -> Int32[Array, "..."]:
        return score

    def spread(self, chosen: Bool[Array, "..."], shape: Shape, stack: int) -> Bool[Array, "..."]:
        return chosen


@dataclass(frozen=True)
class NM:
    """`n` of each `m` weights in a row along one axis, such as 2:4.

    axis: behind the axes of layers. 0 is one that a product contracts, in every kernel of models/.
    """

    n: int
    m: int
    axis: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"n={self.n}, m={self.m}: keep at least 1 of each m, and fewer than m")

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def problem(self, shape: Shape, stack: int) -> str | None:
        inner = shape[stack:]
        if not 0 <= self.axis < len(inner):
            return f"axis={self.axis} is none of its {len(inner)} axes of one layer"
        return f"{self.m} does not divide the {inner[self.axis]} of axis {self.axis}" if inner[self.axis] % self.m else None

    def cells(self, shape: Shape, stack: int) -> tuple[Shape, tuple[int, ...]]:
        at = stack + self.axis
        return (*shape[:at], shape[at] // self.m, self.m, *shape[at + 1 :]), (at + 1,)

    def fold(self, score: Int32[Array, "..."], stack: int) -> Int32[Array, "..."]:
        return score.reshape(self.cells(score.shape, stack)[0])

    def spread(self, chosen: Bool[Array, "..."], shape: Shape, stack: int) -> Bool[Array, "..."]:
        return chosen.reshape(shape)


@dataclass(frozen=True)
class Block:
    """Blocks of a layer's weights, which stay or go as a whole; the greatest weight in it speaks for a block (Narang et al. 2017), which no
    order of adding can change.

    lengths: one along each axis behind those of layers.
    """

    lengths: Shape

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"lengths={self.lengths}: give at least 1 along each axis")

    def problem(self, shape: Shape, stack: int) -> str | None:
        inner = shape[stack:]
        if len(inner) != len(self.lengths):
            return f"lengths={self.lengths} are {len(self.lengths)} for the {len(inner)} axes of one layer"
        uneven = [f"{b} does not divide the {n} of axis {d}" for d, (n, b) in enumerate(zip(inner, self.lengths, strict=True)) if n % b]
        return uneven[0] if uneven else None

    def cells(self, shape: Shape, stack: int) -> tuple[Shape, tuple[int, ...]]:
        inner = (n // b for n, b in zip(shape[stack:], self.lengths, strict=True))
        return (*shape[:stack], *inner), tuple(range(stack, len(shape)))

    def _pairs(self, shape: Shape, stack: int) -> tuple[Shape, tuple[int, ...]]:
        """Each axis taken apart into (blocks, weights of one), and where the latter are."""
        cells = self.cells(shape, stack)[0]
        pairs = itertools.chain(*zip(cells[stack:], self.lengths, strict=True))
        return (*shape[:stack], *pairs), tuple(range(stack + 1, stack + 2 * len(self.lengths), 2))

    def fold(self, score: Int32[Array, "..."], stack: int) -> Int32[Array, "..."]:
        shape, within = self._pairs(score.shape, stack)
        return score.reshape(shape).max(axis=within)

    def spread(self, chosen: Bool[Array, "..."], shape: Shape, stack: int) -> Bool[Array, "..."]:
        pairs, within = self._pairs(shape, stack)
        return jnp.broadcast_to(jnp.expand_dims(chosen, within), pairs).reshape(shape)


def size(structure: Structure, shape: Shape, stack: int) -> int:
    """How many cells one count is of."""
    cells, axes = structure.cells(shape, stack)
    return math.prod(cells[d] for d in axes)
