"""Blocks on device meshes for the tests of the fabric and the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.extend.core as jec
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wsejax import fabric
from wsejax.kernels.relayout import Layout

Grid = tuple[int, int]


def mesh_of(devices: Grid) -> Mesh:
    """A mesh of the first devices, rows "y" and columns "x"."""
    count = devices[0] * devices[1]
    return Mesh(np.array(jax.devices()[:count]).reshape(devices), fabric.AXES)


def on_grid(fun: Callable, devices: Grid) -> Callable:
    """`fun` jitted on grid blocks, leading axes (rows, cols) over the mesh."""
    return jax.jit(fabric.on_mesh(fun, mesh_of(devices)))


def on_layouts(fun: Callable, devices: Grid, ins: Sequence[Layout], out: Layout) -> Callable:
    """`fun` jitted on dense blocks of arrays in layouts `ins`, its one result in layout `out`."""
    return jax.jit(fabric.on_mesh(fun, mesh_of(devices), tuple(PartitionSpec(*lay) for lay in ins), PartitionSpec(*out)))


def permutes(fun: Callable, *args) -> Iterator[tuple[int, list[tuple[int, int]], str]]:
    """(bytes a device sends, pairs, axis) of every ppermute in the jaxpr of `fun`, as often as it runs. None may be in a while or cond."""

    def walk(jaxpr, trips: int):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "ppermute":
                assert trips, "nobody knows how often a ppermute inside a while or a cond runs"
                aval = eqn.invars[0].aval
                name = eqn.params["axis_name"]
                sent = aval.size * aval.dtype.itemsize, list(eqn.params["perm"]), name if isinstance(name, str) else name[0]
                yield from itertools.repeat(sent, trips)
            known = {"scan": eqn.params.get("length"), "while": 0, "cond": 0}.get(eqn.primitive.name, 1)
            for sub in jec.jaxprs_in_params(eqn.params):
                yield from walk(getattr(sub, "jaxpr", sub), trips * known)

    yield from walk(jax.make_jaxpr(fun)(*args).jaxpr, 1)


def executed_byte_hops(fun: Callable, devices: Grid, *args) -> int:
    """Bytes times hops of all shifts of `fun`, on all lines of the device mesh."""
    lines = {"y": devices[1], "x": devices[0]}
    return sum(size * sum(abs(b - a) for a, b in pairs) * lines[axis] for size, pairs, axis in permutes(fun, *args))
