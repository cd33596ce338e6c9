"""`wse.jit` is called, lowered and refused as its docstring says."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats

SPEC = wse.WSE3.scaled(16, 16)
WAFER = wse.Wafer(SPEC, tiles=(2, 2), devices=(2, 2))


def step(state, x):
    """A donated state comes back with the same structure, after an unrelated result's worth of work."""
    loss, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w["in"] @ w["out"]) ** 2))(state["w"])
    return {"w": jax.tree.map(lambda w, g: w - 0.1 * g, state["w"], grads), "count": state["count"] + 1}, loss


def state():
    return {"w": {"in": floats(16, 32), "out": floats(32, 8)}, "count": np.int32(0)}


def test_results_are_laid_out_over_the_mesh_as_out_shardings_say():
    fun = wse.jit(step, WAFER, donate_argnums=0)
    lowered = fun.lower(state(), floats(8, 16))
    out = fun(state(), floats(8, 16))
    assert jax.tree.structure(lowered.out_shardings) == jax.tree.structure(out)
    for array, sharding in zip(jax.tree.leaves(out), jax.tree.leaves(lowered.out_shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
        assert isinstance(sharding, NamedSharding) and sharding.mesh == WAFER.mesh


def test_a_donated_state_comes_back_laid_out_as_it_went_in_and_its_buffers_are_gone():
    fun = wse.jit(step, WAFER, donate_argnums=0)
    lowered = fun.lower(state(), floats(8, 16))
    assert lowered.in_shardings[0] == lowered.out_shardings[0]
    assert lowered.in_shardings[0]["w"]["in"].spec == P("y", "x")
    first, _ = fun(state(), floats(8, 16))
    second, _ = fun(first, floats(8, 16))
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert int(second["count"]) == 2
    kept = jax.device_put(jax.tree.map(jnp.asarray, state()), lowered.in_shardings[0])
    wse.jit(step, WAFER)(kept, floats(8, 16))
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept))


def test_it_compiles_once_however_its_arguments_are_laid_out(caplog):
    traced = []

    def counted(state, x):
        traced.append(1)
        return step(state, x)

    def compilations():  # of programs; moving an argument to where it belongs may compile a copy
        found = [re.search(r"Finished XLA compilation of jit\((\w+|<lambda>)\)", r.getMessage()) for r in caplog.records]
        return {m.group(1) for m in found if m}

    fun = wse.jit(counted, WAFER, donate_argnums=0)
    x = floats(8, 16)
    layouts = [jax.devices()[3], NamedSharding(WAFER.mesh, P(None, "y"))]
    batches = [jnp.asarray(x), *(jax.device_put(x, where) for where in layouts)]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        held, _ = fun(state(), x)
        programs = compilations()
        caplog.clear()
        for batch in batches:
            held, _ = fun(held, batch)
    assert programs and not programs & compilations()
    assert len(traced) == 1
    fun(held, x[:4])
    assert len(traced) == 2  # another shape is another program


def test_keywords_and_static_arguments():
    def scaled(x, power, *, shift, name):
        assert isinstance(power, int) and name == "n"
        return x**power + shift["by"]

    fun = wse.jit(scaled, WAFER, static_argnums=1, static_argnames="name")
    x = floats(8, 16)
    np.testing.assert_allclose(fun(x, 2, shift={"by": 1.0}, name="n"), x**2 + 1, rtol=1e-6)
    np.testing.assert_allclose(fun(x, 3, shift={"by": x}, name="n"), x**3 + x, rtol=1e-5, atol=1e-6)
    args, kwargs = fun.lower(x, 2, shift={"by": x}, name="n").in_shardings
    assert args[0].spec == kwargs["shift"]["by"].spec  # they meet element by element


def test_a_mesh_of_explicit_axes_will_do_and_its_types_do_not_leak():
    mesh = jax.make_mesh((2, 2), ("y", "x"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    x, fun = floats(8, 16), lambda x: jnp.sin(x @ x.T)
    wafer = wse.Wafer(SPEC, tiles=(2, 2), mesh=mesh)
    for got in (wse.jit(fun, wafer)(x), wse.jit(fun, wafer).lower(x).compile()(jax.device_put(x, NamedSharding(mesh, P("y"))))):
        np.testing.assert_allclose(got, fun(x), rtol=1e-5, atol=1e-5)
        assert "@" not in str(jax.typeof(got)) and (got @ got).shape == (8, 8)


def test_a_function_keeps_its_name_and_composes_with_jax():
    fun = wse.jit(step, WAFER)
    assert fun.__name__ == "step" and fun.__doc__ == step.__doc__
    f, x = (lambda x: jnp.sin(x @ x.T).sum()), floats(8, 16)
    np.testing.assert_allclose(jax.grad(wse.jit(f, WAFER))(x), jax.grad(f)(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(wse.jit(f, WAFER))(x), f(x), rtol=1e-5)


def test_closed_over_arrays_may_lie_anywhere():
    w = wse.jit(lambda w: w * 2, WAFER)(floats(16, 8))
    assert w.sharding.spec == P("y", "x")
    x = floats(8, 16)
    np.testing.assert_allclose(wse.jit(lambda x: x @ w, WAFER.replace(devices=(1, 1)))(x), x @ np.asarray(w), rtol=1e-5, atol=1e-6)


def test_lowering_needs_shapes_only_and_allocates_nothing():
    """A product of 70 GB."""
    a, b = jax.ShapeDtypeStruct((4096, 2**20), jnp.float32), jax.ShapeDtypeStruct((2**20, 2**14), jnp.float32)
    before = {id(x) for x in jax.live_arrays()}
    lowered = wse.jit(lambda a, b: jnp.tanh(a @ b).sum(), WAFER).lower(a, b)
    text = lowered.as_text()
    assert "collective_permute" in text and "1048576" in text
    assert {id(x) for x in jax.live_arrays()} <= before
    (gemm,) = [c for c in lowered.program.calls if c.kernel == "gemm"]
    assert gemm.flops == 2 * 4096 * 2**20 * 2**14


def test_compiled_runs_and_refuses_another_structure():
    fun = wse.jit(step, WAFER)
    compiled = fun.lower(state(), floats(8, 16)).compile()
    new, loss = compiled(state(), floats(8, 16))
    want, want_loss = fun(state(), floats(8, 16))
    assert float(loss) == float(want_loss)
    np.testing.assert_array_equal(new["w"]["in"], want["w"]["in"])
    assert "HloModule" in compiled.as_text()
    assert compiled.memory_analysis() is not None and compiled.cost_analysis()
    with pytest.raises(ValueError, match="same structure"):
        compiled(floats(8, 16))


def test_layouts_name_every_argument_with_its_reason():
    text = wse.jit(step, WAFER, donate_argnums=0).lower(state(), floats(8, 16)).layouts()
    assert "[16/y, 32/x]" in text and "['in']" in text
    assert "test_jit.py" in text and "product" in text
    lines = text.splitlines()
    assert sum(line.startswith("argument ") for line in lines) == 4 and sum(line.startswith("result[") for line in lines) == 4


@pytest.mark.parametrize("name", ["two_layers", "gradient", "attention", "embedding"])
def test_defects_never_change_a_bit(name):
    fun, args = PROGRAMS[name]
    spec = wse.WSE3.scaled(24, 24)
    wafers = [
        wse.Wafer(spec, wse.DefectMap.uniform(spec, dead_pe_fraction=p, seed=seed), tiles=(2, 2), devices=(1, 2))
        for p, seed in ((0, 0), (0.03, 1), (0.05, 2))
    ]
    assert len({w.logical_grid for w in wafers}) > 1  # the defects do cost something
    first, *others = [[np.asarray(x).tobytes() for x in jax.tree.leaves(wse.jit(fun, w)(*args))] for w in wafers]
    assert all(bits == first for bits in others)


def test_the_tiles_decide_the_bits_of_sums():
    """Else the laws about device meshes would hold for a compiler that ignored its tiles. (A product's terms add up front to back on
    any tiles.)"""
    x = floats(64, 512)
    total = lambda x: jnp.sum(jnp.tanh(x), 0)
    bits = {np.asarray(wse.jit(total, wse.Wafer(SPEC, tiles=t, devices=(1, 1)))(x)).tobytes() for t in ((2, 2), (4, 4), (8, 8))}
    assert len(bits) == 3


def test_a_transposed_result_does_not_reach_into_its_product():
    """A weight's gradient, contracted over batch and time, is written transposed: folded into the product it swaps the operands."""
    x, w = floats(16, 128, 256), floats(256, 128)
    step = jax.grad(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2))
    one, four = (np.asarray(wse.jit(step, wse.Wafer(SPEC, tiles=(2, 2), devices=d))(w, x)) for d in ((1, 1), (2, 2)))
    np.testing.assert_array_equal(one, four)


# ---- refusals --------------------------------------------------------------------------------------------------------
def on_the_host(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), jnp.cos(x), vmap_method="sequential")


def by_hand(x):
    return pl.pallas_call(lambda i, o: o.__setitem__(..., i[...] * 2), out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


X = floats(8, 16)


@pytest.mark.parametrize(("fun", "primitive"), [(on_the_host, "pure_callback"), (by_hand, "pallas_call")])
def test_an_operation_without_a_rule_is_refused_by_name_and_line_or_shown_in_the_audit(fun, primitive):
    line = fun.__code__.co_firstlineno + 1
    with pytest.raises(wse.UnsupportedOpError) as error:
        wse.jit(fun, WAFER).lower(X)
    message = str(error.value)
    assert message.startswith(primitive) and f"test_jit.py:{line} ({fun.__name__})" in message and "strict=False" in message

    loose = wse.jit(fun, WAFER, strict=False)
    np.testing.assert_allclose(loose(X), fun(X), rtol=1e-4, atol=1e-4)
    audit = wse.audit(loose, X)
    assert not audit.clean and audit.to_dict()["off_fabric_bytes"] == 2 * X.nbytes
    shown = str(audit).split("NOT on the fabric")[1]
    assert primitive in shown and f"test_jit.py:{line}" in shown


def test_a_program_on_the_fabric_is_clean():
    audit = wse.jit(step, WAFER).lower(state(), floats(8, 16)).audit()
    assert audit.clean and "NOT on the fabric: gathered and computed whole on every block: 0 kinds of calls" in str(audit)
    assert f"{Path(__file__).name}" in str(audit)


def test_the_audit_is_a_table_and_data():
    lowered = wse.jit(step, WAFER).lower(state(), floats(8, 16))
    before = lowered.audit()
    assert before.hlo is None and "not yet" in str(before)
    lowered.compile()
    data = json.loads(json.dumps(lowered.audit().to_dict()))
    assert data["hlo"]["permutes"] > 0 and data["off_fabric_bytes"] == 0 and data["clean"]
    assert data["link_bytes"] == lowered.program.byte_hops == sum(row["link_bytes"] for row in data["rows"])
    products = [row for row in data["rows"] if row["primitive"] == "dot_general"]
    assert {row["kernel"] for row in products} == {"gemm"} and all(f"{Path(__file__).name}" in row["source"] for row in products)
    with pytest.raises(TypeError, match=r"wse\.audit\(wse\.jit\(fun, wafer\)"):
        wse.audit(step, state(), floats(8, 16))


def test_a_refusal_inside_a_loop_names_the_loops_line_too():
    def looped(x):
        return lax.scan(lambda c, _: (on_the_host(c), None), x, length=2)[0]

    with pytest.raises(wse.UnsupportedOpError, match=r"^pure_callback.*test_jit\.py:\d+"):
        wse.jit(looped, WAFER).lower(floats(8, 8))


@pytest.mark.parametrize("strict", [True, False])
def test_side_effects_are_refused(strict):
    def noisy(x):
        jax.debug.print("{}", x.sum())
        return x

    with pytest.raises(wse.UnsupportedOpError, match=r"side effects.*pure") as error:
        wse.jit(noisy, WAFER, strict=strict).lower(floats(8, 8))
    assert "test_jit.py" in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wse.jit(step, "wafer"), ["wafer='wafer'", "wse.Wafer"]),
        (lambda: wse.jit(step, WAFER, donate_argnums=(0, 1), static_argnums=1), ["donate_argnums", "static_argnums", "argument 1"]),
    ],
)
def test_a_bad_argument_is_named_with_the_way_out(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_no_array_is_refused():
    with pytest.raises(TypeError, match="str"):
        wse.jit(lambda x: x, WAFER)("text")


def test_what_is_no_array_is_named_with_the_way_out():
    with pytest.raises(TypeError, match=r"argument \[1\]\['mode'\]='fast' of type str is no array.*static_argnums"):
        wse.jit(lambda x, options: x, WAFER)(X, {"mode": "fast"})
    with pytest.raises(TypeError, match="fun=3: give a function"):
        wse.jit(3, WAFER)  # pyright: ignore[reportArgumentType]


def test_a_carry_that_changes_shape_is_jaxs_error_with_a_note():
    def grows(x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.concatenate([c, c]), x)

    with pytest.raises(TypeError, match="carry") as error:
        wse.jit(grows, WAFER)(X)
    assert any("do not change" in note for note in error.value.__notes__)


def test_a_large_closure_is_told_of():
    table = jnp.ones((1024, 5000))
    with pytest.warns(
        UserWarning, match=r"closes over 20,\d+,\d+ bytes of arrays, the largest float32\[1024,5000\].*Pass them as arguments"
    ):
        wse.jit(lambda x: (x @ table[:16, :8]).sum(), WAFER).lower(X)
