"""Moving between layouts changes no element, and moves the bytes that its cost says, counted in the executed jaxpr."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.fabric.grids import executed_byte_hops, mesh_of, on_layouts
from wsejax import fabric
from wsejax.kernels.relayout import Layout, byte_hops, relayout

TILES = {"y": 2, "x": 2}


def layouts(ndim: int) -> list[Layout]:
    every = itertools.product((None, "y", "x"), repeat=ndim)
    return [lay for lay in every if all(lay.count(axis) <= 1 for axis in fabric.AXES)]


@pytest.mark.parametrize(
    ("devices", "src"),
    [(devices, src) for ndim, grids in ((2, [(1, 1), (1, 2), (2, 1)]), (3, [(2, 2)])) for devices in grids for src in layouts(ndim)],
    ids=str,
)
def test_every_pair_of_layouts_keeps_the_content_on_every_device(devices, src):
    shape = (4, 6, 2)[: len(src)] if len(src) == 2 else (4, 2, 6)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    targets = layouts(len(src))
    specs = tuple(PartitionSpec(*dst) for dst in targets)
    move = fabric.on_mesh(
        lambda v: tuple(relayout(v, src, dst, shape, TILES) for dst in targets), mesh_of(devices), PartitionSpec(*src), specs
    )
    for dst, got in zip(targets, jax.jit(move)(x), strict=True):
        assert got.shape == shape
        for shard in got.addressable_shards:  # a replicated result is looked at on each device
            np.testing.assert_array_equal(shard.data, x[shard.index], err_msg=f"{src} -> {dst} on {shard.device}")


@pytest.mark.parametrize("devices", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (4, 1), (2, 2)])
def test_byte_hops_are_those_of_the_executed_shifts_when_a_tile_is_a_device(devices):
    shape = (12, 24, 12)
    x = np.zeros(shape, np.float16)
    tiles = dict(zip(fabric.AXES, devices, strict=True))
    moved = 0
    for src, dst in itertools.product(layouts(3), repeat=2):
        fun = on_layouts(lambda v, src=src, dst=dst: relayout(v, src, dst, shape, tiles), devices, [src], dst)
        executed = executed_byte_hops(fun, devices, x)
        assert byte_hops(shape, 2, src, dst, tiles) == executed, (src, dst)
        moved += executed
    assert (moved > 0) == (devices != (1, 1))


@pytest.mark.parametrize("src", [lay for lay in layouts(2) if any(lay)], ids=str)
def test_slicing_a_replicated_array_moves_nothing(src):
    assert byte_hops((8, 8), 4, (None, None), src, {"y": 4, "x": 4}) == 0
    assert byte_hops((8, 8), 4, src, (None, None), {"y": 4, "x": 4}) > 0
