"""Published measurements of GPUs, against the closed forms that the baselines are made of: collectives, stencils, and language models.

What NCCL does with a message is three protocols (LL, LL128 and Simple): the first sends flags with the data and starts soonest, the last
fills the links. Each is a fixed time and a rate, and NCCL takes the one it thinks fastest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..accelerators import ACCELERATORS, B200, Accelerator
from ..alphabeta import Link, levels, pipelined_all_reduce
from ..points import Constant, Group, Point, Unpredictable
from .read import itemsize_bytes, positive, time_in

_RING_SHARE = 370.0 / 450.0  # of NVLink, that a ring of eight H100 reaches: a maintainer in nccl-tests issue 212
_SUMMING_SWITCH = ("H100", "H200", "B200")  # NVSwitch 3 and later; NCCL uses it unless told otherwise
_OF_VOLUME = {"all_reduce": 1.0, "reduce_scatter": 0.5, "all_gather": 0.5}  # of what an all-reduce sends
_BUS = {"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0}  # nccl-tests' doc: bus bandwidth is this x (n-1)/n x size over time


def chip_of(hardware: str) -> Accelerator:
    """The GPU that a description names.

    Raises:
      Unpredictable: none of the presets.
    """
    if "GB200" in hardware:
        return B200.replace(chips_per_domain=72.0)  # NVL72
    for kind in (a for a in ACCELERATORS.values() if "TPU" not in a.name and "Groq" not in a.name):
        if kind.name in hardware:
            return kind if "A3 Mega" not in hardware else kind.replace(scale_out_bytes_per_second=25e9)  # eight NICs of 200 Gb/s
    raise Unpredictable(f"hardware={hardware!r}: no preset of a GPU; known are {', '.join(ACCELERATORS)}")


def count(point: Point) -> tuple[int, int]:
    """Nodes, and GPUs of each, from the configuration or from names such as "2x8", "x8" and "8 x H100".

    A number of GPUs alone is that of one node if a node holds as many, and of full nodes else.
    """
    domain, gpus, nodes = int(chip_of(point.hardware).chips_per_domain), point.config.get("gpus"), point.config.get("nodes")
    if isinstance(gpus, str):
        numbers = [int(n) for n in re.findall(r"\d+", gpus)]
        if len(numbers) not in (1, 2) or not all(numbers):
            raise Unpredictable(f"config has gpus={gpus!r}: must be a number, or nodes x GPUs such as 2x8")
        gpus = math.prod(numbers)
        nodes = numbers[0] if len(numbers) == 2 else nodes
    if nodes is None and (named := re.search(r"(\d+)\s*nodes(?:\s*x\s*(\d+))?", point.hardware)):
        nodes = int(named[1])
        gpus = nodes * int(named[2]) if named[2] and gpus is None else gpus
    if gpus is None and (named := re.match(r"(\d+)\s*x\s", point.hardware)):
        gpus = int(named[1])
    if gpus is None:
        raise Unpredictable("neither config nor hardware says how many GPUs")
    for name, value in (("gpus", gpus), ("nodes", nodes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise Unpredictable(f"config has {name}={value!r}: must be a positive whole number")
    nodes = -(-gpus // domain) if nodes is None else nodes
    if gpus % nodes or gpus // nodes > domain:
        raise Unpredictable(f"{gpus} GPUs in {nodes} nodes: must be as many in each, and at most the {domain} that links join")
    return nodes, gpus // nodes


def _kind(point: Point) -> str:
    for text in (point.algorithm, point.experiment):
        plain = re.sub(r"[^a-z]", "", text.lower())
        for kind in _OF_VOLUME:
            if kind.replace("_", "") in plain:
                return kind
    raise Unpredictable(f"algorithm={point.algorithm!r}: all-reduce, reduce-scatter and all-gather are predicted")


def _in_switch(point: Point) -> bool:
    """Whether the switch of a node sums, where nothing else is named."""
    named = f"{point.config.get('algo', '')} {point.algorithm}".upper()
    return "NVLS" in named or (chip_of(point.hardware).name in _SUMMING_SWITCH and "RING" not in named and "TREE" not in named)


def _line_seconds(point: Point, size_bytes: float, constants: Mapping[str, float]) -> float:
    """What the links need for it, without any latency."""
    chip, (nodes, each) = chip_of(point.hardware), count(point)
    if nodes * each < 2:
        raise Unpredictable("one GPU has nobody to reduce with")
    share = _OF_VOLUME[_kind(point)]
    if nodes == 1 and _in_switch(point):
        # the switch sums and multicasts, so a chip sends each byte once and receives it once
        return share * size_bytes / (chip.scale_up_bytes_per_second * constants["switch_share"])
    inside = Link(0.0, chip.scale_up_bytes_per_second * _RING_SHARE)
    outside = Link(0.0, chip.scale_out_bytes_per_second * constants["network_share"])
    return float(share * pipelined_all_reduce(float(each), float(nodes), size_bytes, inside, outside))


def _collective(point: Point, constants: Mapping[str, float]) -> float:
    if "NIC" in point.unit or "nic" in point.metric.lower().split("_"):
        return chip_of(point.hardware).scale_out_bytes_per_second * constants["network_share"] / 1e9
    if "bandwidth" in point.metric:
        if point.unit != "GB/s":
            raise Unpredictable(f"unit={point.unit!r}: bandwidths are predicted in GB/s")
        nodes, each = count(point)
        size = positive(point, "bytes", default=8.0 * 2**30)
        bus = 1.0 if point.metric.startswith("algo") else _BUS[_kind(point)] * (nodes * each - 1) / (nodes * each)
        return bus * size / _seconds(point, size, constants) / 1e9
    return time_in(point, _seconds(point, positive(point, "bytes"), constants))


# To launch NCCL's kernel and to synchronise, beside the hops: what the group of small messages fits, a constant in the others.
_LAUNCH_SECONDS = 10.8e-6
_SWITCH_HOPS = 2  # to the switch that sums, and back from it


def _hops(point: Point, each: int, host: bool) -> int:
    """Of a small all-reduce in a node. Where the switch sums, up and down; else NCCL's ring, 2 (n-1), or all at once in pairs, 2 log2 n.

    The source calls NCCL's on GB200 a ring. A ring of 72 would take 85 us in hops alone, and 11 were measured.
    """
    if chip_of(point.hardware).name in _SUMMING_SWITCH:
        return _SWITCH_HOPS
    return 2 * (each - 1) if host else round(2 * levels(each))


def _node_seconds(point: Point, each: int) -> float:
    """Fixed time of a collective in a node of so many GPUs."""
    chip = chip_of(point.hardware)
    hops = _OF_VOLUME[_kind(point)] * (_SWITCH_HOPS if _in_switch(point) else 2 * (each - 1))
    return _LAUNCH_SECONDS + hops * chip.scale_up_latency_seconds


def _seconds(point: Point, size_bytes: float, constants: Mapping[str, float]) -> float:
    """By the best protocol. The fixed times are those of two nodes; more of them form a tree, whose levels each cost as much again."""
    nodes, each = count(point)
    line, inside = _line_seconds(point, size_bytes, constants), _node_seconds(point, each)
    if nodes == 1:
        return inside + line
    fixed = lambda us: inside + (us * 1e-6 - inside) * levels(nodes)
    sent = _OF_VOLUME[_kind(point)] * size_bytes
    protocols = [
        fixed(constants["ll_us"]) + sent / (constants["ll_gbs"] * 1e9),
        fixed(constants["ll128_us"]) + sent / (constants["ll128_gbs"] * 1e9),
        fixed(constants["simple_us"]) + line,
    ]
    return min(protocols)


def _small(point: Point, constants: Mapping[str, float]) -> float:
    """A message so small that only hops count, beside what it takes to start."""
    chip, host = chip_of(point.hardware), "NCCL" in point.algorithm
    nodes, each = (1, 2) if chip.name in _SUMMING_SWITCH and "gpus" not in point.config else count(point)
    if nodes > 1:
        raise Unpredictable(f"{nodes} nodes: latencies of small messages are predicted within one")
    start_us = constants["nccl_us" if host else "device_us"]
    return time_in(point, start_us * 1e-6 + _hops(point, each, host) * chip.scale_up_latency_seconds)


def _send_receive(point: Point, constants: Mapping[str, float]) -> float:
    """A launch, a hop, and the bytes through the channels to one peer."""
    chip = chip_of(point.hardware)
    nodes, _ = count(point)
    if nodes > 1:
        raise Unpredictable(f"{nodes} nodes: sending and receiving is predicted within one")
    size_bytes = positive(point, "bytes", default=8.0 * 2**30)
    rate = chip.scale_up_bytes_per_second * constants["channels_share"]
    seconds = _LAUNCH_SECONDS + chip.scale_up_latency_seconds + size_bytes / rate
    if "bandwidth" not in point.metric:
        return time_in(point, seconds)
    if point.unit != "GB/s":
        raise Unpredictable(f"unit={point.unit!r}: bandwidths are predicted in GB/s")
    return size_bytes / seconds / 1e9


def _link(point: Point, constants: Mapping[str, float]) -> float:
    raise Unpredictable("an input: the presets of chips take the latency of a hop from this source")


def _stencil(point: Point, constants: Mapping[str, float]) -> float:
    """A launch, the grid through memory, more of it with the radius, and the grid once over the host's bus, spread over the iterations."""
    if point.metric != "time_per_iteration":
        raise Unpredictable(f"metric={point.metric!r}: times of an iteration are predicted")
    width, height, radius, iterations = (positive(point, name) for name in ("width", "height", "radius", "iterations"))
    cell_bytes = 2.0 * itemsize_bytes(point)  # read and written
    memory_us = cell_bytes / chip_of(point.hardware).memory_bytes_per_second * 1e6
    once_us = cell_bytes / (constants["host_gbs"] * 1e9) * 1e6
    of_cell = memory_us * (constants["traffic"] + constants["radius_traffic"] * radius) + once_us / iterations
    return time_in(point, (constants["launch_us"] + width * height * of_cell) * 1e-6)


def _is_gpu(point: Point) -> bool:
    return any(name in point.hardware for name in ("NVIDIA", "H100", "H200", "B200", "A100")) and "WSE" not in point.hardware


def _share(start: float, meaning: str) -> Constant:
    return Constant(start, 0.02, 2.0, "", meaning)


def _time(start: float, meaning: str) -> Constant:
    return Constant(start, 0.01, 1e5, "us", meaning)


def _rate(start: float, meaning: str) -> Constant:
    return Constant(start, 1e-2, 1e4, "GB/s", meaning)


def _is_small(point: Point) -> bool:
    return point.metric == "latency" or point.config.get("size") == "small"


COLLECTIVES: Mapping[str, Any] = {
    "ll_us": _time(120.0, "fixed time of NCCL's LL protocol between two nodes"),
    "ll_gbs": _rate(1.0, "rate of LL: data and flags in words of 8 bytes"),
    "ll128_us": _time(150.0, "fixed time of LL128"),
    "ll128_gbs": _rate(20.0, "rate of LL128"),
    "simple_us": _time(900.0, "fixed time of Simple: its buffers fill"),
    "network_share": _share(0.9, "share of the NICs' line rate that Simple reaches"),
    "switch_share": _share(0.6, "share of NVLink that a reduction in the switch reaches"),
}
GROUPS: tuple[Group, ...] = (
    Group(
        name="GPU small all-reduce",
        claims=lambda point: point.experiment == "gpu_allreduce" and _is_small(point),
        predict=_small,
        constants={
            "nccl_us": _time(10.0, "to launch NCCL's kernel and to synchronise"),
            "device_us": _time(2.0, "to synchronise in a kernel that runs already"),
        },
    ),
    Group(
        name="GPU all-reduce",
        claims=lambda point: point.experiment in ("gpu_allreduce", "gpu_allgather", "gpu_reducescatter", "gpu_collective"),
        predict=_collective,
        constants=COLLECTIVES,
        aim=0.15,
    ),
    Group(
        name="GPU send and receive",
        claims=lambda point: point.experiment == "gpu_sendrecv",
        predict=_send_receive,
        constants={"channels_share": _share(0.4, "share of a chip's links that the channels to one peer use")},
    ),
    Group(name="GPU link", claims=lambda point: point.experiment == "gpu_link_latency", predict=_link),
    Group(
        name="GPU stencil",
        claims=lambda point: point.experiment.startswith("stencil_2d") and _is_gpu(point),
        predict=_stencil,
        constants={
            "launch_us": _time(11.0, "of one iteration, however small: launching its kernel"),
            "traffic": Constant(2.0, 0.1, 20.0, "", "memory traffic of a cell over one read and one write, at full bandwidth"),
            "radius_traffic": Constant(0.1, 0.0, 5.0, "", "more of it for each cell of radius"),
            "host_gbs": _rate(8.0, "between host and GPU, once a run"),
        },
    ),
)
