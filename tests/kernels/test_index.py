"""Rows by index: the owner of a row is one device, and not a bit of a row is lost on the way."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.fabric.grids import on_layouts
from wsejax.kernels.index import merge_rows, owned

ROWS = 12


def table(dtype) -> np.ndarray:
    """All the bit patterns that arithmetic might lose: signed zeros, NaNs with a payload, infinities, subnormals."""
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(0).integers(0, 256, (ROWS, 8 * dtype.itemsize), np.uint8)
    if dtype == np.bool_:
        return raw[:, :8] > 127
    x = raw.view(dtype).copy()
    if dtype.kind == "f":
        x[0, 0], x[5, 1], x[7, 2], x[11, 3] = -0.0, np.inf, -np.inf, np.nan
    return x


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32, np.int8, np.uint16, np.bool_])
@pytest.mark.parametrize("spread", [None, 0])
@pytest.mark.parametrize("devices", [(1, 1), (2, 1), (4, 1)])
def test_every_bit_of_a_row_arrives(devices, dtype, spread):
    x = table(dtype)
    indices = np.array([3, 0, 11, 5, 7, 3, 9, 2], np.int32)

    def take(x, i):
        local, here = owned(i, x.shape[0], "y")
        return merge_rows(x[jnp.where(here, local, 0)], here[:, None], "y", spread)

    got = on_layouts(take, devices, [("y", None), (None,)], (None if spread is None else "y", None))(x, indices)
    assert got.dtype == x.dtype
    for shard in got.addressable_shards:
        assert np.asarray(shard.data).tobytes() == x[indices][shard.index].tobytes()


def test_complex_rows_arrive(device_grid):
    x = np.array([[-0.0 + 1j, 2 - 0.0j], [np.inf - 1j, 3j], [4, 5], [6, 7j]], np.complex64)
    indices = np.array([1, 0, 3], np.int32)

    def take(x, i):
        local, here = owned(i, x.shape[0], "y")
        return merge_rows(x[jnp.where(here, local, 0)], here[:, None], "y", None)

    got = on_layouts(take, device_grid, [("y", None), (None,)], (None, None))(x, indices)
    assert np.asarray(got).tobytes() == x[indices].tobytes()


@pytest.mark.parametrize("devices", [(1, 1), (2, 1), (3, 1), (4, 1)])
def test_each_row_inside_the_table_has_one_owner_and_others_none(devices):
    indices = np.arange(-3, ROWS + 3, dtype=np.int32)
    rows_here = ROWS // devices[0]

    def owners(i):
        local, here = owned(i, rows_here, "y")
        return jnp.where(here, local, -1)[None]

    got = np.asarray(on_layouts(owners, devices, [(None,)], ("y", None))(indices))  # (device, index)
    inside = (indices >= 0) & (indices < ROWS)
    np.testing.assert_array_equal((got >= 0).sum(0), inside)
    device = got.argmax(0)
    np.testing.assert_array_equal((device * rows_here + got.max(0))[inside], indices[inside])
