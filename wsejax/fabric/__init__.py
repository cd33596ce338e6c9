"""How data moves: nearest-neighbour shifts and what is built from them. The only place that names `ppermute`."""

from wsejax.fabric import swarm
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
from wsejax.fabric.line import repeat, run_along, spread_along, total_along, unrolling
from wsejax.fabric.mesh import AXES, DIRECTIONS, PERMUTE, on_mesh
from wsejax.fabric.physical import Physical, machine, on_wafer, physical_of, poison
from wsejax.fabric.ring import ring_order, ring_pass, ring_places, ring_shift, ring_tiles
from wsejax.fabric.shift import COUNTING, SHIFT_NAMES, SHIFTS, coordinate, extent, hop, index, line_index, shift, size

__all__ = [
    "AXES", "COUNTING", "DIRECTIONS", "PERMUTE", "SHIFTS", "SHIFT_NAMES", "Physical", "all_gather", "all_reduce", "broadcast", "collect",
    "coordinate", "exchange", "extent", "gather", "hop", "in_order", "index", "line_index", "machine", "on_mesh", "on_wafer", "physical_of",
    "poison", "reduce", "repeat", "ring_order", "ring_pass", "ring_places", "ring_shift", "ring_tiles", "run_along", "shift", "size",
    "spread_along", "swarm", "total_along", "unrolling",
]  # fmt: skip
