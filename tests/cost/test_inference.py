"""The price of inference: flops and hops that can be counted by hand, signs that were published, and functions that JAX can take apart."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import presets
from wsejax.cost.inference import (
    Software,
    decode_layer_price,
    head_price,
    middle_all_reduce_price,
    middle_gemv_price,
    prefill_layer_price,
)
from wsejax.cost.llm import LLM
from wsejax.hardware import CS2, CS3
from wsejax.kernels.pe.gemv import gemv_price

LLAMA = LLM.from_dict(presets.find("llama-3-8b"))
NO_HEADS = dataclasses.replace(LLAMA, heads=1, kv_heads=1, head_width=4096)


def region(side, system=CS2):
    return system.replace(rows=float(side), cols=float(side))


# ---- flops and hops by hand ------------------------------------------------------------------------------------------
def test_flops_of_a_decoded_layer_are_those_of_its_weights_and_keys():
    """Where tiles are whole: two for each weight, and for each key and value, times the queries that share it.

    What every row or column of PEs repeats for itself, norms and exponentials, is some 15% more.
    """
    price = decode_layer_price(region(256), LLAMA, 4096)
    by_hand = 2.0 * LLAMA.block_parameters + 4.0 * LLAMA.heads * LLAMA.head_width * 4096
    assert by_hand <= price.flops <= 1.2 * by_hand


def test_flops_of_a_prefilled_layer():
    price = prefill_layer_price(region(256), LLAMA, 1024, 3072)
    by_hand = 1024 * (2.0 * LLAMA.block_parameters + 4.0 * LLAMA.heads * LLAMA.head_width * 4096)
    assert by_hand <= price.flops <= 1.02 * by_hand


def test_a_decoded_layer_crosses_the_grid_ten_times():
    """d cycles / d hop_cycles is the number of hops that are waited for: of ten reductions, half a line there and half a line back.

    Links are never the bound here, so every reduction waits for the flight.
    """
    side = 128
    cycles = lambda hop: decode_layer_price(region(side).replace(hop_cycles=hop), NO_HEADS, 128).cycles
    hops = jax.grad(cycles)(10.0)
    assert hops == pytest.approx(10 * 2 * (side / 2 - 1))


def test_software_enters_as_it_says():
    """Ten kernels, and as many stages as ten two-phase trees on half a line are deep, each with a broadcast's."""
    price = lambda **s: decode_layer_price(region(128), NO_HEADS, 128, 1, Software(**s)).cycles
    assert price(kernel_cycles=101.0) - price(kernel_cycles=1.0) == pytest.approx(1000.0)
    stages = price(stage_cycles=11.0) - price(stage_cycles=10.0)
    assert stages == pytest.approx(10 * (2 * (8 - 1) + 1))


def test_a_root_in_the_middle_is_the_same_product_sooner():
    rows, cols, k, n = 64.0, 32.0, 640, 320
    middle, end = middle_gemv_price(CS2, rows, cols, k, n), gemv_price(CS2, rows, cols, k, n, 2)
    assert middle.flops == pytest.approx(end.flops, rel=0.1)
    assert middle.compute_cycles <= end.compute_cycles
    assert middle.cycles < end.cycles


@given(side=st.integers(8, 400), size=st.integers(2, 4096))
@settings(deadline=None, max_examples=30)
def test_a_longer_line_takes_longer(side, size):
    shorter, longer = (middle_all_reduce_price(CS3, float(n), 1.0, float(size)).cycles for n in (side, 2 * side))
    assert longer > shorter


# ---- signs that were published ---------------------------------------------------------------------------------------
def test_decode_slows_down_on_a_larger_grid_and_prefill_speeds_up():
    """WaferLLM, tables 3 and 4: 8B decode falls from 420 to 660 PEs a side; prefill rises from 480 to 720."""
    decode = [decode_layer_price(region(p), NO_HEADS, 4096).cycles for p in (420, 540, 660)]
    assert decode == sorted(decode)
    prefill = [prefill_layer_price(region(p), NO_HEADS, 4096).cycles for p in (480, 600, 720)]
    assert prefill == sorted(prefill, reverse=True)


def test_decode_waits_for_the_fabric_rather_than_computes():
    """WaferLLM: communication may be 90% of a vector product; here most of a layer on 660 x 660."""
    price = decode_layer_price(region(660), NO_HEADS, 4096)
    assert price.wait_cycles > price.compute_cycles


@given(context=st.integers(256, 30000), batch=st.integers(1, 16))
@settings(deadline=None, max_examples=25)
def test_more_context_and_more_sequences_cost_more_but_less_than_apart(context, batch):
    s = region(256, CS3)
    one, more = decode_layer_price(s, LLAMA, context).cycles, decode_layer_price(s, LLAMA, context, batch).cycles
    assert one <= more <= batch * one * (1 + 1e-9)
    assert decode_layer_price(s, LLAMA, 2 * context).cycles > one


def test_chunks_cost_more_than_the_prompt_at_once():
    s = region(256, CS3)
    whole = prefill_layer_price(s, LLAMA, 2048).cycles
    assert whole < sum(prefill_layer_price(s, LLAMA, 512, b).cycles for b in range(0, 2048, 512))


def test_what_is_kept_counts_in_blocks():
    """Twice as many kept tokens cost twice their attention, whatever the blocks; a short last chunk does not make the blocks shorter."""
    s = region(256, CS3)
    at = lambda before, block=None: prefill_layer_price(s, LLAMA, 256, before, block=block).cycles
    new = at(0, 1024)
    assert (at(8192, 1024) - new) == pytest.approx(2 * (at(4096, 1024) - new))
    assert at(8192, 1024) < at(8192)


def test_a_head_costs_by_its_vocabulary():
    small = dataclasses.replace(LLAMA, vocab_size=32000)
    assert head_price(region(256), small).cycles < head_price(region(256), LLAMA).cycles


# ---- functions of the machine ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("price", [lambda s: decode_layer_price(s, LLAMA, 4096, 2), lambda s: prefill_layer_price(s, LLAMA, 2048)])
def test_jit_vmap_and_grad_over_machines(price):
    hops = jnp.array([1.0, 2.0, 4.0])
    cycles = lambda hop: price(region(256, CS3).replace(hop_cycles=hop)).cycles
    mapped = jax.jit(jax.vmap(cycles))(hops)
    for hop, value in zip(hops, mapped, strict=True):
        assert value == pytest.approx(cycles(float(hop)), rel=1e-4)
    slope = jax.grad(cycles)(2.0)
    assert slope == pytest.approx((cycles(2.001) - cycles(1.999)) / 0.002, rel=1e-2)


def test_the_size_of_a_region_can_be_traced():
    """Trees of a traced length are the closed forms, which are close to those counted."""
    cycles = lambda side: decode_layer_price(region(1.0, CS3).replace(rows=side, cols=side), LLAMA, 4096).cycles
    assert jax.jit(cycles)(256.0) == pytest.approx(cycles(256.0), rel=0.05)
    assert jnp.isfinite(jax.grad(cycles)(250.0))
