"""Attention of all families against plain loops over queries and keys."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attention import attend, visible
from models.falcon import FalconConfig
from models.mpt import MPTConfig
from models.transformer import alibi

BATCH, SEQ, KEYS, HEADS, DIM = 2, 5, 7, 4, 4


def steep(queries, keys):
    """A bias that tells queries, keys and heads apart."""
    heads = jnp.arange(1, HEADS + 1)[None, :, None, None]
    return 0.1 * heads * (keys[:, None, None, :] - 2 * queries[:, None, :, None])


def alike(queries, keys):
    """One of a single row for all queries, as ALiBi's is."""
    return 0.2 * jnp.arange(HEADS)[None, :, None, None] * keys[:, None, None, :]


BIASES = {"none": None, "steep": steep, "alike": alike}


@functools.cache
def compiled(bias: str, scale: float = DIM**-0.5, **how: Any):
    return jax.jit(lambda q, k, v, at, keys_at, key=None: attend(q, k, v, at, keys_at, scale=scale, bias=BIASES[bias], key=key, **how))


def inputs(seed: int, kv_heads: int = 2):
    """Queries, keys, values; places of queries, and of keys in any order, with gaps where there is none."""
    r = np.random.default_rng(seed)
    q = r.standard_normal((BATCH, SEQ, HEADS, DIM)).astype(np.float32)
    k, v = r.standard_normal((2, BATCH, KEYS, kv_heads, DIM)).astype(np.float32)
    at = np.sort(r.permuted(np.tile(np.arange(9), (BATCH, 1)), axis=1)[:, :SEQ], axis=1)
    keys_at = r.permuted(np.tile(np.arange(9), (BATCH, 1)), axis=1)[:, :KEYS]
    keys_at = np.where(r.random((BATCH, KEYS)) < 0.3, -1, keys_at)
    keys_at[:, 0] = at[:, 0]  # so that the first query, too, sees a key
    return q, k, v, at, keys_at


def by_hand(q, k, v, at, keys_at, *, scale, causal, window=None, bias=None):
    """One query and head at a time, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    added = np.zeros((BATCH, HEADS, SEQ, KEYS)) if bias is None else np.broadcast_to(bias(at, keys_at), (BATCH, HEADS, SEQ, KEYS))
    for b, i, h in np.ndindex(q.shape[:3]):
        scores = {}
        for j in range(k.shape[1]):
            here, there = at[b, i], keys_at[b, j]
            if there < 0 or (causal and there > here) or (window is not None and here - there >= window):
                continue
            scores[j] = scale * np.dot(q[b, i, h].astype(np.float64), k[b, j, h // group]) + float(added[b, h, i, j])
        highest = max(scores.values(), default=0.0)
        weights = {j: np.exp(s - highest) for j, s in scores.items()}
        weights = weights or dict.fromkeys(range(k.shape[1]), 1.0)  # who sees none, sees all alike
        out[b, i, h] = sum(w * v[b, j, h // group] for j, w in weights.items()) / sum(weights.values())
    return out


@pytest.mark.parametrize(
    ("kv_heads", "bias", "how"),
    [
        (4, "none", {"causal": True}),
        (1, "alike", {"causal": True, "window": 1, "query_block": 4}),
        (2, "steep", {"causal": True, "window": 3, "query_block": 2}),
        (4, "alike", {"causal": False, "query_block": 1}),
        (2, "steep", {"causal": False, "window": 3}),
    ],
)
@given(seed=st.integers(0, 999))
def test_attention_is_the_loop_over_what_a_query_sees(kv_heads, bias, how, seed):
    q, k, v, at, keys_at = inputs(seed, kv_heads)
    got = compiled(bias, **how)(q, k, v, at, keys_at)
    want = by_hand(q, k, v, at, keys_at, scale=DIM**-0.5, causal=how["causal"], window=how.get("window"), bias=BIASES[bias])
    np.testing.assert_allclose(got, want, atol=2e-6)


@given(seed=st.integers(0, 999), order=st.permutations(range(KEYS)))
def test_the_order_of_keys_says_nothing(seed, order):
    q, k, v, at, keys_at = inputs(seed)
    run, order = compiled("steep", causal=True, window=3), np.array(order)
    np.testing.assert_allclose(run(q, k[:, order], v[:, order], at, keys_at[:, order]), run(q, k, v, at, keys_at), atol=1e-6)


@given(seed=st.integers(0, 999))
def test_what_stands_where_no_key_is_says_nothing(seed):
    q, k, v, at, keys_at = inputs(seed)
    nobody = (keys_at < 0)[:, :, None, None]
    run = compiled("alike", causal=False)
    np.testing.assert_array_equal(run(q, np.where(nobody, 1e4, k), np.where(nobody, -1e4, v), at, keys_at), run(q, k, v, at, keys_at))


def test_one_row_of_places_serves_a_batch():
    q, k, v, at, keys_at = inputs(1)
    run = compiled("steep", causal=True, query_block=2)
    both = [np.broadcast_to(x[:1], x.shape) for x in (at, keys_at)]
    np.testing.assert_allclose(run(q, k, v, at[:1], keys_at[:1]), run(q, k, v, *both), atol=1e-6)


def test_blocks_of_queries_change_neither_results_nor_gradients():
    """Of two and a rest."""
    arrays = inputs(2)

    def run(block):
        loss = lambda q, k, v: (attend(q, k, v, *arrays[3:], scale=0.5, causal=True, bias=steep, query_block=block) ** 2).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays[:3])

    for got, want in zip(jax.tree.leaves(run(2)), jax.tree.leaves(run(None)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_more_than_a_block_of_scores_exists(dropout):
    """Also where a key is at hand: the largest array is that of a block's scores."""
    q, k, v, at, keys_at = inputs(3)
    how = {"scale": 1.0, "causal": True, "query_block": 1, "dropout": dropout}
    text = str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, at, keys_at, key=jax.random.key(0), **how))(q, k, v))
    assert "f32[2,2,2,1,7]" in text and "f32[2,2,2,5,7]" not in text


def test_a_query_that_sees_no_key_attends_to_all_alike():
    q, k, v, _, _ = inputs(4, 4)
    got = compiled("none", causal=True)(q, k, v, np.full((BATCH, SEQ), 2), np.full((BATCH, KEYS), 3))
    np.testing.assert_allclose(got, np.broadcast_to(v.mean(1)[:, None], got.shape), atol=1e-6)


def test_dropout_takes_weights_away_and_makes_up_for_them():
    """In blocks, too. With values that tell keys apart, results are the weights themselves."""
    at, keys_at = inputs(5)[3:]
    q, k = (np.random.default_rng(n).standard_normal((BATCH, n, HEADS, KEYS)).astype(np.float32) for n in (SEQ, KEYS))
    v = np.broadcast_to(np.eye(KEYS, dtype=np.float32)[None, :, None, :], (BATCH, KEYS, HEADS, KEYS))
    run = compiled("none", causal=False, dropout=0.25, query_block=2)
    whole = np.asarray(run(q, k, v, at, keys_at))
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    dropped = np.asarray(run(q, k, v, at, keys_at, jax.random.key(0)))
    again, other = (np.asarray(run(q, k, v, at, keys_at, jax.random.key(n))) for n in (0, 1))
    np.testing.assert_array_equal(dropped, again)
    assert (dropped != other).any()
    seen = whole > 1e-6
    kept = dropped[seen] != 0
    np.testing.assert_allclose(dropped[seen][kept], whole[seen][kept] / 0.75, rtol=1e-5)
    assert 0.6 < kept.mean() < 0.9
    assert len(np.unique((dropped != 0).reshape(BATCH, SEQ, -1)[0], axis=0)) == SEQ  # each query draws on its own


def test_low_precision_weighs_in_float32():
    q, k, v, at, keys_at = (jnp.asarray(x) for x in inputs(6))
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    got = compiled("none", causal=False)(q, k, v, at, keys_at)
    assert got.dtype == jnp.bfloat16
    want = compiled("none", causal=False)(*(x.astype(jnp.float32) for x in (q, k, v)), at, keys_at)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.04)


def test_who_sees_whom_follows_from_places():
    at = jnp.array([[0, 3]])
    keys_at = jnp.array([[2, -1, 0, 3, 4]])
    see = lambda **how: np.asarray(visible(at, keys_at, **how))[0].astype(int).tolist()
    assert see(causal=True, window=None) == [[0, 0, 1, 0, 0], [1, 0, 1, 1, 0]]
    assert see(causal=True, window=2) == [[0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]
    assert see(causal=True, window=1) == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert see(causal=False, window=None) == [[1, 0, 1, 1, 1]]  # one row for all


@pytest.mark.parametrize(
    "config", [MPTConfig(heads=6, width=24), FalconConfig(heads=8, width=32, positions="alibi")], ids=["mpt", "falcon"]
)
def test_alibi_is_the_papers_bias_up_to_what_all_keys_of_a_query_have(config):
    """Press et al. 2022: minus slope times distance; Falcon scales it like the scores, and rounds."""
    bias = alibi(config)
    assert bias is not None
    at = np.arange(6)[None, :]
    got = np.broadcast_to(np.asarray(bias(at, at)), (1, config.heads, 6, 6))[0]
    slopes = np.array([2.0 ** (-8 * i / 8) for i in range(1, 9)])
    slopes = slopes if config.heads == 8 else np.r_[2.0 ** (-8 * np.arange(1, 5) / 4), slopes[::2][:2]]
    distance = at.T - at
    want = -slopes[:, None, None] * distance * (config.head_width**-0.5 if config.alibi_rounded else 1.0)
    np.testing.assert_allclose(got - got[:, :, :1], want - want[:, :, :1], rtol=1e-5)


def test_no_bias_without_alibi():
    assert alibi(FalconConfig()) is None
