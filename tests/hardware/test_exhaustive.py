"""`remap` on wafers of up to 6 x 6 PEs against an exhaustive search of all placements."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.hardware.exhaustive import Oracle, Place, Undecided, every_pe, hops_from
from tests.hardware.test_remap import places
from wsejax.hardware import WSE3, DefectMap, Remap, UnusableWaferError, WaferSpec, most_logical_pes, remap

BOUNDS = (1, 2, 3, 4, 5, None)


def wafer(seed: int, spares: bool = False) -> tuple[WaferSpec, DefectMap]:
    """Few dead parts or many; every third wafer is 6 x 6. With `spares`, up to two rows and columns."""
    rng = np.random.default_rng(seed)
    rows, cols = (6, 6) if seed % 3 == 0 else (int(side) for side in rng.integers(2, 7, 2))
    pe_share, link_share = rng.choice([0.03, 0.06, 0.1, 0.2, 0.3, 0.45]), rng.choice([0.0, 0.02, 0.05, 0.1, 0.2])
    dead_pes, east, south = (rng.random((rows, cols)) < share for share in (pe_share, link_share, link_share))
    dead_pes[rng.integers(rows), rng.integers(cols)] = False
    east[:, -1] = south[-1] = False
    spec = WSE3.scaled(rows, cols)
    if spares:
        spec = spec.replace(usable_rows=max(1, rows - int(rng.integers(3))), usable_cols=max(1, cols - int(rng.integers(3))))
    return spec, DefectMap(dead_pes, east, south)


def assert_valid(mesh: Remap, defects: DefectMap, max_hops: int | None) -> None:
    where = places(mesh)
    assert len({pe for row in where for pe in row}) == mesh.rows * mesh.cols, "two logical PEs share a physical one"
    for r, c in itertools.product(range(mesh.rows), range(mesh.cols)):
        hops = hops_from(defects, where[r][c])
        assert where[r][c] in hops, "a logical PE is dead"
        for r2, c2 in ((r, c + 1), (r + 1, c)):
            if r2 < mesh.rows and c2 < mesh.cols:
                assert hops[where[r2][c2]] <= (max_hops or 36), "a logical link is too long"


def sizes(spec: WaferSpec, above: int, most: int) -> list[Place]:
    every = itertools.product(range(1, spec.rows + 1), range(1, spec.cols + 1))
    return [size for size in every if above < size[0] * size[1] <= most]


def check_largest(seeds: range, steps: int) -> Counter:
    """The law of one row or column; counts the meshes that were the very largest, and what could not be decided."""
    seen = Counter()
    for seed, bound in itertools.product(seeds, BOUNDS):
        spec, defects = wafer(seed)
        mesh = remap(spec, defects, policy="largest", max_dilation=bound)
        assert_valid(mesh, defects, bound)
        oracle = Oracle(defects, bound)
        largest_region = max(map(len, oracle.regions))
        one_more = max(min(mesh.rows + 1, spec.rows) * mesh.cols, mesh.rows * min(mesh.cols + 1, spec.cols))
        ceiling = most_logical_pes(defects, spec.rows, spec.cols, bound)
        assert mesh.rows * mesh.cols <= ceiling
        best = mesh.rows * mesh.cols
        undecided = False
        for rows, cols in sizes(spec, mesh.rows * mesh.cols, largest_region):
            try:
                if placed := oracle.embedding(rows, cols, steps):
                    assert set(placed) == set(itertools.product(range(rows), range(cols)))
                    assert rows * cols <= one_more, f"seed {seed}, {bound} hops: {rows} x {cols} exists, not {mesh.rows} x {mesh.cols}"
                    best = max(best, rows * cols)
            except Undecided:
                undecided = True
                seen["beyond a row or column, undecided"] += rows * cols > one_more
        assert best <= ceiling
        kind = "straight" if bound is None else "bounded"
        seen[kind, "smaller" if best > mesh.rows * mesh.cols else "undecided" if undecided else "largest"] += 1
    return seen


def check_spares(seeds: range, steps: int) -> Counter:
    seen = Counter()
    for seed, bound in itertools.product(seeds, BOUNDS):
        spec, defects = wafer(seed, spares=True)
        try:
            mesh = remap(spec, defects, policy="spares", max_dilation=bound)
        except UnusableWaferError as error:
            assert (error.rows, error.cols) != (spec.usable_rows, spec.usable_cols)
            try:
                seen["missed" if Oracle(defects, bound).embedding(spec.usable_rows, spec.usable_cols, steps) else "none exists"] += 1
            except Undecided:
                seen["undecided"] += 1
            continue
        assert (mesh.rows, mesh.cols) == (spec.usable_rows, spec.usable_cols)
        assert_valid(mesh, defects, bound)
        seen["found"] += 1
    return seen


def test_no_mesh_is_larger_by_more_than_a_row_or_a_column():
    """90 pairs of a wafer and a bound. What the oracle gives up is counted, too, and stays rare."""
    seen = check_largest(range(15), steps=200)
    assert seen["bounded", "smaller"] == 0, seen
    assert seen["bounded", "undecided"] <= 9 and seen["beyond a row or column, undecided"] <= 7, seen


def test_the_fixed_grid_is_found_wherever_it_exists():
    """144 pairs of a wafer and a bound."""
    seen = check_spares(range(24), steps=200)
    assert seen["missed"] == 0 and seen["undecided"] <= 8, seen
    assert seen["found"] > 80 and seen["none exists"] > 40, seen


@pytest.mark.slow
def test_many_small_wafers():
    """200 pairs and 400."""
    largest, spares = check_largest(range(1000, 1034), steps=2000), check_spares(range(1000, 1067), steps=2000)
    print(largest, spares)
    assert largest["bounded", "smaller"] <= 2 and largest["bounded", "undecided"] <= 12, largest
    assert largest["beyond a row or column, undecided"] <= 12, largest
    assert spares["missed"] == 0 and spares["undecided"] <= 12, spares


def test_the_oracle_agrees_with_all_permutations():
    """On 2 x 3 and 3 x 3 PEs nothing is left out: every choice of places in every order."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = (2, 3) if rng.random() < 0.5 else (3, 3)
        dead, east, south = (rng.random(shape) < share for share in (0.25, 0.2, 0.2))
        east[:, -1] = south[-1] = False
        defects, bound = DefectMap(dead, east, south), int(rng.integers(1, 4))
        hops: dict[Place, dict[Place, int]] = {pe: hops_from(defects, pe) for pe in every_pe(defects)}
        healthy = [pe for pe in hops if hops[pe]]
        for rows, cols in ((1, 3), (2, 2), (1, 4), (2, 3)):
            links = [(p, p + 1) for p in range(rows * cols) if (p + 1) % cols] + [(p, p + cols) for p in range((rows - 1) * cols)]
            want = any(
                all(hops[placed[a]].get(placed[b], 99) <= bound for a, b in links)
                for placed in itertools.permutations(healthy, rows * cols)
            )
            assert bool(Oracle(defects, bound).embedding(rows, cols)) == want
