"""Weight tables: which tensors of a Hugging Face checkpoint fill which parameters, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
      name: of the tensor, with "{layer}" and "{expert}" where numbers stand; a parameter has a leading axis for each, in that order.
      paths: the parameters that it fills, several for a fused tensor.
      take: (one tensor, shapes of one layer's parameters) -> those parameters.
      give: (parameters of one layer) -> the tensor; inverse of `take`.
    """

    name: str
    paths: tuple[str, ...]
    take: Callable[[np.ndarray, tuple[Shape, ...]], tuple[np.ndarray, ...]]
    give: Callable[..., np.ndarray]


def plain(name: str, path: str, *, flat: bool = False) -> Entry:
    """The same numbers in the same order; `flat`: the tensor is the parameter's vector."""
    return Entry(name, (path,), lambda t, shapes: (t.reshape(shapes[0]),), lambda p: p.reshape(-1) if flat else p)


def dense(name: str, path: str, ins: int = 1) -> Entry:
    """A matrix (out, in) <-> a kernel (ins..., outs...)."""
    return Entry(
        name,
        (path,),
        lambda t, shapes: (t.T.reshape(shapes[0]),),
        lambda p: p.reshape(math.prod(p.shape[:ins]), -1).T,
    )


def fused(name: str, paths: tuple[str, ...], ins: int = 1) -> Entry:
    """Matrices (out, in) one below the other <-> a kernel (ins..., outs...) for each."""

    def take(tensor: np.ndarray, shapes: tuple[Shape, ...]) -> tuple[np.ndarray, ...]:
        ends = np.cumsum([math.prod(shape[ins:]) for shape in shapes])[:-1]
        return tuple(part.T.reshape(shape) for part, shape in zip(np.split(tensor, ends), shapes, strict=True))

    def give(*params: np.ndarray) -> np.ndarray:
        rows = [p.reshape(math.prod(p.shape[:ins]), -1).T for p in params]
        return np.concatenate(rows) if isinstance(rows[0], np.ndarray) else _abstract_concatenate(rows)

    return Entry(name, paths, take, give)


def _abstract_concatenate(rows: list) -> np.ndarray:
    import jax.numpy as jnp

    return jnp.concatenate(rows)  # pyright: ignore[reportReturnType]
