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
from .read import number

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
    rows = number(point, "Nt", default=number(point, "N") / number(point, "height"))
    return rows, number(point, "Kt", default=number(point, "K") / number(point, "width"))


def _stored(point: Point, fmt: str) -> float:
    """Entries that a PE of average size goes through."""
    (rows, cols), density = _piece(point), number(point, "density_percent") / 100.0
    if fmt in ("CSR", "CSC"):
        return rows * cols * density
    pes = number(point, "width") * number(point, "height")
    if "total_flops" in point.config:  # of what is stored, padding included
        return number(point, "total_flops") / (2.0 * number(point, "M") * pes)
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
    entries = float(entries_price(seen, _stored(point, fmt), number(point, "M"), 4, c["lookup_cycles"]))
    return entries + lines * c["line_cycles"] + c["fixed_cycles"]


def _gemm(point: Point, c: Mapping[str, float]) -> float:
    """A vector instruction over a column of Nt for each of Kt x M elements of B."""
    _compute_only(point)
    rows, cols = _piece(point)
    seen = _as_seen(c["launch_cycles"], c["fma_cycles"])
    return number(point, "M") * float(vector_cycles(seen, rows * cols, seen.sustained_fp32_fma_per_cycle, instructions=cols))


def _as_seen(launch_cycles: float, cycles: float) -> System:
    return CS2.replace(launch_cycles=launch_cycles, sustained_fp32_fma_per_cycle=float(np.reciprocal(cycles)))


def _compute_only(point: Point) -> None:
    if "compute_cycles" not in point.metric:
        raise Unpredictable(f"metric={point.metric!r}: the model covers the average cycles of the local product")


def _dense(point: Point) -> bool:
    return point.experiment == "gemm_local" or (point.experiment == "spmm" and point.algorithm.upper().startswith(("GEMM", "DENSE")))


GROUPS = (
    Group("GEMM, local", _dense, _gemm, _GEMM, 0.12),
    Group("SpMM", lambda p: p.experiment == "spmm", _spmm, _SPMM, 0.12),
)
