"""Ring attention: JAX's own attention and its gradients, in bits that the tiles alone decide, and by ring steps alone."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from tests.fabric.grids import executed_byte_hops, mesh_of, permutes
from wsejax import fabric
from wsejax.compiler import check_hlo
from wsejax.kernels.attention import ring_attention, ring_byte_hops
from wsejax.kernels.reduce import tree_reduce

TILES = 4
# device mesh, the ring's axis, the dimension that lies over the other axis
PLACES = [((1, 1), "x", None), ((1, 2), "x", None), ((2, 2), "x", 2), ((2, 2), "y", 0), ((4, 1), "y", 2)]


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention of `q_len` queries and `kv_len` keys, padded to `q_tile` and `kv_tile` tokens a tile."""

    q_len: int
    kv_len: int
    q_tile: int
    kv_tile: int
    heads: int = 4
    kv_heads: int = 4
    dtype: type = np.float32
    causal: bool = False
    window: tuple[int, int] | None = None
    masked: bool = False
    batch: int = 2
    dim: int = 8
    tiles: int = TILES

    def operands(self, padding: float = np.nan):
        """q, k, v, the cotangent of the output, and the mask of the keys (of which the last batch entry has none), with their padding."""
        r = np.random.default_rng(0)

        def block(length, tile, heads):
            x = np.full((self.batch, self.tiles * tile, heads, self.dim), padding, self.dtype)
            x[:, :length] = r.standard_normal((self.batch, length, heads, self.dim))
            return x

        q, d_out = (block(self.q_len, self.q_tile, self.heads) for _ in range(2))
        k, v = (block(self.kv_len, self.kv_tile, self.kv_heads) for _ in range(2))
        mask = r.random(k.shape[:2]) < 0.6
        mask[-1] = False
        return q, k, v, d_out, mask if self.masked else np.ones_like(mask)

    def placed(self, devices, axis: str, other: int | None):
        """(q, k, v, mask) -> output, on the mesh: tokens over `axis`, dimension `other` over the other axis."""
        names = [None, axis, None, None]
        if other is not None:
            names[other] = "y" if axis == "x" else "x"

        def fun(q, k, v, mask):
            options = {"causal": self.causal, "window": self.window, "kv_mask": mask if self.masked else None}
            return ring_attention(q, k, v, axis, seq_len_q=self.q_len, seq_len_kv=self.kv_len, tiles_on_axis=self.tiles, **options)

        spec = P(*names)
        return fabric.on_mesh(fun, mesh_of(devices), (spec, spec, spec, P(*names[:2])), spec)

    def results(self, *place) -> list[np.ndarray]:
        """The output and the gradients of q, k and v."""
        return [np.asarray(x) for x in with_gradients(self.placed(*place))(*self.operands())]

    def oracle(self) -> list[np.ndarray]:
        """The same in float32 by JAX, which averages all values where a query sees no key; here that gives zero."""
        q, k, v, d_out, mask = self.operands()
        q, d_out = (x[:, : self.q_len].astype(np.float32) for x in (q, d_out))
        k, v = (x[:, : self.kv_len].astype(np.float32) for x in (k, v))
        mask = mask[:, None, None, : self.kv_len]

        def fun(q, k, v, _):
            out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=self.causal, local_window_size=self.window)
            return jnp.where(mask.any(-1)[..., None], out, 0)

        return [np.asarray(x) for x in with_gradients(fun)(q, k, v, d_out, mask)]


def with_gradients(fun):
    def run(q, k, v, d_out, mask):
        out, back = jax.vjp(lambda q, k, v: fun(q, k, v, mask), q, k, v)
        return out, *back(d_out)

    return jax.jit(run)


CASES = {
    "causal, grouped heads": Case(32, 32, 8, 8, kv_heads=2, causal=True),
    "uneven lengths": Case(21, 30, 6, 8, kv_heads=2),
    "causal, uneven, in a window": Case(29, 29, 8, 8, causal=True, window=(5, 3)),
    "masked": Case(20, 28, 5, 7, kv_heads=2, masked=True),
    "half precision": Case(32, 32, 8, 8, kv_heads=2, dtype=jnp.bfloat16, causal=True),
    "shorter than the tiles": Case(3, 2, 2, 1, causal=True),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_jax_with_its_gradients_and_has_the_same_bits_on_every_device_mesh(name):
    case = CASES[name]
    first, *others = [case.results(*place) for place in PLACES]
    lengths = (case.q_len, case.q_len, case.kv_len, case.kv_len)
    tolerance = 2e-6 if case.dtype == np.float32 else 1e-2
    for got, want, length in zip(first, case.oracle(), lengths, strict=True):
        assert got.dtype == case.dtype
        np.testing.assert_allclose(got[:, :length].astype(np.float32), want, rtol=tolerance, atol=tolerance)
        assert not got[:, length:].any()
    for place, results in zip(PLACES[1:], others, strict=True):
        for got, want in zip(results, first, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=str(place))


def test_half_precision_is_rounded_only_at_the_end():
    case = CASES["half precision"]
    np.testing.assert_allclose(case.results(*PLACES[1])[0].astype(np.float32), case.oracle()[0], rtol=2.0**-8, atol=1e-6)


def test_a_nan_is_not_taken_for_a_query_that_sees_nothing():
    case = Case(8, 8, 2, 2, causal=True)
    q, k, v, _, mask = case.operands()
    q[0, 3, 1], k[1, 5, 2] = np.nan, np.nan
    got = np.isnan(jax.jit(case.placed((1, 2), "x", None))(q, k, v, mask)).any(-1)
    want = np.zeros_like(got)
    want[0, 3, 1] = want[1, 5:, 2] = True
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("tiles", "devices"), [(6, 3), (9, 3), (6, 2)], ids=str)
def test_any_number_of_tiles_a_device_gives_the_same_bits(tiles, devices):
    case = Case(4 * tiles - 1, 4 * tiles, 4, 4, heads=1, kv_heads=1, causal=True, tiles=tiles)
    first, other = case.results((1, 1), "x", None), case.results((1, devices), "x", None)
    np.testing.assert_allclose(first[0][:, : case.q_len], case.oracle()[0], rtol=2e-6, atol=2e-6)
    for got, want in zip(other, first, strict=True):
        np.testing.assert_array_equal(got, want)


def in_some_order(case: Case, order_of) -> np.ndarray:
    """The running softmax of each query tile by itself, over key tiles in the order `order_of(its number)`."""
    q, k, v, *_ = case.operands()
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * np.float32(case.dim**-0.5), k, v))
    dot = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
    tiles = []
    for i in range(case.tiles):
        rows = q[:, :, i * case.q_tile : (i + 1) * case.q_tile]
        top, total, acc = jnp.full((*rows.shape[:3], 1), -jnp.inf), 0.0, 0.0
        for j in order_of(i):
            keys, values = (x[:, :, j * case.kv_tile : (j + 1) * case.kv_tile] for x in (k, v))
            s = dot(rows, keys, (((3,), (3,)), ((0, 1), (0, 1))))
            highest = jnp.maximum(top, s.max(-1, keepdims=True))
            p, fade = jnp.exp(s - highest), jnp.exp(top - highest)
            total = total * fade + tree_reduce(p, (3,), jnp.add)[..., None]
            acc = acc * fade + dot(p, values, (((3,), (2,)), ((0, 1), (0, 1))))
            top = highest
        tiles.append(acc * (1 / total))
    return np.concatenate(tiles, axis=2).transpose(0, 2, 1, 3)


def test_a_tile_takes_its_own_keys_first_and_then_those_of_its_ring_predecessors():
    case = Case(64, 64, 8, 8, tiles=8)
    ring = fabric.ring_order(8)
    got = case.results((1, 2), "x", None)[0]
    np.testing.assert_array_equal(got, in_some_order(case, lambda i: [ring[(ring.index(i) - step) % 8] for step in range(8)]))
    assert not np.array_equal(got, in_some_order(case, lambda i: range(8)))


@pytest.mark.parametrize("place", [((1, 2), "x", 2), ((2, 2), "y", 0), ((1, 4), "x", None), ((4, 1), "y", None)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_where_a_tile_is_a_device_a_turn_takes_one_step_less_and_its_bytes_are_those_said(place, masked):
    devices, axis, other = place
    line, lines = devices[fabric.AXES.index(axis)], math.prod(devices) // devices[fabric.AXES.index(axis)]
    case = Case(8 * line, 16 * line, 8, 16, kv_heads=2, dtype=jnp.bfloat16, masked=masked, tiles=line)
    q, k, v, d_out, mask = case.operands()
    forward, both = case.placed(*place), with_gradients(case.placed(*place))
    messages = 1 + masked  # keys and values, and their mask
    assert len(list(permutes(forward, q, k, v, mask))) == (line - 1) * messages
    assert len(list(permutes(both, q, k, v, d_out, mask))) == 2 * (line - 1) * messages + line  # gradients go all the way home

    share = 1 if other is None else lines
    numbers = case.batch * 16 * case.kv_heads * case.dim * 2 // share  # in the keys and values of a tile
    mask_bytes = case.batch * 16 // (share if other == 0 else 1) * masked
    said = ring_byte_hops(numbers * 2 + mask_bytes, line, lines)
    assert executed_byte_hops(forward, devices, q, k, v, mask) == said > 0
    said += ring_byte_hops(numbers * 2 + mask_bytes, line, lines, accumulator_bytes=numbers * 4)
    assert executed_byte_hops(both, devices, q, k, v, d_out, mask) == said


def test_tiles_that_share_a_device_send_one_tile_each_way_a_step():
    case = Case(64, 64, 8, 8, tiles=8)
    q, k, v, _, mask = case.operands()
    moved = list(permutes(case.placed((1, 2), "x", None), q, k, v, mask))
    assert [size for size, _, _ in moved] == [k.nbytes * 2 // 8] * (7 * 2)
    assert {tuple(pairs) for _, pairs, _ in moved} == {((0, 1),), ((1, 0),)}
    assert not list(permutes(case.placed((1, 1), "x", None), q, k, v, mask))


@pytest.mark.parametrize("place", [((2, 2), "y", 0), ((1, 4), "x", 2)], ids=str)
def test_the_compiled_program_has_no_collective_but_shifts_between_neighbours(place):
    """Blocks split over both axes: JAX itself adds up the gradient of what `on_mesh` is given replicated, by a sum over devices."""
    case = Case(32, 32, 4, 4, masked=True, tiles=8)
    text = with_gradients(case.placed(*place)).lower(*case.operands()).compile().as_text()
    assert check_hlo(text, place[0]).links


def arrays(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (v.aval for v in eqn.outvars)
        for sub in jec.jaxprs_in_params(eqn.params):
            yield from arrays(getattr(sub, "jaxpr", sub))


def test_no_array_holds_more_scores_than_one_tile_of_keys_for_each_query():
    case = Case(128, 128, 8, 8, heads=1, kv_heads=1, batch=1, dim=4, tiles=16, causal=True)
    jaxpr = jax.make_jaxpr(with_gradients(case.placed((1, 2), "x", None)))(*case.operands()).jaxpr
    assert max(aval.size for aval in arrays(jaxpr)) == 64 * 8  # a device's 64 queries see the 8 keys of a tile at a time


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 5, 8, 16, 33, 64]), st.sampled_from([1, 3, 8, 64, 200]), st.sampled_from([1, 4, 7, 32, 128]), st.integers(0, 2)
)
def test_a_batched_products_bits_do_not_depend_on_how_many_are_done(m, k, n, form):
    """What the law of bits rests on: every form that the kernel uses."""
    ca, cb = [(2, 2), (2, 1), (1, 1)][form]
    r = np.random.default_rng(m * k + n)
    a = r.standard_normal((12, *((m, k) if ca == 2 else (k, m)))).astype(np.float32)
    b = r.standard_normal((12, *((n, k) if cb == 2 else (k, n)))).astype(np.float32)
    dot = jax.jit(lambda a, b: lax.dot_general(a, b, (((ca,), (cb,)), ((0,), (0,)))))
    whole = np.asarray(dot(a, b))
    for part in (slice(0, 1), slice(3, 5), slice(6, 12)):
        np.testing.assert_array_equal(dot(a[part], b[part]), whole[part])


WRONG = {
    "padded": ({"seq_len_kv": 33}, "k has 32 tokens for 4 tiles and seq_len=33"),
    "tiles": ({"tiles_on_axis": 6}, "q has 32 tokens for 6 tiles"),
    "mask": ({"kv_mask": np.ones((2, 3), bool)}, "kv_mask has shape"),
    "heads": ({"k": np.ones((2, 16, 3, 8)), "v": np.ones((2, 16, 3, 8))}, "heads a multiple"),
    "values": ({"v": np.ones((2, 16, 4, 6))}, "they must be alike"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name):
    changes, message = WRONG[name]
    given = {"seq_len_q": 32, "seq_len_kv": 32, "tiles_on_axis": 4, "k": None, "v": None} | changes

    def fun(x):
        operands = {n: x if given[n] is None else jnp.asarray(given[n], x.dtype) for n in ("k", "v")}
        return ring_attention(x, axis="x", **{**given, **operands})

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(fabric.on_mesh(fun, mesh_of((1, 2)), P(None, "x"), P(None, "x")), np.ones((2, 32, 4, 8), np.float32))
