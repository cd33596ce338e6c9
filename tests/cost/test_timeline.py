"""`wse.timeline`: the price again, in the order of the run."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import pytest

import wsejax as wse
from tests.cost.streams import streamed
from tests.cost.test_model import SMALL, lower, train


def test_kernels_follow_one_another_and_take_what_they_cost() -> None:
    lowered = train()
    line, cost = wse.timeline(lowered), wse.cost(lowered)
    kernels = [e for e in line.events if e.track == "kernels"]
    assert line.left_out == 0
    assert line.cycles == pytest.approx(cost.price.cycles)
    assert sum(e.cycles for e in kernels) == pytest.approx(cost.price.cycles)
    assert len(kernels) == sum(row.count for row in cost.lines)
    for before, after in itertools.pairwise(kernels):
        assert after.start_cycles == pytest.approx(before.start_cycles + before.cycles)
    assert sum(e.cycles for e in line.events if e.track == "compute") == pytest.approx(cost.price.compute_cycles)
    assert all(e.start_cycles >= 0 and e.start_cycles + e.cycles <= line.cycles * (1 + 1e-9) for e in line.events)


def test_a_loop_runs_trip_by_trip() -> None:
    f = lambda x, ws: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]
    x, ws = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((3, 64, 64), jnp.float32)
    kernels = [e.name.split()[0] for e in wse.timeline(lower(f, x, ws)).events if e.track == "kernels"]
    assert kernels == ["gemm", "tanh"] * 3


def test_loops_of_one_line_follow_one_another() -> None:
    run = lambda fn, x: jax.lax.fori_loop(0, 3, lambda i, x: fn(x), x)
    line = wse.timeline(lower(lambda x: run(jnp.exp, run(jnp.tanh, x)), jax.ShapeDtypeStruct((64, 64), jnp.float32)))
    kernels = [e.name.split()[0] for e in line.events if e.track == "kernels"]
    assert [k for k in kernels if k in ("tanh", "exp")] == ["tanh"] * 3 + ["exp"] * 3


def test_a_long_loop_is_cut_short() -> None:
    f = lambda x: jax.lax.fori_loop(0, 10**9, lambda i, x: jnp.tanh(x), x)
    lowered = lower(f, jax.ShapeDtypeStruct((64, 64), jnp.float32))
    line = wse.timeline(lowered, max_kernels=100)
    assert line.left_out > 10**9 - 200
    assert line.cycles == pytest.approx(wse.cost(lowered).price.cycles)


def test_it_opens_as_a_trace(tmp_path) -> None:
    line = wse.timeline(train(), streamed=True, max_kernels=50)
    assert line.left_out > 0
    line.save(tmp_path / "trace.json")
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    data = json.loads((tmp_path / "trace.json").read_text())
    complete = [e for e in data["traceEvents"] if e["ph"] == "X"]
    assert {e["cat"] for e in complete} >= {"kernels", "compute", "I/O"}
    assert all(e["dur"] >= 0 and isinstance(e["tid"], int) for e in complete)
    assert "modelled" in next(e for e in data["traceEvents"] if e["name"] == "process_name")["args"]["name"]
    figure = wse.plot_timeline(line, tmp_path / "timeline.png")
    assert "odelled" in figure.axes[0].get_title() and (tmp_path / "timeline.png").stat().st_size > 1000


def test_an_unknown_length_has_no_run() -> None:
    f = lambda x, n: jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]
    lowered = lower(f, jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    with pytest.raises(wse.UnknownTripsError, match="unknown length"):
        wse.timeline(lowered)
    with pytest.raises(ValueError, match="max_kernels=0"):
        wse.timeline(lowered, max_kernels=0)


# ---- a program that says what streams --------------------------------------------------------------------------------
def test_streams_are_laid_out_beside_the_kernels_that_use_them(tmp_path) -> None:
    program = streamed(train().program, SMALL.layers, wafers=4)
    system = wse.CS3.replace(io_bytes_per_second=2e9)
    line, cost = wse.timeline(program, system), wse.cost(program, system)
    assert line.streamed is not None and line.left_out == 0
    assert line.cycles == pytest.approx(cost.step_seconds * system.clock_hz)
    busy = {track: sum(e.cycles for e in line.events if e.track == track) for track in line.tracks}
    parts = {name: seconds * system.clock_hz for name, seconds in line.streamed.parts().items()}
    assert busy["kernels"] == pytest.approx(cost.price.cycles) == pytest.approx(parts["compute"])
    assert busy["stall"] == pytest.approx(parts["stall"] + parts["fill"])
    assert busy["boundary"] == pytest.approx(parts["boundary"] + parts["drain"] + parts["wait"])
    assert busy["software"] == pytest.approx(parts["software"])
    assert busy["I/O in"] == pytest.approx(program.stream_bytes[0] / 2e9 * system.clock_hz)
    assert busy["I/O out"] == pytest.approx(program.stream_bytes[1] / 2e9 * system.clock_hz)
    assert busy["MemoryX"] == pytest.approx(line.streamed.schedule.memoryx_seconds * system.clock_hz)
    for track in ("kernels", "I/O in", "I/O out", "MemoryX", "stall", "boundary", "software"):
        events = sorted((e for e in line.events if e.track == track), key=lambda e: e.start_cycles)
        assert all(a.start_cycles + a.cycles <= b.start_cycles * (1 + 1e-9) + 1e-3 for a, b in itertools.pairwise(events)), track
    assert max(e.start_cycles + e.cycles for e in line.events) <= line.cycles * (1 + 1e-9)
    line.save(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text())
    assert {e["cat"] for e in data["traceEvents"] if e["ph"] == "X"} >= {"kernels", "I/O in", "I/O out", "MemoryX", "stall"}
    wse.plot_timeline(line, tmp_path / "timeline.png")
    cut = wse.timeline(program, system, max_kernels=10)
    assert sum(e.track == "kernels" for e in cut.events) == 10 and cut.left_out > 0 and cut.cycles == pytest.approx(line.cycles)


def test_no_kernel_starts_before_its_weights_are_there() -> None:
    line = wse.timeline(streamed(train().program, SMALL.layers), wse.CS3.replace(io_bytes_per_second=1e8))
    loads = [e for e in line.events if e.track == "I/O in"]
    kernels = [e for e in line.events if e.track == "kernels"]
    assert len(loads) == 1 + 2 * SMALL.layers
    for load in loads:
        first = min((e.start_cycles for e in kernels if e.start_cycles >= load.start_cycles + load.cycles), default=None)
        assert first is not None
    assert kernels[0].start_cycles >= loads[0].start_cycles + loads[0].cycles
