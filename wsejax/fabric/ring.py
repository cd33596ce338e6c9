"""A ring folded into a line, since the mesh has no wrap-around.

The ring visits positions 0 2 4 .. 5 3 1: every ring neighbour is at most two hops away, which no embedding of a ring in a line
can better (WaferLLM, OSDI 2025, MeshGEMM's interleaving).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

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


def ring_tiles(axis: str, tiles: int) -> Int[Array, "here"]:
    """Numbers of this device's tiles, of `tiles` along `axis`, in the order in which the folded ring visits them.

    Even ones forward, then odd ones back: on its way out and on its way home the ring passes through every device.

    Raises:
      ValueError: the tiles do not divide by the devices.
    """
    n = size(axis)
    if tiles % n:
        raise ValueError(f"{tiles} tiles along {axis!r} do not divide by its {n} devices")
    here = tiles // n
    return jnp.asarray([[i for i in ring_order(tiles) if i // here == device] for device in range(n)])[coordinate(axis)]


def ring_pass(x: Shaped[Array, "here ..."], axis: str) -> Shaped[Array, "here ..."]:
    """Every tile sends its entry to its successor on the folded ring; the entries of a device are in the order of `ring_tiles`.

    One ring step of the tiles. The ring leaves a device with its last even tile and its last odd one: each way one entry crosses to the
    neighbour, or the whole block goes to the successor where a tile is a device.
    """
    here, n = x.shape[0], size(axis)
    if here == 1:
        return ring_hop(x, axis)
    at = coordinate(axis)
    evens = here // 2 if here % 2 == 0 else (here + 1 - at % 2) // 2  # an odd number of tiles starts with an even one on every other device
    last_even, last_odd = lax.dynamic_slice_in_dim(x, evens - 1, 1), x[-1:]
    x = jnp.concatenate([last_odd, x[:-1]])
    if n == 1:
        return x
    x = lax.dynamic_update_slice_in_dim(x, jnp.where(at == 0, last_odd, _shift.hop(last_even, axis, 1)), 0, 0)
    return lax.dynamic_update_slice_in_dim(x, jnp.where(at == n - 1, last_even, _shift.hop(last_odd, axis, -1)), evens, 0)
