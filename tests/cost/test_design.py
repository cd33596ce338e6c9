"""Machines that do not exist: areas, fronts, and steps under limits of memory and I/O."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import wsejax as wse
from experiments.design_space import RANGES, design, draw, evaluate, front, lowered_step
from tests.cost.test_model import train
from wsejax.cost.design import PE_MM2, on_area, pe_mm2, price_step, step_of


@pytest.fixture(scope="module")
def step():
    lowered = train(batch=64)
    return step_of(lowered, wse.memory(lowered))


def test_areas() -> None:
    assert pe_mm2(wse.CS2) == pytest.approx(PE_MM2)
    same = on_area(wse.CS3, wse.CS3, wse.CS3.area_mm2)
    assert (same.rows, same.cols, same.idle_watts) == (wse.CS3.rows, wse.CS3.cols, wse.CS3.idle_watts)
    assert on_area(wse.CS3, wse.CS3, wse.CS3.area_mm2 / 4).pes == pytest.approx(wse.CS3.pes / 4)
    big = wse.CS3.replace(sram_per_pe_bytes=4 * 49152.0)
    assert on_area(big, wse.CS3, wse.CS3.area_mm2).pes == pytest.approx(wse.CS3.pes * pe_mm2(wse.CS3) / pe_mm2(big))


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float64, (30, 3), elements=st.integers(0, 6).map(float)))
def test_the_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    kept = {tuple(points[i]) for i in front(*points.T)}
    dominated = lambda p: any((q <= p).all() and (q < p).any() for q in points)
    assert kept == {tuple(p) for p in points if not dominated(p)}


def test_designs_are_priced_alike_alone_and_by_the_thousand(step) -> None:
    factors = draw(500, seed=3)
    assert factors.shape == (500, len(RANGES))
    seconds, watts, area = (np.asarray(x) for x in evaluate(step, 128)(factors))
    alone = jax.jit(lambda factors: price_step(step, design(factors)))
    for i in (0, 17, 499):
        own = alone(factors[i])
        assert float(own.seconds) == pytest.approx(seconds[i], rel=1e-3)
        assert float(own.watts) == pytest.approx(watts[i], rel=1e-3)
    assert (watts >= 0).all() and (area > 0).all()


def test_less_memory_means_more_micro_batches_and_a_slower_step(step) -> None:
    system = wse.CS3.replace(rows=8.0, cols=8.0, code_per_pe_bytes=0.0, io_bytes_per_second=1e8)
    price = lambda kib: price_step(step, system.replace(sram_per_pe_bytes=kib * 1024.0))
    prices = [price(kib) for kib in (2048, 256, 64)]
    assert [float(p.micro_batches) for p in prices] == sorted(float(p.micro_batches) for p in prices)
    assert float(prices[-1].micro_batches) > 1
    assert float(prices[0].io_seconds) < float(prices[-1].io_seconds)
    assert float(price(1 / 16).seconds) == np.inf


def test_a_step_of_a_published_model_is_data(step) -> None:
    lowered = lowered_step("gpt2", 8, 1024)
    own = step_of(lowered, wse.memory(lowered))
    assert own.weight_bytes == pytest.approx(2 * 124e6, rel=0.01)
    assert len(jax.tree.leaves(own)) < 200


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--designs 0", "--designs 0 is too small"),
        ("--models foo", "no such model"),
        ("--chunk -1", "--chunk -1"),
        ("--batch 0", "--batch 0"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(flags, says, capsys):
    from experiments import design_space
    from experiments.entry import start

    assert start(design_space.main, design_space.Settings, "", flags.split()) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and says in found.err and found.err.count("\n") == 1
