"""`wse.measure_activation_sparsity`: zeros and needless multiply-adds, against numpy and against brute force."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import wsejax as wse
from wsejax.compiler.skipped import MAGNITUDES, ActivationSparsity, measure_activation_sparsity

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
V = np.random.default_rng(2).standard_normal((6, 3)).astype(np.float32)
HIDDEN = X @ W


def top_two(h):
    values, at = lax.top_k(h, 2)
    return jnp.zeros_like(h).at[jnp.arange(h.shape[0])[:, None], at].set(values)


ZEROING = {
    "jax.nn.relu": jax.nn.relu,
    "maximum": lambda h: jnp.maximum(h, 0),
    "where": lambda h: jnp.where(h > 0, h, 0),
    "product with a condition": lambda h: h * (h > 0),
    "squared": lambda h: jax.nn.relu(h) ** 2,
    "dropout": lambda h: jnp.where(jax.random.bernoulli(jax.random.key(3), 0.4, h.shape), h / 0.4, 0),
    "the best two": top_two,
    "jit": jax.jit(jax.nn.relu),
    "remat": jax.checkpoint(jax.nn.relu),
    "clip": lambda h: jnp.clip(h, 0, 1),
    "cond": lambda h: lax.cond(h.sum() > 1e9, lambda h: h, jax.nn.relu, h),
    "scan": lambda h: lax.scan(lambda c, row: (c, jax.nn.relu(row)), 0, h)[1],
    "while": lambda h: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jax.nn.relu(s[1])), (0, h))[1],
}


@pytest.mark.parametrize("name", ZEROING)
def test_zeros_count_whatever_makes_them(name):
    zeroing = ZEROING[name]
    found = measure_activation_sparsity(lambda w, x: zeroing(x @ w["in"]) @ w["out"], {"in": W, "out": V}, X)
    first, second = found.products
    h = np.asarray(zeroing(HIDDEN))
    (read,) = second.activations
    assert (read.zeros, read.size) == (int((h == 0).sum()), h.size) and read.zeros > 0
    assert first.activations[0].zeros == first.skipped_macs_activation == 0
    assert (found.macs, found.skipped_macs_activation, found.skipped_macs_weight) == (5 * 4 * 6 + 5 * 6 * 3, 3 * read.zeros, 0)
    edges = np.digitize(np.abs(h[h != 0].astype(np.float64)), MAGNITUDES)
    assert read.magnitudes == (read.zeros, *np.bincount(edges, minlength=len(MAGNITUDES) + 1))


def test_a_gelu_makes_no_zeros_and_says_so():
    found = measure_activation_sparsity(lambda w, x: jax.nn.gelu(x @ w) @ V, W, X)
    assert found.zero_fraction == 0 and found.skipped_macs_either == 0


def test_layers_of_a_scan_are_counted_apart():
    masks = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]], np.float32)
    weights = np.stack([np.eye(4, dtype=np.float32)] * 3)

    def layers(weights, x, masks):
        through = lambda h, layer: ((h * layer[1][None]) @ layer[0], None)
        return lax.scan(jax.checkpoint(through), x, (weights, masks))[0]

    found = measure_activation_sparsity(layers, weights, np.abs(X) + 1, masks)
    assert [product.trips[0][1] for product in found.products] == [0, 1, 2]
    assert [product.activations[0].zeros for product in found.products] == [0, 10, 15]
    through = lambda h, layer: ((h * layer[1][None]) @ layer[0], h)
    last_first = lambda weights, x, masks: lax.scan(through, x, (weights, masks), reverse=True)
    backward = measure_activation_sparsity(last_first, weights, np.abs(X) + 1, masks)
    assert [product.trips[0][1] for product in backward.products] == [2, 1, 0]
    assert [product.activations[0].zeros for product in backward.products] == [15, 15, 15]


def test_a_loop_runs_as_often_as_its_condition_holds():
    step = lambda w, x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jax.nn.relu(s[1] @ w)), (0, x))[1]
    found = measure_activation_sparsity(step, W[:, :4], X)
    h, zeros = X, []
    for _ in range(3):
        zeros.append(int((h == 0).sum()))
        h = np.maximum(h @ W[:, :4], 0)
    assert [product.activations[0].zeros for product in found.products] == zeros


def test_weights_are_what_depends_on_no_other_argument():
    mask = np.indices(W.shape).sum(0) % 2 == 0
    found = measure_activation_sparsity(lambda w, x: x @ (w * mask).astype(jnp.bfloat16).astype(jnp.float32), W, X)
    assert (found.skipped_macs_weight, found.skipped_macs_activation) == (5 * 12, 0)
    assert found.products[0].operands[1].zeros == 12 and found.products[0].operands[1].is_weight
    given_apart = measure_activation_sparsity(lambda w, m, x: x @ (w * m), W, mask, X, weights_argnums=0)
    assert (given_apart.skipped_macs_weight, given_apart.skipped_macs_activation) == (0, 5 * 12)
    closed_over = measure_activation_sparsity(lambda x: x @ jnp.asarray(W * mask), X, weights_argnums=())
    assert (closed_over.skipped_macs_weight, closed_over.skipped_macs_activation) == (5 * 12, 0)
    table = measure_activation_sparsity(lambda w, tokens: w[tokens] @ W, np.eye(4, dtype=np.float32), np.array([0, 1, 1]))
    assert table.products[0].activations[0].zeros == 9, "rows of a table are what tokens have become"


def test_a_gradient_reads_what_the_forward_pass_has_made():
    loss = lambda w, x: (jax.nn.relu(x @ w["in"]) @ w["out"]).sum()
    found = measure_activation_sparsity(jax.grad(loss), {"in": W, "out": V}, X)
    zeros = int((HIDDEN <= 0).sum())
    assert zeros in [operand.zeros for product in found.products[2:] for operand in product.activations]
    assert found.skipped_macs_either >= zeros * 3


def test_functions_of_wse_jit_are_looked_into():
    wafer = wse.Wafer(wse.WSE3.scaled(4, 4), tiles=(2, 2), devices=(1, 1))
    f = lambda w, x: jax.nn.relu(x @ w) @ V
    assert measure_activation_sparsity(wse.jit(f, wafer), W, X).macs == measure_activation_sparsity(jax.jit(f), W, X).macs


# ---- counts against brute force --------------------------------------------------------------------------------------
def assert_counts(found: ActivationSparsity, terms: list[tuple[bool, bool]]) -> None:
    """`terms`: of every multiply-add, whether its activation and its weight are zero."""
    assert found.macs == len(terms)
    assert found.skipped_macs_activation == sum(a for a, _ in terms)
    assert found.skipped_macs_weight == sum(w for _, w in terms)
    assert found.skipped_macs_either == sum(a or w for a, w in terms)


@st.composite
def products(draw: st.DrawFn):
    """Two arrays with zeros, and dimension numbers: each dimension is of batch, contracted, or kept, in any order."""
    sizes = st.integers(1, 3)
    batch, contracted, kept_a, kept_b = (draw(st.lists(sizes, max_size=2)) for _ in range(4))
    both = len(batch) + len(contracted)
    at_a, at_b = draw(st.permutations(range(both + len(kept_a)))), draw(st.permutations(range(both + len(kept_b))))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    arrays = []
    for at, kept in ((at_a, kept_a), (at_b, kept_b)):
        shape = np.zeros(len(at), int)
        shape[list(at)] = [*batch, *contracted, *kept]
        arrays.append((rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))).astype(np.float32))
    cut = lambda at: (tuple(at[len(batch) : both]), tuple(at[: len(batch)]))
    (ca, ba), (cb, bb) = cut(at_a), cut(at_b)
    return *arrays, ((ca, cb), (ba, bb))


@settings(max_examples=20)
@given(products())
def test_skipped_multiply_adds_are_those_of_brute_force(case):
    a, b, ((ca, cb), (ba, bb)) = case
    kept = lambda x, dims: [d for d in range(x.ndim) if d not in dims]
    ka, kb = kept(a, (*ca, *ba)), kept(b, (*cb, *bb))
    terms = []
    for place in itertools.product(*(range(a.shape[d]) for d in (*ba, *ca, *ka)), *(range(b.shape[d]) for d in kb)):
        at_a = dict(zip((*ba, *ca, *ka), place, strict=False))
        at_b = dict(zip((*bb, *cb), place, strict=False)) | dict(zip(kb, place[a.ndim :], strict=True))
        terms.append((bool(a[tuple(at_a[d] for d in range(a.ndim))] == 0), bool(b[tuple(at_b[d] for d in range(b.ndim))] == 0)))
    found = measure_activation_sparsity(lambda b, a: lax.dot_general(a, b, ((ca, cb), (ba, bb))), b, a)
    assert_counts(found, terms)
    assert found.products[0].operands[0].zeros == int((a == 0).sum())


@pytest.mark.parametrize("groups, stride, dilation, padding", [(1, 1, 1, 1), (2, 2, 1, 0), (1, 1, 2, 2), (4, 2, 1, 2)])
def test_convolutions_count_what_is_not_padding(groups, stride, dilation, padding):
    rng = np.random.default_rng(groups)
    x = (rng.random((2, 4, 6)) < 0.6).astype(np.float32)  # batch, features, places
    w = (rng.random((4, 4 // groups, 3)) < 0.5).astype(np.float32)
    how = {"rhs_dilation": (dilation,), "feature_group_count": groups, "dimension_numbers": ("NCH", "OIH", "NCH")}
    conv = lambda w, x: lax.conv_general_dilated(x, w, (stride,), [(padding, padding)], **how)
    terms, out = [], conv(w, x).shape
    for n, o, at, i, k in itertools.product(*map(range, out), range(w.shape[1]), range(3)):
        place = at * stride + k * dilation - padding
        if 0 <= place < x.shape[2]:
            terms.append((bool(x[n, o // (4 // groups) * w.shape[1] + i, place] == 0), bool(w[o, i, k] == 0)))
    assert_counts(measure_activation_sparsity(conv, w, x), terms)


def test_the_report_is_a_table_and_data():
    found = measure_activation_sparsity(lambda w, x: jax.nn.relu(x @ w) @ V, W, X)
    data = json.loads(json.dumps(found.to_dict()))
    zeros = int((HIDDEN <= 0).sum())
    assert data["skipped_macs_activation"] == 3 * zeros and data["zero_fraction"] == zeros / (20 + 30)
    assert [row["zeros"] for row in data["rows"]] == [0, zeros] and "max at" in data["rows"][1]["made_by"]
    assert all(sum(row["magnitudes"]) == row["size"] == math.prod(row["shape"]) for row in data["rows"])
    assert f"{zeros / 30:.1%}" in str(found) and "test_skipped.py" in str(found)


def test_a_value_that_is_no_number_is_no_zero():
    found = measure_activation_sparsity(lambda w, x: x @ w, W, np.array([[np.nan, np.inf, -0.0, 1e-9]], np.float32))
    (read,) = found.products[0].activations
    assert read.zeros == 1 and read.magnitudes[1] == 1 and read.magnitudes[-1] == 2


ERRORS = {
    "no product": (lambda: measure_activation_sparsity(lambda w, x: x + w, X, X), ValueError, "no product"),
    "integers": (lambda: measure_activation_sparsity(lambda t, w: w[t] @ V, np.arange(3), V.T), ValueError, "holds int"),
    "number": (lambda: measure_activation_sparsity(lambda w, x: x @ w, W, X, weights_argnums=2), ValueError, "weights_argnums has 2"),
    "call": (lambda: measure_activation_sparsity(lambda *a: a[1] @ a[0], W, X, weights_argnums=5), ValueError, "has 5, the call has 2"),
    "weights alone": (lambda: measure_activation_sparsity(lambda x: x @ W, X), ValueError, "none reads an activation"),
    "shapes": (lambda: measure_activation_sparsity(lambda w, x: x @ w, W, jax.ShapeDtypeStruct((5, 4), "float32")), TypeError, "no values"),
    "traced": (lambda: jax.jit(lambda x: measure_activation_sparsity(lambda w, x: x @ w, W, x))(X), TypeError, "outside of jax.jit"),
    "callback": (lambda: measure_activation_sparsity(lambda w, x: jax.debug.print("{}", x) or x @ w, W, X), wse.UnsupportedOpError, "pure"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_measured_is_refused(name):
    wrong, kind, hint = ERRORS[name]
    with pytest.raises(kind, match=hint):
        wrong()


def test_what_nobody_looked_into_is_listed():
    sizes = jnp.array([2, 3], jnp.int32)
    f = lambda w, x: lax.ragged_dot(x @ w, jnp.stack([V, V]), sizes)
    found = measure_activation_sparsity(f, W, X)
    assert [name for name, _ in found.not_counted] == ["ragged_dot_general"] and len(found.products) == 1
    assert "not counted: ragged_dot" in str(found)
