"""Machines side by side: rows agree with the models they come from."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.cost.accelerators import ACCELERATORS, H100, Cluster, cluster
from wsejax.cost.baselines import Plan, train_step
from wsejax.cost.compare import Wafers, compare, least_micro_batches, machine
from wsejax.cost.estimate import fits
from wsejax.cost.llm import LLM
from wsejax.cost.model import cost
from wsejax.cost.training import wafer_step
from wsejax.cost.workload import Workload
from wsejax.hardware import CS2, CS3

SEVEN = LLM(name="7B", layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn_width=11008, vocab_size=32000, context=4096)
WORK = Workload.of_llm(SEVEN, 1024, 4096)


def test_rows_are_those_of_the_models():
    plan = Plan(data=64, fsdp=True, micro_batches=4)
    rows = compare(WORK, ["cs3", "16 x CS-3", CS2, cluster("h100", 64)], plans={"64 x H100": plan}).rows
    assert [row.name for row in rows] == ["CS-3", "16 x CS-3", "CS-2", "64 x H100"]
    assert rows[0].step_seconds == pytest.approx(wafer_step(CS3, WORK).seconds)
    assert rows[1].step_seconds == pytest.approx(wafer_step(CS3, WORK, 16).seconds)
    assert rows[3].step_seconds == pytest.approx(train_step(WORK, cluster("h100", 64), plan).seconds)
    assert rows[3].plan == str(plan)
    for row in rows:
        assert sum(row.parts.values()) == pytest.approx(row.step_seconds)
        assert row.tokens_per_second * row.step_seconds == pytest.approx(WORK.tokens)
        assert 0 < row.mfu < 1 and 0 <= row.communication_share < 1 and row.joules > 0 and row.dollars > 0


def test_rates_are_inputs():
    same = [compare(WORK, ["2xcs3", "8xh100"], dollars_per_hour=d).rows for d in ({}, {"2 x CS-3": 72.0, "8xh100": 36.0})]
    assert same[0][0].dollars == pytest.approx(220 * same[0][0].step_seconds / 3600)
    assert same[1][0].dollars == pytest.approx(72 * same[1][0].step_seconds / 3600)
    assert same[0][1].dollars == pytest.approx(32 * same[0][1].step_seconds / 3600)
    assert same[1][1].dollars == pytest.approx(36 * same[1][1].step_seconds / 3600)
    assert same[0][0].joules == same[1][0].joules


def test_it_is_json_and_says_modelled():
    table = compare(WORK, ["cs3", "8xh100", "groq-lpu"])
    read = json.loads(json.dumps(table.to_dict()))
    assert read["modelled"] and all(row["modelled"] for row in read["rows"])
    assert [row["name"] for row in read["rows"]] == ["CS-3", "8 x H100"]
    assert read["left_out"][0]["name"] == "8 x Groq LPU" and "does not fit" in read["left_out"][0]["reason"]
    batches, tax = read["conditions"]
    assert "micro-batches" in batches and "modelled at most" in batches and "tokens a step, communication is" in tax
    assert set(read["models"]) == {row["model"] for row in read["rows"]} == {"whole steps", "alpha-beta"}


def test_state_beyond_the_memory_outside_is_left_out():
    huge = WORK.replace(parameters=1e12, state_bytes=16e12)
    with pytest.raises(ValueError, match=r"does not fit CS-3: weights and optimizer state are 16 TB, .* 4 TB too little"):
        compare(huge, ["cs3"])


def test_the_popular_table_of_days_is_wrong():
    """20 B parameters and 1 T tokens: the article has 14 days on 64 A100, 5 on eight CS-3 and 18 on one. At what was measured they are
    about 155, 28 and 220."""
    twenty = LLM(name="20B", layers=44, width=6144, heads=64, kv_heads=64, head_width=96, ffn_width=24576, vocab_size=50432, context=2048,
                 gated=False)  # fmt: skip
    rows = compare(Workload.of_llm(twenty, 2048, 2048), ["64xa100", "8xcs3", "cs3"]).rows
    days = [1e12 / row.tokens_per_second / 86400 for row in rows]
    for modelled, corrected, printed in zip(days, (155, 30, 226), (14, 5, 18), strict=True):
        assert modelled == pytest.approx(corrected, rel=0.35)
        assert modelled > 5 * printed


@pytest.mark.parametrize("name", [*ACCELERATORS, "cs1", "CS-2", "wse3"])
def test_every_preset_has_a_name(name):
    one = machine(name)
    assert isinstance(one, Wafers if "s" in name.lower()[:3] and name not in ACCELERATORS else Cluster)
    many = machine(f"24 x {name}")
    assert (many.count if isinstance(many, Wafers) else many.chips) == 24


def test_a_program_that_the_compiler_laid_out_can_stand_beside_the_rest():
    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=(1, 1))
    step = wse.jit(lambda w, x: jnp.tanh(x @ w), wafer)
    lowered = step.lower(jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32))
    priced = cost(lowered, CS3, tokens=32)
    work = Workload.of_program(lowered, 32)
    assert work.flops == 2 * 32 * 64 * 128 + 32 * 128 and work.gradient_bytes == 0  # the product, and a tanh each
    assert work.parameters == 64 * 128  # both operands are arguments
    assert work.parameter_bytes == work.state_bytes == 4 * work.parameters and work.itemsize_bytes == 4
    rows = compare(work, [priced, cluster(H100, 1)]).rows
    assert rows[0].step_seconds == pytest.approx(priced.step_seconds)
    assert sum(rows[0].parts.values()) == pytest.approx(priced.step_seconds)
    assert rows[1].parts["data parallel"] == 0


@given(batch=st.integers(1, 4096), seq=st.sampled_from([128, 1024, 4096]), count=st.integers(1, 64))
def test_micro_batches_are_the_fewest_that_fit(batch, seq, count):
    """As `wse.fits` has it: so many sequences at once fit, and one more does not, or they are all in one."""
    work, one = Workload.of_llm(SEVEN, batch, seq), Wafers(system=CS3, count=count)
    if batch < count:
        with pytest.raises(ValueError, match=rf"has {batch} sequences? for {count} wafers"):
            least_micro_batches(work, one)
        return
    least, each = least_micro_batches(work, one), -(-batch // count)
    fit = lambda sequences: fits(SEVEN, CS3, "train", tokens=sequences * seq).verdict != "does not fit"
    assert fit(-(-each // least))
    assert least == 1 or not fit(-(-each // (least - 1)))


def test_a_sequence_that_no_wafer_holds_is_left_out_with_what_is_too_large():
    giant = LLM(name="405B", layers=126, width=16384, heads=128, kv_heads=8, head_width=128, ffn_width=53248, vocab_size=128256,
                context=131072)  # fmt: skip
    work = Workload.of_llm(giant, 1, 8192)
    with pytest.raises(ValueError, match=r"does not fit CS-3: activations of one sequence are 38\.1 GB"):
        compare(work, ["cs3"])
    found = compare(work, ["cs3", "groq-lpu"])
    assert not found.rows
    assert found.left_out[0][0] == "CS-3" and "left out: CS-3" in str(found)
    with pytest.raises(ValueError, match="weights of two layers and a gradient"):
        least_micro_batches(work, Wafers(system=CS3.replace(rows=100.0)))


def test_micro_batches_that_are_asked_for_are_charged_and_must_be_enough():
    least = least_micro_batches(WORK, Wafers(system=CS3))
    asked = compare(WORK, ["cs3"], micro_batches=least).rows[0]
    assert asked.step_seconds == pytest.approx(wafer_step(CS3, WORK, 1, least).seconds)
    assert asked.step_seconds > compare(WORK, ["cs3"]).rows[0].step_seconds
    assert f"{least} micro-batches" in asked.plan
    with pytest.raises(ValueError, match=f"micro_batches={least - 1}: .* in less than {least}"):
        compare(WORK, ["cs3"], micro_batches=least - 1)


def trained(batch: int):
    wafer = wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1))
    step = wse.jit(lambda w, x: w - 0.1 * jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).mean())(w), wafer, donate_argnums=0)
    return step.lower(jax.ShapeDtypeStruct((1024, 1024), jnp.float32), jax.ShapeDtypeStruct((batch, 1024), jnp.float32))


def test_a_program_that_is_resident_has_the_price_of_its_kernels():
    lowered = trained(4096)
    assert wse.memory(lowered).verdict == "resident"
    found = compare(lowered, ["cs3", "2xcs3", "8xh100"], tokens=4096)
    assert [row.model for row in found.rows] == ["kernels", "whole steps", "alpha-beta"]
    assert found.rows[0].step_seconds == pytest.approx(cost(lowered, CS3, execution="resident").step_seconds)
    assert found.rows[0].plan == "weights resident" and found.rows[0].error_group == "whole programs"
    for text in (row.name for row in found.rows):
        assert f"{text}: modelled" in str(found)
    assert "by alpha" not in str(found) and "modelled, kernels:" in str(found) and "median error" in str(found)


@pytest.mark.parametrize("side", [100.0, 150.0, 200.0])
@pytest.mark.parametrize("batch", [4096, 65536])
def test_a_program_that_is_not_resident_is_streamed_in_as_few_parts_as_it_can(side, batch):
    small, lowered = CS3.replace(rows=side, cols=side), trained(batch)
    held, room = wse.memory(lowered, small), CS3.sram_per_pe_bytes
    fixed = held.code_bytes + held.layer_bytes + held.streamed_peak["inputs"]
    varying = sum(held.streamed_peak.values()) - held.streamed_peak["inputs"]
    if fixed >= room:
        with pytest.raises(ValueError, match=f"are {fixed:,.0f} bytes in the fullest PE"):
            compare(lowered, [small], tokens=batch)
        return
    row = compare(lowered, [small], tokens=batch).rows[0]
    if held.verdict == "resident":
        assert row.plan == "weights resident"
        return
    parts = int(row.plan.split()[2])
    assert row.model == "whole steps" and fixed + varying / parts <= room
    assert parts == 1 or fixed + varying / (parts - 1) > room


@pytest.mark.parametrize(
    ("systems", "more", "says"),
    [
        ([], {}, r"systems=\[\]: name at least one machine"),
        (["cs9"], {}, "system='cs9': unknown; known are cs1.*h100"),
        (["0 x h100"], {}, "chips=0"),
        (["0xcs3"], {}, "count=0"),
        (["cs3"], {"dollars_per_hour": {"cs3": -1.0}}, r"dollars_per_hour\['cs3'\]=-1.0"),
        (["cs3"], {"micro_batches": 0}, "micro_batches=0"),
        (["groq-lpu"], {}, "does not fit 8 x Groq LPU"),
        ([cluster("h100", 16)], {"plans": {"16 x H100": Plan(data=8)}}, "are 8 chips, 16 x H100 has 16"),
        ([Wafers(system=CS3)], {"dollars_per_hour": {"CS-3": float("nan")}}, "must be finite"),
    ],
)
def test_bad_questions_are_named(systems, more, says):
    with pytest.raises(ValueError, match=says):
        compare(WORK, systems, **more)
