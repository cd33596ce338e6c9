"""The schedule of streamed stages: what a link and a wafer can do at once, closed forms, and when nothing stalls."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsejax.streaming.schedule import PARTS, Layer, Schedule, Stage, layer_stages, least_tokens, schedule, slack_seconds

SECONDS = st.one_of(st.just(0.0), st.floats(1e-3, 10.0))
BYTES = st.one_of(st.just(0.0), st.floats(1e-2, 50.0))
RATES = st.floats(0.5, 20.0)


@st.composite
def some_stages(draw: st.DrawFn) -> list[Stage]:
    """Of any kind: fenced, with updates, without loads."""
    found = []
    for n in range(draw(st.integers(1, 12))):
        fenced, out = draw(st.integers(0, 5)) == 0, draw(BYTES)
        found.append(
            Stage(
                f"s{n}", draw(SECONDS), draw(BYTES), out, draw(SECONDS) / 10, draw(st.sampled_from("ab")),
                draw(st.none() | SECONDS), fenced, draw(SECONDS) if fenced else 0.0, draw(BYTES),
            )
        )  # fmt: skip
    return found


def uniform(count: int, compute: float, size_in: float, size_out: float) -> list[Stage]:
    return [Stage(f"layer {n}", compute, size_in, size_out) for n in range(count)]


def apart(starts: np.ndarray, ends: np.ndarray) -> bool:
    """One after the other on one resource, in order."""
    return all(end <= start + 1e-9 for end, start in zip(ends, starts[1:], strict=False))


@given(stages=some_stages(), rate=RATES, out=RATES, prefetch=st.integers(0, 4), drain=st.integers(0, 3), latency=st.floats(0, 1))
def test_nothing_overlaps_on_one_resource_and_nothing_computes_before_its_weights(stages, rate, out, prefetch, drain, latency):
    made = schedule(stages, rate, out, prefetch=prefetch, drain=drain, latency_seconds=latency)
    for name in ("load", "compute", "store", "memoryx", "back"):
        assert apart(getattr(made, f"{name}_start"), getattr(made, f"{name}_end"))
    inward = [pair for n in range(len(stages)) for pair in ((made.load_start[n], made.load_end[n]), (made.back_start[n], made.back_end[n]))]
    assert apart(*(np.array(side) for side in zip(*inward, strict=True)))
    for n, stage in enumerate(stages):
        assert made.load_end[n] - made.load_start[n] == pytest.approx(stage.in_bytes / rate, abs=1e-9)
        assert made.store_end[n] - made.store_start[n] == pytest.approx(stage.out_bytes / out, abs=1e-9)
        assert made.compute_end[n] - made.compute_start[n] == pytest.approx(stage.compute_seconds + stage.fixed_seconds, abs=1e-9)
        if stage.in_bytes:
            assert made.compute_start[n] >= made.load_end[n] + latency - 1e-9
        assert made.store_start[n] >= made.compute_end[n] - 1e-9
    assert made.wait.min() >= -1e-9


@given(stages=some_stages(), rate=RATES, out=RATES, prefetch=st.integers(0, 4), latency=st.floats(0, 1))
def test_parts_sum_to_the_whole_which_is_no_less_than_any_resource(stages, rate, out, prefetch, latency):
    made = schedule(stages, rate, out, prefetch=prefetch, latency_seconds=latency)
    parts = made.parts()
    assert tuple(parts) == PARTS and min(parts.values()) >= -1e-9
    assert sum(parts.values()) == pytest.approx(made.seconds)
    came = sum(s.in_bytes + s.back_bytes for s in stages)
    least = max(parts["compute"] + parts["software"], came / rate, sum(s.out_bytes for s in stages) / out)
    assert made.seconds >= least - 1e-9
    assert made.seconds >= made.memoryx_seconds - 1e-9


@given(stages=some_stages(), rate=RATES, prefetch=st.integers(0, 3), drain=st.integers(0, 2), faster=st.floats(1, 3))
def test_more_buffers_and_faster_links_never_slow_it(stages, rate, prefetch, drain, faster):
    made = schedule(stages, rate, prefetch=prefetch, drain=drain).seconds
    assert schedule(stages, rate, prefetch=prefetch + 1, drain=drain).seconds <= made + 1e-9
    assert schedule(stages, rate, prefetch=prefetch, drain=drain + 1).seconds <= made + 1e-9
    assert schedule(stages, rate * faster, prefetch=prefetch, drain=drain).seconds <= made + 1e-9


@given(stages=some_stages(), rate=RATES, prefetch=st.integers(0, 3))
def test_a_buffer_holds_one_stage_at_a_time(stages, rate, prefetch):
    """When a load starts, at most `prefetch` stages before it have weights that are not done with, and the one at work."""
    stages = [dataclasses.replace(s, fenced=False, memoryx_seconds=0.0, in_bytes=s.in_bytes + 1.0) for s in stages]
    made = schedule(stages, rate, prefetch=prefetch)
    for n in range(len(stages)):
        held = sum(made.compute_end[m] > made.load_start[n] + 1e-9 for m in range(n))
        assert held <= prefetch


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@given(count=st.integers(1, 20), compute=st.floats(0.01, 5), size_in=st.floats(0.01, 5), size_out=st.floats(0.01, 5), rate=RATES)
def test_equal_stages_take_what_the_closed_form_says(prefetch, count, compute, size_in, size_out, rate):
    """A flow shop of three machines with equal jobs: each once, and the slowest for every other job; without prefetch two are one."""
    made = schedule(uniform(count, compute, size_in, size_out), rate, prefetch=prefetch)
    load, store = size_in / rate, size_out / rate
    slowest = max(compute, load, store) if prefetch else max(compute + load, store)
    assert made.seconds == pytest.approx(load + compute + store + (count - 1) * slowest)


@given(
    sizes=st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.0, 1.0)), min_size=1, max_size=10),
    storing=st.integers(0, 10),
    rate=RATES,
    out=RATES,
)
def test_it_stalls_just_where_the_condition_does_not_hold(sizes, storing, rate, out):
    """Double buffering, every stage loads, and the last ones store."""
    stages = [
        Stage(f"{n}", compute, size, size if n >= storing else 0.0, fixed_seconds=fixed) for n, (compute, size, fixed) in enumerate(sizes)
    ]
    slack = slack_seconds(stages, rate, out)
    assume(not np.any(np.abs(slack) < 1e-6))
    made = schedule(stages, rate, out)
    assert bool(made.stall_seconds.max() <= 1e-9) == bool((slack > 0).all())
    assert slack[0] == np.inf


@given(
    count=st.integers(2, 12), tokens=st.floats(1, 1e6), rate=st.floats(1e3, 1e12), weights=st.floats(1e3, 1e12), flops=st.floats(1e6, 1e18)
)
def test_least_tokens_of_equal_layers_is_the_closed_form(count, tokens, rate, weights, flops):
    stages = uniform(count, 2.0 * weights * tokens / flops, 2.0 * weights, 0.0)
    assert least_tokens(stages, tokens, rate) == pytest.approx(2.0 * flops / (2.0 * rate))


@given(sizes=st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.0, 0.1)), min_size=2, max_size=8), rate=RATES)
def test_least_tokens_is_where_stalls_begin(sizes, rate):
    at = lambda tokens: [Stage(f"{n}", c * tokens, size, size / 2, fixed_seconds=f) for n, (c, size, f) in enumerate(sizes)]
    least = least_tokens(at(7.0), 7.0, rate)
    assert least == pytest.approx(least_tokens(at(90.0), 90.0, rate))
    assume(least > 0)
    assert schedule(at(least * 1.001), rate).stall_seconds.max() <= 1e-9
    assert schedule(at(least * 0.999), rate).stall_seconds.max() > 0


LAYERS = [Layer(f"layer {n}", 1.0, 2.0, 3.0, 3.0, 0.05, 0.25) for n in range(6)]


def one(layers=LAYERS, rate: float = 10.0, **options) -> Schedule:
    return schedule(layer_stages(layers, **options), rate)


def test_each_micro_batch_streams_all_weights_again():
    once, again = one(), one(micro_batches=4)
    assert again.load_seconds == pytest.approx(4 * once.load_seconds)
    assert again.store_seconds == pytest.approx(4 * once.store_seconds)
    assert again.memoryx_seconds == pytest.approx(once.memoryx_seconds) == pytest.approx(6 * 0.25)
    assert again.parts()["compute"] == pytest.approx(4 * once.parts()["compute"])
    assert again.parts()["stall"] == pytest.approx(0, abs=1e-9)
    assert again.seconds < 4 * once.seconds  # one boundary and one fill for all


@pytest.mark.parametrize("clipped", [True, False])
def test_a_step_begins_with_weights_that_are_updated(clipped: bool):
    """With clipping no update before the last gradient, no load before the last update; without, layer by layer."""
    layers = 2 * len(LAYERS)
    made = one(steps=2, clipped=clipped, rate=2.0)
    per_step = len(made.stages) // 2
    assert per_step == layers + clipped
    for n in range(len(LAYERS)):
        first, last = made.load_start[per_step + n], made.store_end[layers - 1 - n]
        assert first >= last + LAYERS[n].update_seconds - 1e-9
        if clipped:
            assert first >= made.store_end[layers - 1] + 6 * 0.25 - 1e-9
    if clipped:
        assert made.memoryx_start[layers] == pytest.approx(made.store_end[layers - 1])
        assert made.parts()["boundary"] == pytest.approx(
            sum(made.compute_start[n] - made.compute_end[n - 1] for n in (layers, 2 * layers + 1))
        )


@given(
    sizes=st.lists(st.tuples(*[st.floats(0.1, 3)] * 5), min_size=1, max_size=6),
    rate=RATES,
    micro_batches=st.integers(1, 3),
)
def test_clipping_never_makes_steps_faster_and_layers_overlap_the_boundary_without(sizes, rate, micro_batches):
    layers = [Layer(f"{n}", a, b, w, g, 0.0, u) for n, (a, b, w, g, u) in enumerate(sizes)]
    times = [schedule(layer_stages(layers, steps=3, micro_batches=micro_batches, clipped=c), rate).seconds for c in (False, True)]
    assert times[0] <= times[1] + 1e-9


def test_what_is_fenced_waits_for_all_that_was_stored():
    """A value that is added up over the wafers and comes back: a round trip."""
    stages = [Stage("make", 1.0, 2.0, 4.0), Stage("sum", 0.0, 4.0, 0.0, fenced=True), Stage("use", 1.0)]
    made = schedule(stages, 2.0, latency_seconds=0.5)
    made_at = 2.0 / 2.0 + 0.5 + 1.0
    assert made.load_start[1] == pytest.approx(made_at + 2.0 + 0.5)
    assert made.compute_start[2] == pytest.approx(made_at + 2.0 + 0.5 + 2.0 + 0.5)
    assert made.parts()["boundary"] == pytest.approx(5.0)


def test_what_comes_back_keeps_only_a_fence_waiting():
    """Gradients of resident weights, added up over the wafers while the backward pass goes on."""
    stages = [Stage(f"layer {n}", 1.0, 0.0, 1.0, back_bytes=1.0) for n in range(4)]
    made = schedule([*stages, Stage("update", 1.0, fenced=True)], 2.0, latency_seconds=0.125)
    assert made.compute_end[3] == 4.0 and made.parts()["stall"] == 0
    assert made.compute_start[4] == pytest.approx(4.0 + 0.5 + 0.125 + 0.5 + 0.125)
    assert made.load_seconds == pytest.approx(4 * 0.5)


def test_a_stage_without_weights_keeps_the_buffer_of_the_one_before():
    """Of two buffers one is in use until the next stage that loads; so the third load waits for the second stage, not for the first."""
    stages = [Stage("a", 1.0, 1.0), Stage("a, more", 5.0), Stage("b", 1.0, 1.0), Stage("c", 1.0, 1.0)]
    made = schedule(stages, 1.0)
    assert made.load_start[2] == 1.0 and made.load_start[3] == made.compute_end[1] == 7.0


def test_a_layer_that_stores_piece_by_piece_has_one_buffer_of_gradients():
    """The pieces leave as they are made; only the layer after the next waits for the last of them."""
    layer = [Stage("w", 1.0, 1.0, 1.0), Stage("w, more", 1.0, 0.0, 1.0), Stage("w, still more", 1.0, 0.0, 7.0)]
    made = schedule([*layer, *layer, *layer], 2.0)
    assert made.parts()["stall"] == pytest.approx(made.wait[6]) and made.wait[6] > 0
    assert made.compute_start[6] == pytest.approx(made.store_end[2])
    slack = slack_seconds([*layer, *layer, *layer], 2.0)
    assert np.isfinite(slack).tolist() == [False, False, False, True, False, False, True, False, False]
    assert slack[6] == pytest.approx(3.0 - 4.5)


def test_a_load_after_a_fence_hides_behind_nothing():
    made = one(steps=2)
    first = len(made.stages) // 2
    assert made.fill_seconds == pytest.approx(made.wait[0] + made.wait[first]) and made.stall_seconds[first] == 0 < made.wait[first]


def test_no_stages_take_no_time():
    made = schedule([], 1.0)
    assert made.seconds == 0 and made.stall_share == 0 and not any(made.parts().values())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Stage("x", -1.0), "compute_seconds=-1.0: of stage 'x'"),
        (lambda: Stage("x", 1.0, float("nan")), "in_bytes=nan"),
        (lambda: Stage("x", 1.0, memoryx_seconds=1.0), "only if it is fenced"),
        (lambda: schedule([], 0.0), "in_bytes_per_second=0.0"),
        (lambda: schedule([], 1.0, float("inf")), "out_bytes_per_second=inf"),
        (lambda: schedule([], 1.0, prefetch=-1), "prefetch=-1"),
        (lambda: schedule([], 1.0, drain=True), "drain=True"),
        (lambda: schedule([], 1.0, latency_seconds=-1.0), "latency_seconds=-1.0"),
        (lambda: layer_stages(LAYERS, micro_batches=0), "micro_batches=0"),
        (lambda: layer_stages(LAYERS, steps=0), "steps=0"),
        (lambda: least_tokens([], 0.0, 1.0), "tokens=0.0"),
    ],
)
def test_bad_input_is_named(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()


def test_every_stage_of_a_step_is_there_in_order():
    names = [stage.name for stage in layer_stages(LAYERS[:2], micro_batches=2)]
    passes = ["layer 0 forward", "layer 1 forward", "layer 1 backward", "layer 0 backward"]
    assert names == [*passes, *passes, "boundary"]
    made = one()
    assert all(a <= b for a, b in itertools.pairwise(made.compute_start))
