"""Work as data: finite prices for all sizes, the same traced as eager, and never less than the machine's limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import wsejax as wse
from wsejax.hardware import CS2, CS3
from wsejax.kernels.price import Price
from wsejax.kernels.work import Alone, Elementwise, Gather, Product, Reduction, Shift, Window

sizes = st.integers(1, 300_000)
few = st.integers(1, 64)
axes = st.sampled_from(["y", "x"])
WORK = st.one_of(
    st.builds(Elementwise, sizes, st.sampled_from([1, 2, 4, 8]), few, sizes, sizes),
    st.builds(Product, sizes, sizes, sizes, st.sampled_from([2, 4, 8]), st.integers(1, 5000)),
    st.builds(Reduction, axes, sizes, sizes, st.sampled_from([2, 4]), st.sampled_from(["chain", "tree", "two_phase"])),
    st.builds(Gather, axes, sizes, sizes),
    st.builds(Window, axes, sizes, few, sizes),
    st.builds(Shift, axes, few, few, sizes),
)
PRICE = jax.jit(lambda work, system: work.price(system))


@settings(max_examples=80, deadline=None)
@given(WORK, st.sampled_from([CS2, CS3, CS3.replace(rows=1.0, cols=1.0), CS3.replace(rows=7.0, cols=3.0)]))
def test_prices_are_finite_and_no_part_is_more_than_all(work, system) -> None:
    price = work.price(system)
    parts = (price.compute_cycles, price.fabric_cycles, price.wait_cycles)
    assert all(0 <= part < float("inf") for part in (*parts, price.cycles, price.flops, price.byte_hops, price.sram_bytes))
    assert max(parts) <= price.cycles * (1 + 1e-9) <= sum(parts) * (1 + 1e-6) + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.builds(Product, sizes, sizes, sizes, st.sampled_from([2, 4]), st.integers(1, 5000)))
def test_no_product_beats_the_busy_lanes(work) -> None:
    price = work.price(CS3)
    rate = CS3.gemm_fp16_fma_per_cycle if work.itemsize_bytes == 2 else CS3.gemm_fp32_fma_per_cycle
    assert price.flops == pytest.approx(2.0 * work.m * work.k * work.n * work.batch)
    assert price.cycles >= work.flops / 2 / rate / CS3.pes * (1 - 1e-9)


@pytest.mark.parametrize(
    "work",
    [
        Product(4096, 4096, 4096, 2),
        Product(1, 4096, 14336, 2),
        Product(2048, 128, 2048, 2, batch=768),
        Reduction("x", 4096, 8192, 4, "two_phase"),
        Gather("y", 4096, 1 << 20),
        Elementwise(10_000_000, 4, 2, 5_000_000, 10_000_000),
        Window("x", 5000, 2, 4000),
        Alone(Elementwise(1000, 4)),
    ],
    ids=lambda w: type(w).__name__,
)
def test_traced_as_eager(work) -> None:
    eager, traced = work.price(CS3), PRICE(work, CS3)
    assert float(traced.cycles) == pytest.approx(eager.cycles, rel=1e-4)
    assert float(traced.byte_hops) == pytest.approx(eager.byte_hops, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, st.sampled_from([2, 4]), st.sampled_from([(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)]))
def test_more_pes_are_hardly_ever_slower(m: int, k: int, n: int, itemsize: int, grown: tuple[float, float]) -> None:
    """A product takes the part of the grid that suits it; whole tiles may fit a little worse."""
    small, work = CS3.replace(rows=200.0, cols=150.0), Product(m, k, n, itemsize)
    large = small.replace(rows=200.0 * grown[0], cols=150.0 * grown[1])
    assert work.price(large).cycles <= 1.25 * work.price(small).cycles


def test_small_products_stay_near_one_another() -> None:
    """Not across the wafer and back: a thousandth of its diameter and less."""
    assert Product(1, 1, 1, 4).price(CS3).cycles < 300
    assert Product(64, 64, 64, 4).price(CS3).cycles < 1000
    assert Product(1, 4096, 4096, 2).price(CS3).cycles < 1000


def test_stencils_do_not_depend_on_the_number_of_pes() -> None:
    """A halo of one element, with as many cells a PE: neighbours only."""
    cycles = [Window("x", 100 * n, 1, 4 * 100 * n).price(CS3.replace(rows=float(n), cols=float(n))).cycles for n in (4, 40, 400)]
    assert cycles == pytest.approx(cycles[:1] * 3)


def test_a_gather_moves_what_the_emulation_moves() -> None:
    """On a grid of as many PEs as tiles, the bytes that the priced ring takes are those counted in the program."""
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32)
    wafer = wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1))
    moved = wse.jit(lambda x: wse.with_layout(wse.with_layout(x, P("y", "x")) + 1.0, P(None, "x")), wafer).lower(x).program
    (call,) = [c for c in moved.calls if c.kind == "relayout" and c.primitive != "result"]
    price = sum((w.price(CS3.replace(rows=4.0, cols=4.0)) for w in call.work), Price())
    assert price.byte_hops == call.byte_hops > 0
