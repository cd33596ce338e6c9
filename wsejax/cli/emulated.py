"""The wafer that a program runs on, as flags: `--wafer.rows 64 --wafer.off`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsejax.hardware import DefectMap, Wafer
from wsejax.hardware.devices import request_cpu_devices

from .machine import spec_of


@dataclass(frozen=True)
class WaferSettings:
    """The emulated wafer."""

    off: bool = False
    """Plain jax.jit on one device instead, for comparison; every other wafer flag is then without effect."""
    preset: Literal["WSE1", "WSE2", "WSE3"] = "WSE3"
    """Generation of the wafer-scale engine whose PEs these are."""
    rows: int = 32
    """Rows of PEs on the wafer (its physical grid, before defects)."""
    cols: int = 32
    """Columns of PEs on the wafer."""
    dead_pe_fraction: float = 0.02
    """Share of PEs that are dead, spread evenly at random."""
    dead_link_fraction: float = 0.005
    """Share of links between neighbours that are dead."""
    defect_seed: int = 0
    """Which random defects."""
    defects_file: Path | None = None
    """A saved defect map of this grid, instead of random defects."""
    tiles: tuple[int, int] = (8, 8)
    """Tiles (rows, columns): a tile is a rectangle of PEs that computes as one. More tiles are closer to the machine
    and slower."""
    devices: tuple[int, int] = (2, 2)
    """JAX devices (rows, columns) that emulate the wafer; must divide the tiles. On CPU they are virtual. Never
    changes a result."""

    def build(self, groups: int = 1, processes: int = 1) -> Wafer | None:
        """The wafer, or None where it is off; `groups` of its devices are asked for, an equal part of them in each process. Raises
        ValueError or OSError for what cannot be built."""
        count = 1 if self.off else groups * self.devices[0] * self.devices[1]
        if processes > 1 and count % processes:
            what = "--wafer.off" if self.off else f"--wafer.devices {self.devices[0]} {self.devices[1]}, --cluster.groups {groups}"
            raise ValueError(f"{what}: {processes} processes cannot share {count} device(s); give devices in multiples of the processes")
        if self.off:
            return None
        if min(*self.devices, groups) > 0:  # else Wafer or Cluster says what is wrong with it
            request_cpu_devices(count // processes)
        spec = spec_of(self.preset).scaled(self.rows, self.cols)
        if self.defects_file is not None:
            defects = DefectMap.load(self.defects_file)
        else:
            defects = DefectMap.uniform(
                spec,
                dead_pe_fraction=self.dead_pe_fraction,
                dead_link_fraction=self.dead_link_fraction,
                seed=self.defect_seed,
            )
        return Wafer(spec, defects=defects, tiles=self.tiles, devices=self.devices)
