"""Transient faults: one bit of one word in a PE's SRAM turns over.

Which words a PE holds follows from the layouts. A tile holds a block of every array: along a dimension that is split over an axis, the
tile's share of it (padded sizes over tiles, as `relayout` has it), along others all of it. Within a tile the block's elements, in
row-major order, are dealt to the tile's PEs, in row-major order, in consecutive runs whose lengths differ by at most one, the longer
first. The emulator does not compute that finely; the rule makes "a PE's words" a definite thing.

Along an axis that no dimension is split over, every tile holds a copy. A program takes the copies for equal and reads any of them, so
a flip in one cannot be told from a flip in all: it hits the value as everybody sees it, and `Flip.copies` says how many there are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, Key, PyTree, Shaped

from wsejax.fabric import AXES
from wsejax.hardware import Wafer
from wsejax.kernels.relayout import padded

Place = tuple[int, int]


@dataclass(frozen=True)
class Flip:
    """What one fault did.

    leaf: path of the array, such as "params/head/kernel". index: of the word in it. bit: which turned over, 0 the least
    significant. before, after: the word's value, numpy scalars of the array's dtype. pe: physical (row, col) of a PE that holds it.
    logical_pe: the same PE in the logical mesh. Both are one of the holders, where there are copies. copies: tiles that hold the word.
    """

    leaf: str
    index: tuple[int, ...]
    bit: int
    before: Any
    after: Any
    pe: Place
    logical_pe: Place
    copies: int

    def as_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {name: str(values[name]) for name in ("before", "after")} | {"dtype": str(np.asarray(self.before).dtype)}


def width(dtype: Any) -> int:
    """Bits of a word that can turn over: a bool has one, since any other pattern is no bool.

    Raises ValueError for complex numbers, PRNG keys and numbers of less than a byte.
    """
    if jnp.issubdtype(dtype, jax.dtypes.extended) or jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"dtype {dtype}: only words of bool, integers and real floating-point numbers turn over; name another leaf")
    if dtype == jnp.bool_:
        return 1
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits
    if bits < 8:
        raise ValueError(f"dtype {dtype}: words of {bits} bits are not addressed singly; name another leaf")
    return int(bits)


def flip_word(x: Shaped[Array, "*shape"], index: Sequence[Any], bit: Any) -> Shaped[Array, "*shape"]:
    """`x` with bit `bit` of the word at `index` turned over, every other bit as it was. Twice is not at all.

    Pure; under `jax.jit` index and bit may be traced. No word travels: every device looks at its own. An index or a bit out of range
    changes nothing.
    """
    words = width(x.dtype)
    hit = jnp.ones(x.shape, bool)
    for dim, at in enumerate(index):
        hit &= lax.broadcasted_iota(jnp.int32, x.shape, dim) == jnp.asarray(at, jnp.int32)
    hit &= jnp.broadcast_to((jnp.asarray(bit) >= 0) & (jnp.asarray(bit) < words), x.shape)
    if x.dtype == jnp.bool_:
        return x ^ hit
    unsigned = jnp.dtype(f"uint{words}")
    mask = lax.shift_left(unsigned.type(1), jnp.asarray(bit).astype(unsigned))
    turned = lax.bitcast_convert_type(x, unsigned) ^ jnp.where(hit, jnp.broadcast_to(mask, x.shape), jnp.zeros(x.shape, unsigned))
    return lax.bitcast_convert_type(turned, x.dtype)


@dataclass(frozen=True)
class _Words:
    """The words of array number `leaf` of the state, and where they lie: for each tile a block, for each of its PEs a run of that."""

    leaf: int
    path: str
    shape: tuple[int, ...]
    bits: int
    axes: tuple[str | None, ...]
    wafer: Wafer

    @property
    def copies(self) -> int:
        return math.prod(tiles for axis, tiles in zip(AXES, self.wafer.tiles, strict=True) if axis not in self.axes)

    @property
    def held(self) -> int:
        """Words on the wafer, copies counted."""
        return math.prod(self.shape) * self.copies

    def share(self, n: int, axis: str | None) -> int:
        """A tile's part of a dimension of `n`, padding included."""
        tiles = 1 if axis is None else self.wafer.tiles[AXES.index(axis)]
        return padded(n, tiles) // tiles

    def block(self, tile: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where a tile's block begins, and its shape; padding is not of it."""
        starts, sizes = [], []
        for n, axis in zip(self.shape, self.axes, strict=True):
            share = self.share(n, axis)
            start = 0 if axis is None else min(n, share * tile[AXES.index(axis)])
            starts.append(start)
            sizes.append(min(share, n - start))
        return tuple(starts), tuple(sizes)

    def run(self, pe: Place) -> tuple[Place, int, int]:
        """Tile of a logical PE, and the first of its words in the tile's block and how many they are."""
        tile, (row, col), (rows, cols) = _tile_of(self.wafer, pe)
        count, extra = divmod(math.prod(self.block(tile)[1]), rows * cols)
        number = row * cols + col
        return tile, number * count + min(number, extra), count + (number < extra)

    def index(self, tile: Place, number: int) -> tuple[int, ...]:
        """Of word `number` of a tile's block."""
        starts, sizes = self.block(tile)
        return tuple(int(start + at) for start, at in zip(starts, np.unravel_index(number, sizes), strict=True)) if sizes else ()

    def holder(self, tile: Place, number: int) -> Place:
        """Logical PE that holds word `number` of a tile's block."""
        rows, cols = self.wafer.tile_rows[tile[0]], self.wafer.tile_cols[tile[1]]
        count, extra = divmod(math.prod(self.block(tile)[1]), rows * cols)
        longer = extra * (count + 1)
        pe = number // (count + 1) if number < longer else extra + (number - longer) // count
        return sum(self.wafer.tile_rows[: tile[0]]) + pe // cols, sum(self.wafer.tile_cols[: tile[1]]) + pe % cols

    def tile_of(self, index: Sequence[int], free: Place) -> tuple[Place, int]:
        """A tile that holds the word at `index` (along axes without a split the one of `free`), and its number in the block."""
        tile = list(free)
        for at, n, axis in zip(index, self.shape, self.axes, strict=True):
            if axis is not None:
                tile[AXES.index(axis)] = at // self.share(n, axis)
        place = tile[0], tile[1]
        starts, sizes = self.block(place)
        within = tuple(at - start for at, start in zip(index, starts, strict=True))
        return place, int(np.ravel_multi_index(within, sizes)) if sizes else 0


def _tile_of(wafer: Wafer, pe: Place) -> tuple[Place, Place, Place]:
    """Of a logical PE: its tile, its place in the tile, and the tile's PEs (rows, cols)."""
    found = []
    for at, sizes in zip(pe, (wafer.tile_rows, wafer.tile_cols), strict=True):
        ends = np.cumsum(sizes)
        tile = int(np.searchsorted(ends, at, side="right"))
        found.append((tile, at - int(ends[tile]) + sizes[tile], sizes[tile]))
    (tile_y, row, rows), (tile_x, col, cols) = found
    return (tile_y, tile_x), (row, col), (rows, cols)


def logical_place(wafer: Wafer, pe: Place) -> Place:
    """Where a physical PE is in the logical mesh.

    Raises ValueError where it holds no words: it is off the wafer, dead, or left out of the mesh.
    """
    row, col = pe
    if not (0 <= row < wafer.spec.rows and 0 <= col < wafer.spec.cols):
        raise ValueError(f"pe={pe}: off the wafer, which has {wafer.spec.rows} x {wafer.spec.cols} physical PEs")
    found = np.argwhere((wafer.remap.physical_row == row) & (wafer.remap.physical_col == col))
    if not len(found):
        why = "it is dead" if wafer.defects.dead_pes[row, col] else "it is healthy, but the logical mesh leaves it out"
        raise ValueError(f"pe={pe}: this PE holds no words, since {why}; name another, or leave it out for a random one")
    return int(found[0, 0]), int(found[0, 1])


def leaf_paths(state: PyTree) -> list[str]:
    """The path of every array, as `Flip.leaf` has it, in the order of the tree."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _words(state: PyTree, shardings: PyTree, wafer: Wafer, leaf: str | Sequence[str] | None) -> list[_Words]:
    """Words of the arrays that may be hit."""
    is_place = lambda s: isinstance(s, Sharding | PartitionSpec)
    leaves, paths = jax.tree.leaves(state), leaf_paths(state)
    places = [shardings] * len(leaves) if is_place(shardings) else jax.tree.leaves(shardings, is_leaf=is_place)
    if len(places) != len(leaves):
        raise ValueError(f"shardings has {len(places)} leaves, state {len(leaves)}: give one for all, or one for each array")
    wanted = {leaf} if isinstance(leaf, str) else None if leaf is None else set(leaf)
    if wanted is not None and (unknown := wanted - set(paths)):
        raise ValueError(f"leaf={sorted(unknown)[0]!r}: state has no such array; it has {', '.join(paths[:8])}, ...")
    found = []
    for number, (path, x, place) in enumerate(zip(paths, leaves, places, strict=True)):
        if wanted is None or path in wanted:
            try:
                bits = width(x.dtype)
            except ValueError as error:
                if wanted is None:  # a random fault strikes one of the others
                    continue
                raise ValueError(f"leaf={path!r}: {error}") from None
            found.append(_Words(number, path, x.shape, bits, _axes(place, x.ndim, path), wafer))
    return found


def _axes(place: Any, ndim: int, path: str) -> tuple[str | None, ...]:
    spec = place.spec if isinstance(place, NamedSharding) else place
    if not isinstance(spec, PartitionSpec):
        raise ValueError(f"the sharding of {path} is {place!r}, which is on no wafer; give a NamedSharding or a PartitionSpec")
    axes: tuple[Any, ...] = tuple(axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis for axis in spec)
    axes += (None,) * (ndim - len(axes))
    if len(axes) != ndim or not set(axes) <= {None, *AXES}:
        raise ValueError(f"the sharding of {path} is {spec}: a wafer splits a dimension over 'y', over 'x' or not at all")
    return axes


def held_by(state: PyTree, shardings: PyTree, wafer: Wafer, pe: Place) -> dict[str, Int[np.ndarray, "words ndim"]]:
    """Indices of the words that a physical PE holds, by path of the array; a PE without words of an array has 0 rows there.

    Raises ValueError as `flip_bit`.
    """
    logical, held = logical_place(wafer, pe), {}
    for words in _words(state, shardings, wafer, None):
        tile, first, count = words.run(logical)
        indices = [words.index(tile, number) for number in range(first, first + count)]
        held[words.path] = np.array(indices, int).reshape(count, len(words.shape))
    return held


def flip_bit(
    key: Key[Array, ""],
    state: PyTree,
    shardings: PyTree,
    wafer: Wafer,
    *,
    pe: Place | None = None,
    bit: int | Sequence[int] | None = None,
    leaf: str | Sequence[str] | None = None,
) -> tuple[PyTree, Flip]:
    """Turn one bit over, drawn evenly among all bits that the wafer's SRAM holds of the state, copies counted, or among those that
    are asked for.

    A pure function of its arguments; arrays that are not hit are passed on as they are, and the one that is hit lies as it lay.

    Args:
      key: decides whatever is not asked for.
      state: pytree of arrays. Complex numbers and typed keys are never hit.
      shardings: where they lie on the wafer, such as `lowered.in_shardings[0]`: NamedSharding or PartitionSpec, one for all or one for
        each array.
      wafer: whose tiles and logical mesh say which PE holds what.
      pe: physical (row, col) whose word it is. None: any PE.
      bit: number of the bit, 0 the least significant, or several to draw from. None: any bit.
      leaf: path of the array, as in `Flip.leaf`, or several to draw from. None: any array.

    Returns:
      The state after it, and what happened.

    Raises:
      ValueError: a PE off the wafer or outside the logical mesh, a bit that no word has, an unknown leaf, a sharding that is no
        wafer's, or no word that fits all that is asked for.
    """
    candidates = _words(state, shardings, wafer, leaf)
    logical = None if pe is None else logical_place(wafer, pe)
    asked = None if bit is None else {bit} if isinstance(bit, int) else set(bit)
    bits = [[b for b in range(words.bits) if asked is None or b in asked] for words in candidates]
    held = [words.held if logical is None else words.run(logical)[2] for words in candidates]
    weights = np.array([len(some) * count for some, count in zip(bits, held, strict=True)], np.int64)
    if not weights.sum():
        raise ValueError(
            f"pe={pe}, bit={bit}, leaf={leaf}: no word fits; the arrays named have {sorted({w.bits for w in candidates})} bits a word, "
            f"and {sum(held):,} words there"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    nth = int(rng.integers(weights.sum()))  # one draw decides array, word and bit: every bit is as likely as any other
    chosen = int(np.searchsorted(np.cumsum(weights), nth, side="right"))
    words, (number, which) = candidates[chosen], divmod(nth - int(weights[:chosen].sum()), len(bits[chosen]))
    if logical is None:
        copy, flat = divmod(number, math.prod(words.shape))
        index = tuple(int(at) for at in np.unravel_index(flat, words.shape)) if words.shape else ()
        logical = words.holder(*words.tile_of(index, _free_tile(words, copy)))
    else:
        tile, first, _ = words.run(logical)
        index = words.index(tile, first + number)
    arrays, turned = jax.tree.leaves(state), bits[chosen][which]
    before = jnp.asarray(arrays[words.leaf])
    arrays[words.leaf] = after = _on(before.sharding)(before, index, turned)
    physical = int(wafer.remap.physical_row[logical]), int(wafer.remap.physical_col[logical])
    flip = Flip(words.path, index, turned, _word(before, index), _word(after, index), physical, logical, words.copies)
    return jax.tree.unflatten(jax.tree.structure(state), arrays), flip


@functools.cache
def _on(sharding: Sharding):
    """`flip_word`, compiled once for each shape; the result lies as `sharding` says."""
    return jax.jit(flip_word, out_shardings=sharding)


def _word(x: Array, index: tuple[int, ...]) -> Any:
    """One word, read from a device that has it: indexing a spread array would add up the devices' parts, and -0.0 + 0.0 is 0.0."""
    for shard in x.addressable_shards:
        ranges = [part.indices(n) for part, n in zip(shard.index, x.shape, strict=True)]
        if all(start <= at < stop for at, (start, stop, _) in zip(index, ranges, strict=True)):
            return np.asarray(shard.data)[tuple(at - start for at, (start, _, _) in zip(index, ranges, strict=True))]
    raise ValueError(f"the word at {index} lies on another host")


def _free_tile(words: _Words, copy: int) -> Place:
    """Tile coordinates of one of the copies, along the axes that the array is not split over (0 along the others)."""
    sizes = [1 if axis in words.axes else tiles for axis, tiles in zip(AXES, words.wafer.tiles, strict=True)]
    return copy // sizes[1], copy % sizes[1]
