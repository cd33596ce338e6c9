"""What a compiled function does on the fabric, as data: one entry for each kernel call, relayout and unsharded op."""

from __future__ import annotations

import collections
import dataclasses
import math

from wsejax.compiler.ir import Value
from wsejax.kernels.relayout import Layout


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape, dtype and layout of an operand or result."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout

    @classmethod
    def of(cls, value: Value, layout: Layout) -> Array:
        return cls(value.shape, str(value.dtype), layout)

    def __str__(self) -> str:
        dims = ",".join(f"{n}/{a}" if a else str(n) for n, a in zip(self.shape, self.layout, strict=True))
        return f"{self.dtype}[{dims}]"


@dataclasses.dataclass(frozen=True)
class Call:
    """One kernel call.

    `kind` is "kernel" (work that needs the fabric), "relayout" (data moved between layouts), "replicated" (every PE block does the
    same small work, such as random bits) or "unsharded" (no rule: gathered and computed whole; only with strict=False).
    `trips` multiplies it by the loops around it, None inside a `while`. `byte_hops` counts bytes times hops of one trip, a tile a device.
    """

    kind: str
    kernel: str
    ins: tuple[Array, ...]
    outs: tuple[Array, ...]
    source: str
    byte_hops: int = 0
    flops: int = 0
    trips: int | None = 1

    def times(self, trips: int | None) -> Call:
        return dataclasses.replace(self, trips=None if trips is None or self.trips is None else trips * self.trips)

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(map(str, self.ins))}) -> {', '.join(map(str, self.outs))}"


@dataclasses.dataclass(frozen=True)
class Program:
    """The fabric's work in the order of the walk; `local_ops` counts the equations that need no fabric."""

    calls: tuple[Call, ...]
    local_ops: int
    tiles: tuple[int, int]

    def of_kind(self, kind: str) -> tuple[Call, ...]:
        return tuple(c for c in self.calls if c.kind == kind)

    @property
    def byte_hops(self) -> int:
        """Bytes times hops of a run, a `while` body counted once."""
        return sum(c.byte_hops * (c.trips or 1) for c in self.calls)

    def audit(self) -> Audit:
        return Audit(self)


@dataclasses.dataclass(frozen=True)
class Audit:
    """Which operations ran on the fabric, which had to move data first, and which could not, with the user's source lines.

    Printing it gives the report; `clean` says that nothing was computed unsharded.
    """

    program: Program

    @property
    def clean(self) -> bool:
        return not self.program.of_kind("unsharded")

    def __str__(self) -> str:
        p = self.program
        lines = [
            f"wafer program: {p.tiles[0]} x {p.tiles[1]} tiles, {p.byte_hops:,} byte-hops a call (a tile a device), {p.local_ops} local ops"
        ]
        titles = {
            "kernel": "on the fabric",
            "relayout": "moved between layouts by fabric all-gathers",
            "replicated": "computed alike on every block (no bytes moved)",
            "unsharded": "NOT on the fabric: gathered and computed whole on every block",
        }
        for kind, title in titles.items():
            groups: dict[tuple, list[Call]] = collections.defaultdict(list)
            for c in p.of_kind(kind):
                groups[c.kernel, c.source, c.ins, c.outs].append(c)
            lines.append(f"\n{title}: {len(p.of_kind(kind))} calls")
            for (kernel, source, ins, outs), calls in groups.items():
                trips = "unknown" if any(c.trips is None for c in calls) else sum(c.trips or 0 for c in calls)
                moved = calls[0].byte_hops
                lines.append(f"  {trips:>5} x {kernel:<12} {', '.join(map(str, ins))} -> {', '.join(map(str, outs))}")
                lines.append(f"          {source}" + (f"; {moved:,} byte-hops each" if moved else ""))
        return "\n".join(lines)


def dot_flops(a: Value, b: Value, out: Value, contracted: tuple[int, ...]) -> int:
    """Floating-point operations of a product: one multiply and one add for each output element and contracted index."""
    return 2 * math.prod(out.shape) * math.prod(a.shape[d] for d in contracted)
