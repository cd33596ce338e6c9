"""Random programs on the wafer equal plain `jax.jit`, with neighbour shifts alone, in the same bits on every device mesh.

`make test` runs 100, `make test-slow` 250; `WSEJAX_RANDOM_PROGRAMS` and `WSEJAX_RANDOM_SEED` ask for others.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.internal.conjecture import providers

import wsejax as wse
from tests.compiler import random_ops_of_arrays, random_ops_of_control, random_ops_of_science  # noqa: F401  registers them
from tests.compiler.random_programs import Case, Input, Val, cases, define, tolerance

SPEC = wse.WSE3.scaled(16, 16)
COUNT = int(os.environ.get("WSEJAX_RANDOM_PROGRAMS", "0"))
SEED = int(os.environ.get("WSEJAX_RANDOM_SEED", "0"))


@pytest.fixture(autouse=True)
def fast():
    """Without LLVM's optimisations, which take half of the time; those of XLA stay."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def the_same_programs_every_time(monkeypatch):
    """Hypothesis mixes in numbers it finds in the sources of whatever modules are loaded, so what it draws depends on the tests that ran
    before. It has no setting for that; where this stops working, only the repeatability is lost."""
    if hasattr(providers, "_get_local_constants") and hasattr(providers, "CONSTANTS_CACHE"):
        none = providers.Constants()
        monkeypatch.setattr(providers, "_get_local_constants", lambda: none)
        monkeypatch.setattr(providers, "CONSTANTS_CACHE", type(providers.CONSTANTS_CACHE)(1024))


def placed(case: Case, mesh) -> list:
    """The arguments, each handed over in its own way."""
    return [place(x, i.place, mesh) for x, i in zip(case.args(), case.inputs, strict=True)]


def place(x: np.ndarray, how: str, mesh):
    if how == "numpy":
        return x
    if how == "uncommitted":
        return jnp.asarray(x)
    if how == "device":
        return jax.device_put(x, jax.devices()[-1])
    axes, spec = list(reversed(mesh.axis_names)), []
    for n in x.shape:  # not the layout that a compiler would choose: columns first
        spec.append(axes.pop(0) if axes and n and n % mesh.shape[axes[0]] == 0 else None)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*spec)))


def compiled(case: Case, devices: tuple[int, int]):
    wafer = wse.Wafer(SPEC, tiles=case.tiles, devices=devices, reduction=case.sums[0], accumulate=case.sums[1])
    return wse.jit(define(case.source, "fun"), wafer).lower(*case.args()).compile()  # compile() checks that only neighbours talk


def on_wafer(program, case: Case) -> list[np.ndarray]:
    return [np.asarray(x) for x in program(*placed(case, program.lowered.wafer.mesh))]


def check(case: Case) -> None:
    plain = jax.jit(define(case.source, "fun")).lower(*case.args()).compile()
    want = [np.asarray(x) for x in plain(*case.args())]
    program = compiled(case, case.devices)
    got = on_wafer(program, case)
    for v, a, b in zip(case.results, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) == (v.shape, v.dtype), v
        if v.floating:
            a, b = a.astype(np.float64), b.astype(np.float64)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(v), err_msg=f"result {v}")
        else:
            np.testing.assert_array_equal(a, b, err_msg=f"result {v}")
    if case.others:
        for v, a, b in zip(case.results, got, on_wafer(compiled(case, case.others), case), strict=True):
            assert a.tobytes() == b.tobytes(), f"result {v} has other bits on {case.others} devices"


CHUNK = 9  # hypothesis draws its first ten examples afresh; most of those after them are variations of an earlier one
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def run(number: int) -> None:
    seed(number)(settings(max_examples=CHUNK, suppress_health_check=QUIET)(given(cases())(check)))()


@pytest.mark.timeout(900)  # shrinking a failure takes minutes
@pytest.mark.parametrize("number", range(SEED, SEED + (COUNT or 100) // CHUNK + 1))
def test_random_programs_equal_plain_jax(number):
    run(number)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(1000, 1028))
def test_many_more_random_programs_equal_plain_jax(number):
    run(number)


def test_the_check_can_fail(monkeypatch):
    """A sum that counts the padding of a split dimension is caught."""
    x, total = Input("x0", (7, 9), "float32", "normal", "numpy"), Val("v1", (9,), "float32", bound=8.0, err=1e-5)
    case = Case((x,), ("v1 = jnp.sum(x0, axis=0)",), (total,), (2, 2), (2, 2), (1, 1), ("chain", "float32"))
    check(case)
    monkeypatch.setattr("wsejax.kernels.reduce.mask_padding", lambda x, *_: x)
    with pytest.raises(AssertionError, match="result v1"):
        check(case)
