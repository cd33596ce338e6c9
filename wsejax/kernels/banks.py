"""Banks of a PE's memory: where the two operands of a vector instruction lie in the same one, its elements take a cycle more.

A PE has 8 banks of 32 bits (HC34), and two reads go together only where the banks differ modulo 4 (SDK): operands that lie a multiple of
16 bytes apart wait for each other. On WSE-3 silicon that costs a factor of 1.94 typically (ALCF).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

_PERIOD_BYTES = 16


def same_bank(distance_elements: int, itemsize_bytes: int) -> bool:
    """Whether operands that many elements apart are read from the same bank, element after element."""
    return distance_elements * itemsize_bytes % _PERIOD_BYTES == 0


def stencil_conflicts(tile: Sequence[int], offsets: Iterable[Sequence[int]], itemsize_bytes: int) -> int:
    """Passes of a stencil over a tile that read the sum and the shifted cells from the same bank.

    The layout is that of the programs that were measured: the sum and the cells are two arrays of one shape, one after the other, with
    room for the halo, rows one element longer than that. The pass over the cell itself is none of these: it can read and write in turn.
    """
    offsets = [tuple(o) for o in offsets]
    reach = [max(abs(o[d]) for o in offsets) for d in range(len(tile))]
    shape = [n + 2 * r + (d == 1) for d, (n, r) in enumerate(zip(tile, reach, strict=True))]
    strides = [*itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)][::-1]
    apart = math.prod(shape)
    moved = (sum(s * o for s, o in zip(strides, offset, strict=True)) for offset in offsets if any(offset))
    return sum(same_bank(apart - step, itemsize_bytes) for step in moved)
