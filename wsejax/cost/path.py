"""The critical path of a program: the longest chain of kernels each of which waits for what the one before has made.

What a call reads was made by the last earlier call with that number among its results. Trips of a loop follow one another, and what it
makes is there when it ends.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from wsejax.compiler import Call

Priced = tuple[Call, float]  # with the cycles of one trip
Chain = tuple[Any, ...]  # (what, cycles, the chain before it), () at the start


def critical_path(calls: Sequence[Priced]) -> tuple[float, dict[tuple[str, str], float]]:
    """(cycles, cycles by kernel and source line, in order) of the longest chain."""
    cycles, chain = _longest(calls, 0)
    found: dict[tuple[str, str], float] = collections.defaultdict(float)
    for call, spent in reversed(list(_links(chain, 1.0))):
        found[call.kernel, call.source] += spent
    return cycles, dict(found)


def _links(chain: Chain, times: float) -> Iterator[Priced]:
    """From the end to the start."""
    while chain:
        what, cycles, chain = chain
        if isinstance(what, Call):
            yield what, cycles * times
        else:
            inner, length = what
            yield from _links(inner, times * length)


def _longest(calls: Sequence[Priced], depth: int) -> tuple[float, Chain]:
    done: dict[int, tuple[float, Chain]] = {}
    best: tuple[float, Chain] = (0.0, ())
    before = best

    def ready(numbers: set[int]) -> tuple[float, Chain]:
        # a call inside a kernel of the user's has no numbers: it waits for the one before it
        known = [done[n] for n in numbers if n in done] + ([before] if -1 in numbers else [])
        return max(known, key=lambda end: end[0], default=(0.0, ()))

    for loop, group in itertools.groupby(calls, key=lambda item: item[0].loops[depth] if len(item[0].loops) > depth else None):
        body = list(group)
        if loop is None:
            steps = [((call, cycles), [(call, cycles)]) for call, cycles in body]
        else:
            inside, chain = _longest(body, depth + 1)
            steps = [(((chain, loop.length), inside * loop.length), body)]
        for (what, cycles), members in steps:
            start, chain = ready({a.number for call, _ in members for a in call.ins})
            before = (start + cycles, (what, cycles, chain))
            best = max(best, before, key=lambda end: end[0])
            done.update((a.number, before) for call, _ in members for a in call.outs if a.number >= 0)
    return best
