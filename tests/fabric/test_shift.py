"""Laws of the shift: what it moves, what it loses at the border, its transpose, and that the device mesh does not matter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fabric.grids import mesh_of, on_grid, on_layouts, permutes
from wsejax import fabric

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
ROWS, COLS = 4, 6


def shifted(x: np.ndarray, direction: str) -> np.ndarray:
    """The oracle, in numpy: a copy into a grid of zeros."""
    out = np.zeros_like(x)
    here: list[slice] = [slice(None), slice(None)]
    there: list[slice] = [slice(None), slice(None)]
    axis = 0 if direction in ("north", "south") else 1
    grows = direction in ("south", "east")
    here[axis], there[axis] = (slice(None, -1), slice(1, None)) if grows else (slice(1, None), slice(None, -1))
    out[tuple(there)] = x[tuple(here)]
    return out


def grid(seed: int = 0, *entry: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLS, *entry)).astype(np.float32)


@pytest.mark.parametrize("direction", OPPOSITE)
def test_every_tile_gets_its_neighbours_entry_and_the_border_zeros(device_grid, direction):
    x = grid(0, 3)
    got = on_grid(lambda v: fabric.shift(v, direction), device_grid)(x)
    np.testing.assert_array_equal(got, shifted(x, direction))


@pytest.mark.parametrize("direction", OPPOSITE)
def test_there_and_back_is_the_identity_inside_the_border(device_grid, direction):
    x = grid(1)
    there_and_back = on_grid(lambda v: fabric.shift(fabric.shift(v, direction), OPPOSITE[direction]), device_grid)
    inside = shifted(shifted(np.ones_like(x), direction), OPPOSITE[direction])
    assert inside.sum() in ((ROWS - 1) * COLS, ROWS * (COLS - 1))  # one line of tiles has lost its entry
    np.testing.assert_array_equal(there_and_back(x), x * inside)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint32, np.float16, np.complex64])
def test_any_dtype_moves_unchanged(dtype):
    x = np.random.default_rng(2).integers(0, 2, (ROWS, COLS, 2)).astype(dtype)
    got = on_grid(lambda v: fabric.shift(v, "east"), (2, 2))(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, shifted(x, "east"))


@functools.cache
def compiled(direction: str):
    return on_grid(lambda v: fabric.shift(v, direction), (2, 2))


@given(st.sampled_from(sorted(OPPOSITE)), st.integers(0, 99))
def test_linear(direction, seed):
    """Exactly so for small integers, whose sums do not round."""
    x, y = np.random.default_rng(seed).integers(-99, 99, (2, ROWS, COLS)).astype(np.float32)
    move = compiled(direction)
    np.testing.assert_array_equal(move(3 * x - y), 3 * np.asarray(move(x)) - np.asarray(move(y)))


@pytest.mark.parametrize("direction", OPPOSITE)
def test_the_transpose_of_a_shift_is_the_opposite_shift(device_grid, direction):
    x = grid(3, 2)
    move = on_grid(lambda v: fabric.shift(v, direction), device_grid)
    back = shifted(x, OPPOSITE[direction])
    np.testing.assert_array_equal(jax.linear_transpose(move, x)(x)[0], back)
    np.testing.assert_array_equal(jax.vjp(move, x)[1](x)[0], back)
    np.testing.assert_array_equal(jax.jvp(move, (x,), (x,))[1], shifted(x, direction))


@pytest.mark.parametrize("direction", OPPOSITE)
def test_only_the_edge_travels_and_only_to_the_next_device(direction):
    devices = (1, 4) if direction in ("east", "west") else (4, 1)
    x = np.zeros((8, 8, 3), np.float32)
    ((sent, pairs, axis),) = permutes(on_grid(lambda v: fabric.shift(v, direction), devices), x)
    assert axis == fabric.DIRECTIONS[direction][0]
    assert sent == 8 * 3 * 4  # one line of tiles
    assert sorted(pairs) == sorted(
        (i, i + fabric.DIRECTIONS[direction][1]) for i in range(4) if 0 <= i + fabric.DIRECTIONS[direction][1] < 4
    )


@pytest.mark.parametrize("step", [1, -1])
def test_a_hop_moves_a_whole_dense_block_to_the_next_device(step):
    x = np.arange(8, dtype=np.float32)
    got = on_layouts(lambda v: fabric.hop(v, "x", step), (1, 4), [("x",)], ("x",))
    oracle = np.concatenate([[0, 0], x[:-2]] if step == 1 else [x[2:], [0, 0]])
    np.testing.assert_array_equal(np.asarray(got(x)), oracle)


def test_coordinates_and_sizes_are_those_of_the_mesh(device_grid):
    def where(v):
        here = jnp.stack([fabric.coordinate("y"), fabric.coordinate("x")])
        return jnp.broadcast_to(here * 10 + jnp.array([fabric.size("y"), fabric.size("x")]), (*v.shape, 2))

    got = np.asarray(on_grid(where, device_grid)(np.zeros((2, 2))))
    rows, cols = device_grid
    for y in range(2):
        for x in range(2):
            np.testing.assert_array_equal(got[y, x], [10 * (y * rows // 2) + rows, 10 * (x * cols // 2) + cols])


@pytest.mark.parametrize(
    ("fun", "words"),
    [
        (lambda v: fabric.shift(v, "up"), ["direction='up'", "north", "east"]),
        (lambda v: fabric.shift(v[0], "east"), ["shape (2,)", "(rows, cols)"]),
        (lambda v: fabric.hop(v, "x", 2), ["step=2", "+1 or -1"]),
        (lambda v: fabric.hop(v, "x", 0), ["step=0", "+1 or -1"]),
    ],
)
def test_a_bad_call_names_the_argument_and_the_way_out(fun, words):
    with pytest.raises(ValueError) as error:
        jax.eval_shape(fabric.on_mesh(fun, mesh_of((1, 1))), np.zeros((2, 2), np.float32))
    assert all(word in str(error.value) for word in words), error.value
