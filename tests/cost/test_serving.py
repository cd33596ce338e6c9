"""The queue in front of a deployment: laws of queues, on engines whose times are known."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import presets
from wsejax.cost.llm import LLM
from wsejax.cost.pipeline import Deployment
from wsejax.cost.serving import Engine, Request, engine, poisson_requests, read_trace, serve
from wsejax.hardware import CS3

PREFILL, DECODE = 0.01, 0.001


def simple(max_batch=8, kv_tokens=1e9, prefill=PREFILL, busy=None, seen=None):
    """Prompts take `prefill`, a decode step `DECODE`, whatever their size; `seen` collects the steps."""

    def decode(batch, kept):
        if seen is not None:
            seen.append((batch, kept))
        return DECODE

    return Engine(lambda _: prefill, lambda _: prefill if busy is None else busy, decode, kv_tokens, max_batch)


requests = st.lists(
    st.builds(Request, st.floats(0, 2), st.integers(1, 50), st.integers(1, 20)),
    min_size=1,
    max_size=30,
)


# ---- closed forms ----------------------------------------------------------------------------------------------------
@given(arrival=st.floats(0, 10), output=st.integers(1, 100))
@settings(deadline=None)
def test_a_single_request_takes_its_prefill_and_its_steps(arrival, output):
    served = serve([Request(arrival, 5, output)], simple())
    assert served.waited_seconds[0] == pytest.approx(PREFILL)
    assert served.last_token_seconds[0] - arrival == pytest.approx(PREFILL + (output - 1) * DECODE)
    assert np.allclose(served.gaps_seconds, DECODE)


def test_one_token_requests_are_an_m_d_1_queue():
    """Pollaczek and Khinchine: with load rho and service s, a request waits rho s / (2 (1 - rho)) on average, and is served."""
    rate = 60.0
    rho = rate * PREFILL
    served = serve(poisson_requests(20000, rate, 10, 1, seed=3), simple())
    waited = rho * PREFILL / (2 * (1 - rho)) + PREFILL
    assert served.waited_seconds.mean() == pytest.approx(waited, rel=0.05)
    assert served.summary()["busy_share"] == pytest.approx(rho, rel=0.05)


def test_stages_that_take_turns_raise_what_a_queue_can_bear():
    """Ten stages: the first token comes as late, the next prompt goes in after a tenth of that."""
    trace = poisson_requests(2000, 90.0, 10, 1, seed=1)
    serial, turns = serve(trace, simple()), serve(trace, simple(busy=PREFILL / 10))
    assert turns.waited_seconds.mean() < 1.2 * PREFILL < serial.waited_seconds.mean() / 2


# ---- laws ------------------------------------------------------------------------------------------------------------
@given(trace=requests, max_batch=st.integers(1, 6), kv_tokens=st.integers(70, 300))
@settings(deadline=None, max_examples=60)
def test_every_token_is_served_once_within_the_limits(trace, max_batch, kv_tokens):
    steps = []
    served = serve(trace, simple(max_batch, kv_tokens, seen=steps))
    assert len(served.gaps_seconds) == sum(r.output_tokens - 1 for r in trace) == sum(batch for batch, _ in steps)
    assert all(batch <= max_batch and batch * kept <= kv_tokens + 1e-6 for batch, kept in steps)
    assert (served.waited_seconds >= PREFILL - 1e-9).all()
    ran = served.last_token_seconds - served.first_token_seconds
    assert (ran >= [(r.output_tokens - 1) * DECODE - 1e-9 for r in trace]).all()


@given(trace=requests, max_batch=st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_work_is_conserved(trace, max_batch):
    """Busy time is that of the prompts and the steps, and nobody waits while the engine idles."""
    steps = []
    served = serve(trace, simple(max_batch, seen=steps))
    assert served.busy_seconds == pytest.approx(len(trace) * PREFILL + len(steps) * DECODE)
    everything = sorted(trace, key=lambda r: r.arrival_seconds)
    together = [dataclasses.replace(r, arrival_seconds=0.0) for r in everything]
    at_once = serve(together, simple(max_batch))
    assert at_once.busy_seconds == pytest.approx(at_once.last_token_seconds.max())


@given(trace=requests)
@settings(deadline=None, max_examples=30)
def test_first_come_first_served(trace):
    served = serve(trace, simple())
    order = np.argsort([r.arrival_seconds for r in trace], kind="stable")
    assert (np.diff(served.first_token_seconds[order]) >= 0).all()


def test_a_full_batch_makes_others_wait():
    trace = [Request(0.0, 1, 100), Request(0.0, 1, 100)]
    alone, both = serve(trace, simple(max_batch=1)), serve(trace, simple(max_batch=2))
    assert alone.waited_seconds[1] > 99 * DECODE > both.waited_seconds[1]
    assert alone.last_token_seconds.max() > both.last_token_seconds.max()


def test_arrivals_are_seeded_and_as_many_as_asked():
    a, b, c = (poisson_requests(4000, 7.0, 100, 30, seed=s, spread=0.5) for s in (1, 1, 2))
    assert a == b != c
    assert a[-1].arrival_seconds == pytest.approx(4000 / 7, rel=0.05)
    assert np.mean([r.prompt_tokens for r in a]) == pytest.approx(100, rel=0.05)


def test_a_trace_is_read_row_by_row():
    assert read_trace([(0.5, 10, 3), [1, 2, 1]]) == [Request(0.5, 10, 3), Request(1.0, 2, 1)]
    with pytest.raises(ValueError, match=r"rows\[1\]=\(1.0, 2\)"):
        read_trace([(0.0, 1, 1), (1.0, 2)])
    with pytest.raises(ValueError, match=r"rows\[0\].*output_tokens=0"):
        read_trace([(0.0, 1, 0)])


# ---- deployments -----------------------------------------------------------------------------------------------------
def test_a_deployment_serves_as_it_is_priced():
    llm = LLM.from_dict(presets.find("llama-3.1-8b"))
    d = Deployment(CS3.replace(code_per_pe_bytes=4176.0), llm, 1, 5, 2)
    e = engine(d, max_batch=16)
    summary = serve([Request(0.0, 1024, 3)], e).summary()
    assert summary["time_to_first_token_seconds"]["p50"] == pytest.approx(d.prefill_seconds(1024))
    assert summary["tokens_per_second_per_user"] == pytest.approx(d.tokens_per_second_per_user(1025), rel=0.01)
    busy = serve(poisson_requests(60, 10.0, 1024, 200, spread=0.3), e).summary()
    assert busy["tokens_per_second"] > summary["tokens_per_second"]
    assert busy["time_between_tokens_seconds"]["p99"] >= busy["time_between_tokens_seconds"]["p50"]
    assert busy["modelled"] is True


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: serve([], simple()), "requests="),
        (lambda: serve([Request(0, 50, 51)], simple(kv_tokens=100)), r"requests\[0\]: 50 \+ 51 tokens never fit.*1 too many"),
        (lambda: serve([Request(0, 1, 1)], simple(max_batch=0)), "max_batch=0"),
        (lambda: Request(-1.0, 1, 1), "arrival_seconds=-1.0"),
        (lambda: Request(float("nan"), 1, 1), "arrival_seconds=nan"),
        (lambda: Request(0.0, 0, 1), "prompt_tokens=0"),
        (lambda: poisson_requests(10, 0.0, 1, 1), "per_second=0.0"),
        (lambda: poisson_requests(10, 1.0, 1, 1, spread=-1), "spread=-1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
