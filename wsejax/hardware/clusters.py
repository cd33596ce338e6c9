"""Clusters that were built, as records, and whether what is to be trained fits into their memory.

Arithmetic that is often printed wrongly, from the figures of one system: a CS-2 has 850,000 cores and 62.5 "AI" petaflops, which count the
zeros of sparse operands that are skipped; dense it makes 2 x 4 x 850,000 x 1.1 GHz = 7.48 petaflops. So 64 of them are 54.4 million cores
(not 576,000) and 4 "AI" exaflops (not 1.5), of which 0.48 are dense.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from .cluster import MEMORYX, MEMORYX_12T, Cluster, MemoryX, SwarmX
from .records import replaced
from .spec import WSE1, WSE2, WSE3, WaferSpec
from .system import CS2, CS3, SYSTEMS, System
from .wafer import Wafer

# What one cluster may have: Cerebras at Hot Chips 2021 (192 CS-2), CS-3 announcement of 2024 (2,048 CS-3). A CS-1 has no SwarmX.
MOST_SYSTEMS = {"CS-1": 1, "CS-2": 192, "CS-3": 2048}
# The clock at which the vendor's peaks are stated (Hot Chips 2022: "1.1 GHz"); programs run at that of the spec.
VENDOR_CLOCK_HZ = 1.1e9
# Bytes a parameter of mixed-precision training with Adam: 16-bit weight and gradient, 32-bit master copy and two moments (Rajbhandari et
# al., "ZeRO", 2020); in MemoryX all of them 32 bits wide, without the 16-bit copy: master, two moments and gradient, 16 as well.
STATE_BYTES_PER_PARAMETER = 16.0
# The vendor's own: 24 T parameters in 1.2 PB (CS-3 announcement, 2024) are 50 bytes each, so about three times what Adam needs.
VENDOR_PARAMETERS = {"1.2PB": 24e12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """So many equal systems with their memory and the tree that joins them.

    Attributes:
      spec: the wafer in each system, with the figures of its data sheet.
      memoryx: outside memory; None: none is known of.
      source: of the number of systems; and what of the rest is assumed.

    Raises:
      ValueError: a number of systems that is not positive, or more than one cluster can have.
    """

    name: str
    system: System
    spec: WaferSpec
    systems: int
    memoryx: MemoryX | None = MEMORYX_12T
    swarmx: SwarmX = dataclasses.field(default_factory=SwarmX)
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.systems, bool) or not isinstance(self.systems, int) or self.systems < 1:
            raise ValueError(f"systems={self.systems!r}: a cluster {self.name!r} has a positive whole number of them")
        most = MOST_SYSTEMS.get(self.system.name)
        if most is not None and self.systems > most:
            raise ValueError(f"systems={self.systems}: a cluster has at most {most} {self.system.name}; give fewer")

    def replace(self, **changes: Any) -> ClusterSpec:
        """The same with some fields changed. Raises ValueError where a name is no field."""
        return replaced(self, changes)

    def cluster(self, wafer: Wafer, systems: int | None = None, **arguments: Any) -> Cluster:
        """A cluster to compile for, with this memory and tree; `wafer` says how each is emulated. `arguments` as of `Cluster`.

        Raises:
          ValueError: more systems than there are, or arguments that do not fit the wafer.
        """
        systems = self.systems if systems is None else systems
        if systems > self.systems:
            raise ValueError(f"systems={systems}: {self.name} has {self.systems} {self.system.name}; give at most that many")
        return Cluster(wafer, **{"systems": systems, "memoryx": self.memoryx, "swarmx": self.swarmx, **arguments})

    @property
    def marketing_cores(self) -> int:
        """By the data sheet of one system, PEs that no program gets included."""
        return self.systems * self.spec.marketing_cores

    @property
    def pes(self) -> int:
        """That programs get."""
        return self.systems * self.spec.usable_pes

    @property
    def marketing_peak_flops_per_second(self) -> float | None:
        """The "AI" peak, which counts zeros of sparse operands that are skipped."""
        peak = self.spec.marketing_peak_flops_per_second
        return None if peak is None else self.systems * peak

    @property
    def vendor_dense_peak_fp16_flops_per_second(self) -> float:
        """Of all cores of the data sheet at the clock the vendor states: 16 CS-2 are published as 120 petaflops."""
        return 2.0 * self.marketing_cores * self.spec.fp16_fma_per_cycle * VENDOR_CLOCK_HZ

    @property
    def dense_peak_fp16_flops_per_second(self) -> float:
        """Of the PEs that programs get, at their clock: what utilisation is a share of here."""
        return self.systems * float(self.system.dense_peak_fp16_flops_per_second)

    @property
    def sram_bytes(self) -> float:
        """Of all wafers, for data."""
        return self.systems * float(self.system.sram_bytes)

    @property
    def io_bytes_per_second(self) -> float:
        """Each way, of all systems together. Weights are the same for all, so they stream at the rate of one."""
        return self.systems * float(self.system.io_bytes_per_second)

    @property
    def power_watts(self) -> float:
        """Of the systems at their peak, without memory, servers and cooling."""
        return self.systems * float(self.system.peak_watts)

    @property
    def most_parameters(self) -> float:
        """That can be trained with the state in the memory outside; 0 where none is known of."""
        return 0.0 if self.memoryx is None else self.memoryx.most_parameters(STATE_BYTES_PER_PARAMETER)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "system": self.system.name,
            "systems": self.systems,
            "marketing_cores": self.marketing_cores,
            "pes": self.pes,
            "marketing_peak_flops_per_second": self.marketing_peak_flops_per_second,
            "vendor_dense_peak_fp16_flops_per_second": self.vendor_dense_peak_fp16_flops_per_second,
            "dense_peak_fp16_flops_per_second": self.dense_peak_fp16_flops_per_second,
            "sram_bytes": self.sram_bytes,
            "io_bytes_per_second": self.io_bytes_per_second,
            "power_watts": self.power_watts,
            "memoryx_bytes": None if self.memoryx is None else self.memoryx.capacity_bytes,
            "most_parameters": self.most_parameters,
            "source": self.source,
        }


_ASSUMED = "its MemoryX is not published, and the middle option of a CS-3 cluster is assumed"
CLUSTERS = {
    one.name: one
    for one in (
        ClusterSpec(name="cs2", system=CS2, spec=WSE2, systems=1, source=f"one system; {_ASSUMED}"),
        ClusterSpec(name="cs3", system=CS3, spec=WSE3, systems=1, source=f"one system; {_ASSUMED}"),
        ClusterSpec(
            name="andromeda",
            system=CS2,
            spec=WSE2,
            systems=16,
            source="announcement of November 2022: 16 CS-2, 13.5 million cores, 120 petaflops dense, over 1 exaflop 'AI', 500 kW with its "
            f"servers; {_ASSUMED}",
        ),
        ClusterSpec(
            name="cg1",
            system=CS2,
            spec=WSE2,
            systems=64,
            memoryx=MemoryX(82e12, name="CG-1's memory"),
            source="announcement of July 2023: 64 CS-2, 54 million cores, 4 exaflops 'AI'; its memory is twice the 41 TB of the first half "
            "of it, which may include that of servers",
        ),
        ClusterSpec(
            name="cg3",
            system=CS3,
            spec=WSE3,
            systems=64,
            source=f"CS-3 announcement of March 2024: 64 CS-3, 58 million cores, 8 exaflops 'AI'; {_ASSUMED}",
        ),
        ClusterSpec(name="alcf", system=CS3, spec=WSE3, systems=4, source=f"ALCF AI testbed user guides: 4 CS-3; {_ASSUMED}"),
    )
}
_SPECS = {"CS-1": WSE1, "CS-2": WSE2, "CS-3": WSE3}


def cluster_spec(name: str | ClusterSpec) -> ClusterSpec:
    """A preset by its name, such as "andromeda" or "CG-1", or so many systems: "16xcs3". A `ClusterSpec` is given back.

    Raises:
      ValueError: an unknown name, with the known ones, or more systems than a cluster can have.
    """
    if isinstance(name, ClusterSpec):
        return name
    key = re.sub(r"[\s_-]", "", name.lower()) if isinstance(name, str) else ""
    if key in CLUSTERS:
        return CLUSTERS[key]
    found = re.fullmatch(r"(\d+)[x×*](cs\d)", key)
    if found is None or found[2] not in SYSTEMS:
        raise ValueError(f"cluster={name!r}: unknown; known are {', '.join(CLUSTERS)}, and numbers of systems such as 16xcs3")
    kind = SYSTEMS[found[2]]
    many = f"{found[1]} systems; {_ASSUMED}"
    return ClusterSpec(name=f"{int(found[1])}xcs{found[2][2:]}", system=kind, spec=_SPECS[kind.name], systems=int(found[1]), source=many)


# ---- memory outside the wafers ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Capacity:
    """Whether what is kept outside the wafers fits into a MemoryX.

    Attributes:
      parts: bytes by component.
      smallest: the smallest preset that would hold it; None: none does.
    """

    memoryx: MemoryX
    parts: Mapping[str, float]
    smallest: MemoryX | None

    @property
    def total_bytes(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memoryx.capacity_bytes

    def __str__(self) -> str:
        held = f"{size_text(self.total_bytes)} of {self.memoryx.name}'s {size_text(self.memoryx.capacity_bytes)}"
        if self.fits:
            return f"fits: {held}"
        largest = max(self.parts, key=lambda name: self.parts[name])
        would = "no MemoryX preset is that large" if self.smallest is None else f"the smallest that would do is {self.smallest.name}"
        most = f"{largest} take most of it, {size_text(self.parts[largest])}"
        return f"does not fit: {held}; {most}; {would}"

    def check(self) -> None:
        """Raises ValueError where it does not fit; the message names the largest component, both sizes, and what would do."""
        if not self.fits:
            raise ValueError(f"memoryx={self.memoryx.name!r}: the state {self}")


def capacity(memoryx: MemoryX | str, parts: Mapping[str, float]) -> Capacity:
    """Of bytes by component, such as {"weights": 28e9, "moments": 56e9}, against a MemoryX or a preset by its name ("12TB").

    Raises:
      ValueError: an unknown preset, or bytes that are negative.
    """
    if isinstance(memoryx, str):
        key = memoryx.replace(" ", "").upper()
        if key not in MEMORYX:
            raise ValueError(f"memoryx={memoryx!r}: unknown; known are {', '.join(MEMORYX)}, or give a wse.MemoryX of any size")
        memoryx = MEMORYX[key]
    for name, size in parts.items():
        if not size >= 0:
            raise ValueError(f"parts[{name!r}]={size!r}: bytes are not negative")
    total = sum(parts.values())
    enough = sorted((m for m in MEMORYX.values() if m.capacity_bytes >= total), key=lambda m: m.capacity_bytes)
    return Capacity(memoryx, dict(parts), enough[0] if enough else None)


def size_text(size_bytes: float) -> str:
    """1.2e13 -> "12 TB": decimal prefixes."""
    for prefix, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.4g} {prefix}"
    return f"{size_bytes:,.0f} bytes"
