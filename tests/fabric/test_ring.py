"""Laws of the folded ring: a permutation of one cycle whose every step is at most two hops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fabric.grids import on_grid, on_layouts, permutes
from wsejax import fabric
from wsejax.fabric.ring import ring_hop, ring_order


@given(st.integers(1, 200))
def test_the_ring_visits_every_position_once_in_steps_of_at_most_two(n):
    order = ring_order(n)
    assert sorted(order) == list(range(n))
    assert all(abs(a - b) <= 2 for a, b in zip(order, order[1:] + order[:1], strict=True))


@given(st.integers(2, 200))
def test_a_turn_takes_two_hops_for_each_link_of_the_line(n):
    """2 (n - 1): the least that a closed walk over the whole line can take."""
    order = ring_order(n)
    assert sum(abs(a - b) for a, b in zip(order, order[1:] + order[:1], strict=True)) == 2 * (n - 1)


@pytest.mark.parametrize(("axis", "shape"), [("x", (2, 4)), ("x", (2, 6)), ("y", (4, 2)), ("y", (6, 2)), ("x", (2, 2)), ("y", (2, 8))])
def test_a_ring_shift_sends_every_entry_to_its_successor(device_grid, axis, shape):
    dim = fabric.AXES.index(axis)
    n = shape[dim]
    x = np.arange(np.prod(shape) * 3, dtype=np.float32).reshape(*shape, 3)
    order = ring_order(n)
    got = np.asarray(on_grid(lambda v: fabric.ring_shift(v, axis), device_grid)(x))
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        np.testing.assert_array_equal(np.take(got, there, dim), np.take(x, here, dim))


@pytest.mark.parametrize(("axis", "shape"), [("x", (2, 6)), ("y", (4, 2))])
def test_as_many_ring_shifts_as_tiles_are_the_identity_and_fewer_are_not(device_grid, axis, shape):
    n = shape[fabric.AXES.index(axis)]
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    step = on_grid(lambda v: fabric.ring_shift(v, axis), device_grid)
    y = x
    for turn in range(1, n + 1):
        y = step(y)
        assert np.array_equal(y, x) == (turn == n)


def test_a_ring_of_one_is_the_identity():
    x = np.arange(4.0, dtype=np.float32).reshape(1, 4)
    np.testing.assert_array_equal(on_grid(lambda v: fabric.ring_shift(v, "y"), (1, 2))(x), x)


@pytest.mark.parametrize("devices", [(1, 2), (1, 3), (1, 4)])
def test_a_ring_hop_of_the_devices_is_one_permutation_of_at_most_two_hops(devices):
    n = devices[1]
    hop = on_layouts(lambda v: ring_hop(v, "x"), devices, [("x",)], ("x",))
    ((_, pairs, axis),) = permutes(hop, np.zeros(2 * n, np.float32))
    assert axis == "x" and sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == list(range(n))
    assert all(abs(a - b) <= 2 for a, b in pairs)
    order = ring_order(n)
    assert set(pairs) == set(zip(order, order[1:] + order[:1], strict=True))
    y = x = np.arange(2 * n, dtype=np.float32)
    for _ in range(n):
        y = hop(y)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("axis", fabric.AXES)
@pytest.mark.parametrize(("devices", "tiles"), [(1, 1), (1, 5), (2, 2), (2, 6), (2, 8), (3, 9), (3, 15), (4, 4), (4, 12)])
def test_a_pass_sends_every_tile_to_its_successor_whoever_holds_it(axis, devices, tiles):
    grid = (1, devices) if axis == "x" else (devices, 1)
    number = np.arange(tiles, dtype=np.int32)

    def step(v):
        mine = fabric.ring_tiles(axis, tiles)
        return fabric.ring_pass(v[mine % v.shape[0]], axis)[jnp.argsort(mine)]

    got = np.asarray(on_layouts(step, grid, [(axis,)], (axis,))(number))
    order = ring_order(tiles)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        assert got[there] == here


@pytest.mark.parametrize(("tiles", "messages"), [(4, 1), (8, 2), (12, 2)])
def test_a_pass_sends_one_tile_each_way_or_one_to_the_successor(tiles, messages):
    step = on_layouts(lambda v: fabric.ring_pass(v, "x"), (1, 4), [("x",)], ("x",))
    moved = list(permutes(step, np.zeros(tiles, np.float32)))
    assert [sent for sent, _, _ in moved] == [4] * messages
    assert all(abs(a - b) <= (2 if tiles == 4 else 1) for _, pairs, _ in moved for a, b in pairs)


def test_tiles_that_do_not_divide_by_the_devices_have_no_ring():
    with pytest.raises(ValueError, match="5 tiles along 'x' do not divide by its 2 devices"):
        on_layouts(lambda v: fabric.ring_tiles("x", 5), (1, 2), [("x",)], ("x",))(np.zeros(2))


@pytest.mark.parametrize("axis", fabric.AXES)
def test_a_ring_shift_moves_single_tiles_to_neighbours_only(axis):
    devices = (1, 4) if axis == "x" else (4, 1)
    moved = list(permutes(on_grid(lambda v: fabric.ring_shift(v, axis), devices), np.zeros((8, 8), np.float32)))
    assert moved and all(abs(a - b) == 1 for _, pairs, _ in moved for a, b in pairs)
    assert all(sent == 8 * 4 for sent, _, _ in moved)  # one line of tiles, two devices' worth of tiles stays


def test_the_transpose_of_a_ring_shift_goes_round_the_other_way(device_grid):
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    step = on_grid(lambda v: fabric.ring_shift(v, "x"), device_grid)
    (back,) = jax.linear_transpose(step, x)(step(x))
    np.testing.assert_array_equal(back, x)
