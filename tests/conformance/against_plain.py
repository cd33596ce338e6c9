"""Running a program on a wafer and in plain JAX, and comparing the two."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import wsejax as wse
from tests.compiler.test_same_numbers import leaves
from tests.conformance.programs import Program

SPEC = wse.WSE3.scaled(32, 32)
Grid = tuple[int, int]


@functools.cache
def made(program: Program) -> tuple[Any, tuple[Any, ...]]:
    return program.make()


def run(program: Program, fun, args) -> Any:
    """The result of the program's last step. `args` are copied, since `fun` may be given its first."""
    out = fun(*jax.tree.map(jnp.array, args))
    for _ in range(1, program.steps):
        out = fun(out[0], *args[1:])
    return out


@functools.cache
def on_wafer(program: Program, tiles: Grid, devices: Grid) -> Any:
    """What the program gives by `wse.jit`, strictly, with its state donated if it has one."""
    wafer, (fun, args) = wse.Wafer(SPEC, tiles=tiles, devices=devices), made(program)
    compiled = wse.jit(fun, wafer, donate_argnums=(0,) if program.steps > 1 else ()).lower(*args).compile()
    wse.check_hlo(compiled)
    return run(program, compiled, args)


@functools.cache
def in_plain_jax(program: Program) -> tuple[Any, list[float]]:
    """What `jax.jit` gives, and how far each array of it moves when the arguments move by a rounding.

    Sums in another order can do no less. It is how sure plain JAX is of its own result: where Adam divides a gradient that is zero but
    for rounding by its size, not at all.
    """
    fun, args = made(program)
    jitted = jax.jit(fun)
    want, moved = run(program, jitted, args), []
    for seed in range(3):
        move = functools.partial(a_rounding_away, dtype=program.dtype, rng=np.random.default_rng(seed))
        away = run(program, jitted, jax.tree.map(move, args))
        moved.append([distance(a, b) for a, b in zip(leaves(away), leaves(want), strict=True)])
    return want, [max(m) for m in zip(*moved, strict=True)]


def a_rounding_away(x, dtype, rng: np.random.Generator):
    """A floating-point array with every element moved up or down by one rounding; anything else as it is."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    eps = max(float(jnp.finfo(dtype).eps), float(jnp.finfo(x.dtype).eps))
    return (np.asarray(x, np.float64) * (1 + eps * rng.choice([-1, 1], x.shape))).astype(x.dtype)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two arrays where both are finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max(initial=0))


def assert_as_plain(program: Program, got: Any) -> None:
    """Integers and booleans exactly; floats within a few roundings of their size and of what one rounding at the start makes of them."""
    want, moved = in_plain_jax(program)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, a, b, away in zip(paths(want), leaves(got), leaves(want), moved, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b, err_msg=path)
            continue
        eps, a, b = float(jnp.finfo(a.dtype).eps), a.astype(np.float64), b.astype(np.float64)
        size = np.abs(b[np.isfinite(b)]).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=8 * eps, atol=8 * eps * size + 4 * away, err_msg=path)


def assert_same_bits(a: Any, b: Any) -> None:
    different = [path for path, x, y in zip(paths(a), leaves(a), leaves(b), strict=True) if x.tobytes() != y.tobytes()]
    assert not different, different


def paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def assert_as_plain_in_the_same_bits_on(grids: list[Grid], program: Program, tiles: Grid) -> None:
    first = on_wafer(program, tiles, grids[0])
    assert_as_plain(program, first)
    for devices in grids[1:]:
        assert_same_bits(on_wafer(program, tiles, devices), first)
