"""How a token is picked: against a numpy oracle, and laws of draws."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from wsejax.inference.sampling import Sampling, mark, sample, sequence_keys, warped

VOCAB = 7
rows = st.lists(st.floats(-6, 6, width=32), min_size=VOCAB, max_size=VOCAB)
two_rows = st.tuples(rows, rows).map(lambda both: np.array(both, np.float32))
seens = st.lists(st.booleans(), min_size=2 * VOCAB, max_size=2 * VOCAB).map(lambda x: np.array(x).reshape(2, VOCAB))
ways = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 3, VOCAB, 20]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.7]),
)


def probabilities(logits: np.ndarray, seen: np.ndarray, how: Sampling) -> tuple[list[float], bool]:
    """Of one sequence, token by token in float64; and whether rounding could tell otherwise, where a mass is about that of top p."""
    scores = [float(x) for x in logits]
    scores = [
        (s / how.repetition_penalty if s > 0 else s * how.repetition_penalty) if old else s for s, old in zip(scores, seen, strict=True)
    ]
    scores = [s / how.temperature for s in scores]
    order = sorted(range(VOCAB), key=lambda n: (-np.float32(scores[n]), n))[: how.top_k]
    mass = {n: np.exp(scores[n] - scores[order[0]]) for n in order}
    whole, kept, held, close = sum(mass.values()), [], 0.0, False
    for n in order:
        close |= abs(held / whole - how.top_p) < 1e-5 and how.top_p < 1
        if kept and how.top_p < 1 and held / whole >= how.top_p:
            break
        kept.append(n)
        held += mass[n]
    return [mass[n] / held if n in kept else 0.0 for n in range(VOCAB)], close


@given(two_rows, seens, ways)
def test_probabilities_are_those_of_the_oracle(logits, seen, how):
    got = np.asarray(jax.nn.softmax(warped(logits, seen, how)))
    for row in range(2):
        want, close = probabilities(logits[row], seen[row], how)
        near = np.diff(np.sort(logits[row].astype(np.float64))).min() < 1e-5  # then scores that differ here may be equal there
        if not close and not near:
            np.testing.assert_allclose(got[row], want, atol=1e-5)
        assert got[row].sum() == pytest.approx(1.0, abs=1e-5)


@given(two_rows, st.sampled_from([0.05, 0.3, 0.7, 0.95]), st.sampled_from([None, 2, 5]))
def test_top_p_keeps_the_fewest_that_have_the_mass(logits, top_p, top_k):
    """Also of equal logits, of which those of lower numbers come first."""
    all_of = np.asarray(jax.nn.softmax(warped(logits, None, Sampling(1.0, top_k))), np.float64)
    left = np.asarray(warped(logits, None, Sampling(1.0, top_k, top_p))) > -np.inf
    for row, keep, share in zip(logits, left, all_of, strict=True):
        assert keep.any() and share[keep].sum() >= top_p - 1e-6
        assert share[keep].sum() - share[keep].min() < top_p + 1e-6 or keep.sum() == 1
        order = sorted(range(VOCAB), key=lambda n: (-row[n], n))
        assert set(np.flatnonzero(keep)) == set(order[: keep.sum()])


@given(two_rows, st.integers(0, 99))
def test_the_ends_of_every_dial_are_greedy(logits, seed):
    keys, best = sequence_keys(jax.random.key(seed), 2), logits.argmax(1)
    for how in (Sampling(), Sampling(5.0, top_k=1), Sampling(1.0, top_p=1e-6)):
        np.testing.assert_array_equal(sample(logits, None, keys, how), best)
    cold = np.asarray(sample(logits, None, keys, Sampling(1e-37)))  # of two that are best either may come
    np.testing.assert_array_equal(logits[np.arange(2), cold], logits.max(1))


def test_draws_follow_the_probabilities():
    logits, draws = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 0.2], np.float32), 20_000
    for how in (Sampling(1.0), Sampling(0.7, 5, 0.95)):
        keys = jax.random.split(jax.random.key(5), draws)
        got = np.bincount(sample(np.broadcast_to(logits, (draws, VOCAB)), None, keys, how), minlength=VOCAB)
        want = np.array(probabilities(logits, np.zeros(VOCAB, bool), how)[0])
        assert (got[want == 0] == 0).all()
        assert scipy.stats.chisquare(got[want > 0], draws * want[want > 0]).pvalue > 0.01


def test_a_draw_depends_on_its_own_key_and_logits_alone():
    logits = np.random.default_rng(0).standard_normal((5, VOCAB)).astype(np.float32)
    how, keys = Sampling(1.5, 6, 0.99), sequence_keys(jax.random.key(1), 5)
    all_at_once = np.asarray(sample(logits, None, keys, how))
    np.testing.assert_array_equal(all_at_once, sample(logits, None, keys, how))
    others = logits.copy()
    others[[0, 1, 3, 4]] = 0.0
    assert int(sample(others, None, keys, how)[2]) == all_at_once[2]
    np.testing.assert_array_equal(sample(logits[::-1], None, keys[::-1], how), all_at_once[::-1])
    np.testing.assert_array_equal(jax.random.key_data(sequence_keys(jax.random.key(1), 3)), jax.random.key_data(keys[:3]))
    alike = [sample(np.zeros((5, VOCAB), np.float32), None, sequence_keys(jax.random.key(seed), 5), how) for seed in range(5)]
    assert len(set(np.ravel(alike).tolist())) > 4 and len({tuple(np.asarray(x).tolist()) for x in alike}) > 3, "all draw alike"


def test_a_penalty_is_of_what_was_seen():
    logits = np.array([[3.0, 2.9, -1.0, -1.1]], np.float32)
    seen = np.array([[True, False, True, False]])
    np.testing.assert_allclose(warped(logits, seen, Sampling(repetition_penalty=2.0)), [[1.5, 2.9, -2.0, -1.1]])
    assert int(sample(logits, seen, None, Sampling(repetition_penalty=2.0))[0]) == 1
    np.testing.assert_array_equal(mark(seen, np.array([3])), [[True, False, True, True]])
    assert mark(None, np.array([3])) is None


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: give 0 for the best"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0: give 1 or more"),
        ({"top_p": 0.0}, "top_p=0.0: give a probability"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: give a positive number"),
    ],
)
def test_what_is_no_way_to_sample_is_refused(wrong, hint):
    with pytest.raises(ValueError, match=hint):
        dataclasses.replace(Sampling(1.0), **wrong)
