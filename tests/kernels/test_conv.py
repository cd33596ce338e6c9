"""Convolution by patches is XLA's, in every form that it has, and its bits do not depend on how many images a device has."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

from wsejax.kernels import conv as kernel
from wsejax.kernels.conv import conv


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.data())
def test_equals_xla(data):
    draw = data.draw
    rank = draw(st.integers(1, 2))
    several = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]
    groups, batch_groups = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2)]))
    ins, outs, batch = (
        groups * draw(st.integers(1, 3)),
        groups * batch_groups * draw(st.integers(1, 2)),
        batch_groups * draw(st.integers(1, 2)),
    )
    space, window, strides, x_dil, w_dil = several(4, 9), several(1, 4), several(1, 3), several(1, 2), several(1, 2)
    padding = [(draw(st.integers(-1, 2)), draw(st.integers(-1, 2))) for _ in range(rank)]
    assume(all((n - 1) * d + 1 + sum(p) > (w - 1) * e for n, d, p, w, e in zip(space, x_dil, padding, window, w_dil, strict=True)))
    x, w = numbers(batch, ins, *space), numbers(outs, ins // groups, *window, seed=1)
    want = lax.conv_general_dilated(x, w, strides, padding, x_dil, w_dil, feature_group_count=groups, batch_group_count=batch_groups)
    np.testing.assert_allclose(conv(x, w, strides, padding, x_dil, w_dil, groups, batch_groups), want, rtol=1e-4, atol=1e-4)


def test_patches_by_index_are_those_by_slices(monkeypatch):
    x, w = numbers(2, 3, 9, 8), numbers(4, 3, 3, 2, seed=1)
    want = conv(x, w, (2, 1), ((1, 1), (0, 1)), (1, 1), (1, 2))
    monkeypatch.setattr(kernel, "SLICES", 0)
    np.testing.assert_array_equal(conv(x, w, (2, 1), ((1, 1), (0, 1)), (1, 1), (1, 2)), want)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_an_images_bits_do_not_depend_on_its_batch(groups):
    x, w = numbers(8, 8, 14, 14), numbers(16, 8 // groups, 3, 3, seed=1)
    run = jax.jit(lambda x: conv(x, w, (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), groups))
    whole = np.asarray(run(x))
    for size in (1, 2, 4):
        np.testing.assert_array_equal(np.concatenate([run(x[i : i + size]) for i in range(0, 8, size)]), whole)
