"""Every small program on the wafer equals plain `jax.jit`, and has the same bits on every device mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.compiler.programs import PROGRAMS

SPEC = wse.WSE3.scaled(16, 16)


def leaves(tree: Any) -> list[np.ndarray]:
    """Arrays of a result on the host; a key as its numbers."""
    keys = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(x) if keys(x) else x) for x in map(jnp.asarray, jax.tree.leaves(tree))]


def assert_same_numbers(got: Any, want: Any) -> None:
    """Integers and booleans exactly; floats within a few roundings of their size."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for n, (a, b) in enumerate(zip(leaves(got), leaves(want), strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), n
        if jnp.issubdtype(a.dtype, jnp.inexact):
            eps = float(jnp.finfo(a.dtype).eps)
            wide = np.complex128 if np.iscomplexobj(a) else np.float64
            size = np.abs(b.astype(wide)[np.isfinite(b)]).max(initial=1e-3)
            np.testing.assert_allclose(a.astype(wide), b.astype(wide), rtol=64 * eps, atol=32 * eps * size, err_msg=f"result {n}")
        else:
            np.testing.assert_array_equal(a, b, err_msg=f"result {n}")


@pytest.mark.parametrize("tiles", [(2, 2), (4, 2)], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_equals_plain_jax_in_the_same_bits_on_every_device_mesh(name, tiles):
    fun, args = PROGRAMS[name]
    want = jax.jit(fun)(*args)
    grids = [(1, 1), (1, 2), (2, 2)] if tiles == (2, 2) else [(1, 1), (2, 2)]
    first = None
    for devices in grids:
        got = wse.jit(fun, wse.Wafer(SPEC, tiles=tiles, devices=devices))(*args)
        assert_same_numbers(got, want)
        bits = [x.tobytes() for x in leaves(got)]
        first = first or bits
        different = [n for n, (a, b) in enumerate(zip(bits, first, strict=True)) if a != b]
        assert not different, f"results {different} have other bits on {devices} devices than on {grids[0]}"
