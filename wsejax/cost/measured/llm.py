"""Published runs of language models on WSE-2: WaferLLM, and the compilers T10 and Ladder that it compares with.

What was run, where it differs from the model that gave the name: WaferLLM's benchmark programs pad every dimension to a multiple of the
grid's side, join all heads into one as wide as the model, keep as many keys as queries, leave the output head out, and count 34B and 72B
models from a few layers. So they run prompts of any length, whatever the model was made for. Prefill and decode of an end-to-end run have a
grid each. Times are cycles at 1.1 GHz.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from wsejax.cost.inference import Software, decode_layer_price, prefill_layer_price
from wsejax.cost.llm import LLM
from wsejax.cost.pipeline import layer_bytes_per_pe
from wsejax.cost.points import Constant, Group, Point, Unpredictable
from wsejax.hardware import CS2, System
from wsejax.kernels.price import share

from .models import find
from .read import itemsize_bytes, positive, rate_in, system_of

EXPERTS = re.compile(r"maverick|scout|gpt-?oss|mixtral|deepseek|glm|kimi|-a\d+b|moe", re.IGNORECASE)


def model_of(point: Point) -> LLM:
    """The model that a point names, by its dimensions.

    Raises:
      Unpredictable: none, one that is not known, or a mixture of experts.
    """
    name = str(point.config.get("model") or "")
    if not name:
        raise Unpredictable("config states no model")
    if EXPERTS.search(name):
        raise Unpredictable(f"{name}: a mixture of experts, and the model prices dense layers")
    return find(name)


def grid_of(point: Point, key: str, default: str | None = None) -> tuple[float, float]:
    """Rows and columns of the grid of PEs that `key` states, as "480x480" or 480."""
    value = point.config.get(key)
    value = default if value is None else value
    found = re.fullmatch(r"\s*(\d+)\s*(?:[x×]\s*(\d+))?\s*", str(value or ""))
    if found is None:
        raise Unpredictable(f"config has {key}={value!r}: no grid such as 480x480")
    rows, cols = float(found[1]), float(found[2] or found[1])
    if min(rows, cols) < 3:  # the least ring
        raise Unpredictable(f"config has {key}={value!r}: a ring needs three PEs a side")
    if min(rows, cols) > min(CS2.rows, CS2.cols) or max(rows, cols) > max(CS2.rows, CS2.cols):
        raise Unpredictable(f"config has {key}={value!r}: more than the {CS2.rows:.0f} x {CS2.cols:.0f} PEs that programs get")
    return rows, cols


def _software(constants: Mapping[str, float], **fixed: float) -> Software:
    return dataclasses.replace(Software(**fixed), **constants)


# ---- WaferLLM --------------------------------------------------------------------------------------------------------
WSE2 = CS2.replace(clock_hz=1.1e9)  # the paper's clock
# The paper's grids of prefill and decode; 13B runs on the largest square of the wafer and half its side.
_END_TO_END = {"llama-2-13b": ("750x750", "375x375")}


def merged(llm: LLM) -> LLM:
    """The benchmark's form: one head as wide as the model, for queries and keys alike."""
    return dataclasses.replace(llm, heads=1, kv_heads=1, head_width=llm.width)


def _check(point: Point, llm: LLM, *grids: tuple[float, float]) -> None:
    """That the point is of the machine and the form that were measured, and that every grid holds a layer at least.

    Models too large for the wafer were counted from a few of their layers, so more is not asked.
    """
    if system_of(point).name != CS2.name:
        raise Unpredictable(f"hardware={point.hardware!r}: these programs were measured on WSE-2")
    if itemsize_bytes(point, "fp16") != 2:
        raise Unpredictable(f"dtype={point.config.get('dtype')!r}: these programs compute in 16 bits")
    for grid in grids:
        size_bytes = float(layer_bytes_per_pe(_on(grid), merged(llm)))
        if size_bytes > WSE2.sram_per_pe_bytes:
            side = f"{grid[0]:.0f}x{grid[1]:.0f}"
            raise Unpredictable(f"grid={side}: a PE would hold {size_bytes:,.0f} bytes of a layer of {llm.name}, and has 49,152")


def _on(grid: tuple[float, float]) -> System:
    return WSE2.replace(rows=grid[0], cols=grid[1])


def _batch(point: Point) -> float:
    return positive(point, "batch", default=1.0)


def decode_cycles(llm: LLM, grid: tuple[float, float], context: float, batch: float, software: Software) -> float:
    """Of one token, all layers, as WaferLLM's benchmark counts them."""
    return float(decode_layer_price(_on(grid), merged(llm), context, batch, software).cycles) * llm.layers


def prefill_cycles(llm: LLM, grid: tuple[float, float], tokens: float, software: Software) -> float:
    return float(prefill_layer_price(_on(grid), merged(llm), tokens, 0, software).cycles) * llm.layers


def _waferllm_decode(point: Point, constants: Mapping[str, float]) -> float:
    llm, grid = model_of(point), grid_of(point, "grid")
    _check(point, llm, grid)
    context = positive(point, "context", "position", "seq", default=4096.0)
    return rate_in(point, WSE2.clock_hz / decode_cycles(llm, grid, context, _batch(point), _software(constants)))


def _one_request(point: Point) -> None:
    if _batch(point) != 1.0:
        raise Unpredictable(f"config has batch={point.config['batch']!r}: prompts were measured one by one")


def _waferllm_prefill(point: Point, constants: Mapping[str, float]) -> float:
    llm, grid = model_of(point), grid_of(point, "grid")
    _check(point, llm, grid)
    _one_request(point)
    tokens = positive(point, "context", "input_len", "seq")
    return rate_in(point, tokens * WSE2.clock_hz / prefill_cycles(llm, grid, tokens, _software(constants)))


def _phases(point: Point, same_grid: bool = False) -> tuple[LLM, tuple[float, float], tuple[float, float], float, float]:
    llm = model_of(point)
    first, second = _END_TO_END.get(llm.name, ("660x660", "360x360"))
    prefill = grid_of(point, "prefill_grid", first)
    decode = prefill if same_grid else grid_of(point, "decode_grid", second)
    _check(point, llm, prefill, decode)
    _one_request(point)
    return llm, prefill, decode, positive(point, "input_len"), positive(point, "output_len")


def _waferllm_end_to_end(point: Point, constants: Mapping[str, float]) -> float:
    """Generated tokens over the time of both phases, decode at the mean of its contexts."""
    llm, first, second, prompt, output = _phases(point)
    software = _software(constants)
    decode = decode_cycles(llm, second, prompt + output / 2, 1.0, software)
    return rate_in(point, output * WSE2.clock_hz / (prefill_cycles(llm, first, prompt, software) + output * decode))


# ---- T10 and Ladder on WSE-2 -----------------------------------------------------------------------------------------
PRODUCTS, REDUCTIONS = 9, 10  # of a layer: q, k, v, scores, values, output, gate, up, down; reductions over lines in decode


def _layer_weights(llm: LLM, grid: tuple[float, float]) -> float:
    """Of a layer, padded to the grid."""
    width, ffn = (share(n, grid[0]) * grid[0] for n in (llm.width, llm.ffn_width))
    return 4.0 * width * width + 3.0 * width * ffn


def _kept(llm: LLM, grid: tuple[float, float], tokens: float) -> float:
    """Elements of the keys and values of a layer, padded to the grid: what scores and values are products with."""
    width, rows = (share(n, grid[0]) * grid[0] for n in (llm.kv_heads * llm.head_width, tokens))
    return 2.0 * width * rows


def _multiplied_cycles(grid: tuple[float, float], macs: float) -> float:
    return macs / (grid[0] * grid[1]) / WSE2.sustained_fp16_fma_per_cycle


def relayed_prefill_cycles(llm: LLM, grid: tuple[float, float], tokens: float, element_cycles: float, hop_cycles: float) -> float:
    """Products by compilers that know no mesh: in each of P turns a tile of weights comes over up to P hops, each of them software.

    A hop takes `hop_cycles` for the message and `element_cycles` for each element: P turns x P hops x (hop + tile x element). What is
    passed on are the weights, and the keys and values where these are what is multiplied with; the tokens stay, so their number adds
    little to that. (The source: 2,048 more tokens add 2 of 50 seconds to a request.)
    """
    side = max(grid)
    passed = _layer_weights(llm, grid) + _kept(llm, grid, tokens)
    multiplied = _multiplied_cycles(grid, passed * tokens)
    return llm.layers * (PRODUCTS * side * side * hop_cycles + passed * element_cycles + multiplied)


def _t10_decode_cycles(llm: LLM, grid: tuple[float, float], context: float, sum_cycles: float) -> float:
    """Sums pass from PE to PE along the line, and the result comes back the same way: P routing stages each way, beside the products."""
    multiplied = _multiplied_cycles(grid, _layer_weights(llm, grid) + _kept(llm, grid, context))
    return llm.layers * (REDUCTIONS * 2.0 * max(grid) * sum_cycles + multiplied)


def _ladder_decode_cycles(llm: LLM, grid: tuple[float, float], context: float, access_cycles: float) -> float:
    """Memory as if it were shared: each element of a vector that a PE needs is loaded or stored over P hops.

    Of a product of k and n: share(k, P) + share(n, P) elements in a PE; 6 widths, 3 MLP widths and 2 contexts in a layer.
    """
    side = max(grid)
    elements = 6.0 * share(llm.width, side) + 3.0 * share(llm.ffn_width, side) + 2.0 * share(context, side)
    return llm.layers * elements * side * access_cycles


def _relayed(decode: Any) -> Any:
    def predict(point: Point, constants: Mapping[str, float]) -> float:
        hops = dict(element_cycles=constants["element_cycles"], hop_cycles=constants["hop_cycles"])
        _one_request(point)
        if point.experiment == "llm_end_to_end":
            # both phases on the grid of prefill, since only WaferLLM lays data out anew between them
            llm, grid, _, prompt, output = _phases(point, same_grid=True)
            one = decode(llm, grid, prompt + output / 2, constants)
            return rate_in(point, output * WSE2.clock_hz / (relayed_prefill_cycles(llm, grid, prompt, **hops) + output * one))
        llm, grid = model_of(point), grid_of(point, "grid")
        _check(point, llm, grid)
        if point.experiment == "llm_decode":
            return rate_in(point, WSE2.clock_hz / decode(llm, grid, positive(point, "context", default=4096.0), constants))
        tokens = positive(point, "context", "input_len")
        return rate_in(point, tokens * WSE2.clock_hz / relayed_prefill_cycles(llm, grid, tokens, **hops))

    return predict


_t10 = _relayed(lambda llm, grid, context, c: _t10_decode_cycles(llm, grid, context, c["sum_cycles"]))
_ladder = _relayed(lambda llm, grid, context, c: _ladder_decode_cycles(llm, grid, context, c["access_cycles"]))


# ---- the groups ------------------------------------------------------------------------------------------------------
def _claims(algorithm: str, *experiments: str) -> Any:
    def claims(p: Point) -> bool:
        mine = p.experiment in experiments and p.metric == "throughput_per_request" and any(name in p.hardware for name in ("WSE", "CS-"))
        return mine and p.algorithm.startswith(algorithm)

    return claims


_STAGE = Constant(13.5, 1.0, 100.0, "cycles", "a PE adds to a sum and passes it on")
_LOOP = Constant(51.0, 1.0, 300.0, "cycles", "a turn of the loop over the contracted dimension")
_VECTOR = Constant(3.2, 0.1, 100.0, "cycles", "a vector instruction before its first element")
_ELEMENT = Constant(1.9, 0.01, 100.0, "cycles", "software passes on one element")
_HOP = Constant(130.0, 1.0, 1e5, "cycles", "software passes on one message")

GROUPS = (
    Group("LLM decode", _claims("WaferLLM", "llm_decode"), _waferllm_decode, dict(stage_cycles=_STAGE, loop_cycles=_LOOP), aim=0.15),
    Group("LLM prefill", _claims("WaferLLM", "llm_prefill"), _waferllm_prefill, dict(vector_cycles=_VECTOR, loop_cycles=_LOOP), aim=0.20),
    Group("LLM end to end", _claims("WaferLLM", "llm_end_to_end"), _waferllm_end_to_end, {}, aim=0.20),
    Group(
        "LLM by T10",
        _claims("T10", "llm_decode", "llm_prefill", "llm_end_to_end"),
        _t10,
        dict(element_cycles=_ELEMENT, hop_cycles=_HOP, sum_cycles=Constant(9.6, 0.1, 1e3, "cycles", "a sum is passed on to the next PE")),
    ),
    Group(
        "LLM by Ladder",
        _claims("Ladder", "llm_decode", "llm_prefill", "llm_end_to_end"),
        _ladder,
        dict(
            element_cycles=_ELEMENT,
            hop_cycles=dataclasses.replace(_HOP, start=900.0),
            access_cycles=Constant(31.0, 0.1, 1e3, "cycles", "one element is loaded or stored over one hop"),
        ),
    ),
)
