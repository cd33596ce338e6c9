"""Where a program for a cluster runs: groups of devices along the mesh axis "wafer", and host memory for what lives in MemoryX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.compiler.frame import Frame
from wsejax.hardware import Cluster
from wsejax.kernels.relayout import Layout

HOST = "pinned_host"  # JAX's name of host memory that devices can reach


@dataclasses.dataclass(eq=False)
class ClusterFrame(Frame):
    """A cluster's devices. `ins_away` and `outs_away` say which arguments and results are outside the wafers, `whole` names the stacks of
    layers that had to come in whole all the same."""

    cluster: Cluster
    ins_away: tuple[bool, ...]
    outs_away: tuple[bool, ...]
    whole: tuple[str, ...] = ()

    @property
    def mesh(self) -> Mesh:
        return self.cluster.mesh

    def shardings(self, layouts: Sequence[Layout], results: bool = False) -> list[NamedSharding]:
        away = self.outs_away if results else self.ins_away
        kinds = [{"memory_kind": HOST} if flag else {} for flag in away]
        return [NamedSharding(self.mesh, PartitionSpec(*lay), **kind) for lay, kind in zip(layouts, kinds, strict=True)]

    def jit_options(self, outs: Sequence[Layout]) -> dict[str, Any]:
        return {"out_shardings": tuple(self.shardings(outs, results=True))}

    def on_devices(self, run: Callable[..., tuple], ins: Sequence[tuple[int, Layout]], outs: Sequence[Layout]) -> Callable[..., tuple]:
        specs = lambda layouts: tuple(PartitionSpec(*lay) for lay in layouts)
        return fabric.on_mesh(run, self.mesh, specs([lay for _, lay in ins]), specs(outs))
