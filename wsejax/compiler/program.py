"""What a compiled function does on the fabric, as data: one entry for each kernel call, relayout and unsharded op."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from wsejax.compiler.ir import Value
from wsejax.kernels.relayout import Layout
from wsejax.kernels.work import Work


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape, dtype and layout of an operand or result. `number` tells values of a program apart: what a call reads, an earlier one with
    that number among its results has made. A loop's body has the numbers of what goes in and comes out."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    size_bytes: int
    number: int = dataclasses.field(default=-1, compare=False)

    @classmethod
    def of(cls, value: Value, layout: Layout, number: int = -1) -> Array:
        return cls(value.shape, str(value.dtype), layout, value.size_bytes, number)

    def __str__(self) -> str:
        dims = ",".join(f"{n}/{a}" if a else str(n) for n, a in zip(self.shape, self.layout, strict=True))
        return f"{self.dtype}[{dims}]"


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of known length. `number` tells loops of one source line apart."""

    source: str
    length: int
    number: int = -1


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A loop or branch of which only the run knows how often it is entered: a `while`, or number `branch` of the `branches` of a `cond`."""

    source: str
    number: int = -1  # tells those of one source line apart
    branch: int = -1
    branches: int = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """One kernel call, or the work of one operation that needs no fabric.

    `kind` is "kernel" (work that needs the fabric), "relayout" (data moved between layouts), "replicated" (every PE block does the
    same small work, such as random bits), "unsharded" (no rule: gathered and computed whole; only with strict=False), "local" (every
    block has what it needs), "inside" (an operation in a kernel of the user's), "stream" (kernel "load": `ins` come from MemoryX to every
    wafer; "store": they go from the wafers to MemoryX, added up on the way; "swarm": they are added up over the wafers and sent back) or
    "memoryx" (work done outside the wafer, which no PE takes part in). `loops` are those around it whose length is known, from
    the outside in, and `trips` their product; `under` names those of unknown length, and branches. `byte_hops` counts bytes times hops of
    one trip of the emulation, a tile a device; `work` is what it asks of the PE grid.
    """

    kind: str
    primitive: str
    kernel: str
    ins: tuple[Array, ...]
    outs: tuple[Array, ...]
    source: str
    byte_hops: int = 0
    flops: int = 0
    loops: tuple[Loop, ...] = ()
    under: tuple[Unknown, ...] = ()
    work: tuple[Work, ...] = ()

    def looped(self, loop: Loop) -> Call:
        """The call inside one more loop."""
        return dataclasses.replace(self, loops=(loop, *self.loops))

    @property
    def trips(self) -> int:
        return math.prod(loop.length for loop in self.loops)

    def inside(self, unknown: Unknown) -> Call:
        """The call inside a `while`, or a branch of a `cond`."""
        return dataclasses.replace(self, under=(unknown, *self.under))

    @property
    def count(self) -> int | None:
        """How often it runs, None where that is known only when it runs."""
        return None if self.under else self.trips

    @property
    def stream_bytes(self) -> tuple[int, int]:
        """Bytes of one trip (into each wafer, out of each wafer); nothing unless it is a call of kind "stream"."""
        if self.kind != "stream":
            return 0, 0
        size = sum(a.size_bytes for a in self.ins)
        return size * (self.kernel in ("load", "swarm")), size * (self.kernel in ("store", "swarm"))

    @property
    def array_bytes(self) -> int:
        """Bytes of all operands and results."""
        return sum(a.size_bytes for a in (*self.ins, *self.outs))

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(map(str, self.ins))}) -> {', '.join(map(str, self.outs))}"


@dataclasses.dataclass(frozen=True)
class Program:
    """All work in the order of the walk; `local_ops` counts the equations that need no fabric.

    `weights` are the floating-point arguments that products or tables read (of those that are donated, if any is), `weight_names` their
    paths in the arguments; `reads` says by an array's number which of them it is: whole, a slice or a view. `state_bytes` are those of all
    arguments that are donated. `wafers` share each run; the sizes are those of one of them.
    """

    calls: tuple[Call, ...]
    local_ops: int
    tiles: tuple[int, int]
    weights: tuple[Array, ...] = ()
    state_bytes: int = 0
    wafers: int = 1
    weight_names: tuple[str, ...] = ()
    reads: Mapping[int, int] = dataclasses.field(default_factory=dict, compare=False)

    def of_kind(self, kind: str) -> tuple[Call, ...]:
        return tuple(c for c in self.calls if c.kind == kind)

    @property
    def byte_hops(self) -> int:
        """Bytes times hops of a run, the body of a `while` counted once."""
        return sum(c.byte_hops * c.trips for c in self.calls)

    @property
    def streams(self) -> bool:
        """Whether the program itself says what comes from MemoryX and goes there."""
        return any(c.kind == "stream" for c in self.calls)

    @property
    def stream_bytes(self) -> tuple[int, int]:
        """Bytes of a run (into each wafer, out of each wafer), the body of a `while` counted once."""
        loads, stores = ([c.stream_bytes[way] * c.trips for c in self.calls] for way in (0, 1))
        return sum(loads), sum(stores)

    @property
    def weight_bytes(self) -> int:
        return sum(a.size_bytes for a in self.weights)


def dot_flops(a: Value, b: Value, out: Value, contracted: tuple[int, ...]) -> int:
    """Floating-point operations of a product: one multiply and one add for each output element and contracted index."""
    return 2 * math.prod(out.shape) * math.prod(a.shape[d] for d in contracted)
