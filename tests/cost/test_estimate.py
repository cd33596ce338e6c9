"""What fits: hand-checked sums, the corrected popular table, and streaming that waits exactly below T_min."""

import doctest
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import presets
from wsejax.cost import estimate
from wsejax.cost.estimate import activation_bytes, fits, min_tokens, popular_estimate_gb, streamed_decode_seconds, training_bytes
from wsejax.cost.llm import LLM
from wsejax.hardware import CS2, CS3


def llm(name):
    return LLM.from_dict(presets.find(name))


# ---- sums by hand ----------------------------------------------------------------------------------------------------
def test_the_popular_table_as_its_own_code_computes_it():
    assert [round(popular_estimate_gb(n)) for n in (1, 7, 13, 20, 70)] == [12, 84, 156, 240, 840]
    assert doctest.testmod(estimate).failed == 0


def test_a_master_copy_makes_sixteen_bytes():
    assert training_bytes(1.0, master_bytes=4).total == 16


def test_3_67_billion_weights_fill_44_gb_with_no_activations():
    """The popular claim that 20 billion train within SRAM, corrected."""
    assert training_bytes(44e9 / 12).total == pytest.approx(44e9)


@given(n=st.floats(1e6, 1e13), weight=st.floats(0.5, 4), more=st.floats(0.1, 4))
def test_bytes_grow_with_parameters_and_with_each_type(n, weight, more):
    assert training_bytes(2 * n, weight).total > training_bytes(n, weight).total
    assert training_bytes(n, weight + more).total > training_bytes(n, weight).total


def test_activations_of_a_large_batch():
    """Llama-3.1-8B, 20 sequences of 8192 tokens computed again layer by layer: 43 GB at the layers' borders."""
    borders = activation_bytes(llm("llama-3.1-8b"), 20 * 8192) - activation_bytes(llm("llama-3.1-8b"), 20 * 8192, recompute=False) / 32
    assert borders == pytest.approx(43e9, rel=0.01)


# ---- streaming -------------------------------------------------------------------------------------------------------
def test_tokens_that_streaming_needs_on_a_cs3():
    """150 GB/s, 2-byte weights and the measured 6.1 PF: 41 and 27 thousand tokens."""
    forward, step = min_tokens(CS3)
    assert forward == pytest.approx(40.9e3, rel=0.01)
    assert step == pytest.approx(27.3e3, rel=0.01)


def test_tokens_that_a_cs2_needs_at_its_measured_rate():
    """GPT-J on two CS-2: 1.75 PF each, 7.8 to 11.7 thousand tokens."""
    forward, step = min_tokens(CS2, flops_per_second=1.75e15)
    assert (step, forward) == pytest.approx((7.8e3, 11.7e3), rel=0.01)


@given(parameters=st.floats(1e8, 1e13), share=st.floats(0.5, 2))
def test_a_pass_streams_longer_than_it_computes_exactly_below_t_min(parameters, share):
    forward, step = min_tokens(CS3)
    flops = estimate.sustained_flops_per_second(CS3)
    for need, passes, per_weight in ((forward, 1, 2), (step, 2, 6)):
        stream = passes * 2 * parameters / CS3.io_bytes_per_second
        compute = per_weight * parameters * need * share / flops
        assert (stream > compute * (1 + 1e-9)) == (share < 1 - 1e-9) or share == pytest.approx(1)


def test_streamed_decode_is_hopeless():
    """16 GB over 150 GB/s: 107 ms a token."""
    assert streamed_decode_seconds(llm("llama-3.1-8b"), CS3) == pytest.approx(0.107, rel=0.01)


# ---- verdicts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "what", "options", "verdict"),
    [
        ("gpt2", "train", dict(tokens=8192), "resident"),
        ("gpt2", "train", {}, "resident"),
        ("llama-3.1-8b", "train", {}, "streamed"),
        ("llama-3.1-8b", "infer", {}, "resident"),
        ("gpt3-1.3b", "train", dict(tokens=2048), "resident"),
        ("gpt3-2.7b", "train", dict(tokens=2048), "streamed"),
        ("llama-3.1-8b", "train", dict(tokens=32768), "streamed"),
        ("llama-3.1-8b", "infer", dict(context=8192), "resident"),
        ("llama-3.1-70b", "infer", dict(context=8192), "streamed"),
        ("llama-3.1-70b", "infer", dict(context=8192, wafers=8), "resident"),
        ("llama-3.1-405b", "infer", dict(context=131072, batch=64), "does not fit"),
        ("llama-3.1-8b", "train", dict(tokens=32768, outside_bytes=1e11), "does not fit"),
    ],
)
def test_verdicts(model, what, options, verdict):
    fit = fits(llm(model), CS3, what, **options)
    assert fit.verdict == verdict, fit
    assert (verdict == "does not fit") == bool(fit.short)
    assert sum(fit.on_wafer.values()) <= fit.on_wafer_capacity or fit.short
    assert fit.to_dict()["verdict"] == verdict


def test_what_is_short_is_named_with_its_size():
    fit = fits(llm("llama-3.1-405b"), CS3, "infer", context=131072, batch=64)
    over = sum(fit.on_wafer.values()) - fit.on_wafer_capacity
    assert fit.short == {"keys and values (on the wafer)": over}
    assert any(note.startswith("too large: keys and values (on the wafer), by ") for note in fit.notes)
    small = fits(llm("llama-3.1-8b"), CS3, "train", outside_bytes=100e9, tokens=32768)
    assert small.short["optimizer (outside)"] == pytest.approx(16 * llm("llama-3.1-8b").parameters - 100e9)
    assert any("the smallest that would do is MemoryX 1.5 TB" in note for note in small.notes)


@given(tokens=st.integers(1, 200_000))
@settings(deadline=None, max_examples=50)
def test_a_note_says_that_streaming_stalls_exactly_below_t_min(tokens):
    fit = fits(llm("gpt3-13b"), CS3.replace(sram_per_pe_bytes=1e6), "train", tokens=tokens, master_bytes=40)
    if fit.verdict == "streamed":
        assert any("stalls" in note for note in fit.notes) == (tokens < fit.min_tokens)


def test_most_tokens_just_fit():
    model = llm("llama-3.1-8b")
    most = int(fits(model, CS3, "train", tokens=1024).most_tokens)
    assert fits(model, CS3, "train", tokens=most).verdict == "streamed"
    assert fits(model, CS3, "train", tokens=most + 2).verdict == "does not fit"
    cache = int(fits(model, CS3, "infer", context=1024).most_tokens)
    assert fits(model, CS3, "infer", context=cache).verdict == "resident"
    assert fits(model, CS3, "infer", context=cache + 2).verdict != "resident"


def test_tokens_are_chosen_so_that_streaming_does_not_stall_if_they_fit():
    fit, need = fits(llm("llama-3.1-8b"), CS3), min_tokens(CS3)[1]
    assert fit.tokens >= need == fit.min_tokens and not any("stalls" in note for note in fit.notes)
    large = fits(llm("llama-3.1-70b"), CS3.replace(code_per_pe_bytes=0.0))
    assert large.tokens == int(large.most_tokens) < need and any("stalls" in note for note in large.notes)


def test_streamed_inference_warns():
    assert any("107 ms a token (modelled)" in n for n in fits(llm("llama-3.1-8b"), CS3, "infer", batch=4, context=20000).notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(wafers=0), "wafers=0"),
        (dict(tokens=-1), "tokens=-1"),
        (dict(weight_bytes=0), "weight_bytes=0"),
        (dict(what="sell"), "what='sell'"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        fits(llm("gpt2"), CS3, **options)
    with pytest.raises(ValueError, match="optimizer_bytes=-1"):
        training_bytes(1e9, optimizer_bytes=-1)


def test_what_does_not_fit_at_once_may_fit_in_micro_batches():
    """The note's micro-batch fits, and one of one more token does not."""
    llm = LLM(name="7B", layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn_width=11008, vocab_size=32000, context=4096)
    fit = fits(llm, CS3, "train", tokens=131072)
    assert fit.verdict == "does not fit"
    (note,) = [note for note in fit.notes if note.startswith("in micro-batches")]
    parts, tokens = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", note)[:2])
    assert parts == -(-131072 // tokens)
    assert fits(llm, CS3, "train", tokens=tokens).verdict == "streamed"
    assert fits(llm, CS3, "train", tokens=tokens + 1).verdict == "does not fit"
