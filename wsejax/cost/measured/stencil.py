"""Two-dimensional stencils on tiles of cells: star stencils of the SDK simulator, WSE-2 and WSE-3.

The programs (public, Jorineg/cerebras) exchange halos, then accumulate one shifted pass over the tile for each cell of the star: the price
beside our own kernel, `stencil_price`. What is fitted are fields of the machine as these programs see it. Radius 1 has programs of its
own: descriptors stay loaded, so an instruction starts sooner; and on WSE-3 tiles of 4 or more cells a side go through one whose passes
take less than a cycle a cell, and something more for each row that is no multiple of 4 (seen in the numbers; why, is not known).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from wsejax.hardware import CS2, CS3, System
from wsejax.kernels.pe.stencil import box, star, stencil_price

from ..points import Constant, Group, Point, Unpredictable
from .read import in_cycles, itemsize_bytes, positive, sizes, whole

_SHARED = {
    "launch_cycles": Constant(9.0, 1.0, 60.0, "cycles", "before the first element of a vector instruction"),
    "task_cycles": Constant(4.0, 0.0, 40.0, "cycles", "of a task that notes the end of a message"),
    "pass_cycles": Constant(1.0, 0.4, 3.0, "cycles", "of a pass, for each cell"),
    "conflict_cycles": Constant(0.8, 0.0, 2.0, "cycles", "more where the operands of a pass share a bank, for each cell"),
    "near_launch_cycles": Constant(9.0, 0.5, 60.0, "cycles", "the same as launch_cycles, in the program for radius 1"),
}
_WIDE = {
    "near_pass_cycles": Constant(0.8, 0.4, 3.0, "cycles", "the same as pass_cycles, in that program and tiles of less than 4 cells a side"),
    "wide_launch_cycles": Constant(2.0, 0.1, 60.0, "cycles", "the same, in the program for radius 1 and tiles of 4 x 4 or more"),
    "wide_pass_cycles": Constant(0.7, 0.3, 3.0, "cycles", "the same, in the program for radius 1 and tiles of 4 x 4 or more"),
    "odd_row_cycles": Constant(3.0, 0.0, 20.0, "cycles", "more in that program for a row that is no multiple of 4 cells"),
}
_LONE = {
    "own_cycles": Constant(15.0, 1.0, 200.0, "cycles", "of an iteration of one cell that waits for nobody"),
    "neighbour_cycles": Constant(2.0, 0.1, 100.0, "cycles", "for each neighbour along a line that computes, too"),
}
_PLAIN = {"pass_cycles": Constant(3.0, 0.1, 100.0, "cycles", "of a pass, for each cell: scalar code, or vectors of a few cells")}


def _as_seen(system: System, launch: float, task: float, per_cell: float) -> System:
    """The machine with what these programs reach; one wavelet a cycle, as the simulator has it."""
    return system.replace(
        launch_cycles=launch, task_cycles=task, sustained_fp32_fma_per_cycle=1.0 / per_cell,
        sustained_fp16_fma_per_cycle=2.0 / per_cell, fp32_copies_per_cycle=2.0, fp16_copies_per_cycle=4.0, wavelet_cycles=1.0,
    )  # fmt: skip


def _check(point: Point, system: System, width: int, height: int, item: int) -> None:
    """That a tile fits in a PE and in the domain."""
    if point.metric != "cycles_per_iteration":
        raise Unpredictable(f"metric={point.metric!r}: the model covers cycles of an iteration")
    if width * height * item > system.sram_per_pe_bytes:
        raise Unpredictable(f"tile of {width} x {height} cells: more than a PE's {system.sram_per_pe_bytes:,.0f} bytes hold")
    domain = sorted(sizes(point, "grid")[:2]) if point.config.get("grid") is not None else (math.inf, math.inf)
    if any(side > most for side, most in zip(sorted((width, height)), domain, strict=True)):
        raise Unpredictable(f"config has grid={point.config['grid']!r} and tile={point.config['tile']!r}: the tile is larger")


def _tiled(point: Point, c: Mapping[str, float], system: System) -> float:
    width, height = sizes(point, "tile")[:2]
    radius, item = whole(point, "radius"), itemsize_bytes(point)
    _check(point, system, width, height, item)
    if radius > min(width, height):
        raise Unpredictable(f"config has radius={radius} and tile={point.config['tile']!r}: halos come from the next PE only")
    # the PEs at the border hold still, so that those inside always have four neighbours
    price = lambda seen: float(
        stencil_price(seen, (3, 3), (height, width), star(radius), item, conflict_cycles=c["conflict_cycles"] * (radius > 1)).cycles
    )
    if radius > 1:
        return price(_as_seen(system, c["launch_cycles"], c["task_cycles"], c["pass_cycles"]))
    if "wide_pass_cycles" not in c or min(width, height) < 4:
        return price(_as_seen(system, c["near_launch_cycles"], 0.0, c.get("near_pass_cycles", c["pass_cycles"])))
    odd_rows = height * c["odd_row_cycles"] * (width % 4 > 0)
    return price(_as_seen(system, c["wide_launch_cycles"], 0.0, c["wide_pass_cycles"])) + odd_rows


def _lone(point: Point, c: Mapping[str, float]) -> float:
    """One cell a PE, the border at rest: a PE has up to two neighbours along a line that compute, and waits for them."""
    if (radius := whole(point, "radius", default=1)) != 1:
        raise Unpredictable(f"config has radius={radius}: this program knows radius 1 only")
    if "tile" in point.config and set(sizes(point, "tile")[:2]) != {1}:
        raise Unpredictable(f"config has tile={point.config['tile']!r}: this program has one cell a PE")
    _check(point, CS3, 1, 1, itemsize_bytes(point))
    inside = min(sizes(point, "grid")[:2]) - 2
    if inside < 1:
        raise Unpredictable(f"grid={point.config.get('grid')!r}: no cell inside the border")
    return c["own_cycles"] + c["neighbour_cycles"] * min(inside - 1, 2)


def _plain(point: Point, c: Mapping[str, float]) -> float:
    """A star or box named "star2d-3r": passes times cells, iteration after iteration."""
    named = re.search(r"(star|box)2d-?(\d+)r", point.algorithm)
    if point.metric != "device_cycles_max_over_PEs" or named is None:
        raise Unpredictable(f"metric={point.metric!r}: the best case over runs that the source does not describe")
    offsets = star(int(named[2])) if named[1] == "star" else box(int(named[2]))
    if "tile" in point.config or "cells_per_pe_guess" in point.config:
        height, width = sizes(point, "tile", "cells_per_pe_guess")[:2]
        if "domain" in point.config and "pe_array" in point.config:
            (n, m), (rows, cols) = sizes(point, "domain")[:2], sizes(point, "pe_array")[:2]
            if (-(-n // rows), -(-m // cols)) != (height, width):
                stated = f"domain={point.config['domain']!r} on pe_array={point.config['pe_array']!r}"
                raise Unpredictable(f"config has {stated} and {height}x{width} cells a PE: they contradict each other")
    else:
        (n, m), (rows, cols) = sizes(point, "domain")[:2], sizes(point, "pe_array")[:2]
        height, width = -(-n // rows), -(-m // cols)
    return positive(point, "iterations", default=1.0) * len(offsets) * height * width * c["pass_cycles"]


def _wafer(name: str):
    return lambda p: p.experiment == "stencil_2d_star" and name in p.hardware


def _alone(name: str):
    """One cell a PE in a program of its own; the tiled one also runs with a cell a PE."""
    return lambda p: _wafer(name)(p) and "non-tiled" in p.algorithm


GROUPS = (
    Group("2-D stencil, one cell a PE, WSE-2", _alone("WSE-2"), in_cycles(_lone), _LONE, 0.12),
    Group("2-D stencil, one cell a PE, WSE-3", _alone("WSE-3"), in_cycles(_lone), _LONE, 0.12),
    Group("2-D stencil, WSE-2", _wafer("WSE-2"), in_cycles(lambda p, c: _tiled(p, c, CS2)), _SHARED, 0.12),
    Group("2-D stencil, WSE-3", _wafer("WSE-3"), in_cycles(lambda p, c: _tiled(p, c, CS3)), {**_SHARED, **_WIDE}, 0.12),
    Group("2-D stencil, scalar code", lambda p: p.experiment == "stencil_2d", in_cycles(_plain), _PLAIN),
)
