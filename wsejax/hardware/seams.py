"""Seams: curves from the west to the east border, one PE in every column, whose PEs are left idle.

Taking seams out of a grid closes the gap in every column, as seam carving does in images (Avidan and Shamir, SIGGRAPH 2007): what is
left is a grid again, and its rows step round what the seams went through. A row of the rest can so pass a dead PE that it could
not skip.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def seams_through(cells: Bool[np.ndarray, "rows cols"]) -> Int[np.ndarray, "seams cols"]:
    """Rows of the fewest seams that go through all `cells`, from north to south; they do not touch each other.

    Going east from one column with cells to the next, each cell is met by the seam that has to move least (a dynamic
    programme). Seams move one after the other, in columns between, so that few rows are bent in the same place.
    """
    rows, cols = cells.shape
    counts = cells.sum(axis=0)
    count = int(counts.max(initial=0))
    out = np.empty((count, cols), np.int64)
    if not count:
        return out
    at = ((np.arange(count) + 0.5) * rows / count).astype(np.int64)
    before = -1  # the last column with cells
    for col in np.flatnonzero(counts):
        aim = _make_room(*_aim(at, np.flatnonzero(cells[:, col]), rows), rows)
        north, south = np.flatnonzero(aim < at), np.flatnonzero(aim > at)[::-1]
        movers = [*north, *south]  # the outermost first: no seam meets another on its way
        filled = before + 1
        for n, seam in enumerate(movers, start=1):
            turn = min(before + 1 + n * (col - before) // (len(movers) + 1), col) if before >= 0 else 0
            out[:, filled:turn] = at[:, None]
            at = np.where(np.arange(count) == seam, aim, at)
            filled = max(filled, turn)
        out[:, filled : col + 1] = at[:, None]
        before = int(col)
    out[:, before:] = at[:, None]
    return out


def _aim(
    at: Int[np.ndarray, " seams"], cells: Int[np.ndarray, " cells"], rows: int
) -> tuple[Int[np.ndarray, " seams"], Bool[np.ndarray, " seams"]]:
    """Where the seams go so that every cell has one, in order, with the least movement; and which of them meet a cell.

    least[i, k]: least movement of the seams of cells 0 to i if seam k meets cell i. Seams between two that meet cells need room there.
    """
    least = np.full((cells.size, at.size), np.inf)
    origin = np.zeros(least.shape, np.int64)
    for i, cell in enumerate(cells):
        for k in range(i, min(at.size, cell + 1)):
            if i == 0:
                before = 0.0
            else:
                first = max(k - int(cell - cells[i - 1]), 0)
                if first >= k:
                    continue
                origin[i, k] = first + int(least[i - 1, first:k].argmin())
                before = least[i - 1, origin[i, k]]
            least[i, k] = before + abs(int(cell) - int(at[k]))
    fits = at.size - 1 - np.arange(at.size) <= rows - 1 - cells[-1]  # those further south need room, too
    k = int(np.where(fits, least[-1], np.inf).argmin())
    aim, meets = at.copy(), np.zeros(at.size, bool)
    for i in range(cells.size - 1, -1, -1):
        aim[k], meets[k] = cells[i], True
        k = int(origin[i, k])
    return aim, meets


def _make_room(aim: Int[np.ndarray, " seams"], meets: Bool[np.ndarray, " seams"], rows: int) -> Int[np.ndarray, " seams"]:
    """Seams that meet no cell give way to those that do, and stay on the grid."""
    aim, order = aim.copy(), np.arange(aim.size)
    aim[~meets] = np.clip(aim[~meets], order[~meets], rows - aim.size + order[~meets])
    for k in range(aim.size - 2, -1, -1):
        if not meets[k]:
            aim[k] = min(aim[k], aim[k + 1] - 1)
    for k in range(1, aim.size):
        if not meets[k]:
            aim[k] = max(aim[k], aim[k - 1] + 1)
    return aim


def rest(seams: Int[np.ndarray, "seams cols"], rows: int) -> Int[np.ndarray, "rest cols"]:
    """Physical rows, north to south, of what the seams leave in each column."""
    count, cols = seams.shape
    left = np.ones((rows, cols), bool)
    left[seams, np.arange(cols)] = False
    return np.nonzero(left.T)[1].reshape(cols, rows - count).T
