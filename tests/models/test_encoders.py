"""BERT and RoBERTa: who sees whom, what padding may say, and where places are counted from."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from models.encoder import EncoderConfig

from .small import VOCAB, close, parameters, quickly, small

SEQ = 6
TOKENS = np.random.default_rng(0).integers(2, VOCAB, (2, SEQ)).astype(np.int32)  # 1 is RoBERTa's padding
ALL, SAME = np.ones_like(TOKENS), np.zeros_like(TOKENS)


@functools.cache
def compiled(name: str):
    family, config = small(name)
    run = lambda params, tokens, present, segments: family.apply(config, params, tokens, present=present, segments=segments)
    return functools.partial(quickly(run), parameters(name))


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("at", [0, SEQ - 1])
def test_every_place_sees_every_other(name, at):
    changed = TOKENS.copy()
    changed[:, at] = 2 + (changed[:, at] - 1) % (VOCAB - 2)
    a, b = (np.asarray(compiled(name)(tokens, ALL, SAME)) for tokens in (TOKENS, changed))
    assert a.shape == (2, SEQ, VOCAB) and (np.abs(a - b).max(-1) > 1e-6).all()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_what_stands_in_padding_says_nothing(name):
    present = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    junk = np.where(present > 0, TOKENS, 2 + TOKENS % 7)
    a, b = (np.asarray(compiled(name)(tokens, present, SAME))[present > 0] for tokens in (TOKENS, junk))
    np.testing.assert_array_equal(a, b)
    shorter = compiled(name)(TOKENS[:, :4], ALL[:, :4], SAME[:, :4])
    close(a[:4], np.asarray(shorter)[0])
    assert np.abs(a[:4] - np.asarray(compiled(name)(TOKENS, ALL, SAME))[0, :4]).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_places_count_from_the_first_token_or_the_first_that_is_no_padding(name):
    """Two more of padding in front: a RoBERTa does not notice, a BERT does."""
    padding = small("roberta")[1].padding_token
    later = np.concatenate([np.full((2, 2), padding), TOKENS], axis=1).astype(np.int32)
    present = np.concatenate([SAME[:, :2], ALL], axis=1)
    a = np.asarray(compiled(name)(later, present, np.zeros_like(later)))[:, 2:]
    b = np.asarray(compiled(name)(TOKENS, ALL, SAME))
    if name == "roberta":
        close(a, b)
    else:
        assert (np.abs(a - b).max(-1) > 1e-3).all()


def test_segments_are_told_apart():
    run = compiled("bert")
    usual, other = np.asarray(run(TOKENS, ALL, SAME)), np.asarray(run(TOKENS, ALL, ALL))
    assert (np.abs(usual - other).max(-1) > 1e-3).all()
    np.testing.assert_array_equal(usual, run(TOKENS, None, None))  # all are there, and of the first kind


def test_a_batch_has_no_order():
    run = compiled("roberta")
    np.testing.assert_allclose(run(TOKENS[::-1], ALL, SAME), np.asarray(run(TOKENS, ALL, SAME))[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers=0: give a whole number of at least 1"),
        ({"segments": 0}, "segments=0"),
        ({"heads": 3}, "width=128 is not a multiple of heads=3"),
        ({"activation": "mish"}, "activation='mish'"),
        ({"head_activation": "mish"}, "head_activation='mish'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"remat": "some"}, "remat='some'"),
    ],
)
def test_a_bad_config_names_its_field(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(EncoderConfig(), **change)


def test_a_sequence_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="sequence length 13, the model's context is 12"):
        compiled("bert")(np.zeros((1, 13), np.int32), None, None)
