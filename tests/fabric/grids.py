"""Blocks on device meshes for the tests of the fabric and the kernels."""

from __future__ import annotations

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
    """(bytes a device sends, pairs, axis) of every ppermute in the jaxpr of `fun`. No loop may hold one: its trips are not counted."""

    def walk(jaxpr, looped: bool):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "ppermute":
                assert not looped, "a ppermute inside a loop runs more than once"
                aval = eqn.invars[0].aval
                name = eqn.params["axis_name"]
                yield aval.size * aval.dtype.itemsize, list(eqn.params["perm"]), name if isinstance(name, str) else name[0]
            for sub in jec.jaxprs_in_params(eqn.params):
                yield from walk(getattr(sub, "jaxpr", sub), looped or eqn.primitive.name in ("scan", "while", "cond"))

    yield from walk(jax.make_jaxpr(fun)(*args).jaxpr, False)


def executed_byte_hops(fun: Callable, devices: Grid, *args) -> int:
    """Bytes times hops of all shifts of `fun`, on all lines of the device mesh."""
    lines = {"y": devices[1], "x": devices[0]}
    return sum(size * sum(abs(b - a) for a, b in pairs) * lines[axis] for size, pairs, axis in permutes(fun, *args))
