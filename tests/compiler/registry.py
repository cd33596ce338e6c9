"""Small JAX functions that the compiler must run: a name, a function and how to make its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PROGRAMS: dict[str, tuple[Callable, tuple[Any, ...]]] = {}


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def ints(high: int, *shape: int, seed: int = 1, low: int = 0, dtype: Any = np.int32) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def program(*args):
    def register(fun):
        PROGRAMS[fun.__name__] = (fun, args)
        return fun

    return register


X, Y, V, N = floats(8, 16), floats(8, 16, seed=2), floats(16, seed=3), ints(50, 8, 16)
