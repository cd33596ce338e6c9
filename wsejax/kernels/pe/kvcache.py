"""Keys and values of sequences, kept over the rows of PEs (WaferLLM, OSDI 2025, shift-based KV cache management).

Law: of n tokens, row r of R holds (n + r) // R, one after the other, and every row those before the next row's: so rows differ by one at
most, and the lower ones are the first to hold one more. A new token arrives in the last row. As it does, every row that holds one more
than the first passes its oldest token to the row to the north, all at the same time. (The paper's rows pass on when they are level, so
that the upper ones are the first: the tokens of a cache with empty rows would then have more than one hop to go.) Inside a PE nothing
moves: the token at position p lies in slot p % slots, in whichever row it is.

A column of PEs holds its own features, of whole heads or of a part of every head. Traffic of an append: an entry over n % R links of
every column. Concatenation, with which the paper compares it, sends nothing, and fills the last row alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from wsejax import fabric
from wsejax.hardware import System
from wsejax.kernels.pe import collectives
from wsejax.kernels.pe.gemm import local_product
from wsejax.kernels.pe.tiles import Grid
from wsejax.kernels.pe.trees import k_tree, numbers
from wsejax.kernels.price import Price, computing, copies_per_cycle, floor, fma_per_cycle, least, share, travel, vector_cycles, wavelets
from wsejax.kernels.reduce import tree_reduce

Lengths = Int[Array, "B"] | Int[Array, "R C B"]  # tokens of each sequence: the same on all PEs


class Cache(NamedTuple):
    """What PEs keep of B sequences, in `S` slots each.

    Attributes:
      keys, values: what a slot holds; of an empty one, anything.
      position: int32, the place of a slot's token in its sequence, -1 where the slot is empty.
    """

    keys: Shaped[Array, "R C B S ..."]
    values: Shaped[Array, "R C B S ..."]
    position: Int[Array, "R C B S"]


# ---- where tokens lie ------------------------------------------------------------------------------------------------
def first(row: Any, rows: Any, length: Any) -> Any:
    """Position of the first token of a row: the sum of (length + r) // rows over the rows r before it. Integers, or arrays of them."""
    late = row + length % rows - rows
    return row * (length // rows) + late * (late > 0)


def check_room(length: Any, rows: int, slots: int) -> None:
    """Raises ValueError where a sequence of so many tokens leaves no room for one more: for who calls a program, which cannot raise."""
    if full := [int(n) for n in np.ravel(length) if n >= rows * slots]:
        raise ValueError(f"length={full[0]}: {rows} rows of {slots} slots hold {rows * slots} tokens; make the cache with more slots")


def to_rows(x: Shaped[Array, "B n ..."], grid: Grid) -> Shaped[Array, "R C B S ..."]:
    """A cache (B, R S, heads, features) as a PE of each has it: row r slots r S .. r S + S - 1, columns the heads; all of them what is
    about slots alone (B, R S)."""
    (rows, cols), (batch, slots, *rest) = grid, x.shape
    if not rest:
        return jnp.broadcast_to(x.reshape(batch, rows, 1, -1).transpose(1, 2, 0, 3), (rows, cols, batch, slots // rows))
    return x.reshape(batch, rows, slots // rows, cols, rest[0] // cols, *rest[1:]).transpose(1, 3, 0, 2, *range(4, 4 + len(rest)))


def from_rows(x: Shaped[Array, "R C B S ..."]) -> Shaped[Array, "B n ..."]:
    """What `to_rows` cut."""
    rows, cols, batch, slots, *rest = x.shape
    if not rest:
        return x[:, 0].swapaxes(0, 1).reshape(batch, rows * slots)
    return x.transpose(2, 0, 3, 1, *range(4, x.ndim)).reshape(batch, rows * slots, cols * rest[0], *rest[1:])


def _places(x: Shaped[Array, "R C B ..."], length: Lengths) -> tuple[int, Int[Array, "R C 1"], Int[Array, "R C B"]]:
    """The number of rows, the own one, and the lengths."""
    return fabric.extent(x, "y"), fabric.index(x, "y").reshape(*x.shape[:2], 1), jnp.broadcast_to(length, x.shape[:3])


def held(x: Shaped[Array, "R C B S ..."], length: Lengths) -> Int[Array, "R C B S"]:
    """The position that each slot of a balanced cache like `x` holds, -1 where it is empty."""
    rows, here, n = _places(x, length)
    begin, end = (first(row, rows, n)[..., None] for row in (here, here + 1))
    at = begin + (jnp.arange(x.shape[3], dtype=jnp.int32).reshape(1, 1, 1, -1) - begin) % x.shape[3]
    return jnp.where(at < end, at, -1).astype(jnp.int32)


def _take(x: Shaped[Array, "R C B S ..."], slot: Int[Array, "R C B"]) -> Shaped[Array, "R C B ..."]:
    return jnp.take_along_axis(x, slot.reshape(*slot.shape, *(1,) * (x.ndim - 3)), axis=3)[:, :, :, 0]


def _put(x: Shaped[Array, "R C B S ..."], token: Shaped[Array, "R C B ..."], slot: Int[Array, "R C B"], gets: Bool[Array, "R C B"]):
    """`x` with a token in a slot of the PEs that get one."""
    at = tuple(jnp.arange(n).reshape([-1 if d == dim else 1 for d in range(3)]) for dim, n in enumerate(x.shape[:3]))
    slot = jnp.where(gets, slot, x.shape[3])
    return x.at[(*at, slot)].set(token.astype(x.dtype), mode="drop", unique_indices=True)


def _where(flags: Bool[Array, "R C B"], x: Shaped[Array, "R C B ..."], y: Shaped[Array, "R C B ..."]) -> Shaped[Array, "R C B ..."]:
    return jnp.where(flags.reshape(*flags.shape, *(1,) * (x.ndim - 3)), x, y)


# ---- storing ---------------------------------------------------------------------------------------------------------
def pass_up(x: Shaped[Array, "R C B S ..."], new: Shaped[Array, "R C B ..."], length: Lengths) -> Shaped[Array, "R C B S ..."]:
    """One leaf of `append`: the keys or the values, without their positions."""
    (rows, here, n), slots = _places(x, length), x.shape[3]
    room = (n >= 0) & (n < rows * slots)
    passes, below = (room & (row >= rows - n % rows) for row in (here, here + 1))
    oldest = _take(x, first(here, rows, n) % slots)
    came = fabric.shift(oldest, "north", sends=passes.any(axis=2))  # sequences travel together
    last = here == rows - 1
    token = _where(jnp.broadcast_to(last, n.shape), new.astype(x.dtype), came)
    return _put(x, token, first(here + 1, rows, n) % slots, room & (last | below))


def next_position(position: Int[Array, "R C B S"], length: Lengths) -> Int[Array, "R C B S"]:
    """The positions of `append`."""
    rows, _, n = _places(position, length)
    return _where((n >= 0) & (n < rows * position.shape[3]), held(position, n + 1), position)


def append(cache: Cache, new: tuple[Shaped[Array, "R C B ..."], Shaped[Array, "R C B ..."]], length: Lengths) -> Cache:
    """The cache with one more token of every sequence; rows stay balanced. One program for all lengths.

    Args:
      cache: made by `spread` or by appends to an empty one.
      new: its key and value, which the last row of PEs has; what the other rows hold is not looked at.
      length: int32, tokens of each sequence so far. A sequence that has no room for another, or whose length is negative (it takes none),
        is left as it is.
    """
    keys, values = (pass_up(x, token, length) for x, token in zip(cache[:2], new, strict=True))
    return Cache(keys, values, next_position(cache.position, length))


def append_concat(cache: Cache, new: tuple[Shaped[Array, "R C B ..."], Shaped[Array, "R C B ..."]], length: Lengths) -> Cache:
    """As `append`, but the last row keeps what arrives, as concatenation does: nothing is sent, and that row alone fills up.

    A sequence for which the last row has no slot left is left as it is.
    """
    (rows, here, n), slots = _places(cache.position, length), cache.position.shape[3]
    slot = n % slots
    gets = (n >= 0) & (here == rows - 1) & (_take(cache.position, slot) < 0)
    return Cache(*(_put(x, token, slot, gets) for x, token in zip(cache, (*new, n), strict=True)))


def deal(x: Shaped[Array, "R C B h ..."], length: Lengths, slots: int) -> Shaped[Array, "R C B S ..."]:
    """One leaf of `spread`."""
    (rows, here, n), high = _places(x, length), x.shape[3]
    end = first(here + 1, rows, n)

    def step(t, state):
        moving, out = state
        at = rows * high - 1 + here - t  # the position that comes by
        token = _take(x, jnp.broadcast_to(jnp.clip(at - here * high, 0, high - 1), n.shape))
        token = _where(jnp.broadcast_to(at >= here * high, n.shape), token, moving)
        there = (at >= 0) & (at < n) & (at < (here + 1) * high)
        out = _put(out, token, at % slots, there & (at >= first(here, rows, n)) & (at < end))
        return fabric.shift(token, "south", sends=(there & (at >= end)).any(axis=2)), out

    empty = jnp.zeros((*x.shape[:3], slots, *x.shape[4:]), x.dtype)
    return fabric.repeat(rows * (high + 1) - 1, step, (jnp.zeros_like(empty[:, :, :, 0]), empty))[1]


def spread(keys: Shaped[Array, "R C B h ..."], values: Shaped[Array, "R C B h ..."], length: Lengths, slots: int) -> Cache:
    """The cache that as many appends would have made, of what prefill leaves.

    Sequences lie in pieces of h tokens, one a row of PEs, padding behind their ends; only what belongs further south travels, to where
    it belongs. Tokens set out one after the other, the last first, so that every link carries one at a time.

    Args:
      keys, values: row r has those of positions r h .. r h + h - 1.
      length: int32, tokens of each sequence, at most R h and R slots (`check_room`).
      slots: of the cache, for each sequence in a PE.
    """
    of_keys, of_values = (deal(x, length, slots) for x in (keys, values))
    return Cache(of_keys, of_values, held(of_keys, length))


# ---- attention -------------------------------------------------------------------------------------------------------
def attend(
    q: Float[Array, "R C B heads d"],
    cache: Cache,
    at: Lengths,
    window: int | None = None,
    scale: float | None = None,
    parted: bool = False,
) -> Float[Array, "R C B heads e"]:
    """Attention of one query a sequence to the tokens that are kept, on every row of PEs: softmax of q k times `scale`, and values by it.

    Each row has a softmax of its own tokens: the greatest score, the sum of exponentials, the values by them. Rows combine theirs along
    the column, by a K-tree with K = 2. In float32 at least.

    Args:
      q: the queries, on every row of PEs; the heads of a key stand together.
      cache: keys and values of (kv_heads, d) and (kv_heads, e) features, in whatever slots.
      at: int32, positions of the queries: they see tokens up to there. A query that sees none gives zeros.
      window: see only so many tokens, the own among them. None: all.
      scale: by default 1 / sqrt(d), or with `parted` 1 / sqrt(d C).
      parted: columns of PEs hold a part of the features of every head, whose scores are added up along the row, by such a tree; else
        heads of their own.

    Raises:
      ValueError: heads that are no multiple of the keys', or shapes that do not fit.
    """
    if q.ndim != 5 or cache.keys.ndim != 6 or q.shape[3] % cache.keys.shape[4] or q.shape[4] != cache.keys.shape[5]:
        raise ValueError(
            f"q has shape {q.shape}, keys {cache.keys.shape}: give (R, C, B, heads, d) and (R, C, B, S, kv_heads, d), heads a multiple of "
            "kv_heads"
        )
    kv_heads, d = cache.keys.shape[4:]
    wide = jnp.result_type(q, jnp.float32)
    factor = (d * (fabric.extent(q, "x") if parted else 1)) ** -0.5 if scale is None else scale
    _, _, now = _places(q, at)
    position, now = cache.position, now[..., None]
    sees = (position >= 0) & (position <= now) & (True if window is None else position > now - window)  # (R, C, B, S)

    grouped = (q.astype(wide) * factor).reshape(*q.shape[:3], kv_heads, -1, d)
    scores = local_product(grouped, jnp.moveaxis(cache.keys, 3, 5).astype(wide))  # (R, C, B, kv_heads, group, S)
    if parted:
        scores = collectives.all_reduce(scores, "x", k_tree(fabric.extent(q, "x")))
    scores = jnp.where(sees[:, :, :, None, None], scores, -jnp.inf)
    top = tree_reduce(scores, (5,), jnp.maximum, -jnp.inf)[..., None]
    weights = jnp.exp(scores - _base(top))
    values = jnp.where(sees[..., None, None], cache.values, jnp.zeros((), cache.values.dtype)).astype(wide)
    weighted = local_product(weights, jnp.moveaxis(values, 3, 4))
    mine = jnp.concatenate([weighted, tree_reduce(weights, (5,), jnp.add)[..., None], top], axis=-1)
    every = collectives.all_reduce(mine, "y", k_tree(fabric.extent(q, "y")), _together)
    weighted, total = every[..., :-2], every[..., -2:-1]
    seen = total != 0  # a NaN stays one
    out = jnp.where(seen, weighted * (1.0 / jnp.where(seen, total, 1.0)), 0.0)
    return out.reshape(*q.shape[:4], -1).astype(q.dtype)


def _base(top: Float[Array, "..."]) -> Float[Array, "..."]:
    """What is taken off scores before their exponentials; nothing where none was seen."""
    return jnp.where(top == -jnp.inf, 0.0, top)


def _together(a: Float[Array, "... e+2"], b: Float[Array, "... e+2"]) -> Float[Array, "... e+2"]:
    """Two softmaxes of different tokens as one of all: values by weights, sum of weights, greatest score."""
    top = jnp.maximum(a[..., -1:], b[..., -1:])
    add = lambda x: x[..., :-1] * jnp.exp(x[..., -1:] - _base(top))
    return jnp.concatenate([add(a) + add(b), top], axis=-1)


# ---- traffic ---------------------------------------------------------------------------------------------------------
def append_entry_hops(grid: Grid, lengths: Sequence[int], slots: int) -> int:
    """Hops of an entry (a sequence's key, or its value, in a PE) in `append`; sequences travel together, as many rows as the one of them
    that goes furthest. None in `append_concat`."""
    rows, cols = grid
    return len(lengths) * cols * max(n % rows if 0 <= n < rows * slots else 0 for n in lengths)


def spread_entry_hops(grid: Grid, lengths: Sequence[int], high: int) -> int:
    """Hops of an entry in `spread` of pieces of `high` tokens: a link carries a position of all sequences if one of them needs it."""
    rows, cols = grid
    carried = 0
    for row in range(rows - 1):
        crossing = [range(first(row + 1, rows, n), min((row + 1) * high, n)) for n in lengths]
        carried += len({position for positions in crossing for position in positions})
    return len(lengths) * cols * carried


def attend_element_hops(grid: Grid, batch: int, heads: int, width: int, slots: int = 0, parted: bool = False) -> int:
    """Hops of a number of at least 32 bits in `attend`; `heads` and `width` are those of a PE's result, `slots` those of its scores."""
    rows, cols = grid
    once = lambda n: k_tree(n).energy + n - 1  # there and back along a line
    return batch * heads * (cols * (width + 2) * once(rows) + (rows * slots * once(cols) if parted else 0))


# ---- prices ----------------------------------------------------------------------------------------------------------
def longest_row(length: Any, rows: Any, prompt: Any = 0, balanced: bool = True) -> Any:
    """Tokens of the fullest row, for which all others wait: ceil(n / R), or with concatenation all that came after the prompt."""
    return share(length, rows) if balanced else share(prompt, rows) + (length - prompt)


def append_price(system: System, rows: Any, cols: Any, length: Any, entry_bytes: Any) -> Price:
    """`append` to sequences of `length` tokens: keys, then values, `entry_bytes` of each in a PE, all sequences together.

    What a row gets and what it gives take a beat each, and each is a vector instruction and a task that notes its end.
    """
    passing = length - rows * floor(length / rows)  # rows
    busiest, some = least(passing, 2.0), least(passing, 1.0)
    moved_bytes = passing * cols * entry_bytes
    contention, energy, links = busiest * wavelets(system, entry_bytes), wavelets(system, moved_bytes), cols * (rows - 1.0)
    moving = travel(system, contention, energy, links, some, depth=some, byte_hops=moved_bytes)
    ends = (system.launch_cycles + system.task_cycles) * busiest
    return (moving + Price(cycles=ends, wait_cycles=ends)) * 2.0


def attend_price(
    system: System,
    rows: Any,
    cols: Any,
    length: Any,
    heads: Any,
    width: Any,
    batch: Any = 1,
    itemsize_bytes: int = 4,
    longest: Any = None,
    parted: bool = False,
) -> Price:
    """`attend` to `length` tokens of each sequence, with `heads` queries of `width` features in a PE.

    A product is vector instructions over the tokens or over the features, whichever are fewer. Exponentials are taken of every score,
    and two where the results of two rows meet.

    Args:
      itemsize_bytes: of keys and values; what is added up is float32.
      longest: tokens of the fullest row (`longest_row`), which all others wait for; by default that of a balanced cache.
    """
    queries, mean = batch * heads, share(length, rows)
    longest = mean if longest is None else longest
    rate, starts = fma_per_cycle(system, itemsize_bytes), queries * least(longest, width)
    product = vector_cycles(system, queries * longest * width, rate, instructions=starts)
    macs = 1.0 * queries * length * width * cols
    work = computing(product, 2.0 * macs, macs * itemsize_bytes) * 2.0
    scores = queries * longest
    soft = vector_cycles(system, scores * 4.0, copies_per_cycle(system, 4), instructions=4.0) + scores * system.special_cycles
    work += computing(soft, 8.0 * queries * length * cols, 48.0 * queries * length * cols)
    _, _, depth = numbers("two_phase", rows)
    meet = depth * 2.0 * queries * system.special_cycles
    work += Price(cycles=meet, wait_cycles=meet)
    if parted:
        add_up = lambda tokens: collectives.all_reduce_price(system, cols, rows, queries * tokens * 4.0, "two_phase")
        moved = add_up(mean)  # by all rows together, however they share the tokens
        work += dataclasses.replace(add_up(longest), flops=moved.flops, byte_hops=moved.byte_hops, sram_bytes=moved.sram_bytes)
    return work + collectives.all_reduce_price(system, rows, cols, queries * (width + 2.0) * 4.0, "two_phase")
