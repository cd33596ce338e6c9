"""SUMMA: numpy's product, in bits that depend on the tiles alone, with gradients through JAX's own autodiff."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fabric.grids import on_layouts
from wsejax.kernels.gemm import DotDims, steady_dot, summa
from wsejax.kernels.relayout import Layout

GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2)]
TILES = {"y": 4, "x": 4}  # whatever divides the sizes: nothing here is padded


@dataclasses.dataclass(frozen=True)
class Form:
    """A product of operands that both lie (y, x): which dimensions it contracts, and where its panels travel."""

    numbers: DotDims
    meet_a: Layout
    meet_b: Layout
    einsum: str

    def shapes(self, m: int, k: int, n: int):
        size = {"m": m, "k": k, "n": n}
        a, b = self.einsum.split("->")[0].split(",")
        return tuple(size[d] for d in a), tuple(size[d] for d in b)


FORMS = {
    "nn": Form((((1,), (0,)), ((), ())), ("y", None), (None, "x"), "mk,kn->mn"),
    "nt": Form((((1,), (1,)), ((), ())), ("y", None), ("x", None), "mk,nk->mn"),
    "tn": Form((((0,), (0,)), ((), ())), (None, "y"), (None, "x"), "km,kn->mn"),
    "tt": Form((((0,), (1,)), ((), ())), (None, "y"), ("x", None), "km,nk->mn"),
}


def operands(form: Form, m: int, k: int, n: int, dtype=np.float32) -> list[np.ndarray]:
    r = np.random.default_rng(m * 10007 + k * 101 + n)
    return [r.standard_normal(shape).astype(dtype) for shape in form.shapes(m, k, n)]


def product(form: Form, devices, **options):
    """The compiled product of two arrays laid out (y, x), its result too."""
    moves = ((("y", "x"), form.meet_a), (("y", "x"), form.meet_b))
    whole = lambda block: tuple(n * count for n, count in zip(block.shape, devices, strict=True))
    fun = lambda a, b: summa(a, b, form.numbers, moves, [whole(a), whole(b)], TILES, **options)
    return on_layouts(fun, devices, [("y", "x"), ("y", "x")], ("y", "x"))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (68, 76, 100), (4, 260, 132)], ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_equals_numpy_with_the_same_bits_on_every_device_mesh(form, sizes):
    a, b = operands(form, *sizes)
    results = [np.asarray(product(form, devices)(a, b)) for devices in GRIDS]
    exact = np.einsum(form.einsum, a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(results[0], exact, rtol=0, atol=2e-7 * sizes[1] + 1e-6)
    for devices, got in zip(GRIDS, results, strict=True):
        np.testing.assert_array_equal(got, results[0], err_msg=str(devices))


def chain(a: np.ndarray, b: np.ndarray, fused: bool) -> np.ndarray:
    """[m, k] and [k, n] float32: an output element adds its terms front to back, by fused multiply-adds or each rounded before."""
    out = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for column, row in zip(a.T.astype(np.float64), b.astype(np.float64), strict=True):  # products of float32 are exact in float64
        term = np.outer(column, row)
        out = (term + out).astype(np.float32) if fused else term.astype(np.float32) + out
    return out


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_an_output_element_adds_up_in_tile_order(device_grid, form):
    """The updates of SUMMA in place, panel after panel, are one chain of additions from the first tile to the last."""
    a, b = operands(form, 128, 256, 128)
    got = np.asarray(product(form, device_grid)(a, b))
    a, b = (a if form.numbers[0][0] == (1,) else a.T), (b if form.numbers[0][1] == (0,) else b.T)
    front_to_back = [chain(a, b, fused) for fused in (True, False)]  # which of them is the host's choice
    back_to_front = [chain(a[:, ::-1], b[::-1], fused) for fused in (True, False)]
    assert any(np.array_equal(got, want) for want in front_to_back)
    assert not any(np.array_equal(got, want) for want in back_to_front)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_integers_are_exact(device_grid, form):
    a, b = (np.round(x * 10).astype(np.int32) for x in operands(form, 12, 20, 8))
    np.testing.assert_array_equal(product(form, device_grid)(a, b), np.einsum(form.einsum, a, b))


def test_half_precision_may_sum_in_single(device_grid):
    form = FORMS["nn"]
    a, b = (x.astype(jnp.bfloat16) for x in operands(form, 32, 64, 32))
    got = product(form, device_grid, preferred_element_type=jnp.float32)(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_the_backward_pass_through_jax_equals_the_plain_one(device_grid, form):
    a, b = operands(form, 12, 20, 8)
    ct = np.random.default_rng(1).standard_normal((12, 8)).astype(np.float32)
    plain = lambda a, b: jnp.einsum(form.einsum, a, b, precision="highest")
    out, back = jax.vjp(product(form, device_grid), a, b)
    want, want_back = jax.vjp(plain, a, b)
    for got, expected in zip([out, *back(ct)], [want, *want_back(ct)], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_axis", [None, "x", "y"])
def test_batched_products_equal_numpy_on_every_device_mesh(batch_axis):
    """Batch over one axis, rows over the other."""
    rows = {"x": "y", "y": "x", None: "y"}[batch_axis]
    a, b = (np.random.default_rng(s).standard_normal(shape).astype(np.float32) for s, shape in ((0, (4, 12, 20)), (1, (4, 20, 28))))
    numbers = (((2,), (1,)), ((0,), (0,)))
    la, lb = (batch_axis, rows, None), (batch_axis, None, None)
    results = []
    for devices in GRIDS:
        fun = on_layouts(lambda a, b: summa(a, b, numbers, ((la, la), (lb, lb)), [a.shape, b.shape], TILES), devices, [la, lb], la)
        results.append(np.asarray(fun(a, b)))
    np.testing.assert_allclose(results[0], a @ b, rtol=1e-5, atol=1e-5)
    for devices, got in zip(GRIDS, results, strict=True):
        np.testing.assert_array_equal(got, results[0], err_msg=str(devices))


SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 31, 48, 64, 65, 96, 127, 128, 130, 192])


@given(st.sampled_from(sorted(FORMS)), SIZES, SIZES, st.sampled_from([1, 4, 16, 64, 100, 128, 256, 384, 768, 1024, 3072]), st.data())
@settings(max_examples=40)
@example("tn", 128, 128, 512, None)
@example("tn", 16, 192, 384, None)
@example("tt", 192, 128, 3072, None)
@example("nn", 192, 65, 256, None)
def test_an_elements_bits_do_not_depend_on_the_block_it_is_computed_in(name, m, n, k, data):
    form = FORMS[name]
    a, b = operands(form, m, k, n)
    (ca,), (cb,) = form.numbers[0]
    if data is None:
        rows, cols = slice(0, m // 2), slice(n // 2, n)
    else:
        r, c = data.draw(st.integers(0, m - 1)), data.draw(st.integers(0, n - 1))
        rows, cols = slice(r, data.draw(st.integers(r + 1, m))), slice(c, data.draw(st.integers(c + 1, n)))
    part_a = a[rows] if ca == 1 else a[:, rows]
    part_b = b[:, cols] if cb == 0 else b[cols]
    dot = jax.jit(lambda a, b: steady_dot(a, b, form.numbers))
    whole, part = np.asarray(dot(a, b)), np.asarray(dot(part_a, part_b))
    np.testing.assert_array_equal(part, whole[rows, cols])


@given(st.booleans(), st.booleans(), st.integers(1, 4), SIZES, SIZES, st.sampled_from([1, 4, 20, 64, 128, 200, 256, 768]), st.data())
def test_nor_where_there_is_a_batch(turn_a, turn_b, batch, m, n, k, data):
    r = np.random.default_rng(0)
    a, b = (r.standard_normal((batch, *shape)).astype(np.float32) for shape in ((m, k), (k, n)))
    some = slice(0, data.draw(st.integers(1, batch)))
    rows, cols = (slice(0, data.draw(st.integers(1, size))) for size in (m, n))
    turned = lambda x, turn: np.ascontiguousarray(x.swapaxes(1, 2)) if turn else x
    numbers = (((1 if turn_a else 2,), (2 if turn_b else 1,)), ((0,), (0,)))
    dot = jax.jit(lambda a, b: steady_dot(a, b, numbers))
    whole = np.asarray(dot(turned(a, turn_a), turned(b, turn_b)))
    part = np.asarray(dot(turned(a[some, rows], turn_a), turned(b[some, :, cols], turn_b)))
    np.testing.assert_array_equal(part, whole[some, rows, cols])
    np.testing.assert_allclose(whole, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept", [(), (1, 1)])
def test_nor_in_a_batch_of_products_of_vectors(kept):
    a, b = np.random.default_rng(0).standard_normal((2, 48, 200)).astype(np.float32)
    numbers = (((1 + len(kept[:1]),), (1,)), ((0,), (0,)))
    dot = jax.jit(lambda a, b: steady_dot(a.reshape(-1, *kept[:1], 200), b.reshape(-1, 200, *kept[1:]), numbers))
    np.testing.assert_array_equal(dot(a[:4], b[:4]), dot(a, b)[:4])
    np.testing.assert_allclose(np.ravel(dot(a, b)), (a * b).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "numbers",
    [(((2, 0), (1, 2)), ((), ())), (((0,), (2,)), ((), ())), (((), ()), ((), ())), (((2,), (1,)), ((1,), (0,))), (((), ()), ((1,), (0,)))],
    ids=str,
)
def test_any_dimension_numbers_give_the_shape_and_values_of_dot_general(numbers):
    r = np.random.default_rng(0)
    a, b = (r.standard_normal(shape).astype(np.float32) for shape in ((6, 5, 4), (5, 4, 6)))
    got = steady_dot(a, b, numbers)
    want = jax.lax.dot_general(a, b, numbers)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
