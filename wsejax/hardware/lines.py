"""Logical rows that each lie in one line of PEs and skip some of it: which lines, and what each skips."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

_SWEEPS = 2  # of straightening; more change the mean dilation by less than 0.2% at 2% and 5% dead PEs
_FORBIDDEN = 1 << 40  # cost of a PE that cannot be used: above any sum of hops, and a sum of them fits in 64 bits
_BEYOND = 20  # cost of a shift beyond the limit, in hops


def bend(usable: Bool[np.ndarray, "rows cols"], rows: int, cols: int) -> tuple[Int[np.ndarray, "R C"], Int[np.ndarray, "R C"]]:
    """Place `rows` x `cols` logical PEs, a logical row in a physical row, with columns as straight as can be."""
    chosen = choose_lines(usable, rows, cols)
    usable = usable[chosen]
    straight = np.arange(cols) + (usable.shape[1] - cols) // 2  # spare columns on both sides take up shifts to either
    place = np.empty((rows, cols), np.int64)
    for r in range(rows):
        place[r] = nearest(usable[r], [place[r - 1] if r else straight])
    for sweep in range(_SWEEPS):
        changed = False
        for r in range(rows) if sweep % 2 else reversed(range(rows)):
            neighbours = [place[n] for n in (r - 1, r + 1) if 0 <= n < rows]
            better = nearest(usable[r], neighbours, place[r])
            changed |= not np.array_equal(better, place[r])
            place[r] = better
        if not changed:
            break
    return np.broadcast_to(chosen[:, None], place.shape), place


def choose_lines(usable: Bool[np.ndarray, "rows cols"], rows: int, cols: int) -> Int[np.ndarray, " R"]:
    """Of the rows with enough healthy PEs, the `rows` consecutive ones that are the least disturbed."""
    enough = np.flatnonzero(usable.sum(axis=1) >= cols)
    first = np.arange(enough.size - rows + 1)
    last = first + rows - 1
    left_out = enough[last] - enough[first] - (rows - 1)
    dead_before = np.append(0, np.cumsum((~usable[enough]).sum(axis=1)))
    dead = dead_before[last + 1] - dead_before[first]
    best = int(np.argmin(4 * left_out + dead))  # a row left out lengthens all links, a dead PE shifts about a quarter
    return enough[best : best + rows]


def nearest(
    usable: Bool[np.ndarray, " cols"],
    neighbours: list[Int[np.ndarray, " C"]],
    current: Int[np.ndarray, " C"] | None = None,
    limit: int | None = None,
) -> Int[np.ndarray, " C"]:
    """Increasing usable columns with the fewest hops to the neighbouring rows and between themselves.

    A column further than `limit` from a neighbour's costs much more, so that a shift is taken in small steps.

    Logical column c at physical column c + s has skipped s PEs, and s never falls. Let best[c, s] be the least cost of
    columns 0 to c with c at shift s: best[c, s] = cost[c, s] + min over s' <= s of best[c - 1, s']. For one s at a time
    this is a running minimum once the running sum of cost is taken off, so Python loops over shifts only.
    """
    if current is not None and (not neighbours or all(np.array_equal(current, other) for other in neighbours)):
        return current
    straight = neighbours[0]
    if current is None and usable[straight].all():
        return straight
    count = straight.size
    shifts = usable.size - count + 1
    column = np.arange(count) + np.arange(shifts)[:, None]
    cost = np.where(usable[column], 0, _FORBIDDEN)
    for other in neighbours:
        shift = np.abs(column - other)
        cost += shift if limit is None else shift + _BEYOND * np.maximum(shift - limit, 0)
    cost[:, -1] += np.arange(shifts)  # hops between neighbours in the row: last column less first,
    cost[:, 0] += np.arange(shifts)[::-1]  # with a constant added that keeps costs positive
    total = np.cumsum(cost, axis=1)
    before = np.full(count, np.iinfo(np.int64).max // 2)  # least best[c - 1, s'] over the shifts seen so far
    before[0] = 0
    origin = np.zeros((shifts, count), np.int64)  # the s' that attains it
    last = np.empty(shifts, np.int64)
    for s in range(shifts):
        ahead = np.minimum.accumulate(before - (total[s] - cost[s]))
        best = ahead + total[s]
        last[s] = best[-1]
        stays = best[:-1] <= before[1:]
        origin[s] = origin[s - 1] if s else 0
        origin[s, 1:][stays] = s
        np.minimum(before[1:], best[:-1], out=before[1:])
    shift = np.empty(count, np.int64)
    s = int(last.argmin())
    for c in range(count - 1, -1, -1):
        shift[c] = s
        s = int(origin[s, c])
    return np.arange(count) + shift
