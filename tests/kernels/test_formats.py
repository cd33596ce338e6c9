"""Formats against an enumeration of all their values in exact fractions, and against numpy's and ml_dtypes' own."""

from __future__ import annotations

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from wsejax.kernels.formats import BFLOAT16, CB16, FLOAT16, Format, decode, encode, round_to

NATIVE = {FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}
ODD = [Format(4, 3), Format(5, 2, saturates=True), Format(6, 9, subnormals=False), Format(3, 4, subnormals=False, saturates=True)]


def value_of(code: int, form: Format) -> Fraction | float:
    """What a code means, by the definition of IEEE 754."""
    text = f"{code:0{form.bits}b}"
    sign, exponent, mantissa = text[0], int(text[1 : 1 + form.exponent_bits], 2), Fraction(int(text[1 + form.exponent_bits :], 2))
    mantissa /= 2**form.mantissa_bits
    if exponent == 2**form.exponent_bits - 1:
        return float("nan") if mantissa else float("-inf" if sign == "1" else "inf")
    bias = 2 ** (form.exponent_bits - 1) - 1
    lead, power = (1, exponent - bias) if exponent else (0, 1 - bias)
    size = (lead + mantissa) * Fraction(2) ** power
    if not exponent and not form.subnormals:
        size = Fraction(0)
    return -size if sign == "1" else size


def enumerated(form: Format) -> np.ndarray:
    """All values above or equal 0 that are finite, exactly, as float64, in the order of their codes."""
    top = (2**form.exponent_bits - 1) << form.mantissa_bits
    values = [value_of(code, form) for code in range(top)]
    assert all(Fraction(float(v)) == v for v in values)
    return np.array([float(v) for v in values])


def rounded_by_search(x: np.ndarray, form: Format) -> np.ndarray:
    """Nearest of the enumerated values, ties to the even code, by bisection in float64, where nothing here rounds."""
    whole = enumerated(Format(form.exponent_bits, form.mantissa_bits))
    below = 0.0 if form.subnormals else 2.0 ** (2 - 2 ** (form.exponent_bits - 1))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        size = np.abs(x.astype(np.float64))
    beyond = 2.0 ** (2 ** (form.exponent_bits - 1))  # where the next value would be
    ladder = np.append(whole, beyond)
    high = np.clip(np.searchsorted(ladder, size), 1, len(ladder) - 1)
    low = high - 1
    middle = (ladder[low] + ladder[high]) / 2
    pick = np.where((size > middle) | ((size == middle) & (high % 2 == 0)), high, low)
    found = ladder[pick]
    found = np.where(found < below, 0.0, found)
    found = np.where(found >= beyond, whole[-1] if form.saturates else np.inf, found)
    return np.where(np.isnan(x), np.nan, np.where(np.signbit(x), -found, found)).astype(np.float32)


def hard_numbers(form: Format, count: int) -> np.ndarray:
    """Random bits, and every value and tie of the format with both neighbours, of both signs."""
    values = enumerated(form)
    ties = np.append((values[1:] + values[:-1]) / 2, form.largest * (1 + 2.0 ** -(form.mantissa_bits + 2)))
    some = np.concatenate([values, ties]).astype(np.float32)
    some = np.concatenate([some, np.nextafter(some, np.float32(np.inf)), np.nextafter(some, np.float32(-np.inf))])
    random = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    tiny = np.arange(0, 2**23, 40_009, dtype=np.uint32).view(np.float32)  # subnormal numbers of float32
    ends = np.float32([np.inf, np.nan, np.finfo(np.float32).max])
    return np.concatenate([some, -some, random, tiny, -tiny, ends, -ends])


def same(a, b) -> bool:
    """Bit for bit, all NaNs alike."""
    a, b = np.asarray(a), np.asarray(b)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def test_every_code_of_cb16_has_the_value_that_its_bits_spell():
    codes = np.arange(2**16, dtype=np.uint16)
    want = np.array([float(value_of(int(code), CB16)) for code in codes], np.float32)
    want[2**15] = -0.0  # which fractions do not have
    values = np.asarray(decode(jnp.asarray(codes), CB16))
    assert same(values, want)
    again = np.asarray(encode(jnp.asarray(values), CB16))
    nan = np.isnan(values)
    np.testing.assert_array_equal(again[~nan], codes[~nan])
    assert set(again[nan] & 0x7FFF) == {0b0_111111_100000000}
    assert (values[0b0_111110_111111111], values[1]) == (CB16.largest, CB16.smallest) == (2.0**32 - 2.0**22, 2.0**-39)


@pytest.mark.parametrize("form", [CB16, FLOAT16, BFLOAT16, *ODD], ids=str)
def test_rounding_is_to_the_nearest_value_and_to_even(form):
    x = hard_numbers(form, 1_000_000 if form == CB16 else 100_000)
    assert same(round_to(jnp.asarray(x), form), rounded_by_search(x, form))


@pytest.mark.parametrize("form", NATIVE, ids=str)
def test_formats_that_numpy_has_are_its_own(form):
    x = hard_numbers(form, 300_000)
    with np.errstate(all="ignore"):
        want = x.astype(NATIVE[form])
    assert same(round_to(jnp.asarray(x), form), want.astype(np.float32))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.asarray(encode(jnp.asarray(x), form))[number], want.view(np.uint16)[number])
    codes = np.arange(2**16, dtype=np.uint16)
    assert same(decode(jnp.asarray(codes), form), codes.view(NATIVE[form]).astype(np.float32))


def test_stochastic_rounding_has_the_right_mean_and_keeps_what_is_a_value():
    x = np.float32([1 + 2.0**-11 + 2.0**-13, -(3 + 2.0**-10), 2.0**-39 / 3, -2.5 * 2.0**-39, 2.0**-40, 1.5, 0.0, 1e30, np.inf, np.nan])
    draws = 5_000
    got = np.asarray(jax.vmap(lambda key: round_to(x, CB16, key))(jax.random.split(jax.random.key(0), draws)))
    assert same(got[:, 5:], np.broadcast_to(np.float32([1.5, 0.0, np.inf, np.inf, np.nan]), (draws, 5)))
    inner, exact = got[:, :5].astype(np.float64), x[:5].astype(np.float64)
    step = np.where(np.abs(exact) > 2.0**-31, 2.0 ** (np.floor(np.log2(np.abs(exact))) - 9), 2.0**-39)
    assert (np.abs(inner - exact) < step).all(), "one of the two neighbours"
    error = np.abs(inner.mean(0) - exact) / step
    assert (error < 4 * 0.5 / np.sqrt(draws)).all(), "within four standard deviations"
    far_below = jax.vmap(lambda key: round_to(jnp.float32(2.0**-60), CB16, key))(jax.random.split(jax.random.key(1), draws))
    assert not np.asarray(far_below).any(), "a chance of one in two million each"


def test_the_derivative_passes_straight_through():
    slope = jax.grad(lambda x: (3 * round_to(x, CB16) ** 2).sum())(jnp.float32([1.0001]))
    np.testing.assert_array_equal(slope, 6 * round_to(jnp.float32([1.0001]), CB16))


def test_bad_formats_and_dtypes_are_refused():
    for bits in ((9, 7), (8, 8), (1, 4), (5, 0)):
        with pytest.raises(ValueError, match=re.escape(f"exponent_bits={bits[0]}, mantissa_bits={bits[1]}: give 2 to 8")):
            Format(*bits)
    with pytest.raises(TypeError, match="x is bfloat16: give float32"):
        round_to(jnp.zeros(2, jnp.bfloat16), CB16)
