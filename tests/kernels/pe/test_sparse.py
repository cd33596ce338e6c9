"""The fabric's sparse product does what the dense one does, whatever the share of zeros, and sends the non-zeros alone."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import wsejax as wse
from wsejax.compiler import measure_activation_sparsity
from wsejax.kernels.pe import sparse, trees
from wsejax.kernels.pe.tiles import to_tiles

GRID, SPEC = (2, 4), PartitionSpec("y", "x")
ROWS, INNER, COLUMNS = 12, 16, 8
ROOM = ROWS * INNER // GRID[0]
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999, 1.0)
ORDER = np.random.default_rng(0).permutation(ROWS * INNER)
A = np.random.default_rng(1).integers(1, 9, (ROWS, INNER)).astype(np.float32)  # whole numbers: every order of a sum gives the same
X = np.random.default_rng(2).integers(-9, 9, (INNER, COLUMNS)).astype(np.float32)


def with_zeros(share: float) -> np.ndarray:
    a = A.copy()
    a.flat[ORDER[: round(share * a.size)]] = 0
    return a


@functools.cache
def program(devices: tuple[int, int]):
    wafer = wse.Wafer(wse.WSE3.scaled(*GRID), tiles=GRID, devices=devices)
    return wse.wafer_map(sparse.spmm, wafer, (SPEC, SPEC), SPEC)


@functools.cache
def compiled(devices: tuple[int, int]):
    return jax.jit(program(devices))


@pytest.mark.parametrize("share", SHARES)
def test_it_equals_the_dense_product_at_every_sparsity(share):
    a = with_zeros(share)
    stream = sparse.stream_of(a, GRID, ROOM)
    whole = np.asarray(compiled((1, 1))(stream, to_tiles(X, GRID)))
    np.testing.assert_array_equal(np.concatenate(list(whole[0]), axis=-1)[:, :COLUMNS], a @ X)
    rounded = to_tiles(X / np.float32(7), GRID)  # here the order shows
    results = [np.asarray(compiled(devices)(stream, rounded)) for devices in ((1, 1), (1, 2), (2, 2))]
    for other in results[1:]:
        np.testing.assert_array_equal(other.view(np.uint8), results[0].view(np.uint8))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_two_wavelets_a_non_zero_and_link_and_none_for_a_zero(share):
    """Beside those of the reduction, which sends partial results, zero or not."""
    a, x = with_zeros(share), to_tiles(X, GRID)
    sent = wse.traffic(program((1, 1)), sparse.stream_of(a, GRID), x).wavelets
    nonzeros = np.count_nonzero(a)
    _, east, _, west = sent
    assert east.sum() == 2 * nonzeros * (GRID[1] - 1) and west.sum() == 0
    of_law = sparse.spmm_element_hops(GRID, nonzeros, ROWS, x.shape[3], trees.k_tree(GRID[0]))
    assert sent.sum() == of_law


def test_a_layers_weights_stream_and_what_is_skipped_is_what_is_counted():
    """The multiply-adds that the PEs do are those that are left when zero weights are taken away."""
    kernel = with_zeros(0.75).T.reshape(INNER, 3, 4)  # a layer's: in, heads, width
    layer = lambda w, x: jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())))
    stream = sparse.stream_of_layer(kernel, GRID, room=ROOM)
    out = np.asarray(compiled((1, 1))(stream, to_tiles(X, GRID)))
    columns = np.concatenate(list(out[0]), axis=-1)[:, :COLUMNS]
    np.testing.assert_array_equal(columns.T.reshape(COLUMNS, 3, 4), layer(kernel, X.T))
    counted = measure_activation_sparsity(layer, kernel, X.T)
    entries = int((np.asarray(stream.index) >= 0).sum())
    assert counted.macs - counted.skipped_macs_weight == entries * COLUMNS


@pytest.mark.parametrize("contracted", [0, 3])
def test_a_layer_contracts_some_of_its_dimensions(contracted):
    with pytest.raises(ValueError, match=rf"contracted={contracted}"):
        sparse.stream_of_layer(np.ones((2, 3, 4)), GRID, contracted)
