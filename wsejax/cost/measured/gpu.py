"""Published measurements of GPUs, against the closed forms that the baselines are made of: collectives, stencils, and language models.

What NCCL does with a message is three protocols (LL, LL128 and Simple): the first sends flags with the data and starts soonest, the last
fills the links. Each is a fixed time and a rate, and NCCL takes the one it thinks fastest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..accelerators import ACCELERATORS, B200, Accelerator
from ..alphabeta import Link, pipelined_all_reduce
from ..points import Constant, Group, Point, Unpredictable

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
        return B200
    for kind in (a for a in ACCELERATORS.values() if "TPU" not in a.name and "Groq" not in a.name):
        if kind.name in hardware:
            return kind if "A3 Mega" not in hardware else kind.replace(scale_out_bytes_per_second=25e9)  # eight NICs of 200 Gb/s
    raise Unpredictable(f"hardware {hardware!r}: no preset of a GPU; known are {', '.join(ACCELERATORS)}")


def _count(point: Point) -> tuple[int, int]:
    """Nodes, and GPUs of each, from the configuration or from names such as "2x8", "x8" and "8 x H100"."""
    gpus, nodes = point.config.get("gpus"), point.config.get("nodes")
    if isinstance(gpus, str):
        numbers = [int(n) for n in re.findall(r"\d+", gpus)]
        if len(numbers) in (1, 2) and all(numbers):
            return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
    if not isinstance(nodes, int) and (named := re.search(r"(\d+)\s*nodes(?:\s*x\s*(\d+))?", point.hardware)):
        nodes = int(named[1])
        gpus = nodes * int(named[2]) if named[2] and not isinstance(gpus, int) else gpus
    nodes = nodes if isinstance(nodes, int) and nodes >= 1 else 1
    if not isinstance(gpus, int) and (named := re.match(r"(\d+)\s*x\s", point.hardware)):
        gpus = int(named[1])
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < nodes:
        raise Unpredictable("neither config nor hardware says how many GPUs")
    return nodes, gpus // nodes


def _kind(point: Point) -> str:
    for text in (point.algorithm, point.experiment):
        plain = re.sub(r"[^a-z]", "", text.lower())
        for kind in _OF_VOLUME:
            if kind.replace("_", "") in plain:
                return kind
    raise Unpredictable(f"algorithm {point.algorithm!r}: all-reduce, reduce-scatter and all-gather are predicted")


def _line_seconds(point: Point, size_bytes: float, constants: Mapping[str, float]) -> float:
    """What the links need for it, without any latency."""
    chip, (nodes, each) = chip_of(point.hardware), _count(point)
    if nodes * each < 2:
        raise Unpredictable("one GPU has nobody to reduce with")
    share = _OF_VOLUME[_kind(point)]
    named = f"{point.config.get('algo', '')} {point.algorithm}".upper()
    if nodes == 1 and ("NVLS" in named or (chip.name in _SUMMING_SWITCH and "RING" not in named and "TREE" not in named)):
        # the switch sums and multicasts, so a chip sends each byte once and receives it once
        return share * size_bytes / (chip.scale_up_bytes_per_second * constants["switch_share"])
    inside = Link(0.0, chip.scale_up_bytes_per_second * _RING_SHARE)
    outside = Link(0.0, chip.scale_out_bytes_per_second * constants["network_share"])
    return float(share * pipelined_all_reduce(float(each), float(nodes), size_bytes, inside, outside))


def _collective(point: Point, constants: Mapping[str, float]) -> float:
    if "NIC" in point.unit or "nic" in point.metric.lower().split("_"):
        return chip_of(point.hardware).scale_out_bytes_per_second * constants["network_share"] / 1e9
    if "bandwidth" in point.metric:
        nodes, each = _count(point)
        size = float(point.config.get("bytes", 8 * 2**30))
        bus = 1.0 if point.metric.startswith("algo") else _BUS[_kind(point)] * (nodes * each - 1) / (nodes * each)
        seconds = _line_seconds(point, size, constants) if size >= 2**26 and nodes == 1 else _seconds(point, size, constants)
        return bus * size / seconds / 1e9
    size = point.config.get("bytes")
    if isinstance(size, bool) or not isinstance(size, int | float) or size <= 0:
        raise Unpredictable("config says no number of bytes")
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}.get(point.unit)
    if scale is None:
        raise Unpredictable(f"unit {point.unit!r}: times are predicted in s, ms and us, bandwidths in GB/s")
    return scale * _seconds(point, float(size), constants)


def _seconds(point: Point, size_bytes: float, constants: Mapping[str, float]) -> float:
    """By the best protocol. The fixed times are those of two nodes; in one node nothing crosses the network, see `_small`."""
    nodes, _ = _count(point)
    line = _line_seconds(point, size_bytes, constants)
    if nodes == 1:
        return _ONE_NODE_SECONDS + line
    protocols = [
        constants["ll_us"] * 1e-6 + size_bytes / (constants["ll_gbs"] * 1e9),
        constants["ll128_us"] * 1e-6 + size_bytes / (constants["ll128_gbs"] * 1e9),
        constants["simple_us"] * 1e-6 + line,
    ]
    return min(protocols)


_ONE_NODE_SECONDS = 20e-6  # NCCL, eight GPUs of a node, a small message: 20.6 us on A100 (public notes on interconnect latency, 2025)


def _small(point: Point, constants: Mapping[str, float]) -> float:
    """A message so small that only steps count: NCCL goes up and down a tree, a device-initiated kernel writes to all and waits for all."""
    if point.unit != "us":
        raise Unpredictable(f"unit {point.unit!r}: latencies are predicted in us")
    hop_us = chip_of(point.hardware).scale_up_latency_seconds * 1e6
    host = "NCCL" in point.algorithm
    return constants["nccl_us"] + 6 * hop_us if host else constants["device_us"] + 2 * hop_us


def _send_receive(point: Point, constants: Mapping[str, float]) -> float:
    if "bandwidth" not in point.metric or point.unit != "GB/s":
        raise Unpredictable(f"metric {point.metric!r} in {point.unit!r}: bandwidths in GB/s are predicted")
    return chip_of(point.hardware).scale_up_bytes_per_second / 1e9 * constants["channels_share"]


def _link(point: Point, constants: Mapping[str, float]) -> float:
    raise Unpredictable("an input: the presets of chips take the latency of a hop from this source")


def _stencil(point: Point, constants: Mapping[str, float]) -> float:
    """A launch, the grid through memory, more of it with the radius, and the grid once over the host's bus, spread over the iterations."""
    size = [point.config.get(name) for name in ("width", "height", "radius", "iterations")]
    if point.unit != "us" or not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in size):
        raise Unpredictable("needs width, height, radius and iterations, and is predicted in us")
    width, height, radius, iterations = (float(n) for n in size if n is not None)
    memory_us = 8.0 / chip_of(point.hardware).memory_bytes_per_second * 1e6  # a 32-bit value read and written
    once_us = 8.0 / (constants["host_gbs"] * 1e9) * 1e6
    of_cell = memory_us * (constants["traffic"] + constants["radius_traffic"] * radius) + once_us / iterations
    return constants["launch_us"] + width * height * of_cell


def _is_gpu(point: Point) -> bool:
    return any(name in point.hardware for name in ("NVIDIA", "H100", "H200", "B200", "A100")) and "WSE" not in point.hardware


def _share(start: float, meaning: str) -> Constant:
    return Constant(start, 0.02, 2.0, "1", meaning)


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
            "traffic": Constant(2.0, 0.1, 20.0, "1", "memory traffic of a cell over one read and one write, at full bandwidth"),
            "radius_traffic": Constant(0.1, 0.0, 5.0, "1", "more of it for each cell of radius"),
            "host_gbs": _rate(8.0, "between host and GPU, once a run"),
        },
    ),
)
