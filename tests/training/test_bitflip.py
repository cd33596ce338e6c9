"""The injector: one bit of one word, which the PE that is named really holds."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import wsejax as wse
from wsejax.training.bitflip import flip_bit, flip_word, held_by, leaf_paths, width

SPEC = wse.WSE3.scaled(9, 8)
WAFER = wse.Wafer(SPEC, wse.DefectMap.uniform(SPEC, dead_pe_fraction=0.05, seed=1), tiles=(2, 2), devices=(1, 2))
DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
]  # fmt: skip
SPECS = {
    "both": ((6, 10), P("y", "x")),
    "turned": ((10, 4), P("x", "y")),
    "rows": ((8, 3), P("y")),
    "inner": ((2, 6, 5), P(None, "x", None)),
    "uneven": ((5, 7), P("y", "x")),
    "whole": ((11,), P()),
    "scalar": ((), P()),
    "tiny": ((2, 2), P("y", "x")),
}
logical_pes = list(itertools.product(*map(range, WAFER.logical_grid)))


def physical(pe: tuple[int, int]) -> tuple[int, int]:
    return int(WAFER.remap.physical_row[pe]), int(WAFER.remap.physical_col[pe])


def random_state(seed: int, dtypes=("float32",)) -> dict[str, jax.Array]:
    """Arrays of random bits, NaNs and infinities among them."""
    rng, state = np.random.default_rng(seed), {}
    for (name, (shape, spec)), dtype in zip(SPECS.items(), itertools.cycle(dtypes), strict=False):
        dtype = np.dtype(dtype)
        bytes_ = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
        values = (bytes_[..., 0] % 2).astype(bool) if dtype.kind == "b" else np.ascontiguousarray(bytes_).view(dtype).reshape(shape)
        sharding = NamedSharding(WAFER.mesh, P() if name == "uneven" else spec)  # jax.Arrays have no uneven shards
        state[name] = jax.device_put(values, sharding)
    return state


SHARDINGS = {name: spec for name, (_, spec) in SPECS.items()}


def owners(shape: tuple[int, ...], spec: P) -> dict[tuple[int, int], set[tuple[int, ...]]]:
    """Who holds what, by hand: cut an array of word numbers into tiles and deal each block to the tile's PEs."""
    numbers, held = np.arange(int(np.prod(shape, dtype=int))).reshape(shape), {}
    axes = (*spec, *(None,) * (len(shape) - len(spec)))
    row_starts, col_starts = (np.cumsum([0, *sizes]) for sizes in (WAFER.tile_rows, WAFER.tile_cols))
    for y, x in itertools.product(range(2), range(2)):
        at = {"y": y, "x": x, None: 0}
        share = [n if axis is None else -(-n // 2) for n, axis in zip(shape, axes, strict=True)]
        block = numbers[tuple(slice(at[axis] * s, (at[axis] + 1) * s) for s, axis in zip(share, axes, strict=True))]
        tile_pes = list(itertools.product(range(row_starts[y], row_starts[y + 1]), range(col_starts[x], col_starts[x + 1])))
        for pe, part in zip(tile_pes, np.array_split(np.ravel(block), len(tile_pes)), strict=True):
            held[pe] = {tuple(map(int, np.unravel_index(n, shape))) if shape else () for n in part}
    return held


OWNERS = {name: owners(*entry) for name, entry in SPECS.items()}


def bits_of(x) -> np.ndarray:
    return np.unpackbits(np.frombuffer(np.asarray(x).tobytes(), np.uint8), bitorder="little")


@given(st.integers(0, 2**32 - 1), st.permutations(DTYPES))
def test_one_bit_changes_of_a_word_that_the_pe_holds_and_again_is_not_at_all(seed, dtypes):
    state, key = random_state(seed % 7, dtypes), jax.random.key(seed)
    hit, flip = flip_bit(key, state, SHARDINGS, WAFER)
    for name in state:
        changed = np.flatnonzero(bits_of(state[name]) != bits_of(hit[name]))
        if name != flip.leaf:
            assert hit[name] is state[name]
            continue
        number = int(np.ravel_multi_index(flip.index, state[name].shape)) if flip.index else 0
        assert changed.tolist() == [number * state[name].dtype.itemsize * 8 + flip.bit]
        assert hit[name].sharding == state[name].sharding and hit[name].dtype == state[name].dtype
        for value, array in ((flip.before, state[name]), (flip.after, hit[name])):
            assert value.dtype == array.dtype and value.tobytes() == np.asarray(array)[flip.index].tobytes()
    assert flip.index in OWNERS[flip.leaf][flip.logical_pe] and flip.pe == physical(flip.logical_pe)
    assert flip.copies == sum(flip.index in held for held in OWNERS[flip.leaf].values())

    same, again = flip_bit(key, state, SHARDINGS, WAFER)  # pure in the key (values of NaN are unequal to themselves)
    assert str(again) == str(flip) and bits_of(same[flip.leaf]).tolist() == bits_of(hit[flip.leaf]).tolist()
    back, undone = flip_bit(key, hit, SHARDINGS, WAFER)
    assert undone.index == flip.index and bits_of(back[flip.leaf]).tolist() == bits_of(state[flip.leaf]).tolist()


@given(st.sampled_from(logical_pes), st.integers(0, 100), st.none() | st.integers(0, 31))
def test_a_pe_that_is_asked_for_is_the_one_that_is_hit(pe, seed, bit):
    state = random_state(0)
    _, flip = flip_bit(jax.random.key(seed), state, SHARDINGS, WAFER, pe=physical(pe), bit=bit)
    assert flip.logical_pe == pe and flip.pe == physical(pe) and flip.index in OWNERS[flip.leaf][pe]
    assert bit is None or flip.bit == bit


@pytest.mark.parametrize("pe", logical_pes[:: len(logical_pes) // 6])
def test_what_a_pe_holds_is_what_the_rule_deals_it(pe):
    held = held_by(random_state(0), SHARDINGS, WAFER, physical(pe))
    assert {name: set(map(tuple, rows.tolist())) for name, rows in held.items()} == {name: OWNERS[name][pe] for name in SPECS}


def test_every_word_of_a_split_array_has_one_owner():
    for name in ("both", "turned", "uneven", "tiny"):
        everyone = [index for held in OWNERS[name].values() for index in held]
        assert sorted(everyone) == sorted(np.ndindex(SPECS[name][0]))
        counts = [len(OWNERS[name][pe]) for pe in logical_pes]
        assert max(counts) - min(counts) <= 1 or name == "uneven"


def test_draws_are_even_over_bits_held():
    """A word of which four tiles hold a copy is hit four times as often."""
    state = {name: random_state(0)[name] for name in ("both", "whole", "scalar")}
    shardings = {name: SHARDINGS[name] for name in state}
    drawn = [flip_bit(jax.random.key(n), state, shardings, WAFER)[1] for n in range(600)]
    weight = {"both": 60, "whole": 44, "scalar": 4}
    for name, w in weight.items():
        expected = 600 * w / sum(weight.values())
        assert abs(sum(flip.leaf == name for flip in drawn) - expected) < 4 * expected**0.5
    assert {flip.bit for flip in drawn} == set(range(32))
    assert len({flip.pe for flip in drawn}) > 0.9 * len(logical_pes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_under_jit_with_traced_places(dtype):
    x = random_state(3, [dtype])["both"]
    flip = jax.jit(flip_word)
    for bit in {0, width(x.dtype) - 1}:
        once = flip(x, (jnp.int32(5), jnp.int32(9)), jnp.int32(bit))
        assert (bits_of(once) != bits_of(x)).sum() == 1
        assert (bits_of(flip(once, (5, 9), bit)) == bits_of(x)).all()
    for index, bit in (((6, 0), 0), ((-1, 0), 0), ((0, 0), width(x.dtype)), ((0, 0), -1)):
        assert (bits_of(flip(x, index, bit)) == bits_of(x)).all(), "out of range nothing happens"


def test_what_was_asked_for_is_drawn_from():
    state = random_state(0)
    for n in range(20):
        flip = flip_bit(jax.random.key(n), state, SHARDINGS, WAFER, bit=range(23, 31), leaf=["both", "rows"])[1]
        assert flip.leaf in ("both", "rows") and 23 <= flip.bit < 31
    assert leaf_paths({"a": {"b": [1, 2]}}) == ["a/b/0", "a/b/1"]


def test_words_without_bits_of_that_number_and_keys_are_never_hit():
    state = {"mask": jnp.ones(50, bool), "w": jnp.ones(2), "z": jnp.ones(50, complex), "key": jax.random.key(0)}
    for n in range(10):
        assert flip_bit(jax.random.key(n), state, P(), WAFER, bit=5)[1].leaf == "w"
        assert flip_bit(jax.random.key(n), state, P(), WAFER)[1].leaf in ("mask", "w")


def test_mistakes_are_named():
    state, key = random_state(0), jax.random.key(0)
    dead = tuple(map(int, np.argwhere(WAFER.defects.dead_pes)[0]))
    used = set(zip(WAFER.remap.physical_row.ravel().tolist(), WAFER.remap.physical_col.ravel().tolist(), strict=True))
    spare = next(pe for pe in np.ndindex(9, 8) if pe not in used and not WAFER.defects.dead_pes[pe])
    cases = [
        ({"pe": (9, 0)}, "pe=(9, 0): off the wafer"),
        ({"pe": dead}, "it is dead"),
        ({"pe": spare}, "the logical mesh leaves it out"),
        ({"bit": 32}, "bit=32"),
        ({"leaf": "nothing"}, "leaf='nothing': state has no such array; it has both"),
        ({"leaf": "tiny", "pe": physical((3, 3))}, "no word fits"),
        ({"shardings": P("z")}, "over 'y', over 'x' or not at all"),
        ({"shardings": [P(), P()]}, "shardings has 2 leaves, state 8"),
        ({"shardings": jax.sharding.SingleDeviceSharding(jax.devices()[0])}, "is on no wafer"),
        ({"state": {"z": jnp.ones(3, complex)}, "shardings": P(), "leaf": "z"}, "only words of bool"),
    ]
    for changes, words in cases:
        arguments = {"state": state, "shardings": SHARDINGS} | changes
        with pytest.raises(ValueError) as refused:
            flip_bit(key, wafer=WAFER, **arguments)
        assert words in str(refused.value)
