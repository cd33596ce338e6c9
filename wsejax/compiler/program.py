"""What a compiled function does on the fabric, as data: one entry for each kernel call, relayout and unsharded op."""

from __future__ import annotations

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
    size_bytes: int

    @classmethod
    def of(cls, value: Value, layout: Layout) -> Array:
        return cls(value.shape, str(value.dtype), layout, value.size_bytes)

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
    primitive: str
    kernel: str
    ins: tuple[Array, ...]
    outs: tuple[Array, ...]
    source: str
    byte_hops: int = 0
    flops: int = 0
    trips: int | None = 1

    def times(self, trips: int | None) -> Call:
        return dataclasses.replace(self, trips=None if trips is None or self.trips is None else trips * self.trips)

    @property
    def array_bytes(self) -> int:
        """Bytes of all operands and results."""
        return sum(a.size_bytes for a in (*self.ins, *self.outs))

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


def dot_flops(a: Value, b: Value, out: Value, contracted: tuple[int, ...]) -> int:
    """Floating-point operations of a product: one multiply and one add for each output element and contracted index."""
    return 2 * math.prod(out.shape) * math.prod(a.shape[d] for d in contracted)
