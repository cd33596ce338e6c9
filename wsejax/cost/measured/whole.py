"""Kernels on the whole wafer: vector and matrix products of WaferLLM, and what the literature tells of solvers, transforms and particles.

Most of these are single points of a paper's abstract, predicted with nothing fitted. The prices are those beside our own kernels; where the
authors' program does something else (threads that exchange halos in the background, an exchange that fills the bisection) that is said.
"""

from __future__ import annotations

from collections.abc import Mapping

from wsejax.hardware import CS1, CS2, CS3, System
from wsejax.kernels.pe.fft import local_fft_price
from wsejax.kernels.pe.gemm import cannon_price, mesh_gemm_price, summa_price
from wsejax.kernels.pe.gemv import gemv_price
from wsejax.kernels.pe.krylov import bicgstab_price
from wsejax.kernels.pe.stencil import star, stencil_price
from wsejax.kernels.price import travel

from ..points import Constant, Group, Point, Unpredictable
from .read import number, scalar_all_reduce_cycles, simulated, sizes

_WAFERLLM = CS2.replace(clock_hz=1.1e9)  # WaferLLM states the maximum
_GRIDS = (240, 256, 300, 360, 420, 480, 512, 540, 600, 660, 720)  # the sides that its repository has settings for
_LARGEST = 8192  # the size of its larger GEMM


# ---- WaferLLM --------------------------------------------------------------------------------------------------------
def _gemv(point: Point, c: Mapping[str, float]) -> float:
    """On the fastest of the grids that its authors ran; the sum stays at the first PE of a column."""
    system = _WAFERLLM.replace(launch_cycles=c["launch_cycles"])
    if point.metric == "latency" and point.unit in ("ms", "us", "s"):
        k, n = number(point, "K"), number(point, "N")
        tree = "MeshGEMV" in point.algorithm or "tree" in point.algorithm.lower()
        seconds = min(_gemv_cycles(system, p, k, n, tree) for p in _GRIDS) / system.clock_hz
        return seconds * {"ms": 1e3, "us": 1e6, "s": 1.0}[point.unit]
    if point.metric == "speedup" and "MeshGEMV" in point.algorithm:
        k = number(point, "K", default=16384.0)
        grid = min(_GRIDS, key=lambda p: _gemv_cycles(system, p, k, k, True))
        return _gemv_cycles(system, grid, k, k, False) / _gemv_cycles(system, grid, k, k, True)
    raise Unpredictable(f"metric={point.metric!r}, hardware={point.hardware!r}: the model covers latencies of the wafer alone")


def _gemv_cycles(system: System, p: int, k: float, n: float, tree: bool) -> float:
    """A K-tree; or, as the SDK's example has it, a pipeline from PE to PE whose result goes back to all."""
    return float(gemv_price(system, p, p, k, n, 2, everywhere=not tree, topology="two_phase" if tree else "chain").cycles)


def _gemm(point: Point, c: Mapping[str, float]) -> float:
    """Share of the peak's cycles, at the larger of the published sizes."""
    if "efficiency" not in point.metric or simulated(point):
        raise Unpredictable(f"metric={point.metric!r}: the source gives no grid, or counts the host's transfers as well")
    rows, cols = sizes(point, "grid")[:2]
    n = int(number(point, "size", "N", default=float(_LARGEST)))
    names = {"summa": summa_price, "cannon": cannon_price, "meshgemm": mesh_gemm_price}
    prices = [price for name, price in names.items() if name in point.algorithm.lower()]
    if not prices:
        raise Unpredictable(f"algorithm={point.algorithm!r}: known are SUMMA, Cannon and MeshGEMM")
    peak = float(n) ** 3 / (rows * cols * _WAFERLLM.fp16_fma_per_cycle)
    return max(peak / float(price(_WAFERLLM, rows, cols, n, n, n, 2).cycles) for price in prices)


# ---- solvers and transforms ------------------------------------------------------------------------------------------
def _bicgstab(point: Point, c: Mapping[str, float]) -> float:
    """SC20: vector work, and three scalar all-reduces from the middle of the wafer; threads exchange halos meanwhile."""
    cols, rows, column = sizes(point, "mesh", "grid")[:3]
    grid = (rows, cols)
    once, twice = (bicgstab_price(CS1, grid, (1, 1), column, n, 2).compute_cycles for n in (1, 2))
    seconds = CS1.seconds(twice - once + 3.0 * scalar_all_reduce_cycles(CS1, grid))
    if point.unit == "us":
        return float(seconds * 1e6)
    flops_per_second = 44.0 * rows * cols * column / seconds  # SC20 counts 44 a cell
    if point.unit in ("PFLOP/s", "TFLOP/s"):
        return float(flops_per_second / (1e15 if point.unit == "PFLOP/s" else 1e12))
    if point.unit == "fraction" and "peak" in point.metric:
        return float(flops_per_second / (2.0 * CS1.fp16_fma_per_cycle * CS1.clock_hz * rows * cols))
    raise Unpredictable(f"unit={point.unit!r}: the model covers us, FLOP/s and the share of the peak")


def _fft(point: Point, c: Mapping[str, float]) -> float:
    """wsFFT: three local transforms, and four all-to-alls along lines that fill the links of the middle."""
    n = int(number(point, "n", "N", default=512.0))
    side = 512  # PEs of a side: 512 x 512 for all published sizes
    lines, wavelets = max(1.0, (n / side) ** 2), 2.0 * n * max(1.0, (n / side) ** 2)  # of complex64, in a PE
    halves = wavelets * side / 4.0  # through the middle, one way
    exchange = travel(CS2, halves, 0.0, 1.0, side - 1.0, depth=1.0)
    cycles = 4.0 * exchange.cycles + 3.0 * local_fft_price(CS2, lines, n).cycles
    if point.unit not in ("us", "ms"):
        raise Unpredictable(f"unit={point.unit!r}: the model covers times")
    return float(CS2.seconds(cycles)) * {"us": 1e6, "ms": 1e3}[point.unit]


def _seismic(point: Point, c: Mapping[str, float]) -> float:
    """25-point stencil on columns of cells, 32-bit, on the largest rectangle."""
    if point.unit not in ("TFLOP/s", "PFLOP/s"):
        raise Unpredictable(f"unit={point.unit!r}: the model covers FLOP/s; a ratio to other machines needs their times")
    price = stencil_price(CS2, (994, 750), (1, 1), star(4, 3), 4, int(number(point, "z", default=604.0)))
    return float(price.flops / CS2.seconds(price.cycles)) / {"TFLOP/s": 1e12, "PFLOP/s": 1e15}[point.unit]


def _tlr(point: Point, c: Mapping[str, float]) -> float:
    """Bytes of matrix that vector instructions read: columns of 70 elements, the tiles of the largest run (low confidence)."""
    if point.unit != "PB/s":
        raise Unpredictable(f"unit={point.unit!r}: the model covers bandwidth in PB/s")
    column = number(point, "tile", default=70.0)
    share = column / (column + CS2.launch_cycles * CS2.sustained_fp32_fma_per_cycle)
    pes = number(point, "pes", default=number(point, "systems", default=1.0) * CS2.pes)
    return float(pes * 4.0 * CS2.sustained_fp32_fma_per_cycle * share * CS2.clock_hz / 1e15)


# ---- particles -------------------------------------------------------------------------------------------------------
_REACH = {"Ta": 4, "Cu": 7, "W": 7}  # SC24: PEs within so many rows and columns exchange their atoms: 80 and 224 of them


def _atoms(point: Point, c: Mapping[str, float]) -> float:
    element = str(point.config.get("element", ""))
    if element not in _REACH or not point.metric.startswith("timesteps_per_second"):
        raise Unpredictable(f"config={dict(point.config)!r}: how far atoms see each other is not stated; known are {', '.join(_REACH)}")
    candidates = (2 * _REACH[element] + 1) ** 2 - 1
    return CS2.clock_hz / (candidates * c["candidate_cycles"])


def _translation(point: Point, c: Mapping[str, float]) -> float:
    """32-bit peak of all wafers, at the clock that power allows, and the share of it that is kept up."""
    clock_hz = CS3.clock_hz if point.config.get("power", "limited") == "limited" else 1.1e9  # HC34: the maximum
    systems = number(point, "systems")
    flops = systems * CS3.replace(clock_hz=clock_hz).dense_peak_fp32_flops_per_second * c["peak_share"]
    if point.unit == "PFLOP/s":
        return float(flops / 1e15)
    if point.unit == "GFLOP/J":
        return float(flops / (systems * CS3.peak_watts) / 1e9)
    raise Unpredictable(f"unit={point.unit!r}: the model covers PFLOP/s and GFLOP/J")


def _no_sizes(point: Point, c: Mapping[str, float]) -> float:
    raise Unpredictable(f"metric={point.metric!r} against {point.hardware}: the other side of the ratio is not described")


def _is(*experiments: str):
    return lambda p: p.experiment in experiments and not any(name in p.hardware for name in ("NVIDIA", "H100"))


def _named(part: str):
    return lambda p: part in f"{p.experiment} {p.algorithm}".lower() and not any(name in p.hardware for name in ("NVIDIA", "H100"))


GROUPS = (
    Group("GEMV", lambda p: _is("gemv")(p) and "A100" not in p.hardware, _gemv,
          {"launch_cycles": Constant(12.0, 1.0, 100.0, "cycles", "before the first element of a vector instruction")}, 0.20),
    Group("GEMM", _is("gemm"), _gemm, {}, 0.20),
    Group("BiCGStab", _named("bicgstab"), _bicgstab),
    Group("FFT", _named("fft"), _fft),
    Group("TLR-MVM", _is("tlr_mvm"), _tlr),
    Group("25-point stencil", lambda p: _is("stencil", "stencil_3d")(p) or _named("25")(p) or _named("seismic")(p), _seismic),
    Group("Molecular dynamics, domain translation", lambda p: p.experiment == "molecular_dynamics" and "systems" in p.config, _translation,
          {"peak_share": Constant(0.9, 0.1, 1.0, "", "of the peak that a step keeps up")}),
    Group("Molecular dynamics, an atom a PE", _is("molecular_dynamics"), _atoms,
          {"candidate_cycles": Constant(38.0, 1.0, 1000.0, "cycles", "for each atom that is looked at in a step")}),
    Group("Ratios to other machines", _is("finite_volume", "multi_wafer_scaling"), _no_sizes),
)  # fmt: skip
