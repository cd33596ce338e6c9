"""How places are told apart, against the papers' formulas written plainly."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.positions import RopeScaling, Rotary, alibi_slopes, relative_bucket, rotate

DIM, KEPT = 12, 4  # features that are turned, and that are not
PLACES = np.array([[0, 1, 2, 17, 300], [5, 5, 40, 3, 0]])
PLAIN = Rotary(width=DIM)
WAYS = {
    "plain": PLAIN,
    "interleaved": Rotary(width=DIM, interleaved=True),
    "base": Rotary(width=DIM, base=500.0),
    "whole": Rotary(width=DIM + KEPT),
    "linear": Rotary(width=DIM, scaling=RopeScaling(kind="linear", factor=4.0)),
    "llama3": Rotary(width=DIM, scaling=RopeScaling(kind="llama3", factor=8.0, original_context=64)),
    "yarn": Rotary(width=DIM, scaling=RopeScaling(kind="yarn", factor=4.0, original_context=64)),
}


def values(seed: int, seq: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, seq, 3, DIM + KEPT)).astype(np.float32)


@functools.cache
def turned(rotary: Rotary):
    return jax.jit(lambda x, at: rotate(x, at, rotary))


def on_the_plane(rotary: Rotary, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Each pair is a complex number, times e^(i place frequency); in float64."""
    frequencies, factor = rotary.frequencies()
    pairs, half = rotary.width // 2, rotary.width // 2
    places = [(2 * i, 2 * i + 1) if rotary.interleaved else (i, i + half) for i in range(pairs)]
    out = x.astype(np.float64)
    for i, (a, b) in enumerate(places):
        number = (x[..., a] + 1j * x[..., b].astype(np.float64)) * factor * np.exp(1j * at[:, :, None] * np.float64(frequencies[i]))
        out[..., a], out[..., b] = number.real, number.imag
    return out


@pytest.mark.parametrize("way", WAYS)
def test_pairs_are_turned_by_place_times_frequency(way):
    x = values(0)
    np.testing.assert_allclose(turned(WAYS[way])(x, PLACES), on_the_plane(WAYS[way], x, PLACES), atol=2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_norms_are_kept_and_what_is_not_turned_stays(way):
    rotary, x = WAYS[way], values(1)
    got, width = np.asarray(turned(rotary)(x, PLACES)), rotary.width
    factor = rotary.frequencies()[1]
    np.testing.assert_allclose(np.linalg.norm(got[..., :width], axis=-1), factor * np.linalg.norm(x[..., :width], axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(got[..., width:], x[..., width:])
    np.testing.assert_allclose(turned(rotary)(x, 0 * PLACES)[..., :width], factor * x[..., :width], rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@given(seed=st.integers(0, 99), shift=st.integers(1, 500))
def test_products_depend_on_the_difference_of_places_alone(way, seed, shift):
    q, k = values(seed), values(seed + 100)
    at, other = PLACES, PLACES[:, ::-1].copy()
    product = lambda by: (turned(WAYS[way])(q, at + by) * turned(WAYS[way])(k, other + by)).sum(-1)
    np.testing.assert_allclose(product(0), product(shift), atol=2e-3)


def test_interleaved_pairs_are_halves_in_another_order():
    order = np.r_[np.arange(DIM).reshape(2, DIM // 2).T.ravel(), DIM : DIM + KEPT]
    x = values(2)
    want = np.asarray(turned(PLAIN)(x, PLACES))[..., order]
    np.testing.assert_array_equal(turned(WAYS["interleaved"])(x[..., order], PLACES), want)


def test_low_precision_comes_back_as_it_went_in_and_is_turned_in_float32():
    x = jnp.asarray(values(3)).astype(jnp.bfloat16)
    got = turned(PLAIN)(x, PLACES)
    assert got.dtype == jnp.bfloat16
    want = turned(PLAIN)(x.astype(jnp.float32), PLACES).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


# ---- scalings --------------------------------------------------------------------------------------------------------
def plain_frequencies(width: int, base: float = 1e4) -> np.ndarray:
    return base ** -(np.arange(0, width, 2) / width)


def test_frequencies_are_powers_of_the_base():
    np.testing.assert_allclose(Rotary(width=64, base=500.0).frequencies()[0], plain_frequencies(64, 500.0), rtol=1e-6)
    assert Rotary(width=64).frequencies()[1] == 1.0


@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0])
def test_linear_scaling_divides_places(factor):
    scaled = Rotary(width=64, scaling=RopeScaling(kind="linear", factor=factor))
    np.testing.assert_allclose(scaled.frequencies()[0], plain_frequencies(64) / factor, rtol=1e-6)
    whole = Rotary(width=DIM, scaling=RopeScaling(kind="linear", factor=4.0))
    np.testing.assert_allclose(turned(whole)(values(4), 4 * PLACES), turned(PLAIN)(values(4), PLACES), atol=1e-5)


def test_dynamic_scaling_changes_nothing_within_the_context():
    dynamic = Rotary(width=64, scaling=RopeScaling(kind="dynamic", factor=4.0, original_context=2048))
    np.testing.assert_array_equal(dynamic.frequencies()[0], Rotary(width=64).frequencies()[0])


@pytest.mark.parametrize(("low", "high", "context", "factor"), [(1.0, 4.0, 8192, 8.0), (2.0, 3.0, 512, 32.0)])
def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between(low, high, context, factor):
    """The reference's three cases, by the length of the wave."""
    scaling = RopeScaling(kind="llama3", factor=factor, original_context=context, low_frequency_factor=low, high_frequency_factor=high)
    got, sharper = Rotary(width=128, base=5e5, scaling=scaling).frequencies()
    seen = set()
    for have, plain in zip(got, plain_frequencies(128, 5e5), strict=True):
        wave = 2 * math.pi / plain
        if wave < context / high:
            band, want = "short", plain
        elif wave > context / low:
            band, want = "long", plain / factor
        else:
            smooth = (context / wave - low) / (high - low)
            band, want = "between", (1 - smooth) * plain / factor + smooth * plain
            assert plain / factor < want < plain
        seen.add(band)
        assert have == pytest.approx(want, rel=1e-5), (band, wave)
    assert seen == {"short", "between", "long"} and sharper == 1.0


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_keeps_pairs_that_turn_often_and_stretches_those_that_turn_seldom(truncate):
    context, factor, fast, slow = 4096, 16.0, 32.0, 1.0
    scaling = RopeScaling(kind="yarn", factor=factor, original_context=context, truncate=truncate)
    got, sharper = Rotary(width=128, scaling=scaling).frequencies()
    # the pair, not always a whole one, that turns so often in the context: context base^(-2 pair / width) = 2 pi turns
    pair = lambda turns: 128 * math.log(context / (2 * math.pi * turns)) / (2 * math.log(1e4))
    low, high = (math.floor(pair(fast)), math.ceil(pair(slow))) if truncate else (pair(fast), pair(slow))
    assert 5 < low < high < 59
    for i, (have, plain) in enumerate(zip(got, plain_frequencies(128), strict=True)):
        if i <= low:
            want = plain
        elif i >= high:
            want = plain / factor
        else:
            share = (i - low) / (high - low)
            want = plain * (1 - share) + plain / factor * share
        assert have == pytest.approx(want, rel=1e-5), i
    assert sharper == pytest.approx(0.1 * math.log(factor) + 1)


def test_yarns_sharpness_comes_from_what_is_said_of_it():
    yarn = lambda **more: Rotary(width=8, scaling=RopeScaling(kind="yarn", original_context=64, **more)).frequencies()
    assert yarn(factor=4.0, attention_factor=1.25)[1] == 1.25
    small, large = (0.1 * m * math.log(4.0) + 1 for m in (0.7, 1.3))
    assert yarn(factor=4.0, mscale=0.7, mscale_all_dim=1.3)[1] == pytest.approx(small / large)
    assert yarn(factor=4.0, mscale=0.7)[1] == pytest.approx(0.1 * math.log(4.0) + 1)  # one alone is of no effect, as in the reference
    frequencies, sharper = yarn(factor=1.0)
    assert sharper == 1.0
    np.testing.assert_allclose(frequencies, plain_frequencies(8), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rotary(width=7), "width=7.*even"),
        (lambda: Rotary(width=0), "width=0.*even"),
        (lambda: RopeScaling(kind="llama3", factor=8.0), "original_context=None: llama3"),
        (lambda: RopeScaling(kind="yarn", factor=8.0), "original_context=None: yarn"),
        (lambda: RopeScaling(kind="linear", factor=0.5), "factor=0.5"),
    ],
)
def test_bad_positions_name_their_field(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ---- ALiBi and T5 ----------------------------------------------------------------------------------------------------
def slopes_of_the_paper(n: int) -> list[float]:
    """Press et al. 2022, as in the authors' code."""
    if math.log2(n).is_integer():
        start = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [start * start**i for i in range(n)]
    below = 2 ** math.floor(math.log2(n))
    return slopes_of_the_paper(below) + slopes_of_the_paper(2 * below)[0::2][: n - below]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 32, 40, 64, 71, 112])
def test_alibi_slopes_are_the_papers(heads):
    np.testing.assert_allclose(alibi_slopes(heads), slopes_of_the_paper(heads), rtol=1e-6)
    assert alibi_slopes(heads).dtype == np.float32


@pytest.mark.parametrize("heads", [1, 4, 12, 112])
@pytest.mark.parametrize("bias_max", [4.0, 8.0])
def test_alibi_slopes_are_mpts_too(heads, bias_max):
    """llm-foundry writes the rule down otherwise: those of the power above, odd ones first."""
    above = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** -(np.arange(1, above + 1) * bias_max / above)
    if above != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    np.testing.assert_array_equal(alibi_slopes(heads, bias_max), slopes.astype(np.float32))


def bucket_of(distance: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, section 2.1, in whole numbers: one bucket each up to half of them, then by logarithm, then one for the rest."""
    ahead = 0
    if bidirectional:
        buckets //= 2
        ahead = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return ahead + distance
    steps, bucket = buckets - exact, exact
    # log(distance / exact) / log(max / exact) * steps >= n, without logarithms
    while bucket + 1 < buckets and distance**steps * exact ** (bucket + 1 - exact) >= max_distance ** (bucket + 1 - exact) * exact**steps:
        bucket += 1
    return ahead + bucket


SIZES = [(32, 128), (8, 12), (16, 64), (32, 256), (4, 8)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), SIZES)
def test_relative_buckets_are_the_papers(bidirectional, buckets, furthest):
    how = {"bidirectional": bidirectional, "buckets": buckets, "max_distance": furthest}
    distances = np.arange(-2 * furthest, 2 * furthest + 1)
    got = np.asarray(jax.jit(functools.partial(relative_bucket, **how))(distances))
    np.testing.assert_array_equal(got, [bucket_of(int(d), bidirectional, buckets, furthest) for d in distances])
    assert got.min() == 0 and got.max() == buckets - 1 and got.dtype == np.int32
    behind = got[distances <= 0][::-1]
    assert (np.diff(behind) >= 0).all()  # further is no earlier bucket
    assert (behind[furthest:] == behind[-1]).all()
    ahead = got[distances > 0]
    if bidirectional:
        np.testing.assert_array_equal(ahead, got[distances < 0][::-1] + buckets // 2)
    else:
        assert (ahead == 0).all() and got[distances == 0] == 0
