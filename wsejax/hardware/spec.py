"""What a wafer-scale engine is: one frozen record per generation, each figure with its unit and its source.

Sources, by the short name used beside the figures:

  HC31, HC34, HC24, HC26   Cerebras talks at Hot Chips 31 (2019), 34 (2022), 2024 and 2026
  SC20                     Rocki et al., "Fast Stencil-Code Computation on a Wafer-Scale Processor", SC 2020
  SC23                     Ltaief et al., TLR-MVM on 48 CS-2 systems, SC 2023
  HPDC24                   Luczynski et al., "Near-Optimal Wafer-Scale Reduce", HPDC 2024, arXiv 2404.15888
  SDK                      Cerebras SDK documentation, white paper and csl-examples repository
  WaferLLM                 He et al., OSDI 2025, and the MeshInfra/WaferLLM repository
  Yield                    Cerebras blog, "100x Defect Tolerance"
  ALCF                     WSE-3 Characterization Findings, ALCF CS-3 (FABRICA benchmark repository)
  data sheet               Cerebras CS-1, CS-2 and CS-3 product pages

Two pairs of figures are easily confused and are separate fields here: SRAM bandwidth (published in petaBYTES a second)
and fabric bandwidth (petaBITS a second); dense peak (computed from lanes and clock) and marketing peak (with sparsity).
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaferSpec:
    """One generation of wafer-scale engine, or a smaller rectangle of the same PEs (`scaled`).

    Rows count along y (north to south), columns along x (west to east). The physical grid `rows` x `cols` is where a
    `DefectMap` lives; a program gets at most `usable_rows` x `usable_cols` of it, the rest is spare and host halo.
    """

    name: str
    rows: int  # physical grid
    cols: int
    usable_rows: int  # the largest rectangle a program can be given
    usable_cols: int
    die_rows: int  # PEs of one die (reticle), north to south
    die_cols: int
    marketing_cores: int
    width_mm: float
    height_mm: float
    clock_hz: float
    sram_per_pe_bytes: int
    sram_bytes_per_cycle_per_pe: int
    sram_bandwidth_bytes_per_second: float  # published, whole wafer, bytes
    fabric_bandwidth_bits_per_second: float  # published, whole wafer, bits, summed over both directions of every link
    link_width_bits: int
    hop_cycles: float
    wavelet_cycles: float
    ramp_cycles: float
    turn_cycles: float
    fp16_fma_per_cycle: float  # nominal, per PE
    fp32_fma_per_cycle: float
    sustained_fp16_fma_per_cycle: float  # what vector instructions reach, per PE
    sustained_fp32_fma_per_cycle: float
    marketing_peak_flops_per_second: float | None  # "AI" peak, counts skipped zeros
    io_bandwidth_bits_per_second: float
    system_power_watts: float
    colours: int
    reserved_colours: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and (not math.isfinite(value) or value < 0):
                raise ValueError(f"{field.name}={value!r}: a wafer's figures are finite and not negative")
        for name in ("rows", "cols", "usable_rows", "usable_cols", "die_rows", "die_cols"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: a count of PEs is a positive integer")
        if self.usable_rows > self.rows or self.usable_cols > self.cols:
            raise ValueError(
                f"usable_rows={self.usable_rows}, usable_cols={self.usable_cols}: the usable grid cannot exceed the "
                f"physical grid of {self.rows} x {self.cols} PEs"
            )

    @property
    def pes(self) -> int:
        """PEs of the physical grid."""
        return self.rows * self.cols

    @property
    def usable_pes(self) -> int:
        """PEs of the largest rectangle a program can be given."""
        return self.usable_rows * self.usable_cols

    @property
    def area_mm2(self) -> float:
        return self.width_mm * self.height_mm

    @property
    def pe_width_mm(self) -> float:
        """East-west pitch: the share of the wafer's width that one PE takes, scribe lines included."""
        return self.width_mm / self.cols

    @property
    def pe_height_mm(self) -> float:
        """North-south pitch, scribe lines included."""
        return self.height_mm / self.rows

    @property
    def die_grid(self) -> tuple[int, int]:
        """Dies (rows, cols) that the physical grid touches; a scaled wafer may end inside a die."""
        return math.ceil(self.rows / self.die_rows), math.ceil(self.cols / self.die_cols)

    @property
    def sram_bytes(self) -> int:
        """SRAM of the usable grid."""
        return self.usable_pes * self.sram_per_pe_bytes

    @property
    def dense_peak_fp16_flops_per_second(self) -> float:
        """2 flops x lanes x clock over the usable grid, no sparsity."""
        return 2.0 * self.usable_pes * self.fp16_fma_per_cycle * self.clock_hz

    @property
    def dense_peak_fp32_flops_per_second(self) -> float:
        return 2.0 * self.usable_pes * self.fp32_fma_per_cycle * self.clock_hz

    def replace(self, **changes: object) -> WaferSpec:
        """The same wafer with some fields changed, for example `WSE3.replace(clock_hz=1.1e9)`."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def scaled(self, rows: int, cols: int) -> WaferSpec:
        """A `rows` x `cols` rectangle cut from this wafer's north-west corner, with the same PE, die and clock.

        What belongs to a PE (SRAM, lanes, hop, link, colours) is kept. Width and height follow the PE pitch. The dies
        keep their size, so the rectangle holds fewer. Every total of the wafer or its system (marketing cores and peak,
        SRAM, fabric and I/O bandwidth, power) is multiplied by the share of physical PEs that remains, which keeps the
        balance of compute, memory and I/O. All of the rectangle is usable, up to the usable grid of this wafer.

        Raises:
          ValueError: `rows` or `cols` is no positive integer, or is larger than this wafer.
        """
        for name, value, limit in (("rows", rows, self.rows), ("cols", cols, self.cols)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{name}={value!r}: a scaled {self.name} has 1 to {limit} {name}; choose one of these")
        share = rows * cols / self.pes
        peak = self.marketing_peak_flops_per_second
        return self.replace(
            name=f"{self.name} scaled to {rows} x {cols}",
            rows=rows,
            cols=cols,
            usable_rows=min(rows, self.usable_rows),
            usable_cols=min(cols, self.usable_cols),
            marketing_cores=max(1, round(self.marketing_cores * share)),
            width_mm=self.pe_width_mm * cols,
            height_mm=self.pe_height_mm * rows,
            sram_bandwidth_bytes_per_second=self.sram_bandwidth_bytes_per_second * share,
            fabric_bandwidth_bits_per_second=self.fabric_bandwidth_bits_per_second * share,
            marketing_peak_flops_per_second=None if peak is None else peak * share,
            io_bandwidth_bits_per_second=self.io_bandwidth_bits_per_second * share,
            system_power_watts=self.system_power_watts * share,
        )


WSE1 = WaferSpec(
    name="WSE-1",
    rows=623,  # 7 dies of 89 PEs; die drawing reproduced in notes on SC20 (marketing says 400,000 cores in all)
    cols=612,  # 12 dies of 51 PEs; the same drawing
    usable_rows=595,  # SC20: a 602 x 595 fabric, of which programs used 600 x 595
    usable_cols=600,  # SC20
    die_rows=89,  # SC20 die drawing: 4,539 = 89 x 51 cores
    die_cols=51,  # SC20 die drawing
    marketing_cores=400_000,  # HC31
    width_mm=215.0,  # HC31: 46,225 mm2, a square of 215 mm
    height_mm=215.0,  # HC31
    clock_hz=0.85e9,  # derived: SC20's 0.86 PF at a third of peak, 380,000 PEs of 8 flop; up to 0.94 is consistent
    sram_per_pe_bytes=48 * 1024,  # SC20: 48 KB a core
    sram_bytes_per_cycle_per_pe=24,  # SC20: a 16-byte read and an 8-byte write each cycle
    sram_bandwidth_bytes_per_second=9e15,  # data sheet: 9 PB/s
    fabric_bandwidth_bits_per_second=100e15,  # data sheet: 100 Pb/s
    link_width_bits=32,  # SC20
    hop_cycles=1.0,  # SC20: single-cycle hop
    wavelet_cycles=1.0,  # SC20: one wavelet a cycle and direction
    ramp_cycles=2.0,  # HPDC24 on WSE-2, assumed the same here
    turn_cycles=0.0,  # none reported
    fp16_fma_per_cycle=4.0,  # SC20: 4-wide half-precision multiply-add
    fp32_fma_per_cycle=1.0,  # WSE-2's figure (HPDC24), assumed the same here
    sustained_fp16_fma_per_cycle=4.0,  # no measurement published: nominal
    sustained_fp32_fma_per_cycle=1.0,  # no measurement published: nominal
    marketing_peak_flops_per_second=None,  # not published
    io_bandwidth_bits_per_second=1.2e12,  # data sheet: 12 x 100 GbE
    system_power_watts=20e3,  # data sheet: about 20 kW
    colours=24,  # SDK: 24 routable colours
    reserved_colours=3,  # SDK: 21 to 23 belong to the memcpy runtime
)

WSE2 = WaferSpec(
    name="WSE-2",
    rows=1078,  # HC34: 7 dies of 154 cores
    cols=792,  # HC34: 12 dies of 66 cores
    usable_rows=994,  # SDK, SC23: programs up to 750 x 994 of a 757 x 996 fabric
    usable_cols=750,  # SDK, SC23: 745,500 PEs a system
    die_rows=154,  # HC34: 66 x 154 cores on a die of 17 x 30 mm
    die_cols=66,  # HC34
    marketing_cores=850_000,  # HC34
    width_mm=215.0,  # HC34: 46,225 mm2
    height_mm=215.0,  # HC34
    clock_hz=0.85e9,  # HPDC24 and SDK timing examples; HC34 and WaferLLM give 1.1 GHz as the maximum
    sram_per_pe_bytes=48 * 1024,  # HC34: 8 banks of 6 KB
    sram_bytes_per_cycle_per_pe=24,  # HC34: two 64-bit reads and one 64-bit write each cycle
    sram_bandwidth_bytes_per_second=20e15,  # HC34: 20 PB/s
    fabric_bandwidth_bits_per_second=220e15,  # HC34: 220 Pb/s
    link_width_bits=32,  # HC34
    hop_cycles=1.0,  # HC34, HPDC24
    wavelet_cycles=1.0,  # HPDC24
    ramp_cycles=2.0,  # HPDC24: T_R of about 2
    turn_cycles=0.0,  # HPDC24: the model needs none
    fp16_fma_per_cycle=4.0,  # HC34: 4-wide fp16, 64-bit datapath
    fp32_fma_per_cycle=1.0,  # HC34
    sustained_fp16_fma_per_cycle=4.0,  # SDK simulator without bank conflicts
    sustained_fp32_fma_per_cycle=1.0,  # SDK simulator without bank conflicts; 0.5 with them
    marketing_peak_flops_per_second=62.5e15,  # data sheet: 62.5 "AI" petaflops
    io_bandwidth_bits_per_second=1.2e12,  # data sheet: 12 x 100 GbE
    system_power_watts=23e3,  # data sheet: 23 kW peak
    colours=24,  # SDK
    reserved_colours=3,  # SDK: memcpy runtime
)

WSE3 = WaferSpec(
    name="WSE-3",
    rows=1225,  # derived: 7 dies of 175, see die_rows
    cols=792,  # derived: 12 dies of 66, see die_rows
    usable_rows=1170,  # SDK and WaferLLM device flags: a 762 x 1172 fabric, less 2 rows of host halo (SDK memcpy)
    usable_cols=755,  # the same fabric, less 7 columns of host halo (SDK memcpy)
    die_rows=175,  # derived, low confidence: 84 dies (HC24) of WSE-2's 66 columns make Yield's 970,000 cores
    die_cols=66,  # WSE-2's die (HC34), assumed the same
    marketing_cores=900_000,  # HC24
    width_mm=215.0,  # HC24: 46,225 mm2
    height_mm=215.0,  # HC24
    clock_hz=0.85e9,  # SDK timing examples; unpublished, measurements imply 0.75 to 1.1 GHz
    sram_per_pe_bytes=48 * 1024,  # ALCF
    sram_bytes_per_cycle_per_pe=24,  # HC34's port count, which reproduces the bandwidth below at 1 GHz
    sram_bandwidth_bytes_per_second=21e15,  # HC24: 21 PB/s
    fabric_bandwidth_bits_per_second=214e15,  # HC24: 214 Pb/s
    link_width_bits=32,  # SDK
    hop_cycles=2.0,  # ALCF: 2.000 cycles over 2,100 samples of 1 to 128 hops
    wavelet_cycles=1.125,  # ALCF: 8 wavelets every 9 cycles, on silicon
    ramp_cycles=2.0,  # HPDC24 on WSE-2, assumed the same here
    turn_cycles=20.0,  # ALCF: a route that turns between x and y, on silicon
    fp16_fma_per_cycle=8.0,  # HC24: 8-wide fp16
    fp32_fma_per_cycle=1.0,  # nominal, as WSE-2
    sustained_fp16_fma_per_cycle=2.92,  # ALCF: vector instructions on silicon
    sustained_fp32_fma_per_cycle=0.50,  # ALCF
    marketing_peak_flops_per_second=125e15,  # HC24: 125 "AI" petaflops
    io_bandwidth_bits_per_second=1.2e12,  # data sheet: 12 x 100 GbE
    system_power_watts=23e3,  # HC24: the same power as CS-2
    colours=24,  # SDK
    reserved_colours=3,  # SDK: memcpy runtime
)
