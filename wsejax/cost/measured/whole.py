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
from wsejax.kernels.price import share, travel

from ..points import Constant, Group, Point, Unpredictable
from .read import itemsize_bytes, number, positive, scalar_all_reduce_cycles, simulated, sizes, system_of, time_in

_WAFERLLM = CS2.replace(clock_hz=1.1e9)  # WaferLLM states the maximum
_GRIDS = (240, 256, 300, 360, 420, 480, 512, 540, 600, 660, 720)  # the sides that its repository has settings for
_LARGEST = 8192  # the size of its larger GEMM


# ---- WaferLLM --------------------------------------------------------------------------------------------------------
def _gemv(point: Point, c: Mapping[str, float]) -> float:
    """On the grid that is stated, or the fastest of those that its authors ran; the sum stays at the first PE of a column."""
    if system_of(point).name != CS2.name:
        raise Unpredictable(f"hardware={point.hardware!r}: these programs were measured on WSE-2")
    if point.config.get("M", 1) != 1:
        raise Unpredictable(f"config has M={point.config['M']!r}: products with one vector are predicted")
    item, sides = itemsize_bytes(point, "fp16"), _GRIDS
    if "grid" in point.config:
        rows, cols = sizes(point, "grid")[:2]
        if rows != cols or rows > CS2.rows:
            raise Unpredictable(f"config has grid={point.config['grid']!r}: must be a square of at most {CS2.rows:.0f} a side")
        sides = (rows,)
    if point.metric == "latency":
        tree = "MeshGEMV" in point.algorithm or "tree" in point.algorithm.lower()
        k, n = positive(point, "K"), positive(point, "N")
        return time_in(point, gemv_seconds(k, n, item, c["launch_cycles"], sides, tree), _WAFERLLM.clock_hz)
    if point.metric == "speedup" and "MeshGEMV" in point.algorithm:
        k, system = positive(point, "K", default=16384.0), _WAFERLLM.replace(launch_cycles=c["launch_cycles"])
        grid = min(sides, key=lambda p: _gemv_cycles(system, p, k, k, item, True))
        return _gemv_cycles(system, grid, k, k, item, False) / _gemv_cycles(system, grid, k, k, item, True)
    raise Unpredictable(f"metric={point.metric!r}, hardware={point.hardware!r}: the model covers latencies of the wafer alone")


def gemv_seconds(
    k: float, n: float, itemsize_bytes: int, launch_cycles: float, sides: tuple[int, ...] = _GRIDS, tree: bool = True
) -> float:
    """Modelled seconds of a product of a vector with a k x n matrix on WSE-2, on the fastest of the grids; their blocks must fit.

    Raises:
      Unpredictable: no grid's PEs hold their block.
    """
    system = _WAFERLLM.replace(launch_cycles=launch_cycles)
    holding = [p for p in sides if share(k, p) * share(n, p) * itemsize_bytes <= system.sram_per_pe_bytes]
    if not holding:
        raise Unpredictable(f"K={k:g}, N={n:g}: on {max(sides)} x {max(sides)} PEs, a block is more than one of them holds")
    return min(_gemv_cycles(system, p, k, n, itemsize_bytes, tree) for p in holding) / system.clock_hz


def _gemv_cycles(system: System, p: int, k: float, n: float, itemsize_bytes: int, tree: bool) -> float:
    """A K-tree; or, as the SDK's example has it, a pipeline from PE to PE whose result goes back to all."""
    return float(gemv_price(system, p, p, k, n, itemsize_bytes, everywhere=not tree, topology="two_phase" if tree else "chain").cycles)


def _gemm(point: Point, c: Mapping[str, float]) -> float:
    """Share of the peak's cycles, at the larger of the published sizes."""
    if "efficiency" not in point.metric or simulated(point):
        raise Unpredictable(f"metric={point.metric!r}: the source gives no grid, or counts the host's transfers as well")
    rows, cols = sizes(point, "grid")[:2]
    n = int(positive(point, "size", "N", default=float(_LARGEST)))
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
    if cols > CS1.cols or rows > CS1.rows:
        raise Unpredictable(f"mesh of {cols} x {rows} columns: CS-1 gives programs {CS1.cols:.0f} x {CS1.rows:.0f} PEs")
    if "time" in point.metric:
        return time_in(point, float(seconds), CS1.clock_hz)
    flops_per_second = 44.0 * rows * cols * column / seconds  # SC20 counts 44 a cell
    if point.unit in ("PFLOP/s", "TFLOP/s"):
        return float(flops_per_second / (1e15 if point.unit == "PFLOP/s" else 1e12))
    if point.unit == "fraction" and "peak" in point.metric:
        return float(flops_per_second / (2.0 * CS1.fp16_fma_per_cycle * CS1.clock_hz * rows * cols))
    raise Unpredictable(f"unit={point.unit!r}: the model covers us, FLOP/s and the share of the peak")


def _fft(point: Point, c: Mapping[str, float]) -> float:
    """wsFFT: three local transforms, and four all-to-alls along lines that fill the links of the middle."""
    n = int(positive(point, "n", "N", default=512.0))
    side = 512  # PEs of a side: 512 x 512 for all published sizes
    lines, wavelets = max(1.0, (n / side) ** 2), 2.0 * n * max(1.0, (n / side) ** 2)  # of complex64, in a PE
    halves = wavelets * side / 4.0  # through the middle, one way
    exchange = travel(CS2, halves, 0.0, 1.0, side - 1.0, depth=1.0)
    cycles = 4.0 * exchange.cycles + 3.0 * local_fft_price(CS2, lines, n).cycles
    return time_in(point, float(CS2.seconds(cycles)), CS2.clock_hz)


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
_CORES = 850_000  # HC34; the runs used more of them (801,792) than the SDK gives to programs
_REACH = {"Ta": 4, "Cu": 7, "W": 7}  # SC24: PEs within so many rows and columns exchange their atoms: 80 and 224 of them


def _atoms(point: Point, c: Mapping[str, float]) -> float:
    element = str(point.config.get("element", ""))
    if element not in _REACH or not point.metric.startswith("timesteps_per_second"):
        raise Unpredictable(f"config={dict(point.config)!r}: how far atoms see each other is not stated; known are {', '.join(_REACH)}")
    if (atoms := number(point, "atoms", default=1.0)) > _CORES:
        raise Unpredictable(f"config has atoms={atoms:,.0f}: one a PE, and the wafer has {_CORES:,}")
    if point.unit not in ("steps/s", "timesteps/s", "1/s"):
        raise Unpredictable(f"unit={point.unit!r}: the model covers steps/s")
    if system_of(point).name != CS2.name:
        raise Unpredictable(f"hardware={point.hardware!r}: these runs were measured on WSE-2")
    candidates = (2 * _REACH[element] + 1) ** 2 - 1
    return CS2.clock_hz / (candidates * c["candidate_cycles"])


def _translation(point: Point, c: Mapping[str, float]) -> float:
    """32-bit peak of all wafers, at the clock that power allows, and the share of it that is kept up."""
    clock_hz = CS3.clock_hz if point.config.get("power", "limited") == "limited" else 1.1e9  # HC34: the maximum
    systems = positive(point, "systems")
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
