"""Objectives: what is hidden, what is asked for, and that a batch tells everything that was hidden."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.data import corpus_of, train_batches, validation_batches
from wsejax.training.objectives import Objective, cross_entropy, objective_of

CONTEXTS = st.integers(8, 200)
SEEDS = st.integers(0, 2**62)


def windows(context: int, seed: int, rows: int = 2) -> np.ndarray:
    """Text without the bytes that stand for something else."""
    return np.random.default_rng(seed).integers(2, 256, (rows, context + 1)).astype(np.uint8)


@given(CONTEXTS, SEEDS)
def test_masked_bytes_are_asked_for_and_the_others_shown(context, seed):
    one = Objective("masked", context)
    text = windows(context, seed)
    batch = one.batch(text, [seed, seed + 1])
    asked = batch["weights"] > 0
    assert (asked.sum(axis=1) == one.noise).all() and one.vocabulary == 257
    np.testing.assert_array_equal(batch["targets"], text[:, :context])
    np.testing.assert_array_equal(batch["tokens"][~asked], batch["targets"][~asked])
    assert batch["tokens"].max() <= 256


def test_four_fifths_of_what_is_asked_for_is_masked_and_a_tenth_is_kept():
    one = Objective("masked", 200)
    batch = one.batch(windows(200, 0, rows=400), range(400))
    shown, told = (batch[name][batch["weights"] > 0] for name in ("tokens", "targets"))
    assert abs((shown == 256).mean() - 0.8) < 0.02
    assert abs((shown == told).mean() - 0.1) < 0.02  # and one in 254 by chance


@given(CONTEXTS, SEEDS)
def test_spans_put_back_give_the_text(context, seed):
    one = Objective("spans", context)
    text = windows(context, seed)
    batch = one.batch(text, [seed, seed + 1])
    for row, tokens, targets, answer in zip(text, batch["tokens"], batch["targets"], batch["answer"], strict=True):
        np.testing.assert_array_equal(answer, [0, *targets[:-1]])
        spans: dict[int, list[int]] = {}
        for token in targets.tolist():
            if token >= 256:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        assert all(spans.values()) and sum(map(len, spans.values())) == one.noise
        assert list(spans) == [one.vocabulary - 1 - n for n in range(one.spans)]
        whole = [byte for token in tokens.tolist() for byte in (spans[token] if token >= 256 else [token])]
        assert whole == row[:context].tolist()


@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_what_is_random_belongs_to_a_window(kind):
    one, text = Objective(kind, 40), windows(40, 3)
    a, b, c = (one.batch(text, seeds) for seeds in ([5, 6], [5, 7], [5, 6]))
    for name in a:
        np.testing.assert_array_equal(a[name], c[name])
        np.testing.assert_array_equal(a[name][0], b[name][0])
    assert any((a[name][1] != b[name][1]).any() for name in a)
    np.testing.assert_array_equal(one.batch(text[1:], [6])["tokens"][0], a["tokens"][1])


@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_batches_go_on_where_they_were_and_processes_read_their_rows(kind):
    corpus = corpus_of([bytes(windows(16, n, 8).reshape(-1)) for n in range(40)], context=16)
    maker = Objective(kind, 16).batch
    whole, other, again = (train_batches(corpus, batch_size=6, seed=1, maker=maker, rows=rows) for rows in (None, np.array([1, 4]), None))
    first = next(whole)
    again.set_state(whole.get_state())
    second, resumed = next(whole), next(again)
    next(other)
    part = next(other)
    for name in second:
        np.testing.assert_array_equal(second[name], resumed[name])
        np.testing.assert_array_equal(second[name][[1, 4]], part[name])
    assert any((first[name] != second[name]).any() for name in first)
    held_out = [validation_batches(corpus, batch_size=4, batches=2, maker=maker) for _ in range(2)]
    np.testing.assert_array_equal(held_out[0][1]["tokens"], held_out[1][1]["tokens"])


def test_every_epoch_hides_something_else():
    corpus = corpus_of([bytes(windows(16, n, 2).reshape(-1)) for n in range(6)], context=16)
    batches = train_batches(corpus, batch_size=len(corpus.train_starts), seed=1, maker=Objective("masked", 16).batch)
    by_text = lambda batch: {bytes(t.astype(np.uint8)): w for t, w in zip(batch["targets"], batch["weights"], strict=True)}
    one, two = by_text(next(batches)), by_text(next(batches))
    assert one.keys() == two.keys() and any((one[text] != two[text]).any() for text in one)


def test_the_loss_is_a_mean_over_what_is_asked_for():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7)), jnp.float32)
    targets = np.array([[1, 2, 3, 4, 5], [0, 1, 2, 3, 6]], np.int32)
    weights = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], np.float32)
    each = -np.take_along_axis(np.asarray(logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, targets), each.mean(), rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, targets, jnp.asarray(weights)), each[weights > 0].mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_a_sample_shows_the_gaps_and_what_the_model_puts_there(kind):
    text = np.frombuffer(b"The quick brown fox jumps over it.", np.uint8)[None]
    one = Objective(kind, text.shape[1] - 1)
    batch = one.batch(text, [1])
    right = np.eye(one.vocabulary)[batch["targets"]]
    gaps, filled = one.filled(right, batch)
    assert filled == bytes(text[0, :-1]) and gaps.count(b"_") == one.noise
    assert all(a == b or a == ord("_") for a, b in zip(gaps, filled, strict=True))


def test_every_kind_of_model_has_one_and_short_windows_have_none():
    assert [objective_of(kind, 16).kind for kind in ("decoder", "encoder", "encoder-decoder")] == ["causal", "masked", "spans"]
    with pytest.raises(ValueError, match="context=7: too short"):
        Objective("spans", 7)
