"""Prices of the programs for PEs: functions of a machine that can be jitted, mapped and differentiated, and that know what is more work."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsejax.hardware import CS1, CS2, CS3
from wsejax.kernels.pe import fft, krylov, order, sparse, stencil
from wsejax.kernels.price import Price

GRID = (6, 8)
PRICES = {
    "halo": lambda s, n: stencil.halo_price(s, GRID, (n, n), stencil.star(2)),
    "stencil": lambda s, n: stencil.stencil_price(s, GRID, (n, n), stencil.star(2)),
    "stencil_3d": lambda s, n: stencil.stencil_price(s, GRID, (2, 2), stencil.star(4, 3), 4, n),
    "spmm": lambda s, n: sparse.spmm_price(s, GRID, 100 * n, 4 * n, 6),
    "spmv": lambda s, n: sparse.spmv_price(s, GRID, 100 * n, 4 * n),
    "cg": lambda s, n: krylov.cg_price(s, GRID, (1, 1), n, 3),
    "bicgstab": lambda s, n: krylov.bicgstab_price(s, GRID, (1, 1), n, 3, 2),
    "fft1": lambda s, n: fft.fft1_price(s, GRID, "x", 8 * n * n, n),
    "fft2": lambda s, n: fft.fft2_price(s, GRID, (n, n)),
    "fft3": lambda s, n: fft.fft3_price(s, GRID, (2, 2, n)),
    "sort": lambda s, n: order.sort_price(s, GRID, n),
    "scan": lambda s, n: order.scan_price(s, GRID, n),
    "histogram": lambda s, n: order.histogram_price(s, GRID, n, 10 * n),
    "transpose": lambda s, n: order.transpose_price(s, GRID, (n, n), 6 * n),
}
FIELDS = [f.name for f in dataclasses.fields(Price)]
named = pytest.mark.parametrize("name", PRICES)


@named
@pytest.mark.parametrize("system", [CS1, CS2, CS3], ids=lambda s: s.name)
def test_no_part_is_negative_and_the_parts_do_not_exceed_the_whole(name, system):
    price = PRICES[name](system, 16)
    assert all(np.isfinite(getattr(price, f)) and getattr(price, f) >= 0 for f in FIELDS)
    assert max(price.compute_cycles, price.fabric_cycles, price.wait_cycles) <= price.cycles
    assert price.cycles <= price.compute_cycles + price.fabric_cycles + price.wait_cycles + 1e-6
    assert price.cycles > 0 and price.byte_hops > 0


@named
def test_twice_the_size_is_more_work_and_at_most_some_times_as_long(name):
    small, large = (PRICES[name](CS3, n) for n in (16, 32))
    assert small.cycles < large.cycles < 6 * small.cycles
    assert small.byte_hops <= large.byte_hops and small.flops <= large.flops


@named
def test_under_jit_it_is_the_same_number(name):
    plain, jitted = PRICES[name](CS3, 16), jax.jit(lambda s: PRICES[name](s, 16))(CS3)
    for f in FIELDS:
        np.testing.assert_allclose(getattr(jitted, f), getattr(plain, f), rtol=1e-5, atol=1e-3, err_msg=f)


@named
def test_mapped_over_machines_and_differentiated(name):
    """A wavelet that takes longer costs at least as much, and by the slope that the gradient says."""
    cycles = lambda beat: PRICES[name](CS3.replace(wavelet_cycles=beat), 16).cycles
    beats = jnp.array([1.0, 1.5, 2.0, 4.0])
    mapped = jax.vmap(cycles)(beats)
    np.testing.assert_allclose(mapped, [cycles(b) for b in beats.tolist()], rtol=1e-5)
    assert (jnp.diff(mapped) >= 0).all()
    slope = (cycles(1.5 + 1e-3) - cycles(1.5 - 1e-3)) / 2e-3
    np.testing.assert_allclose(jax.grad(cycles)(1.5), slope, rtol=1e-2, atol=1e-2)


@named
def test_a_slower_start_of_instructions_costs_what_the_gradient_says(name):
    gradient = jax.grad(lambda launch: PRICES[name](CS3.replace(launch_cycles=launch), 16).cycles)(16.0)
    assert gradient > 0
    more = PRICES[name](CS3.replace(launch_cycles=17.0), 16).cycles - PRICES[name](CS3, 16).cycles
    np.testing.assert_allclose(gradient, more, rtol=1e-3)


def test_defects_stretch_what_travels_and_not_what_is_sent():
    bent = CS3.replace(dilation=1.3, congestion=2.0)
    for name, price in PRICES.items():
        assert price(bent, 16).cycles >= price(CS3, 16).cycles, name
        assert price(bent, 16).byte_hops == pytest.approx(price(CS3, 16).byte_hops), name
        assert price(bent, 16).compute_cycles == price(CS3, 16).compute_cycles, name


def test_a_stencil_costs_no_more_on_a_larger_grid_and_nothing_travels_on_one_pe():
    """Neighbours alone talk: weak scaling is flat from three PEs a side on."""
    of = lambda *grid: stencil.stencil_price(CS2, grid, (8, 8), stencil.star(2))
    assert of(3, 3).cycles == pytest.approx(of(700, 900).cycles, rel=1e-3)
    assert of(1, 1).byte_hops == 0 and of(1, 1).fabric_cycles == 0


def test_conflicts_cost_what_is_said():
    slow = lambda extra: stencil.stencil_price(CS2, GRID, (30, 30), stencil.star(2), conflict_cycles=extra).cycles
    assert slow(1.0) - slow(0.0) == pytest.approx(4 * 900)


def test_twice_as_many_iterations_take_twice_as_long():
    once, twice, thrice = (krylov.bicgstab_price(CS2, GRID, (1, 1), 64, n).cycles for n in (1, 2, 3))
    assert thrice - twice == pytest.approx(twice - once)
