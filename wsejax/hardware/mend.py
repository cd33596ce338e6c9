"""Local repair of an embedding: logical PEs change places until no logical link is longer than wanted."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from .defects import DefectMap
from .routes import live_links

Place = tuple[int, int]
_TOO_LONG = 1000  # cost of a hop beyond the limit, in hops
_STALLED = 400  # changes tried since there were last as few links that are too long: then some cannot be mended
_WORSE = 0.3  # share of changes that are made although they cost more: the way out of a local minimum


class Mender:
    """Logical PEs at `row`, `col` on the physical grid; `mend` moves some of them. The arrays are changed in place.

    A change moves a logical PE by at most three hops; whoever had its new place moves on, to an idle PE after at most three moves, or
    takes the place that became free. Changes are those of min-conflicts search (Minton et al., Artificial Intelligence 1992): for a
    link that is too long, the best of them, or with some chance one that makes things worse.
    """

    def __init__(self, defects: DefectMap, row: Int[np.ndarray, "R C"], col: Int[np.ndarray, "R C"], max_hops: int) -> None:
        self.row, self.col, self.max_hops = row, col, max_hops
        self.rows, self.cols = row.shape
        self._east, self._south = live_links(defects)
        self._tenant = np.full(defects.shape, -1, np.int64)
        self._tenant[row, col] = np.arange(row.size).reshape(row.shape)
        self._near: dict[Place, dict[Place, int]] = {}
        self._random = random.Random(0)

    def mend(
        self, east: Bool[np.ndarray, "R C-1"], south: Bool[np.ndarray, "R-1 C"]
    ) -> tuple[Bool[np.ndarray, "R C-1"], Bool[np.ndarray, "R-1 C"]]:
        """The links that are still too long, given those that were."""
        number = np.arange(self.row.size).reshape(self.row.shape)
        bad = {(int(a), int(a) + 1) for a in number[:, :-1][east]} | {(int(a), int(a) + self.cols) for a in number[:-1][south]}
        queue, least, tried = sorted(bad), len(bad), 0
        while queue and tried < _STALLED:
            at = self._random.randrange(len(queue))
            link = queue[at]
            if self._hops(*map(self._place, link)) <= self.max_hops:
                bad.discard(link)
                queue[at] = queue[-1]
                queue.pop()
                if len(queue) < least:
                    least, tried = len(queue), 0
                continue
            tried += 1
            changes = [change for pe in link for change in self._changes(pe)]
            if not changes:
                continue
            costs = [self._cost(change) + self._random.random() / 2 for change in changes]
            best = min(range(len(costs)), key=costs.__getitem__)
            if costs[best] < 0 or self._random.random() < _WORSE:
                self._move(changes[best])
                touched = {(min(pe, other), max(pe, other)) for pe in changes[best] for other in self._neighbours(pe)}
                worse = [link for link in sorted(touched - bad) if self._hops(*map(self._place, link)) > self.max_hops]
                bad.update(worse)
                queue += worse
        east, south = np.zeros_like(east), np.zeros_like(south)
        for a, b in queue:
            if self._hops(self._place(a), self._place(b)) > self.max_hops:
                (east if b == a + 1 and self.cols > 1 else south)[divmod(a, self.cols)] = True
        return east, south

    def _place(self, pe: int) -> Place:
        r, c = divmod(pe, self.cols)
        return int(self.row[r, c]), int(self.col[r, c])

    def _neighbours(self, pe: int) -> Iterator[int]:
        r, c = divmod(pe, self.cols)
        if r:
            yield pe - self.cols
        if r < self.rows - 1:
            yield pe + self.cols
        if c:
            yield pe - 1
        if c < self.cols - 1:
            yield pe + 1

    def _reached(self, start: Place) -> dict[Place, int]:
        """Hops to every PE that is not much further than the limit, nearest first."""
        if start not in self._near:
            hops, front = {start: 0}, [start]
            for step in range(1, self.max_hops + 5):
                ahead = []
                for row, col in front:
                    for place, live in (
                        ((row, col + 1), self._east[row, col]),
                        ((row, col - 1), col > 0 and self._east[row, col - 1]),
                        ((row + 1, col), self._south[row, col]),
                        ((row - 1, col), row > 0 and self._south[row - 1, col]),
                    ):
                        if live and place not in hops:
                            hops[place] = step
                            ahead.append(place)
                front = ahead
            self._near[start] = hops
        return self._near[start]

    def _hops(self, start: Place, end: Place) -> int:
        return self._reached(start).get(end, self.max_hops + 8)

    def _changes(self, pe: int) -> Iterator[dict[int, Place]]:
        here = self._place(pe)
        yield from self._chains(pe, 3, 3, {}, {here})
        for place, hops in self._reached(here).items():  # two change places
            tenant = int(self._tenant[place])
            if 0 < hops <= 5 and tenant >= 0:
                yield {pe: place, tenant: here}

    def _chains(self, pe: int, moves: int, reach: int, so_far: dict[int, Place], taken: set[Place]) -> Iterator[dict[int, Place]]:
        for place, hops in self._reached(self._place(pe)).items():
            if hops > reach:
                return
            if place in taken:
                continue
            tenant = int(self._tenant[place])
            change = {**so_far, pe: place}
            if tenant < 0:
                yield change
            elif moves > 1 and tenant not in so_far:
                yield from self._chains(tenant, moves - 1, 2, change, taken | {place})

    def _cost(self, change: dict[int, Place]) -> int:
        """What the links of those that move cost afterwards, less what they cost now."""
        links = {(min(pe, other), max(pe, other)) for pe in change for other in self._neighbours(pe)}
        total = 0
        for a, b in links:
            now, then = (self._place(a), self._place(b)), (change.get(a) or self._place(a), change.get(b) or self._place(b))
            for sign, ends in ((1, then), (-1, now)):
                hops = self._hops(*ends)
                total += sign * (hops + _TOO_LONG * max(hops - self.max_hops, 0))
        return total

    def _move(self, change: dict[int, Place]) -> None:
        for pe in change:
            self._tenant[self._place(pe)] = -1
        for pe, place in change.items():
            r, c = divmod(pe, self.cols)
            self.row[r, c], self.col[r, c] = place
            self._tenant[place] = pe
