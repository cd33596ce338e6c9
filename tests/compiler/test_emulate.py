"""Emulated formats: float16 emulated is float16 itself, and every number of a CB16 program is one, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import wsejax as wse
from wsejax.compiler import emulated
from wsejax.kernels.formats import CB16, FLOAT16, round_to

RNG = np.random.default_rng(0)
A, B = (np.float32(RNG.standard_normal((64, 64)) * 10.0 ** RNG.integers(-4, 4, (64, 64))) for _ in range(2))


OPS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "root": lambda a, b: np.sqrt(abs(a)) - b}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_arithmetic_in_emulated_float16_is_that_of_float16(op):
    """Bit for bit, subnormal results included: numpy rounds each operation right."""
    like_numpy = {np.add: jnp.add, np.subtract: jnp.subtract, np.multiply: jnp.multiply, np.divide: jnp.divide}
    ours = like_numpy.get(op, lambda a, b: jnp.sqrt(jnp.abs(a)) - b)
    with np.errstate(all="ignore"):
        want = op(A.astype(np.float16), B.astype(np.float16)).astype(np.float32)
    for run in (emulated(ours, FLOAT16), jax.jit(emulated(ours, FLOAT16))):
        np.testing.assert_array_equal(run(A, B), want)


def test_a_product_rounds_once_after_adding_up_in_float32():
    a, b = (np.asarray(round_to(jnp.asarray(x), CB16)) for x in (A, B))
    want = round_to(jnp.asarray(a) @ jnp.asarray(b), CB16)
    np.testing.assert_array_equal(emulated(jnp.matmul, CB16)(A, B), want)
    np.testing.assert_array_equal(emulated(lambda x: x.sum(0), CB16)(A), round_to(jnp.asarray(a).sum(0), CB16))


def everything(w, x, count):
    """Loops, branches, remat, custom derivatives, a gather, and a result that is no float."""

    def layer(c, _):
        return jax.nn.relu(jnp.tanh(c @ w)) + 0.1, c.sum()

    y, sums = lax.scan(jax.checkpoint(layer, prevent_cse=False), x[jnp.array([3, 0, 3, 1])], None, length=3)
    y = lax.cond(count > 0, lambda y: y * 2.3, lambda y: y / 3, y)
    y = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.1), (0, lax.stop_gradient(y)))[1] + y
    y = jax.checkpoint(lambda y: jax.nn.gelu(y) * jax.nn.sigmoid(y))(y)
    return (jax.nn.logsumexp(y, axis=1) + sums.mean()).sum(), (y, count + 1)


W, X = A[:8, :8] / 1e3, B[:4, :8] / 1e3


def test_every_value_and_cotangent_of_a_program_is_one_of_the_format():
    step = jax.value_and_grad(emulated(everything, CB16), argnums=(0, 1), has_aux=True)
    (loss, (y, count)), grads = jax.jit(step)(W, X, 1)
    for leaf in jax.tree.leaves((loss, y, grads)):
        np.testing.assert_array_equal(leaf, round_to(leaf, CB16))
    assert int(count) == 2
    (exact, _), right = jax.value_and_grad(everything, argnums=(0, 1), has_aux=True)(W, X, 1)
    np.testing.assert_allclose(loss, exact, rtol=2.0**-7)
    for got, want in zip(grads, right, strict=True):
        np.testing.assert_allclose(got, want, atol=0.03 * float(abs(want).max()))
        assert (np.asarray(got) != np.asarray(round_to(want, CB16))).any(), "it was computed in the format, not only rounded at the end"


def test_it_rounds_inside_loops_and_branches():
    """Each step adds less than half a step of the format, so a sum that is rounded on the way stands still."""
    less = jnp.float32(2.0**-11)
    grown = {
        "scan": lambda d: lax.scan(lambda c, _: (c + d, None), jnp.float32(1), None, length=8)[0],
        "while": lambda d: lax.while_loop(lambda s: s[0] < 8, lambda s: (s[0] + 1, s[1] + d), (0, jnp.float32(1)))[1],
        "cond": lambda d: lax.cond(d > 0, lambda d: (1 + d) + d + d, lambda d: d, d),
        "custom": lambda d: jax.nn.softplus(0 * d) * 0 + (1 + d) + d + d,
        "remat": jax.checkpoint(lambda d: (1 + d) + d + d),
    }
    for name, fun in grown.items():
        assert float(emulated(fun, CB16)(less)) == 1.0 < float(fun(less)), name
    slope = jax.grad(emulated(lambda d: d * less + (d * less + d), CB16))
    assert float(slope(jnp.float32(3))) == 1.0, "cotangents are added up in the format, too"


def test_a_stand_in_leaves_float32_alone():
    """What is float16 in the program is CB16; a softmax in float32 stays one, and so do arguments in float32."""

    def model(w, x):
        h = x.astype(jnp.float16) @ w.astype(jnp.float16)
        return jax.nn.softmax(h.astype(jnp.float32)) * 3e-7, h

    w, x = W, jnp.asarray(X)
    soft, h = emulated(model, CB16, "float16")(w, x)
    want = round_to(round_to(x, CB16) @ round_to(jnp.asarray(w), CB16), CB16)
    assert h.dtype == jnp.float32
    np.testing.assert_array_equal(h, want)
    np.testing.assert_array_equal(soft, jax.nn.softmax(want) * 3e-7)
    assert jax.grad(lambda w: emulated(model, CB16, "float16")(w, x)[0].sum())(w).dtype == jnp.float32
    large = emulated(lambda x: (x.astype(jnp.float16) * 60_000).astype(jnp.float32), CB16, "float16")(jnp.float32([1e4]))
    np.testing.assert_allclose(large, 6e8, rtol=2.0**-8)
    assert "f16" not in str(jax.make_jaxpr(emulated(model, CB16, "float16"))(w, x))


def test_on_a_wafer_the_bits_depend_on_tiles_alone(device_grid):
    small = lambda w, x: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=2)[0].sum()
    step = jax.value_and_grad(emulated(small, CB16), argnums=(0, 1))
    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=device_grid)
    got = [np.asarray(leaf) for leaf in jax.tree.leaves(wse.jit(step, wafer)(W, X))]
    BITS.setdefault("first", got)
    for one, first, plain in zip(got, BITS["first"], jax.tree.leaves(step(W, X)), strict=True):
        np.testing.assert_array_equal(one, first)
        np.testing.assert_allclose(one, plain, atol=0.02 * float(abs(plain).max()))


BITS: dict[str, list[np.ndarray]] = {}


def test_what_cannot_be_read_is_refused_by_name():
    solve = lambda a, b: lax.custom_linear_solve(lambda x: a @ x, b, lambda _, b: b, symmetric=True)
    with pytest.raises(wse.UnsupportedOpError, match=r"custom_linear_solve at .* holds a program that cannot be emulated"):
        emulated(solve, CB16)(W, X[0])
