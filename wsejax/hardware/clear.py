"""The largest rectangle without a dead PE or link: what is left where no logical link may be longer than one hop.

A mesh of at least 2 x 2 with links of one hop is such a rectangle: two unit squares that share an edge determine each other.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from .defects import DefectMap
from .routes import live_links


def clear_rectangle(
    defects: DefectMap, least: tuple[int, int], most: tuple[int, int]
) -> tuple[Int[np.ndarray, "R C"], Int[np.ndarray, "R C"]] | None:
    """Rows and columns of the clear rectangle of largest area, with `least` to `most` (rows, cols); None if there is none.

    Row by row, as in the maximal rectangle of a binary picture: the highest clear bar over each cell, and how far it can be widened.
    PEs and links are the cells: PE (r, c) is cell (2 r, 2 c), its links lie between.
    """
    live = _cells(defects)
    height, width = live.shape
    col = np.arange(width)
    top, left, right = np.zeros(width, np.int64), np.zeros(width, np.int64), np.full(width, width - 1)
    best, found = 0, None
    for row in range(height):
        on = live[row]
        top = np.where(on, top, row + 1)
        left = np.where(on, np.maximum(left, np.maximum.accumulate(np.where(on, 0, col + 1))), 0)
        ahead = np.minimum.accumulate(np.where(on, width - 1, col - 1)[::-1])[::-1]
        right = np.where(on, np.minimum(right, ahead), width - 1)
        if row % 2:
            continue  # a rectangle ends with a PE
        first_row, first_col = (top + 1) // 2, (left + 1) // 2
        rows = np.minimum(row // 2 - first_row + 1, most[0])
        cols = np.minimum(right // 2 - first_col + 1, most[1])
        area = np.where(on & (rows >= least[0]) & (cols >= least[1]), rows * cols, 0)
        at = int(area.argmax())
        if area[at] > best:
            best, found = int(area[at]), (int(first_row[at]), int(first_col[at]), int(rows[at]), int(cols[at]))
    if found is None:
        return None
    row, col, rows, cols = found
    placed = np.indices((rows, cols)) + np.array([row, col])[:, None, None]
    return placed[0], placed[1]


def _cells(defects: DefectMap) -> Bool[np.ndarray, "2*rows-1 2*cols-1"]:
    rows, cols = defects.shape
    east, south = live_links(defects)
    live = np.ones((2 * rows - 1, 2 * cols - 1), bool)
    live[::2, ::2] = ~defects.dead_pes
    live[::2, 1::2] = east[:, :-1]
    live[1::2, ::2] = south[:-1]
    return live
