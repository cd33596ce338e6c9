"""`wsejax specs` and `wsejax wafer`: the machine, and one of its wafers with the defects that it happens to have."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wsejax.hardware import CLUSTERS, SYSTEMS, WSE1, WSE2, WSE3, DefectMap, System, Wafer, WaferSpec, system
from wsejax.hardware.cluster import MEMORYX
from wsejax.hardware.clusters import STATE_BYTES_PER_PARAMETER, VENDOR_PARAMETERS, size_text
from wsejax.report import clusters_table, plot_wafer

from .output import Output, table, with_unit

SPECS = {"wse1": WSE1, "wse2": WSE2, "wse3": WSE3}


FIELDS = tuple(f.name for f in dataclasses.fields(System) if f.name != "name")


def spec_of(name: str) -> WaferSpec:
    """A generation by its name: "wse3", "WSE-3", or that of its system, "cs3".

    Raises:
      ValueError: an unknown name; the message lists the known.
    """
    key = name.lower().replace("-", "").replace("cs", "wse")
    if key not in SPECS:
        raise ValueError(f"spec={name!r}: unknown; known are {', '.join(SPECS)}")
    return SPECS[key]


def changed(base: str, changes: tuple[str, ...]) -> System:
    """A system preset with some fields changed, from texts such as "link_bits=64".

    Raises:
      ValueError: an unknown preset or field, a text without "=" or with no number, or a value that must be in another unit.
    """
    values: dict[str, float] = {}
    for text in changes:
        field, equals, value = text.partition("=")
        name = field.strip().replace("-", "_")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"--set {text}: give FIELD=NUMBER, such as --set link_bits=64")
        if name not in FIELDS and name != "name":
            near = difflib.get_close_matches(name, FIELDS, n=4, cutoff=0.4)
            hint = f"near it: {', '.join(near)}; " if near else ""
            raise ValueError(f"--set {text}: a machine has no {name}; {hint}`wsejax specs` lists its fields")
        if name == "name" or name in values:
            reason = "is given twice" if name in values else "is no number"
            raise ValueError(f"--set {text}: {name} {reason}; give each field once, such as --set link_bits=64")
        values[name] = number
    return system(base).replace(**values)


# Figures of a generation as printed: label and text. The two bandwidths and the two peaks are easily confused, so both stand here.
FIGURES: tuple[tuple[str, Any], ...] = (
    ("physical grid, rows x columns", lambda s: f"{s.rows:,} x {s.cols:,}"),
    ("largest grid of a program", lambda s: f"{s.usable_rows:,} x {s.usable_cols:,}"),
    ("PEs of that grid", lambda s: f"{s.usable_pes:,}"),
    ("cores by the data sheet", lambda s: f"{s.marketing_cores:,}"),
    ("area", lambda s: f"{s.area_mm2:,.0f} mm2"),
    ("clock", lambda s: f"{s.clock_hz / 1e9:.2f} GHz"),
    ("SRAM of a PE", lambda s: f"{s.sram_per_pe_bytes / 1024:.0f} KiB"),
    ("SRAM of a program's grid", lambda s: with_unit(s.sram_bytes, "B")),
    ("SRAM bandwidth, published, bytes", lambda s: with_unit(s.sram_bandwidth_bytes_per_second, "B/s")),
    ("fabric bandwidth, published, bits", lambda s: with_unit(s.fabric_bandwidth_bits_per_second, "b/s")),
    ("  the same in bytes", lambda s: with_unit(s.fabric_bandwidth_bits_per_second / 8, "B/s")),
    ("I/O bandwidth, bits", lambda s: with_unit(s.io_bandwidth_bits_per_second, "b/s")),
    ("  the same in bytes, each way", lambda s: with_unit(s.io_bandwidth_bits_per_second / 8, "B/s")),
    ("dense 16-bit peak of a program's grid", lambda s: with_unit(s.dense_peak_fp16_flops_per_second, "flop/s")),
    ("dense 32-bit peak", lambda s: with_unit(s.dense_peak_fp32_flops_per_second, "flop/s")),
    ("marketing peak, counts skipped zeros", lambda s: _or_none(s.marketing_peak_flops_per_second, "flop/s")),
    ("  times the dense peak", lambda s: _ratio(s)),
    ("multiply-adds a PE and cycle, 16-bit", lambda s: f"{s.fp16_fma_per_cycle:g} ({s.sustained_fp16_fma_per_cycle:g} sustained)"),
    ("multiply-adds a PE and cycle, 32-bit", lambda s: f"{s.fp32_fma_per_cycle:g} ({s.sustained_fp32_fma_per_cycle:g} sustained)"),
    ("cycles of a hop", lambda s: f"{s.hop_cycles:g}"),
    ("cycles of a 32-bit wavelet on a link", lambda s: f"{s.wavelet_cycles:g}"),
    ("colours, reserved of them", lambda s: f"{s.colours}, {s.reserved_colours}"),
    ("power of the system", lambda s: with_unit(s.system_power_watts, "W")),
)
DERIVED = ("pes", "usable_pes", "area_mm2", "sram_bytes", "dense_peak_fp16_flops_per_second", "dense_peak_fp32_flops_per_second")


def _or_none(value: float | None, unit: str) -> str:
    return "not published" if value is None else with_unit(value, unit)


def _ratio(spec: WaferSpec) -> str:
    peak = spec.marketing_peak_flops_per_second
    return "" if peak is None else f"{peak / spec.dense_peak_fp16_flops_per_second:.1f}"


def _memories() -> list[tuple[str, ...]]:
    """What each option of MemoryX trains at 16 bytes a parameter, and by the vendor."""
    claim = lambda n, size: "-" if n is None else f"{with_unit(n, '').strip()} ({size / n:.0f} bytes each)"
    return [
        (m.name, size_text(m.capacity_bytes), with_unit(m.most_parameters(STATE_BYTES_PER_PARAMETER), "", 4),
         claim(VENDOR_PARAMETERS.get(name), m.capacity_bytes))
        for name, m in MEMORYX.items()
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Specs:
    """What each generation is, and what a system made of it takes for granted in prices."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Generations, such as wse3; left out: all."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def run(self) -> Output:
        specs = {spec.name: spec for spec in map(spec_of, self.names or SPECS)}
        systems = {s.name: s for s in (SYSTEMS[name.lower().replace("-", "").replace("wse", "cs")] for name in specs)}
        data = {
            "wafers": {name: dataclasses.asdict(s) | {key: getattr(s, key) for key in DERIVED} for name, s in specs.items()},
            "systems": {name: dataclasses.asdict(s) for name, s in systems.items()},
        }
        clusters = [c for c in CLUSTERS.values() if c.spec.name in specs]
        data["clusters"] = {c.name: c.to_dict() for c in clusters}
        data["memoryx"] = {
            name: {
                "capacity_bytes": m.capacity_bytes,
                "most_parameters": m.most_parameters(STATE_BYTES_PER_PARAMETER),
                "vendor_parameters": VENDOR_PARAMETERS.get(name),
            }
            for name, m in MEMORYX.items()
        }
        figures = [(label, *(text(s) for s in specs.values())) for label, text in FIGURES]
        prices = [(field, *(f"{getattr(s, field):g}" for s in systems.values())) for field in FIELDS]
        parts = (
            table(("wafer", *specs), figures, fold={"wafer": 20, **dict.fromkeys(specs, 12)}),
            "sources: beside each figure in wsejax/hardware/spec.py\n",
            table(("what modelled prices take, by field", *systems), prices, fold={"what modelled prices take, by field": 30}),
            "change one with --set, such as `wsejax cost gpt2 --set link_bits=64`; sources in wsejax/hardware/system.py\n",
            *([clusters_table(clusters), "sources: `--json` and wsejax/hardware/clusters.py\n"] if clusters else []),
            table(("memory outside the wafers", "holds", "parameters at 16 bytes", "the vendor says"), _memories()),
        )
        return Output(data, parts)


@dataclasses.dataclass(frozen=True)
class WaferCommand:
    """Sample the defects of one wafer, embed a logical mesh into what is healthy, and draw it."""

    spec: str = "wse3"
    """Generation: wse1, wse2 or wse3."""
    rows: int | None = None
    """Physical rows of a smaller piece of it; needs `cols`."""
    cols: int | None = None
    """Physical columns of a smaller piece of it; needs `rows`."""
    per_mm2: float = 0.001
    """Defects per square millimetre (about 0.001 on TSMC 5 nm), where `dead_pes` is not given."""
    clustering: float | None = None
    """Shape of the Gamma distribution of each die's density; smaller is more clustered. None: independent (Poisson)."""
    dead_pes: float | None = None
    """Share of dead PEs instead, spread evenly; the popular figure is 0.02."""
    dead_links: float = 0.0
    """Share of dead links, with `dead_pes`."""
    seed: int = 0
    """Which wafer."""
    policy: Literal["usable", "spares", "largest"] = "usable"
    """How large a mesh is wanted: at most the grid that a program gets on a real machine, that very grid, or the largest."""
    max_dilation: int | None = None
    """Most hops of a logical link."""
    max_congestion: int | None = None
    """Most logical links over a physical one; needs `max_dilation`."""
    tiles: tuple[int, int] = (8, 8)
    """Tiles (rows, columns) in the picture."""
    out: Path | None = None
    """Picture to write, such as wafer.png."""
    defects_out: Path | None = None
    """File to keep the defects in, such as defects.npz, for `DefectMap.load`."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def defects(self, spec: WaferSpec) -> DefectMap:
        if self.dead_pes is None:
            if (expected := self.per_mm2 * spec.area_mm2) > 100 * spec.pes:
                raise ValueError(
                    f"--per-mm2 {self.per_mm2:g}: that is {expected:.3g} defects on {spec.pes:,} PEs, and none would live; give less,"
                    " such as 0.001"
                )
            return DefectMap.sample(spec, per_mm2=self.per_mm2, clustering=self.clustering, seed=self.seed)
        return DefectMap.uniform(spec, dead_pe_fraction=self.dead_pes, dead_link_fraction=self.dead_links, seed=self.seed)

    def run(self) -> Output:
        spec = spec_of(self.spec)
        if (self.rows is None) != (self.cols is None):
            raise ValueError(f"--rows {self.rows} and --cols {self.cols}: give both or neither")
        if self.rows is not None and self.cols is not None:
            spec = spec.scaled(self.rows, self.cols)
        limits = {"policy": self.policy, "max_dilation": self.max_dilation, "max_congestion": self.max_congestion}
        wafer = Wafer(spec, self.defects(spec), tiles=self.tiles, devices=(1, 1), **limits)
        mesh, routes, defects = wafer.remap, wafer.routes, wafer.defects
        data = {
            "spec": spec.name,
            "seed": self.seed,
            "physical_grid": [spec.rows, spec.cols],
            "dead_pes": defects.dead_pe_count,
            "dead_links": defects.dead_link_count,
            "logical_grid": list(wafer.logical_grid),
            "logical_pes": wafer.logical_pes,
            "utilisation": wafer.utilisation,
            "physical_utilisation": wafer.physical_utilisation,
            "mean_dilation": mesh.mean_dilation,
            "max_dilation": mesh.max_dilation,
            "congestion": routes.congestion,
            "colours": routes.colours,
            "defects_digest": defects.digest,
        }
        rows = [
            ("physical grid", f"{spec.rows:,} x {spec.cols:,} PEs"),
            ("dead", f"{defects.dead_pe_count:,} PEs ({defects.dead_pe_count / spec.pes:.3%}), {defects.dead_link_count:,} links"),
            ("logical mesh", f"{mesh.rows:,} x {mesh.cols:,} PEs"),
            ("  of the healthy PEs", f"{wafer.utilisation:.2%}"),
            ("  of all PEs", f"{wafer.physical_utilisation:.2%}"),
            ("hops of a logical link", f"{mesh.mean_dilation:.4f} on average, {mesh.max_dilation} at most"),
            ("logical links over one physical", f"{routes.congestion} at most"),
            ("colours that keep routes from deadlock", f"{routes.colours}"),
        ]
        parts: list[Any] = [table((f"{spec.name}, seed {self.seed}", ""), rows, fold={"": 30})]
        for path, write, what in ((self.out, lambda p: plot_wafer(wafer, p), "picture"), (self.defects_out, defects.save, "defects")):
            if path is not None:
                write(path)
                data[f"{what}_path"] = str(path)
                parts.append(f"{what}: {path}")
        return Output(data, parts)
