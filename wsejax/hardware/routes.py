"""Routes over the healthy part of the physical grid: what is connected, and how many hops apart."""

from __future__ import annotations

import functools

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int
from numpy.lib.stride_tricks import sliding_window_view

from .defects import DefectMap

_WINDOW_CELLS = 1 << 22  # cells searched at once: keeps the search's arrays within some tens of megabytes


def live_links(defects: DefectMap) -> tuple[Bool[np.ndarray, "rows cols"], Bool[np.ndarray, "rows cols"]]:
    """Links that carry traffic, east and south of each PE: the link and the PEs at both its ends are alive."""
    alive = ~defects.dead_pes
    east, south = np.zeros_like(alive), np.zeros_like(alive)
    east[:, :-1] = alive[:, :-1] & alive[:, 1:] & ~defects.dead_east_links[:, :-1]
    south[:-1] = alive[:-1] & alive[1:] & ~defects.dead_south_links[:-1]
    return east, south


def connected_regions(defects: DefectMap) -> Int[np.ndarray, "rows cols"]:
    """Label healthy PEs that reach each other with the same number, 1 for the largest region; dead PEs get 0."""
    rows, cols = defects.shape
    number = np.arange(rows * cols).reshape(rows, cols)
    east, south = live_links(defects)
    ends = np.concatenate(
        [
            np.stack([number[:, :-1][east[:, :-1]], number[:, 1:][east[:, :-1]]]),
            np.stack([number[:-1][south[:-1]], number[1:][south[:-1]]]),
        ],
        axis=1,
    )
    graph = scipy.sparse.coo_array((np.ones(ends.shape[1], bool), tuple(ends)), shape=(rows * cols,) * 2)
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    alive = ~defects.dead_pes.ravel()
    size = np.bincount(label[alive], minlength=count)
    rank = np.empty(count, np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(1, count + 1)
    return np.where(alive, rank[label], 0).reshape(rows, cols)


def shortest_hops(defects: DefectMap, start: Int[np.ndarray, "2 ..."], end: Int[np.ndarray, "2 ..."]) -> Int[np.ndarray, "..."]:
    """Hops of a shortest route over healthy PEs and live links, for each pair of PEs `start` (row, col) and `end`.

    -1 where there is no route, from or to a dead PE for example. The routes are independent: several may share a link.
    """
    start, end = np.asarray(start), np.asarray(end)
    shape = start.shape[1:]
    start, end = start.reshape(2, -1), end.reshape(2, -1)
    hops = np.abs(end - start).sum(axis=0)
    dead = defects.dead_pes[tuple(start)] | defects.dead_pes[tuple(end)]
    hops[dead] = -1
    pending = np.flatnonzero(~dead & ~_has_route_of_one_turn(defects, start, end))
    margin = 1
    while pending.size:
        found = _search(defects, start[:, pending], end[:, pending], margin)
        hops[pending] = found
        pending = pending[found < 0]
        if margin >= max(defects.shape):
            break  # the windows held the whole grid: what is still pending is unreachable
        margin *= 3
    return hops.reshape(shape)


def hops_up_to(
    defects: DefectMap, start: Int[np.ndarray, "2 links"], end: Int[np.ndarray, "2 links"], limit: int
) -> Int[np.ndarray, " links"]:
    """As `shortest_hops` between healthy PEs, but -1 for what takes more than `limit` hops, which makes it much faster."""
    hops = np.abs(end - start).sum(axis=0)
    around = np.flatnonzero((hops <= limit) & ~_has_route_of_one_turn(defects, start, end))
    least = hops[around]
    hops[hops > limit] = -1
    margin = 1
    while around.size:
        found = _search(defects, start[:, around], end[:, around], margin)
        hops[around] = np.where(found <= limit, found, -1)
        margin += 1  # a longer route than those found so far has at least two hops more on every side of the window
        more = (found < 0) & (least + 2 * margin <= limit)
        around, least = around[more], least[more]
    return hops


@functools.lru_cache(maxsize=4)
def _broken_before(defects: DefectMap) -> tuple[Int[np.ndarray, " pes"], Int[np.ndarray, " pes"]]:
    """Links that carry nothing, in the row west of each PE, and in the column north of it."""
    east, south = live_links(defects)
    west_of = np.cumsum(~east, axis=1, dtype=np.int32) - ~east
    north_of = np.cumsum(~south, axis=0, dtype=np.int32) - ~south
    return west_of.ravel(), north_of.ravel()


def _has_route_of_one_turn(
    defects: DefectMap, start: Int[np.ndarray, "2 links"], end: Int[np.ndarray, "2 links"]
) -> Bool[np.ndarray, " links"]:
    """Whether a straight or L-shaped route between healthy PEs is clear, told from counts of broken links."""
    west_of, north_of = _broken_before(defects)
    cols = defects.shape[1]

    def clear(start, end) -> np.ndarray:
        """Along the row of the start, then along the column of the end."""
        first, corner, last = start[0] * cols + start[1], start[0] * cols + end[1], end[0] * cols + end[1]
        straight = west_of.take(first) == west_of.take(corner)
        return straight & (north_of.take(corner) == north_of.take(last))

    out = clear(start, end)
    rest = np.flatnonzero(~out)
    out[rest] = clear(end[:, rest], start[:, rest])
    return out


def _search(
    defects: DefectMap, start: Int[np.ndarray, "2 links"], end: Int[np.ndarray, "2 links"], margin: int
) -> Int[np.ndarray, " links"]:
    """Breadth-first search of all pairs at once, each in its bounding box plus `margin` PEs on every side.

    A route that leaves the window is at least 2 (margin + 1) longer than the Manhattan distance, so a route found
    inside within that length is a shortest one. Anything longer is reported as -1.
    """
    east, south = (np.pad(links, margin) for links in live_links(defects))
    span = np.abs(end - start)
    hops = np.full(span.shape[1], -1, span.dtype)
    whole_grid = margin >= max(defects.shape)
    for height, width in np.unique(span, axis=1).T:
        same = np.flatnonzero((span[0] == height) & (span[1] == width))
        box = (int(height) + 1 + 2 * margin, int(width) + 1 + 2 * margin)
        longest = box[0] * box[1] if whole_grid else int(height + width) + 2 * margin + 2
        chunk = max(1, _WINDOW_CELLS // (box[0] * box[1]))
        for at in range(0, same.size, chunk):
            some = same[at : at + chunk]
            corner = np.minimum(start[:, some], end[:, some])  # of the window, in the padded grid
            open_east = sliding_window_view(east, box)[corner[0], corner[1]]
            open_south = sliding_window_view(south, box)[corner[0], corner[1]]
            hops[some] = _flood(open_east, open_south, start[:, some] - corner + margin, end[:, some] - corner + margin, longest)
    return hops


def _flood(
    open_east: Bool[np.ndarray, "links h w"],
    open_south: Bool[np.ndarray, "links h w"],
    start: Int[np.ndarray, "2 links"],
    end: Int[np.ndarray, "2 links"],
    longest: int,
) -> Int[np.ndarray, " links"]:
    link = np.arange(open_east.shape[0])
    reached = np.zeros(open_east.shape, bool)
    reached[link, start[0], start[1]] = True
    hops = np.where((start == end).all(axis=0), 0, -1)
    for step in range(1, longest + 1):
        before = reached
        reached = before.copy()
        reached[:, :, 1:] |= before[:, :, :-1] & open_east[:, :, :-1]
        reached[:, :, :-1] |= before[:, :, 1:] & open_east[:, :, :-1]
        reached[:, 1:] |= before[:, :-1] & open_south[:, :-1]
        reached[:, :-1] |= before[:, 1:] & open_south[:, :-1]
        hops[(hops < 0) & reached[link, end[0], end[1]]] = step
        if (hops >= 0).all() or (reached == before).all():
            break
    return hops
