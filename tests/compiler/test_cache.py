"""The cache of compiled programs: what it holds gives the same bits, a hit does no work twice, and a key leaves nothing out."""

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
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import PROGRAMS, floats
from tests.compiler.test_same_numbers import leaves
from wsejax.compiler import cachekey, walk
from wsejax.compiler.artefact import pack, unpack

ROOT = Path(__file__).resolve().parents[2]
SPEC = wse.WSE3.scaled(16, 16)
WAFER = wse.Wafer(SPEC, tiles=(2, 2), devices=(2, 2))
X, W = floats(8, 16), floats(16, 32)


def layer(x, w):
    return jnp.tanh(x @ w), (x**2).sum()


@pytest.fixture(autouse=True)
def no_cache_from_outside(monkeypatch):
    monkeypatch.delenv("WSEJAX_CACHE_DIR", raising=False)


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


# ---- the key ---------------------------------------------------------------------------------------------------------
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
        assert got.cache.state == "off" and "pure_callback" in got.cache.why[0] and "test_cache.py" in got.cache.why[0]
        assert "pure_callback" in caplog.text
        np.testing.assert_allclose(got(X), by(X), rtol=1e-6)
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
    assert ratio > 5, runs
