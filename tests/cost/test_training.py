"""Weight-streamed training: when it stalls, how it scales, and that it is a function of the machine."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.cost.llm import LLM
from wsejax.cost.training import Streaming, least_tokens, scaling_efficiency, wafer_step
from wsejax.cost.workload import Workload
from wsejax.hardware import CS2, CS3

SEVEN = LLM(name="7B", layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn_width=11008, vocab_size=32000, context=4096)
GPT_J = LLM(
    name="6B", layers=28, width=4096, heads=16, kv_heads=16, head_width=256, ffn_width=16384, vocab_size=50400, context=2048, gated=False
)
BARE = Streaming(layer_seconds=0.0, boundary_passes=0.0, wait_per_doubling=0.0)
WORK = Workload.of_llm(SEVEN, 1024, 4096)


def products_only(parameters: float, tokens: float, layers: float = 32.0) -> Workload:
    """6 P T flops and nothing else."""
    return WORK.replace(parameters=parameters, flops=6.0 * parameters * tokens, tokens=tokens, layers=layers)


@pytest.mark.parametrize("weight_bytes", [2.0, 4.0])
@given(parameters=st.floats(1e8, 1e12), layers=st.integers(1, 200))
def test_streaming_stalls_below_a_number_of_tokens_whatever_the_width(weight_bytes, parameters, layers):
    """b F / 2 BW forward; thin layers do not change it, since bytes and flops both grow with the weights."""
    by = BARE.replace(weight_bytes=weight_bytes)
    rate = by.efficiency * CS3.dense_peak_fp16_flops_per_second
    needed = least_tokens(CS3, rate, weight_bytes)["forward"]
    stall = lambda tokens: wafer_step(CS3, products_only(parameters, tokens, layers), 1, 1, by).stall_seconds
    assert stall(needed * 1.001) == 0
    assert stall(needed * 0.999) > 0
    assert stall(needed / 2) == pytest.approx(parameters * weight_bytes / CS3.io_bytes_per_second / 2)


def test_tokens_that_the_measured_rate_needs():
    """6.1 Pflop/s, 150 GB/s and 16-bit weights: 41,000 tokens forward, 27,000 over a step."""
    needed = least_tokens(CS3, 6.1e15)
    assert needed["forward"] == pytest.approx(40_700, rel=0.01)
    assert needed["step"] == pytest.approx(27_100, rel=0.01)


def test_thin_layers_lose_by_their_number_alone():
    wide, thin = (wafer_step(CS3, products_only(7e9, 1e6, layers)) for layers in (16.0, 64.0))
    assert thin.seconds - wide.seconds == pytest.approx(2 * 48 * Streaming().layer_seconds)


@pytest.mark.parametrize(("wafers", "micro_batches"), [(1, 1), (4, 1), (16, 8), (1, 64)])
def test_parts_sum_to_the_step(wafers, micro_batches):
    step = wafer_step(CS3, WORK, wafers, micro_batches)
    assert sum(step.parts().values()) == pytest.approx(step.seconds)
    assert all(value >= 0 for value in step.parts().values())
    assert 0 < step.mfu < Streaming().efficiency
    assert step.tokens_per_second * step.seconds == pytest.approx(WORK.tokens)
    assert wafers * CS3.idle_watts < step.joules / step.seconds < wafers * CS3.peak_watts


def test_a_cs3_is_about_twice_a_cs2():
    """Argonne's logs of GPT-J, batch 120 of 2048 tokens: 44.75 samples a second on one CS-3, 43.67 on two CS-2."""
    work = Workload.of_llm(GPT_J, 120, 2048)
    one, two = wafer_step(CS3, work, 1), wafer_step(CS2, work, 2)
    assert 120 / one.seconds == pytest.approx(44.75, rel=0.3)
    assert 120 / two.seconds == pytest.approx(43.67, rel=0.2)
    assert 1.7 < (two.seconds * 2) / one.seconds < 2.5


def test_seven_billion_parameters_on_a_cs3():
    """Argonne's log of Llama-2-7B, batch 1024 of 4096 tokens: 31.98 samples a second."""
    assert 1024 / wafer_step(CS3, WORK).seconds == pytest.approx(31.98, rel=0.2)


def test_sixteen_wafers_are_fifteen_times_one():
    """Sandia's 1 T parameters: 15.3 times on 16 CS-3; Cerebras-GPT: within 9% of linear on 16 CS-2."""
    large = products_only(1e12, 262_144.0, 128.0)
    assert 16 * scaling_efficiency(CS3, large, 16) == pytest.approx(15.3, abs=0.2)
    assert scaling_efficiency(CS2, Workload.of_llm(GPT_J, 120, 2048), 16) > 0.91


def test_strong_scaling_falls_where_each_wafer_gets_too_few_tokens():
    weak = [scaling_efficiency(CS3, WORK, n) for n in (1, 4, 16, 64)]
    strong = [scaling_efficiency(CS3, WORK, n, weak=False) for n in (1, 4, 16, 64)]
    assert weak[0] == strong[0] == 1
    assert weak == sorted(weak, reverse=True) and strong == sorted(strong, reverse=True)
    assert weak[-1] > 0.9 > 0.6 > strong[-1]


def test_micro_batches_stream_all_weights_again():
    one, many = (wafer_step(CS3, WORK, 1, m, BARE) for m in (1, 256))
    assert one.stall_seconds == 0 < many.stall_seconds
    at_most = 2 * 256 * WORK.parameters * 4 / CS3.io_bytes_per_second
    assert many.stall_seconds == pytest.approx(at_most - many.compute_seconds)


def test_wide_operands_get_the_wide_rate():
    narrow, wide = (wafer_step(CS3, Workload.of_llm(SEVEN, 64, 4096, size), 1, 1, BARE) for size in (2, 4))
    assert wide.compute_seconds == pytest.approx(narrow.compute_seconds * CS3.fp16_fma_per_cycle / CS3.fp32_fma_per_cycle)


def test_a_step_is_a_function_of_the_system():
    seconds = lambda system: wafer_step(system, WORK, 16).seconds
    slope = jax.jit(jax.grad(seconds))(CS3)
    assert float(slope.clock_hz) < 0 and float(slope.io_bytes_per_second) < 0
    assert float(jax.jit(seconds)(CS3)) == pytest.approx(seconds(CS3), rel=1e-5)
    clocks = jnp.linspace(0.5e9, 2e9, 7)
    mapped = jax.vmap(lambda clock: seconds(dataclasses.replace(CS3, clock_hz=clock)))(clocks)
    assert [float(x) for x in mapped] == pytest.approx([seconds(CS3.replace(clock_hz=float(c))) for c in clocks], rel=1e-5)


@given(wafers=st.integers(1, 192))
def test_a_traced_number_of_wafers_is_the_same(wafers):
    traced = wafer_step(CS2, WORK, jnp.float32(wafers)).seconds
    assert float(traced) == pytest.approx(wafer_step(CS2, WORK, wafers).seconds, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(wafers=0), "wafers=0: must be at least 1"),
        (dict(wafers=float("nan")), "wafers=nan"),
        (dict(micro_batches=-1), "micro_batches=-1"),
        (dict(wafers=2048, micro_batches=4096), "has 4.1943e.06 tokens; divide by less"),
    ],
)
def test_bad_divisions_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        wafer_step(CS3, WORK, **arguments)


@pytest.mark.parametrize(("field", "value"), [("efficiency", 47), ("layer_seconds", -1.0), ("weight_bytes", 32)])
def test_bad_constants_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        Streaming(**{field: value})
