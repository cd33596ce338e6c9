"""Language models and matrix-vector products on A100 with tensor parallelism, as the baseline of WaferLLM (OSDI 2025), and energy ratios.

A token of decoding reads the weights and the cache once and all-reduces twice a layer; a prefill computes and does the same with all its
tokens. The links reach far less than their line rate here: a few GB/s in prefill, which is host-driven or PCIe, whatever the text says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from wsejax.cost.inference import decode_layer_price, prefill_layer_price
from wsejax.hardware import CS2

from ..alphabeta import levels
from ..llm import LLM
from ..points import Constant, Group, Point, Unpredictable
from .gpu import _is_gpu, _rate, _share, _time, chip_of, count
from .read import itemsize_bytes, positive, rate_in, time_in
from .training import model
from .whole import gemv_seconds

_LONG_OUTPUT = 4096
_GEMV_SHARE = 0.86  # of an A100's memory bandwidth: what its stream benchmarks reach (BabelStream)
_WSE2 = CS2.replace(clock_hz=1.1e9)  # the clock that the source states
_GEMV_LAUNCH_CYCLES = 10.4  # what the group of products with vectors on the wafer fits
_WAFER_OVER_CHIP = 37.0  # power of the wafer over that of an A100, by the source


def _llm(point: Point) -> LLM:
    name = point.config.get("model")
    if not isinstance(name, str):
        raise Unpredictable("config states no model")
    if point.config.get("batch") not in (None, 1):
        raise Unpredictable(f"config has batch={point.config['batch']!r}: single requests are predicted")
    if itemsize_bytes(point, "fp16") != 2:
        raise Unpredictable(f"config has dtype={point.config['dtype']!r}: requests in 16 bits were measured")
    return model(name)


def _all_reduce_seconds(point: Point, size_bytes: float, constants: Mapping[str, float]) -> float:
    nodes, each = count(point)
    if nodes * each == 1:
        return 0.0
    where, steps = ("node", 1.0) if nodes == 1 else ("cluster", float(levels(nodes)))
    return steps * constants[f"{where}_us"] * 1e-6 + size_bytes / (constants[f"{where}_gbs"] * 1e9)


def decode_seconds(point: Point, llm: LLM, context: float, constants: Mapping[str, float]) -> float:
    """Of one token of one request."""
    nodes, each = count(point)
    weights = 2.0 * (llm.layers * llm.block_parameters + llm.vocab_size * llm.width)
    from_memory = weights + llm.kv_bytes_per_token() * context
    chip = chip_of(point.hardware)
    at_memory = from_memory / (nodes * each) / (chip.memory_bytes_per_second * constants["memory_share"])
    return at_memory + 2 * llm.layers * _all_reduce_seconds(point, 2.0 * llm.width, constants)


def prefill_flops(llm: LLM, tokens: float) -> float:
    """Two a weight and token, and of attention the half that is not masked."""
    attention = 2.0 * llm.layers * llm.heads * llm.head_width * tokens**2
    return 2.0 * llm.layers * llm.block_parameters * tokens + attention


def prefill_seconds(point: Point, llm: LLM, tokens: float, constants: Mapping[str, float]) -> float:
    """Of a prompt: causal attention, and the head for its last token only."""
    nodes, each = count(point)
    compute = prefill_flops(llm, tokens) / (nodes * each) / (chip_of(point.hardware).bf16_flops_per_second * constants["peak_share"])
    return compute + 2 * llm.layers * _all_reduce_seconds(point, 2.0 * llm.width * tokens, constants)


def _request(point: Point, constants: Mapping[str, float]) -> float:
    llm = _llm(point)
    if point.experiment == "llm_decode":
        return rate_in(point, 1.0 / decode_seconds(point, llm, positive(point, "context", "position"), constants))
    if point.experiment == "llm_prefill":
        tokens = positive(point, "context", "input_len")
        nodes, each = count(point)
        measured = point.value if point.unit == "tokens/s" else 0.0
        per_chip = prefill_flops(llm, tokens) / tokens * measured / (nodes * each)
        if per_chip > (peak := chip_of(point.hardware).bf16_flops_per_second):
            raise Unpredictable(f"not possible: {per_chip / 1e12:.0f} Tflop/s of a chip whose dense peak is {peak / 1e12:.0f}")
        return rate_in(point, tokens / prefill_seconds(point, llm, tokens, constants))
    prompt, output = positive(point, "input_len"), positive(point, "output_len")
    phases = prefill_seconds(point, llm, prompt, constants) + output * decode_seconds(point, llm, prompt + output / 2, constants)
    return rate_in(point, output / (phases * _served(output, constants["serving_factor"])))


def _served(output: float, factor: float) -> float:
    """Time of a request over that of its phases alone.

    In the source, requests of 4,096 new tokens run at the rate of decoding alone and those of 2,048 or less at half of it; it does not say
    why. Between the two the factor falls with the logarithm of the length.
    """
    return factor ** min(1.0, max(0.0, math.log2(_LONG_OUTPUT / output)))


def _gemv_seconds(point: Point, k: float, n: float, constants: Mapping[str, float]) -> float:
    """The matrix through the memory of all chips, and their parts put together, level by level of a tree."""
    chips = math.prod(count(point))
    if point.config.get("M", 1) != 1:
        raise Unpredictable(f"config has M={point.config['M']!r}: products with one vector are predicted")
    size_bytes = float(itemsize_bytes(point, "fp16")) * k * n
    at_memory = size_bytes / chips / (chip_of(point.hardware).memory_bytes_per_second * _GEMV_SHARE)
    return at_memory + float(levels(chips)) * constants["gather_us"] * 1e-6


def _gemv(point: Point, constants: Mapping[str, float]) -> float:
    if point.metric != "latency":
        raise Unpredictable(f"metric={point.metric!r}: latencies are predicted")
    return time_in(point, _gemv_seconds(point, positive(point, "K"), positive(point, "N"), constants))


def _token_ratio(point: Point, llm: LLM, context: float) -> float:
    """Seconds on GPUs over seconds on the wafer, of a token that is decoded or of a prompt. The wafer runs WaferLLM's form of the model
    (one head as wide as the model) on grids that the source used: 660 x 660 PEs in prefill, 420 x 420 in decode."""
    on_wafer = dataclasses.replace(llm, heads=1, kv_heads=1, head_width=llm.width)
    if point.experiment == "llm_decode":
        price = decode_layer_price(_WSE2.replace(rows=420.0, cols=420.0), on_wafer, context)
        on_gpus = decode_seconds(point, llm, context, _SERVED)
    else:
        price = prefill_layer_price(_WSE2.replace(rows=660.0, cols=660.0), on_wafer, context)
        on_gpus = prefill_seconds(point, llm, context, _SERVED)
    return on_gpus / float(_WSE2.seconds(price.cycles) * llm.layers)


def _energy_ratio(point: Point, constants: Mapping[str, float]) -> float:
    """GPUs over wafer: the chips' own power, as the source counts it, times modelled seconds of each."""
    nodes, each = count(point)
    if point.experiment != "gemv":
        return nodes * each / _WAFER_OVER_CHIP * _token_ratio(point, _llm(point), positive(point, "context"))
    k, n = positive(point, "K"), positive(point, "N")
    on_wafer = gemv_seconds(k, n, itemsize_bytes(point, "fp16"), _GEMV_LAUNCH_CYCLES)
    on_gpus = _gemv_seconds(point, k, n, constants)
    return nodes * each * on_gpus / (_WAFER_OVER_CHIP * on_wafer)


# What the group of language models below fits, so that the ratios of their energies are predicted without constants of their own.
_SERVED = {
    "memory_share": 0.61, "peak_share": 0.67, "node_us": 32.0, "node_gbs": 14.0, "cluster_us": 82.0, "cluster_gbs": 9.5,
    "serving_factor": 2.0,
}  # fmt: skip
GROUPS: tuple[Group, ...] = (
    Group(
        name="GPU over wafer energy",
        claims=lambda point: point.metric == "energy_ratio" and "A100" in point.hardware,
        predict=_energy_ratio,
        constants={
            "gather_us": _time(70.0, "for each level of the tree in which the parts of several GPUs are put together"),
        },
    ),
    Group(
        name="GPU LLM inference",
        claims=lambda point: point.experiment in ("llm_prefill", "llm_decode", "llm_end_to_end") and _is_gpu(point),
        predict=_request,
        constants={
            "memory_share": _share(_SERVED["memory_share"], "share of the memory's bandwidth that decoding reaches"),
            "peak_share": _share(_SERVED["peak_share"], "share of the dense peak that prefill reaches"),
            "node_us": _time(_SERVED["node_us"], "fixed time of an all-reduce in a node"),
            "node_gbs": _rate(_SERVED["node_gbs"], "its rate"),
            "cluster_us": _time(_SERVED["cluster_us"], "fixed time of an all-reduce over two nodes, for each level of a tree of more"),
            "cluster_gbs": _rate(_SERVED["cluster_gbs"], "its rate"),
            "serving_factor": Constant(
                _SERVED["serving_factor"], 0.5, 10.0, "", "time of a request of 2,048 tokens or less over that of its phases alone"
            ),
        },
    ),
    Group(
        name="GPU GEMV",
        claims=lambda point: point.experiment == "gemv" and _is_gpu(point),
        predict=_gemv,
        constants={
            "gather_us": _time(70.0, "for each level of the tree in which the parts of several GPUs are put together"),
        },
    ),
)
