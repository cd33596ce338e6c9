"""Physical execution: grid blocks hold the whole physical grid, and every shift goes hop by hop along its static route.

A program sees its mesh of PEs through `shift`, `index` and `extent` alone, so it cannot tell a physical wafer from a logical one. Here the
PEs of the mesh lie where the defects leave them room; all the others, dead or idle, hold poison, and whatever a dead PE or link touches
turns into poison. That the results are those of logical execution, bit for bit, is the proof that the routes keep clear of the defects.

A message whose route is one hop in its own direction moves with the block. The others, some thousands on a wafer, are kept in a list a
device and take one hop a stage: into the next PE of their route, or over the border to the next device.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from wsejax.fabric.mesh import AXES, DIRECTIONS, neighbour, on_mesh, raw_hop
from wsejax.hardware.defects import DefectMap
from wsejax.hardware.paths import EAST, NORTH, REVERSE, SOUTH, STEP, WEST, Routes
from wsejax.hardware.routes import live_links
from wsejax.hardware.wafer import Wafer

_NAMES = {NORTH: "north", EAST: "east", SOUTH: "south", WEST: "west"}
_PREFIX = "physical_wafer_"
_POISONED, _STRAIGHT, _BORDER = range(3)

# A physical machine is known inside a program by an axis of its mesh, of size 1. So it is part of what JAX traces under, and a function
# that was traced for one wafer is never taken for another.
_MACHINES: weakref.WeakValueDictionary[str, Physical] = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One hop of the messages in the lists; the first two axes are the devices.

    Attributes:
      alive: whether the link they take and the PE they reach are.
      send: for each direction, the entries of the list that leave the device that way (padded by 0).
      take: for each entry of the new list, where it is in the old list followed by what came in, in the order of `send`; None: the same.
    """

    alive: Bool[np.ndarray, "dy dx slots"]
    send: dict[int, Int[np.ndarray, "dy dx leaving"]]
    take: Int[np.ndarray, "dy dx slots"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """How messages of one logical direction travel.

    Attributes:
      kind: of each PE: it gets its message straight from the neighbour; it is of the mesh, and nobody sends to it; neither.
      first, last: where in the block (row by row) the messages of the lists start and end; the size of the block stands for nowhere.
      stages: their hops.
    """

    kind: Int[np.ndarray, "rows cols"]
    first: Int[np.ndarray, "dy dx slots"]
    last: Int[np.ndarray, "dy dx slots"]
    stages: tuple[Stage, ...]


class Physical:
    """The tables of a wafer that runs physically: `rows` x `cols` PEs, with dead ones added until the devices divide them.

    Args:
      wafer: its mesh is the north-west corner of the logical mesh, one PE a tile.
      routes: other than those of the wafer, to see that it matters.
    """

    def __init__(self, wafer: Wafer, routes: Routes | None = None) -> None:
        routes = wafer.routes if routes is None else routes
        self.extent, self.devices = wafer.tiles, wafer.devices
        rows, cols = wafer.tiles
        (n, m), (dy, dx) = wafer.defects.shape, self.devices
        self.block = -(-n // dy), -(-m // dx)
        self.shape = self.block[0] * dy, self.block[1] * dx
        self.place = np.stack([part[:rows, :cols] for part in (wafer.remap.physical_row, wafer.remap.physical_col)]).astype(np.int64)
        self.index = np.full((2, *self.shape), -1, np.int32)
        self.index[:, self.place[0], self.place[1]] = np.indices((rows, cols))
        self.ways = {}
        for forward, back, steps, cut in (
            (EAST, WEST, routes.east[:rows, : cols - 1], (slice(None), slice(1))),
            (SOUTH, NORTH, routes.south[: rows - 1, :cols], (slice(1), slice(None))),
        ):
            starts = self.place[:, :, :-1] if forward == EAST else self.place[:, :-1]
            start, steps = starts.reshape(2, -1), steps.reshape(-1, steps.shape[-1]).astype(np.int8)
            end, reverse = _reversed(start, steps)
            last = (slice(None), slice(-1, None)) if forward == EAST else (slice(-1, None), slice(None))
            self.ways[_NAMES[forward]] = self._way(wafer.defects, forward, start, steps, self.place[:, *cut])
            self.ways[_NAMES[back]] = self._way(wafer.defects, back, end, reverse, self.place[:, *last])
        content = hashlib.sha256(repr((wafer.defects.digest, self.extent, self.devices)).encode())
        for part in (self.place, routes.east, routes.south):
            content.update(np.ascontiguousarray(part).tobytes())
        self.name = f"{_PREFIX}{content.hexdigest()[:16]}"

    def _way(self, defects: DefectMap, direction: int, start, steps, border) -> Way:
        rows, cols = self.shape
        # padding of the routes is behind the last step
        straight = (steps[:, 0] == direction) & (steps[:, 1] < 0 if steps.shape[1] > 1 else True)
        kind = np.full(self.shape, _POISONED, np.int8)
        kind[border[0], border[1]] = _BORDER
        near = _walk(defects, start[:, straight], steps[straight, :1])
        kind[near.place[:, -1, 0], near.place[:, -1, 1]] = np.where(near.alive[:, 0], _STRAIGHT, _POISONED)
        far = _walk(defects, start[:, ~straight], steps[~straight])
        places, alive = far.place, far.alive
        inside = ((places >= 0) & (places < [rows, cols])).all(axis=2)
        places, alive = np.clip(places, 0, [rows - 1, cols - 1]), np.asarray(alive & np.asarray(inside)[:, 1:])
        device = np.stack([places[..., 0] // self.block[0], places[..., 1] // self.block[1]], axis=-1)
        local = (places[..., 0] % self.block[0]) * self.block[1] + places[..., 1] % self.block[1]
        lists = [self._lists(device[:, k]) for k in range(places.shape[1])]
        stages = []
        for k, (before, after) in enumerate(itertools.pairwise(lists)):
            stages.append(self._stage(before, after, device[:, k], device[:, k + 1], alive[:, k]))
        size = self.block[0] * self.block[1]
        first, last = (self._table(lists[k], local[:, k], size) for k in (0, -1))
        return Way(kind, np.minimum(first, size - 1), last, tuple(stages))

    def _lists(self, device) -> list[list[Int[np.ndarray, " here"]]]:
        """Which messages each device holds."""
        return [[np.flatnonzero((device == (y, x)).all(axis=1)) for x in range(self.devices[1])] for y in range(self.devices[0])]

    def _table(self, lists, values, fill) -> np.ndarray:
        """`values` of each device's messages, padded to one length."""
        longest = max(here.size for row in lists for here in row)
        out = np.full((*self.devices, longest), fill, values.dtype)
        for y, row in enumerate(lists):
            for x, here in enumerate(row):
                out[y, x, : here.size] = values[here]
        return out

    def _stage(self, before, after, from_device, to_device, alive) -> Stage:
        slots = max(here.size for row in before for here in row)
        where = np.zeros(len(alive), np.int32)  # each message in the old list followed by what comes in
        for row in before:
            for here in row:
                where[here] = np.arange(here.size)
        positions, send = where.copy(), {}
        for direction in range(4):
            leaving = (to_device - from_device == STEP[direction]).all(axis=1)
            if not leaving.any():
                continue
            lists = [[here[leaving[here]] for here in row] for row in before]
            send[direction] = self._table(lists, positions, 0)
            for row in lists:
                for here in row:
                    where[here] = slots + np.arange(here.size)
            slots += send[direction].shape[-1]
        return Stage(self._table(after, alive, False), send, self._table(after, where, 0) if send else None)

    def here(self, table: np.ndarray) -> Array:
        """This device's part of a table with an entry a PE."""
        if self.devices == (1, 1):
            return jnp.asarray(table)
        at = [lax.axis_index(axis) * n for axis, n in zip(AXES, self.block, strict=True)]
        return lax.dynamic_slice(jnp.asarray(table), at, self.block)

    def of_device(self, table: np.ndarray) -> Array:
        """This device's part of a table with an entry a device."""
        return jnp.asarray(table[0, 0]) if self.devices == (1, 1) else jnp.asarray(table)[lax.axis_index("y"), lax.axis_index("x")]

    def shift(self, x: Shaped[Array, "rows cols ..."], direction: str) -> Shaped[Array, "rows cols ..."]:
        """`fabric.shift` on the physical grid."""
        bad, way = poison(x.dtype), self.ways[direction]
        kind = self.here(way.kind).reshape(*self.block, *(1,) * (x.ndim - 2))
        out = jnp.where(kind == _STRAIGHT, neighbour(x, direction), jnp.where(kind == _BORDER, jnp.zeros((), x.dtype), bad))
        if not way.first.shape[-1]:
            return out
        rows = x.reshape(self.block[0] * self.block[1], *x.shape[2:])
        messages = rows[self.of_device(way.first)]
        for stage in way.stages:
            messages = self._hop(messages, stage, bad)
        last = self.of_device(way.last)
        out = out.reshape(rows.shape).at[last].set(messages, mode="drop", unique_indices=self.devices == (1, 1))
        return out.reshape(x.shape)

    def _hop(self, messages, stage: Stage, bad):
        if stage.take is not None:
            parts = [messages]
            for direction, leaving in stage.send.items():
                axis, step = DIRECTIONS[_NAMES[direction]]
                parts.append(raw_hop(messages[self.of_device(leaving)], axis, step))
            messages = jnp.concatenate(parts)[self.of_device(stage.take)]
        alive = self.of_device(stage.alive)
        return jnp.where(alive.reshape(-1, *(1,) * (messages.ndim - 1)), messages, bad)

    def run(self, fun: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
        """`fun` on blocks of the physical grid, as a function of arrays over the logical mesh; as `on_mesh`."""
        mesh = Mesh(mesh.devices[None], (self.name, *AXES), axis_types=(mesh.axis_types[0],) * 3)

        def load(x, spec):
            if (dim := _grid_dim(spec)) is None:
                return x
            if x.shape[dim : dim + 2] != self.extent:
                raise ValueError(f"an argument of shape {x.shape} with {spec}: a physical wafer has one entry a PE, {self.extent} of them")
            whole = jnp.full((*x.shape[:dim], *self.shape, *x.shape[dim + 2 :]), poison(x.dtype), x.dtype)
            return whole.at[(slice(None),) * dim + tuple(self.place)].set(x, unique_indices=True)

        def store(x, spec):
            dim = _grid_dim(spec)
            return x if dim is None else x[(slice(None),) * dim + tuple(self.place)]

        def each(of: Callable, specs, tree):
            return jax.tree.map(lambda spec, part: jax.tree.map(lambda x: of(jnp.asarray(x), spec), part), specs, tree, is_leaf=_is_spec)

        def on_wafer(*args):
            _MACHINES[self.name] = self
            args = each(load, in_specs, args)
            return each(store, out_specs, jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args))

        return on_wafer


def on_wafer(fun: Callable, wafer: Wafer, in_specs: Any, out_specs: Any) -> Callable:
    """`fun` on every device's block of its arguments, in the wafer's execution; arrays are those of the logical mesh."""
    if wafer.execution == "logical":
        return on_mesh(fun, wafer.mesh, in_specs, out_specs)
    return physical_of(wafer).run(fun, wafer.mesh, in_specs, out_specs)


@functools.lru_cache(maxsize=8)
def physical_of(wafer: Wafer) -> Physical:
    """The tables of a wafer, made once."""
    return Physical(wafer)


def machine() -> Physical | None:
    """The machine that the program runs on, inside `run`; None where it runs logically."""
    names = [name for name in jax.sharding.get_abstract_mesh().axis_names if str(name).startswith(_PREFIX)]
    return _MACHINES[names[0]] if names else None


def poison(dtype) -> Shaped[np.ndarray, ""]:
    """What a dead PE holds: NaN; the lowest integer, or the highest of those without a sign; True.

    Data that hold this very value hide a wrong route: of the types without a NaN, use one that is wide enough not to.

    Raises:
      TypeError: a dtype that has no such value (random keys: use their words).
    """
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.asarray(np.nan, dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return np.asarray(jnp.iinfo(dtype).min or jnp.iinfo(dtype).max, dtype)
    if dtype == jnp.bool_:
        return np.asarray(True)
    raise TypeError(f"dtype={dtype}: a dead PE cannot hold a poisoned {dtype}; for random keys pass jax.random.key_data")


@dataclasses.dataclass(frozen=True)
class _Walked:
    """Where messages are after each hop, and whether link and PE of the hop are alive. Who has arrived stays."""

    place: Int[np.ndarray, "messages hops+1 2"]
    alive: Bool[np.ndarray, "messages hops"]


def _walk(defects: DefectMap, start: Int[np.ndarray, "2 messages"], steps: Int[np.ndarray, "messages hops"]) -> _Walked:
    place = np.concatenate([start.T[:, None], start.T[:, None] + _moved(steps)], axis=1)
    rows, cols = defects.shape
    east, south = live_links(defects)
    open_ways = np.zeros((4, rows, cols), bool)  # by the direction in which a PE is left
    open_ways[EAST], open_ways[SOUTH] = east, south
    open_ways[WEST, :, 1:], open_ways[NORTH, 1:] = east[:, :-1], south[:-1]
    row, col = np.clip(place[:, :-1, 0], 0, rows - 1), np.clip(place[:, :-1, 1], 0, cols - 1)
    outside = (place[:, :-1] != np.stack([row, col], axis=-1)).any(axis=-1)
    return _Walked(place, np.where(steps >= 0, open_ways[steps, row, col] & ~outside, True))


def _moved(steps) -> Int[np.ndarray, "messages hops 2"]:
    return np.cumsum(np.where((steps >= 0)[..., None], STEP[np.maximum(steps, 0)], 0), axis=1)


def _reversed(start, steps):
    """The same routes from their ends."""
    end = start + _moved(steps)[:, -1].T if len(steps) else start
    count = (steps >= 0).sum(axis=1)[:, None]
    k = np.arange(steps.shape[1])[None]
    back = np.take_along_axis(REVERSE[steps], np.maximum(count - 1 - k, 0), axis=1)
    return end, np.where(k < count, back, -1).astype(np.int8)


def _is_spec(x) -> bool:
    return isinstance(x, PartitionSpec)


def _grid_dim(spec: Sequence) -> int | None:
    """Where the PE grid begins among the dimensions of an array; None for one that every device holds."""
    axes = list(spec)
    if not any(axes):
        return None
    if "y" in axes and axes[axes.index("y") + 1 :][:1] == ["x"]:
        return axes.index("y")
    raise ValueError(
        f"spec={spec}: on a wafer with execution='physical' an array has the PE grid as two neighbouring dimensions, P('y', 'x'), or is "
        "whole, P(); give it both"
    )
