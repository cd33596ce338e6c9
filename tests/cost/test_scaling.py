"""Training on more and more systems: the layered schedule beside the closed form, and what was published."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from models.presets import find
from wsejax.cost.estimate import MEASURED_SHARE_OF_PEAK
from wsejax.cost.scaling import published_scaling, scaling, step_least_tokens, streamed_step
from wsejax.cost.training import Streaming, least_tokens, wafer_step
from wsejax.hardware import CS2, CS3

BARE = Streaming(layer_seconds=0.0, boundary_passes=0.0, wait_per_doubling=0.0)
MEASURED = BARE.replace(efficiency=MEASURED_SHARE_OF_PEAK, weight_bytes=2.0)
CALM = CS3.replace(io_latency_seconds=0.0)
SEVEN = wse.LLM.from_dict(find("llama-2-7b"))
WORK = wse.Workload.of_llm(SEVEN, 64, 4096)


def products_only(parameters: float, tokens: float, layers: int = 32) -> wse.Workload:
    """6 P T flops and nothing else."""
    return WORK.replace(parameters=parameters, flops=6.0 * parameters * tokens, tokens=tokens, layers=float(layers))


@given(
    parameters=st.floats(1e8, 1e12), layers=st.integers(2, 100), share=st.floats(0.05, 20.0), weight_bytes=st.sampled_from([1.0, 2.0, 4.0])
)
def test_it_stalls_just_below_the_closed_form_whatever_the_layers(parameters, layers, share, weight_bytes):
    """b F / 2 BW: simulated stage by stage, over sizes of models, numbers of layers and bytes."""
    by = BARE.replace(weight_bytes=weight_bytes)
    rate = by.efficiency * CS3.dense_peak_fp16_flops_per_second
    least = least_tokens(CS3, rate, weight_bytes)["forward"]
    work = products_only(parameters, share * least, layers)
    assert step_least_tokens(CALM, work, 1, by) == pytest.approx(least)
    if abs(share - 1) > 1e-6:
        assert bool(streamed_step(CALM, work, 1, 1, by)[0].parts()["stall"] > 1e-9 * least / rate) == (share < 1)


def test_the_measured_rate_needs_27_to_41_thousand_tokens():
    """6.1 Pflop/s, 150 GB/s, 16 bits; attention computes beside the weights, so a schedule of a model's layers needs a little less."""
    rate = MEASURED_SHARE_OF_PEAK * CS3.dense_peak_fp16_flops_per_second
    forms = least_tokens(CS3, rate, 2.0)
    assert forms["forward"] == pytest.approx(41e3, rel=0.01) and forms["step"] == pytest.approx(27e3, rel=0.02)
    for name in ("llama-3.1-8b", "llama-3.1-70b"):
        work = wse.Workload.of_llm(wse.LLM.from_dict(find(name)), 8, 8192)
        assert 27e3 < step_least_tokens(CALM, work, 1, MEASURED) < 41e3


@pytest.mark.parametrize(("wafers", "micro_batches"), [(1, 1), (16, 1), (2, 4)])
def test_without_stalls_it_takes_what_the_closed_form_takes(wafers: int, micro_batches: int):
    """But for the fill and the drain, which the closed form leaves out."""
    work = WORK.replace(flops=WORK.flops * wafers * micro_batches, tokens=WORK.tokens * wafers * micro_batches)
    made, wait = streamed_step(CS3, work, wafers, micro_batches)
    form = wafer_step(CS3, work, wafers, micro_batches)
    parts = made.parts()
    assert parts["stall"] == pytest.approx(form.stall_seconds, abs=1e-9) == 0
    assert parts["compute"] == pytest.approx(form.compute_seconds) and parts["software"] == pytest.approx(form.layers_seconds)
    assert made.memoryx_seconds == pytest.approx(form.boundary_seconds)
    assert made.seconds + wait == pytest.approx(form.seconds, rel=0.01)


def test_where_it_stalls_it_takes_what_the_link_takes():
    work = products_only(7e9, 2000.0)
    made, _ = streamed_step(CALM, work, 1, 1, BARE)
    form = wafer_step(CALM, work, 1, 1, BARE)
    assert made.seconds == pytest.approx(2 * 7e9 * 4 / 150e9, rel=0.05)
    assert made.parts()["stall"] == pytest.approx(form.stall_seconds, rel=0.05)


@pytest.mark.parametrize("system", [CS2, CS3])
def test_sixteen_systems_with_the_same_batch_each_are_92_to_100_percent(system):
    found = scaling(system, WORK)
    last = found.rows[-1]
    assert last.systems == 16 and 0.92 < last.efficiency < 1.0
    assert [row.batch_growth for row in found.rows] == [1, 2, 4, 8, 16]
    assert last.tokens == 16 * WORK.tokens and last.tokens_per_system == WORK.tokens
    assert [row.efficiency for row in found.rows] == sorted((row.efficiency for row in found.rows), reverse=True)
    assert found.rows[0].efficiency == pytest.approx(1)
    assert 16 * last.efficiency == pytest.approx(15.3, abs=0.2)  # Sandia, 2024


def test_strong_scaling_falls_below_the_minimum():
    found = scaling("cs3", WORK, (1, 4, 16, 64), weak=False)
    assert [row.batch_growth for row in found.rows] == [1] * 4
    assert (
        [row.stalls for row in found.rows] == [row.tokens_per_system < row.least_tokens for row in found.rows] == [False, False, True, True]
    )
    assert [row.stall_share > 1e-9 for row in found.rows] == [row.stalls for row in found.rows]
    assert found.rows[-1].efficiency < 0.1 < 0.4 < found.rows[1].efficiency


def test_micro_batches_need_the_same_tokens_each():
    whole, parts = (scaling(CALM, WORK, (1,), micro_batches=m, streaming=BARE).rows[0] for m in (1, 4))
    assert parts.tokens_per_system == whole.tokens_per_system / 4
    assert parts.least_tokens == pytest.approx(whole.least_tokens)


def test_clusters_have_so_many_systems_and_so_much_memory():
    found = scaling("andromeda", WORK, (1, 16))
    assert found.memory is not None and found.memory.fits and "CS-2 of andromeda" in str(found)
    big = scaling("alcf", WORK.replace(state_bytes=16e12), (4,))
    assert big.memory is not None and not big.memory.fits and "MemoryX 1.2 PB" in str(big.memory)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["modelled"] and [row["systems"] for row in data["rows"]] == [1, 16] and data["memory"]["fits"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: scaling("andromeda", WORK, (32,)), "systems=32: of CS-2 of andromeda there are 16 at most"),
        (lambda: scaling("cs2", WORK, (193,)), "systems=193: of CS-2 there are 192"),
        (lambda: scaling("cs3", WORK, ()), "name at least one number"),
        (lambda: scaling("cs3", WORK, (0,)), r"systems=\[0\]"),
        (lambda: scaling("h100", WORK), "cluster='h100': unknown"),
        (lambda: scaling("cs3", WORK.replace(tokens=8.0), (16,), weak=False), "has 8 tokens; divide by less"),
        (lambda: streamed_step(CS3, WORK, 1, 0), "micro_batches=0"),
        (lambda: scaling("cs3", WORK, (1,), prefetch=-1), "prefetch=-1"),
    ],
)
def test_bad_input_is_named(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()


def test_published_scaling_is_what_the_model_was_held_against():
    found = {one.id: one for one in published_scaling()}
    assert set(found) == {"snl-1t-16", *(f"cgpt-util-{size}" for size in ("1.3B", "2.7B", "6.7B", "13B"))}
    assert found["snl-1t-16"].published == 15.3
    assert all(abs(one.error) < 0.06 for one in found.values())
