"""Weight tables: how tensors of a Hugging Face checkpoint and parameters here are made of each other, exactly, in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table.

    name: of the tensor; "{layer}" and "{expert}" stand for numbers, for each of which the parameters have a leading axis. paths: the
    parameters that it fills. take(tensor, shapes of one layer's parameters) -> these parameters; give is its inverse.
    """

    name: str
    paths: tuple[str, ...]
    take: Callable[[Any, Shapes], tuple[Any, ...]]
    give: Callable[..., Any]


def plain(name: str, path: str, give_shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None) -> Entry:
    """The same numbers in the same order; a bias of heads and features is one axis of the tensor, unless give_shape says its shape."""
    shape = (lambda shape: (math.prod(shape),)) if give_shape is None else give_shape
    return Entry(name, (path,), lambda t, shapes: (t.reshape(shapes[0]),), lambda p: p.reshape(shape(p.shape)))


def same(name: str, path: str) -> Entry:
    """The same array."""
    return plain(name, path, lambda shape: shape)


def dense(name: str, path: str, ins: int = 1) -> Entry:
    """A torch matrix [out, in] and a kernel [*in, *out], of which the first `ins` axes are contracted."""

    def give(p: Any) -> Any:
        return p.reshape(math.prod(p.shape[:ins]), -1).T

    return Entry(name, (path,), lambda t, shapes: (t.T.reshape(shapes[0]),), give)


def conv1d(name: str, path: str, ins: int = 1) -> Entry:
    """GPT-2's matrices, which are [in, out]."""
    return plain(name, path, lambda shape: (math.prod(shape[:ins]), math.prod(shape[ins:])))


def beside(name: str, paths: tuple[str, ...], *, transposed: bool) -> Entry:
    """Queries, keys and values one after the other along the outputs: [in, q k v], or [q k v, in] where `transposed`, or [q k v]."""

    def take(t: Any, shapes: Shapes) -> tuple[Any, ...]:
        bias = t.ndim == 1
        sizes = [math.prod(shape if bias else shape[1:]) for shape in shapes]
        ends = np.cumsum(sizes)
        t = t.T if transposed and not bias else t
        return tuple(t[..., end - size : end].reshape(shape) for size, end, shape in zip(sizes, ends, shapes, strict=True))

    def give(*ps: Any) -> Any:
        flat = [p.reshape(-1) if p.ndim == 2 else p.reshape(p.shape[0], -1) for p in ps]
        whole = _concatenate(flat, -1)
        return whole.T if transposed and whole.ndim == 2 else whole

    return Entry(name, paths, take, give)


def by_head(name: str, paths: tuple[str, str, str]) -> Entry:
    """Queries, keys and values head by head: for each head of keys its queries, its key, its value; [(kv, queries + 2, dim), in] or a bias.

    GPT-NeoX's (one query a key), and all of Falcon's arrangements.
    """

    def take(t: Any, shapes: Shapes) -> tuple[Any, ...]:
        (heads, dim), kv = shapes[0][-2:], shapes[1][-2]
        t = t.reshape(kv, heads // kv + 2, dim, *t.shape[1:])
        parts = (t[:, :-2].reshape(heads, dim, *t.shape[3:]), t[:, -2], t[:, -1])
        return tuple(part if part.ndim == 2 else part.transpose(2, 0, 1) for part in parts)

    def give(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (p if p.ndim == 2 else p.transpose(1, 2, 0) for p in (q, k, v))
        kv, dim, *ins = k.shape
        whole = _concatenate([q.reshape(kv, -1, dim, *ins), k[:, None], v[:, None]], 1)
        return whole.reshape(-1, *ins)

    return Entry(name, paths, take, give)


def _concatenate(parts: list[Any], axis: int) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis)
    import jax.numpy as jnp  # under jax.eval_shape

    return jnp.concatenate(parts, axis)
