"""The figures of each generation must agree with each other, and a scaled wafer must keep their balance."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.hardware import WSE1, WSE2, WSE3, WaferSpec, spec

PRESETS = pytest.mark.parametrize("wafer", [WSE1, WSE2, WSE3], ids=lambda wafer: wafer.name)


def test_every_figure_has_its_source_beside_it():
    source = inspect.getsource(inspect.getmodule(WaferSpec))
    figures = re.findall(r"^    (?!name)(\w+)=[^,]*,(.*)$", source.split("\nWSE1 = ")[1], flags=re.MULTILINE)
    assert len(figures) == 3 * (len(inspect.signature(WaferSpec).parameters) - 1)  # all but the name
    assert [name for name, comment in figures if not re.match(r"  # \S", comment)] == []


@PRESETS
def test_sram_bandwidth_is_bytes_at_a_clock_near_1_ghz(wafer: WaferSpec):
    per_cycle = wafer.marketing_cores * wafer.sram_bytes_per_cycle_per_pe
    assert 0.93e9 < wafer.sram_bandwidth_bytes_per_second / per_cycle < 1.0e9


@PRESETS
def test_fabric_bandwidth_is_bits_over_both_directions_of_four_links(wafer: WaferSpec):
    per_cycle = wafer.marketing_cores * 4 * 2 * wafer.link_width_bits
    assert 0.92e9 < wafer.fabric_bandwidth_bits_per_second / per_cycle < 1.02e9


@pytest.mark.parametrize(("wafer", "dense_flops_per_second", "ratio"), [(WSE2, 7.48e15, 8.36), (WSE3, 15.84e15, 7.89)])
def test_marketing_peak_is_eight_times_the_dense_peak(wafer: WaferSpec, dense_flops_per_second: float, ratio: float):
    dense = wafer.dense_peak_fp16_flops_per_second / wafer.usable_pes / wafer.clock_hz * wafer.marketing_cores * 1.1e9
    assert dense == pytest.approx(dense_flops_per_second, rel=1e-6)
    assert wafer.marketing_peak_flops_per_second is not None
    assert wafer.marketing_peak_flops_per_second / dense == pytest.approx(ratio, rel=2e-3)


def test_wse1_peak_is_three_times_what_the_stencil_code_reached():
    # Rocki et al., SC 2020: 0.86 PF, about one third of peak
    assert WSE1.dense_peak_fp16_flops_per_second / 0.86e15 == pytest.approx(3, rel=0.1)


def test_wse3_fp32_roofline_of_the_stencil_compiler_paper():
    # MLIR stencil lowering for the WSE, ASPLOS 2026: 18.22 PB/s and 1.52 PF over the 893,064 PEs of the fabric
    share_of_fabric = WSE3.usable_pes / 893_064
    sram = WSE3.usable_pes * WSE3.sram_bytes_per_cycle_per_pe * WSE3.clock_hz
    assert sram / share_of_fabric == pytest.approx(18.22e15, rel=1e-3)
    assert WSE3.dense_peak_fp32_flops_per_second / share_of_fabric == pytest.approx(1.52e15, rel=2e-3)


@PRESETS
def test_the_wafer_is_a_square_of_84_equal_dies(wafer: WaferSpec):
    assert wafer.die_grid == (7, 12)
    assert (wafer.rows, wafer.cols) == (7 * wafer.die_rows, 12 * wafer.die_cols)
    assert wafer.area_mm2 == 46_225
    assert wafer.pe_width_mm * wafer.pe_height_mm * wafer.pes == pytest.approx(wafer.area_mm2)


@pytest.mark.parametrize(("wafer", "cores"), [(WSE1, 381_276), (WSE2, 853_776), (WSE3, 970_000)])
def test_physical_cores(wafer: WaferSpec, cores: int):
    assert wafer.pes == pytest.approx(cores, rel=3e-4)
    assert wafer.usable_pes < wafer.pes


@pytest.mark.parametrize(("wafer", "published_bytes"), [(WSE1, 18e9), (WSE2, 40e9), (WSE3, 44e9)])
def test_sram_of_the_usable_grid_is_near_the_published_total(wafer: WaferSpec, published_bytes: float):
    assert 0.9 < wafer.sram_bytes / published_bytes <= 1.0


@given(st.integers(1, WSE3.rows), st.integers(1, WSE3.cols))
def test_a_scaled_wafer_has_the_same_pe_and_the_same_balance(rows: int, cols: int):
    small = WSE3.scaled(rows, cols)
    assert (small.rows, small.cols) == (rows, cols)
    assert (small.usable_rows, small.usable_cols) == (min(rows, WSE3.usable_rows), min(cols, WSE3.usable_cols))
    assert (small.pe_width_mm, small.pe_height_mm) == pytest.approx((WSE3.pe_width_mm, WSE3.pe_height_mm))
    assert small.die_grid == (-(-rows // WSE3.die_rows), -(-cols // WSE3.die_cols))
    for total in (
        "area_mm2",
        "sram_bandwidth_bytes_per_second",
        "fabric_bandwidth_bits_per_second",
        "marketing_peak_flops_per_second",
        "io_bandwidth_bits_per_second",
        "system_power_watts",
    ):
        assert getattr(small, total) / small.pes == pytest.approx(getattr(WSE3, total) / WSE3.pes), total
    kept = set(vars(WSE3)) - {"name", "rows", "cols", "usable_rows", "usable_cols", "width_mm", "height_mm"}
    kept = {name for name in kept if not name.startswith(("marketing_", "system_")) and "bandwidth" not in name}
    assert {name: getattr(small, name) for name in kept} == {name: getattr(WSE3, name) for name in kept}


@pytest.mark.parametrize(("rows", "cols", "named"), [(0, 4, "rows=0"), (4, 793, "cols=793"), (4, 2.5, "cols=2.5")])
def test_a_wafer_cannot_be_scaled_up_or_to_nothing(rows: int, cols: int, named: str):
    with pytest.raises(ValueError, match=f"{named}: a scaled WSE-3 has 1 to"):
        WSE3.scaled(rows, cols)


@pytest.mark.parametrize(
    ("field", "value"),
    [("clock_hz", -1.0), ("clock_hz", float("nan")), ("rows", 0), ("die_cols", 2.5), ("usable_cols", 999)],
)
def test_impossible_figures_are_refused(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        WSE3.replace(**{field: value})


def test_specs_are_values():
    assert WSE3.replace() == WSE3 and hash(WSE3.replace()) == hash(WSE3)
    assert WSE3.replace(clock_hz=1.1e9) != WSE3
    assert spec.WSE3 is WSE3
