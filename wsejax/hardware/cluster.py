"""Several wafers and the memory they are fed from: what a program is compiled for where one wafer is not enough.

Sources: the vendor's MemoryX and SwarmX glossary pages (memory of DRAM and flash outside the wafer that holds all parameters and runs the
optimiser; a tree of nodes of 1:4 that broadcasts weights and adds up gradients at line rate), Hot Chips 2021 and 2024, the CS-3
announcement of 2024 (1.5 TB, 12 TB and 1.2 PB).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from .wafer import Wafer

CLUSTER_AXES = ("wafer", "y", "x")


@dataclasses.dataclass(frozen=True)
class MemoryX:
    """The memory outside the wafers: parameters, fp32 masters and the optimiser's state live there, and stream through.

    Args:
      capacity_bytes: what it holds.
      prefetch_layers: layers of weights on their way while one is worked on; 0 fetches when the layer begins.
      name: of the preset.

    Raises:
      ValueError: no positive capacity, or a number of layers that is not 0, 1 or more.
    """

    capacity_bytes: float = 12e12
    prefetch_layers: int = 1
    name: str = "MemoryX"

    def __post_init__(self) -> None:
        if isinstance(self.capacity_bytes, bool) or not isinstance(self.capacity_bytes, int | float) or not 0 < self.capacity_bytes < 1e21:
            raise ValueError(f"capacity_bytes={self.capacity_bytes!r}: give a positive number of bytes, such as 12e12")
        if isinstance(self.prefetch_layers, bool) or not isinstance(self.prefetch_layers, int) or not 0 <= self.prefetch_layers <= 8:
            raise ValueError(f"prefetch_layers={self.prefetch_layers!r}: give 0 to 8 layers; 1 is double buffering")

    def most_parameters(self, bytes_per_parameter: float = 16.0) -> float:
        """Parameters that it can train: 16 bytes each are a master, two moments and a gradient of float32."""
        return self.capacity_bytes / bytes_per_parameter


MEMORYX_1T5 = MemoryX(1.5e12, name="MemoryX 1.5 TB")  # CS-3 announcement, 2024: the options of a CS-3 cluster
MEMORYX_12T = MemoryX(12e12, name="MemoryX 12 TB")
MEMORYX_1P2 = MemoryX(1.2e15, name="MemoryX 1.2 PB")
MEMORYX = {"1.5TB": MEMORYX_1T5, "12TB": MEMORYX_12T, "1.2PB": MEMORYX_1P2}


@dataclasses.dataclass(frozen=True)
class SwarmX:
    """The tree between MemoryX and the wafers: weights are broadcast down it, gradients added up on the way back.

    Args:
      arity: wafers or nodes below a node. Each adds up what comes from below from first to last, so sums depend on the number of
        wafers and on this, and on nothing else.
      node_seconds: latency of a node. Not published; the I/O latency of a CS-3 (Hot Chips 2026).

    Raises:
      ValueError: an arity below 2, or a latency that is negative or above a second.
    """

    arity: int = 4
    node_seconds: float = 5e-6

    def __post_init__(self) -> None:
        if isinstance(self.arity, bool) or not isinstance(self.arity, int) or not 2 <= self.arity <= 64:
            raise ValueError(f"arity={self.arity!r}: a node has 2 to 64 below it; SwarmX nodes have 4")
        if isinstance(self.node_seconds, bool) or not isinstance(self.node_seconds, int | float) or not 0 <= self.node_seconds <= 1:
            raise ValueError(f"node_seconds={self.node_seconds!r}: give seconds from 0 to 1")

    def depth(self, systems: int) -> int:
        """Levels of nodes over so many wafers."""
        levels, reach = 0, 1
        while reach < systems:
            levels, reach = levels + 1, reach * self.arity
        return levels


class Cluster:
    """Wafers that share each batch, with their memory: give it to `wse.jit` in place of a wafer. Static and hashable.

    Args:
      wafer: each of them. Its devices are those of one group.
      systems: wafers. Each works on its share of the batch; a batch that does not divide is dealt as evenly as can be.
      memoryx: where streamed arguments live. None: a cluster without, on which everything must be resident.
      swarmx: how they are joined.
      groups: device groups that emulate the wafers, each of `wafer.devices` devices: must divide `systems`; a group that emulates
        several wafers works on them side by side. None: the most that can be used. Never changes a result.
      mesh: an existing `jax.sharding.Mesh` with axes ("wafer", "y", "x") instead of `groups` and the wafer's devices, such as one over
        the devices of several processes.

    Raises:
      ValueError: one of the arguments is malformed or does not fit the others; the message says which and what to do.
    """

    wafer: Wafer
    systems: int
    memoryx: MemoryX | None
    swarmx: SwarmX
    groups: int
    _mesh: Mesh | None
    _key: tuple[Any, ...]

    def __init__(
        self,
        wafer: Wafer,
        systems: int = 1,
        memoryx: MemoryX | None = MEMORYX_12T,
        swarmx: SwarmX | None = None,
        groups: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        swarmx = SwarmX() if swarmx is None else swarmx
        for name, value, kind in (("wafer", wafer, Wafer), ("swarmx", swarmx, SwarmX)):
            if not isinstance(value, kind):
                raise ValueError(f"{name}={value!r}: give a wse.{kind.__name__}")
        if memoryx is not None and not isinstance(memoryx, MemoryX):
            raise ValueError(f"memoryx={memoryx!r}: give a wse.MemoryX, or None for a cluster without")
        if wafer.execution == "physical":
            raise ValueError("wafer has execution='physical', which is for programs for PEs; a cluster runs what wse.jit compiles")
        for name, count in (("systems", systems), ("groups", groups)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}={count!r}: give a number of at least 1")
        if mesh is not None:
            if groups is not None:
                raise ValueError(f"groups={groups!r} and mesh={mesh!r}: give one of the two, a mesh fixes its groups")
            if not isinstance(mesh, Mesh) or mesh.axis_names != CLUSTER_AXES:
                raise ValueError(f"mesh={mesh!r}: give a jax.sharding.Mesh with the axes {CLUSTER_AXES}")
            if (mesh.shape["y"], mesh.shape["x"]) != wafer.devices:
                wafer = wafer.replace(devices=(mesh.shape["y"], mesh.shape["x"]), tiles=wafer.tiles)
        groups = _groups(systems, groups, wafer.devices) if mesh is None else int(mesh.shape["wafer"])
        if systems % groups:
            raise ValueError(f"groups={groups}: does not divide systems={systems}; each group of devices emulates equally many wafers")
        values = {"wafer": wafer, "systems": systems, "memoryx": memoryx, "swarmx": swarmx, "groups": groups, "_mesh": mesh}
        for name, value in {**values, "_key": tuple(values.values())}.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Cluster is immutable: use cluster.replace({name}=...)")

    def replace(self, **changes: Any) -> Cluster:
        """A cluster with other arguments. With other `systems` or another `wafer`, groups that are not given are chosen anew.

        Raises:
          TypeError: a name that is no argument.
        """
        keep = {"wafer": self.wafer, "systems": self.systems, "memoryx": self.memoryx, "swarmx": self.swarmx}
        if unknown := sorted(changes.keys() - {*keep, "groups", "mesh"}):
            raise TypeError(f"{', '.join(unknown)}: Cluster.replace takes {', '.join(keep)}, groups, mesh")
        if not changes.keys() & {"groups", "mesh", "systems", "wafer"}:
            keep |= {"groups": self.groups} if self._mesh is None else {"mesh": self._mesh}
        return Cluster(**(keep | changes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def lanes(self) -> int:
        """Wafers that each group of devices emulates."""
        return self.systems // self.groups

    @functools.cached_property
    def _made_mesh(self) -> Mesh:
        shape = (self.groups, *self.wafer.devices)
        devices = np.array(jax.devices()[: shape[0] * shape[1] * shape[2]]).reshape(shape)
        return Mesh(devices, CLUSTER_AXES, axis_types=(AxisType.Auto,) * 3)

    @property
    def mesh(self) -> Mesh:
        """The device mesh, axes ("wafer", "y", "x") of type Auto."""
        given = self._mesh
        return self._made_mesh if given is None else Mesh(given.devices, CLUSTER_AXES, axis_types=(AxisType.Auto,) * 3)

    def __repr__(self) -> str:
        memory = "no MemoryX" if self.memoryx is None else f"{self.memoryx.name}, {self.memoryx.capacity_bytes / 1e12:g} TB"
        many = f"{self.systems} wafers on {self.groups} groups of {self.wafer.devices[0]} x {self.wafer.devices[1]} devices"
        return f"Cluster of {many}, {memory}, SwarmX nodes of 1:{self.swarmx.arity}; each wafer:\n{self.wafer!r}"


def _groups(systems: int, groups: int | None, devices: tuple[int, int]) -> int:
    """The given number of groups, checked against the devices there are, or the most."""
    each = devices[0] * devices[1]
    if groups == 1 or systems == 1:
        return groups or 1
    there = jax.device_count()
    if groups is None:
        return max(g for g in range(1, systems + 1) if systems % g == 0 and (g == 1 or g * each <= there))
    if groups * each > there:
        raise ValueError(
            f"groups={groups}: {groups} groups of {devices[0]} x {devices[1]} devices need {groups * each} devices, and JAX has {there} "
            f"({jax.default_backend()}). Give fewer groups (a group can emulate several wafers), or for virtual CPU devices call "
            f"wse.request_cpu_devices({groups * each}) at the start of the program"
        )
    return groups
