"""The key of the cache leaves nothing out that decides a program, and says which part of it changed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats
from tests.compiler.test_cache import SPEC, WAFER, W, X, bits, compiled, layer
from wsejax.compiler import cachekey
from wsejax.compiler.walk import RULES


def scaled(by):
    return lambda x, w: (jnp.tanh(x @ w) * by, (x**2).sum())


def defects(wafer, seed):
    return wafer.replace(defects=wse.DefectMap.uniform(wafer.spec, dead_pe_fraction=0.02, seed=seed))


BIG = wse.Wafer(wse.WSE3.scaled(24, 24), tiles=(2, 2), devices=(2, 2))
TABLE = floats(8, 32)
OTHER_TABLE = TABLE.copy()
OTHER_TABLE[7, 31] += 1e-3

# name -> (what was stored, what is asked for, the difference that must be named)
CHANGES = {
    "defects": (dict(wafer=defects(BIG, 0)), dict(wafer=defects(BIG, 1)), "wafer.defects: "),
    "a larger piece of wafer": (dict(wafer=WAFER), dict(wafer=BIG), "wafer.spec.cols: 16 -> 24"),
    "tiles": (dict(), dict(wafer=WAFER.replace(tiles=(4, 2))), "wafer.tiles: (2, 2) -> (4, 2)"),
    "devices": (dict(), dict(wafer=WAFER.replace(devices=(1, 2))), "wafer.devices: (2, 2) -> (1, 2)"),
    "which devices": (
        dict(),
        dict(wafer=wse.Wafer(SPEC, tiles=(2, 2), mesh=Mesh(np.array(jax.devices()[3::-1]).reshape(2, 2), ("y", "x")))),
        "machine.devices: ",
    ),
    "a shape": (dict(), dict(args=(floats(16, 16), W)), "argument 0: [0]: float32[8, 16] -> [0]: float32[16, 16]"),
    "a dtype": (dict(), dict(args=(X.astype(jnp.bfloat16), W)), "argument 0: [0]: float32[8, 16] -> [0]: bfloat16[8, 16]"),
    "one more argument": (
        dict(fun=lambda *a: a[0] * 2, args=(X,)),
        dict(fun=lambda *a: a[0] * 2, args=(X, X)),
        "argument 1: nothing -> [1]: float32[8, 16]",
    ),
    "strictness": (dict(), dict(strict=False), "strict: True -> False"),
    "how the wafer adds up": (dict(), dict(wafer=WAFER.replace(reduction="tree")), "wafer.reduction: 'chain' -> 'tree'"),
    "a pinned layout": (dict(), dict(in_shardings=(P(None, "y"), None)), "pinned: () -> ((0, (None, 'y')))"),
    "donation": (dict(fun=lambda x, w: (x + 1, w)), dict(fun=lambda x, w: (x + 1, w), donate_argnums=0), "donated: () -> (0)"),
    "a number in the program": (dict(fun=scaled(2.0)), dict(fun=scaled(2.5)), "program, first in line 3: "),
    "its last bit": (dict(fun=scaled(0.1)), dict(fun=scaled(np.nextafter(np.float32(0.1), 1))), "program, first in line 3: "),
    "a parameter of an operation": (
        dict(fun=lambda x: jnp.cumsum(x, 0), args=(X,)),
        dict(fun=lambda x: jax.lax.cumsum(x, 0, reverse=True), args=(X,)),
        "reverse=False](v0) -> v1: float32[8,16] = cumsum[axis=0 reverse=True]",
    ),
    "one element of a closed-over array": (dict(fun=scaled(TABLE)), dict(fun=scaled(OTHER_TABLE)), "sha256:"),
    "the body of a loop": (
        dict(fun=lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * 2, x), args=(X,)),
        dict(fun=lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c + 2, x), args=(X,)),
        " = mul[",
    ),
    "how a scatter combines": (
        dict(fun=lambda x, i: x.at[i].add(x[0]), args=(X, np.int32([1, 2]))),
        dict(fun=lambda x, i: x.at[i].max(x[0]), args=(X, np.int32([1, 2]))),
        "program, first in line",
    ),
    "a static argument": (
        dict(fun=lambda x, n: x * n, args=(X, 2), static_argnums=1),
        dict(fun=lambda x, n: x * n, args=(X, 3), static_argnums=1),
        "program, first in line 1: ",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_miss_and_is_named(name, tmp_path):
    before, after, words = CHANGES[name]
    assert compiled(tmp_path, **before).cache.state == "miss"
    options = dict(fun=layer, wafer=WAFER, args=(X, W)) | after
    fun, wafer, args = (options.pop(k) for k in ("fun", "wafer", "args"))
    lowered = wse.jit(fun, wafer, cache=tmp_path, **options).lower(*args)
    assert words in lowered.explain(), lowered.explain()
    info = lowered.compile().cache
    assert info.state == "miss" and any(words in line for line in info.why)
    assert bits(wse.jit(fun, wafer, cache=tmp_path, **options)(*args)) == bits(wse.jit(fun, wafer, **options)(*args))
    assert compiled(tmp_path, **before).cache.state == "hit"  # and the first is still there


def test_flags_settings_and_sources_are_in_the_key(tmp_path, monkeypatch):
    compiled(tmp_path)

    def explain():
        return wse.jit(layer, WAFER, cache=tmp_path).lower(X, W).explain()

    assert explain().endswith("stored")
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_fast_math=true")
        assert "environment.XLA_FLAGS: " in explain() and "fast_math" in explain()
    with jax.threefry_partitionable(False):
        assert "settings.jax_threefry_partitionable: True -> False" in explain()
    with monkeypatch.context() as patch:
        patch.setattr(cachekey, "_sources", lambda: "edited")
        assert "versions.wsejax: sources " in explain() and "edited" in explain()
    assert explain().endswith("stored")


def test_every_source_file_that_makes_a_program_counts(tmp_path, monkeypatch):
    for file in (Path(cachekey.__file__), tmp_path / "wsejax" / "compiler" / "cachekey.py"):
        monkeypatch.setattr(cachekey, "__file__", str(file))
        cachekey._sources.cache_clear()
        file.parent.mkdir(parents=True, exist_ok=True)
        first = cachekey._sources()
        if file.is_relative_to(tmp_path):
            for floor in ("hardware", "fabric", "kernels", "compiler/rules"):
                (file.parent.parent / floor).mkdir(parents=True, exist_ok=True)
                (file.parent.parent / floor / "new.py").write_text("x = 1")
                cachekey._sources.cache_clear()
                assert cachekey._sources() != first
                first = cachekey._sources()
    monkeypatch.undo()
    cachekey._sources.cache_clear()


def test_names_and_lines_that_change_no_program_are_not_in_the_key(tmp_path):
    def keys(fun):
        fun.__name__ = "step"
        with jax.log_compiles():
            return wse.jit(fun, WAFER, cache=tmp_path).lower(X, W).compile().cache.key

    def one(x, w):
        return jnp.tanh(x @ w)

    def two(data, weights):
        # elsewhere, in other words
        product = data @ weights
        return jnp.tanh(product)

    assert keys(one) == keys(two)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_one_text_and_no_two_the_same(name, texts={}):  # noqa: B006  shared on purpose
    fun, args = PROGRAMS[name]
    first, second = (cachekey.program_lines(wse.jit(fun, WAFER).lower(*args).plan.graph) for _ in range(2))
    assert first == second and " at 0x" not in "".join(first)
    shapes = str([(np.shape(x), getattr(x, "dtype", type(x))) for x in jax.tree.leaves(args)])
    assert texts.setdefault("\n".join([shapes, *first]), name) == name


def test_a_program_that_cannot_be_written_out_is_not_kept_but_runs(tmp_path, caplog):
    for by in (np.sin, np.cos):  # the key must not call these the same
        fun = lambda x, by=by: jax.pure_callback(lambda x: by(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        with caplog.at_level(logging.WARNING, "wsejax.cache"):
            got = compiled(tmp_path, fun, (X,), strict=False)
        assert got.cache.state == "off" and "pure_callback" in got.cache.why[0] and "test_cachekey.py" in got.cache.why[0]
        assert "pure_callback" in caplog.text
        np.testing.assert_allclose(got(X), by(X), rtol=1e-6)
    assert not list(tmp_path.iterdir())


def test_rules_and_kernels_of_the_users_own_are_not_kept(tmp_path, monkeypatch):
    """They may change behind the name of their operation."""
    kernel = wse.wafer_map(lambda x: x + 1, WAFER, in_specs=(P("y"),), out_specs=P("y"))
    got = compiled(tmp_path, lambda x: kernel(x) * 2, (X,))
    assert got.cache.state == "off" and "wafer_map" in got.cache.why[0]
    np.testing.assert_array_equal(got(X), (X + 1) * 2)
    own = RULES["sin"]
    monkeypatch.setitem(RULES, "sin", lambda op, ctx: own(op, ctx))
    got = compiled(tmp_path, jnp.sin, (X,))
    assert got.cache.state == "off" and "sin at" in got.cache.why[0] and "no part of wsejax" in got.cache.why[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("x", [lambda: 0, object(), wse.jit], ids=["local function", "object", "another library's function"])
def test_what_has_no_text_is_refused(x):
    with pytest.raises(cachekey.UncacheableError):
        cachekey.canonical({"deep": [(x,)]})


def test_texts_tell_values_apart():
    values = [
        None, True, 1, 1.0, "1", (1,), [1], {"a": 1}, {"b": 1}, (), ((), ()), np.float32(1), np.float64(1), np.int32(1), np.ones(1),
        np.ones((1, 1)), np.ones(2), np.array([1.0, 2.0]), np.float32(0.0), np.float32(-0.0), np.float32, np.dtype("float32"),
        jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST, jax.random.key(0), jax.random.key(1), 1j, 0.1, float(np.float32(0.1)),
    ]  # fmt: skip
    texts = [cachekey.canonical(v) for v in values]
    assert len(set(texts)) == len(values), sorted(texts)
