"""Streamed equals resident bit for bit: what lives outside the wafer passes through it and no number changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_streamed_is_resident(name: str) -> None:
    _, state, metrics, _ = run(name, cluster(), "resident")
    _, streamed_state, streamed_metrics, arrays = run(name, cluster(), "streamed")
    assert_same_bits((state, metrics), (streamed_state, streamed_metrics))
    if name != "forward":
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(arrays) if x.ndim}
        assert kinds == {"pinned_host"}
