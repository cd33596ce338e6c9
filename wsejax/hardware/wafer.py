"""The wafer a program is compiled for: a grid of PEs with its defects, cut into tiles, laid on devices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from .defects import DefectMap
from .embedding import Remap
from .paths import Routes, static_routes
from .remap import POLICIES, UnusableWaferError, remap
from .spec import WaferSpec

Grid = tuple[int, int]
Accumulate = str | tuple[str, str]
REDUCTIONS = ("chain", "tree", "two_phase")
ACCUMULATORS = ("float32", "operand")
EXECUTIONS = ("logical", "physical")


class Wafer:
    """A static, hashable description of the machine. Programs see the logical grid, a perfect rectangle of PEs.

    Args:
      spec: the generation, or a scaled piece of it.
      defects: dead PEs and links of the physical grid. None: a perfect wafer.
      tiles: (rows, cols) of tiles. A tile is a rectangle of PEs that computes as one; tiles of one wafer differ by at
        most one row or column of PEs. None: one tile a device.
      devices: (rows, cols) of JAX devices, which must divide `tiles`. None: the most devices that can be used, in the
        grid nearest to a square.
      mesh: an existing `jax.sharding.Mesh` with axes ("y", "x"), instead of `devices`.
      reduction: the order in which the tiles of a line are combined: "chain", "tree" or "two_phase".
      policy: how large the logical mesh is: "usable", "spares" or "largest" (see `remap`).
      max_dilation: most hops of a logical link, None for any number (see `remap`).
      max_congestion: most logical links over one physical link, None for any number (see `remap`).
      accumulate: dtype in which bfloat16 and float16 numbers are added up, in a tile and from tile to tile: "float32" (rounded once, at the
        end) or "operand" (rounded to the operand's dtype); or a pair, one for each: ("float32", "operand") adds up in float32 in a tile
        and rounds what leaves it. The multiply-adds of a product are float32 in a tile in any case, then rounded. `wse.accumulating` says
        it of single operations.
      execution: "logical", or "physical": programs of `wafer_map` run on the whole physical grid, PE by PE and hop by hop. A tile is then
        one PE: the program's mesh is the `tiles` in the north-west corner of the logical mesh. None for tiles: all of it.

    Results depend on `tiles`, `reduction` and `accumulate`, never on `devices`. More than one device, given or found, starts JAX's
    backends.

    Raises:
      ValueError: one of the arguments is malformed or does not fit the others; the message says which and what to do.
      UnusableWaferError: (a ValueError) the defects leave too few logical PEs.
    """

    spec: WaferSpec
    defects: DefectMap
    remap: Remap
    tiles: Grid
    devices: Grid
    reduction: str
    accumulate: Accumulate
    policy: str
    max_dilation: int | None
    max_congestion: int | None
    execution: str
    _arguments: dict[str, Any]
    _mesh: Mesh | None
    _key: tuple[Any, ...]

    def __init__(
        self,
        spec: WaferSpec,
        defects: DefectMap | None = None,
        tiles: Grid | None = None,
        devices: Grid | None = None,
        mesh: Mesh | None = None,
        reduction: str = "chain",
        accumulate: Accumulate = "float32",
        policy: str = "usable",
        max_dilation: int | None = None,
        max_congestion: int | None = None,
        execution: str = "logical",
    ) -> None:
        if not isinstance(spec, WaferSpec):
            raise ValueError(f"spec={spec!r}: give a WaferSpec such as WSE3 or WSE3.scaled(32, 32)")
        if defects is None:
            defects = DefectMap.none(spec)
        if not isinstance(defects, DefectMap):
            raise ValueError(f"defects={defects!r}: give a DefectMap, for example DefectMap.none(spec)")
        if defects.shape != (spec.rows, spec.cols):
            raise ValueError(
                f"defects={defects!r}: {spec.name} has {spec.rows} x {spec.cols} physical PEs; make the map for this "
                f"spec, or use spec.scaled{defects.shape}"
            )
        if devices is not None and mesh is not None:
            raise ValueError(f"devices={devices!r} and mesh={mesh!r}: give one of the two, a mesh fixes its devices")
        tiles = None if tiles is None else _checked_grid("tiles", tiles)
        devices = None if devices is None else _checked_grid("devices", devices)
        for name, value, known in (
            ("reduction", reduction, REDUCTIONS),
            ("policy", policy, POLICIES),
            ("execution", execution, EXECUTIONS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, known))}")
        accumulate = checked_accumulate(accumulate)
        bounds = {"max_dilation": max_dilation, "max_congestion": max_congestion}
        for name, value in bounds.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r}: give a number of at least 1, or None for no bound")
        options = {"reduction": reduction, "accumulate": accumulate, "policy": policy, **bounds, "execution": execution}
        arguments = {"spec": spec, "defects": defects, "tiles": tiles, "devices": devices, "mesh": mesh, **options}
        if mesh is not None:
            devices = _grid_of_mesh(mesh)

        least = tiles or devices or (1, 1)
        embedding = _embed(spec, defects, least, "tiles" if tiles else "devices", {"policy": policy, **bounds})
        if devices is None:
            devices = _default_devices(tiles, (embedding.rows, embedding.cols))
        if execution == "physical":
            tiles = tiles or (embedding.rows, embedding.cols)
        tiles = tiles or devices
        if execution == "logical" and (tiles[0] % devices[0] or tiles[1] % devices[1]):
            multiple = tuple(-(-tile // device) * device for tile, device in zip(tiles, devices, strict=True))
            raise ValueError(
                f"tiles={tiles}: not divisible by devices={devices} on each axis; choose tiles in multiples of the "
                f"devices, such as tiles={multiple}, or other devices"
            )
        if mesh is None and devices != (1, 1):
            _check_device_count(devices)
        values = {
            "spec": spec,
            "defects": defects,
            "remap": embedding,
            "tiles": tiles,
            "devices": devices,
            "_arguments": arguments,
            "_mesh": mesh,
            **options,
            "_key": (spec, defects, tiles, devices, mesh, *options.values()),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Wafer is immutable: use wafer.replace({name}=...)")

    def replace(self, **changes: Any) -> Wafer:
        """A wafer with other arguments; those that were left to their defaults are chosen anew.

        `devices=` drops a given mesh and `mesh=` drops given devices.
        """
        arguments = dict(self._arguments)
        unknown = sorted(changes.keys() - arguments.keys())
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: Wafer.replace takes {', '.join(arguments)}")
        if changes.get("devices") is not None:
            arguments["mesh"] = None
        if changes.get("mesh") is not None:
            arguments["devices"] = None
        return Wafer(**(arguments | changes))

    def kill(self, pes: Sequence[Grid] = (), links: Sequence[tuple[Grid, Grid]] = ()) -> Wafer:
        """This wafer after more of it died, remapped: the same tiles and devices on another logical mesh, so the same results.

        Args:
          pes: physical (row, col) of PEs that died.
          links: pairs of neighbouring PEs whose link died.

        Raises:
          ValueError: a PE off the wafer, a link that leads nowhere.
          UnusableWaferError: (a ValueError) what is left does not hold the tiles, or the policy's mesh.
        """
        return self.replace(defects=self.defects.with_dead(pes, links), tiles=self.tiles, **self._devices_or_mesh())

    def _devices_or_mesh(self) -> dict[str, Any]:
        return {"devices": self.devices} if self._arguments["mesh"] is None else {"mesh": self._arguments["mesh"]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wafer) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def logical_grid(self) -> Grid:
        """Logical PEs (rows, cols): what a program sees."""
        return self.remap.rows, self.remap.cols

    @property
    def logical_pes(self) -> int:
        return self.remap.rows * self.remap.cols

    @functools.cached_property
    def routes(self) -> Routes:
        """The static route of every logical link (see `static_routes`)."""
        return static_routes(self.defects, self.remap)

    @property
    def healthy_pes(self) -> int:
        return self.spec.pes - self.defects.dead_pe_count

    @property
    def utilisation(self) -> float:
        """Logical PEs over healthy PEs."""
        return self.logical_pes / self.healthy_pes

    @property
    def physical_utilisation(self) -> float:
        """Logical PEs over all PEs of the physical grid."""
        return self.logical_pes / self.spec.pes

    @property
    def tile_rows(self) -> tuple[int, ...]:
        """Rows of PEs in each row of tiles, north to south; they differ by at most one."""
        return (1,) * self.tiles[0] if self.execution == "physical" else _split_evenly(self.remap.rows, self.tiles[0])

    @property
    def tile_cols(self) -> tuple[int, ...]:
        """Columns of PEs in each column of tiles, west to east; they differ by at most one."""
        return (1,) * self.tiles[1] if self.execution == "physical" else _split_evenly(self.remap.cols, self.tiles[1])

    @property
    def mesh(self) -> Mesh:
        """The device mesh, axes ("y", "x") of type Auto: of the given one's devices, or the first of `jax.devices()` with Auto axes."""
        mesh = self._mesh
        if mesh is not None and set(mesh.axis_types) != {AxisType.Auto}:
            mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto, AxisType.Auto))
            object.__setattr__(self, "_mesh", mesh)
        if mesh is None:
            count = self.devices[0] * self.devices[1]
            grid = np.array(jax.devices()[:count]).reshape(self.devices)
            mesh = Mesh(grid, ("y", "x"), axis_types=(AxisType.Auto, AxisType.Auto))
            object.__setattr__(self, "_mesh", mesh)
        return mesh

    def __repr__(self) -> str:
        rows, cols = self.logical_grid
        lines = [
            ("physical grid", f"{self.spec.rows} x {self.spec.cols} PEs"),
            (
                "dead",
                f"{self.defects.dead_pe_count} PEs ({self.defects.dead_pe_count / self.spec.pes:.3%}), "
                f"{self.defects.dead_link_count} links",
            ),
            (
                "logical grid",
                f"{rows} x {cols} PEs ({self.utilisation:.1%} of the healthy, {self.physical_utilisation:.1%} of the physical)",
            ),
            ("dilation", f"mean {self.remap.mean_dilation:.3f}, max {self.remap.max_dilation} hops a logical link"),
            (
                "tiles",
                f"{self.tiles[0]} x {self.tiles[1]} of {_span(self.tile_rows)} x {_span(self.tile_cols)} PEs",
            ),
            ("devices", f"{self.devices[0]} x {self.devices[1]}, {self.execution} execution"),
            ("sums", f"{self.reduction}, accumulated in {_accumulated(self.accumulate)}"),
        ]
        return "\n".join([f"Wafer {self.spec.name}", *(f"  {label:<14}{text}" for label, text in lines)])


def checked_accumulate(accumulate: Any) -> Accumulate:
    """(in a tile, from tile to tile); the one word where both are the same.

    Raises:
      ValueError: an unknown word.
    """
    pair = (accumulate, accumulate) if isinstance(accumulate, str) else accumulate
    if not isinstance(pair, tuple | list) or len(pair) != 2 or any(one not in ACCUMULATORS for one in pair):
        raise ValueError(f"accumulate={accumulate!r}: must be one of {', '.join(map(repr, ACCUMULATORS))}, or a pair of them")
    return pair[0] if pair[0] == pair[1] else (pair[0], pair[1])


def _accumulated(accumulate: Accumulate) -> str:
    in_tile, on_line = (("float32" if one == "float32" else "the dtype of the operand") for one in both_accumulators(accumulate))
    return in_tile if in_tile == on_line else f"{in_tile} in a tile, in {on_line} from tile to tile"


def both_accumulators(accumulate: Accumulate) -> tuple[str, str]:
    """In a tile, and from tile to tile."""
    return (accumulate, accumulate) if isinstance(accumulate, str) else accumulate


def _checked_grid(name: str, grid: object) -> Grid:
    if (
        isinstance(grid, tuple | list)
        and len(grid) == 2
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in grid)
    ):
        return grid[0], grid[1]
    raise ValueError(f"{name}={grid!r}: give two positive integers (rows, cols), such as {name}=(2, 2)")


def _grid_of_mesh(mesh: Any) -> Grid:
    if not isinstance(mesh, Mesh) or mesh.axis_names != ("y", "x"):
        raise ValueError(f'mesh={mesh!r}: give a jax.sharding.Mesh with the two axes ("y", "x"), or devices=(rows, cols)')
    return mesh.shape["y"], mesh.shape["x"]


def _embed(spec: WaferSpec, defects: DefectMap, least: Grid, name: str, how: dict[str, Any]) -> Remap:
    """The logical mesh; a grid of tiles or devices larger than it is an error that names `name`."""
    try:
        return remap(spec, defects, *least, **how)
    except UnusableWaferError as error:
        if least == (1, 1) or not error.rows or (error.rows >= least[0] and error.cols >= least[1]):
            raise
        raise ValueError(
            f"{name}={least}: more {name} than logical PEs, of which {spec.name} has {error.rows} x {error.cols} at "
            f"most ({defects!r}); use fewer {name} on an axis, a larger wafer, or fewer defects"
        ) from error


def _default_devices(tiles: Grid | None, logical_grid: Grid) -> Grid:
    """The largest grid, then the nearest to a square, of the devices at hand; wide rather than tall."""
    count = jax.device_count()
    limit = tiles or logical_grid

    def fits(grid: Grid) -> bool:
        if tiles is None:
            return grid[0] <= limit[0] and grid[1] <= limit[1]
        return tiles[0] % grid[0] == 0 and tiles[1] % grid[1] == 0

    grids = [(y, x) for y in range(1, count + 1) for x in range(1, count // y + 1) if fits((y, x))]
    return max(grids, key=lambda grid: (grid[0] * grid[1], min(grid), grid[1]))


def _check_device_count(devices: Grid) -> None:
    needed, there = devices[0] * devices[1], jax.device_count()
    if needed > there:
        raise ValueError(
            f"devices={devices}: {needed} devices, but JAX has {there} ({jax.default_backend()}). Use fewer, or for "
            f"virtual CPU devices call wse.request_cpu_devices({needed}) at the start of the program (or start it with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed})"
        )


def _split_evenly(count: int, parts: int) -> tuple[int, ...]:
    size, larger = divmod(count, parts)
    return (size + 1,) * larger + (size,) * (parts - larger)


def _span(sizes: tuple[int, ...]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low}-{high}"
