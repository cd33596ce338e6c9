"""The one way data moves: a hop to the neighbour.

Everything here runs inside `on_mesh`, where an array is this device's block. Two views of a block are used:

* a *grid* block has the tile grid as its two leading axes, (rows, cols, ...), one entry a tile: `shift` moves it by one tile;
* a *dense* block is any array this device holds: `hop` moves it whole to the next device, as many tiles further as a device has.

The mesh has borders: what leaves it is lost, and zeros come in.
"""

from __future__ import annotations

import contextvars

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from wsejax.fabric.mesh import AXES, DIRECTIONS, neighbour, raw_hop
from wsejax.fabric.physical import machine

COUNTING: contextvars.ContextVar[bool] = contextvars.ContextVar("counting", default=False)  # while a program is traced for its traffic


def only_logical(what: str) -> None:
    """Raises ValueError where the program runs physically, or is run for its traffic."""
    if machine() is not None or COUNTING.get():
        why = "wse.traffic counts what PEs send" if COUNTING.get() else "on a wafer with execution='physical' a program is about PEs"
        raise ValueError(
            f"fabric.{what} is about devices and their blocks, and {why}: use fabric.shift and what is made of it, fabric.index and "
            "fabric.extent"
        )


def size(axis: str) -> int:
    """Number of devices along a mesh axis."""
    only_logical("size")
    return lax.axis_size(axis)


def coordinate(axis: str) -> Int[Array, ""]:
    """This device's position along a mesh axis, 0 at the north or west border."""
    only_logical("coordinate")
    return lax.axis_index(axis)


def extent(x: Shaped[Array, "rows cols ..."], axis: str) -> int:
    """Number of tiles (PEs) along a mesh axis, for a grid block `x`."""
    here, dim = machine(), AXES.index(axis)
    return x.shape[dim] * lax.axis_size(axis) if here is None else here.extent[dim]


def index(x: Shaped[Array, "rows cols ..."], axis: str) -> Int[Array, "rows cols ..."]:
    """Each tile's place along a mesh axis, 0 at the north or west border: a grid block with as many dimensions as `x`, of size 1 behind the
    grid.

    In physical execution PEs outside the mesh have the place -1.
    """
    return jnp.broadcast_to(line_index(x, axis), (*x.shape[:2], *(1,) * (x.ndim - 2)))


def line_index(x: Shaped[Array, "rows cols ..."], axis: str) -> Int[Array, "rows|1 cols|1 ..."]:
    """As `index`, but of size 1 across the lines where that says the same: cheap to look up in, and nothing to shift."""
    here, dim = machine(), AXES.index(axis)
    if here is not None:
        return here.here(here.index[dim]).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    places = lax.axis_index(axis) * x.shape[dim] + jnp.arange(x.shape[dim], dtype=jnp.int32)
    return places.reshape([-1 if d == dim else 1 for d in range(x.ndim)])


def hop(x: Shaped[Array, "..."], axis: str, step: int) -> Shaped[Array, "..."]:
    """The dense block of the neighbour `step` (+1 or -1) before this device on `axis`; zeros at the border."""
    if step not in (1, -1):
        raise ValueError(f"step={step}: a hop goes to the next device, +1 or -1; use several hops to go further")
    only_logical("hop")
    return raw_hop(x, axis, step)


def shift(
    x: Shaped[Array, "rows cols ..."], direction: str, sends: Bool[Array, "rows cols"] | None = None
) -> Shaped[Array, "rows cols ..."]:
    """Every tile sends its entry to the neighbour in `direction` ("north", "south", "east", "west").

    Args:
      x: grid block, any dtype.
      direction: where the data goes. Tiles at the border that nobody sends to receive zeros.
      sends: which tiles send; the neighbours of the others receive zeros. None: all.

    Raises:
      ValueError: an unknown direction, an array without the two leading grid axes, or `sends` that is not boolean or does not fit them.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r}: must be one of {', '.join(DIRECTIONS)}")
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}: a grid block has leading axes (rows, cols), one entry a tile")
    if sends is None:
        return SHIFTS[direction](x)
    sends = jnp.asarray(sends)
    if sends.dtype != jnp.bool_:
        raise ValueError(f"sends is {sends.dtype}: give a flag a tile, for example fabric.index(x, 'x') == 0")
    if any(m not in (1, n) for m, n in zip(sends.shape, (*x.shape[:2], *(1,) * sends.ndim), strict=False)) or sends.ndim < 2:
        raise ValueError(f"sends has shape {sends.shape} for x of shape {x.shape}: give a flag a tile, (rows, cols, 1, ...)")
    return SHIFTS[direction](x, sends.reshape(sends.shape[:2]))


SHIFT_NAMES = {f"fabric_shift_{direction}": direction for direction in DIRECTIONS}  # by which a shift is known in a jaxpr


def _named_shift(name: str, direction: str):
    """Jitted so that it has a name in the jaxpr, by which its traffic is counted."""

    def move(x, sends=None):
        if sends is not None:
            x = jnp.where(sends.reshape(*sends.shape, *(1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))
        here = machine()
        return neighbour(x, direction) if here is None else here.shift(x, direction)

    move.__name__ = move.__qualname__ = name
    return jax.jit(move)


SHIFTS = {direction: _named_shift(name, direction) for name, direction in SHIFT_NAMES.items()}
