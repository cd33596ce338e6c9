"""How data moves: nearest-neighbour shifts and what is built from them. The only place that names `ppermute`."""

from wsejax.fabric.collectives import (
    all_gather,
    all_reduce,
    broadcast,
    collect,
    exchange,
    gather,
    in_order,
    reduce,
)
from wsejax.fabric.ring import ring_order, ring_pass, ring_shift, ring_tiles
from wsejax.fabric.shift import AXES, DIRECTIONS, coordinate, hop, on_mesh, shift, size

__all__ = [
    "AXES", "DIRECTIONS", "all_gather", "all_reduce", "broadcast", "collect", "coordinate", "exchange", "gather",
    "hop", "in_order", "on_mesh", "reduce", "ring_order", "ring_pass", "ring_shift", "ring_tiles", "shift", "size",
]  # fmt: skip
