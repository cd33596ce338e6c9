"""Where a program for a cluster runs: groups of devices along the mesh axis "wafer", and host memory for what lives in MemoryX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.compiler.arguments import placed
from wsejax.compiler.check import HloReport, check_hlo
from wsejax.compiler.frame import Frame
from wsejax.compiler.ir import Graph
from wsejax.compiler.walk import Context
from wsejax.fabric import swarm
from wsejax.hardware import Cluster
from wsejax.kernels.relayout import Layout
from wsejax.streaming.partition import Share

HOST = "pinned_host"  # JAX's name of host memory that devices can reach


@dataclasses.dataclass(eq=False)
class ClusterFrame(Frame):
    """A cluster's devices. `ins_away` and `outs_away` say which arguments and results are outside the wafers, `in_shares` and `out_shares`
    how wafers share them, `whole` names the stacks of layers that had to come in whole all the same.

    What wafers share is one array with a leading axis of wafers, dealt when the program is called. Where each wafer has a group of devices
    of its own and all have equally many rows, it is the array as it was, split over the groups.
    """

    cluster: Cluster
    ins_away: tuple[bool, ...]
    outs_away: tuple[bool, ...]
    in_shares: tuple[Share | None, ...]
    out_shares: tuple[Share | None, ...]
    whole: tuple[str, ...] = ()
    ctx: Context | None = None  # in which the program was planned
    before: Graph | None = None  # the graph that streaming was put into
    pairs: tuple[tuple[int, int], ...] = ()  # numbers of streamed arguments, and of the results in their place
    driver: Any = None  # of states on disk, made when one is given

    @property
    def graph(self) -> Graph | None:
        return self.before

    @property
    def wafers(self) -> int:
        return self.cluster.systems

    @property
    def mesh(self) -> Mesh:
        return self.cluster.mesh

    def _split(self, share: Share | None) -> bool:
        """Whether it is shared without being dealt."""
        return share is not None and self.cluster.lanes == 1 and share.rows % self.cluster.systems == 0

    def _dealt(self, share: Share | None) -> bool:
        return share is not None and not self._split(share)

    def _spec(self, lay: Layout, share: Share | None) -> PartitionSpec:
        if share is None:
            return PartitionSpec(*lay)
        if self._dealt(share):
            return PartitionSpec("wafer", *lay)
        return PartitionSpec(*((("wafer", a) if a else "wafer") if d == share.dim else a for d, a in enumerate(lay)))

    def shardings(self, layouts: Sequence[Layout], results: bool = False) -> list[NamedSharding]:
        away, shares = (self.outs_away, self.out_shares) if results else (self.ins_away, self.in_shares)
        return [
            NamedSharding(self.mesh, self._spec(lay, share), **({"memory_kind": HOST} if flag else {}))
            for lay, share, flag in zip(layouts, shares, away, strict=True)
        ]

    def given_shardings(self, layouts: Sequence[Layout], results: bool = False) -> list[NamedSharding]:
        shares = self.out_shares if results else self.in_shares
        whole = NamedSharding(self.mesh, PartitionSpec())
        return [whole if self._dealt(share) else s for s, share in zip(self.shardings(layouts, results), shares, strict=True)]

    def jit_options(self, outs: Sequence[Layout]) -> dict[str, Any]:
        return {"out_shardings": tuple(self.shardings(outs, results=True))}

    def on_devices(self, run: Callable[..., tuple], ins: Sequence[tuple[int, Layout]], outs: Sequence[Layout]) -> Callable[..., tuple]:
        shares = [self.in_shares[n] for n, _ in ins]
        specs = tuple(self._spec(lay, self.in_shares[n]) for n, lay in ins)
        results = tuple(self._spec(lay, share) for lay, share in zip(outs, self.out_shares, strict=True))
        axes = lambda shares: [None if share is None else 0 for share in shares]
        each = swarm.lanes(run, self.cluster.lanes, axes(shares), axes(self.out_shares)) if self.cluster.systems > 1 else run

        def group(*blocks):
            given = [x[None] if self._split(share) else x for x, share in zip(blocks, shares, strict=True)]
            return tuple(x[0] if self._split(share) else x for x, share in zip(each(*given), self.out_shares, strict=True))

        return fabric.on_mesh(group, self.mesh, specs, results)

    def shapes(self, shapes: Sequence[jax.ShapeDtypeStruct], shardings: Sequence[NamedSharding]) -> list[jax.ShapeDtypeStruct]:
        sizes = (self._shape(x.shape, share) for x, share in zip(shapes, self.in_shares, strict=True))
        new = lambda x, size, s: jax.ShapeDtypeStruct(size, x.dtype, sharding=s, weak_type=x.weak_type)
        return [new(x, size, s) for x, size, s in zip(shapes, sizes, shardings, strict=True)]

    def _shape(self, shape: tuple[int, ...], share: Share | None) -> tuple[int, ...]:
        if share is None or not self._dealt(share):
            return shape
        mine = -(-share.rows // self.cluster.systems) * share.multiple
        return (self.cluster.systems, *(mine if d == share.dim else n for d, n in enumerate(shape)))

    def place(self, flat: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[Any]:
        """As on a wafer; what a program of the caller's traces on its devices goes out for the call, and `results` come back."""
        flat = [jax.device_put(x, jax.memory.Space.Host) if _traced_here(x) and self.ins_away[n] else x for n, x in enumerate(flat)]
        return placed([self.deal(x, n) for n, x in enumerate(flat)], shardings)

    def deal(self, x: Any, n: int) -> Any:
        """Argument `n` as the compiled program takes it."""
        share = self.in_shares[n]
        return swarm.deal(x, share.dim, self.cluster.systems, share.multiple) if share is not None and self._dealt(share) else x

    def results(self, flat: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        back = any(_traced_here(x) for x, away in zip(given, self.ins_away, strict=True) if away)
        found = [
            swarm.collect(x, share.dim, share.size, share.multiple) if share is not None and self._dealt(share) else x
            for x, share in zip(flat, self.out_shares, strict=True)
        ]
        return [jax.device_put(x, jax.memory.Space.Device) if back and self.outs_away[n] else x for n, x in enumerate(found)]

    def check_export(self) -> None:
        raise ValueError(
            "programs for a cluster cannot be exported: export that of its wafer, wse.jit(fun, cluster.wafer).lower(...).export()"
        )

    def notes(self) -> tuple[str, ...]:
        return tuple(f"came in whole, and not layer by layer: {what}" for what in self.whole)

    def with_wafers(self, x: Any, n: int) -> Any:
        """Argument `n` of the compiled program with the axis of wafers in front, where they share it."""
        share = self.in_shares[n]
        return x if share is None or not self._split(share) else swarm.deal(x, share.dim, self.cluster.systems, share.multiple)

    def without_wafers(self, x: Any, n: int) -> Any:
        """Result `n` as the caller gets it, from an array with the axis of wafers in front (if there are several)."""
        share = self.out_shares[n]
        if self.cluster.systems == 1:
            return x
        return x[0] if share is None else swarm.collect(x, share.dim, share.size, share.multiple)

    def check(self, compiled: Any) -> HloReport:
        many = self.cluster
        return check_hlo(compiled, self.wafer.devices, many.groups, swarm.edges(many.systems, many.groups, many.swarmx.arity))


def _traced_here(x: Any) -> bool:
    """Whether it is a value of a program that is being traced, and in device memory there."""
    return isinstance(x, jax.core.Tracer) and jax.typeof(x).memory_space == jax.memory.Space.Device
