"""Models of published points: what they do where nothing was measured, and with whole kinds of points left out of the fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsejax.cost import validation as V
from wsejax.cost.measured.read import CS3_SIMULATED, itemsize_bytes, number, sizes, system_of
from wsejax.cost.points import Point, Unpredictable
from wsejax.cost.table import published
from wsejax.hardware import CS2, CS3


def of(point_id: str, **config) -> Point:
    known = next(p for p in published() if p.id == point_id)
    return dataclasses.replace(known, id="made up", config={**known.config, **config})


def modelled(point: Point) -> float:
    group = V.claimant(point)
    assert group is not None
    return V.predict(group, point, V.shipped_fits()[group.name].constants)


def held_out_errors(name: str, key) -> list[float]:
    """Errors of all points of a group, each kind of them predicted by a fit to the others."""
    group = next(g for g in V.groups() if g.name == name)
    mine = [p for p in published() if V.claimant(p) is group]
    errors = []
    for kind in {key(p) for p in mine}:
        constants = V.fit(group, [p for p in mine if key(p) != kind])
        errors += [abs(V.predict(group, p, constants) / p.value - 1) for p in mine if key(p) == kind]
    return errors


@pytest.mark.parametrize(
    ("name", "key", "aim"),
    [
        ("SpMM", lambda p: p.algorithm, 0.12),
        ("SpMM", lambda p: p.config["M"], 0.12),
        ("Multicast", lambda p: p.config["bytes"], 0.05),
        ("Multicast", lambda p: p.config["receivers"], 0.05),
    ],
    ids=["format", "columns", "bytes", "receivers"],
)
def test_a_kind_of_points_that_the_fit_never_saw_is_predicted_as_well(name, key, aim):
    assert np.median(held_out_errors(name, key)) <= aim


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field"), [("2-D stencil, WSE-2", "radius"), ("2-D stencil, WSE-3", "tile")])
def test_tiles_and_radii_that_the_fit_never_saw_are_predicted_as_well(name, field):
    assert np.median(held_out_errors(name, lambda p: p.config[field])) <= 0.12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 7), st.sampled_from(["wse2-50x50-t10x10", "wse3-100x100-t20x20"]))
def test_a_larger_tile_and_a_wider_star_take_longer(width, height, radius, which):
    """By more than alignment can take back: four more rows and columns."""
    base = f"jorineg-base-{which}-r1"
    radius = min(radius, width, height)
    at = lambda w, h, r: modelled(of(base, tile=f"{w}x{h}", radius=r, grid=None))
    assert 0 < at(width, height, radius) < 2.2 * at(width + 4, height + 4, radius)
    # radius 1 has a program of its own, which is never slower
    assert at(width + 8, height + 8, radius) < 1.1 * at(width + 8, height + 8, radius + 1)


@given(st.integers(1, 700), st.integers(1, 10_000))
def test_a_multicast_is_longer_to_more_receivers_and_with_more_bytes(receivers, size_bytes):
    at = lambda n, b: modelled(of("epcc-multicast-1024B-N64-median", receivers=n, bytes=b, wavelets=None))
    shortest = modelled(of("epcc-multicast-64B-N1-min", receivers=receivers, bytes=size_bytes, wavelets=None))
    assert shortest <= at(receivers, size_bytes) < at(receivers + 1, size_bytes) < at(receivers + 1, size_bytes + 4)


@pytest.mark.parametrize("fmt", ["coo", "csr", "csc", "ellpack"])
def test_a_denser_matrix_takes_longer_and_what_is_stored_can_be_estimated(fmt):
    """Without the published count of stored entries, the longest of random rows stands for it."""
    points = [p for p in published() if p.id.startswith(f"spmm-{fmt}-")]
    for p in points:
        config = {k: v for k, v in p.config.items() if k != "total_flops"}
        estimated = modelled(dataclasses.replace(p, id="made up", config=config))
        assert estimated == pytest.approx(p.value, rel=0.25)
        denser = modelled(dataclasses.replace(p, id="made up", config={**config, "density_percent": 2 * config["density_percent"]}))
        assert denser >= estimated if fmt == "ellpack" else denser > 1.2 * estimated  # whose longest row may be full


def test_rates_and_hops_come_from_the_machine_that_the_point_names():
    assert system_of(of("alcf-copy-fp16-sim")) is CS3_SIMULATED
    assert system_of(of("alcf-copy-fp16-silicon")) is CS3
    assert system_of(of("spmm-mal-gemm-16x16x32")) is CS2
    with pytest.raises(Unpredictable, match="names 0 generations"):
        system_of(dataclasses.replace(of("alcf-hop"), hardware="a brick"))
    with pytest.raises(Unpredictable, match="names 2 generations"):
        system_of(dataclasses.replace(of("alcf-hop"), hardware="CS-2 and CS-3"))
    west = modelled(of("alcf-west-8", hops=32)) - modelled(of("alcf-west-8", hops=8))
    assert west == 24 * CS3.hop_cycles


CONTRADICTIONS = [
    ("epcc-multicast-1024B-N64-median", dict(bytes=-4), "bytes=-4: must be a number that is not negative"),
    ("epcc-multicast-1024B-N64-median", dict(bytes=0), "bytes=0: must be positive"),
    ("epcc-multicast-1024B-N64-median", dict(bytes=64), "bytes=64 and wavelets=256"),
    ("epcc-multicast-1024B-N64-median", dict(receivers=5000), "a line has at most 1170 PEs"),
    ("jorineg-nontiled-wse3-9x9-t1x1-r1", dict(radius=2), "radius=2: this program knows radius 1 only"),
    ("jorineg-nontiled-wse3-9x9-t1x1-r1", dict(tile="3x3"), "one cell a PE"),
    ("jorineg-base-wse2-50x50-t10x10-r1", dict(tile="400x400", grid=None), "more than a PE's 49,152 bytes hold"),
    ("jorineg-base-wse2-50x50-t10x10-r1", dict(tile="60x60"), "the tile is larger"),
    ("jorineg-base-wse2-50x50-t10x10-r1", dict(radius=11), "halos come from the next PE only"),
    ("jorineg-base-wse2-50x50-t10x10-r1", dict(radius=1.5), "must be a whole number"),
    ("jorineg-base-wse2-50x50-t10x10-r1", dict(tile="0x10"), "sizes must be positive"),
    ("fabrica-laplacian2d-halo", dict(M=80), "they contradict each other"),
    ("spmm-coo-64x8-1024x1024x68-d5", dict(density_percent=60.0), "entries stored in a PE"),
    ("spmm-coo-64x8-1024x1024x68-d5", dict(Nt=1.0), "they contradict each other"),
    ("spmm-coo-64x8-1024x1024x68-d5", dict(dtype="fp16"), "32 bits"),
    ("waferllm-t6-meshgemv-16384", dict(M=8), "M=8: products with one vector"),
    ("lit-md-ta", dict(atoms=2_000_000), "atoms=2,000,000: one a PE, and the wafer has 850,000"),
]


@pytest.mark.parametrize(("point_id", "changes", "words"), CONTRADICTIONS, ids=[f"{i}-{c}" for i, c, _ in CONTRADICTIONS])
def test_what_contradicts_itself_gets_a_reason_that_names_it(point_id, changes, words):
    assert modelled(of(point_id)) > 0
    with pytest.raises(Unpredictable) as reason:
        modelled(of(point_id, **changes))
    assert words in str(reason.value)


@pytest.mark.parametrize(
    "point_id",
    ["epcc-multicast-1024B-N64-median", "jorineg-base-wse2-50x50-t10x10-r1", "spmm-coo-64x8-1024x1024x68-d5", "alcf-west-8",
     "fabrica-laplacian2d-halo", "epcc-kvshift-Pw64", "waferllm-t6-meshgemv-16384", "lit-sc20-iter"],
)  # fmt: skip
def test_times_follow_their_unit_and_other_units_are_refused(point_id):
    p = of(point_id)
    in_us, in_ms, in_cycles = (modelled(dataclasses.replace(p, unit=unit)) for unit in ("us", "ms", "cycles"))
    assert in_us == pytest.approx(1e3 * in_ms)
    assert 300 < in_cycles / in_us < 1200  # the clocks of the sources, in MHz
    with pytest.raises(Unpredictable, match="unit='furlongs'"):
        modelled(dataclasses.replace(p, unit="furlongs"))


@given(st.integers(1, 749), st.integers(1, 16))
def test_more_rows_and_channels_fill_the_host_s_link(rows, channels):
    at = lambda r, c: modelled(of("epcc-hostio-h2d-memcpy-64x16", rect=f"64x{r}", channels=c))
    assert at(rows, channels) < at(rows + 1, channels) < 12.5
    assert at(rows, channels) <= at(rows, channels + 1)


def test_narrower_elements_are_faster_and_a_larger_product_slower():
    at = lambda n, dtype="fp16": modelled(of("waferllm-t6-meshgemv-16384", K=n, N=n, dtype=dtype))
    assert at(4096) < at(16384) < at(32768)
    assert at(16384, "int8") <= at(16384) < at(16384, "fp32")
    with pytest.raises(Unpredictable, match="a block is more than one of them holds"):
        at(10**6)


def test_what_a_config_lacks_is_named():
    p = of("alcf-west-8")
    with pytest.raises(Unpredictable, match="does not state wavelets or bytes"):
        number(p, "wavelets", "bytes")
    with pytest.raises(Unpredictable, match="as sizes such as 86x14"):
        sizes(p, "tile")
    with pytest.raises(Unpredictable, match="dtype='soft'"):
        itemsize_bytes(of("alcf-west-8", dtype="soft"))
    assert number(of("alcf-west-8", hops="12"), "hops") == 12.0
    assert [itemsize_bytes(of("alcf-west-8", dtype=d)) for d in ("fp32", "bf16", "int8", "i16")] == [4, 2, 1, 2]
    with pytest.raises(Unpredictable, match="an unknown format"):
        modelled(dataclasses.replace(of("spmm-coo-64x8-1024x1024x68-d5"), algorithm="DIA (diagonals)"))


def test_literature_with_nothing_fitted_stays_within_a_third():
    """Single points of abstracts: a solver and a transform, by prices of vector instructions and links alone."""
    assert modelled(of("lit-sc20-iter")) == pytest.approx(28.1, rel=0.2)
    fft = Point(id="f", source="s", hardware="CS-2", experiment="fft_3d", metric="time", unit="us", value=959.0, config={"n": 512})
    assert modelled(fft) == pytest.approx(959.0, rel=0.33)  # wsFFT, ICS 2023: 512^3 complex64 on 512 x 512 PEs
    seismic = dataclasses.replace(fft, experiment="stencil_25pt", metric="performance", unit="TFLOP/s", config={})
    assert modelled(seismic) == pytest.approx(503.0, rel=0.33)  # Jacquelin et al., SC22
