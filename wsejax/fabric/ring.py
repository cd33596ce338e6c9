"""A ring folded into a line, since the mesh has no wrap-around.

The ring visits positions 0 2 4 .. 5 3 1: every ring neighbour is at most two hops away, which no embedding of a ring in a line
can better (WaferLLM, OSDI 2025, MeshGEMM's interleaving).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from wsejax.fabric.mesh import permute
from wsejax.fabric.shift import coordinate, extent, hop, line_index, shift, size


def ring_order(n: int) -> list[int]:
    """Positions of a line of `n` in the order in which the folded ring visits them."""
    return [*range(0, n, 2), *reversed(range(1, n, 2))]


def ring_places(n: int) -> list[int]:
    """The place of each position of a line of `n` on the folded ring: the inverse of `ring_order`."""
    order = ring_order(n)
    return [order.index(i) for i in range(n)]


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
    return permute(x, axis, list(enumerate(_successor(n))))


def ring_shift(
    x: Shaped[Array, "rows cols ..."], axis: str, sends: Bool[Array, "rows|1 cols|1 ..."] | None = None
) -> Shaped[Array, "rows cols ..."]:
    """Every tile sends its entry to its successor on the folded ring along `axis` ("y" or "x").

    `sends` says which lines do, the same for all tiles of a line; the others get zeros. None: all.

    Made of single-tile shifts: even tiles send two hops forward, odd ones two hops back, the ends close the ring with one. As many
    ring shifts as there are tiles on the axis give the identity.
    """
    n = extent(x, axis)
    if n == 1:
        return x if sends is None else jnp.where(sends, x, jnp.zeros((), x.dtype))
    forward, back = ("south", "north") if axis == "y" else ("east", "west")
    to = np.array(_successor(n)) - np.arange(n)  # hops to where each tile sends
    source = np.zeros(n, np.int32)
    source[np.arange(n) + to] = to  # and from where it receives
    here = jnp.clip(line_index(x, axis), 0, n - 1)  # physically there are PEs outside the mesh
    out = x
    for sign, direction in ((1, forward), (-1, back)):
        moved = x
        for hops in (1, 2)[: n - 1]:
            # who sends, or in the second hop passes on what the tile before it has sent
            goes = sign * to >= hops if hops == 1 else np.roll(sign * to, sign) == hops
            goes = jnp.asarray(goes)[here]
            moved = shift(moved, direction, sends=goes if sends is None else goes & sends)
            out = jnp.where(jnp.asarray(sign * source == hops)[here], moved, out)
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
    x = lax.dynamic_update_slice_in_dim(x, jnp.where(at == 0, last_odd, hop(last_even, axis, 1)), 0, 0)
    return lax.dynamic_update_slice_in_dim(x, jnp.where(at == n - 1, last_even, hop(last_odd, axis, -1)), evens, 0)
