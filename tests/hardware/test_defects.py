"""Defect maps: values that survive a round trip, and random defects that follow the yield formulas."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsejax.hardware import WSE3, DefectMap

SIGNIFICANCE = 1e-3  # seeds are fixed: a failure is a change of the generator, not bad luck


@st.composite
def defect_maps(draw: st.DrawFn, max_side: int = 9) -> DefectMap:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side))
    dead_pes, east, south = (draw(hnp.arrays(bool, shape)) for _ in range(3))
    east[:, -1] = False
    south[-1] = False
    return DefectMap(dead_pes, east, south)


@given(defect_maps())
def test_save_then_load_is_the_identity(tmp_path_factory: pytest.TempPathFactory, defects: DefectMap):
    path = tmp_path_factory.mktemp("maps") / "defects.npz"
    defects.save(path)
    loaded = DefectMap.load(str(path))
    assert loaded == defects and hash(loaded) == hash(defects) and loaded.digest == defects.digest
    for name in ("dead_pes", "dead_east_links", "dead_south_links"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(defects, name))
    assert [file.name for file in path.parent.iterdir()] == ["defects.npz"]


@given(defect_maps(max_side=3), defect_maps(max_side=3))
def test_equality_is_equality_of_content(a: DefectMap, b: DefectMap):
    same = a.shape == b.shape and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("dead_pes", "dead_east_links", "dead_south_links")
    )
    assert (a == b) is same
    assert (a.digest == b.digest) is same
    assert a == DefectMap(a.dead_pes.copy(), a.dead_east_links.copy(), a.dead_south_links.copy())
    assert a != a.digest


def test_maps_of_other_shapes_with_the_same_bits_differ():
    assert DefectMap(np.zeros((2, 3), bool)) != DefectMap(np.zeros((3, 2), bool))


def test_a_map_is_immutable_and_keeps_no_hold_on_its_arguments():
    dead = np.zeros((2, 2), bool)
    defects = DefectMap(dead)
    dead[0, 0] = True
    assert defects.dead_pe_count == 0
    with pytest.raises(ValueError, match="read-only"):
        defects.dead_pes[0, 0] = True
    with pytest.raises(AttributeError, match="immutable"):
        defects.dead_pes = dead


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3, bool),), r"dead_pes has shape \(3,\)"),
        ((np.zeros((0, 3), bool),), r"dead_pes has shape \(0, 3\)"),
        ((np.zeros((2, 2)),), "dead_pes is float64"),
        ((np.zeros((2, 2), bool), np.zeros((2, 3), bool)), r"dead_east_links is bool of shape \(2, 3\)"),
        ((np.zeros((2, 2), bool), np.ones((2, 2), bool)), "no link leads east"),
        ((np.zeros((2, 2), bool), None, np.ones((2, 2), bool)), "no link leads south"),
    ],
)
def test_malformed_maps_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        DefectMap(*arguments)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_uniform_defects_have_exact_counts(rows: int, cols: int, pes: float, links: float, seed: int):
    spec = WSE3.scaled(rows, cols)
    defects = DefectMap.uniform(spec, dead_pe_fraction=pes, dead_link_fraction=links, seed=seed)
    assert defects.dead_pe_count == round(pes * rows * cols)
    assert defects.dead_link_count == round(links * (rows * (cols - 1) + (rows - 1) * cols))
    assert defects == DefectMap.uniform(spec, dead_pe_fraction=pes, dead_link_fraction=links, seed=seed)


def test_every_pe_is_as_likely_to_die():
    spec = WSE3.scaled(8, 6)
    maps = [DefectMap.uniform(spec, dead_pe_fraction=0.25, dead_link_fraction=0.25, seed=seed) for seed in range(400)]
    for counts in (
        sum(m.dead_pes.astype(int) for m in maps),
        sum(m.dead_east_links[:, :-1].astype(int) for m in maps),
        sum(m.dead_south_links[:-1].astype(int) for m in maps),
    ):
        assert scipy.stats.chisquare(np.ravel(counts)).pvalue > SIGNIFICANCE


def test_poisson_defects_follow_the_yield_law():
    """Count ~ Poisson(area x density), so a wafer is perfect with probability exp(-area x density)."""
    spec = WSE3.scaled(100, 80)
    mean = 1.5
    maps = [DefectMap.sample(spec, per_mm2=mean / spec.area_mm2, seed=seed) for seed in range(2000)]
    counts = np.array([m.dead_pe_count + m.dead_link_count for m in maps])
    assert abs(counts.mean() - mean) < 3.3 * math.sqrt(mean / counts.size)
    observed = np.bincount(np.minimum(counts, 5), minlength=6)
    expected = scipy.stats.poisson.pmf(np.arange(5), mean)
    expected = np.append(expected, 1 - expected.sum()) * counts.size
    assert expected[0] == pytest.approx(counts.size * math.exp(-mean))
    assert scipy.stats.chisquare(observed, expected).pvalue > SIGNIFICANCE


def test_full_wafer_has_the_defects_of_its_area():
    """0.001 per mm2 on 46,225 mm2: 46 defects (Cerebras, "100x Defect Tolerance")."""
    counts = [m.dead_pe_count + m.dead_link_count for m in (_wse3_sample(seed) for seed in range(40))]
    assert abs(np.mean(counts) - 46.225) < 3.3 * math.sqrt(46.225 / len(counts))


def _wse3_sample(seed: int) -> DefectMap:
    return DefectMap.sample(WSE3, per_mm2=0.001, seed=seed)


def test_poisson_defects_are_uniform_in_millimetres():
    """Equal areas take equal shares, whatever the shape of the PEs and the dies."""
    spec = WSE3.scaled(350, 99)  # two dies down; one and a half across
    defects = DefectMap.sample(spec, per_mm2=3000 / spec.area_mm2, seed=1)
    blocks = defects.dead_pes.reshape(7, 50, 9, 11).sum(axis=(1, 3))
    assert scipy.stats.chisquare(blocks.ravel()).pvalue > SIGNIFICANCE


def test_clustered_defects_are_negative_binomial_per_die():
    die = 40
    spec = WSE3.replace(rows=7 * die, cols=12 * die, usable_rows=7 * die, usable_cols=12 * die, die_rows=die, die_cols=die)
    mean, alpha = 2.0, 0.5
    per_mm2 = mean * 84 / spec.area_mm2
    counts = np.concatenate(
        [
            DefectMap.sample(spec, per_mm2=per_mm2, clustering=alpha, link_share=0.0, seed=seed)
            .dead_pes.reshape(7, die, 12, die)
            .sum(axis=(1, 3))
            .ravel()
            for seed in range(80)
        ]
    )
    variance = mean + mean**2 / alpha
    assert abs(counts.mean() - mean) < 3.3 * math.sqrt(variance / counts.size)
    assert counts.var() == pytest.approx(variance, rel=0.15)  # Poisson would give a fifth of it
    perfect = (1 + mean / alpha) ** -alpha
    assert abs((counts == 0).mean() - perfect) < 3.3 * math.sqrt(perfect * (1 - perfect) / counts.size)


def test_less_clustering_tends_to_poisson():
    spec = WSE3.scaled(350, 132)
    counts = [
        DefectMap.sample(spec, per_mm2=20 / spec.area_mm2, clustering=1e6, link_share=0.0, seed=seed).dead_pe_count for seed in range(400)
    ]
    assert np.var(counts) / np.mean(counts) == pytest.approx(1.0, abs=0.25)


def test_the_share_of_defects_that_cut_links():
    spec = WSE3.scaled(350, 132)
    defects = DefectMap.sample(spec, per_mm2=2000 / spec.area_mm2, link_share=0.3, seed=0)
    total = defects.dead_link_count + defects.dead_pe_count
    assert scipy.stats.binomtest(defects.dead_link_count, total, 0.3).pvalue > SIGNIFICANCE
    # The nearest edge of a PE 0.27 mm wide and 0.18 mm high is more often the one to the north or south.
    width, height = spec.pe_width_mm, spec.pe_height_mm
    nearest_is_vertical = height / (2 * width)  # area of the two triangles at the short edges
    east = int(defects.dead_east_links.sum())
    assert scipy.stats.binomtest(east, defects.dead_link_count, nearest_is_vertical).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_links_beyond_the_border_never_die(rows: int, cols: int):
    """A wire defect always finds a link that exists; on a single PE it kills the PE."""
    spec = WSE3.scaled(rows, cols)
    defects = DefectMap.sample(spec, per_mm2=2000 / spec.area_mm2, link_share=1.0, seed=0)
    links = rows * (cols - 1) + (rows - 1) * cols
    assert defects.dead_link_count == links
    assert defects.dead_pe_count == (1 if links == 0 else 0)


@pytest.mark.parametrize("clustering", [None, 0.5])
def test_a_seed_gives_one_map(clustering: float | None):
    spec = WSE3.scaled(100, 80)
    first, again, other = (DefectMap.sample(spec, per_mm2=0.1, clustering=clustering, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"per_mm2": -1.0}, "per_mm2=-1.0"),
        ({"per_mm2": float("inf")}, "per_mm2=inf"),
        ({"clustering": 0.0}, "clustering=0.0"),
        ({"link_share": 1.5}, "link_share=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_bad_sample_arguments_are_named(arguments: dict, named: str):
    with pytest.raises(ValueError, match=named):
        DefectMap.sample(WSE3.scaled(4, 4), **({"per_mm2": 0.1, "seed": 0} | arguments))


@pytest.mark.parametrize("name", ["dead_pe_fraction", "dead_link_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_bad_fractions_are_named(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        DefectMap.uniform(WSE3.scaled(4, 4), **({"dead_pe_fraction": 0.1, "seed": 0} | {name: value}))


def test_no_defects():
    defects = DefectMap.none(WSE3.scaled(5, 7))
    assert (defects.shape, defects.dead_pe_count, defects.dead_link_count) == ((5, 7), 0, 0)
    assert "5 x 7 PEs, dead PEs: 0, dead links: 0" in repr(defects)


def test_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DefectMap.load(tmp_path / "nowhere.npz")


def test_a_file_cut_short_or_altered_anywhere_is_refused(tmp_path: Path):
    path = tmp_path / "defects.npz"
    DefectMap.uniform(WSE3.scaled(16, 16), dead_pe_fraction=0.1, dead_link_fraction=0.1, seed=0).save(path)
    whole = path.read_bytes()
    original = DefectMap.load(path)
    for size in range(0, len(whole), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a readable defect map"):
            DefectMap.load(path)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            loaded = DefectMap.load(path)
        except ValueError as error:
            assert "not a readable defect map" in str(error)
        else:
            assert loaded == original  # the byte was a time stamp or the like


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"dead_pes": 1})])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "defects.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"defects.npz.*not a readable defect map"):
        DefectMap.load(path)


def test_other_arrays_are_refused(tmp_path: Path):
    path = tmp_path / "defects.npz"
    for write in (
        lambda file: np.save(file, np.zeros((2, 2), bool)),
        lambda file: np.savez(file, dead_pes=np.zeros((2, 2), bool)),
        lambda file: np.savez(file, format=np.array("wsejax.DefectMap/1"), shape=np.array([10**6, 10**6])),
    ):
        with path.open("wb") as file:
            write(file)
        with pytest.raises(ValueError, match="not a readable defect map"):
            DefectMap.load(path)


def test_content_that_is_not_what_was_saved_is_refused(tmp_path: Path):
    """A file written by other means is whole as a file, so only the digest can tell."""
    path = tmp_path / "defects.npz"
    DefectMap.none(WSE3.scaled(4, 4)).save(path)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **content)
    assert DefectMap.load(path).dead_pe_count == 0
    content["dead_pes"][0] ^= 1
    np.savez(path, **content)
    with pytest.raises(ValueError, match="its content does not match its checksum"):
        DefectMap.load(path)


class _Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_loading_never_unpickles(tmp_path: Path):
    path, mark = tmp_path / "defects.npz", tmp_path / "unpickled"
    good = DefectMap.none(WSE3.scaled(2, 2))
    np.savez(
        path,
        format=np.array("wsejax.DefectMap/1"),
        shape=np.array(good.shape),
        digest=np.array(good.digest),
        dead_pes=np.array([_Trap(mark)], dtype=object),
        dead_east_links=np.zeros(1, np.uint8),
        dead_south_links=np.zeros(1, np.uint8),
    )
    with pytest.raises(ValueError, match="not a readable defect map"):
        DefectMap.load(path)
    assert not mark.exists()


def test_an_interrupted_save_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "defects.npz"
    older, newer = (DefectMap.uniform(WSE3.scaled(8, 8), dead_pe_fraction=0.1, seed=seed) for seed in (0, 1))
    older.save(path)

    def broken(file: object, **arrays: object) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(KeyboardInterrupt):
        newer.save(path)
    assert DefectMap.load(path) == older
    assert [file.name for file in tmp_path.iterdir()] == ["defects.npz"]
