"""A window on a split dimension is numpy's slice or pad, on every device mesh, and only what crosses a border moves."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.fabric.grids import executed_byte_hops, on_layouts
from wsejax.kernels.halo import reach, window, window_byte_hops
from wsejax.kernels.relayout import pad, padded

GRIDS = [(1, 1), (1, 2), (2, 2)]


def numpy_window(x, start, size, fill):
    out = np.full((size, x.shape[1]), fill, x.dtype)
    for j in range(size):
        if 0 <= j + start < len(x):
            out[j] = x[j + start]
    return out


def on_devices(x, start, size, src, dst, tiles, devices, fill):
    """The window of rows of `x`; what is padded comes in as 77, so that it shows if it is read."""
    n = len(x)
    if src:
        x = np.concatenate([x, np.full((padded(n, tiles[src]) - n, x.shape[1]), 77, x.dtype)])
    move = lambda v: window(v, 0, start, size, src, dst, n, tiles, jnp.asarray(fill, v.dtype))
    return np.asarray(on_layouts(move, devices, [(src, None)], (dst, None))(x))[:size]


@given(
    n=st.integers(4, 23),
    start=st.integers(-9, 12),
    size=st.integers(1, 23),
    src=st.sampled_from([None, "y", "x"]),
    ends_split=st.booleans(),
    tiles=st.sampled_from([2, 4]),
)
def test_a_window_is_numpys_on_every_device_mesh(n, start, size, src, ends_split, tiles):
    dst = src if ends_split else None
    assume(dst is None or size >= tiles)
    x = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    want = numpy_window(x, start, size, -5)
    for devices in GRIDS:
        got = on_devices(x, start, size, src, dst, {"y": tiles, "x": tiles}, devices, -5)
        np.testing.assert_array_equal(got, want, err_msg=str(devices))


@pytest.mark.parametrize("devices", [(1, 2), (1, 4), (4, 1), (2, 2)], ids=str)
@pytest.mark.parametrize(("n", "start", "size"), [(16, 1, 14), (16, -1, 18), (19, 2, 17), (16, 5, 3), (16, 0, 8), (17, -8, 30)])
def test_byte_hops_are_those_of_the_executed_shifts_when_a_tile_is_a_device(devices, n, start, size):
    tiles = dict(zip(("y", "x"), devices, strict=True))
    for src in ("y", "x"):
        for dst in (None, src):
            if tiles[src] == 1:
                continue
            x = np.asarray(pad(jnp.zeros((n, 6), jnp.float16), tiles[src], 0))
            fun = on_layouts(
                lambda v, src=src, dst=dst: window(v, 0, start, size, src, dst, n, tiles, jnp.zeros((), v.dtype)),
                devices, [(src, None)], (dst, None),
            )  # fmt: skip
            assert window_byte_hops((n, 6), 2, (src, None), 0, start, size, dst, tiles) == executed_byte_hops(fun, devices, x)


def test_a_stencil_needs_as_many_rows_from_a_neighbour_as_it_reaches():
    """u[:-2], u[1:-1] and u[2:] of 64 rows over 4 tiles; and rows moved down by one."""
    assert [reach(64, start, 62, 4, 4) for start in (0, 1, 2)] == [(0, 0), (0, 1), (0, 2)]
    assert reach(64, -1, 64, 4, 4) == (1, 0)
