"""What is said of errors beside a modelled time: that it covers the time, and names groups that exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import wsejax as wse
from wsejax.cost.errors import model_error
from wsejax.cost.validation import groups
from wsejax.report.errors import KERNELS, error_of, errors_text, kernel_errors


def cost_of(function, *shapes: tuple[int, ...]) -> wse.Cost:
    wafer = wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1))
    return wse.cost(wse.jit(function, wafer).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)))


def test_every_kernel_counts_once():
    cost = cost_of(lambda a, b: jnp.cumsum(jax.nn.softmax(a @ b) * 2, 0)[::2], (256, 128), (128, 512))
    errors = kernel_errors(cost)
    assert sum(share for share, _ in errors.values()) == pytest.approx(1)
    shares = [share for share, _ in errors.values()]
    assert shares == sorted(shares, reverse=True) and {"GEMM, local", "Reduction", "PE functions"} <= set(errors)


def test_a_product_is_held_against_products():
    errors = kernel_errors(cost_of(jnp.matmul, (2048, 2048), (2048, 2048)))
    assert list(errors) == ["GEMM, local"]
    assert errors_text(errors).endswith(str(model_error("GEMM, local"))) and str(model_error("whole programs")) in errors_text(errors)


def test_groups_that_are_named_exist():
    assert {group for _, group in KERNELS} <= {g.name for g in groups()}


def test_where_nothing_was_measured_it_says_so():
    assert "no published point" in error_of("some group that nobody measured")
