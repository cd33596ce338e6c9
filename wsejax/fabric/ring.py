"""A ring folded into a line, since the mesh has no wrap-around.

The ring visits positions 0 2 4 .. 5 3 1: every ring neighbour is at most two hops away, which no embedding of a ring in a line
can better (WaferLLM, OSDI 2025, MeshGEMM's interleaving).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from wsejax.fabric import shift as _shift
from wsejax.fabric.shift import AXES, coordinate, size


def ring_order(n: int) -> list[int]:
    """Positions of a line of `n` in the order in which the folded ring visits them."""
    return [*range(0, n, 2), *reversed(range(1, n, 2))]


def _successor(n: int) -> list[int]:
    order = ring_order(n)
    after = [0] * n
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        after[here] = there
    return after


def ring_hop(x: Shaped[Array, "..."], axis: str) -> Shaped[Array, "..."]:
    """The dense block of the ring predecessor along `axis`: one ring step of the devices, at most two hops."""
    n = size(axis)
    if n == 1:
        return x
    return _shift.permute(x, axis, list(enumerate(_successor(n))))


def ring_shift(x: Shaped[Array, "rows cols ..."], axis: str) -> Shaped[Array, "rows cols ..."]:
    """Every tile sends its entry to its successor on the folded ring along `axis` ("y" or "x").

    Made of single-tile shifts: even tiles send two hops forward, odd ones two hops back, the ends close the ring with one. As many
    ring shifts as there are tiles on the axis give the identity.
    """
    dim = AXES.index(axis)
    local = x.shape[dim]
    n = local * size(axis)
    if n == 1:
        return x
    forward, back = ("south", "north") if axis == "y" else ("east", "west")
    after = _successor(n)
    source = [0] * n
    for here, there in enumerate(after):
        source[there] = here
    moved = {0: x}
    for sign, direction in ((1, forward), (-1, back)):
        moved[sign] = _shift.shift(x, direction)
        moved[2 * sign] = _shift.shift(moved[sign], direction)
    distance = jnp.asarray([here - source[here] for here in range(n)])
    here = coordinate(axis) * local + jnp.arange(local)
    mine = distance[here].reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    out = x
    for hops, value in moved.items():
        out = jnp.where(mine == hops, value, out)
    return out
