"""Deployments: memory that adds up, stages that bound what comes out, and messages when nothing fits."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import presets
from wsejax.cost.llm import LLM
from wsejax.cost.pipeline import Deployment, deploy, head_slots, kv_bytes_per_row_pe, kv_capacity_tokens, layer_bytes_per_pe
from wsejax.hardware import CS3, cluster_spec

LLAMA = LLM.from_dict(presets.find("llama-3.1-8b"))
LARGE = LLM.from_dict(presets.find("llama-3.1-70b"))
LEAN = CS3.replace(code_per_pe_bytes=4176.0)


# ---- memory ----------------------------------------------------------------------------------------------------------
def test_tiles_hold_the_weights():
    """On a grid that divides everything, tiles are the weights of a layer and nothing else."""
    s = CS3.replace(rows=256.0, cols=256.0)
    assert layer_bytes_per_pe(s, LLAMA) * 256 * 256 == 2 * LLAMA.block_parameters
    assert kv_bytes_per_row_pe(s, LLAMA, LLAMA.layers) * 256 == LLAMA.kv_bytes_per_token()


@given(rows=st.integers(100, 700), layers=st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_capacity_fills_the_sram_and_no_more(rows, layers):
    s = LEAN.replace(rows=float(rows), cols=300.0)
    tokens = kv_capacity_tokens(s, LLAMA, layers)
    used = layers * layer_bytes_per_pe(s, LLAMA) + tokens / rows * kv_bytes_per_row_pe(s, LLAMA, layers)
    free = s.sram_per_pe_bytes - s.code_per_pe_bytes
    assert tokens == 0 or used == pytest.approx(free)
    assert kv_capacity_tokens(s, LLAMA, layers, balanced=False) * rows == pytest.approx(tokens)


# ---- the pipeline ----------------------------------------------------------------------------------------------------
def test_latency_is_the_sum_of_its_parts_and_io_counts_once_a_wafer():
    d = Deployment(LEAN, LARGE, 4, 2, 1)
    slower = dataclasses.replace(d, system=LEAN.replace(io_latency_seconds=LEAN.io_latency_seconds + 1e-4))
    assert slower.decode_seconds(1024) - d.decode_seconds(1024) == pytest.approx(4e-4)
    assert slower.prefill_seconds(1000, 1000) - d.prefill_seconds(1000, 1000) == pytest.approx(4e-4)


@given(batch=st.integers(1, 400))
@settings(deadline=None, max_examples=25)
def test_a_pipeline_gives_no_more_than_its_slowest_stage(batch):
    d = Deployment(LEAN, LLAMA, 1, 3, 2)
    together = math.ceil(batch / d.stages)
    assert d.tokens_per_second(1024, batch) <= together / d.token_interval_seconds(1024)
    assert d.tokens_per_second(1024, batch) <= batch * d.tokens_per_second_per_user(1024) * (1 + 1e-9)
    assert d.decode_seconds(1024, batch) >= d.decode_seconds(1024, 1)


def test_tokens_that_are_known_follow_each_other_sooner_than_those_that_are_not():
    d = Deployment(LEAN, LLAMA, 1, 4, 2)
    assert d.token_interval_seconds(1024) < d.decode_seconds(1024) / (d.stages - 1)


def test_busy_is_less_than_first_token_and_chunks_help():
    d = Deployment(LEAN, LLAMA, 1, 5, 2)
    assert d.prefill_busy_seconds(4096) < d.prefill_seconds(4096)
    assert d.prefill_seconds(4096) <= min(d.prefill_seconds(4096, c) for c in (256, 1024, 4096))
    one, two = d.prefill_seconds(1024, 1024), d.prefill_seconds(2048, 1024)
    assert one < two < 2 * one  # the second chunk follows through the stages


def test_energy_is_idle_power_shared_and_work_done():
    """A CS-3 takes 15 to 23 kW: a token's energy is between idle and peak power over the rate, and sharing the wafer saves."""
    d = Deployment(LEAN, LLAMA, 1, 5, 2)
    one, many = d.joules_per_token(1024, 1), d.joules_per_token(1024, 10)
    for joules, batch in ((one, 1), (many, 10)):
        rate = d.tokens_per_second(1024, batch)
        assert LEAN.idle_watts / rate < joules < LEAN.peak_watts / rate
    assert many < one
    free = dataclasses.replace(d, system=LEAN.replace(idle_watts=0.0))
    assert (
        free.joules_per_token(1024, 1)
        == pytest.approx(free.joules_per_token(1024, 10))
        == pytest.approx(one - LEAN.idle_watts / d.tokens_per_second(1024, 1))
    )
    assert d.summary(1024, 10)["modelled_tokens_per_second"] == d.tokens_per_second(1024, 10)


def test_services_come_out_as_published():
    """Vendor, 2024: Llama-3.1-8B at 1,800 tokens/s on one wafer, 70B on four at 450, both 16-bit and plain: within a factor of 1.5."""
    small = deploy(LEAN, LLAMA, context=2048)
    assert small.wafers == 1
    assert 1800 / 1.5 < small.tokens_per_second_per_user(1024) < 1800 * 1.5
    large = deploy(LEAN, LARGE, context=2048)
    assert large.wafers == 4
    assert 450 / 1.5 < large.tokens_per_second_per_user(1024) < 450 * 1.5


def test_the_fewest_wafers_and_a_cut_that_holds():
    d = deploy(CS3, LLAMA, context=4096, batch=4)
    assert d.kv_tokens >= 4 * 4096
    assert d.layers_per_stage * d.stages >= LLAMA.layers + head_slots(LLAMA)
    assert d.to_dict()["wafers"] == d.wafers
    if d.wafers > 1:
        with pytest.raises(ValueError, match="does not fit"):
            deploy(CS3, LLAMA, context=4096, batch=4, wafers=d.wafers - 1)


def test_what_does_not_fit_is_named_with_its_size():
    with pytest.raises(ValueError, match=r"llama-3.1-70b on 1 CS-3: does not fit, weights short by \d+ GB"):
        deploy(CS3, LARGE, wafers=1, context=1024)
    with pytest.raises(ValueError, match="keys and values short by"):
        deploy(CS3, LLAMA, wafers=1, context=131072, batch=64)
    with pytest.raises(ValueError, match="weight_bytes=-2"):
        deploy(CS3, LLAMA, weight_bytes=-2)
    with pytest.raises(ValueError, match="batch=0"):
        deploy(CS3, LLAMA, batch=0)
    with pytest.raises(ValueError, match="tokens=0"):
        Deployment(CS3, LLAMA, 1, 1, 1).prefill_seconds(0, 64)


# ---- on clusters -----------------------------------------------------------------------------------------------------
def test_a_cluster_is_so_many_systems():
    assert deploy("cg3", LLAMA) == deploy(CS3, LLAMA) == deploy(cluster_spec("16xcs3"), LLAMA)
    assert deploy("alcf", LLAMA, wafers=4) == deploy(CS3, LLAMA, wafers=4)


def test_more_stages_than_systems_are_named_with_both():
    with pytest.raises(ValueError, match="wafers=5: a pipeline over 5 wafers needs as many systems, and alcf has 4 CS-3"):
        deploy("alcf", LARGE, wafers=5)
    with pytest.raises(ValueError, match=r"llama-3\.1-70b on 4 CS-3: does not fit"):
        deploy("alcf", LARGE)
    with pytest.raises(ValueError, match="cluster='cg9': unknown"):
        deploy("cg9", LARGE)
