"""What is said of errors beside a modelled time: that it covers the time, and names groups that exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import wsejax as wse
from wsejax.cost.errors import model_error
from wsejax.cost.validation import groups
from wsejax.report.errors import KERNELS, MOVING, WORDS, error_of, errors_text, kernel_errors


def cost_of(function, *shapes: tuple[int, ...]) -> wse.Cost:
    wafer = wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1))
    return wse.cost(wse.jit(function, wafer).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)))


def test_every_kernel_counts_once():
    cost = cost_of(lambda a, b: jnp.cumsum(jax.nn.softmax(a @ b) * 2, 0)[::2], (256, 128), (128, 512))
    errors = kernel_errors(cost)
    assert sum(share for share, _ in errors.values()) == pytest.approx(1)
    shares = [share for share, _ in errors.values()]
    assert shares == sorted(shares, reverse=True)
    assert {WORDS["GEMM, local"], MOVING, WORDS["Reduction"], WORDS["PE functions"]} <= set(errors)


def test_of_a_product_only_what_pes_compute_is_held_against_products_in_pes():
    cost = cost_of(jnp.matmul, (2048, 2048), (2048, 2048))
    errors = kernel_errors(cost)
    inside = float(cost.price.compute_cycles) / float(cost.price.cycles)
    assert set(errors) == {WORDS["GEMM, local"], MOVING} and 0 < inside < 1
    assert errors[WORDS["GEMM, local"]] == (pytest.approx(inside), str(model_error("GEMM, local")))
    assert errors[MOVING] == (pytest.approx(1 - inside), "no published point to hold it against")


def test_whole_steps_are_named_only_where_something_is_trained():
    errors = kernel_errors(cost_of(jnp.tanh, (256, 128)))
    whole = str(model_error("whole programs"))
    (parts,) = errors_text(errors, trains=False)
    assert whole not in parts and WORDS["PE functions"] in parts
    of_step, again = errors_text(errors, trains=True)
    assert whole in of_step and again == parts


def test_groups_that_are_named_exist():
    assert {group for _, group in KERNELS} == set(WORDS) <= {g.name for g in groups()}


def test_where_nothing_was_measured_it_says_so():
    assert "no published point" in error_of("some group that nobody measured")
