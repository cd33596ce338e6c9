"""How many logical PEs a mesh can have at most, whatever method finds it."""

from __future__ import annotations

import numpy as np

from .clear import clear_rectangle
from .defects import DefectMap
from .routes import connected_regions


def most_logical_pes(defects: DefectMap, max_rows: int, max_cols: int, max_dilation: int | None = None) -> int:
    """A bound from above on the PEs of a mesh of at most `max_rows` x `max_cols`.

    A mesh lies in one connected region and is a rectangle: one dead PE of a whole grid already costs a row or a column. For links of one
    hop the bound is exact, but for meshes of a single row or column. For two hops and more nothing sharper is known to us: routes may
    share links, so a narrow place limits nothing until it is nearly shut.
    """
    region = int(np.bincount(connected_regions(defects).ravel(), minlength=2)[1:].max())
    most = max((rows * min(region // rows, max_cols) for rows in range(1, min(max_rows, region) + 1)), default=0)
    if max_dilation != 1:
        return most
    clear = [clear_rectangle(defects, (1, 1), sides) for sides in ((max_rows, max_cols), (max_cols, max_rows))]  # a mesh may lie turned
    return min(most, max(max_rows, max_cols, *(placed[0].size for placed in clear if placed)))  # a single line may wind
