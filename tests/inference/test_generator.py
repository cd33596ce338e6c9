"""The driver, with a model that is followed by hand: what it yields, when sequences end, what it compiles and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import wsejax as wse
from tests.inference import toy
from wsejax.inference import Generator, Sampling, figures, modelled
from wsejax.inference.generator import bucket

PARAMS = toy.params()
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


def on_wafer() -> wse.Wafer:
    spec = wse.WSE3.scaled(8, 8)
    return wse.Wafer(spec, wse.DefectMap.uniform(spec, dead_pe_fraction=0.05, seed=1), tiles=(4, 2), devices=(2, 2))


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(toy.MODEL, PARAMS)


def test_it_goes_on_as_the_model_says_whatever_the_lengths(plain):
    run = plain.start(PARAMS, PROMPTS, 9)
    columns = np.stack(list(run), 1)
    want = [toy.continued(PARAMS, prompt, 9) for prompt in PROMPTS]
    np.testing.assert_array_equal(columns, want)
    assert run.tokens == want and run.ended == ["length"] * 3
    assert len(run.step_seconds) == 8 and run.first_seconds > 0 < min(run.step_seconds)
    assert next(run, None) is None, "it is over"


def test_sequences_that_have_ended_give_the_pad_token_and_do_not_disturb_the_others(plain):
    want = [toy.continued(PARAMS, prompt, 9) for prompt in PROMPTS]
    stop = want[2][1]
    run = plain.start(PARAMS, PROMPTS, 9, stop_tokens=[stop])
    columns = np.stack(list(run), 1)
    for row, tokens in enumerate(want):
        end = tokens.index(stop) + 1 if stop in tokens else 9
        assert run.tokens[row] == tokens[:end]
        assert columns[row].tolist()[:end] == tokens[:end] and not columns[row][end:].any()
        assert run.ended[row] == ("stop token" if stop in tokens else "length")


def test_it_is_over_when_all_have_ended_and_the_caller_may_end_one(plain):
    run = plain.start(PARAMS, PROMPTS, 9, stop_tokens=range(toy.VOCAB))
    assert len(list(run)) == 1 and run.ended == ["stop token"] * 3
    run = plain.start(PARAMS, PROMPTS[:2], 9)
    next(run)
    run.end(0, "enough")
    rest = np.stack(list(run), 1)
    assert run.ended == ["enough", "length"] and not rest[0].any() and len(run.tokens[0]) == 1
    assert run.tokens[1] == toy.continued(PARAMS, PROMPTS[1], 9)


def test_lengths_of_one_bucket_are_one_program(plain):
    plain.start(PARAMS, PROMPTS, 9)
    known = len(plain._programs)
    for length in (2, 3, 6):
        run = plain.start(PARAMS, [[1] * length, [2], [3, 4]], 9)
        assert run.programs is plain.start(PARAMS, PROMPTS, 9).programs
    assert len(plain._programs) == known
    assert [bucket(n, 40) for n in (1, 16, 17, 32, 33, 40)] == [16, 16, 32, 32, 40, 40]


def test_draws_follow_the_seed_and_the_sequence_alone():
    generator = Generator(toy.MODEL, PARAMS, sampling=Sampling(3.0))
    both = list(map(tuple, generator.start(PARAMS, PROMPTS, 6, seed=1)))
    assert both == list(map(tuple, generator.start(PARAMS, PROMPTS, 6, seed=1)))
    assert both != list(map(tuple, generator.start(PARAMS, PROMPTS, 6, seed=2)))
    other = list(map(tuple, generator.start(PARAMS, [PROMPTS[0], [9, 9], [3]], 6, seed=1)))
    assert [step[0] for step in both] == [step[0] for step in other]
    assert len({token for step in both for token in step}) > 3


def test_a_penalty_counts_prompt_and_text():
    """With a penalty beyond all measure no token comes twice as long as others are left whose score is positive."""
    how = Sampling(repetition_penalty=1e6)
    run = Generator(toy.MODEL, PARAMS, sampling=how).start(PARAMS, PROMPTS, 4)
    list(run)
    for prompt, got in zip(PROMPTS, run.tokens, strict=True):
        tokens = list(prompt)
        for token in got:
            scores = np.arange(1, len(tokens) + 1) @ PARAMS["table"][tokens].astype(np.float64)
            scores[tokens] = np.where(scores[tokens] > 0, scores[tokens] / 1e6, scores[tokens] * 1e6)[...]
            assert token == scores.argmax()
            tokens.append(token)


def test_an_answer_apart_begins_with_its_own_token():
    """As with an encoder: the prompt may fill the context, the answer begins anew, and a penalty does not count the prompt."""

    def prefill(params, tokens, lengths, slots):
        start = np.full((tokens.shape[0], 1), 7, np.int32)
        logits, cache = toy.prefill(params, start + 0 * tokens[:, :1], lengths * 0 + 1, slots)
        return logits, cache | {"source": tokens}

    def decode_step(params, tokens, cache):
        logits, new = toy.decode_step(params, tokens, cache)
        return logits, new | {"source": cache["source"]}

    model = dataclasses.replace(toy.MODEL, prefill=prefill, decode_step=decode_step, start_token=7)
    generator = Generator(model, PARAMS, sampling=Sampling(repetition_penalty=1.000001))
    assert generator.sizes([toy.CONTEXT], toy.CONTEXT - 1) == (toy.CONTEXT, toy.CONTEXT)
    for length in (2, 20):  # of two buckets, with the same slots
        run = generator.start(PARAMS, [[1] * length], 5)
        list(run)
        assert run.tokens == [toy.continued(PARAMS, [7], 5)] and run.programs.slots == 16
    assert np.flatnonzero(run._seen[0]).tolist() == [7]
    with pytest.raises(ValueError, match="after the token that an answer begins with is more than the context of 40: give 39 or less"):
        generator.start(PARAMS, [[1]], 40)


@pytest.mark.parametrize(
    ("prompts", "new", "hint"),
    [
        ([], 3, "prompts is empty"),
        ([[1], []], 3, "prompt 1 has no tokens"),
        ([[1]], 0, "max_new_tokens=0: give 1 or more"),
        ([[1], [2] * 41], 1, "prompt 1 has 41 tokens, the model's context is 40, which must leave room for one more"),
        ([[1] * 40], 1, "prompt 0 has 40 tokens, the model's context is 40"),
        ([[1] * 30, [2]], 11, "max_new_tokens=11 after the longest prompt's 30 tokens is more than the context of 40: give 10 or less"),
        ([[1, 12]], 3, "token 12: the model's vocabulary has 12"),
        ([[-1]], 3, "token -1"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(plain, prompts, new, hint):
    with pytest.raises(ValueError, match=hint):
        plain.start(PARAMS, prompts, new)


@pytest.mark.parametrize("balanced", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_wafer_says_the_same_and_the_cache_stays_where_it_is(balanced):
    how = Sampling(0.7, top_k=4, repetition_penalty=1.2)
    want = list(map(tuple, Generator(toy.MODEL, PARAMS, sampling=how).start(PARAMS, PROMPTS, 12, seed=3)))
    generator = Generator(toy.MODEL, PARAMS, wafer=on_wafer(), sampling=how, balanced=balanced)
    run = generator.start(PARAMS, PROMPTS, 12, seed=3)
    assert list(map(tuple, run)) == want
    first, step = run.programs.first.lowered, run.programs.step.lowered
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, first.out_shardings[1], step.in_shardings[1]))
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, step.out_shardings[1], step.in_shardings[1]))
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, first.in_shardings[0], step.in_shardings[0]))
    assert first.audit().clean and step.audit().clean and step.audit().hlo is not None
    assert step.donated, "the cache is not given away"
    found = figures(run, wse.CS3)
    assert found.step is not None and found.first is not None
    assert found.step.cost.step_seconds == wse.cost(run.programs.step.kept, tokens=3).step_seconds
    assert found.step.link_bytes == step.audit().to_dict()["link_bytes"] > 0
    assert (found.step.store_link_bytes > 0) == balanced == (found.first.store_link_bytes > 0)
    assert (found.prompt_tokens, found.new_tokens, found.later_tokens, found.steps) == (11, 36, 33, 11)
    assert found.cache_bytes == 4 * 3 * (2 * 32 * toy.VOCAB + 32 + 1)
    assert found.modelled_tokens_per_second == pytest.approx(3 / float(found.step.cost.step_seconds))
    assert found.to_dict()["modelled_step"]["modelled"] is True


def test_a_balanced_cache_has_slots_that_its_rows_divide():
    generator = Generator(dataclasses.replace(toy.MODEL, context=38), PARAMS, wafer=on_wafer(), balanced=True)
    assert generator.sizes([3], 30) == (16, 36)
    with pytest.raises(ValueError, match=r"over 4 rows of tiles .* so 36 for 38 tokens: ask for 2 less"):
        generator.sizes([3], 35)
    with pytest.raises(ValueError, match="balanced=True: a balanced cache lies on the rows of a wafer"):
        Generator(toy.MODEL, PARAMS, balanced=True)


def test_what_runs_in_plain_jax_has_no_price(plain):
    run = plain.start(PARAMS, PROMPTS, 1)
    list(run)
    found = figures(run)
    assert found.step is None and found.modelled_tokens_per_second is None and found.step_seconds is None
    assert found.to_dict()["modelled_step"] is None and found.host_tokens_per_second is None
    with pytest.raises(ValueError, match="runs in plain JAX"):
        modelled(run.programs.step, wse.CS3, 3)
