"""Kernels and rules of the user's own run where ours do: by themselves, in `wse.jit`, under gradients and in loops."""

from __future__ import annotations

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import floats
from wsejax import fabric
from wsejax.compiler.walk import RULES

SPEC = wse.WSE3.scaled(16, 16)
GRID = P("y", "x")
X = floats(4, 4, 3)


def wafer_of(devices):
    return wse.Wafer(SPEC, tiles=(4, 4), devices=devices)


def stencil(u, rate):
    """A tile's entry moves towards the sum of its four neighbours'."""
    around = sum(fabric.shift(u, way) for way in fabric.DIRECTIONS)
    return u + rate * (around - 4 * u)


def plain_stencil(u, rate):
    p = jnp.pad(u, ((1, 1), (1, 1), (0, 0)))
    return u + rate * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * u)


def program(step):
    """A scan of steps inside a loss, with a gradient through both arguments, next to ordinary operations."""

    def loss(u, rate):
        last, sums = lax.scan(lambda c, _: (step(c, rate), jnp.sum(c)), jnp.tanh(u), length=3)
        return jnp.sum(last**2) + jnp.sum(sums)

    return jax.value_and_grad(loss, argnums=(0, 1))


def test_a_kernel_composes_with_jit_grad_and_scan(device_grid):
    wafer = wafer_of(device_grid)
    mapped = wse.wafer_map(stencil, wafer, in_specs=(GRID, P()), out_specs=GRID)
    want = program(plain_stencil)(X, 0.1)
    compiled = wse.jit(program(mapped), wafer).lower(X, 0.1).compile()
    report = wse.check_hlo(compiled)
    assert bool(report.links) == (device_grid != (1, 1))
    for fun in (compiled, jax.jit(program(mapped))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), fun(X, 0.1), want)


def test_trees_integers_replicated_results_and_vmap(device_grid):
    wafer = wafer_of(device_grid)

    def kernel(parts, n):
        total = fabric.all_reduce(fabric.all_reduce(parts["u"], "x"), "y")
        return {"scaled": parts["u"] * parts["w"] * n}, total[0, 0]

    mapped = wse.wafer_map(kernel, wafer, in_specs=({"u": GRID, "w": P()}, P()), out_specs=(GRID, P()))

    def plain(parts, n):
        return {"scaled": parts["u"] * parts["w"] * n}, parts["u"].sum((0, 1))

    args = ({"u": X, "w": np.float32(3)}, np.int32(2))
    loss = lambda f: lambda parts, n: (lambda s, t: jnp.sum(jnp.sin(s["scaled"])) + jnp.sum(t**2))(*f(parts, n))
    for wrap in (jax.jit, lambda f: wse.jit(f, wafer)):
        check = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        jax.tree.map(check, wrap(mapped)(*args), plain(*args))
        jax.tree.map(check, wrap(jax.grad(loss(mapped)))(*args), jax.grad(loss(plain))(*args))
    many = np.stack([X, X + 1])
    batched = wse.jit(jax.vmap(lambda u: mapped({"u": u, "w": 2.0}, 1)[1]), wafer)(many)
    np.testing.assert_allclose(batched, many.sum((1, 2)), rtol=1e-5)


def test_what_a_kernel_moves_is_in_the_audit_and_only_the_fabric_may_move_it():
    wafer = wafer_of((2, 2))
    mapped = wse.wafer_map(stencil, wafer, in_specs=(GRID, P()), out_specs=GRID)
    (row,) = wse.audit(wse.jit(mapped, wafer), X, 0.1).to_dict()["rows"]
    edge_bytes = 2 * 3 * 4  # two tiles of three floats
    assert row["kernel"] == "stencil" and row["link_bytes"] == 4 * 2 * edge_bytes

    summed = wse.wafer_map(lambda u: lax.psum(u, "x"), wafer, in_specs=(GRID,), out_specs=P("y"))
    with pytest.raises(wse.UnsupportedOpError, match=r"psum in <lambda> at .*only wsejax\.fabric moves data"):
        wse.jit(summed, wafer).lower(X)
    with pytest.raises(wse.UnsupportedOpError, match=r"stencil at .*\(4, 4\) tiles on \(2, 2\) devices"):
        wse.jit(mapped, wafer_of((1, 2))).lower(X, 0.1)
    with pytest.raises(ValueError, match=r"in_specs\[0\].*a dimension of 6 does not divide by the 4 tiles of axis 'y'"):
        mapped(floats(6, 4, 3), 0.1)
    with pytest.raises(ValueError, match="'z' is not an axis"):
        wse.wafer_map(stencil, wafer, in_specs=(P("z"), P()), out_specs=GRID)(X, 0.1)


def test_a_rule_for_a_primitive_of_ones_own():
    twice_p = jec.Primitive("twice")
    twice_p.def_impl(lambda x: 2 * x)
    twice_p.def_abstract_eval(lambda aval: aval)
    mlir.register_lowering(twice_p, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    wafer = wafer_of((2, 2))
    fun = wse.jit(lambda x: twice_p.bind(jnp.sin(x)).sum(0), wafer)
    with pytest.raises(wse.UnsupportedOpError, match="twice"):
        fun(X)
    try:

        @wse.register_rule(twice_p)
        def twice(op, ctx):
            lay = ctx.layouts[op.outs[0]]
            return wse.Step([lay], [lay], op.bind)

        np.testing.assert_allclose(fun(X), 2 * np.sin(X).sum(0), rtol=1e-5)
        with pytest.raises(ValueError, match="'twice' has a rule already"):
            wse.register_rule("twice")(twice)

        @wse.register_rule("twice", replace=True)
        def wrong(op, ctx):
            return wse.Step([], [ctx.layouts[op.outs[0]]], op.bind)

        with pytest.raises(ValueError, match=r"rule of twice.*0 operand layouts for 1 operands"):
            wse.jit(lambda x: twice_p.bind(x), wafer)(X)
    finally:
        RULES.pop("twice", None)
