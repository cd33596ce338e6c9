"""Sparse and dense products inside a PE (SpMM_Cerebras, WSE-2 simulator): A in pieces of Nt x Kt, times M columns of B.

All four formats run the loop whose price stands beside our own kernel (`entries_price`): for each stored entry look up its place, then one
vector instruction over the M columns. They differ in what they store and in the lines that they walk along:

* COO: as many entries in every PE as the fullest has.
* CSR, CSC: a PE's own entries, and something for each row or column.
* ELLPACK: in every row as many entries as the longest row of any PE has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import scipy.stats

from wsejax.hardware import CS2, System
from wsejax.kernels.pe.sparse import entries_price
from wsejax.kernels.price import vector_cycles

from ..points import Constant, Group, Point, Unpredictable
from .read import in_cycles, itemsize_bytes, positive, system_of

_SPMM = {
    "lookup_cycles": Constant(22.0, 0.0, 100.0, "cycles", "to find the place of an entry, beside the launch of its vector instruction"),
    "column_cycles": Constant(1.2, 0.4, 3.0, "cycles", "of a multiply-add: between one bank and two (1 and 2)"),
    "line_cycles": Constant(50.0, 0.0, 300.0, "cycles", "for each row (CSR) or column (CSC)"),
    "fixed_cycles": Constant(1500.0, 0.0, 6000.0, "cycles", "before and behind the loop"),
}
_GEMM = {
    "launch_cycles": Constant(18.0, 1.0, 100.0, "cycles", "of a vector instruction, with the loop round it"),
    "fma_cycles": Constant(2.0, 0.8, 3.0, "cycles", "of a multiply-add whose operands share a bank"),
}


@functools.cache
def _longest(lines: float, length: float, density: float) -> float:
    """Entries in the longest of so many lines of random entries: where the expected number of longer ones falls below a half."""
    return float(scipy.stats.binom(int(length), density).ppf(1.0 - 0.5 / max(lines, 1.0)))


def _piece(point: Point) -> tuple[float, float]:
    """(rows, columns) of A in a PE: stated, or the matrix over the grid."""
    if 8 * itemsize_bytes(point) != 32:
        raise Unpredictable(f"config has dtype={point.config['dtype']!r}: these programs compute in 32 bits")
    if system_of(point).name != CS2.name:
        raise Unpredictable(f"hardware={point.hardware!r}: these programs were run on WSE-2")
    return _of_pe(point, "Nt", "N", "height"), _of_pe(point, "Kt", "K", "width")


def _of_pe(point: Point, piece: str, of: str, over: str) -> float:
    """A side of a PE's piece: stated, or the matrix over the grid; where both are there, they must agree up to padding."""
    if point.config.get(of) is None or point.config.get(over) is None:
        return positive(point, piece)
    whole, pes = positive(point, of), positive(point, over)
    side = positive(point, piece, default=whole / pes)
    if not 0.5 * whole <= side * pes <= 2.0 * whole:
        raise Unpredictable(f"config has {piece}={side:g}, {of}={whole:g} and {over}={pes:g}: they contradict each other")
    return side


def _density(point: Point) -> float:
    percent = positive(point, "density_percent")
    if percent > 100.0:
        raise Unpredictable(f"config has density_percent={percent:g}: at most 100")
    return percent / 100.0


def _stored(point: Point, fmt: str) -> float:
    """Entries that a PE of average size goes through."""
    (rows, cols), density = _piece(point), _density(point)
    if fmt in ("CSR", "CSC"):
        return rows * cols * density
    pes = positive(point, "width") * positive(point, "height")
    if point.config.get("total_flops") is not None:  # of what is stored, padding included
        stored = positive(point, "total_flops") / (2.0 * positive(point, "M") * pes)
        if not 0.9 * rows * cols * density <= stored <= 1.001 * rows * cols:
            stated = f"density_percent={point.config['density_percent']!r} and total_flops={point.config['total_flops']!r}"
            raise Unpredictable(f"config has {stated}: {stored:,.0f} entries stored in a PE of {rows:g} x {cols:g}")
        return stored
    if fmt == "COO":
        return _longest(pes, rows * cols, density)
    return rows * _longest(pes * rows, cols, density)


def _spmm(point: Point, c: Mapping[str, float]) -> float:
    fmt = point.algorithm.split()[0].upper() if point.algorithm else ""
    if fmt in ("GEMM", "DENSE"):
        raise Unpredictable("a dense product among sparse ones")
    if fmt not in ("COO", "CSR", "CSC", "ELLPACK"):
        raise Unpredictable(f"algorithm={point.algorithm!r}: an unknown format; known are COO, CSR, CSC and ELLPACK")
    _compute_only(point)
    rows, cols = _piece(point)
    seen = _as_seen(CS2.launch_cycles, c["column_cycles"])
    lines = {"CSR": rows, "CSC": cols}.get(fmt, 0.0)
    entries = float(entries_price(seen, _stored(point, fmt), positive(point, "M"), 4, c["lookup_cycles"]))
    return entries + lines * c["line_cycles"] + c["fixed_cycles"]


def _gemm(point: Point, c: Mapping[str, float]) -> float:
    """A vector instruction over a column of Nt for each of Kt x M elements of B."""
    _compute_only(point)
    rows, cols = _piece(point)
    seen = _as_seen(c["launch_cycles"], c["fma_cycles"])
    return positive(point, "M") * float(vector_cycles(seen, rows * cols, seen.sustained_fp32_fma_per_cycle, instructions=cols))


def _as_seen(launch_cycles: float, cycles: float) -> System:
    return CS2.replace(launch_cycles=launch_cycles, sustained_fp32_fma_per_cycle=float(np.reciprocal(cycles)))


def _compute_only(point: Point) -> None:
    if "compute_cycles" not in point.metric:
        raise Unpredictable(f"metric={point.metric!r}: the model covers the average cycles of the local product")


def _dense(point: Point) -> bool:
    return point.experiment == "gemm_local" or (point.experiment == "spmm" and point.algorithm.upper().startswith(("GEMM", "DENSE")))


GROUPS = (
    Group("GEMM, local", _dense, in_cycles(_gemm), _GEMM, 0.12),
    Group("SpMM", lambda p: p.experiment == "spmm", in_cycles(_spmm), _SPMM, 0.12),
)
