"""Embeddings in which no logical link is longer than a bound.

Logical rows lie in lines that skip dead PEs, as in `lines`, with three differences. What no row can skip within the bound, seams take
out (`seams`). The rows are straightened with the true hops of every link, from tables of shortest routes, and a price on those that
are too long. What is left of these is mended one by one (`mend`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from .clear import clear_rectangle
from .defects import DefectMap
from .lines import choose_lines, nearest
from .mend import Mender
from .routes import hops_up_to
from .seams import rest, seams_through

_TOO_LONG = 4000  # price of a link beyond the bound, in hops: a row rather bends over its whole length
_DEAD = 10_000_000  # price of a dead PE: above that of many such links; the sum of a row fits in 32 bits
_LARGEST_STEP = 4  # columns a row skips at once, or lies beside its neighbour, in the tables; larger ones are priced as too long
_SEAM_ROUNDS = 4
_MOST_MENDED = 0.001  # share of links: with more that are too long the mesh is too wide, and mending would take minutes


@dataclasses.dataclass
class Lines:
    """The lines that are left beside the seams: where they are, what is usable, and the hops along them.

    along[g, i, c]: hops from PE c of line i to PE c + 1 + g, or a price.
    """

    physical_row: Int[np.ndarray, "lines cols"]
    usable: Bool[np.ndarray, "lines cols"]
    along: Int[np.ndarray, "skips lines cols"]


@dataclasses.dataclass
class Bent:
    """Logical PEs at `row`, `col`, which links between them are still too long, and how many of these mending was tried on in vain."""

    row: Int[np.ndarray, "R C"]
    col: Int[np.ndarray, "R C"]
    east: Bool[np.ndarray, "R C-1"]
    south: Bool[np.ndarray, "R-1 C"]
    in_vain: int

    def cropped(self, least: tuple[int, int]) -> Bent | None:
        """The largest part of it, of at least `least` rows and columns, in which no link is too long."""
        if not (self.east.any() or self.south.any()):
            return self
        east, south = np.zeros(self.row.shape, bool), np.zeros(self.row.shape, bool)
        east[:, :-1], south[:-1] = self.east, self.south
        placed = clear_rectangle(DefectMap(np.zeros_like(east), east, south), least, (self.row.shape[0], self.row.shape[1]))
        if placed is None:
            return None
        r, c = placed[0][:, 0], placed[1][0]
        part = np.ix_(r, c)
        return Bent(self.row[part], self.col[part], self.east[np.ix_(r, c[:-1])], self.south[np.ix_(r[:-1], c)], self.in_vain)


def clear_lines(defects: DefectMap, region: Bool[np.ndarray, "rows cols"], max_hops: int) -> Lines:
    """Take out by seams the dead PEs that no row can skip in `max_hops` hops."""
    rows = region.shape[0]
    cells = np.zeros_like(region)
    for last in [False] * (_SEAM_ROUNDS - 1) + [True]:
        physical_row = rest(seams_through(cells), rows)
        usable = np.take_along_axis(region, physical_row, 0)
        along = _along(defects, physical_row, usable, max_hops)
        skipped = np.zeros_like(usable)
        for step, hops in enumerate(along[1:], start=1):
            for back in range(1, step + 1):
                skipped[:, back:] |= hops[:, :-back] <= max_hops
        stuck = ~usable & ~skipped & (2 * usable.sum(axis=1, keepdims=True) > usable.shape[1])  # a poor line is left out whole
        stuck[:, [0, -1]] = False  # a row may start after a dead PE, or end before it
        line, col = np.nonzero(stuck)
        more = cells.copy()
        more[physical_row[line, col], col] = True
        if last or not line.size or more.sum(axis=0).max() > rows // 4:
            break
        cells = more
    return Lines(physical_row, usable, along)


def bend_within(defects: DefectMap, lines: Lines, rows: int, cols: int, max_hops: int, most_mended: int) -> Bent | None:
    """Place `rows` x `cols` logical PEs with no or few links of more than `max_hops` hops; None if that does not succeed.

    most_mended: links that are too long are mended if there are no more of them than this. Routes are crowded around them.
    """
    chosen = choose_lines(lines.usable, rows, cols)
    physical_row, usable, along = lines.physical_row[chosen], lines.usable[chosen], lines.along[:, chosen]
    across = _across(defects, physical_row, usable, max_hops)
    spare = usable.shape[1] - cols
    place = np.empty((rows, cols), np.int64)
    before = np.arange(cols) + np.linspace(0, spare, cols).round().astype(np.int64)
    for r in range(rows):
        before = place[r] = nearest(usable[r], [before], limit=max(max_hops - 3, 0))
    for parity in (0, 1):
        _straighten(place, np.arange(parity, rows, 2), usable, along, across)
    if not np.take_along_axis(usable, place, 1).all():
        return None
    east, south = _too_long(place, along, across, max_hops)
    bad = int(east.sum() + south.sum())
    row = np.take_along_axis(physical_row, place, 1)
    in_vain = 0
    if 0 < bad <= min(max(_MOST_MENDED * (east.size + south.size), 8), most_mended):
        east, south = Mender(defects, row, place, max_hops).mend(east, south)
        in_vain = bad if east.any() or south.any() else 0
    return Bent(row, place, east, south, in_vain)


def _along(defects: DefectMap, physical_row, usable, max_hops: int) -> Int[np.ndarray, "skips lines cols"]:
    steps = max(min(max_hops - 1, _LARGEST_STEP, usable.shape[1] - 2), 0)
    hops = np.full((steps + 1, *usable.shape), 2 * _TOO_LONG, np.int16)
    col = np.broadcast_to(np.arange(usable.shape[1]), usable.shape)
    for step in range(steps + 1):
        west, east = np.s_[:, : usable.shape[1] - 1 - step], np.s_[:, 1 + step :]
        both = usable[west] & usable[east]
        start, end = (np.stack([physical_row[part][both], col[part][both]]) for part in (west, east))
        hops[step][west][both] = _priced(hops_up_to(defects, start, end, max_hops))
    return hops


def _across(defects: DefectMap, physical_row, usable, max_hops: int) -> Int[np.ndarray, "shifts lines-1 cols"]:
    """Entry [o + reach, i, c]: hops from PE c of line i to PE c + o of line i + 1, or a price."""
    cols = usable.shape[1]
    reach = min(max_hops, _LARGEST_STEP, cols - 1)
    hops = np.full((2 * reach + 1, usable.shape[0] - 1, cols), 2 * _TOO_LONG, np.int16)
    col = np.broadcast_to(np.arange(cols), usable.shape)
    for shift in range(-reach, reach + 1):
        west, east = max(0, -shift), min(cols, cols - shift)
        upper, lower = np.s_[:-1, west:east], np.s_[1:, west + shift : east + shift]
        both = usable[upper] & usable[lower]
        start, end = (np.stack([physical_row[part][both], col[part][both]]) for part in (upper, lower))
        hops[shift + reach][:, west:east][both] = _priced(hops_up_to(defects, start, end, max_hops))
    return hops


def _priced(hops: Int[np.ndarray, " links"]) -> Int[np.ndarray, " links"]:
    return np.where(hops < 0, _TOO_LONG, hops)


def _across_price(across, line, col, shift) -> Int[np.ndarray, "..."]:
    reach = across.shape[0] // 2
    far = np.abs(shift) > reach
    return np.where(far, 2 * _TOO_LONG + 20 * np.abs(shift), across[np.clip(shift, -reach, reach) + reach, line, col])


def _straighten(place: Int[np.ndarray, "R C"], lines: Int[np.ndarray, " some"], usable, along, across) -> None:
    """Place `lines`, no two of them neighbours, at the least price, all at once; the other lines stay where they are.

    The dynamic programme of `lines.nearest` with the price of every step: state s of logical column c is physical column c + s.
    """
    if not lines.size:
        return
    rows, cols = place.shape
    shifts, some = np.arange(usable.shape[1] - cols + 1), np.arange(lines.size)
    line = lines[:, None]
    upper, lower = np.maximum(lines - 1, 0), np.minimum(lines + 1, rows - 1)
    has_upper, has_lower = (lines > 0)[:, None], (lines < rows - 1)[:, None]
    skipped = np.zeros((cols, lines.size, shifts.size), np.int8)
    best = np.zeros((lines.size, shifts.size), np.int32)
    for c in range(cols):
        col = c + shifts[None, :]
        price = np.where(usable[line, col], 0, _DEAD).astype(np.int32)
        if rows > 1:
            at = place[upper, c][:, None]
            price += np.where(has_upper, _across_price(across, np.minimum(upper, rows - 2)[:, None], at, col - at), 0)
            at = place[lower, c][:, None]
            price += np.where(has_lower, _across_price(across, np.minimum(line, rows - 2), col, at - col), 0)
        if c:
            ahead = best + along[0][line, col - 1]
            for skip in range(1, min(along.shape[0], shifts.size)):
                by_skip = best[:, :-skip] + along[skip][line, col[:, skip:] - 1 - skip]
                better = by_skip < ahead[:, skip:]
                skipped[c][:, skip:][better] = skip
                ahead[:, skip:][better] = by_skip[better]
            price += ahead
        best = price
    shift = best.argmin(axis=1)
    for c in range(cols - 1, -1, -1):
        place[lines, c] = c + shift
        shift = shift - skipped[c, some, shift]


def _too_long(place, along, across, max_hops: int) -> tuple[Bool[np.ndarray, "R C-1"], Bool[np.ndarray, "R-1 C"]]:
    line = np.arange(place.shape[0])[:, None]
    skip = np.diff(place, axis=1) - 1
    known = skip < along.shape[0]
    east = ~known | (along[np.where(known, skip, 0), line, place[:, :-1]] > max_hops)
    south = _across_price(across, line[:-1], place[:-1], np.diff(place, axis=0)) > max_hops
    return east, south
