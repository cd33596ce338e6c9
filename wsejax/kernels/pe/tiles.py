"""Whole arrays cut into an entry a PE, and back. Sizes that the grid does not divide are padded."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Shaped

Grid = tuple[int, int]


def to_tiles(x: Shaped[Array, "n m ..."], grid: Grid, fill: complex = 0) -> Shaped[Array, "R C h w ..."]:
    """PE (r, c) gets rows r h .. r h + h - 1 and columns c w .. c w + w - 1; `fill` where the array has ended."""
    (rows, cols), (n, m) = grid, x.shape[:2]
    h, w = -(-n // rows), -(-m // cols)
    x = jnp.pad(x, [(0, rows * h - n), (0, cols * w - m)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
    return jnp.moveaxis(x.reshape(rows, h, cols, w, *x.shape[2:]), 2, 1)


def from_tiles(tiles: Shaped[Array, "R C h w ..."], shape: tuple[int, int]) -> Shaped[Array, "n m ..."]:
    """What `to_tiles` cut: an array whose first two sizes are `shape`."""
    rows, cols, h, w, *rest = tiles.shape
    return jnp.moveaxis(tiles, 1, 2).reshape(rows * h, cols * w, *rest)[: shape[0], : shape[1]]


def to_row_of_tiles(x: Shaped[Array, "n ..."], grid: Grid, fill: complex = 0) -> Shaped[Array, "R C h ..."]:
    """Pieces of the first dimension, PE after PE, row by row."""
    count = math.prod(grid)
    h = -(-x.shape[0] // count)
    x = jnp.pad(x, [(0, count * h - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(*grid, h, *x.shape[1:])


def from_row_of_tiles(tiles: Shaped[Array, "R C h ..."], n: int) -> Shaped[Array, "n ..."]:
    """What `to_row_of_tiles` cut: the first `n`."""
    return tiles.reshape(-1, *tiles.shape[3:])[:n]
