"""A program that streams, laid out stage by stage, and its price."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import optax
import pytest

import wsejax as wse
from models.decoder import abstract_train_step
from tests.cost.streams import stream, streamed
from tests.cost.test_model import SMALL, lower, train
from wsejax.compiler import Call, Loop, Program, Unknown
from wsejax.compiler.program import Array
from wsejax.cost.stages import Streamed, boundary_seconds, streamed_run
from wsejax.cost.training import Streaming
from wsejax.hardware import CS3

BARE = Streaming(layer_seconds=0.0, boundary_passes=0.0, program_boundary_passes=0.0, wait_per_doubling=0.0)
WEIGHT = Array((1000,), "float32", (None,), 4000)
LAYERS = SMALL.layers


@functools.cache
def program(wafers: int = 1) -> Program:
    return streamed(train().program, LAYERS, wafers)


def by_hand(*calls: Call, weights: tuple[Array, ...] = ()) -> Program:
    return Program(calls, 0, (1, 1), weights)


def work(seconds_name: str, *loops: Loop, under: tuple[Unknown, ...] = ()) -> Call:
    return Call("kernel", "dot_general", seconds_name, (WEIGHT,), (WEIGHT,), "work:1", loops=loops, under=under)


def run_of(program: Program, streaming: Streaming = BARE, **changes) -> Streamed:
    """With kernels whose names are their seconds."""
    system = CS3.replace(**{"io_bytes_per_second": 1e6, "io_latency_seconds": 0.0, **changes})
    return streamed_run(program, lambda call: float(call.kernel), system, streaming)


def test_stages_go_from_load_to_load():
    loop = Loop("scan:7", 3, 1)
    found = run_of(
        by_hand(
            work("0.5"),
            stream("load", (WEIGHT,), loop), stream("load", (WEIGHT, WEIGHT), loop),
            work("1.0", loop), work("2.0", loop, Loop("inner:9", 5)),
            stream("store", (WEIGHT,), loop),
            work("0.25"),
        )
    )  # fmt: skip
    stages = [one.stage for one in found.staged]
    assert [s.compute_seconds for s in stages] == pytest.approx([0.5, 11.0, 11.0, 11.0, 0.25, 0.0])
    assert [s.in_bytes for s in stages] == [0, 12000, 12000, 12000, 0, 0]
    assert [s.out_bytes for s in stages] == [0, 4000, 4000, 4000, 0, 0]
    assert [one.source for one in found.staged] == ["", "scan:7", "scan:7", "scan:7", "", ""]
    assert stages[-1].name == "boundary" and stages[-1].fenced
    assert (found.in_bytes, found.out_bytes) == (36000, 12000) == found_bytes(found)
    assert [call.kernel for piece in found.staged[1].pieces for call in piece.run()] == ["1.0", *["2.0"] * 5]


def found_bytes(found: Streamed) -> tuple[float, float]:
    rate = float(found.system.io_bytes_per_second)
    return round(found.schedule.load_seconds * rate), round(found.schedule.store_seconds * rate)


def test_work_after_a_store_goes_on_while_it_leaves():
    found = run_of(by_hand(stream("load", (WEIGHT,)), work("1.0"), stream("store", (WEIGHT,)), work("2.0")))
    assert [one.stage.compute_seconds for one in found.staged] == [1.0, 2.0, 0.0]
    assert found.schedule.store_end[0] < found.schedule.compute_end[1]


def test_what_is_small_comes_with_the_weights_before_it():
    scale = Array((10,), "float32", (None,), 40)
    found = run_of(by_hand(stream("load", (WEIGHT,)), work("1.0"), stream("load", (scale,)), work("2.0")))
    assert [(one.stage.in_bytes, one.stage.compute_seconds) for one in found.staged] == [(4040, 3.0)]


def test_a_sum_over_wafers_is_a_round_trip():
    read = dataclasses.replace(WEIGHT, number=7)
    reader = dataclasses.replace(work("2.0"), ins=(read,))
    found = run_of(by_hand(work("1.0"), stream("swarm", (read,)), reader), io_latency_seconds=0.125)
    assert found.schedule.compute_start[-1] == pytest.approx(1.0 + 2 * (0.004 + 0.125))
    assert found.parts()["boundary"] == pytest.approx(2 * (0.004 + 0.125))
    assert (found.in_bytes, found.out_bytes) == (4000, 4000)


def test_a_sum_that_is_stored_travels_once():
    """To MemoryX, where the tree ends: the store says it all."""
    loop = Loop("scan:7", 3, 1)
    turned = dataclasses.replace(stream("store", (WEIGHT,), loop), source="swarm of weights:1")
    both = run_of(by_hand(work("1.0", loop), stream("swarm", (WEIGHT,), loop), turned))
    alone = run_of(by_hand(work("1.0", loop), turned))
    assert (both.in_bytes, both.out_bytes) == (alone.in_bytes, alone.out_bytes) == (0, 12000)
    assert both.seconds == alone.seconds


def test_a_sum_that_nothing_reads_at_once_travels_beside_the_work():
    """Gradients of resident weights: the optimiser after the loop waits, the layers do not."""
    loop = Loop("scan:7", 4, 1)
    found = run_of(by_hand(work("1.0", loop), stream("swarm", (WEIGHT,), loop), work("2.0")), io_latency_seconds=0.125)
    assert found.parts()["stall"] == 0 and found.parts()["compute"] == 6.0
    assert found.parts()["boundary"] == pytest.approx(2 * (0.004 + 0.125))
    assert (found.in_bytes, found.out_bytes) == (16000, 16000)


def test_a_pass_has_the_time_of_its_software_once():
    """However often a trip loads: for the slice of its layer, which has the loop's line; what is the same in all trips is no layer."""
    outer, inner = Loop("steps:1", 2, 1), Loop("layers:2", 3, 2)
    load = dataclasses.replace(stream("load", (WEIGHT,), outer, inner), source="layers:2")
    same = stream("load", (WEIGHT,), outer, inner)
    twice = [load, work("1.0", outer, inner), same, work("1.0", outer, inner)]
    found = run_of(by_hand(stream("load", (WEIGHT,)), work("1.0"), *twice), BARE.replace(layer_seconds=0.125))
    assert len(found.staged) == 1 + 2 * 3 * 2
    assert found.parts()["software"] == pytest.approx(0.125 * 2 * 3)


def test_the_boundary_is_a_gradient_out_and_a_weight_in():
    by = Streaming()
    weights = sum(a.size_bytes // 4 for a in program().weights)
    expected = 2 * by.program_boundary_passes * weights * by.weight_bytes / CS3.io_bytes_per_second
    assert boundary_seconds(program(), CS3, by) == pytest.approx(expected)
    cost = wse.cost(program(), CS3)
    assert cost.streamed is not None
    assert cost.streamed.schedule.memoryx_seconds == pytest.approx(expected)
    nothing_stored = by_hand(stream("load", (WEIGHT,)), work("1.0"))
    assert run_of(nothing_stored, Streaming()).schedule.memoryx_seconds == 0


def test_more_wafers_wait_for_the_slowest_and_for_the_tree():
    one, many = (wse.cost(program(n), CS3).streamed for n in (1, 16))
    assert one is not None and many is not None
    assert one.wait_seconds == 0 and many.wait_seconds == pytest.approx(many.schedule.seconds * 4 * 0.0115)
    assert many.schedule.seconds > one.schedule.seconds
    assert many.parts()["compute"] == pytest.approx(one.parts()["compute"])


# ---- the price of a lowered step, streams put in by hand -------------------------------------------------------------
def test_a_step_computes_what_its_kernels_take_and_streams_what_it_says():
    cost = wse.cost(program(), CS3, tokens=256)
    found = cost.streamed
    assert cost.execution == "streamed" and found is not None
    parts = found.parts()
    assert sum(parts.values()) == pytest.approx(found.seconds) == pytest.approx(cost.step_seconds)
    assert parts["compute"] == pytest.approx(cost.compute_seconds)
    assert parts["software"] == pytest.approx(2 * LAYERS * Streaming().layer_seconds)
    layer = sum(w.size_bytes for w in program().weights if w.shape[0] == LAYERS)
    tables = sum(w.size_bytes for w in program().weights if w.shape[0] != LAYERS)
    assert (found.in_bytes, found.out_bytes) == (2 * layer + tables, layer + tables) == program().stream_bytes
    assert cost.io_seconds == pytest.approx(found.in_bytes / CS3.io_bytes_per_second)
    assert json.loads(json.dumps(cost.to_dict()))["streaming"]["parts_seconds"] == pytest.approx(parts)
    assert cost.tokens_per_second == pytest.approx(256 / cost.step_seconds)


def test_what_memoryx_does_takes_no_pe():
    resident, cost = wse.cost(train().program, CS3, execution="resident"), wse.cost(program(), CS3)
    outside = [c for c in program().calls if c.kind == "memoryx" and c.work]
    assert outside and cost.price.cycles < resident.price.cycles
    assert not any(line.kind in ("memoryx", "stream") for line in cost.lines)
    assert cost.price.flops == pytest.approx(resident.price.flops - sum(c.flops * c.trips for c in outside))


def test_a_fast_link_leaves_computing_and_a_slow_one_streaming():
    fast = wse.cost(program(), CS3.replace(io_bytes_per_second=1e15, io_latency_seconds=0.0), streaming=BARE)
    assert fast.step_seconds == pytest.approx(fast.compute_seconds, rel=1e-3)
    slow = wse.cost(program(), CS3.replace(io_bytes_per_second=1e6), streaming=BARE)
    assert slow.step_seconds >= slow.io_seconds > 0.5 * slow.step_seconds
    later = wse.cost(program(), CS3.replace(io_bytes_per_second=1e9), streaming=BARE, prefetch=0)
    assert later.step_seconds >= wse.cost(program(), CS3.replace(io_bytes_per_second=1e9), streaming=BARE).step_seconds


def stalls_of_layers(system: wse.System) -> float:
    found = wse.cost(program(), system, streaming=BARE).streamed
    assert found is not None
    looped = [n for n, one in enumerate(found.staged) if n > 1 and one.source == found.staged[n - 1].source != ""]
    return max(float(found.schedule.stall_seconds[n]) for n in looped)


def test_layers_stall_just_below_the_tokens_that_the_program_says():
    """Bytes and bandwidth stand in for tokens, since what tiny kernels take does not grow with the tokens alone."""
    calm = CS3.replace(io_latency_seconds=0.0)
    found = wse.cost(program(), calm, streaming=BARE).streamed
    assert found is not None
    ((loop, least),) = found.least_tokens(256.0).items()
    assert "through" in loop and 0 < least < float("inf")
    at = float(CS3.io_bytes_per_second) * least / 256.0  # here 256 tokens are just enough
    assert stalls_of_layers(calm.replace(io_bytes_per_second=1.001 * at)) <= 1e-12
    assert stalls_of_layers(calm.replace(io_bytes_per_second=0.98 * at)) > 0
    again = wse.cost(program(), calm.replace(io_bytes_per_second=at), streaming=BARE).streamed
    assert again is not None and again.least_tokens(256.0)[loop] == pytest.approx(256.0)
    assert min(slack for _, slack in found.slack()) < float("inf")


def test_a_program_compiled_for_a_cluster_is_laid_out_as_it_says():
    step, state = abstract_train_step(SMALL, optax.adamw(1e-3))
    wafer = wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1))
    tokens = jax.ShapeDtypeStruct((8, 33), jnp.int32)
    of = lambda n, **more: wse.jit(step, wse.Cluster(wafer, n), donate_argnums=0, **more).lower(state, tokens)
    one, two = (of(n, streamed_argnums=0, execution="streamed").program for n in (1, 2))
    assert (one.wafers, two.wafers) == (1, 2) and one.streams
    runs = [wse.cost(p, CS3).streamed for p in (one, two)]
    assert runs[0] is not None and runs[1] is not None
    assert runs[1].out_bytes == pytest.approx(runs[0].out_bytes, rel=1e-3)  # added up on the way out, not once more
    assert runs[1].in_bytes == pytest.approx(runs[0].in_bytes, rel=1e-3)
    assert runs[1].parts()["compute"] < runs[0].parts()["compute"]  # half the batch each
    assert runs[0].parts()["software"] == pytest.approx(2 * LAYERS * Streaming().layer_seconds)
    layers = sum(w.size_bytes for w in one.weights if w.shape[0] == LAYERS)
    assert runs[0].in_bytes >= 2 * layers and runs[0].out_bytes >= layers
    resident = wse.cost(of(2), CS3)
    assert resident.execution == "resident" and resident.streamed is not None and resident.streamed.schedule.memoryx_seconds == 0
    gradients = sum(w.size_bytes for w in one.weights)
    assert resident.streamed.in_bytes == resident.streamed.out_bytes == pytest.approx(gradients, rel=0.01)


def test_energy_is_of_all_wafers():
    one, many = wse.cost(program(1), CS3), wse.cost(program(4), CS3)
    assert many.joules > 4 * one.joules
    assert "4 x CS-3" in str(many) and "modelled" in str(many)


# ---- lengths that only the run knows ---------------------------------------------------------------------------------
def test_kernels_of_unknown_length_make_a_pair_of_bounds():
    system = CS3.replace(io_bytes_per_second=1e6)
    f = lambda x, n: jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, jnp.tanh(x)))[1]
    plain = lower(f, jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)).program
    loaded = dataclasses.replace(plain, calls=(stream("load", (WEIGHT,)), *plain.calls))
    bounds = wse.cost(loaded, system, streaming=BARE)
    assert bounds.most_step_seconds == float("inf") > bounds.step_seconds > 4000 / 1e6
    known = wse.cost(loaded, system, streaming=BARE, while_trips=3)
    assert known.most_step_seconds == pytest.approx(known.step_seconds)
    assert known.step_seconds > bounds.step_seconds


def test_what_streams_an_unknown_number_of_times_has_no_price():
    load = dataclasses.replace(stream("load", (WEIGHT,)), under=(Unknown("while:3"),))
    with pytest.raises(wse.UnknownTripsError, match=r"load .* at while:3.*give while_trips"):
        wse.cost(by_hand(load, work("1.0")), CS3)
    assert wse.cost(by_hand(load), CS3, while_trips=2).io_seconds == pytest.approx(8000 / CS3.io_bytes_per_second)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="execution='resident': this program streams"):
        wse.cost(program(), CS3, execution="resident")
    with pytest.raises(ValueError, match="prefetch=-1"):
        wse.cost(program(), CS3, prefetch=-1)
    loop = Loop("steps:4", 10**7, 1)
    with pytest.raises(ValueError, match="steps:4 streams 10000000 times"):
        wse.cost(by_hand(stream("load", (WEIGHT,), loop), work("1.0", loop)), CS3)


def test_a_memory_that_is_too_small_names_the_preset_that_would_do():
    step, state = abstract_train_step(SMALL, optax.adamw(1e-3))
    cluster = wse.Cluster(wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1)), 1, wse.MemoryX(1e3, name="a thimble"))
    made = wse.jit(step, cluster, streamed_argnums=0, execution="streamed")
    with pytest.raises(ValueError, match=r"a thimble holds 1,000 bytes.*MemoryX 1\.5 TB is the smallest preset that would do"):
        made.lower(state, jax.ShapeDtypeStruct((8, 33), jnp.int32))
