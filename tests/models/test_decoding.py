"""Token by token is as the whole at once: for every family, ragged prompts, and caches in any order."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.positions import Rotary

from .small import CONTEXT, DECODERS, VOCAB, close, parameters, quickly, small

BATCH, PROMPT, STEPS, SLOTS = 3, 6, 4, 11
LENGTHS = np.array([6, 2, 4], np.int32)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, PROMPT + STEPS)).astype(np.int32)
ORDER = np.random.default_rng(1).permutation(SLOTS)  # which slot of the usual cache each slot is
T5S = ("t5", "t5_gated")
VARIANTS = {"gpt2_by_layer", "gpt_neox_sequential", "llama_yarn", "mixtral_window", "falcon_grouped", "t5_gated"}  # of one family


@functools.cache
def whole(name: str, **how: Any):
    """(tokens, answer of a T5, present) -> logits."""
    family, config = small(name, **how)
    more = lambda answer, present: ((answer,), {"present": present}) if name in T5S else ((), {})

    def run(params, tokens, answer, present):
        args, kwargs = more(answer, present)
        return family.apply(config, params, tokens, *args, **kwargs)

    return functools.partial(quickly(run), parameters(name))


@functools.cache
def stepwise(name: str):
    """(prompts, lengths, tokens of each step) -> logits [steps + 1, batch, vocab], the same with slots in another order, and the
    caches before and after."""
    family, config = small(name)

    def elsewhere(leaf, new, length):
        here = (jnp.asarray(ORDER)[None, :] == length[:, None]).reshape(BATCH, SLOTS, *(1,) * (leaf.ndim - 2))
        return jnp.where(here, new[:, None].astype(leaf.dtype), leaf)

    def run(params, prompts, lengths, following):
        first, begun = family.prefill(config, params, prompts, lengths, SLOTS)
        shuffled = {**begun, "k": begun["k"][:, :, ORDER], "v": begun["v"][:, :, ORDER], "position": begun["position"][:, ORDER]}

        def step(caches, tokens):
            one, usual = family.decode_step(config, params, tokens, caches[0])
            two, other = family.decode_step(config, params, tokens, caches[1], store=elsewhere)
            return (usual, other), (one, two)

        (cache, _), (one, two) = jax.lax.scan(step, (begun, shuffled), following)
        together = lambda rest: jnp.concatenate([first[None], rest])
        return together(one), together(two), begun, cache

    return functools.partial(quickly(run), parameters(name))


def padded(junk: int) -> np.ndarray:
    """Prompts with something in their padding."""
    here = np.arange(PROMPT)[None, :] < LENGTHS[:, None]
    return np.where(here, TOKENS[:, :PROMPT], (TOKENS[:, :PROMPT] + junk) % VOCAB)


def following(name: str) -> np.ndarray:
    """The tokens of each step: of a T5 its answer's, of a decoder what comes after each prompt."""
    if name in T5S:
        return TOKENS[:, ::-1][:, :STEPS].T.copy()
    return np.stack([TOKENS[np.arange(BATCH), LENGTHS + step] for step in range(STEPS)])


def at_each_step(name: str) -> np.ndarray:
    """What the whole sequence gives where the steps stand."""
    if name in T5S:
        answer = np.concatenate([np.zeros((BATCH, 1), np.int32), following(name).T], axis=1)
        present = (np.arange(PROMPT)[None, :] < LENGTHS[:, None]).astype(np.int32)
        return np.moveaxis(np.asarray(whole(name)(padded(0), answer, present)), 1, 0)
    logits = np.asarray(whole(name)(TOKENS, None, None))
    return np.stack([logits[np.arange(BATCH), LENGTHS - 1 + step] for step in range(STEPS + 1)])


def slowly(names: Any) -> list[Any]:
    """One of each family, and others of it in the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ()) for name in names]


@pytest.mark.parametrize("name", slowly([*DECODERS, *T5S]))
def test_steps_give_what_the_whole_sequence_gives(name):
    """Also with a cache whose slots stand in another order, with other things in the padding, and for each sequence wherever it stands."""
    got, shuffled, *caches = stepwise(name)(padded(0), LENGTHS, following(name))
    close(got, at_each_step(name))
    close(shuffled, got, 1e-6)
    other, *_ = stepwise(name)(padded(5), LENGTHS, following(name))
    close(other, got, 1e-6)
    turned, *_ = stepwise(name)(padded(0)[::-1], LENGTHS[::-1], following(name)[:, ::-1])
    close(turned[:, ::-1], got, 1e-6)
    for cache, steps in zip(caches, (0, STEPS), strict=True):
        so_far = np.full(BATCH, 1 + steps) if name in T5S else LENGTHS + steps
        np.testing.assert_array_equal(cache["length"], so_far)
        want = np.where(np.arange(SLOTS)[None, :] < so_far[:, None], np.arange(SLOTS)[None, :], -1)
        np.testing.assert_array_equal(cache["position"], want)


@pytest.mark.parametrize("name", slowly(DECODERS))
@pytest.mark.parametrize("at", [0, 6, 9])
def test_a_token_changes_logits_from_its_place_on_and_none_before(name, at):
    """But no further on than its window and the layers above carry it."""
    changed = TOKENS.copy()
    changed[:, at] = (changed[:, at] + 1) % VOCAB
    a, b = (np.asarray(whole(name)(tokens, None, None)) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(a[:, :at], b[:, :at])
    moved = np.abs(a - b).max(-1)
    config = small(name)[1]
    reach = TOKENS.shape[1] if config.window is None else config.layers * (config.window - 1)
    assert (moved[:, at : at + reach + 1] > 1e-6).all()
    np.testing.assert_array_equal(a[:, at + reach + 1 :], b[:, at + reach + 1 :])


@pytest.mark.parametrize("name", slowly(T5S))
def test_an_answer_is_causal_and_sees_all_of_what_was_read(name):
    answer, present = TOKENS[:, :PROMPT], np.ones((BATCH, PROMPT), np.int32)
    run = whole(name)
    usual = np.asarray(run(TOKENS[:, 4:], answer, present))
    told = answer.copy()
    told[:, 3] = (told[:, 3] + 1) % VOCAB
    other = np.asarray(run(TOKENS[:, 4:], told, present))
    np.testing.assert_array_equal(usual[:, :3], other[:, :3])
    assert (np.abs(usual - other)[:, 3:].max(-1) > 1e-6).all()
    for at in (0, PROMPT - 1):
        read = TOKENS[:, 4:].copy()
        read[:, at] = (read[:, at] + 1) % VOCAB
        assert (np.abs(usual - np.asarray(run(read, answer, present))).max(-1) > 1e-6).all()
    hidden = present.copy()
    hidden[:, 3:] = 0
    junk = np.where(hidden > 0, TOKENS[:, 4:], 0)
    np.testing.assert_array_equal(run(TOKENS[:, 4:], answer, hidden), run(junk, answer, hidden))


def test_with_room_for_few_padding_still_says_nothing():
    """A mixture with capacity drops tokens by how many there are of a call, so steps are not as the whole; but padding takes no room."""
    family, config = small("mixtral", capacity_factor=0.5)
    run = quickly(lambda prompts: family.prefill(config, parameters("mixtral"), prompts, LENGTHS, SLOTS)[0])
    close(run(padded(5)), run(padded(0)), 1e-6)


def abstractly(function, *shapes: tuple[int, ...]):
    """Traced, not run."""
    return jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_what_does_not_fit_is_refused(name):
    family, config = small(name)
    params, lengths = parameters(name), np.array([1], np.int32)
    prefill = lambda slots: lambda tokens: family.prefill(config, params, tokens, lengths, slots)
    with pytest.raises(ValueError, match=f"the cache has sequence length {CONTEXT + 1}, the model's context is {CONTEXT}"):
        abstractly(prefill(CONTEXT + 1), (1, 4))
    with pytest.raises(ValueError, match=f"tokens has sequence length {CONTEXT + 1}, the"):
        abstractly(prefill(CONTEXT), (1, CONTEXT + 1))
    long = ((1, 4), (1, CONTEXT + 1)) if name == "t5" else ((1, CONTEXT + 1),)
    with pytest.raises(ValueError, match=f"sequence length {CONTEXT + 1}, the model's context is {CONTEXT}"):
        abstractly(lambda *tokens: family.apply(config, params, *tokens), *long)
    if name == "llama":
        with pytest.raises(ValueError, match="tokens has sequence length 5, the cache 4 slots"):
            abstractly(prefill(4), (1, 5))
        with pytest.raises(ValueError, match="the cache has sequence length 13"):
            family.new_cache(config, 2, CONTEXT + 1)


def test_an_empty_cache_is_a_beginning():
    """A sequence may also be fed to an empty cache from its first token on."""
    family, config = small("falcon")
    params = parameters("falcon")
    cache = family.new_cache(config, BATCH, SLOTS)
    assert cache["k"].shape == (config.layers, BATCH, SLOTS, config.kv_heads, config.head_width)
    step = quickly(lambda cache, tokens: family.decode_step(config, params, tokens, cache)[::-1])
    got = []
    for tokens in TOKENS.T:
        cache, logits = step(cache, tokens)
        got.append(logits)
    close(np.stack(got, axis=1), whole("falcon")(TOKENS, None, None))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gpt2", {"layers": 0}, "layers=0: give a whole number of at least 1"),
        ("gpt2", {"vocab_size": -1}, "vocab_size=-1"),
        ("gpt2", {"heads": 3, "head_width": 0}, "width=16 is not a multiple of heads=3"),
        ("gpt2", {"activation": "mish"}, "activation='mish'"),
        ("gpt2", {"rotary": Rotary(width=2)}, "rotary=.* with positions='learned'"),
        ("gpt2", {"dropout": 1.0}, r"dropout=1.0.*\[0, 1\)"),
        ("gpt2", {"remat": "some"}, "remat='some'"),
        ("llama", {"kv_heads": 3}, "kv_heads=3: must divide heads=4"),
        ("llama", {"rotary": Rotary(width=6)}, "rotary.width=6: a head has only head_width=4"),
        ("mistral", {"window": 0}, "window=0"),
        ("t5", {"buckets": 6}, "buckets=6"),
        ("t5", {"max_distance": 4}, "max_distance=4"),
        ("t5", {"heads": 3, "head_width": 0}, "width=16 is not a multiple of heads=3"),
        ("t5", {"dropout": -0.5}, "dropout=-0.5"),
    ],
)
def test_a_bad_config_names_its_field(name, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(small(name)[1], **change)
