"""A decode step that keeps its cache balanced in `wse.jit`, against plain attention with a cache that grows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import wsejax as wse

BATCH, SLOTS, KV_HEADS, GROUP, HEAD, WIDTH, TOKENS = 4, 24, 2, 2, 4, 8, 20
TILES = (4, 2)


def store_on(devices, tiles=TILES) -> wse.BalancedStore:
    return wse.balanced_store(wse.Wafer(wse.WSE3.scaled(8, 8), tiles=tiles, devices=devices))


def parameters() -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    heads = KV_HEADS * GROUP
    return {
        "q": normal(WIDTH, heads, HEAD),
        "k": normal(WIDTH, KV_HEADS, HEAD),
        "v": normal(WIDTH, KV_HEADS, HEAD),
        "out": normal(heads, HEAD, WIDTH),
    }


X = np.random.default_rng(1).standard_normal((TOKENS, BATCH, WIDTH)).astype(np.float32)


def decode(store: wse.BalancedStore):
    """One token of every sequence through one attention layer."""

    def step(params, cache, x, lengths):
        q, k, v = (jnp.einsum("bw,whd->bhd", x, params[name]) for name in "qkv")
        cache = {
            "k": store(cache["k"], k, lengths),
            "v": store(cache["v"], v, lengths),
            "position": store.positions(cache["position"], lengths),
        }
        seen = store.attend(q, cache["k"], cache["v"], cache["position"], lengths)
        return cache, jnp.einsum("bhd,hdw->bw", seen, params["out"])

    spec = store.spec(KV_HEADS)
    pins = None, {"k": spec, "v": spec, "position": P(None, "y")}, None, None
    return wse.jit(step, store.wafer, donate_argnums=1, in_shardings=pins)


def plain(params, x):
    """What the last of the tokens x [tokens, width] of one sequence gives."""
    q, k, v = (np.einsum("tw,whd->thd", x, params[name]) for name in "qkv")
    k, v = (y.repeat(GROUP, 1) for y in (k, v))
    weights = np.exp(np.einsum("hd,thd->ht", q[-1], k) * HEAD**-0.5)
    return np.einsum("ht,thd,hdw->w", weights / weights.sum(1, keepdims=True), v, params["out"])


def test_decoding_with_a_balanced_cache_is_plain_attention():
    """Sequences begin one after another, so lengths differ; rows hold as many tokens as each other, or one more."""
    store, params, begins = store_on((2, 2)), parameters(), (0, 3, 4, 15)
    step = decode(store)
    empty = np.zeros((BATCH, SLOTS, KV_HEADS, HEAD), np.float32)
    cache = {"k": empty, "v": empty, "position": np.full((BATCH, SLOTS), -1, np.int32)}
    lengths = -np.array(begins, np.int32)
    lowered = step.lower(params, cache, X[0], lengths)
    rows = lowered.audit().to_dict()["rows"]
    assert {row["kernel"] for row in rows} >= {"balanced_store", "balanced_positions", "balanced_attend"}
    moved = [operand for row in rows if row["kind"] == "relayout" for operand in row["operands"]]
    assert moved and not any(f"{SLOTS}" in operand for operand in moved), "the cache is laid out anew"
    wse.check_hlo(lowered.compile())
    for n in range(TOKENS):
        now = lengths + n
        cache, y = step(params, cache, X[n], now)
        for b, begin in enumerate(begins):
            if n >= begin:
                np.testing.assert_allclose(y[b], plain(params, X[begin : n + 1, b]), rtol=1e-5, atol=1e-5)
        held = (np.asarray(cache["position"]).reshape(BATCH, TILES[0], -1) >= 0).sum(2)
        np.testing.assert_array_equal(held.sum(1), np.maximum(now + 1, 0))
        assert (held.max(1) - held.min(1) <= 1).all()


@pytest.mark.parametrize(("tiles", "devices"), [((4, 2), (2, 2)), ((4, 4), (1, 2))], ids=["heads apart", "heads on every column"])
def test_spreading_what_prefill_leaves_is_storing_token_by_token(tiles, devices):
    lengths = np.array([17, 2, 0, 9], np.int32)
    prompt = np.random.default_rng(2).standard_normal((BATCH, SLOTS, KV_HEADS, HEAD)).astype(np.float32)
    store = store_on(devices, tiles)
    spread = np.asarray(jax.jit(store.spread)(prompt, lengths))
    position = np.asarray(jax.jit(store.spread_positions)(np.zeros((BATCH, SLOTS), np.int32), lengths))
    put, place = jax.jit(store), jax.jit(store.positions)
    leaf, at = np.zeros_like(prompt), np.full((BATCH, SLOTS), -1, np.int32)
    for n in range(17):
        now = np.where(n < lengths, n, -1).astype(np.int32)
        leaf, at = put(leaf, prompt[:, n], now), place(at, now)
    np.testing.assert_array_equal(position, at)
    sequence, slot = np.nonzero(position >= 0)
    assert len(slot) == lengths.sum()
    for kept in (spread, np.asarray(leaf)):
        np.testing.assert_array_equal(kept[sequence, slot], prompt[sequence, position[sequence, slot]])


def test_slots_that_the_rows_do_not_divide_are_refused():
    store = store_on((1, 1))
    with pytest.raises(ValueError, match=r"a dimension of 22 does not divide by the 4 tiles of axis 'y'"):
        store(np.zeros((BATCH, 22, KV_HEADS, HEAD)), np.zeros((BATCH, KV_HEADS, HEAD)), np.zeros(BATCH, np.int32))
