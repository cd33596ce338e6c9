"""Published runs of language models on wafers: WaferLLM and the systems it compares with (WSE-2), EPCC's WaferEngine (WSE-3), services.

What was run, where it differs from the model that gave the name: WaferLLM's benchmark programs pad every dimension to a multiple of the
grid's side, join all heads into one as wide as the model, keep as many keys as queries, leave the output head out, and count 34B and 72B
models from a few layers. Prefill and decode of an end-to-end run have a grid each. Its times are cycles at 1.1 GHz. WaferEngine's are
cycles at 0.85 GHz.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from wsejax.cost.inference import Software, decode_layer_price, prefill_layer_price
from wsejax.cost.llm import LLM
from wsejax.cost.pipeline import Deployment, deploy, kv_capacity_tokens, layer_bytes_per_pe
from wsejax.cost.points import Constant, Group, Point, Unpredictable
from wsejax.hardware import CS2, CS3, System
from wsejax.kernels.price import share


def _llm(name: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, head_width: int = 128) -> LLM:
    return LLM(
        name=name,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=ffn,
        vocab_size=vocab,
        context=131072,
    )


# As on the model cards; the same numbers as in the presets that the command line offers.
MODELS = {
    m.name: m
    for m in (
        _llm("llama-2-7b", 32, 4096, 32, 32, 11008, 32000),
        _llm("llama-2-13b", 40, 5120, 40, 40, 13824, 32000),
        _llm("llama-2-70b", 80, 8192, 64, 8, 28672, 32000),
        _llm("codellama-34b", 48, 8192, 64, 8, 22016, 32000),
        _llm("llama-3-8b", 32, 4096, 32, 8, 14336, 128256),
        _llm("llama-3-70b", 80, 8192, 64, 8, 28672, 128256),
        _llm("llama-3.1-405b", 126, 16384, 128, 8, 53248, 128256),
        _llm("qwen2-7b", 28, 3584, 28, 4, 18944, 152064),
        _llm("qwen2-72b", 80, 8192, 64, 8, 29568, 152064),
        dataclasses.replace(_llm("qwen3-0.6b", 28, 1024, 16, 8, 3072, 151936), tied=True),
        dataclasses.replace(_llm("qwen3-1.7b", 28, 2048, 16, 8, 6144, 151936), tied=True),
        dataclasses.replace(_llm("qwen3-4b", 36, 2560, 32, 8, 9728, 151936), tied=True),
        _llm("qwen3-8b", 36, 4096, 32, 8, 12288, 151936),
        _llm("qwen3-32b", 64, 5120, 64, 8, 25600, 151936),
    )
}
_EXPERTS = re.compile(r"maverick|scout|gpt-?oss|mixtral|deepseek|glm|kimi|-a\d+b|moe", re.IGNORECASE)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _model(point: Point) -> LLM:
    """Of a point, by its name without spelling; a version in the name is dropped if only the family is known."""
    name = str(point.config.get("model", ""))
    if _EXPERTS.search(name):
        raise Unpredictable(f"{name}: a mixture of experts, and the model prices dense layers")
    short = re.sub(r"\(.*\)", "", name)
    for spelling in (_plain(short), _plain(re.sub(r"3\.\d", "3", short)), _plain(re.sub(r"2\.\d", "2", short))):
        for known, llm in MODELS.items():
            if spelling.startswith(_plain(known)):
                return llm
    raise Unpredictable(f"{name or 'no model'}: dimensions not known here")


def _number(point: Point, *names: str, default: float | None = None) -> float:
    for name in names:
        value = point.config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    if default is None:
        raise Unpredictable(f"config has no {' or '.join(names)}")
    return default


def _grid(point: Point, key: str, default: str | None = None) -> tuple[float, float]:
    found = re.fullmatch(r"\s*(\d+)\s*(?:x\s*(\d+))?\s*", str(point.config.get(key, default or "")))
    rows, cols = (float(found[1]), float(found[2] or found[1])) if found else (0.0, 0.0)
    if min(rows, cols) < 3:  # the least ring
        raise Unpredictable(f"config has no {key} such as 480x480")
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


def _on(grid: tuple[float, float]) -> System:
    return WSE2.replace(rows=grid[0], cols=grid[1])


def _batch(point: Point) -> float:
    return _number(point, "batch", default=1.0)


def decode_cycles(llm: LLM, grid: tuple[float, float], context: float, batch: float, software: Software) -> float:
    """Of one token, all layers, as WaferLLM's benchmark counts them."""
    return float(decode_layer_price(_on(grid), merged(llm), context, batch, software).cycles) * llm.layers


def prefill_cycles(llm: LLM, grid: tuple[float, float], tokens: float, software: Software) -> float:
    return float(prefill_layer_price(_on(grid), merged(llm), tokens, 0, software).cycles) * llm.layers


def _waferllm_decode(point: Point, constants: Mapping[str, float]) -> float:
    context = _number(point, "context", "position", "seq", default=4096.0)
    return WSE2.clock_hz / decode_cycles(_model(point), _grid(point, "grid"), context, _batch(point), _software(constants))


def _waferllm_prefill(point: Point, constants: Mapping[str, float]) -> float:
    tokens = _number(point, "context", "input_len", "seq")
    return tokens * WSE2.clock_hz / prefill_cycles(_model(point), _grid(point, "grid"), tokens, _software(constants))


def _phases(point: Point, same_grid: bool = False) -> tuple[LLM, tuple[float, float], tuple[float, float], float, float]:
    llm = _model(point)
    first, second = _END_TO_END.get(llm.name, ("660x660", "360x360"))
    prefill = _grid(point, "prefill_grid", first)
    decode = prefill if same_grid else _grid(point, "decode_grid", second)
    return llm, prefill, decode, _number(point, "input_len"), _number(point, "output_len")


def _waferllm_end_to_end(point: Point, constants: Mapping[str, float]) -> float:
    """Generated tokens over the time of both phases, decode at the mean of its contexts."""
    llm, first, second, prompt, output = _phases(point)
    software = _software(constants)
    decode = decode_cycles(llm, second, prompt + output / 2, _batch(point), software)
    return output * WSE2.clock_hz / (prefill_cycles(llm, first, prompt, software) + output * decode)


# ---- T10 and Ladder on WSE-2 -----------------------------------------------------------------------------------------
PRODUCTS, REDUCTIONS = 9, 10  # of a layer: q, k, v, scores, values, output, gate, up, down; reductions over lines in decode


def _layer_weights(llm: LLM, grid: tuple[float, float]) -> float:
    """Of a layer, padded to the grid."""
    width, ffn = (share(n, grid[0]) * grid[0] for n in (llm.width, llm.ffn_width))
    return 4.0 * width * width + 3.0 * width * ffn


def relayed_prefill_cycles(llm: LLM, grid: tuple[float, float], element_cycles: float, hop_cycles: float) -> float:
    """Products by compilers that know no mesh: in each of P turns a tile of weights comes over up to P hops, each of them software.

    A hop takes `hop_cycles` for the message and `element_cycles` for each element: P turns x P hops x (hop + tile x element).
    """
    side = max(grid)
    return llm.layers * (PRODUCTS * side * side * hop_cycles + _layer_weights(llm, grid) * element_cycles)


def _t10_decode_cycles(llm: LLM, grid: tuple[float, float], sum_cycles: float) -> float:
    """Sums pass from PE to PE along the line, and the result comes back the same way: P routing stages each way."""
    return llm.layers * REDUCTIONS * 2.0 * max(grid) * sum_cycles


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
        if point.experiment == "llm_decode":
            context = _number(point, "context", default=4096.0)
            return WSE2.clock_hz / decode(_model(point), _grid(point, "grid"), context, constants)
        if point.experiment == "llm_prefill":
            tokens = _number(point, "context", "input_len")
            return tokens * WSE2.clock_hz / relayed_prefill_cycles(_model(point), _grid(point, "grid"), **hops)
        # end to end: both phases on the grid of prefill, since only WaferLLM lays data out anew between them
        llm, grid, _, prompt, output = _phases(point, same_grid=True)
        one = decode(llm, grid, prompt + output / 2, constants)
        return output * WSE2.clock_hz / (relayed_prefill_cycles(llm, grid, **hops) + output * one)

    return predict


_t10 = _relayed(lambda llm, grid, context, c: _t10_decode_cycles(llm, grid, c["sum_cycles"]))
_ladder = _relayed(lambda llm, grid, context, c: _ladder_decode_cycles(llm, grid, context, c["access_cycles"]))


# ---- WaferEngine on WSE-3 --------------------------------------------------------------------------------------------
_BLOCK = 256  # PEs along the side of a block, whose rows split the context
HOST_CLOCK_HZ = 0.75e9  # core_frequency of the machine's own description; device times were converted at 0.85 GHz, host times were not


def _staged(point: Point, software: Software, clock_hz: float) -> Deployment:
    """Eight stages of 256 x 256 if nothing is said; 28 stages of 64 x 256 have all rows and a quarter of the columns."""
    text = f"{point.algorithm} {point.config.get('stages', '')} {point.config.get('layout', '')}"
    found = re.search(r"(\d+)\s*stages?", text)
    blocks = re.search(r"\b(\d)x(\d)\b", text)
    stages = int(found[1]) if found else int(blocks[1]) * int(blocks[2]) if blocks else 8
    sizes = re.search(r"of (\d+)x(\d+)", text)
    cols = int(sizes[1]) if sizes else 64 if stages > 8 else _BLOCK
    rows = int(sizes[2]) if sizes else _BLOCK
    whole = CS3.replace(clock_hz=clock_hz, rows=float(rows), cols=float(cols * stages))
    return Deployment(whole, _model(point), 1, 1, stages, software=software)


_TIMES = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "cycles": CS3.clock_hz}


def _in_unit(seconds: float, unit: str) -> float:
    """A time in the unit before the slash of "us/token"."""
    name = unit.split("/")[0].strip()
    if name not in _TIMES:
        raise Unpredictable(f"unit {unit!r}: not a time")
    return seconds * _TIMES[name]


def _waferengine(point: Point, constants: Mapping[str, float]) -> float:
    software = _software(constants)
    clock_hz = HOST_CLOCK_HZ if point.metric.startswith("host") else _number(point, "assumed_clock_GHz", default=0.85) * 1e9
    d = _staged(point, software, clock_hz)
    if point.experiment == "llm_prefill":  # tokens of a prompt, one after the other through the stages of decode
        prefix, new = _number(point, "prefix", default=0.0), _number(point, "new_tokens", "seq")
        interval = d.token_interval_seconds(prefix + new / 2)
        if "end_to_end" in point.metric:
            return new / (interval * new + d.decode_seconds(int(prefix + new)))
        return 1.0 / interval
    batch = int(_number(point, "batch", default=1.0))
    if point.metric.startswith("slope"):
        return _in_unit((d.decode_seconds(16384) - d.decode_seconds(1)) / 16383, point.unit)
    if point.metric.startswith("throughput"):
        return batch / d.decode_seconds(int(_number(point, "position", "context", default=512.0)), batch)
    if "time" in point.metric or point.metric == "intercept":
        position = 1 if point.metric == "intercept" else int(_number(point, "position", "context", default=512.0))
        return _in_unit(d.decode_seconds(position, batch), point.unit)
    raise Unpredictable(f"metric {point.metric!r}: not a rate or a time of decode")


def _waferengine_prefill(point: Point, constants: Mapping[str, float]) -> float:
    """Chunks of a prompt through eight stages of 256 x 256, the block of 512 x 1024 PEs."""
    d = _staged(point, _software(constants), _number(point, "assumed_clock_GHz", default=0.85) * 1e9)
    tokens = int(_number(point, "seq", "new_tokens", "context"))
    seconds = d.prefill_seconds(tokens, int(_number(point, "chunk", default=512.0)))
    if point.metric.startswith("throughput"):
        return tokens / seconds
    if "time" in point.metric or "latency" in point.metric:
        return _in_unit(seconds, point.unit)
    raise Unpredictable(f"metric {point.metric!r}: not a rate or a time of prefill")


# ---- memory ----------------------------------------------------------------------------------------------------------
RUNTIME_BYTES = 4176.0  # ALCF: 44,976 of 49,152 bytes are left beside the host runtime's program
DECODE_TEXT_BYTES = 22.6 * 1024  # EPCC: text of a WaferEngine decode PE


def _blocks(point: Point) -> int:
    found = re.search(r"(\d+)x(\d+)", point.algorithm)
    return int(found[1]) * int(found[2]) if found else 4


def _capacity(point: Point, constants: Mapping[str, float]) -> float:
    """WaferLLM spreads the layers over as many regions as the wafer holds; WaferEngine over its blocks."""
    llm = _model(point)
    balanced = "concat" not in point.algorithm.lower() and "paged" not in point.algorithm.lower()
    if point.hardware.startswith("EPCC"):
        region = CS3.replace(rows=float(_BLOCK), cols=float(_BLOCK), code_per_pe_bytes=RUNTIME_BYTES + DECODE_TEXT_BYTES)
        return kv_capacity_tokens(region, llm, math.ceil(llm.layers / _blocks(point)), balanced=balanced)
    rows, cols = _grid(point, "decode_grid", "360x360")
    region = WSE2.replace(rows=rows, cols=cols, code_per_pe_bytes=constants["code_bytes"])
    return kv_capacity_tokens(region, llm, llm.layers * rows * cols / float(WSE2.pes), balanced=balanced)


def _budget(point: Point, constants: Mapping[str, float]) -> float:
    if "weight" not in point.metric:
        raise Unpredictable("the size of compiled program text: a property of a compiler, not of the machine")
    llm = _model(point)
    region = CS3.replace(rows=float(_BLOCK), cols=float(_BLOCK))
    size = float(layer_bytes_per_pe(region, llm)) * math.ceil(llm.layers / 4)
    return size / (1024.0 if point.unit.lower().startswith("ki") else 1.0)


# ---- services --------------------------------------------------------------------------------------------------------
SERVICE = CS3.replace(code_per_pe_bytes=RUNTIME_BYTES)  # the vendor's sizes (70B on four wafers) leave no more than this


_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"


def _serving(point: Point, constants: Mapping[str, float]) -> float:
    name = str(point.config.get("model", ""))
    when = re.search(r"(?:([A-Za-z]{3})[a-z]*\s+)?(20\d\d)", str(point.config.get("date", "")))
    later = when is not None and (int(when[2]), _MONTHS.find((when[1] or "dec").lower())) >= (2024, _MONTHS.find("oct"))
    if "specul" in f"{name} {point.note}".lower() or (later and point.metric == "output_speed" and not _EXPERTS.search(name)):
        raise Unpredictable("speculative decoding, which the service has used since October 2024: accepted drafts are not published")
    if "time_to_first" in point.metric and "input_len" not in point.config:
        raise Unpredictable("time to first token of a prompt of unpublished length, with the service's queue and network")
    d = deploy(SERVICE, _model(point), context=2048)
    if point.metric == "systems":
        return float(d.wafers)
    if point.metric == "output_speed":
        return d.tokens_per_second_per_user(1024)
    if "time_to_first" in point.metric:
        return d.prefill_seconds(int(_number(point, "input_len")))
    raise Unpredictable(f"metric {point.metric!r}: not a rate of tokens, a number of wafers or a time to first token")


# ---- the groups ------------------------------------------------------------------------------------------------------
def _claims(algorithm: str, *experiments: str) -> Any:
    def claims(p: Point) -> bool:
        mine = p.experiment in experiments and p.metric == "throughput_per_request" and "WSE" in p.hardware
        return mine and p.algorithm.startswith(algorithm)

    return claims


def _epcc(point: Point) -> bool:
    return point.hardware.startswith("EPCC") and point.experiment in ("llm_decode", "llm_prefill")


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
    Group(
        "LLM prefill on WSE-3",
        lambda p: _epcc(p) and p.experiment == "llm_prefill" and "forced" not in p.algorithm,
        _waferengine_prefill,
        dict(row_wait=Constant(0.05, 0.0, 1.0, "share", "of a sum's way along a row that the next step waits for")),
        aim=0.20,
    ),
    Group(
        "LLM decode on WSE-3",
        _epcc,
        _waferengine,
        dict(
            kernel_cycles=Constant(350.0, 0.0, 1e4, "cycles", "before and after a kernel"),
            token_cycles=Constant(55e3, 0.0, 1e6, "cycles", "a token outside the layers: sampling, and back to the first stage"),
        ),
        aim=0.15,
    ),
    Group(
        "KV cache capacity",
        lambda p: p.experiment == "kv_cache_capacity",
        _capacity,
        dict(code_bytes=Constant(6900.0, 1.0, 3e4, "bytes", "program text and buffers of a WaferLLM PE")),
    ),
    Group("SRAM of a PE", lambda p: p.experiment == "pe_sram_budget", _budget),
    Group("LLM serving", lambda p: p.experiment == "llm_serving" and "CS-" in p.hardware, _serving),
)
