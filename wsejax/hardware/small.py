"""Embeddings in regions of a few dozen PEs, by exhaustive search with a limit on its effort.

There lines waste much: a row is a sixth of a wafer of 6 x 6. Here any placement is allowed whose logical links are short enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Int

from .defects import DefectMap
from .routes import live_links

MOST_PES = 64  # of a region that is searched
_ROUNDS = ((0.0, 300), *[(3.0, 400)] * 80, (0.0, 10_000))  # for each size: noise, and how many places are tried
_STEPS = 100_000  # of all tries together: half a second
_FEW_HOPS = 5  # bounds below this are tried first: shorter links, and a smaller search

Placement = tuple[Int[np.ndarray, "R C"], Int[np.ndarray, "R C"]]


def place_anywhere(
    defects: DefectMap,
    regions: Int[np.ndarray, "rows cols"],
    sizes: Iterable[tuple[int, int]],
    max_hops: int | None,
    accept: Callable[[Placement], bool],
) -> Placement | None:
    """Rows and columns of the largest mesh that was found with no logical link longer than `max_hops`, and that is accepted.

    sizes: (rows, cols) of meshes, largest first.
    """
    counts = np.bincount(regions.ravel(), minlength=2)
    searches = [_Search(defects, regions == label) for label in range(1, counts.size) if counts[label] <= MOST_PES]
    wanted = [(size, search) for size in sizes for search in searches if size[0] * size[1] <= search.count]
    none: set[tuple] = set()  # tries that ended without a mesh although they were exhaustive
    steps, best = 0, None
    for seed, (noise, most_steps) in enumerate(_ROUNDS):
        for at, ((rows, cols), search) in enumerate(wanted):
            bound = search.count if max_hops is None else min(max_hops, search.count)
            for hops in [*range(1, min(bound, _FEW_HOPS)), bound]:
                key = (rows, cols, search, hops)
                if key in none or steps > _STEPS:
                    continue
                placed = search.place(rows, cols, hops, most_steps, noise, seed)
                steps += search.steps
                if placed and accept(placed):
                    best, wanted = placed, [(size, other) for size, other in wanted[:at] if size[0] * size[1] > rows * cols]
                    break
                if not placed and search.steps <= most_steps:
                    none.add(key)
            if len(wanted) <= at:
                break  # what is left is smaller
    return best


class _Search:
    """Depth first: the logical PE with the fewest places left is placed next, near its neighbours.

    What is d logical links away from it must lie within d * hops hops. A branch ends where fewer places are left than PEs without one.
    """

    def __init__(self, defects: DefectMap, region: Bool[np.ndarray, "rows cols"]) -> None:
        self._cells = np.argwhere(region)
        self.count = len(self._cells)
        number = {(int(row), int(col)): n for n, (row, col) in enumerate(self._cells)}
        ways: list[list[int]] = [[n] for n in range(self.count)]
        for links, (down, right) in zip(live_links(defects), ((0, 1), (1, 0)), strict=True):
            for (row, col), n in number.items():
                if links[row, col]:
                    other = number[row + down, col + right]
                    ways[n].append(other)
                    ways[other].append(n)
        balls = [[1 << n for n in range(self.count)]]  # [hops][cell]: the cells within these hops, as bits
        while len(balls) < 2 or balls[-1] != balls[-2]:
            balls.append([_union(balls[-1][n] for n in way) for way in ways])
        self._balls = balls
        self._hops = [[next(k for k, ball in enumerate(balls) if ball[a] >> b & 1) for b in range(self.count)] for a in range(self.count)]
        self.steps = 0

    def place(self, rows: int, cols: int, max_hops: int, most_steps: int, noise: float, seed: int) -> Placement | None:
        """None if there is no such placement, or (`steps` says so) if that many were not enough.

        noise: how much chance there is in the order in which places are taken, in hops. Tight meshes are found by many short searches.
        """
        chance = random.Random(seed)
        apart = [[abs(p // cols - q // cols) + abs(p % cols - q % cols) for q in range(rows * cols)] for p in range(rows * cols)]
        beside = [[q for q, d in enumerate(row) if d == 1] for row in apart]
        first = [chance.random() if noise else p // cols + p % cols for p in range(rows * cols)]  # of those with equally few places
        reach = [self._balls[min(d * max_hops, len(self._balls) - 1)] for d in range(rows + cols - 1)]
        placed: dict[int, int] = {}
        self.steps = 0

        def search(left: dict[int, int], free: int) -> bool:
            if not left:
                return True
            p = min(left, key=lambda q: (left[q].bit_count(), first[q]))
            near = [self._hops[placed[q]] for q in beside[p] if q in placed]
            ways = []
            for cell in _bits(left[p]):
                self.steps += 1
                others = free & ~(1 << cell)
                rest = {q: places & reach[apart[p][q]][cell] & others for q, places in left.items() if q != p}
                if all(rest.values()) and (open_ := _union(rest.values()).bit_count()) >= len(rest):
                    # few hops, no place cut off from those that are left, and no free places left around it
                    cost = sum(hops[cell] for hops in near) - 4 * open_ + (self._balls[1][cell] & others).bit_count()
                    ways.append((cost + noise * chance.random(), cell, rest, others))
            for _, cell, rest, others in sorted(ways, key=lambda way: way[:2]):
                if self.steps > most_steps:
                    return False
                placed[p] = cell
                if search(rest, others):
                    return True
                del placed[p]
            return False

        everywhere = (1 << self.count) - 1
        if not search(dict.fromkeys(range(rows * cols), everywhere), everywhere):
            return None
        row, col = self._cells[[placed[p] for p in range(rows * cols)]].T.reshape(2, rows, cols)
        return row, col


def _union(sets: Iterable[int]) -> int:
    out = 0
    for bits in sets:
        out |= bits
    return out


def _bits(bits: int) -> list[int]:
    out = []
    while bits:
        lowest = bits & -bits
        out.append(lowest.bit_length() - 1)
        bits ^= lowest
    return out
