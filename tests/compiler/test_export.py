"""A lowered function goes to StableHLO and back: same structures, same bits, in another process, differentiable if asked."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats
from tests.compiler.test_cache import bits, cut, flip, run
from wsejax.compiler.artefact import pack

SPEC = wse.WSE3.scaled(16, 16)
WAFER = wse.Wafer(SPEC, tiles=(2, 2), devices=(2, 2))
X, W = floats(8, 16), floats(16, 32)


class Moments(NamedTuple):
    mu: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    w: jax.Array
    moments: tuple[Moments, ...]


def state() -> State:
    return State(jnp.asarray(W), (Moments(jnp.zeros((16, 32)), jnp.int32(0)),))


def step(state, x, *, rate):
    grad = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(state.w)
    (m,) = state.moments
    mu = 0.9 * m.mu + grad
    return State(state.w - rate * mu, (Moments(mu, m.count + 1),)), {"loss": grad.sum(), "more": [x.sum(), None, (x[0],)]}


def through(lowered, **options):
    return wse.load_exported(lowered.export(**options).serialize(), WAFER)


@pytest.mark.parametrize("name", ["products", "scan_over_layers", "branches", "random_numbers", "gradient_of_embedding", "sorting"])
def test_what_is_loaded_gives_the_same_bits_and_structures(name):
    fun, args = PROGRAMS[name]
    on_wafer = wse.jit(fun, WAFER)
    lowered = on_wafer.lower(*args)
    want, got = on_wafer(*args), through(lowered)(*args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert bits(got) == bits(want)
    assert [x.sharding for x in jax.tree.leaves(got)] == jax.tree.leaves(lowered.out_shardings)


def test_a_training_step_keeps_its_own_state_classes(tmp_path):
    fun = wse.jit(step, WAFER, donate_argnums=0)
    fun.lower(state(), X, rate=0.1).export().save(tmp_path / "step.wse")
    loaded = wse.load_exported(str(tmp_path / "step.wse"), WAFER)
    assert loaded.__name__ == "step" and loaded.arguments[0] == "[0].w: float32[16, 32]"
    a, b = state(), state()
    for _ in range(2):
        a, b, before = *(f(s, X, rate=0.1) for f, s in ((fun, a), (loaded, b))), b
        (a, a_metrics), (b, b_metrics) = a, b
    assert type(b) is State and type(b.moments[0]) is Moments and int(b.moments[0].count) == 2
    assert jax.tree.structure(b_metrics) == jax.tree.structure(a_metrics)
    assert bits((a, a_metrics)) == bits((b, b_metrics))
    assert before.w.is_deleted()


def test_arguments_may_be_of_another_class_with_the_same_places():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Mine:
        w: jax.Array
        moments: list

    loaded = through(wse.jit(step, WAFER).lower(state(), X, rate=0.1))
    (new, _), (want, _) = (
        loaded(Mine(state().w, [state().moments[0]]), X, rate=0.1),
        loaded(state(), X, rate=0.1),
    )
    assert type(new) is Mine and type(new.moments) is list
    assert bits(new) == bits(want)


def test_structures_that_no_argument_has_are_built_by_hand():
    loaded = through(wse.jit(lambda x: {"m": Moments(x + 1, x.sum())}, WAFER).lower(X))
    with pytest.raises(TypeError, match=r"results hold a .*Moments.*\.flat\(") as error:
        loaded(X)
    assert "test_export" in str(error.value)
    mu, count = loaded.flat(X)
    np.testing.assert_array_equal(mu, X + 1)
    assert count.shape == ()
    with pytest.raises(ValueError, match="takes 1 arrays, not 2"):
        loaded.flat(X, X)


def test_static_arguments_are_part_of_the_program():
    fun = lambda x, n, *, by: x**n + by
    loaded = through(wse.jit(fun, WAFER, static_argnums=1).lower(X, 3, by=X))
    np.testing.assert_array_equal(loaded(X, by=X), wse.jit(fun, WAFER, static_argnums=1)(X, 3, by=X))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (({"a": X, "b": X},), r"argument 1 is \[0\]\['b'\]: float32\[8, 16\], .* for \[0\]\['c'\]: float32\[8, 16\]"),
        (({"a": X, "c": X[:4]},), r"argument 1 is .*float32\[4, 16\], .*float32\[8, 16\]"),
        (({"a": X.astype(np.int32), "c": X},), r"argument 0 is .*int32\[8, 16\], .*float32\[8, 16\]"),
        (({"a": X, "c": X}, X), r"argument 2 is \[1\]: float32\[8, 16\], .*nothing"),
        (({"a": X},), r"argument 1 is nothing, .*\['c'\]"),
    ],
)
def test_other_arguments_are_refused_by_name(args, words):
    loaded = through(wse.jit(lambda d: d["a"] + d["c"], WAFER).lower({"a": X, "c": X}))
    with pytest.raises(ValueError, match=words):
        loaded(*args)


def test_it_differentiates_if_asked_to():
    fun = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    lowered = wse.jit(fun, WAFER, donate_argnums=0).lower(W, X)
    loaded = through(lowered, vjp_order=1)
    w = jnp.asarray(W)
    for argument in (0, 1):
        got, want = (jax.grad(f, argument)(w, X) for f in (loaded, wse.jit(fun, WAFER)))
        np.testing.assert_array_equal(got, want)
    loaded(w, X)
    assert not w.is_deleted()  # a derivative may come and need it
    with pytest.raises(ValueError, match=r"No VJP is available"):
        jax.grad(through(wse.jit(fun, WAFER).lower(W, X)))(W, X)


def test_it_can_be_part_of_another_program():
    loaded, fun = (f(lambda x: jnp.sin(x @ x.T)) for f in (lambda g: through(wse.jit(g, WAFER).lower(X)), lambda g: wse.jit(g, WAFER)))
    np.testing.assert_array_equal(jax.jit(lambda x: loaded(x) * 2)(X), jax.jit(lambda x: fun(x) * 2)(X))


def test_a_function_without_arguments_and_one_for_several_platforms():
    loaded = through(wse.jit(lambda: jnp.arange(32.0).reshape(4, 8), WAFER).lower(), platforms=("cpu", "cuda", "tpu"))
    np.testing.assert_array_equal(loaded(), np.arange(32.0).reshape(4, 8))
    fun = wse.jit(lambda x, w: jax.nn.softmax(x @ w), WAFER)
    assert bits(through(fun.lower(X, W), platforms=("cpu", "cuda"))(X, W)) == bits(fun(X, W))


def test_a_cached_function_is_exported_like_any_other(tmp_path):
    fun = lambda x, w: jnp.tanh(x @ w)
    for _ in range(2):
        cached = wse.jit(fun, WAFER, cache=tmp_path)
        want, got = cached(X, W), through(cached.lower(X, W))(X, W)
    assert cached.lower(X, W).compile().cache.state == "hit"
    assert bits(got) == bits(want)


def test_the_text_is_stablehlo_with_the_fabrics_shifts():
    text = wse.jit(lambda x, w: x @ w, WAFER).lower(X, W).export().mlir()
    assert "stablehlo.dot_general" in text and "stablehlo.collective_permute" in text


PROCESS = """
import sys, jax
from tests import conftest
from tests.compiler import test_export as t

print(".".join(b.hex() for b in t.bits(t.wse.load_exported(sys.argv[1], t.WAFER)(t.state(), t.X, rate=0.1))))
"""


def test_a_new_process_runs_it_with_the_same_bits(tmp_path):
    fun = wse.jit(step, WAFER)
    fun.lower(state(), X, rate=0.1).export().save(tmp_path / "step.wse")
    assert run(PROCESS, str(tmp_path / "step.wse")) == ".".join(b.hex() for b in bits(fun(state(), X, rate=0.1)))


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wafer", "words"),
    [
        (WAFER.replace(tiles=(4, 4)), r"tiles=\(2, 2\), the wafer has \(4, 4\)"),
        (WAFER.replace(reduction="tree"), r"reduction='chain', the wafer has 'tree'"),
        (WAFER.replace(devices=(1, 2)), r"devices=\(2, 2\)"),
        (Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b")), r"devices=\(2, 2\)"),
    ],
)
def test_another_machine_is_refused(wafer, words):
    content = wse.jit(lambda x: x.sum(), WAFER).lower(X).export().serialize()
    with pytest.raises(ValueError, match=words):
        wse.load_exported(content, wafer)


def test_a_mesh_will_do_and_another_platform_will_not():
    lowered = wse.jit(lambda x: x.sum(0), WAFER).lower(X)
    mesh = Mesh(np.array(jax.devices()[3::-1]).reshape(2, 2), ("y", "x"))
    got = wse.load_exported(lowered.export().serialize(), mesh)(X)
    assert got.sharding.mesh == mesh
    np.testing.assert_array_equal(got, wse.jit(lambda x: x.sum(0), WAFER)(X))
    with pytest.raises(ValueError, match="exported for cuda, not for cpu"):
        wse.load_exported(lowered.export(platforms=["cuda"]).serialize(), mesh)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "checksum"),
        (flip, "checksum"),
        (lambda p: p.write_bytes(b""), "wsejax did not write it"),
        (lambda p: p.write_bytes(b"wsejax artefact 2\n" + p.read_bytes()[18:]), "format is '2', this wsejax reads '1'"),
        (lambda p: p.write_bytes(pack({"kind": "cache entry"}, b"")), "it is a cache entry, not a exported function"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(damage, words, tmp_path):
    path = tmp_path / "f.wse"
    wse.jit(lambda x: x.sum(), WAFER).lower(X).export().save(path)
    damage(path)
    for source in (path, path.read_bytes()):
        with pytest.raises(wse.ArtefactError, match=words) as error:
            wse.load_exported(source, WAFER)
    assert "f.wse" not in str(error.value)
    with pytest.raises(wse.ArtefactError, match=r"f\.wse"):
        wse.load_exported(path, WAFER)


def test_a_lost_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        wse.load_exported(tmp_path / "none.wse", WAFER)


def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch):
    exported = wse.jit(lambda x: x.sum(), WAFER).lower(X).export()
    exported.save(tmp_path / "f.wse")
    before = (tmp_path / "f.wse").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        exported.save(tmp_path / "f.wse")
    assert (tmp_path / "f.wse").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.wse"]
