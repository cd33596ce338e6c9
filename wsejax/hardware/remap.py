"""Embed a perfect logical mesh into the healthy part of a wafer.

Every logical row lies in one physical row and skips what is dead there (or, turned by a quarter, every logical column
in one physical column). Rows with too few healthy PEs are dropped whole. This is the row bypass and column rerouting of
degradable arrays (Kuo and Chen, IEEE TCAD 1992; Low, IEEE Trans. Computers 2000). Among embeddings of this kind the
mesh has the largest possible area; its columns are then straightened, by a dynamic programme a row.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int

from .defects import DefectMap
from .routes import connected_regions, shortest_hops
from .spec import WaferSpec

_SWEEPS = 2  # of straightening; more change the mean dilation by less than 0.2% at 2% and 5% dead PEs
_FORBIDDEN = 1 << 40  # cost of a PE that cannot be used: above any sum of hops, and a sum of them fits in 64 bits


class UnusableWaferError(ValueError):
    """The defects leave no mesh of the wanted size. `rows` x `cols` is the largest mesh that is left, 0 x 0 if none."""

    def __init__(self, message: str, rows: int, cols: int) -> None:
        super().__init__(message)
        self.rows = rows
        self.cols = cols


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """A logical mesh of R x C PEs on the physical grid. The arrays are read-only.

    Attributes:
      physical_row, physical_col: where logical PE (r, c) lies. Rows increase strictly along each logical column, and
        columns along each logical row; all PEs are healthy and reach each other.
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


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A mesh that fits: its size, the region it lies in, and whether logical rows lie in physical columns."""

    rows: int
    cols: int
    region: int
    turned: bool

    @property
    def area(self) -> int:
        return self.rows * self.cols


@functools.lru_cache(maxsize=32)
def remap(spec: WaferSpec, defects: DefectMap, min_rows: int = 1, min_cols: int = 1) -> Remap:
    """The largest logical mesh of at least `min_rows` x `min_cols`, and at most the usable grid of `spec`.

    PEs that defects cut off from the rest are left out: a mesh lies in one connected region.

    Raises:
      ValueError: `min_rows` or `min_cols` is not positive, or `defects` is a map of another wafer's shape.
      UnusableWaferError: (a ValueError) no such mesh is left; it carries the size of the largest one.
    """
    if defects.shape != (spec.rows, spec.cols):
        raise ValueError(f"defects={defects!r}: {spec.name} has {spec.rows} x {spec.cols} PEs; make the map for this spec")
    for name, least in (("min_rows", min_rows), ("min_cols", min_cols)):
        if least < 1:
            raise ValueError(f"{name}={least!r}: a mesh has at least 1; leave {name} out")
    regions = connected_regions(defects)
    choices = _largest(spec, regions, min_rows, min_cols)
    if not choices:
        left = _largest(spec, regions, 1, 1)
        rows, cols = (left[0].rows, left[0].cols) if left else (0, 0)
        raise UnusableWaferError(
            f"defects={defects!r}: no mesh of {min_rows} x {min_cols} logical PEs is left on {spec.name}; the largest "
            f"has {rows} rows and {cols} cols. Use a map with fewer defects, or a larger wafer",
            rows,
            cols,
        )
    best = _embed(defects, regions, choices[0])
    for choice in choices[1:]:
        if best.max_dilation == 1:
            break
        best = min(best, _embed(defects, regions, choice), key=lambda embedding: embedding.mean_dilation)
    return best


def _largest(spec: WaferSpec, regions: Int[np.ndarray, "rows cols"], min_rows: int, min_cols: int) -> list[_Choice]:
    """All the ways to reach the largest area: at most one a region and orientation."""
    best: list[_Choice] = []
    sizes = np.bincount(regions.ravel())[1:]
    for region, (size, window) in enumerate(zip(sizes, scipy.ndimage.find_objects(regions), strict=True), start=1):
        if size < max(min_rows * min_cols, best[0].area if best else 1):
            break  # regions come largest first
        inside = regions[window] == region
        for turned in (False, True):
            limits = (spec.usable_rows, spec.usable_cols, min_rows, min_cols)
            if turned:
                limits = (spec.usable_cols, spec.usable_rows, min_cols, min_rows)
            most_rows, most_cols, least_rows, least_cols = limits
            # the n rows richest in healthy PEs carry a mesh as wide as the poorest of them
            widths = -np.sort(-inside.sum(axis=0 if turned else 1))
            rows = np.minimum(np.arange(1, widths.size + 1), most_rows)
            cols = np.minimum(widths, most_cols)
            area = np.where((rows >= least_rows) & (cols >= least_cols), rows * cols, 0)
            n = int(area.argmax())
            if area[n] == 0 or (best and area[n] < best[0].area):
                continue
            size_of_mesh = (int(cols[n]), int(rows[n])) if turned else (int(rows[n]), int(cols[n]))
            choice = _Choice(*size_of_mesh, region, turned)
            best = [*best, choice] if best and choice.area == best[0].area else [choice]
    return best


def _embed(defects: DefectMap, regions: Int[np.ndarray, "rows cols"], choice: _Choice) -> Remap:
    inside = regions == choice.region
    if choice.turned:
        physical_col, physical_row = (part.T for part in _bend(inside.T, choice.cols, choice.rows))
    else:
        physical_row, physical_col = _bend(inside, choice.rows, choice.cols)
    place = np.stack([physical_row, physical_col])
    return Remap(
        physical_row,
        physical_col,
        shortest_hops(defects, place[:, :, :-1], place[:, :, 1:]),
        shortest_hops(defects, place[:, :-1], place[:, 1:]),
    )


def _bend(usable: Bool[np.ndarray, "rows cols"], rows: int, cols: int) -> tuple[Int[np.ndarray, "R C"], Int[np.ndarray, "R C"]]:
    """Place `rows` x `cols` logical PEs, a logical row in a physical row, with columns as straight as can be."""
    chosen = _choose_rows(usable, rows, cols)
    usable = usable[chosen]
    straight = np.arange(cols) + (usable.shape[1] - cols) // 2  # spare columns on both sides take up shifts to either
    place = np.empty((rows, cols), np.int64)
    for r in range(rows):
        place[r] = _nearest(usable[r], [place[r - 1] if r else straight])
    for sweep in range(_SWEEPS):
        changed = False
        for r in range(rows) if sweep % 2 else reversed(range(rows)):
            neighbours = [place[n] for n in (r - 1, r + 1) if 0 <= n < rows]
            better = _nearest(usable[r], neighbours, place[r])
            changed |= not np.array_equal(better, place[r])
            place[r] = better
        if not changed:
            break
    return np.broadcast_to(chosen[:, None], place.shape), place


def _choose_rows(usable: Bool[np.ndarray, "rows cols"], rows: int, cols: int) -> Int[np.ndarray, " R"]:
    """Of the rows with enough healthy PEs, the `rows` consecutive ones that are the least disturbed."""
    enough = np.flatnonzero(usable.sum(axis=1) >= cols)
    first = np.arange(enough.size - rows + 1)
    last = first + rows - 1
    left_out = enough[last] - enough[first] - (rows - 1)
    dead_before = np.append(0, np.cumsum((~usable[enough]).sum(axis=1)))
    dead = dead_before[last + 1] - dead_before[first]
    best = int(np.argmin(4 * left_out + dead))  # a row left out lengthens all links, a dead PE shifts about a quarter
    return enough[best : best + rows]


def _nearest(
    usable: Bool[np.ndarray, " cols"],
    neighbours: list[Int[np.ndarray, " C"]],
    current: Int[np.ndarray, " C"] | None = None,
) -> Int[np.ndarray, " C"]:
    """Increasing usable columns with the fewest hops to the neighbouring rows and between themselves.

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
        cost += np.abs(column - other)
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
