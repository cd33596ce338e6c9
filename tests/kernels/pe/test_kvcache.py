"""The balanced cache against lists of tokens and plain attention; what it sends, and what it costs, against its laws."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from scipy.special import softmax

import wsejax as wse
from wsejax.hardware import CS2, CS3
from wsejax.kernels.pe import kvcache
from wsejax.kernels.pe.kvcache import Cache

GRID = PartitionSpec("y", "x")
SLOTS, BATCH = 3, 3
ROWS = [1, 2, 5]
LENGTHS = st.lists(st.integers(0, 15), min_size=BATCH, max_size=BATCH)
TRACED: list[tuple[str, int]] = []


def wafer_of(rows: int, cols: int = 1) -> wse.Wafer:
    return wse.Wafer(wse.WSE3.scaled(rows, cols), tiles=(rows, cols), devices=(1, 1))


@functools.cache
def program(name: str, rows: int):
    """A program of (arrays of PEs, ..., lengths), compiled once."""

    known = {"append": kvcache.append, "concat": kvcache.append_concat, "spread": functools.partial(kvcache.spread, slots=SLOTS)}

    def f(*args):
        TRACED.append((name, rows))
        return known[name](*args)

    return jax.jit(wse.wafer_map(f, wafer_of(rows), (GRID, GRID, PartitionSpec()), GRID))


def spread(rows: int, length) -> Cache:
    """Of tokens whose keys are 100 b + p and values the negative of that."""
    x = np.arange(rows * SLOTS, dtype=np.float32)[:, None] + 100 * np.arange(BATCH, dtype=np.float32)
    x = x.reshape(rows, 1, SLOTS, BATCH).swapaxes(2, 3)
    keys, values, position = program("spread", rows)(x[..., None], -x[..., None], np.asarray(length, np.int32))
    return Cache(keys, values, position)


def more(name: str, rows: int, cache: Cache, length) -> Cache:
    """With the next tokens; what rows other than the last hold of them must not matter."""
    new = np.full((rows, 1, BATCH, 1), np.nan, np.float32)
    new[-1, 0, :, 0] = np.asarray(length) + 100 * np.arange(BATCH)
    return Cache(*program(name, rows)(cache, (new, -new), np.asarray(length, np.int32)))


def rows_of(cache: Cache, sequence: int) -> list[list[int]]:
    """Positions that each row holds, in order; keys and values are held against them."""
    out = []
    for keys, values, position in zip(*(np.asarray(x)[:, 0, sequence] for x in cache), strict=True):
        full = position >= 0
        np.testing.assert_array_equal(keys[full, 0], position[full] + 100 * sequence)
        np.testing.assert_array_equal(values[full, 0], -keys[full, 0])
        out.append(sorted(position[full].tolist()))
    return out


def assert_balanced(rows: list[list[int]], length: int) -> None:
    assert list(itertools.chain(*rows)) == list(range(length))  # none is lost, and every row holds those before the next row's
    counts = [len(row) for row in rows]
    assert max(counts) - min(counts) <= 1


def same(a: Cache, b: Cache) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rows", ROWS)
@given(prompts=LENGTHS)
def test_rows_stay_balanced_until_every_slot_is_full(rows: int, prompts: list[int]):
    """Three sequences of different lengths, from prompts of any length to the end, by one compiled program; then nothing fits any more."""
    room = rows * SLOTS
    length = np.minimum(prompts, room)
    cache = spread(rows, length)
    while length.min() < room:
        for b, n in enumerate(length):
            assert_balanced(rows_of(cache, b), n)
        assert (np.asarray(cache.position) == np.asarray(spread(rows, length).position)).all()  # slot for slot what appends have made
        cache, length = more("append", rows, cache, length), np.minimum(length + 1, room)
    assert same(more("append", rows, cache, length), cache)
    assert TRACED.count(("append", rows)) <= 2, "a program for each length"  # shapes alone, then the compilation


@pytest.mark.parametrize("rows", ROWS)
@given(prompts=LENGTHS)
def test_concatenation_fills_the_last_row_alone(rows: int, prompts: list[int]):
    length = np.minimum(prompts, rows * SLOTS)
    before = [rows_of(spread(rows, length), b) for b in range(BATCH)]
    cache = spread(rows, length)
    for step in range(SLOTS + 1):
        for b, n in enumerate(length):
            kept = rows_of(cache, b)
            assert kept[:-1] == before[b][:-1]
            assert kept[-1] == before[b][-1] + list(range(n, n + min(step, SLOTS - len(before[b][-1]))))
            assert len(kept[-1]) <= kvcache.longest_row(n + step, rows, n, balanced=False)
        cache = more("concat", rows, cache, length + step)


def test_a_sequence_of_a_negative_length_takes_no_token():
    cache = spread(5, [7, 8, 9])
    for name in ("append", "concat"):
        assert same(more(name, 5, cache, [-1, -3, -100]), cache)
    after = more("append", 5, cache, [7, -1, 9])
    assert [sum(map(len, rows_of(after, b))) for b in range(BATCH)] == [8, 8, 10]


def test_who_has_no_room_is_told():
    kvcache.check_room([14, 3], 5, 3)
    with pytest.raises(ValueError, match=r"length=15: 5 rows of 3 slots hold 15 tokens.*more slots"):
        kvcache.check_room(np.array([3, 15]), 5, 3)


# ---- traffic ---------------------------------------------------------------------------------------------------------
@given(st.integers(1, 40), st.integers(0, 400))
def test_every_token_moves_one_hop_at_most(rows: int, length: int):
    """Where tokens lie, before and after one more: the hops between are those of the law."""
    owner = lambda n: np.searchsorted([kvcache.first(r, rows, n) for r in range(1, rows)], np.arange(n), side="right")
    before, after = np.append(owner(length), rows - 1), owner(length + 1)
    assert set(before - after) <= {0, 1}
    assert (before - after).sum() == kvcache.append_entry_hops((rows, 1), [length], length // rows + 1) == length % rows
    assert kvcache.first(rows, rows, length) == length


@given(st.integers(1, 12), st.integers(1, 9), st.data())
def test_spreading_takes_every_token_where_it_belongs_and_no_further(rows: int, high: int, data: st.DataObject):
    length = data.draw(st.integers(0, rows * high))
    positions = np.arange(length)
    owner = np.searchsorted([kvcache.first(r, rows, length) for r in range(1, rows)], positions, side="right")
    assert (owner >= positions // high).all()
    assert kvcache.spread_entry_hops((rows, 2), [length], high) == 2 * (owner - positions // high).sum()


@pytest.mark.parametrize("length", [[0, 0, 0], [7, 3, -1], [15, 14, 2]])
def test_an_append_sends_what_its_law_says(length: list[int]):
    """Sequences travel together, those that are full do not; concatenation sends nothing."""
    cache = jax.tree.map(lambda x: np.repeat(x, 2, 1), spread(5, np.maximum(length, 0)))
    new = (np.zeros((5, 2, BATCH, 1), np.float32),) * 2
    for f, hops in ((kvcache.append, 2 * kvcache.append_entry_hops((5, 2), length, SLOTS)), (kvcache.append_concat, 0)):
        mapped = wse.wafer_map(f, wafer_of(5, 2), (GRID, GRID, PartitionSpec()), GRID)
        assert wse.traffic(mapped, cache, new, np.asarray(length, np.int32)).wavelet_hops == hops


# ---- attention -------------------------------------------------------------------------------------------------------
HEADS, GROUP, WIDTH, OUT = 2, 2, 4, 3


@functools.cache
def attention(window: int | None, parted: bool):
    f = functools.partial(kvcache.attend, window=window, parted=parted)
    return jax.jit(wse.wafer_map(f, wafer_of(3, 2), (GRID, GRID, PartitionSpec()), GRID))


@pytest.mark.parametrize(("window", "parted"), [(None, False), (4, True)])
@given(seed=st.integers(0, 2**32 - 1), at=st.lists(st.integers(-1, 14), min_size=2, max_size=2))
def test_attention_to_tokens_in_any_slots_is_plain_attention(window, parted, seed, at):
    """Tokens lie anywhere, some beyond the query, and what is empty holds NaN."""
    rng, rows, cols, slots = np.random.default_rng(seed), 3, 2, 5
    keys, values = (rng.standard_normal((2, rows * slots, cols, HEADS, n)).astype(np.float32) for n in (WIDTH, OUT))
    q = rng.standard_normal((2, cols, HEADS * GROUP, WIDTH)).astype(np.float32)
    position = np.stack([rng.permutation(rows * slots) for _ in range(2)])
    position[rng.random(position.shape) < 0.3] = -1
    laid = lambda x: np.where((position >= 0)[..., None, None, None], x[np.arange(2)[:, None], position], np.nan).astype(np.float32)
    cut = lambda x: x.reshape(2, rows, slots, cols, *x.shape[3:]).transpose(1, 3, 0, 2, *range(4, x.ndim + 1))
    cache = Cache(cut(laid(keys)), cut(laid(values)), cut(position[:, :, None].repeat(cols, 2).astype(np.int32)))
    got = attention(window, parted)(np.broadcast_to(q.swapaxes(0, 1), (rows, cols, 2, *q.shape[2:])), cache, np.asarray(at, np.int32))
    for b in range(2):
        seen = np.sort(position[b][(position[b] >= 0) & (position[b] <= at[b]) & (position[b] > at[b] - (window or 99))])
        scores = np.einsum("tchd,chd->cht", keys[b, seen].repeat(GROUP, 2), q[b]) * WIDTH**-0.5
        scores = np.broadcast_to(scores.sum(0) * cols**-0.5, scores.shape) if parted else scores
        weights = softmax(scores, axis=-1) if len(seen) else scores
        want = np.einsum("cht,tche->che", weights, values[b, seen].repeat(GROUP, 2))
        np.testing.assert_allclose(got[:, :, b], np.broadcast_to(want, (rows, *want.shape)), rtol=1e-5, atol=1e-5)


def test_a_nan_that_is_seen_stays_one_and_queries_that_do_not_fit_are_refused():
    cache = spread(5, [3, 3, 3])
    keys, values = (np.array(x)[..., None] for x in cache[:2])
    keys[4, 0, 1] = np.nan
    cache = Cache(keys, values, cache.position)
    f = wse.wafer_map(kvcache.attend, wafer_of(5), (GRID, GRID, PartitionSpec()), GRID)
    out = np.asarray(jax.jit(f)(np.ones((5, 1, 3, 1, 1), np.float32), cache, np.full(3, 2, np.int32)))
    assert np.isnan(out[:, :, 1]).all() and np.isfinite(out[:, :, [0, 2]]).all()
    for width, heads in ((2, 1), (1, 0)):
        q = np.ones((5, 1, 3, *(heads,) * heads, width), np.float32)
        with pytest.raises(ValueError, match=r"q has shape .*, keys \(5, 1, 3, 3, 1, 1\)"):
            f(q, cache, np.full(3, 2, np.int32))


# ---- prices ----------------------------------------------------------------------------------------------------------
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 500), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_prices_move_what_the_laws_say(rows, cols, length, heads, width, parted):
    append = kvcache.append_price(CS3, float(rows), float(cols), float(length), 4.0 * width)
    assert append.byte_hops == pytest.approx(2 * 4 * width * kvcache.append_entry_hops((rows, cols), [length], length // rows + 1))
    attend = kvcache.attend_price(CS3, rows, cols, length, heads, width, 3, parted=parted)
    hops = kvcache.attend_element_hops((rows, cols), 3, heads, width, -(-length // rows), parted)
    assert attend.byte_hops == pytest.approx(4 * hops)
    for price in (append, attend):
        assert price.cycles >= max(price.compute_cycles, price.fabric_cycles, price.wait_cycles) >= 0


def test_balance_makes_attention_as_fast_as_the_mean_row():
    """360 rows, and a prompt of a token each: after 3,600 tokens the last row of a concatenating cache has 3,241, a balanced one's ten."""
    balanced, concat = (kvcache.longest_row(3600.0, 360.0, 360.0, balanced=b) for b in (True, False))
    assert (balanced, concat) == (10, 3241)
    price = lambda longest: kvcache.attend_price(CS2, 360.0, 360.0, 3600.0, 1.0, 12.0, longest=longest, parted=True)
    shift = kvcache.append_price(CS2, 360.0, 360.0, 359.0, 24.0)
    assert price(balanced).cycles + shift.cycles < price(concat).cycles / 20
    assert price(balanced).flops == price(concat).flops and price(balanced).byte_hops == price(concat).byte_hops
    assert kvcache.append_price(CS2, 360.0, 360.0, 720.0, 24.0).cycles == 0  # rows are level: the token stays where it arrives


def test_a_price_is_a_pure_function_of_the_machine_and_the_length():
    def cycles(system, length):
        step = kvcache.append_price(system, 30.0, 8.0, length, 64.0) + kvcache.attend_price(system, 30.0, 8.0, length, 2.0, 16.0)
        return step.cycles

    np.testing.assert_allclose(jax.jit(cycles)(CS3, 100.0), cycles(CS3, 100.0), rtol=1e-5)
    assert (jnp.diff(jax.vmap(lambda n: cycles(CS3, n))(jnp.array([60.0, 120.0, 240.0]))) > 0).all()
    assert jax.grad(cycles)(CS3, 100.0).hop_cycles > 0
