"""Reduction trees on a line of PEs, and the best of them by the model of Luczynski et al., "Near-Optimal Wafer-Scale Reduce" (HPDC 2024).

A tree is in pre-order: every subtree is a run of neighbours with its root in front, so a parent adds up its own and its children's sums
from near to far, and the result is the terms in the order of the line, bracketed by the tree. The root of the line is PE 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from wsejax.kernels.price import ceil, floor, least, most

_DEPTHS, _RECEIVES = 64, (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # that the search goes through
RAMP_CYCLES = 2  # between a PE and its router, WSE-2 (the same paper)


@dataclasses.dataclass(frozen=True)
class Tree:
    """`parent[i]` < i is where PE i sends its sum; that of PE 0 is -1."""

    parent: tuple[int, ...]

    def __post_init__(self) -> None:
        for i, p in enumerate(self.parent):
            ancestors = {i - 1} if i else {-1}
            while (at := max(ancestors)) > 0 and at != p:  # pre-order: the parent is the PE before, or one of its ancestors
                ancestors = {self.parent[at]}
            if p not in ancestors:
                raise ValueError(f"parent[{i}]={p}: the tree is not in pre-order; a parent is the PE before, or one above it")

    @property
    def energy(self) -> int:
        """Hops that all sums travel."""
        return sum(i - p for i, p in enumerate(self.parent) if p >= 0)

    @functools.cached_property
    def depth(self) -> int:
        """Sums that wait for each other, at most."""
        height = [0] * len(self.parent)
        for i in range(len(self.parent) - 1, 0, -1):
            height[self.parent[i]] = max(height[self.parent[i]], height[i] + 1)
        return height[0]

    @property
    def contention(self) -> int:
        """Most sums that one PE receives; one that only sends counts, too."""
        return int(np.bincount(self.parent[1:]).max()) if len(self.parent) > 1 else 0

    def model_cycles(self, wavelets: int, ramp_cycles: int = RAMP_CYCLES) -> float:
        """max(contention, energy / links + distance) + (2 ramp + 1) depth, the model of the paper, in cycles of WSE-2."""
        n = len(self.parent)
        if n == 1:
            return 0.0
        moving = max(wavelets * self.contention, wavelets * self.energy / (n - 1) + n - 1)
        return moving + (2 * ramp_cycles + 1) * self.depth

    @functools.cached_property
    def steps(self) -> Bool[np.ndarray, "steps 3 n"]:
        """Hop by hop, which PEs start a message with their sum, which send what they hold, and which add what arrives to their sum.

        Messages that are under way together never share a PE. Those of a real machine also follow one another through it.
        """
        n = len(self.parent)
        waiting = np.bincount(np.asarray(self.parent[1:], int), minlength=n) if n > 1 else np.zeros(n, int)
        turn = {p: [i for i in range(n) if self.parent[i] == p] for p in range(n)}  # near to far
        left, out = set(range(1, n)), []
        while left:
            ready = sorted(i for i in left if not waiting[i] and turn[self.parent[i]][0] == i)
            free, chosen = 0, []
            for i in ready:  # runs of PEs do not overlap where each begins behind the one before
                if self.parent[i] >= free:
                    chosen, free = [*chosen, i], i
            hops = max(i - self.parent[i] for i in chosen)
            for hop in range(hops):
                now = np.zeros((3, n), bool)
                for i in chosen:
                    if hop < i - self.parent[i]:
                        now[0, i] |= hop == 0
                        now[1, i - hop] = True
                        now[2, self.parent[i]] |= hop == i - self.parent[i] - 1
                out.append(now)
            for i in chosen:
                left.remove(i)
                turn[self.parent[i]].pop(0)
                waiting[self.parent[i]] -= 1
        return np.array(out, bool).reshape(len(out), 3, n)


def chain(n: int) -> Tree:
    """Every PE adds its own to what its neighbour sends."""
    return Tree(tuple(range(-1, n - 1)))


def star(n: int) -> Tree:
    """Everybody sends to PE 0."""
    return Tree((-1, *[0] * (n - 1)))


def binary(n: int) -> Tree:
    """Neighbours in pairs, then pairs of pairs: PE i sends to i without its lowest bit."""
    return Tree((-1, *[i & (i - 1) for i in range(1, n)]))


def k_tree(n: int, k: int = 2) -> Tree:
    """`k` rounds of chains over groups of about n^(1/k) (WaferLLM, OSDI 2025, MeshGEMV; with k = 2 the two phases of the HPDC paper)."""
    group = max(2, math.ceil(round(n ** (1 / k), 9)))
    stride, parent = 1, [-1] * n
    while stride < n:
        last = stride * group >= n or stride >= group ** (k - 1)  # the last round takes all groups that are left
        for i in range(stride, n, stride):
            if last or (i // stride) % group:
                parent[i] = i - stride
        stride = n if last else stride * group
    return Tree(tuple(parent))


def two_phase(n: int) -> Tree:
    """Chains inside groups of about sqrt(n) PEs, then a chain of the groups."""
    return k_tree(n, 2)


def numbers(topology: str, n: Any) -> tuple[Any, Any, Any]:
    """(energy, contention, depth) of "chain", "star", "tree" (binary) or "two_phase" on a line of `n` PEs, in messages, in closed form:
    the same as `Tree` counts, and differentiable in `n`.

    Raises:
      ValueError: an unknown topology.
    """
    links = n - 1.0
    if topology == "chain":
        return links, least(links, 1.0), links
    if topology == "star":
        return n * links / 2.0, links, least(links, 1.0)
    if topology == "tree":
        levels = [2.0**k for k in range(24)]  # 2^k hops for every PE whose lowest bit is k
        energy = sum(step * floor((links + step) / (2.0 * step)) for step in levels)
        receives = sum(least(1.0, floor(links / step)) for step in levels)
        return energy, receives, sum(least(1.0, floor(n / step)) for step in levels[1:])
    if topology == "two_phase":
        group = most(2.0, ceil(n**0.5))
        groups = ceil(n / group)
        last = n - (groups - 1.0) * group  # PEs of the last group
        depth = most(last - 1.0 + groups - 1.0, least(group, n) - 1.0 + most(groups - 2.0, 0.0))
        return (n - groups) + (groups - 1.0) * group, least(links, 1.0) + least(1.0, floor(groups / 2.0)), depth
    raise ValueError(f"topology={topology!r}: must be 'chain', 'star', 'tree' or 'two_phase'")


@functools.lru_cache(maxsize=128)
def auto(n: int, wavelets: int, ramp_cycles: int = RAMP_CYCLES) -> Tree:
    """The tree with the fewest modelled cycles for a vector of `wavelets`, by dynamic programming over size, depth and receives.

    Least energy of p PEs, depth d, r more receives at the root and c at all others, as in the paper:
    E(p, d, r) = min over s of E(s, d - 1, c) + E(p - s, d, r - 1) + p - s, where the last s PEs send their sum over p - s hops. All n
    up to 64 are searched exactly in depth, and in receives up to 8; beyond, some numbers of receives stand for the rest. Never worse than
    the named trees.
    """
    best = min((shape(n) for shape in (chain, star, binary, two_phase)), key=lambda t: t.model_cycles(wavelets, ramp_cycles))
    for receives in _RECEIVES:
        if receives >= n:
            break
        if wavelets * receives >= best.model_cycles(wavelets, ramp_cycles):
            break  # no tree with that many at one PE can win
        energy, choice = _least_energy(n, min(n - 1, _DEPTHS), receives)
        with np.errstate(invalid="ignore"):
            cycles = np.maximum(wavelets * receives, wavelets * energy / (n - 1) + n - 1) + (2 * ramp_cycles + 1) * np.arange(len(energy))
        if not np.isfinite(cycles).any():  # a chain of so many is deeper than the search goes
            continue
        tree = _built(n, int(cycles.argmin()), receives, choice)
        best = min(best, tree, key=lambda t: t.model_cycles(wavelets, ramp_cycles))
    return best


@functools.lru_cache(maxsize=64)
def _least_energy(n: int, depths: int, receives: int):
    """Least energy of n PEs by depth, and by (depth, receives left at the root, size) the size of the last subtree, 0 for none."""
    full = np.full((depths + 1, receives + 1, n + 1), np.inf, np.float32)
    choice = np.zeros(full.shape, np.int16)
    full[:, :, 1] = 0
    size, last = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    rest = np.where((last >= 1) & (last < size), size - last, 0)
    for d in range(1, depths + 1):
        below = full[d - 1, receives]
        for r in range(1, receives + 1):
            cost = np.where(rest > 0, below[None, :] + full[d, r - 1][rest] + rest, np.inf)
            best = cost.argmin(axis=1)
            full[d, r] = np.minimum(cost[np.arange(n + 1), best], full[d, r])
            choice[d, r] = np.where(np.arange(n + 1) > 1, best, 0)
    return full[:, receives, n], choice


def _built(n: int, depth: int, receives: int, choice: Int[np.ndarray, "d r p"]) -> Tree:
    parent, todo = [-1] * n, [(0, n, depth, receives)]
    while todo:
        root, size, d, r = todo.pop()
        while size > 1:
            s = int(choice[d, r, size])
            parent[root + size - s] = root
            todo.append((root + size - s, s, d - 1, receives))
            size, r = size - s, r - 1
    return Tree(tuple(parent))
