"""The cache of compiled programs: what it holds gives the same bits, a hit does no work twice, damage is seen."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats
from tests.compiler.test_same_numbers import leaves
from wsejax.compiler import walk
from wsejax.compiler.artefact import pack, unpack

ROOT = Path(__file__).resolve().parents[2]
SPEC = wse.WSE3.scaled(16, 16)
WAFER = wse.Wafer(SPEC, tiles=(2, 2), devices=(2, 2))
X, W = floats(8, 16), floats(16, 32)


def layer(x, w):
    return jnp.tanh(x @ w), (x**2).sum()


@pytest.fixture
def xla_loads():
    """Numbers of executables that JAX has loaded from its compilation cache, and written to it."""
    seen = {"hits": 0, "misses": 0}

    def listen(event, **_):
        for name in seen:
            seen[name] += event == f"/jax/compilation_cache/cache_{name}"

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


def compiled(cache, fun=layer, args=(X, W), wafer=WAFER, **options):
    """As a new process would have it: nothing is kept in memory."""
    return wse.jit(fun, wafer, cache=cache, **options).lower(*args).compile()


def bits(tree) -> list[bytes]:
    return [x.tobytes() for x in leaves(tree)]


# ---- hits ------------------------------------------------------------------------------------------------------------
def test_a_hit_neither_plans_nor_compiles_and_gives_the_same_bits(tmp_path, monkeypatch, xla_loads):
    off = compiled(False)
    assert off.cache.state == "off" and not off.cache.why
    first = compiled(tmp_path)
    assert first.cache.state == "miss" and xla_loads == {"hits": 0, "misses": 1}
    with monkeypatch.context() as patch:
        patch.setattr(walk, "plan", lambda *_: pytest.fail("a hit was planned"))
        fun = wse.jit(layer, WAFER, cache=tmp_path)
        lowered = fun.lower(X, W)
        second = lowered.compile()
        assert second.cache.state == "hit" and xla_loads == {"hits": 1, "misses": 1}
        got = fun(X, W)
        assert xla_loads["hits"] == 1  # the call takes what was compiled
    assert bits(off(X, W)) == bits(first(X, W)) == bits(second(X, W)) == bits(got)
    plain = wse.jit(layer, WAFER).lower(X, W)
    assert lowered.in_shardings == plain.in_shardings and lowered.out_shardings == plain.out_shardings
    assert [x.sharding for x in got] == list(plain.out_shardings)
    assert second.cache.key == first.cache.key and second.cache.seconds > 0
    assert lowered.program == plain.program  # planned now, since somebody asks
    assert "HloModule" in second.as_text() and second.memory_analysis() is not None


@pytest.mark.parametrize("name", ["scan_over_layers", "branches", "random_numbers", "gradient_of_scan_with_remat", "sorting", "embedding"])
def test_what_was_stored_has_the_bits_of_what_was_compiled(name, tmp_path):
    fun, args = PROGRAMS[name]
    want = bits(wse.jit(fun, WAFER)(*args))
    for state in ("miss", "hit"):
        got = compiled(tmp_path, fun, args)
        assert got.cache.state == state, got.cache
        assert bits(got(*args)) == want


def test_a_donated_state_is_given_away_by_a_hit_too(tmp_path):
    step = lambda state, x: (jax.tree.map(lambda s: s + x.sum(), state), x.mean())
    state = {"a": floats(16, 32), "n": np.int32(0)}
    for what in ("miss", "hit"):
        fun = wse.jit(step, WAFER, donate_argnums=0, cache=tmp_path)
        placed = jax.device_put(jax.tree.map(jnp.asarray, state), fun.lower(state, X).in_shardings[0])
        new, _ = fun(placed, X)
        assert fun.lower(state, X).compile().cache.state == what
        assert all(x.is_deleted() for x in jax.tree.leaves(placed))
        assert [x.sharding for x in jax.tree.leaves(new)] == jax.tree.leaves(fun.lower(state, X).in_shardings[0])


def test_calls_report_to_the_log_and_to_the_audit(tmp_path, caplog):
    for state in ("miss", "hit"):
        caplog.clear()
        with caplog.at_level(logging.INFO, "wsejax.cache"):
            fun = wse.jit(layer, WAFER, cache=tmp_path)
            lowered = fun.lower(X, W)
            assert ("not stored" if state == "miss" else "stored") in str(lowered.audit())
            fun(X, W)
            fun(X, W)
        (record,) = caplog.records
        assert record.getMessage().startswith(f"layer: {state} ")
        assert f"cache: {state} " in str(lowered.audit())
    assert "cache: " not in str(wse.jit(layer, WAFER).lower(X, W).audit())


def test_what_is_traced_again_goes_round_the_cache(tmp_path):
    fun = lambda x: jnp.sin(x @ x.T).sum()
    compiled(tmp_path, fun, (X,))
    kept = wse.jit(fun, WAFER, cache=tmp_path)
    assert kept.lower(X).compile().cache.state == "hit"
    np.testing.assert_array_equal(jax.grad(kept)(X), jax.grad(wse.jit(fun, WAFER))(X))
    np.testing.assert_array_equal(jax.jit(kept)(X), wse.jit(fun, WAFER)(X))


def test_a_function_without_arguments(tmp_path):
    fun = lambda: jnp.arange(32.0).reshape(4, 8)
    for state in ("miss", "hit"):
        got = compiled(tmp_path, fun, ())
        assert got.cache.state == state
        np.testing.assert_array_equal(got(), fun())


# ---- damage ----------------------------------------------------------------------------------------------------------
def entry(folder: Path) -> Path:
    (found,) = [p for p in folder.iterdir() if p.name.startswith("layer-")]
    return found


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def another_key(path: Path):
    header, blob = unpack(path.read_bytes(), "cache entry")
    path.write_bytes(pack(header | {"parts": header["parts"] | {"strict": False}}, blob))


def another_jax(path: Path):
    header, _ = unpack(path.read_bytes(), "cache entry")
    path.write_bytes(pack(header, b"no flatbuffer"))


DAMAGE = {
    "cut short": ("program", cut, "checksum"),
    "a flipped bit": ("program", flip, "checksum"),
    "empty": ("program", lambda p: p.write_bytes(b""), "wsejax did not write it"),
    "foreign": ("program", lambda p: p.write_text("hello"), "wsejax did not write it"),
    "of a later format": ("program", lambda p: p.write_bytes(b"wsejax artefact 7\n" + bytes(80)), "'7'"),
    "another program's": ("program", another_key, "another program"),
    "unreadable StableHLO": ("program", another_jax, "cannot read its program"),
    "a changed executable": ("xla/*", flip, "not what was stored"),
    "a lost executable": ("xla/*", Path.unlink, "not what was stored"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_said_to_be_and_made_anew(name, tmp_path, caplog):
    want = bits(compiled(tmp_path)(X, W))
    pattern, damage, words = DAMAGE[name]
    (file,) = entry(tmp_path).glob(pattern)
    damage(file)
    with caplog.at_level(logging.WARNING, "wsejax.cache"):
        again = compiled(tmp_path)
    assert again.cache.state == "miss" and "damaged" in again.cache.why[0] and words in again.cache.why[0]
    assert words in caplog.text
    assert bits(again(X, W)) == want
    assert compiled(tmp_path).cache.state == "hit"


def test_two_processes_may_store_the_same(tmp_path):
    lowered = [wse.jit(layer, WAFER, cache=tmp_path).lower(X, W) for _ in range(2)]
    assert [low.compile().cache.state for low in lowered] == ["miss", "miss"]
    assert compiled(tmp_path).cache.state == "hit"
    assert len(list(tmp_path.iterdir())) == 1  # nothing half-made is left


def test_an_executable_for_other_drivers_is_a_miss_and_then_kept_too(tmp_path):
    """XLA's own key, which knows the machine and its drivers, decides whether an executable fits."""
    compiled(tmp_path)
    path = entry(tmp_path) / "program"
    header, blob = unpack(path.read_bytes(), "cache entry")
    (name,) = header["executables"]
    os.rename(path.parent / "xla" / name, path.parent / "xla" / f"{name}-elsewhere")
    header["executables"] = {f"{name}-elsewhere": header["executables"][name]}
    path.write_bytes(pack(header, blob))
    again = compiled(tmp_path)
    assert again.cache.state == "miss" and "no executable for this machine" in again.cache.why[0]
    assert compiled(tmp_path).cache.state == "hit"


# ---- the folder ------------------------------------------------------------------------------------------------------
def test_the_environment_names_the_folder_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("WSEJAX_CACHE_DIR", str(tmp_path / "made" / "for me"))
    assert compiled(None).cache.state == "miss"
    assert compiled(None).cache.state == "hit"
    assert compiled(False).cache.state == "off"
    assert compiled(tmp_path / "another").cache.state == "miss"


@pytest.mark.parametrize("bad", ["file", "file/below", True, 3])
def test_a_folder_that_cannot_be_is_refused_by_name(bad, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cache="):
        wse.jit(layer, WAFER, cache=tmp_path / bad if isinstance(bad, str) else bad)


def test_jaxs_own_compilation_cache_is_left_as_it_was(tmp_path):
    mine = tmp_path / "mine"
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(mine))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        compiled(tmp_path / "wse")
        assert not mine.exists() or not list(mine.glob("*layer*"))
        jax.jit(lambda x: jnp.sin(x) * 3.25)(X)
        assert list(mine.iterdir())
        assert jax.config.jax_compilation_cache_dir == str(mine)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


# ---- another process -------------------------------------------------------------------------------------------------
PROCESS = """
import sys, jax, numpy as np
import wsejax as wse
from tests import conftest
from tests.compiler import test_cache as t

got = t.compiled(sys.argv[1])
print(got.cache.state, ".".join(b.hex() for b in t.bits(got(t.X, t.W))))
"""


def run(script: str, *args: str) -> str:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_new_process_hits_what_this_one_stored(tmp_path):
    want = ".".join(b.hex() for b in bits(compiled(tmp_path)(X, W)))
    state, got = run(PROCESS, str(tmp_path)).split()
    assert (state, got) == ("hit", want)


GPT_PROCESS = """
import hashlib, sys, jax, numpy as np
import wsejax as wse
from tests import conftest
from tests.compiler import test_layouts as t
from wsejax.compiler import walk

planned = []
plan = walk.plan
walk.plan = lambda *args: planned.append(1) or plan(*args)
step, state = t.train_step_and_state(t.CONFIG)
wafer = wse.Wafer(wse.WSE3.scaled(32, 32), tiles=(8, 8), devices=(2, 2))
wafer.mesh
lowered = wse.jit(step, wafer, donate_argnums=0, cache=sys.argv[1] or False).lower(state, t.BATCH)
compiled = lowered.compile()
draw = np.random.default_rng(0)
number = lambda s: draw.integers(0, 9, s.shape).astype(s.dtype) if s.dtype.kind in "iu" else 0.1 * draw.random(s.shape, s.dtype)
state, batch = jax.tree.map(number, (state, t.BATCH))
for _ in range(2):
    state, metrics = compiled(state, batch)
bits = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves((state, metrics)))
print(compiled.cache.state, len(planned), compiled.cache.seconds, hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.slow
def test_a_train_step_is_ready_several_times_faster_in_a_new_process(tmp_path, record_property):
    runs = {}
    for name, cache in (("off", ""), ("miss", str(tmp_path)), ("hit", str(tmp_path))):
        state, planned, seconds, digest = run(GPT_PROCESS, cache).split()
        assert state == name
        runs[name] = int(planned), float(seconds), digest
    assert len({digest for *_, digest in runs.values()}) == 1
    assert runs["miss"][0] > 0 and runs["hit"][0] == 0
    ratio = runs["miss"][1] / runs["hit"][1]
    record_property("miss / hit", ratio)
    print(f"GPT train step: off {runs['off'][1]:.2f} s, miss {runs['miss'][1]:.2f} s, hit {runs['hit'][1]:.2f} s, miss / hit {ratio:.1f}")
    assert ratio > 2, runs  # about 13 on a quiet machine (`experiments.compile_bench` measures it); here another test runs beside this one
