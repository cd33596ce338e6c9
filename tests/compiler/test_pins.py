"""A layout that the user chooses holds, spreads to what runs with it, and changes no number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import floats

WAFER = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=(2, 2))
X, W = floats(8, 16), floats(16, 12)


def layer(x, w):
    return jnp.tanh(x @ w) * 2


def named(*axes):
    return NamedSharding(WAFER.mesh, P(*axes))


def test_a_pinned_argument_lies_as_it_was_pinned_and_the_result_is_the_same():
    for spec in (P("x", "y"), P(None, "x"), P(), P("y")):
        fun = wse.jit(layer, WAFER, in_shardings=(NamedSharding(WAFER.mesh, spec), None))
        lowered = fun.lower(X, W)
        assert lowered.in_shardings[0].is_equivalent_to(NamedSharding(WAFER.mesh, spec), 2)
        np.testing.assert_allclose(fun(X, W), layer(X, W), rtol=1e-5, atol=1e-6)
    assert "pinned to ('y', None)" in lowered.layouts()


def test_shardings_of_shapes_pin_and_partition_specs_do_as_well():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=named("x", "y"))
    assert wse.jit(layer, WAFER).lower(shape, W).in_shardings[0].spec == P("x", "y")
    assert wse.jit(layer, WAFER, in_shardings=(P("x", "y"), None)).lower(X, W).in_shardings[0].spec == P("x", "y")
    assert wse.jit(layer, WAFER).lower(X, W).in_shardings[0].spec == P("y", "x")


def test_a_pin_of_a_tree_spreads_over_its_leaves_and_a_donated_result_follows():
    def step(state, x):
        return {k: v + x.sum() for k, v in state.items()}, x

    state = {"a": X, "b": floats(4, 4)}
    lowered = wse.jit(step, WAFER, donate_argnums=0, in_shardings=(P("x", "y"), None)).lower(state, X)
    assert {s.spec for s in jax.tree.leaves((lowered.in_shardings[0], lowered.out_shardings[0]))} == {P("x", "y")}


def test_an_array_that_lies_somewhere_pins_nothing():
    fun = wse.jit(layer, WAFER)
    plain = fun(X, W)
    np.testing.assert_array_equal(fun(jax.device_put(X, named("x", "y")), W), plain)
    assert len(fun._lowered) == 1


def test_an_intermediate_is_pinned_with_its_gradient_and_what_runs_with_it():
    def pinned(x, w):
        return jnp.sum(jnp.sin(wse.with_layout(layer(x, w), P("x", "y"))))

    def plain(x, w):
        return jnp.sum(jnp.sin(layer(x, w)))

    fun = wse.jit(jax.value_and_grad(pinned, argnums=(0, 1)), WAFER)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), fun(X, W), jax.value_and_grad(plain, (0, 1))(X, W))
    products = [c for c in fun.lower(X, W).program.calls if c.kernel == "gemm"]
    assert products[0].outs[0].layout == ("x", "y")  # tanh follows sin, and the product tanh
    assert pinned(X, W) == plain(X, W)  # outside wse.jit it does nothing
    batched = jax.vmap(lambda x: wse.with_layout(x, P("y")), in_axes=1, out_axes=1)
    np.testing.assert_array_equal(wse.jit(batched, WAFER)(X), X)


def test_a_pin_that_nothing_else_can_follow_holds_for_its_own_value():
    """Both sides of a square cannot lie on one axis."""

    def fun(x):
        return wse.with_layout(x, P("y", "x")) @ wse.with_layout(x, P("x", "y"))

    square = floats(8, 8)
    np.testing.assert_allclose(wse.jit(fun, WAFER)(square), square @ square, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (P("z"), "'z' is not an axis of the wafer"),
        (P(("y", "x")), r"\('y', 'x'\) is not an axis"),
        (("y", "y"), "'y' splits two dimensions"),
        (P("y", None, None), "3 entries for an array of 2 dimensions"),
    ],
)
def test_malformed_layouts_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        wse.with_layout(X, spec)
    if isinstance(spec, P):
        with pytest.raises(ValueError, match=says):
            wse.jit(layer, WAFER, in_shardings=(spec, None)).lower(X, W)


def test_pins_that_do_not_fit_the_wafer_are_refused():
    elsewhere = NamedSharding(AbstractMesh((4, 1), ("y", "x")), P("y"))
    with pytest.raises(ValueError, match=r"argument 0=.*the wafer's mesh is \{'y': 2, 'x': 2\}"):
        wse.jit(layer, WAFER).lower(jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=elsewhere), W)
    with pytest.raises(ValueError, match="not a prefix"):
        wse.jit(layer, WAFER, in_shardings=(None,)).lower(X, W)
    with pytest.raises(ValueError, match="a dimension of 1 cannot be split over the 2 tiles of axis 'y'"):
        wse.jit(layer, WAFER, in_shardings=(P("y"), None)).lower(X[:1], W)


def test_arrays_of_two_wafers_do_not_mix():
    other = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=(1, 2))
    here, there = wse.jit(jnp.sin, WAFER)(X), wse.jit(jnp.sin, other)(W)
    with pytest.raises(ValueError, match="the meshes of 2 wafers"):
        wse.jit(layer, WAFER)(here, there)
    np.testing.assert_allclose(wse.jit(layer, other)(here, W), layer(np.sin(X), W), rtol=1e-5, atol=1e-5)
