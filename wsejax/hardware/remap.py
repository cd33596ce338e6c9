"""Embed a perfect logical mesh into the healthy part of a wafer.

Every logical row lies in one physical row and skips what is dead there (or, turned by a quarter, every logical column
in one physical column). Rows with too few healthy PEs are dropped whole. This is the row bypass and column rerouting of
degradable arrays (Kuo and Chen, IEEE TCAD 1992; Low, IEEE Trans. Computers 2000). Among embeddings of this kind the
mesh has the largest possible area; its columns are then straightened, by a dynamic programme a row.

Where the hops of a logical link are bounded, rows may also step round what they cannot skip (`bounded`). In regions of a few dozen PEs
any placement is tried (`small`), and one hop leaves the largest rectangle without defects (`clear`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int

from .bounded import bend_within, clear_lines
from .clear import clear_rectangle
from .defects import DefectMap
from .embedding import Remap, measured
from .lines import bend
from .paths import static_routes
from .routes import connected_regions
from .small import MOST_PES, place_anywhere
from .spec import WaferSpec

POLICIES = ("usable", "spares", "largest")
_NARROWER = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # than the width of the largest area, where that has links that are too long
_MANY_HOPS = 9


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
      max_dilation: most hops of a logical link. None: any number. With a bound the mesh is the largest that was found; there is no
        promise that no larger one exists (on wafers of 6 x 6 there hardly ever is, `most_logical_pes` bounds it elsewhere). Without one
        the lines are straight, but where "spares" or, by more than a row or a column, "largest" would fall short of what there is.
      max_congestion: most logical links over one physical link, in each direction, by `static_routes`. Needs `max_dilation`.

    Raises:
      ValueError: `min_rows`, `min_cols` or `max_dilation` is not positive, an unknown policy, or `defects` is a map of another
        wafer's shape.
      UnusableWaferError: (a ValueError) no such mesh is left, or was found; it carries the size of the largest one that was.
    """
    if defects.shape != (spec.rows, spec.cols):
        raise ValueError(f"defects={defects!r}: {spec.name} has {spec.rows} x {spec.cols} PEs; make the map for this spec")
    for name, least in (("min_rows", min_rows), ("min_cols", min_cols), ("max_dilation", max_dilation), ("max_congestion", max_congestion)):
        if least is not None and (not isinstance(least, int | np.integer) or isinstance(least, bool)):
            raise ValueError(f"{name}={least!r}: give an integer of at least 1")
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
    mesh, free = _mesh(defects, regions, limits, policy, max_dilation, max_congestion)
    if mesh is not None:
        return mesh
    any_size = dataclasses.replace(limits, min_rows=1, min_cols=1)
    left, left_free = _mesh(defects, regions, any_size, policy, max_dilation, max_congestion)
    raise _unusable(spec, defects, regions, limits, policy, (max_dilation, max_congestion), left, free or left_free)


def _mesh(
    defects: DefectMap,
    regions: Int[np.ndarray, "rows cols"],
    limits: _Limits,
    policy: str,
    max_dilation: int | None,
    max_congestion: int | None,
) -> tuple[Remap | None, Remap | None]:
    """The mesh within the bounds, and the one of straight lines without a bound; None for what was not found."""
    free = _straight(defects, regions, limits)
    mesh = free
    if free is None and policy == "spares" and max_dilation is None and limits.min_rows * limits.min_cols <= (regions == 1).sum():
        mesh = _bounded(defects, regions == 1, limits, _MANY_HOPS, max_congestion)  # lines that bend may do where straight ones do not
    if max_dilation is not None and not (free and free.max_dilation <= max_dilation and _spread_enough(defects, free, max_congestion)):
        mesh = _bounded(defects, regions == 1, limits, max_dilation, max_congestion)
    if max_dilation is not None:
        floor = mesh.rows * mesh.cols if mesh else 0
    elif policy == "usable":
        return mesh, free
    elif mesh:  # straight lines are worth a row or a column
        floor = max(min(mesh.rows + 1, limits.max_rows) * mesh.cols, mesh.rows * min(mesh.cols + 1, limits.max_cols))
    else:
        floor = 0
    sizes = itertools.product(range(limits.min_rows, limits.max_rows + 1), range(limits.min_cols, limits.max_cols + 1))
    most = int(np.bincount(regions.ravel(), minlength=2)[1:].max())
    if most <= MOST_PES:  # otherwise the lines have found more than the small regions hold, or nearly
        larger = sorted(
            (size for size in sizes if floor < size[0] * size[1] <= most), key=lambda size: (-size[0] * size[1], abs(size[0] - size[1]))
        )
        accept = lambda placed: max_congestion is None or _spread_enough(defects, measured(defects, *placed), max_congestion)
        if placed := place_anywhere(defects, regions, larger, max_dilation, accept):
            mesh = measured(defects, *placed)
    return mesh, free


def _straight(defects: DefectMap, regions: Int[np.ndarray, "rows cols"], limits: _Limits) -> Remap | None:
    """The largest mesh whose rows, or columns, lie in a line each; of several the one with the fewest hops."""
    best = None
    for choice in _largest(regions, limits):
        if best and best.max_dilation == 1:
            break
        mesh = _embed(defects, regions, choice)
        best = mesh if best is None or mesh.mean_dilation < best.mean_dilation else best
    return best


def _unusable(spec, defects, regions, limits: _Limits, policy: str, bounds, left: Remap | None, free: Remap | None) -> UnusableWaferError:
    """What was asked for, what is in its way, and the nearest mesh that can be had."""
    rows, cols = (left.rows, left.cols) if left else (0, 0)
    sizes = np.bincount(regions.ravel(), minlength=2)[1:]
    max_dilation, max_congestion = bounds
    fixed = policy == "spares"
    wanted = f"{'the fixed grid' if fixed else 'no mesh'} of {limits.min_rows} x {limits.min_cols} logical PEs"
    short = ""
    if max_dilation is not None:
        short = f" with links of at most {max_dilation} hops" + (
            f", {max_congestion} of them over one physical link" if max_congestion else ""
        )
    verb = f" is left on {spec.name}" if max_dilation is None else f" was found on {spec.name}"
    if fixed:
        verb = " does not fit, the spares are used up"
    enough = [int((count >= least).sum()) for count, least in _healthy(regions, limits)]
    why = (
        f"{int(sizes[0])} healthy PEs of {spec.pes} reach each other; of {spec.rows} physical rows {enough[0]} have "
        f"{limits.min_cols} of them or more, of {spec.cols} columns {enough[1]} have {limits.min_rows}"
    )
    if fixed:
        why += f" ({spec.rows - limits.min_rows} rows and {spec.cols - limits.min_cols} columns are spare)"
    if sizes.size > 1:
        shown = ", ".join(f"{int(size):,}" for size in sizes[:4]) + (", ..." if sizes.size > 4 else "")
        why += f"; dead parts cut the wafer into {sizes.size} regions, of {shown} PEs, and a mesh lies in one"
    nearest = f"the largest has {rows} rows and {cols} cols"
    advice = ["policy='usable'" if fixed else "a smaller mesh"] if rows else []
    if max_dilation is not None and free is not None and free.rows * free.cols > rows * cols:
        nearest += f", without a bound {free.rows} rows and {free.cols} cols with links of up to {free.max_dilation} hops"
        advice.append("more hops")
    asked = f"Ask for {' or '.join(advice)}, or use" if advice else "Use"
    if limits.min_rows > limits.max_rows or limits.min_cols > limits.max_cols:
        why = f"policy={policy!r} gives at most {limits.max_rows} x {limits.max_cols} of the {spec.rows} x {spec.cols} physical PEs"
    name = f"max_dilation={max_dilation}" if max_dilation is not None else f"defects={defects!r}"
    also = f" and {defects!r}" if max_dilation is not None else ""
    message = f"{name}{also}: {wanted}{short}{verb}: {why}; {nearest}. {asked} a map with fewer defects or a larger wafer"
    return UnusableWaferError(message, rows, cols)


def _healthy(regions, limits: _Limits) -> tuple[tuple[Int[np.ndarray, " rows"], int], tuple[Int[np.ndarray, " cols"], int]]:
    """PEs of the largest region in each row, and in each column, and what a mesh takes of them."""
    inside = regions == 1
    return (inside.sum(axis=1), limits.min_cols), (inside.sum(axis=0), limits.min_rows)


def _spread_enough(defects: DefectMap, mesh: Remap, max_congestion: int | None) -> bool:
    return max_congestion is None or static_routes(defects, mesh).congestion <= max_congestion


def _bounded(
    defects: DefectMap, region: Bool[np.ndarray, "rows cols"], limits: _Limits, max_dilation: int, max_congestion: int | None
) -> Remap | None:
    """The largest mesh of some tries: each is a little narrower than the one before, in the orientation of the larger area first.

    Where links are left that are too long, the largest part of a try without any counts. With one hop there is nothing but the largest
    rectangle without defects.
    """
    ways = []
    for turned in (False, True) if max_dilation > 1 else ():
        on = DefectMap(defects.dead_pes.T, defects.dead_south_links.T, defects.dead_east_links.T) if turned else defects
        lines = clear_lines(on, region.T if turned else region, max_dilation)
        allowed = limits.turned if turned else limits
        widths = np.minimum(-np.sort(-lines.usable.sum(axis=1)), allowed.max_cols)
        rows = np.minimum(np.arange(1, widths.size + 1), allowed.max_rows)
        area = np.where((rows >= allowed.min_rows) & (widths >= allowed.min_cols), rows * widths, 0)
        if n := int(area.max(initial=0)):
            ways.append((n, int(widths[area.argmax()]), allowed, on, lines, turned))
    ways.sort(key=lambda way: -way[0])
    best = None
    most_mended = defects.dead_pes.size if region.sum() > MOST_PES else 0  # a search of all placements follows
    for mended in (0, most_mended) if max_congestion and most_mended else (most_mended,):
        most = mended
        for narrower in _NARROWER:
            for _, width, allowed, on, lines, turned in ways:
                cols = width - narrower
                rows = min(int((lines.usable.sum(axis=1) >= cols).sum()), allowed.max_rows)
                least = (allowed.min_rows, allowed.min_cols)
                if cols < least[1] or rows < least[0] or (best and rows * cols <= best.rows * best.cols):
                    continue
                bent = bend_within(on, lines, rows, cols, max_dilation, most)
                if bent and bent.in_vain:
                    most = bent.in_vain // 2  # mending takes as long as bending: not again for nearly as many
                if not bent or not (part := bent.cropped(least)) or (best and part.row.size <= best.rows * best.cols):
                    continue
                row, col = (part.col.T, part.row.T) if turned else (part.row, part.col)
                mesh = measured(defects, row, col)
                if _spread_enough(defects, mesh, max_congestion):
                    best = mesh
        if best:
            return best
    upright = clear_rectangle(defects, (limits.min_rows, limits.min_cols), (limits.max_rows, limits.max_cols))
    lying = clear_rectangle(defects, (limits.min_cols, limits.min_rows), (limits.max_cols, limits.max_rows))
    if lying and (upright is None or lying[0].size > upright[0].size):
        return measured(defects, lying[0].T, lying[1].T)
    return measured(defects, *upright) if upright else None


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
