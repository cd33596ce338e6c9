"""Embed a perfect logical mesh into the healthy part of a wafer."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from .defects import DefectMap
from .spec import WaferSpec


class UnusableWaferError(ValueError):
    """The defects leave no mesh of the wanted size. `rows` x `cols` is the largest mesh that is left, 0 x 0 if none."""

    def __init__(self, message: str, rows: int, cols: int) -> None:
        super().__init__(message)
        self.rows = rows
        self.cols = cols


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """Where each logical PE lies, and how many hops each logical link takes."""

    physical_row: Int[np.ndarray, "R C"]
    physical_col: Int[np.ndarray, "R C"]
    east_hops: Int[np.ndarray, "R C-1"]
    south_hops: Int[np.ndarray, "R-1 C"]

    @property
    def rows(self) -> int:
        return self.physical_row.shape[0]

    @property
    def cols(self) -> int:
        return self.physical_row.shape[1]

    @property
    def mean_dilation(self) -> float:
        """Mean hops over all logical links; 1.0 for a mesh without links."""
        links = self.east_hops.size + self.south_hops.size
        return (int(self.east_hops.sum()) + int(self.south_hops.sum())) / links if links else 1.0

    @property
    def max_dilation(self) -> int:
        return max(int(self.east_hops.max(initial=1)), int(self.south_hops.max(initial=1)))


@functools.lru_cache(maxsize=16)
def remap(spec: WaferSpec, defects: DefectMap, min_rows: int = 1, min_cols: int = 1) -> Remap:
    healthy = ~defects.dead_pes
    counts = healthy.sum(1)
    order = np.argsort(-counts, kind="stable")
    best = None
    for n in range(1, spec.rows + 1):
        r, c = min(n, spec.usable_rows), min(int(counts[order[n - 1]]), spec.usable_cols)
        if r >= min_rows and c >= min_cols and (best is None or r * c > best[0] * best[1]):
            best = (r, c)
    if best is None:
        c = int(counts.max())
        raise UnusableWaferError(f"no mesh of {min_rows} x {min_cols}", 1 if c else 0, c)
    r, c = best
    rows = np.sort(order[:r])
    col = np.stack([np.flatnonzero(healthy[i])[:c] for i in rows])
    row = np.broadcast_to(rows[:, None], col.shape)
    return Remap(row, col, np.abs(np.diff(col, axis=1)), np.abs(np.diff(row, axis=0)) + np.abs(np.diff(col, axis=0)))
