"""Streamed equals resident bit for bit: what lives outside the wafer passes through it and no number changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.streaming import streamed_programs
from tests.streaming.streamed_programs import PROGRAMS

SPEC = wse.WSE3.scaled(16, 16)


def cluster(tiles=(2, 2), devices=(1, 1), **options: Any) -> wse.Cluster:
    return wse.Cluster(wse.Wafer(SPEC, tiles=tiles, devices=devices), **options)


def run(name: str, machine: wse.Cluster, execution: str, steps: int = 2):
    step, state, batch = PROGRAMS[name]()
    fun = wse.jit(step, machine, donate_argnums=0 if name != "forward" else (), streamed_argnums=0, execution=execution)
    state, results = jax.tree.map(jnp.array, state), []
    for _ in range(1 if name in ("gradient", "forward") else steps):
        state, metrics = fun(state, batch)
        results.append(jax.device_get(metrics))
    return fun, jax.device_get(state), results, state


def assert_same_bits(a: Any, b: Any) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


FIRST = ("adamw", "half", "micro_batches", "several_steps", "forward", "gradient")  # the others take as long, and are marked slow


@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS])
def test_streamed_is_resident(name: str) -> None:
    _, state, metrics, _ = run(name, cluster(), "resident")
    _, streamed_state, streamed_metrics, arrays = run(name, cluster(), "streamed")
    assert_same_bits((state, metrics), (streamed_state, streamed_metrics))
    if name != "forward":
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(arrays) if x.ndim}
        assert kinds == {"pinned_host"}


def lowered(name: str, machine: wse.Cluster, execution: str = "streamed"):
    step, state, batch = PROGRAMS[name]()
    return wse.jit(step, machine, donate_argnums=0, streamed_argnums=0, execution=execution).lower(state, batch)


def test_the_usual_programs_never_have_a_whole_stack_on_the_wafer() -> None:
    for name in set(PROGRAMS) - {"lamb", "forward"}:
        assert lowered(name, cluster())._frame.whole == (), name


def test_device_memory_follows_a_layer_not_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for layers in (4, 8, 32):
        monkeypatch.setattr(streamed_programs, "LAYERS", layers)
        monkeypatch.setattr(streamed_programs._params, "__defaults__", (layers, 64))
        found[layers] = {execution: lowered("adamw", cluster(), execution).device_bytes() for execution in ("resident", "streamed")}
    layer_bytes = (2 * 64 * 128 + 64) * 4
    saved = 8 * 6 * 64 * 4  # a layer's input, kept for the backward pass: activations stay on the wafer
    assert found[32]["streamed"] - found[4]["streamed"] <= 28 * (saved + 256)
    assert found[32]["resident"] - found[4]["resident"] >= 28 * 4 * layer_bytes


@pytest.mark.parametrize("ahead", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_how_early_layers_come_changes_nothing(ahead: int) -> None:
    base, other = (run("adamw", cluster(memoryx=wse.MemoryX(prefetch_layers=n)), "streamed") for n in (1, ahead))
    assert_same_bits(base[1:3], other[1:3])


@pytest.mark.parametrize(("tiles", "devices"), [((1, 1), (1, 1)), pytest.param((2, 2), (1, 2), marks=pytest.mark.slow), ((4, 2), (2, 2))])
def test_on_any_tiles_and_devices(tiles, devices) -> None:
    resident, streamed = (run("adamw", cluster(tiles, devices), execution) for execution in ("resident", "streamed"))
    assert_same_bits(resident[1:3], streamed[1:3])


def test_what_streams_is_in_the_program() -> None:
    program = lowered("adamw", cluster()).program
    calls = [c for c in program.calls if c.kind == "stream"]
    trips = {kernel: sum(c.trips for c in calls if c.kernel == kernel and c.loops) for kernel in ("load", "store")}
    assert trips["load"] == 2 * streamed_programs.LAYERS, "each layer comes in forward and backward"
    stacked = sum(a.size_bytes * c.trips for c in calls if c.loops and c.kernel == "store" for a in c.ins)
    _, (params, *_), _ = PROGRAMS["adamw"]()
    assert stacked == sum(x.nbytes for x in jax.tree.leaves(params["layers"])), "each gradient goes out once"
    assert any(c.kind == "memoryx" for c in program.calls)
    assert not [c for c in program.calls if c.kind == "memoryx" and (c.work or c.byte_hops)]
