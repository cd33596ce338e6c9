"""Where a planned program runs: the device mesh, how arrays lie on it, and what is round the plan when it is executed.

This is the frame of one wafer. `streaming` has that of a cluster, whose mesh has one more axis and whose arrays may lie in host memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.compiler.arguments import placed
from wsejax.compiler.check import HloReport, check_hlo
from wsejax.compiler.ir import Graph
from wsejax.hardware.wafer import Wafer
from wsejax.kernels.relayout import Layout


@dataclasses.dataclass(eq=False)
class Frame:
    """One wafer's devices."""

    wafer: Wafer

    @property
    def graph(self) -> Graph | None:
        """The graph before what streams was taken out of it; None where nothing streams."""
        return None

    @property
    def wafers(self) -> int:
        """That share a run."""
        return 1

    @property
    def mesh(self) -> Mesh:
        return self.wafer.mesh

    def shardings(self, layouts: Sequence[Layout], results: bool = False) -> list[NamedSharding]:
        """Of the program's arguments, or of its results."""
        return [NamedSharding(self.mesh, PartitionSpec(*layout)) for layout in layouts]

    def given_shardings(self, layouts: Sequence[Layout], results: bool = False) -> list[NamedSharding]:
        """The same of the arrays as the caller has them."""
        return self.shardings(layouts, results)

    def check(self, compiled: Any) -> HloReport:
        """The law of the machine, read from what was compiled. Raises FabricError."""
        return check_hlo(compiled)

    def on_devices(self, run: Callable[..., tuple], ins: Sequence[tuple[int, Layout]], outs: Sequence[Layout]) -> Callable[..., tuple]:
        """`run`, a function of blocks, as one of whole arrays: its arguments are those of the given numbers."""
        specs = lambda layouts: tuple(PartitionSpec(*lay) for lay in layouts)
        return fabric.on_mesh(run, self.mesh, specs([lay for _, lay in ins]), specs(outs))

    def jit_options(self, outs: Sequence[Layout]) -> dict[str, Any]:
        """What `jax.jit` is told besides the shardings of the arguments."""
        return {}

    def shapes(self, shapes: Sequence[jax.ShapeDtypeStruct], shardings: Sequence[NamedSharding]) -> Sequence[jax.ShapeDtypeStruct]:
        """Of the arguments that the compiled program takes."""
        return shapes

    def place(self, flat: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[Any]:
        """Arguments as the compiled program takes them.

        Raises:
          ValueError: arguments lie on the meshes of two wafers.
        """
        return placed(flat, shardings)

    def results(self, flat: Sequence[Any], given: Sequence[Any]) -> Sequence[Any]:
        """What the compiled program gives, as the results of the function called with `given`."""
        return flat

    def check_export(self) -> None:
        """Raises ValueError where programs cannot be exported."""

    def notes(self) -> tuple[str, ...]:
        """What an audit should say besides."""
        return ()
