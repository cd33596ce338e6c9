"""A logical mesh on the physical grid."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from .defects import DefectMap
from .routes import shortest_hops


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """A logical mesh of R x C PEs on the physical grid. The arrays are read-only.

    Attributes:
      physical_row, physical_col: where logical PE (r, c) lies. All PEs are healthy and reach each other. With the policy
        "usable" and no bound on hops, rows increase strictly along each logical column, and columns along each logical row.
      east_hops: hops of a shortest healthy route from logical PE (r, c) to (r, c + 1).
      south_hops: the same from (r, c) to (r + 1, c).
    """

    physical_row: Int[np.ndarray, "R C"]
    physical_col: Int[np.ndarray, "R C"]
    east_hops: Int[np.ndarray, "R C-1"]
    south_hops: Int[np.ndarray, "R-1 C"]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            array = np.ascontiguousarray(getattr(self, field.name), dtype=np.int32)
            array.flags.writeable = False
            object.__setattr__(self, field.name, array)

    @property
    def rows(self) -> int:
        return self.physical_row.shape[0]

    @property
    def cols(self) -> int:
        return self.physical_row.shape[1]

    @property
    def mean_dilation(self) -> float:
        """Mean hops of a logical link; 1.0 for a mesh without links."""
        links = self.east_hops.size + self.south_hops.size
        return (int(self.east_hops.sum()) + int(self.south_hops.sum())) / links if links else 1.0

    @property
    def max_dilation(self) -> int:
        """Hops of the longest logical link; 1 for a mesh without links."""
        return max(int(self.east_hops.max(initial=1)), int(self.south_hops.max(initial=1)))


def measured(defects: DefectMap, row: Int[np.ndarray, "R C"], col: Int[np.ndarray, "R C"]) -> Remap:
    """The mesh of logical PEs at `row`, `col`, with the hops of its links."""
    place = np.stack([row, col])
    east = shortest_hops(defects, place[:, :, :-1], place[:, :, 1:])
    south = shortest_hops(defects, place[:, :-1], place[:, 1:])
    return Remap(row, col, east, south)
