"""Routers, links, multicasts, relays and reductions, and what goes between the wafer and its host.

Hops and wavelets are those of the machine (`System`), through the prices beside our own collectives; fitted is only what software adds at
both ends. Points of WSE-3 were timed by clocks that the SDK sets one cycle later with every hop, while a hop takes two: those of a
multicast over N PEs show N - 1 cycles too few, and so does the prediction here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from wsejax.hardware import CS1
from wsejax.kernels.pe import trees
from wsejax.kernels.pe.collectives import broadcast_price, reduce_price

from ..points import Constant, Group, Point, Unpredictable
from .read import in_cycles, number, positive, scalar_all_reduce_cycles, simulated, sizes, system_of, time_in

_DISPATCH_CYCLES = 7.0  # ALCF: from the dispatch of a send to its first wavelet
_HPDC_WAVELETS = 256  # the vector of the paper's two-dimensional runs, up to 512 x 512 PEs
_LAYOUT_START_MS = 0.9  # of a transfer by the newer API; no published point that ships holds it, so it is not fitted
_MANY_ROWS = 512  # of the rectangles of the source's sweeps, where none is stated
_HOST_PORT_BYTES_PER_SECOND = 100e9 / 8  # data sheet: 12 ports of 100 Gb/s; a host's link is one of them


# ---- router and links ------------------------------------------------------------------------------------------------
def _router(point: Point, c: Mapping[str, float]) -> float:
    system, metric = system_of(point), point.metric
    if "per_hop" in metric:
        return float(system.hop_cycles)
    if "turn" in metric:
        return float(system.turn_cycles)
    # a median shows that the sender's instruction has to be dispatched; the best case found it ready
    ends = c["ends_cycles"] + _DISPATCH_CYCLES * ("median" in metric)
    if simulated(point):  # nothing else runs there: a dispatch, and the receiver's task
        ends = _DISPATCH_CYCLES + float(system.task_cycles)
    if "fixed" in metric:
        return ends
    if "latency" not in metric:
        raise Unpredictable(f"metric={metric!r}: the model covers latencies")
    hops = number(point, "hops")
    behind_the_first = number(point, "wavelets", "words", default=0.0) * system.wavelet_cycles
    return ends + system.hop_cycles * hops + behind_the_first + system.turn_cycles * number(point, "turns", default=0.0)


def _link(point: Point, c: Mapping[str, float]) -> float:
    system = system_of(point)
    if "cycles_per_wavelet" in point.metric:
        return float(system.wavelet_cycles)
    if point.unit == "GB/s":
        clock_hz = number(point, "assumed_clock_GHz", default=system.clock_hz / 1e9) * 1e9
        return system.link_bits / 8.0 / system.wavelet_cycles * clock_hz / 1e9
    if "wavelets_per_cycle" in point.metric or "throughput" in point.metric:
        return 1.0 / system.wavelet_cycles
    if "slowdown" in point.metric:  # flows that share a link take turns
        return number(point, "flows", default=2.0)
    raise Unpredictable(f"metric={point.metric!r}: the model covers the rate of a link")


def _relay(point: Point, c: Mapping[str, float]) -> float:
    """Store and forward: every relay takes in the whole message, then starts an instruction that sends it on."""
    system = system_of(point)
    if point.metric == "coefficient_NB":
        return float(system.wavelet_cycles)
    if point.metric in ("coefficient_N", "constant"):
        return float(system.launch_cycles)
    n, wavelets = positive(point, "N"), positive(point, "B", "wavelets")
    return n * (wavelets * system.wavelet_cycles + system.launch_cycles) + system.launch_cycles


# ---- multicast -------------------------------------------------------------------------------------------------------
def _multicast(point: Point, c: Mapping[str, float]) -> float:
    system = system_of(point)
    size_bytes = positive(point, "bytes", default=4.0 * positive(point, "wavelets", default=1.0))
    if (words := point.config.get("wavelets")) is not None and positive(point, "wavelets") != max(1.0, math.ceil(size_bytes / 4.0)):
        raise Unpredictable(f"config has bytes={size_bytes:g} and wavelets={words!r}: a wavelet holds 4 bytes")
    receivers = positive(point, "receivers")
    if receivers >= max(system.rows, system.cols):
        raise Unpredictable(f"config has receivers={receivers:g}: a line has at most {max(system.rows, system.cols):.0f} PEs")
    arrived = float(broadcast_price(system, receivers + 1.0, 1.0, size_bytes).cycles)
    shown = arrived + c["start_cycles"] - (receivers - 1.0) * (system.hop_cycles - 1.0)
    if point.metric == "latency_shortest":
        return shown
    if point.metric not in ("latency_median", "latency_mean"):
        raise Unpredictable(f"metric={point.metric!r}: the model covers the shortest and the median latency")
    return shown + min(c["dispatch_cycles"], c["stall_cycles"] * size_bytes / 4.0)


# ---- reductions ------------------------------------------------------------------------------------------------------
def _reduce(point: Point, c: Mapping[str, float]) -> float:
    """Ratios of trees on lines of 512 PEs, and the scalar all-reduce of SC20; the artefact's total holds the start of the simulator."""
    dims = str(point.config.get("dims", ""))
    if point.metric == "max_speedup" and "512" in dims:
        after = float(broadcast_price(system_of(point), 512.0, 1.0, 4.0 * _HPDC_WAVELETS).cycles) if "all" in _what(point) else 0.0
        best = trees.auto(512, _HPDC_WAVELETS).model_cycles(_HPDC_WAVELETS)
        vendor = float(reduce_price(system_of(point), 512, 1, 4.0 * _HPDC_WAVELETS, "chain").cycles)
        return (vendor + after) / (best + after)
    if point.metric == "ratio_to_lower_bound_upper_bound":
        return _worst_ratio_to_bound()
    if simulated(point):
        raise Unpredictable(f"metric={point.metric!r}: the total of a simulator holds its start and the host's transfers")
    if point.unit in ("us", "cycles") and "scalar" in f"{_what(point)} {point.config}".lower() and "all" in _what(point):
        cycles = scalar_all_reduce_cycles(CS1, (int(CS1.rows), int(CS1.cols)))
        return cycles if point.unit == "cycles" else cycles / CS1.clock_hz * 1e6
    raise Unpredictable(f"metric={point.metric!r}: the source gives no sizes, or what it counts is no reduction alone")


def _what(point: Point) -> str:
    return f"{point.experiment} {point.algorithm}".lower()


@functools.cache
def _worst_ratio_to_bound() -> float:
    """The best tree against the paper's bound, on lines of 8 to 64 PEs."""
    ratios = []
    for n in (8, 16, 32, 64):
        for wavelets in (1, 16, 256, 1024):
            ratios.append(trees.auto(n, wavelets).model_cycles(wavelets) / _least_cycles(n, wavelets))
    return max(ratios)


def _least_cycles(n: int, wavelets: int) -> float:
    """The paper's bound: over depths, the least energy of that depth spread over all links, and the flight."""
    energy = [float("inf")] * (n + 1)
    energy[1], best = 0.0, float("inf")
    for depth in range(1, n):
        deeper = energy[:]
        for p in range(2, n + 1):
            deeper[p] = min([energy[p], *(energy[s] + deeper[p - s] + p - s for s in range(1, p))])
        energy = deeper
        best = min(best, wavelets * energy[n] / (n - 1) + n - 1 + depth * (2 * trees.RAMP_CYCLES + 1))
    return best


# ---- keys and values from PE to PE, host -----------------------------------------------------------------------------
def _clock_hz(point: Point) -> float:
    return positive(point, "assumed_clock_GHz", default=system_of(point).clock_hz / 1e9) * 1e9


def _kv_shift(point: Point, c: Mapping[str, float]) -> float:
    """A ladder: one step after the other for each of Pw columns."""
    return time_in(point, positive(point, "Pw") * c["step_cycles"] / _clock_hz(point), _clock_hz(point))


def _kv_park(point: Point, c: Mapping[str, float]) -> float:
    """Word by word to the end of a column of N PEs and back, each PE passing it on in software."""
    words = 1.0 if "per_word" in point.metric else positive(point, "elements")
    return time_in(point, 2.0 * positive(point, "N", default=256.0) * words * c["relay_cycles"] / _clock_hz(point), _clock_hz(point))


def _host(point: Point, c: Mapping[str, float]) -> float:
    """A host's link of 100 Gb/s, or the columns of PEs that feed it.

    The older API copies once more, and hands data to the rows of a rectangle (written as columns x rows) in turn: few of them do not keep
    it busy, so its rate is that of many rows times rows / (rows + half), with `half` the rows that reach half of it.
    """
    text = f"{point.algorithm} {dict(point.config)} {point.id}".lower()
    older = "memcpy" in text
    if "latency" in point.metric:
        return time_in(point, (c["memcpy_start_ms"] if older else _LAYOUT_START_MS) * 1e-3)
    if point.unit != "GB/s":
        raise Unpredictable(f"unit={point.unit!r}: the model covers GB/s and latencies")
    if "single-pe" in text or "bridge" in text or number(point, "pes", default=0.0) == 1.0:
        return c["channel_gbs"]
    port = _HOST_PORT_BYTES_PER_SECOND / 1e9
    line = min(port, positive(point, "channels", default=16.0) * c["channel_gbs"])
    if not older:
        return line
    rows = sizes(point, "rect")[1] if "rect" in point.config else _MANY_ROWS
    return line * c["memcpy_share"] * rows / (rows + c["half_rows"])


def _is(*experiments: str):
    return lambda p: p.experiment in experiments and "nvidia" not in p.hardware.lower()


def _reductions(point: Point) -> bool:
    fabric = "reduce" in point.experiment or point.experiment in ("broadcast", "timing_method")
    return fabric and "gpu" not in point.experiment


GROUPS = (
    Group("Router", _is("router_latency"), in_cycles(_router),
          {"ends_cycles": Constant(33.0, 0.0, 200.0, "cycles", "from the instruction that sends to the one that has received")}, 0.05),
    Group("Link", _is("link_throughput"), _link, {}, 0.05),
    Group("Relay chain", _is("relay_chain"), in_cycles(_relay), {}, 0.05),
    Group("Multicast", _is("multicast_line"), in_cycles(_multicast), {
        "start_cycles": Constant(13.0, 0.0, 100.0, "cycles", "of software at both ends, in the best case"),
        "dispatch_cycles": Constant(49.0, 0.0, 300.0, "cycles", "until the task of the receiver runs, typically"),
        "stall_cycles": Constant(1.5, 0.1, 10.0, "cycles", "of that delay for each wavelet of a message too short to show all of it"),
    }, 0.05),
    Group("Reduction", _reductions, _reduce),
    Group("KV shift", _is("kv_shift"), _kv_shift,
          {"step_cycles": Constant(20000.0, 1.0, 1e7, "cycles", "of one step of the ladder, both phases")}),
    Group("KV park and reload", _is("kv_park_reload"), _kv_park,
          {"relay_cycles": Constant(43.0, 1.0, 1e4, "cycles", "for a PE to pass a word on")}),
    Group("Host link", _is("host_io"), _host, {
        "channel_gbs": Constant(1.2, 0.1, 10.0, "GB/s", "through one PE at the border"),
        "memcpy_share": Constant(0.75, 0.05, 1.0, "", "of the link that the older API reaches with many rows"),
        "half_rows": Constant(13.0, 0.0, 500.0, "rows", "with which it reaches half of that"),
        "memcpy_start_ms": Constant(26.0, 0.1, 1000.0, "ms", "of a transfer by the older API"),
    }),
)  # fmt: skip
