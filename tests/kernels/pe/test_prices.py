"""Closed-form prices of collectives and products: the traffic is what the programs send, the cycles those of the paper."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsejax.hardware import CS2, CS3
from wsejax.kernels.pe import collectives, gemm, gemv, trees

SHAPES = {"chain": trees.chain, "star": trees.star, "tree": trees.binary, "two_phase": trees.two_phase}
T_R = 2  # ramp, WSE-2


@pytest.mark.parametrize("topology", SHAPES)
def test_closed_forms_of_trees_count_what_trees_count(topology: str) -> None:
    for n in range(2, 140):
        tree = SHAPES[topology](n)
        assert trees.numbers(topology, float(n)) == (tree.energy, tree.contention, tree.depth), n
        assert tuple(map(float, trees.numbers(topology, jnp.float32(n)))) == (tree.energy, tree.contention, tree.depth), n
    with pytest.raises(ValueError, match="topology='ring'"):
        trees.numbers("ring", 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 300), st.sampled_from(sorted(SHAPES)), st.sampled_from([2, 4]))
def test_a_reduction_moves_its_trees_energy(n: int, lines: int, elements: int, topology: str, itemsize: int) -> None:
    """The law that the counted shifts obey (`programs.py`), times the bytes of an element."""
    price = collectives.reduce_price(CS3, float(n), float(lines), float(elements * itemsize), topology, itemsize)
    assert price.byte_hops == pytest.approx(itemsize * elements * SHAPES[topology](n).energy * lines)
    assert price.flops == elements * (n - 1) * lines
    assert price.cycles >= max(price.compute_cycles, price.fabric_cycles)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 50))
def test_other_collectives_move_what_their_laws_say(rows: int, cols: int, elements: int) -> None:
    size = 4.0 * elements
    assert collectives.broadcast_price(CS2, cols, rows, size).byte_hops == size * collectives.broadcast_hops(cols, rows)
    assert collectives.all_reduce_2d_price(CS2, rows, cols, size).byte_hops == size * collectives.all_reduce_2d_hops((rows, cols))
    share = -(-elements // cols)
    ring = collectives.ring_all_reduce_price(CS2, cols, rows, 4 * elements)
    assert ring.byte_hops == 4 * share * collectives.ring_all_reduce_hops(cols, rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.sampled_from([2, 4]))
def test_products_move_what_their_laws_say(side: int, m: int, k: int, n: int, itemsize: int) -> None:
    """On a square grid and sizes that divide by it; tiles are m x k and k x n."""
    grid, sizes = (side, side), (m * side, k * side, n * side)
    summa = gemm.summa_price(CS2, side, side, *sizes, itemsize)
    assert summa.byte_hops == pytest.approx(itemsize * gemm.summa_element_hops(grid, m, k, n))
    for price, ring in ((gemm.mesh_gemm_price, "folded"), (gemm.cannon_price, "line")):
        moved = price(CS2, side, side, *sizes, itemsize).byte_hops
        assert moved == pytest.approx(itemsize * gemm.cannon_element_hops(grid, m, k, n, ring))
    turned = gemm.times_transposed_price(CS2, side, side, *sizes, itemsize).byte_hops
    assert turned == pytest.approx(itemsize * gemm.times_transposed_element_hops(grid, m, k, n))
    assert summa.flops == pytest.approx(2 * math.prod(sizes))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_vector_product_moves_what_its_law_says(rows: int, cols: int, k: int, n: int, everywhere: bool) -> None:
    price = gemv.gemv_price(CS2, rows, cols, k * rows, n * cols, 4, everywhere)
    if rows > 1:
        assert price.byte_hops == pytest.approx(4 * gemv.gemv_element_hops((rows, cols), n, trees.two_phase(rows), everywhere))
    else:
        assert price.byte_hops == 0


@pytest.mark.parametrize(("p", "b"), [(4, 1), (16, 4), (64, 256), (512, 1), (512, 4096)])
def test_cycles_are_those_of_the_paper(p: int, b: int) -> None:
    """Luczynski et al., HPDC 2024: broadcast B + P + 2 T_R, chain B + (2 T_R + 2)(P - 1), star B (P - 1) + 2 T_R + 1, the folded ring."""
    wavelets = 4.0 * b
    assert collectives.broadcast_price(CS2, p, 1, wavelets).cycles == b + p + 2 * T_R
    moving = lambda topology: _moving(p, b, topology)
    assert moving("chain") == b + (2 * T_R + 2) * (p - 1)
    assert moving("star") == max(b * (p - 1), b * p / 2 + p - 1) + 2 * T_R + 1
    assert moving("tree") == pytest.approx(
        max(b * math.log2(p), b * p / (2 * (p - 1)) * math.log2(p) + p - 1) + (2 * T_R + 1) * math.log2(p)
    )
    # the paper's 4 P - 6 has the hops of a line's ends, this the same two hops for all: 4 P - 4
    ring = collectives.ring_price(CS2, p, 1, wavelets / p, 2 * (p - 1)).cycles
    assert ring == pytest.approx(2 * (p - 1) * b / p + 4 * (p - 1) + 2 * (p - 1) * (2 * T_R + 1))


def _moving(p: int, b: int, topology: str) -> float:
    fast = CS2.replace(fp32_copies_per_cycle=1e5)  # adding keeps pace with what arrives
    return collectives.reduce_price(fast, p, 1, 4.0 * b, topology).cycles


def test_wse3_pays_more_for_hops_and_wavelets() -> None:
    """ALCF: 2 cycles a hop, 9 cycles for 8 wavelets."""
    far = [collectives.broadcast_price(s, 101, 1, 4.0).cycles for s in (CS2, CS3)]
    assert far[1] - far[0] == pytest.approx(100 + 0.125)
    assert collectives.broadcast_price(CS3, 2, 1, 4.0 * 4096).fabric_cycles == 1.125 * 4096


def test_signs_of_published_products() -> None:
    """WaferLLM, OSDI 2025: from 360 x 360 to 720 x 720 PEs a product of 2K gets slower by SUMMA and Cannon, not by MeshGEMM; and at 8K
    MeshGEMM is the fastest."""
    cycles = lambda price, side, n: price(CS2, float(side), float(side), n, n, n, 2).cycles
    for price in (gemm.summa_price, gemm.cannon_price):
        assert cycles(price, 720, 2048.0) > 1.5 * cycles(price, 360, 2048.0)
        assert cycles(price, 720, 8192.0) > 1.17 * cycles(gemm.mesh_gemm_price, 720, 8192.0)
    assert cycles(gemm.mesh_gemm_price, 720, 2048.0) <= cycles(gemm.mesh_gemm_price, 360, 2048.0)


def test_a_price_is_a_pure_function_of_the_machine() -> None:
    price = lambda system: gemm.mesh_gemm_price(system, system.rows, system.cols, 4096.0, 4096.0, 4096.0, 2).cycles
    assert float(jax.jit(price)(CS3)) == pytest.approx(price(CS3), rel=1e-5)
    slope = jax.grad(price)(CS3)
    assert slope.link_bits <= 0 <= slope.hop_cycles
    assert float(slope.sustained_fp16_fma_per_cycle) < 0
