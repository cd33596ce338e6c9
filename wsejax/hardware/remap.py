"""Embed a perfect logical mesh into the healthy part of a wafer.

Every logical row lies in one physical row and skips what is dead there (or, turned by a quarter, every logical column
in one physical column). Rows with too few healthy PEs are dropped whole. This is the row bypass and column rerouting of
degradable arrays (Kuo and Chen, IEEE TCAD 1992; Low, IEEE Trans. Computers 2000). Among embeddings of this kind the
mesh has the largest possible area; its columns are then straightened, by a dynamic programme a row.

Where the hops of a logical link are bounded, rows may also step round what they cannot skip (`bounded`).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int

from .bounded import bend_within, clear_lines
from .defects import DefectMap
from .embedding import Remap, measured
from .lines import bend
from .paths import static_routes
from .routes import connected_regions
from .spec import WaferSpec

POLICIES = ("usable", "spares", "largest")
_NARROWER = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # than the width of the largest area, where that has links that are too long


class UnusableWaferError(ValueError):
    """The defects leave no mesh of the wanted size. `rows` x `cols` is the largest mesh that is left, 0 x 0 if none."""

    def __init__(self, message: str, rows: int, cols: int) -> None:
        super().__init__(message)
        self.rows = rows
        self.cols = cols


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A mesh that fits: its size, the region it lies in, and whether logical rows lie in physical columns."""

    rows: int
    cols: int
    region: int
    turned: bool

    @property
    def area(self) -> int:
        return self.rows * self.cols


@dataclasses.dataclass(frozen=True)
class _Limits:
    """The sizes that a mesh may have."""

    min_rows: int
    min_cols: int
    max_rows: int
    max_cols: int

    @property
    def turned(self) -> _Limits:
        return _Limits(self.min_cols, self.min_rows, self.max_cols, self.max_rows)


@functools.lru_cache(maxsize=32)
def remap(
    spec: WaferSpec,
    defects: DefectMap,
    min_rows: int = 1,
    min_cols: int = 1,
    policy: str = "usable",
    max_dilation: int | None = None,
    max_congestion: int | None = None,
) -> Remap:
    """A logical mesh of at least `min_rows` x `min_cols`, as large as `policy` wants it.

    PEs that defects cut off from the rest are left out: a mesh lies in one connected region.

    Args:
      policy: "usable": the largest mesh within the grid that a program can be given on a real machine, `spec.usable_rows` x
        `spec.usable_cols`. "spares": that grid and no smaller one, as the real machine has it; the rest of the PEs are spares.
        "largest": the largest mesh of the whole physical grid.
      max_dilation: most hops of a logical link. None: any number. With a bound the mesh is the largest that was found, in the largest
        region; there is no promise that no larger one exists.
      max_congestion: most logical links over one physical link, in each direction, by `static_routes`. Needs `max_dilation`.

    Raises:
      ValueError: `min_rows`, `min_cols` or `max_dilation` is not positive, an unknown policy, or `defects` is a map of another
        wafer's shape.
      UnusableWaferError: (a ValueError) no such mesh is left; it carries the size of the largest one.
    """
    if defects.shape != (spec.rows, spec.cols):
        raise ValueError(f"defects={defects!r}: {spec.name} has {spec.rows} x {spec.cols} PEs; make the map for this spec")
    for name, least in (("min_rows", min_rows), ("min_cols", min_cols), ("max_dilation", max_dilation), ("max_congestion", max_congestion)):
        if least is not None and least < 1:
            raise ValueError(f"{name}={least!r}: must be at least 1; leave {name} out")
    if max_congestion is not None and max_dilation is None:
        raise ValueError(f"max_congestion={max_congestion}: give max_dilation, too, for example 3 for few defects and 5 for many")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}: must be one of {', '.join(map(repr, POLICIES))}")
    limits = _Limits(min_rows, min_cols, spec.usable_rows, spec.usable_cols)
    if policy == "largest":
        limits = dataclasses.replace(limits, max_rows=spec.rows, max_cols=spec.cols)
    elif policy == "spares":
        limits = _Limits(max(min_rows, spec.usable_rows), max(min_cols, spec.usable_cols), spec.usable_rows, spec.usable_cols)
    regions = connected_regions(defects)
    choices = _largest(regions, limits)
    if not choices:
        left = _largest(regions, dataclasses.replace(limits, min_rows=1, min_cols=1))
        rows, cols = (left[0].rows, left[0].cols) if left else (0, 0)
        wanted = "the fixed grid" if policy == "spares" and rows else "no mesh"
        verb = "does not fit, the spares are used up" if wanted == "the fixed grid" else f"is left on {spec.name}"
        advice = "; or ask for policy='usable'" if wanted == "the fixed grid" else ""
        raise UnusableWaferError(
            f"defects={defects!r}: {wanted} of {limits.min_rows} x {limits.min_cols} logical PEs {verb}; the largest "
            f"has {rows} rows and {cols} cols. Use a map with fewer defects, or a larger wafer{advice}",
            rows,
            cols,
        )
    best = _embed(defects, regions, choices[0])
    for choice in choices[1:]:
        if best.max_dilation == 1:
            break
        best = min(best, _embed(defects, regions, choice), key=lambda embedding: embedding.mean_dilation)
    if max_dilation is None or (best.max_dilation <= max_dilation and _spread_enough(defects, best, max_congestion)):
        return best
    return _bounded(spec, defects, regions == 1, limits, max_dilation, max_congestion, best)


def _spread_enough(defects: DefectMap, mesh: Remap, max_congestion: int | None) -> bool:
    return max_congestion is None or static_routes(defects, mesh).congestion <= max_congestion


def _bounded(
    spec: WaferSpec,
    defects: DefectMap,
    region: Bool[np.ndarray, "rows cols"],
    limits: _Limits,
    max_dilation: int,
    max_congestion: int | None,
    free: Remap,
) -> Remap:
    """The first mesh that can be had: each try is a little narrower than the one before, in the orientation of the larger area first.

    `free` is the mesh without a bound, for the message.
    """
    ways = []
    for turned in (False, True):
        on = DefectMap(defects.dead_pes.T, defects.dead_south_links.T, defects.dead_east_links.T) if turned else defects
        lines = clear_lines(on, region.T if turned else region, max_dilation)
        allowed = limits.turned if turned else limits
        widths = np.minimum(-np.sort(-lines.usable.sum(axis=1)), allowed.max_cols)
        rows = np.minimum(np.arange(1, widths.size + 1), allowed.max_rows)
        area = np.where((rows >= allowed.min_rows) & (widths >= allowed.min_cols), rows * widths, 0)
        if n := int(area.max(initial=0)):
            ways.append((n, int(widths[area.argmax()]), allowed, on, lines, turned))
    ways.sort(key=lambda way: -way[0])
    for mend in (False, True) if max_congestion else (True,):
        for narrower in _NARROWER:
            for _, width, allowed, on, lines, turned in ways:
                cols = width - narrower
                rows = min(int((lines.usable.sum(axis=1) >= cols).sum()), allowed.max_rows)
                if cols < allowed.min_cols or not (placed := bend_within(on, lines, rows, cols, max_dilation, mend)):
                    continue
                row, col = (part.T for part in placed[::-1]) if turned else placed
                mesh = measured(defects, row, col)
                if _spread_enough(defects, mesh, max_congestion):
                    return mesh
    congested = f" and at most {max_congestion} of them over one physical link" if max_congestion else ""
    raise UnusableWaferError(
        f"max_dilation={max_dilation}: no mesh of {limits.min_rows} x {limits.min_cols} logical PEs with links that short{congested} was "
        f"found on {spec.name} with {defects!r}; the largest without a bound has {free.rows} rows and {free.cols} cols and links of up to "
        f"{free.max_dilation} hops. Allow more hops, or a smaller mesh",
        0,
        0,
    )


def _largest(regions: Int[np.ndarray, "rows cols"], limits: _Limits) -> list[_Choice]:
    """All the ways to reach the largest area: at most one a region and orientation."""
    best: list[_Choice] = []
    sizes = np.bincount(regions.ravel())[1:]
    for region, (size, window) in enumerate(zip(sizes, scipy.ndimage.find_objects(regions), strict=True), start=1):
        if size < max(limits.min_rows * limits.min_cols, best[0].area if best else 1):
            break  # regions come largest first
        inside = regions[window] == region
        for turned in (False, True):
            allowed = limits.turned if turned else limits
            # the n rows richest in healthy PEs carry a mesh as wide as the poorest of them
            widths = -np.sort(-inside.sum(axis=0 if turned else 1))
            rows = np.minimum(np.arange(1, widths.size + 1), allowed.max_rows)
            cols = np.minimum(widths, allowed.max_cols)
            area = np.where((rows >= allowed.min_rows) & (cols >= allowed.min_cols), rows * cols, 0)
            n = int(area.argmax())
            if area[n] == 0 or (best and area[n] < best[0].area):
                continue
            size_of_mesh = (int(cols[n]), int(rows[n])) if turned else (int(rows[n]), int(cols[n]))
            choice = _Choice(*size_of_mesh, region, turned)
            best = [*best, choice] if best and choice.area == best[0].area else [choice]
    return best


def _embed(defects: DefectMap, regions: Int[np.ndarray, "rows cols"], choice: _Choice) -> Remap:
    inside = regions == choice.region
    if choice.turned:
        physical_col, physical_row = (part.T for part in bend(inside.T, choice.cols, choice.rows))
    else:
        physical_row, physical_col = bend(inside, choice.rows, choice.cols)
    return measured(defects, physical_row, physical_col)
