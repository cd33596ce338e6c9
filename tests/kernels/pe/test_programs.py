"""Programs for PEs against numpy and scipy, their traffic against their laws, and that no device mesh and no defect changes a bit."""

from __future__ import annotations

import copy
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import wsejax as wse
from tests.kernels.pe.programs import PROGRAMS
from wsejax import fabric
from wsejax.fabric.physical import Physical, Stage, Way
from wsejax.hardware import CS2, CS3

GRID_SPEC = PartitionSpec("y", "x")


def logical(grid, devices=(1, 1)) -> wse.Wafer:
    return wse.Wafer(wse.WSE3.scaled(*grid), tiles=grid, devices=devices)


def mapped(case, wafer):
    return wse.wafer_map(case.f, wafer, (GRID_SPEC,) * len(case.args), GRID_SPEC)


def run(case, wafer) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(jax.jit(mapped(case, wafer))(*case.args))]


def assert_same_bits(got, want) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def assert_law(case, wafer) -> None:
    """What the program sends is what its law says, and what its price charges."""
    wavelets = 2 if np.asarray(case.args[-1]).dtype == np.complex64 else 1  # of an element
    counted = wse.traffic(mapped(case, wafer), *case.args).wavelet_hops
    assert counted == case.element_hops * wavelets
    if case.price is not None:
        for system in (CS2, CS3):
            assert case.price(system).byte_hops == pytest.approx(4 * counted, rel=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_what_its_oracle_does_and_the_device_mesh_changes_no_bit(name):
    case = PROGRAMS[name]((4, 6))
    out = run(case, logical((4, 6)))
    case.check(*out)
    for devices in ((1, 2), (2, 2)):
        assert_same_bits(run(case, logical((4, 6), devices)), out)


@pytest.mark.parametrize("grid", [(3, 2), (1, 5), (1, 1)], ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_sends_what_its_law_says_on_any_grid(name, grid):
    case = PROGRAMS[name](grid)
    wafer = logical(grid)
    case.check(*run(case, wafer))
    assert_law(case, wafer)


# ---- physical execution ----------------------------------------------------------------------------------------------
PHYSICAL, LOGICAL = (8, 9), (4, 5)
SPEC = wse.WSE3.scaled(*PHYSICAL)
MESSAGES = LOGICAL[0] * LOGICAL[1]
_trace = itertools.count()


@st.composite
def defect_maps(draw: st.DrawFn) -> wse.DefectMap:
    """Dead PEs and links anywhere, with every now and then a dead border, a dead block, or dead links round a dead PE."""
    rows, cols = PHYSICAL
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    of_pes, of_links = draw(st.sampled_from([0.0, 0.02, 0.05, 0.1])), draw(st.sampled_from([0.0, 0.05, 0.1]))
    pes, east, south = rng.random(PHYSICAL) < of_pes, rng.random(PHYSICAL) < of_links, rng.random(PHYSICAL) < of_links
    kind = draw(st.sampled_from(["none", "border", "corner", "block", "links round a PE"]))
    if kind == "border":
        pes[0 if rng.random() < 0.5 else -1] = True
    elif kind == "corner":
        pes[:2, :2] = True
    elif kind == "block":
        r, c = rng.integers(1, rows - 2), rng.integers(1, cols - 2)
        pes[r : r + 2, c : c + 2] = True
    elif kind == "links round a PE":
        r, c = rng.integers(1, rows - 2), rng.integers(1, cols - 2)
        pes[r, c] = south[r - 1, c + 1] = east[r - 1, c] = south[r, c + 1] = True
    east[:, -1], south[-1] = False, False
    return wse.DefectMap(pes, east, south)


def tables(defects: wse.DefectMap):
    """What a physical machine is made of, as arrays of one shape for all defect maps; None where the map leaves too few PEs."""
    try:
        wafer = wse.Wafer(SPEC, defects, tiles=LOGICAL, devices=(1, 1), execution="physical")
    except ValueError:
        return None
    machine = Physical(wafer)
    ways = {}
    for direction, way in machine.ways.items():
        count, nowhere = way.first.shape[-1], PHYSICAL[0] * PHYSICAL[1]
        pad = lambda x, fill, n: np.concatenate([x, np.full((1, 1, n - x.shape[-1]), fill, x.dtype)], axis=-1)
        assert all(stage.take is None and not stage.send for stage in way.stages), "one device has one list"
        alive = np.all([stage.alive for stage in way.stages] or np.ones((1, 1, 1, count), bool), axis=0)
        ways[direction] = way.kind, pad(way.first, 0, MESSAGES), pad(way.last, nowhere, MESSAGES), pad(alive, True, MESSAGES)
    return machine.index, machine.place, ways


@functools.cache
def template() -> Physical:
    return Physical(wse.Wafer(SPEC, tiles=LOGICAL, devices=(1, 1), execution="physical"))


@functools.cache
def case_of(name):
    return PROGRAMS[name](LOGICAL)


@functools.cache
def on_any_wafer(name):
    """The program as a compiled function of (tables, arguments): the machine's own code, one compilation for all defect maps."""
    case = case_of(name)

    @jax.jit
    def physically(arrays, *args):
        machine = copy.copy(template())
        machine.index, machine.place, ways = arrays
        machine.ways = {
            direction: Way(kind, first, last, (Stage(alive, {}, None),)) for direction, (kind, first, last, alive) in ways.items()
        }
        machine.name = f"{template().name}_{next(_trace)}"
        return machine.run(case.f, logical((1, 1)).mesh, (GRID_SPEC,) * len(args), GRID_SPEC)(*args)

    return physically


@functools.cache
def wanted(name) -> list[np.ndarray]:
    return run(case_of(name), logical(LOGICAL))


@pytest.mark.parametrize("maps", [8, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_defect_changes_a_bit(name, maps):
    @settings(max_examples=maps, suppress_health_check=list(HealthCheck))
    @given(defect_maps())
    def on(defects):
        arrays = tables(defects)
        assume(arrays is not None)
        got = [np.asarray(x) for x in jax.tree.leaves(on_any_wafer(name)(arrays, *case_of(name).args))]
        assert_same_bits(got, wanted(name))

    on()


@pytest.mark.parametrize("name", ["ring_all_reduce", "stencil_25_box", "sort", "all_reduce_2d"])
def test_a_physical_wafer_on_any_device_mesh(name, device_grid):
    """The way users take: tables as constants of the program, messages that cross from device to device."""
    defects = wse.DefectMap.uniform(SPEC, dead_pe_fraction=0.1, dead_link_fraction=0.05, seed=2)
    wafer = wse.Wafer(SPEC, defects, tiles=LOGICAL, devices=device_grid, execution="physical")
    assert fabric.physical_of(wafer).ways["east"].stages, "no route steps round anything: choose another seed"
    assert_same_bits(run(case_of(name), wafer), wanted(name))


def test_bad_operands_are_refused_with_the_way_to_make_them():
    wafer = logical((2, 3))
    zeros = lambda *shape: np.zeros((2, 3, *shape), np.float32)
    pe = wse.pe
    for f, args, words in (
        (pe.gemm.summa, (zeros(4, 3), zeros(3, 4)), r"6 equal panels.*summa_operands"),
        (pe.gemm.cannon, (zeros(1, 1, 2, 2), zeros(1, 1, 2, 2)), r"3 x 2 tiles.*torus_tiles"),
        (lambda a, b: pe.gemm.cannon(a, b, "circle"), (zeros(3, 2, 2, 2), zeros(3, 2, 2, 2)), r"ring='circle'.*'folded'"),
        (pe.gemm.times_transposed, (zeros(4, 3), zeros(4, 3)), r"3 equal pieces.*times_transposed_operands"),
        (lambda x: pe.collectives.reduce(x, "x", pe.trees.chain(4)), (zeros(1),), r"tree has 4 PEs.*has 3"),
        (lambda x: pe.fft.fft_along(x, "x", 99), (zeros(2, 4).astype(np.complex64),), r"length=99.*10 to 12"),
        (lambda x: pe.fft.fft1(x, "x", 11), (zeros(2, 4).astype(np.complex64),), r"n=11.*factors"),
        (lambda x: pe.stencil.stencil(x, {}), (zeros(2, 2),), r"at least one offset"),
        (lambda x: pe.stencil.stencil(x, {(0, 0, 1): 1.0}), (zeros(2, 2),), r"columns of cells"),
        (pe.sparse.spmm, (pe.sparse.stream_of(np.eye(4), (2, 3)), zeros(3, 2)), r"x has 3 rows in a PE, and the stream 2"),
        (lambda x: pe.stencil.stencil(x, {(0, 0): 0.5}), (zeros(2, 2).astype(np.int32),), r"weights.*float32.*int32"),
        (lambda x: pe.stencil.stencil(x, {(0, 1): 1.0}), (zeros(2, 0),), r"no cells"),
        (lambda x: pe.stencil.life(x, (4, 6)), (zeros(2, 2).astype(bool),), r"cells are bool"),
        (lambda x: pe.collectives.broadcast(x, "x", 3), (zeros(1),), r"root=3.*0 to 2"),
    ):
        with pytest.raises(ValueError, match=words):
            wse.wafer_map(f, wafer, (GRID_SPEC,) * len(args), GRID_SPEC)(*args)
    with pytest.raises(ValueError, match=r"parent\[3\]=1: the tree is not in pre-order"):
        pe.trees.Tree((-1, 0, 0, 1))


def pre_orders(n: int):
    """All trees of n PEs in pre-order, as parents."""
    if n == 1:
        yield (-1,)
        return
    for parents in pre_orders(n - 1):
        at = n - 2
        while at >= 0:
            yield (*parents, at)
            at = parents[at]


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("wavelets", [1, 2, 5, 16, 64, 1000])
def test_the_automatic_tree_is_the_best_of_all(n, wavelets):
    trees = [wse.pe.trees.Tree(parents) for parents in pre_orders(n)]
    best = min(tree.model_cycles(wavelets) for tree in trees)
    assert wse.pe.trees.auto(n, wavelets).model_cycles(wavelets) == pytest.approx(best)
