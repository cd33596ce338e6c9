"""An oracle for small wafers: is there any embedding of a mesh? Written from the definition, not from the code under test.

Exhaustive over all placements: distinct healthy PEs, and no more than `max_hops` hops over live links between those that are neighbours
in the mesh. Nothing else is asked, so straight rows, bent ones and those that wind about are all covered.
"""

from __future__ import annotations

import itertools

from tests.hardware.test_remap import hops_from
from wsejax.hardware import DefectMap

Place = tuple[int, int]


class Undecided(Exception):
    """The search was given up."""


def every_pe(defects: DefectMap) -> list[Place]:
    rows, cols = defects.shape
    return list(itertools.product(range(rows), range(cols)))


class Oracle:
    """What fits on one small wafer with links of at most `max_hops` hops; None: any number."""

    def __init__(self, defects: DefectMap, max_hops: int | None) -> None:
        self._hops = {pe: hops for pe in every_pe(defects) if (hops := hops_from(defects, pe))}
        self._max_hops = max_hops if max_hops is not None else len(self._hops)
        self.regions = {frozenset(hops) for hops in self._hops.values()}

    def embedding(self, rows: int, cols: int, most_steps: int = 20_000) -> dict[Place, Place] | None:
        """Logical to physical PEs, or None if there is no embedding.

        Raises Undecided after `most_steps` places were tried.
        """
        self._steps = most_steps
        found = (self._in_region(sorted(region), rows, cols) for region in self.regions if len(region) >= rows * cols)
        return next((placed for placed in found if placed), None)

    def _in_region(self, cells: list[Place], rows: int, cols: int) -> dict[Place, Place] | None:
        """Backtracking over domains, which are sets of cells kept as bits.

        It looks ahead in three ways: whoever is d logical links away lies within d * max_hops hops; every place needs one for each
        neighbour; and a matching must give all their own.
        """
        mesh = list(itertools.product(range(rows), range(cols)))
        bit = {cell: 1 << n for n, cell in enumerate(cells)}
        furthest = max(max(self._hops[cell].values()) for cell in cells)
        ball = [[sum(bit[b] for b in cells if self._hops[a][b] <= hops) for a in cells] for hops in range(furthest + 1)]
        reach = [ball[min(apart * self._max_hops, furthest)] for apart in range(rows + cols - 1)]
        links = [(p, q) for p, q in itertools.permutations(mesh, 2) if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1]
        corners = {(r, c) for r in (0, rows - 1) for c in (0, cols - 1)} - {(0, 0)}  # a mirror image is no other mesh

        def narrowed(domains: dict[Place, int], p: Place, cell: int) -> dict[Place, int] | None:
            out = {}
            for q, places in domains.items():
                if q == p:
                    out[q] = 1 << cell
                    continue
                places &= reach[abs(p[0] - q[0]) + abs(p[1] - q[1])][cell] & ~(1 << cell)
                if p == (0, 0) and q in corners:
                    places &= -1 << cell
                if not places:
                    return None
                out[q] = places
            return supported(out) if all_different(out) else None

        def supported(domains: dict[Place, int]) -> dict[Place, int] | None:
            changed = True
            while changed:
                changed = False
                for p, q in links:
                    places = domains[p]
                    around = 0
                    for cell in bits(domains[q]):
                        around |= reach[1][cell]
                        if not places & ~around:
                            break
                    else:
                        domains[p] = places & around
                        changed = True
                        if not domains[p]:
                            return None
            return domains

        def search(domains: dict[Place, int], placed: dict[Place, int]) -> dict[Place, int] | None:
            if len(placed) == len(mesh):
                return placed
            p = min((q for q in mesh if q not in placed), key=lambda q: (domains[q].bit_count(), sum(q)))
            for cell in bits(domains[p]):
                self._steps -= 1
                if self._steps < 0:
                    raise Undecided
                rest = narrowed(domains, p, cell)
                if rest and (done := search(rest, placed | {p: cell})):
                    return done
            return None

        done = search(dict.fromkeys(mesh, (1 << len(cells)) - 1), {})
        return None if done is None else {p: cells[cell] for p, cell in done.items()}


def all_different(domains: dict[Place, int]) -> bool:
    """Whether everyone can have a place of their own: augmenting paths, the most constrained first."""
    owner: dict[int, Place] = {}

    def give(p: Place, tried: set[int]) -> bool:
        for cell in bits(domains[p]):
            if cell not in tried:
                tried.add(cell)
                if cell not in owner or give(owner[cell], tried):
                    owner[cell] = p
                    return True
        return False

    return all(give(p, set()) for p in sorted(domains, key=lambda q: domains[q].bit_count()))


def bits(bits: int) -> list[int]:
    return [n for n in range(bits.bit_length()) if bits >> n & 1]
