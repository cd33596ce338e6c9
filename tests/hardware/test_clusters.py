"""Clusters as records: their arithmetic against published figures, and what their memory holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.hardware import CLUSTERS
from wsejax.hardware.cluster import MEMORYX
from wsejax.hardware.clusters import MOST_SYSTEMS, VENDOR_PARAMETERS, Capacity, ClusterSpec, capacity, cluster_spec, size_text

# Published: systems, million cores, dense petaflops, "AI" exaflops. Announcements of Andromeda (2022), CG-1 (2023), CG-3 (2024). They round
# cores down (13.6 to 13.5, 54.4 to 54) or up (57.6 to 58), and say "over 1" exaflop of Andromeda.
PUBLISHED = {
    "andromeda": (16, 13.5, 120.0, 1.0),
    "cg1": (64, 54.0, None, 4.0),
    "cg3": (64, 58.0, None, 8.0),
    "alcf": (4, None, None, None),
    "cs2": (1, 0.85, None, 0.0625),
    "cs3": (1, 0.9, None, 0.125),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_presets_make_the_published_figures(name: str):
    systems, cores, dense, marketing = PUBLISHED[name]
    spec = cluster_spec(name)
    assert spec.systems == systems and spec.source
    if cores is not None:
        assert spec.marketing_cores / 1e6 == pytest.approx(cores, rel=0.01)
    if dense is not None:
        assert spec.vendor_dense_peak_fp16_flops_per_second / 1e15 == pytest.approx(dense, rel=0.01)
    if marketing is not None:
        assert (spec.marketing_peak_flops_per_second or 0.0) / 1e18 == pytest.approx(marketing, rel=0.01)


def test_andromeda_fits_its_power():
    """500 kW with 284 servers; the systems alone draw less."""
    assert 0.5 * 500e3 < cluster_spec("andromeda").power_watts < 500e3


def test_popular_figures_of_cg1_are_wrong():
    """576,000 cores and 1.5 exaflops are printed: neither marketing nor dense arithmetic gives them."""
    spec = cluster_spec("CG-1")
    assert spec.marketing_cores == 54_400_000 and spec.marketing_cores / 576_000 > 90
    assert spec.vendor_dense_peak_fp16_flops_per_second == pytest.approx(0.479e18, rel=1e-3)
    assert spec.marketing_peak_flops_per_second == pytest.approx(4e18)
    assert cluster_spec("cg3").vendor_dense_peak_fp16_flops_per_second == pytest.approx(1.014e18, rel=1e-3)


@pytest.mark.parametrize("name", CLUSTERS)
def test_totals_are_those_of_so_many_systems(name: str):
    spec = cluster_spec(name)
    one = spec.replace(systems=1)
    for total in ("marketing_cores", "pes", "dense_peak_fp16_flops_per_second", "sram_bytes", "io_bytes_per_second", "power_watts"):
        assert getattr(spec, total) == pytest.approx(spec.systems * getattr(one, total))
    assert spec.pes == spec.systems * spec.spec.usable_pes == spec.systems * spec.system.pes
    assert spec.pes < spec.marketing_cores and spec.dense_peak_fp16_flops_per_second < spec.vendor_dense_peak_fp16_flops_per_second
    assert spec.io_bytes_per_second == spec.systems * 150e9
    assert spec.to_dict()["systems"] == spec.systems


def test_names_are_read_as_people_write_them():
    assert cluster_spec("CG_1") is cluster_spec("CG-1") is CLUSTERS["cg1"]
    assert cluster_spec("16 x CS-3") == cluster_spec("16xcs3") and cluster_spec("16xcs3").systems == 16
    assert wse.cluster_spec("16xcs2").pes == wse.cluster_spec("andromeda").pes
    assert cluster_spec(CLUSTERS["alcf"]) is CLUSTERS["alcf"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cluster_spec("cg2"), "cluster='cg2': unknown; known are cs2, .*16xcs3"),
        (lambda: cluster_spec("4xh100"), "unknown"),
        (lambda: cluster_spec("193xcs2"), "systems=193: a cluster has at most 192 CS-2"),
        (lambda: cluster_spec("2049xcs3"), "at most 2048 CS-3"),
        (lambda: cluster_spec("0xcs3"), "systems=0"),
        (lambda: CLUSTERS["cg1"].replace(systems=True), "systems=True"),
        (lambda: CLUSTERS["cg1"].replace(sistems=1), "sistems"),
        (lambda: CLUSTERS["alcf"].cluster(wse.Wafer(wse.WSE3, tiles=(2, 2), devices=(1, 1)), systems=5), "alcf has 4 CS-3"),
        (lambda: capacity("5TB", {}), "memoryx='5TB': unknown; known are 1.5TB, 12TB, 1.2PB"),
        (lambda: capacity("12TB", {"weights": -1.0}), r"parts\['weights'\]=-1.0"),
    ],
)
def test_bad_input_is_named(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()


def test_the_largest_clusters_are_allowed():
    assert {name: cluster_spec(f"{most}x{name}").systems for name, most in MOST_SYSTEMS.items()} == MOST_SYSTEMS


def test_a_record_gives_a_cluster_to_compile_for():
    wafer = wse.Wafer(wse.WSE3, tiles=(2, 2), devices=(1, 1))
    made = wse.cluster_spec("alcf").cluster(wafer)
    assert (made.systems, made.memoryx, made.wafer) == (4, CLUSTERS["alcf"].memoryx, wafer)
    assert wse.cluster_spec("cg3").cluster(wafer, 2, memoryx=None).memoryx is None


# ---- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "parameters"), [("1.5TB", 93.75e9), ("12TB", 750e9), ("1.2PB", 75e12)])
def test_what_the_options_hold_at_sixteen_bytes(name: str, parameters: float):
    assert MEMORYX[name].most_parameters() == pytest.approx(parameters)
    each = {"master": 4.0, "moments": 8.0, "gradient": 4.0}
    assert capacity(name, {part: size * parameters for part, size in each.items()}).fits
    assert not capacity(name, {part: size * parameters * 1.001 for part, size in each.items()}).fits


def test_the_vendor_allows_fifty_bytes_a_parameter():
    """24 T parameters in 1.2 PB."""
    assert MEMORYX["1.2PB"].capacity_bytes / VENDOR_PARAMETERS["1.2PB"] == pytest.approx(50)


@given(weights=st.floats(0, 2e15), moments=st.floats(0, 2e15))
def test_the_smallest_that_would_do_is_the_smallest(weights: float, moments: float):
    found = capacity("1.5TB", {"weights": weights, "moments": moments})
    presets = sorted(MEMORYX.values(), key=lambda m: m.capacity_bytes)
    assert found.fits == (weights + moments <= 1.5e12)
    if found.smallest is None:
        assert weights + moments > presets[-1].capacity_bytes
    else:
        smaller = [m for m in presets if m.capacity_bytes < found.smallest.capacity_bytes]
        assert found.smallest.capacity_bytes >= weights + moments > max([0, *(m.capacity_bytes for m in smaller)]) - 1e-9


def test_what_does_not_fit_is_said_with_both_sizes():
    found = capacity("1.5TB", {"weights": 405e9 * 4, "moments": 405e9 * 8})
    with pytest.raises(ValueError, match=r"moments take most of it, 3.24 TB; the smallest that would do is MemoryX 12 TB") as error:
        found.check()
    assert "4.86 TB of MemoryX 1.5 TB's 1.5 TB" in str(error.value)
    with pytest.raises(ValueError, match="no MemoryX preset is that large"):
        capacity("1.2PB", {"weights": 2e15}).check()
    capacity("12TB", {"weights": 405e9 * 4, "moments": 405e9 * 8}).check()
    assert str(capacity(wse.MemoryX(2e9, name="mine"), {"weights": 1e9})) == "fits: 1 GB of mine's 2 GB"
    assert isinstance(found, Capacity) and isinstance(CLUSTERS["cs3"], ClusterSpec)


def test_sizes_are_said_in_decimal_units():
    assert [size_text(n) for n in (12, 5e6, 1.5e12, 1.2e15)] == ["12 bytes", "5 MB", "1.5 TB", "1.2 PB"]
