"""Programs that know nothing of the wafer: `wse.jit` runs each as it stands, strictly, and gives what plain `jax.jit` gives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.compiler.test_fabric_only import assert_only_neighbours
from tests.compiler.test_same_numbers import leaves
from tests.conformance.programs import PROGRAMS, Program

SPEC = wse.WSE3.scaled(32, 32)
DEVICES = [(1, 1), (1, 2), (2, 2)]


@pytest.fixture(autouse=True)
def as_jax_comes():
    """Other people's programs broadcast; the house's own may not."""
    with jax.numpy_rank_promotion("allow"):
        yield


def check_fabric(compiled: wse.Compiled, wafer: wse.Wafer) -> None:
    """In the compiled program only neighbours talk."""
    assert_only_neighbours(compiled.as_text(), wafer.devices)


@functools.cache
def made(name: str) -> tuple[Any, tuple[Any, ...]]:
    return PROGRAMS[name].make()


def run(program: Program, fun, args) -> Any:
    """The result of the program's last step. `args` are copied, since `fun` may be given its first."""
    out = fun(*jax.tree.map(jnp.array, args))
    for _ in range(1, program.steps):
        out = fun(out[0], *args[1:])
    return out


def a_rounding_away(x, dtype, rng: np.random.Generator):
    """A floating-point array with every element moved up or down by one rounding; anything else as it is."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    eps = max(float(jnp.finfo(dtype).eps), float(jnp.finfo(x.dtype).eps))
    return (np.asarray(x, np.float64) * (1 + eps * rng.choice([-1, 1], x.shape))).astype(x.dtype)


@functools.cache
def plain(name: str) -> tuple[Any, list[float]]:
    """What plain JAX gives, and how far each array of it moves when the arguments move by a rounding.

    Sums in another order can do no less. It is how sure plain JAX is of its own result: where Adam divides a gradient that is zero but
    for rounding by its size, not at all.
    """
    program, (fun, args) = PROGRAMS[name], made(name)
    jitted = jax.jit(fun)
    want, moved = run(program, jitted, args), []
    for seed in range(3):
        move = functools.partial(a_rounding_away, dtype=program.dtype, rng=np.random.default_rng(seed))
        away = run(program, jitted, jax.tree.map(move, args))
        moved.append([distance(a, b) for a, b in zip(leaves(away), leaves(want), strict=True)])
    return want, [max(m) for m in zip(*moved, strict=True)]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two arrays where both are finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max(initial=0))


def assert_as_plain(name: str, got: Any) -> None:
    """Integers and booleans exactly; floats within a few roundings of their size and of what one rounding at the start makes of them."""
    want, moved = plain(name)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(want)]
    for path, a, b, away in zip(paths, leaves(got), leaves(want), moved, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b, err_msg=path)
            continue
        eps, a, b = float(jnp.finfo(a.dtype).eps), a.astype(np.float64), b.astype(np.float64)
        size = np.abs(b[np.isfinite(b)]).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=64 * eps, atol=32 * eps * size + 8 * away, err_msg=path)


@functools.cache
def on_wafer(name: str, tiles: tuple[int, int], devices: tuple[int, int]) -> Any:
    program, wafer = PROGRAMS[name], wse.Wafer(SPEC, tiles=tiles, devices=devices)
    fun, args = made(name)
    compiled = wse.jit(fun, wafer, donate_argnums=(0,) if program.steps > 1 else ()).lower(*args).compile()
    check_fabric(compiled, wafer)
    return run(program, compiled, args)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_what_plain_jax_gives(name):
    assert_as_plain(name, on_wafer(name, (2, 2), (2, 2)))


@pytest.mark.slow  # three compilations
@pytest.mark.parametrize("tiles", [(2, 2), (4, 4)], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_same_bits_on_every_device_mesh_and_what_plain_jax_gives(name, tiles):
    first, *others = [on_wafer(name, tiles, devices) for devices in DEVICES]
    for got in (first, *others):
        assert_as_plain(name, got)
    for devices, got in zip(DEVICES[1:], others, strict=True):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(first)]
        different = [p for p, a, b in zip(paths, leaves(got), leaves(first), strict=True) if a.tobytes() != b.tobytes()]
        assert not different, f"other bits on {devices} devices than on {DEVICES[0]}"
