"""The logical mesh: laws on random wafers, and oracles that search small ones exhaustively."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.hardware import WSE3, DefectMap, Remap, UnusableWaferError, WaferSpec, remap
from wsejax.hardware.lines import nearest
from wsejax.hardware.routes import connected_regions, shortest_hops

Place = tuple[int, int]


@st.composite
def small_wafers(draw: st.DrawFn, max_side: int = 7) -> tuple[WaferSpec, DefectMap]:
    """Wafers with anything from no to many defects: the share of dead parts is drawn first."""
    rows, cols = draw(st.tuples(st.integers(1, max_side), st.integers(1, max_side)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share_of_pes, share_of_links = draw(st.tuples(*[st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0])] * 2))
    dead_pes, east, south = (rng.random((rows, cols)) < share for share in (share_of_pes, *[share_of_links] * 2))
    east[:, -1] = False
    south[-1] = False
    return WSE3.scaled(rows, cols), DefectMap(dead_pes, east, south)


def hops_from(defects: DefectMap, start: Place) -> dict[Place, int]:
    """Breadth-first search written from the definition: healthy PEs, live links, one PE at a time."""
    rows, cols = defects.shape
    hops = {start: 0} if not defects.dead_pes[start] else {}
    queue = deque(hops)
    while queue:
        row, col = queue.popleft()
        for place, dead in (
            ((row, col + 1), defects.dead_east_links[row, col]),
            ((row, col - 1), defects.dead_east_links[row, col - 1]),
            ((row + 1, col), defects.dead_south_links[row, col]),
            ((row - 1, col), defects.dead_south_links[row - 1, col]),
        ):
            inside = 0 <= place[0] < rows and 0 <= place[1] < cols
            if inside and not dead and not defects.dead_pes[place] and place not in hops:
                hops[place] = hops[row, col] + 1
                queue.append(place)
    return hops


def places(embedding: Remap) -> list[list[Place]]:
    return [
        [(int(row), int(col)) for row, col in zip(*pair, strict=True)]
        for pair in zip(embedding.physical_row, embedding.physical_col, strict=True)
    ]


def assert_lawful(embedding: Remap, defects: DefectMap) -> None:
    row, col = embedding.physical_row, embedding.physical_col
    assert row.shape == col.shape == (embedding.rows, embedding.cols)
    assert not defects.dead_pes[row, col].any(), "a logical PE is dead"
    assert np.unique(row * defects.shape[1] + col).size == row.size, "two logical PEs share a physical one"
    assert (np.diff(row, axis=0) > 0).all(), "rows are out of order"
    assert (np.diff(col, axis=1) > 0).all(), "columns are out of order"
    bent_columns = (row == row[:, :1]).all()
    bent_rows = (col == col[:1]).all()
    assert bent_columns or bent_rows


@given(small_wafers())
def test_the_mesh_is_perfect_and_its_hops_are_shortest_routes(wafer: tuple[WaferSpec, DefectMap]):
    spec, defects = wafer
    if defects.dead_pes.all():
        with pytest.raises(UnusableWaferError, match="the largest has 0 rows and 0 cols"):
            remap(spec, defects)
        return
    embedding = remap(spec, defects)
    assert_lawful(embedding, defects)
    mesh = places(embedding)
    for r, c in itertools.product(range(embedding.rows), range(embedding.cols)):
        hops = hops_from(defects, mesh[r][c])
        if c + 1 < embedding.cols:
            assert embedding.east_hops[r, c] == hops[mesh[r][c + 1]]
        if r + 1 < embedding.rows:
            assert embedding.south_hops[r, c] == hops[mesh[r + 1][c]]


def largest_area(defects: DefectMap, min_rows: int, min_cols: int) -> int:
    """Exhaustive: every region, both orientations, every subset of rows, as wide as its poorest row."""
    seen: set[Place] = set()
    best = 0
    for start in itertools.product(*map(range, defects.shape)):
        if start in seen or defects.dead_pes[start]:
            continue
        region = set(hops_from(defects, start))
        seen |= region
        for axis, (least_rows, least_cols) in ((0, (min_rows, min_cols)), (1, (min_cols, min_rows))):
            healthy = [sum(place[axis] == line for place in region) for line in range(defects.shape[axis])]
            for count in range(least_rows, len(healthy) + 1):
                for subset in itertools.combinations(healthy, count):
                    if min(subset) >= least_cols:
                        best = max(best, count * min(subset))
    return best


@given(small_wafers(max_side=6), st.integers(1, 4), st.integers(1, 4))
def test_no_larger_mesh_of_straight_rows_or_columns_exists(wafer: tuple[WaferSpec, DefectMap], min_rows: int, min_cols: int):
    spec, defects = wafer
    best = largest_area(defects, min_rows, min_cols)
    if best:
        embedding = remap(spec, defects, min_rows, min_cols)
        assert embedding.rows * embedding.cols == best
        assert embedding.rows >= min_rows and embedding.cols >= min_cols
    else:
        with pytest.raises(UnusableWaferError, match=f"no mesh of {min_rows} x {min_cols} logical PEs") as caught:
            remap(spec, defects, min_rows, min_cols)
        left = caught.value
        assert left.rows * left.cols == largest_area(defects, 1, 1)
        if left.rows:  # what the error says is left can be had
            embedding = remap(spec, defects, left.rows, left.cols)
            assert (embedding.rows, embedding.cols) == (left.rows, left.cols)


def test_the_straightest_row():
    """The dynamic programme against all choices of columns, for rows between one neighbour or two."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        width = rng.integers(1, 9)
        usable = rng.random(width) < rng.choice([0.5, 0.8, 1.0])
        count = rng.integers(1, width + 1)
        choices = [np.array(choice) for choice in itertools.combinations(np.flatnonzero(usable), count)]
        neighbours = [np.sort(rng.choice(width, count, replace=False)) for _ in range(rng.integers(1, 3))]

        def cost(place: np.ndarray, neighbours: list[np.ndarray] = neighbours) -> int:
            return int(sum(np.abs(place - other).sum() for other in neighbours) + place[-1] - place[0])

        if not choices or all(np.array_equal(choices[0], other) for other in neighbours):
            continue  # a row in line with its neighbours is left as it is
        place = nearest(usable, neighbours, choices[0])
        assert usable[place].all() and (np.diff(place) > 0).all()
        assert cost(place) == min(map(cost, choices))


@given(small_wafers())
def test_hops_between_any_two_pes(wafer: tuple[WaferSpec, DefectMap]):
    _, defects = wafer
    every = list(itertools.product(*map(range, defects.shape)))
    expected = [[hops_from(defects, start).get(end, -1) for end in every] for start in every]
    start, end = np.array(every)[:, None], np.array(every)[None]
    pairs = np.broadcast_arrays(start, end)
    np.testing.assert_array_equal(shortest_hops(defects, *(np.moveaxis(pair, -1, 0) for pair in pairs)), expected)


@pytest.mark.parametrize("seed", range(6))
def test_hops_near_the_percolation_threshold(seed: int):
    """Where routes wind most, the route in a small window is often not the shortest."""
    defects = DefectMap(np.random.default_rng(seed).random((14, 14)) < 0.38)
    every = np.array(list(itertools.product(range(14), range(14))))
    for start in every[::9]:
        hops = hops_from(defects, tuple(start))
        found = shortest_hops(defects, np.repeat(start[:, None], len(every), axis=1), every.T)
        assert found.tolist() == [hops.get(tuple(end), -1) for end in every]


def test_hops_through_a_maze():
    """Long detours are found too: a serpentine of dead walls with one gap each, and an unreachable corner."""
    dead = np.zeros((21, 30), bool)
    dead[1::4, :-1] = True
    dead[3::4, 1:] = True
    defects = DefectMap(dead)
    hops = hops_from(defects, (0, 0))
    assert hops[20, 29] > 250
    ends = np.array([[4, 8, 20, 20], [0, 29, 0, 29]])
    found = shortest_hops(defects, np.zeros_like(ends), ends)
    np.testing.assert_array_equal(found, [hops[tuple(end)] for end in ends.T])
    dead[2] = True
    assert shortest_hops(DefectMap(dead), np.array([0, 0]), np.array([20, 29])) == -1


@given(small_wafers())
def test_regions_are_what_a_search_reaches(wafer: tuple[WaferSpec, DefectMap]):
    _, defects = wafer
    regions = connected_regions(defects)
    np.testing.assert_array_equal(regions == 0, defects.dead_pes)
    sizes = np.bincount(regions.ravel())[1:]
    assert (np.diff(sizes) <= 0).all() and (sizes > 0).all()
    for place in itertools.product(*map(range, defects.shape)):
        if not defects.dead_pes[place]:
            reached = set(hops_from(defects, place))
            assert reached == set(zip(*map(np.ndarray.tolist, np.nonzero(regions == regions[place])), strict=True))


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 5), (5, 1), (6, 9)])
def test_a_perfect_wafer_is_its_own_mesh(rows: int, cols: int):
    spec = WSE3.scaled(rows, cols)
    embedding = remap(spec, DefectMap.none(spec))
    row, col = np.indices((rows, cols))
    np.testing.assert_array_equal(embedding.physical_row, row)
    np.testing.assert_array_equal(embedding.physical_col, col)
    assert embedding.mean_dilation == 1.0 and embedding.max_dilation == 1


def test_a_smaller_region_may_carry_the_larger_mesh():
    dead = np.ones((9, 9), bool)
    dead[0, :] = dead[:, 0] = False  # 17 PEs in a bend, good for 9 x 1
    dead[3:6, 3:7] = False  # 12 PEs
    assert connected_regions(DefectMap(dead))[4, 4] == 2
    embedding = remap(WSE3.scaled(9, 9), DefectMap(dead))
    assert (embedding.rows, embedding.cols) == (3, 4)
    assert remap(WSE3.scaled(9, 9), DefectMap(dead), 1, 5).cols == 9


@pytest.mark.parametrize(("dead_pe_fraction", "utilisation", "dilation"), [(0.02, 0.94, 1.138), (0.05, 0.91, 1.275), (0.1, 0.88, 1.49)])
def test_little_is_wasted(dead_pe_fraction: float, utilisation: float, dilation: float):
    """Over 20 wafers of 32 x 32 PEs with 1% dead links. The bounds are what the method reaches, rounded."""
    spec = WSE3.scaled(32, 32)
    maps = [DefectMap.uniform(spec, dead_pe_fraction=dead_pe_fraction, dead_link_fraction=0.01, seed=seed) for seed in range(20)]
    meshes = [remap(spec, defects) for defects in maps]
    for embedding, defects in zip(meshes, maps, strict=True):
        assert_lawful(embedding, defects)
    healthy = spec.pes - maps[0].dead_pe_count
    assert np.mean([mesh.rows * mesh.cols / healthy for mesh in meshes]) >= utilisation
    assert np.mean([mesh.mean_dilation for mesh in meshes]) <= dilation


def test_a_full_wafer_with_random_defects_loses_nothing():
    """The spare rows and columns of a WSE-3 take up the defects of its yield: the whole usable grid is left."""
    defects = DefectMap.sample(WSE3, per_mm2=0.001, clustering=2.0, seed=0)
    assert defects.dead_pe_count > 30
    embedding = remap(WSE3, defects)
    assert_lawful(embedding, defects)
    assert (embedding.rows, embedding.cols) == (WSE3.usable_rows, WSE3.usable_cols)
    assert embedding.mean_dilation < 1.02
    for name in ("east_hops", "south_hops"):
        assert getattr(embedding, name).min() >= 1


def test_spare_rows_are_taken_from_the_edge():
    """With rows to spare, a mesh that needs no detour is found around a bad band."""
    spec = WSE3.scaled(40, 10).replace(usable_rows=30)
    dead = np.zeros((40, 10), bool)
    dead[3:6, 2] = True
    assert remap(spec, DefectMap(dead)).max_dilation == 1


def test_arguments_are_checked():
    spec = WSE3.scaled(4, 4)
    with pytest.raises(ValueError, match="min_rows=0"):
        remap(spec, DefectMap.none(spec), 0)
    with pytest.raises(ValueError, match=r"defects=DefectMap\(2 x 2 PEs.*has 4 x 4 PEs"):
        remap(spec, DefectMap(np.zeros((2, 2), bool)))


def test_the_result_is_shared_and_read_only():
    spec = WSE3.scaled(4, 4)
    embedding = remap(spec, DefectMap.none(spec))
    assert embedding is remap(spec, DefectMap.none(spec))
    for name in ("physical_row", "physical_col", "east_hops", "south_hops"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(embedding, name)[...] = 0
