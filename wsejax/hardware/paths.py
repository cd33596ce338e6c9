"""Static routes of the logical links: which physical links each takes, how many share one, and why they cannot deadlock.

Deadlock freedom, after Dally and Seitz (IEEE Trans. Computers 1987): no cycle of channels in which a message holds one and waits for the
next. The links of each logical direction have a colour of their own, so a cycle would lie among routes of one direction. Routes that
never step back towards where they come from cannot close one: along a cycle of eastward routes no channel leads west, so none may
lead east, and a cycle of channels north and south within one column would have to turn round in a PE. The few routes that do step
back get a further colour if `colours` finds them in a cycle.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.sparse
from jaxtyping import Int

from .defects import DefectMap
from .embedding import Remap
from .routes import live_links

NORTH, EAST, SOUTH, WEST = range(4)
STEP = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # (row, col) of each direction
REVERSE = np.array([SOUTH, WEST, NORTH, EAST, -1], np.int8)  # of each direction, and of none
_BACK = {EAST: WEST, SOUTH: NORTH}
_CHUNK = 4096  # routes that are chosen at once, from the loads that those before them left


@dataclasses.dataclass(frozen=True, eq=False)
class Routes:
    """A shortest route for every logical link, taken both ways.

    Attributes:
      mesh: whose routes these are.
      east: steps (NORTH, EAST, SOUTH, WEST, -1 after the last) from logical PE (r, c) to (r, c + 1).
      south: the same from (r, c) to (r + 1, c).
      east_load, south_load: logical links that use the physical link east and south of each PE, in each of its directions.
    """

    mesh: Remap
    east: Int[np.ndarray, "R C-1 H"]
    south: Int[np.ndarray, "R-1 C H"]
    east_load: Int[np.ndarray, "rows cols"]
    south_load: Int[np.ndarray, "rows cols"]

    @property
    def congestion(self) -> int:
        """The most logical links that share a physical link in one direction."""
        return max(int(self.east_load.max(initial=0)), int(self.south_load.max(initial=0)))

    @functools.cached_property
    def colours(self) -> int:
        """Colours that keep the routes free of deadlock: one for each logical direction, and more for those that step back in a cycle."""
        place = np.stack([self.mesh.physical_row, self.mesh.physical_col]).astype(np.int64)
        ways = ((place[:, :, :-1], self.east), (place[:, :-1], self.south))
        shape = self.east_load.shape
        return 2 * sum(_colours(shape, start.reshape(2, -1), steps.reshape(-1, steps.shape[-1])) for start, steps in ways)


def static_routes(defects: DefectMap, mesh: Remap) -> Routes:
    """Choose routes: of those that are shortest, first those that do not step back, then those over the links that are used least."""
    loads = np.zeros((2, *defects.shape), np.int64)  # of the links east and south of a PE
    place = np.stack([mesh.physical_row, mesh.physical_col]).astype(np.int64)
    ends = {
        EAST: (place[:, :, :-1].reshape(2, -1), place[:, :, 1:].reshape(2, -1), mesh.east_hops.ravel()),
        SOUTH: (place[:, :-1].reshape(2, -1), place[:, 1:].reshape(2, -1), mesh.south_hops.ravel()),
    }
    steps = {way: np.full((hops.size, max(int(hops.max(initial=1)), 1)), -1, np.int8) for way, (_, _, hops) in ends.items()}
    open_links = np.stack(live_links(defects))
    for way, (start, end, hops) in ends.items():  # links between neighbours have no choice
        near = hops == 1
        steps[way][near, 0] = _one_turn(start[:, near], end[:, near], 0, 1)[:, 0]
        row, col = np.minimum(start[:, near], end[:, near])
        np.add.at(loads, ((start[0] != end[0])[near].astype(np.int64), row, col), 1)
    for way, (start, end, hops) in ends.items():
        far = np.flatnonzero(hops > 1)
        for at in range(0, far.size, _CHUNK):
            _choose(steps[way], far[at : at + _CHUNK], start, end, hops, way, open_links, loads)
    _spread(steps, ends, open_links, loads)
    east, south = (steps[way].reshape(*hops.shape, steps[way].shape[1]) for way, hops in ((EAST, mesh.east_hops), (SOUTH, mesh.south_hops)))
    return Routes(mesh, east, south, loads[0], loads[1])


def channels(start: Int[np.ndarray, "2 links"], steps: Int[np.ndarray, "links H"]) -> Int[np.ndarray, "links H 3"]:
    """(row, col, direction) of the channel that each step takes out of a PE; the row of a step that is not taken is -1."""
    taken = steps >= 0
    moved = np.where(taken[..., None], STEP[np.maximum(steps, 0)], 0)
    at = start.T[:, None] + np.cumsum(moved, axis=1) - moved
    return np.concatenate([np.where(taken[..., None], at, -1), steps[..., None]], axis=-1)


def _links(start, steps) -> tuple[Int[np.ndarray, "links H"], Int[np.ndarray, "links H"], Int[np.ndarray, "links H"]]:
    """(0 for a link to the east and 1 for one to the south, its row, its column) of each step; 0, -1, -1 where none is taken."""
    out = channels(start, steps)
    row = out[..., 0] - (out[..., 2] == NORTH)
    col = out[..., 1] - (out[..., 2] == WEST)
    none = out[..., 2] < 0
    upright = (out[..., 2] == NORTH) | (out[..., 2] == SOUTH)
    return np.where(none, 0, upright), np.where(none, -1, row), np.where(none, -1, col)


def _choose(steps, chosen, start, end, hops, way, open_links, loads) -> None:
    """Fill in `steps[chosen]` and add them to `loads`."""
    a, b = start[:, chosen], end[:, chosen]
    turns = [_one_turn(a, b, first, steps.shape[1]) for first in (0, 1)]
    cost = np.full((2, chosen.size), np.inf)
    back = _BACK[way]
    for n, candidate in enumerate(turns):
        which, row, col = _links(a, candidate)
        taken = candidate >= 0
        clear = np.where(taken, open_links[which, row, col], True).all(axis=1) & (taken.sum(axis=1) == hops[chosen])
        load = np.where(taken, loads[which, row, col], 0).max(axis=1, initial=0)
        cost[n] = np.where(clear, load + 1000 * (candidate == back).any(axis=1), np.inf)
    best = cost.argmin(axis=0)
    found = np.where(best[:, None] == 0, *turns)
    for n in np.flatnonzero(np.isinf(cost.min(axis=0))):
        found[n] = _search(tuple(a[:, n]), tuple(b[:, n]), int(hops[chosen[n]]), way, open_links, loads, steps.shape[1])
    steps[chosen] = found
    which, row, col = _links(a, found)
    np.add.at(loads, (which[found >= 0], row[found >= 0], col[found >= 0]), 1)


def _spread(steps, ends, open_links, loads) -> None:
    """Take the busiest links and choose one of the routes over each anew, until there is a link for which that does not help."""
    size, cols = loads[0].size, loads.shape[2]
    while (worst := int(loads.max(initial=0))) > 1:
        over: dict[int, list[tuple[int, int]]] = {int(link): [] for link in np.flatnonzero(loads.ravel() == worst)}
        for way, (start, _, hops) in ends.items():
            far = np.flatnonzero(hops > 1)
            which, row, col = _links(start[:, far], steps[way][far])
            taken = steps[way][far] >= 0
            link = which * size + row * cols + col
            busy = taken & (loads.ravel()[np.where(taken, link, 0)] == worst)
            for i, k in np.argwhere(busy):
                over[int(link[i, k])].append((way, int(far[i])))
        for link, routes in over.items():
            if loads.ravel()[link] < worst:
                continue  # a route that was moved from another link has made room here, too
            if not any(_moved_away(steps[way], n, ends[way], way, open_links, loads, worst) for way, n in routes):
                return


def _moved_away(steps, n: int, ends, way: int, open_links, loads, worst: int) -> bool:
    """Choose route `n` anew, if there is one whose links all stay below `worst`."""
    start, end, hops = ends
    mine = tuple(part[0][steps[n] >= 0] for part in _links(start[:, n : n + 1], steps[n : n + 1]))
    np.add.at(loads, mine, -1)
    other = _search(tuple(start[:, n]), tuple(end[:, n]), int(hops[n]), way, open_links, loads, steps.shape[1])
    there = tuple(part[0][other >= 0] for part in _links(start[:, n : n + 1], other[None]))
    better = int(loads[there].max()) + 1 < worst
    if better:
        steps[n] = other
    np.add.at(loads, there if better else mine, 1)
    return better


def _one_turn(start, end, first: int, length: int) -> Int[np.ndarray, "links H"]:
    """Steps along dimension `first` (0: rows, 1: columns), then along the other; cut at `length`."""
    delta = end - start
    counts, signs = np.abs(delta), np.sign(delta)
    directions = np.stack([np.where(signs[0] > 0, SOUTH, NORTH), np.where(signs[1] > 0, EAST, WEST)])
    n = np.arange(length)[None, :]
    one, other = counts[first][:, None], counts[1 - first][:, None]
    out = np.where(n < one, directions[first][:, None], directions[1 - first][:, None])
    return np.where(n < one + other, out, -1).astype(np.int8)


def _search(start, end, hops: int, way: int, open_links, loads, length: int) -> Int[np.ndarray, " H"]:
    """A route of `hops` hops, if there is one without a step back, over the least loaded links: breadth first, layer by layer."""
    for avoid in (_BACK[way], None):
        layers: list[dict[tuple[int, int], tuple[int, int]]] = [{start: (0, -1)}]  # PE -> (largest load so far, last step)
        for done in range(1, hops + 1):
            ahead: dict[tuple[int, int], tuple[int, int]] = {}
            for (row, col), (load, _) in layers[-1].items():
                for step in range(4):
                    if step == avoid:
                        continue
                    at = (row + int(STEP[step][0]), col + int(STEP[step][1]))
                    if abs(end[0] - at[0]) + abs(end[1] - at[1]) > hops - done:
                        continue  # too far away; so a route stays on the grid, and near
                    link = (step % 2 == 0, min(row, at[0]), min(col, at[1]))
                    link = (int(link[0]), link[1], link[2])
                    if min(link[1:]) < 0 or not open_links[link]:
                        continue
                    worst = max(load, int(loads[link]))
                    if at not in ahead or worst < ahead[at][0]:
                        ahead[at] = (worst, step)
            layers.append(ahead)
        if end in layers[-1]:
            out, at = np.full(length, -1, np.int8), end
            for done in range(hops, 0, -1):
                step = layers[done][at][1]
                out[done - 1] = step
                at = (at[0] - int(STEP[step][0]), at[1] - int(STEP[step][1]))
            return out
    raise AssertionError(f"no route of {hops} hops from {start} to {end}")


def _colours(shape: tuple[int, int], start, steps) -> int:
    """Colours that the routes of one logical direction need: routes that lie in a cycle of channels move to the next one."""
    count, rest = 1, np.flatnonzero((steps >= 0).sum(axis=1) > 1)  # a single channel waits for none
    while True:
        stuck = in_cycles(shape, start[:, rest], steps[rest])
        if not stuck.any():
            return count
        if stuck.all():  # a colour for each is always enough
            return count + int(stuck.sum()) - 1
        rest, count = rest[stuck], count + 1


def in_cycles(shape: tuple[int, int], start, steps) -> np.ndarray:
    """Of each route, whether it goes from one channel of a cycle to the next, in the graph of which channel waits for which."""
    out = channels(start, steps)
    number = np.where(out[..., 2] >= 0, (out[..., 0] * shape[1] + out[..., 1]) * 4 + out[..., 2], -1)
    now, then = number[:, :-1], number[:, 1:]
    both = (now >= 0) & (then >= 0)
    if not both.any():
        return np.zeros(len(steps), bool)
    used, index = np.unique(np.concatenate([now[both], then[both]]), return_inverse=True)
    ends = index.reshape(2, -1)
    graph = scipy.sparse.coo_array((np.ones(ends.shape[1], bool), tuple(ends)), shape=(used.size, used.size))
    _, part = scipy.sparse.csgraph.connected_components(graph, connection="strong")
    cyclic = np.zeros(both.shape, bool)
    cyclic[both] = part[ends[0]] == part[ends[1]]
    return np.asarray(cyclic.any(axis=1))
