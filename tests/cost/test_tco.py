"""Total cost: sums, what an article got for its inputs, and which input decides."""

from __future__ import annotations

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.cost.compare import compare
from wsejax.cost.llm import LLM
from wsejax.cost.tco import Inputs, break_even, corrected_tco, cost_per_converged_model, inputs_of, popular_tco, sensitivity, tco
from wsejax.cost.workload import Workload
from wsejax.hardware import WSE3

BASE = Inputs(
    name="base", tokens_per_hour=1e8, tokens=1e11, dollars_per_hour=100.0, runs=2.0, setup_hours=10.0, debug_hours_per_run=5.0,
    kilowatts=23.0, lost_share=0.05,
)  # fmt: skip


def test_the_popular_inputs_give_the_popular_totals():
    wafer, gpus = map(tco, popular_tco())
    assert wafer.dollars == pytest.approx(51_100) and round(wafer.days, 1) == 0.8
    assert round(gpus.dollars) == 81_333 and round(gpus.days, 1) == 3.4
    assert gpus.people_dollars - wafer.people_dollars == (80 - 18) * 200


def test_the_popular_throughputs_cannot_be():
    """16.7 and 10 exaflops a second: 1,000 times a dense peak."""
    for inputs, peak in zip(popular_tco(), (WSE3.dense_peak_fp16_flops_per_second, 8 * 989e12), strict=True):
        flops = 6 * 20e9 * inputs.tokens_per_hour / 3600
        assert flops == pytest.approx(16.7e18 if "wafer" in inputs.name else 10e18, rel=0.01)
        assert flops > 1000 * peak


def test_with_possible_throughputs_the_winner_is_that_of_the_price():
    wafer, cheap = corrected_tco(32.0)
    _, dear = corrected_tco(98.0)
    assert wafer.tokens_per_hour == pytest.approx(183e6, rel=0.01) and cheap.tokens_per_hour == pytest.approx(107e6, rel=0.01)
    assert tco(wafer).dollars == pytest.approx(306_000, rel=0.01) and tco(wafer).days == pytest.approx(114, rel=0.01)
    assert tco(cheap).dollars == pytest.approx(168_000, rel=0.01) and tco(cheap).days == pytest.approx(198, rel=0.01)
    assert tco(dear).dollars == pytest.approx(483_000, rel=0.01)
    price = break_even(cheap, wafer, "dollars_per_hour")
    assert 32 < price < 98
    assert tco(cheap.replace(dollars_per_hour=price)).dollars == pytest.approx(tco(wafer).dollars)


def test_a_total_by_hand():
    total = tco(BASE)
    hours = 2 * 1e11 / 1e8 / 0.95
    assert total.training_hours == pytest.approx(hours)
    assert total.parts() == pytest.approx({"machine": 100 * (hours + 20), "people": 100 * 20, "energy": hours * 23 * 1.2 * 0.1})
    assert total.dollars == pytest.approx(sum(total.parts().values()))
    assert total.to_dict()["dollars"] == pytest.approx(total.dollars) and total.to_dict()["modelled"]
    assert cost_per_converged_model(BASE, 0.5) == pytest.approx(total.dollars)


@given(factor=st.floats(1.01, 10))
def test_twice_the_price_is_dearer_and_twice_the_speed_cheaper(factor):
    assert tco(BASE.replace(dollars_per_hour=100 * factor)).dollars > tco(BASE).dollars
    assert tco(BASE.replace(tokens_per_hour=1e8 * factor)).dollars < tco(BASE).dollars
    assert tco(BASE.replace(setup_billed=0.0)).dollars == pytest.approx(tco(BASE).dollars - 2000)


def test_swings_are_those_of_the_total_widest_first():
    swings = sensitivity(BASE)
    assert [s.dollars for s in swings] == sorted((s.dollars for s in swings), reverse=True)
    assert swings[0].name in ("runs", "dollars_per_hour", "tokens", "tokens_per_hour")
    for swing in swings:
        assert swing.low_dollars == pytest.approx(tco(BASE.replace(**{swing.name: swing.low})).dollars)
        assert swing.high_dollars == pytest.approx(tco(BASE.replace(**{swing.name: swing.high})).dollars)
    assert [s.name for s in sensitivity(BASE, {"pue": (1.0, 2.0)})] == ["pue"]
    assert "kilowatts" not in {s.name for s in sensitivity(BASE.replace(dollars_per_kwh=0.0))}


def test_where_no_price_is_even():
    free, costly = BASE.replace(dollars_per_hour=0.0, people_dollars_per_hour=0.0, dollars_per_kwh=0.0), BASE
    assert break_even(costly, free, "dollars_per_hour") is None
    assert break_even(BASE, BASE, "tokens_per_hour") == pytest.approx(1e8)


def test_gradients_agree_with_swings():
    slope = jax.grad(lambda inputs: tco(inputs).dollars)(jax.tree.map(float, BASE))
    step = tco(BASE.replace(dollars_per_hour=101.0)).dollars - tco(BASE).dollars
    assert float(slope.dollars_per_hour) == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens_per_hour": 0.0}, "tokens_per_hour=0.0: must be finite and positive"),
        ({"dollars_per_hour": -1.0}, "dollars_per_hour=-1.0: must be finite and not negative"),
        ({"pue": 0.5}, "pue=0.5: outside 1 to 5"),
        ({"lost_share": 1.0}, "lost_share=1.0: outside 0 to 0.99"),
        ({"rate": 1.0}, "no such field"),
    ],
)
def test_bad_inputs_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        BASE.replace(**changes)


def test_inputs_of_a_compared_machine():
    llm = LLM(name="1B", layers=16, width=2048, heads=16, kv_heads=16, head_width=128, ffn_width=8192, vocab_size=32000, context=2048)
    row = compare(Workload.of_llm(llm, 256, 2048), ["cs3"], dollars_per_hour={"cs3": 50.0}).rows[0]
    rented = inputs_of(row, steps=1000.0, runs=3.0)
    assert tco(rented).training_hours == pytest.approx(3 * 1000 * row.step_seconds / 3600)
    assert tco(rented).machine_dollars == pytest.approx(50 * tco(rented).training_hours) and tco(rented).energy_dollars == 0
    own = inputs_of(row, tokens=1000.0 * 256 * 2048, energy_in_rate=False, pue=1.0, dollars_per_kwh=0.1)
    assert tco(own).energy_dollars == pytest.approx(1000 * row.joules / 3.6e6 * 0.1)
    with pytest.raises(ValueError, match="tokens=None, steps=None: give one"):
        inputs_of(row)


def test_bad_questions_are_named():
    with pytest.raises(ValueError, match="spans=1: a factor above 1"):
        sensitivity(BASE, 1)
    with pytest.raises(ValueError, match=r"spans\['pue'\]=\(2.0, 1.0\): low comes first"):
        sensitivity(BASE, {"pue": (2.0, 1.0)})
    with pytest.raises(ValueError, match="field='price': unknown; known are tokens_per_hour"):
        break_even(BASE, BASE, "price")
    with pytest.raises(ValueError, match="converged_share=0"):
        cost_per_converged_model(BASE, 0)
