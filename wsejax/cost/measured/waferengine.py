"""Published runs of language models on WSE-3 (EPCC's WaferEngine), what a wafer's memory holds of keys and values, and services.

WaferEngine's times are cycles at 0.85 GHz.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from wsejax.cost.inference import Software
from wsejax.cost.pipeline import Deployment, deploy, kv_capacity_tokens, layer_bytes_per_pe
from wsejax.cost.points import Constant, Group, Point, Unpredictable
from wsejax.hardware import CS2, CS3

from .llm import EXPERTS, grid_of, model_of
from .read import number, positive, rate_in, system_of, time_in, whole

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
    llm = model_of(point)
    if system_of(point).name != CS3.name:
        raise Unpredictable(f"hardware={point.hardware!r}: these programs were measured on WSE-3")
    if stages < 1 or stages * rows * cols > CS3.rows * CS3.cols:
        raise Unpredictable(f"{stages} stages of {cols}x{rows} PEs: the wafer has {CS3.rows:.0f}x{CS3.cols:.0f} for programs")
    d = Deployment(CS3.replace(clock_hz=clock_hz, rows=float(rows), cols=float(cols * stages)), llm, 1, 1, stages, software=software)
    size_bytes = float(layer_bytes_per_pe(d.region, llm)) * math.ceil(llm.layers / stages)
    if size_bytes > CS3.sram_per_pe_bytes:
        raise Unpredictable(f"{llm.name} in {stages} stages of {cols}x{rows}: {size_bytes:,.0f} bytes of weights a PE, which has 49,152")
    return d


def _software(constants: Mapping[str, float]) -> Software:
    return dataclasses.replace(Software(), **constants)


def _clock_hz(point: Point) -> float:
    if point.metric.startswith("host"):
        return HOST_CLOCK_HZ
    return positive(point, "assumed_clock_GHz", default=0.85) * 1e9


def _position(point: Point) -> int:
    return int(number(point, "position", "context", default=512.0))


def _forced(point: Point, d: Deployment) -> float:
    """Seconds of a prompt whose tokens go one after the other through the stages of decode: the first takes its way through all of them,
    and the others follow, at the mean of their positions. End to end, the token that the prompt asks for comes after."""
    prefix, new = number(point, "prefix", default=0.0), positive(point, "new_tokens", "seq")
    interval = d.token_interval_seconds(prefix + new / 2)
    seconds = interval * (new - 1.0 + d.stages)
    return seconds + (d.decode_seconds(int(prefix + new)) if "end_to_end" in point.metric else 0.0)


def _waferengine(point: Point, constants: Mapping[str, float]) -> float:
    d = _staged(point, _software(constants), _clock_hz(point))
    if point.experiment == "llm_prefill":
        return _as_measured(point, _forced(point, d), positive(point, "new_tokens", "seq"))
    batch = whole(point, "batch", default=1)
    if point.metric.startswith("slope"):
        return time_in(point, (d.decode_seconds(16384) - d.decode_seconds(1)) / 16383, d.system.clock_hz)
    if point.metric.startswith("throughput"):
        return rate_in(point, batch / d.decode_seconds(_position(point), batch))
    if "time" in point.metric or point.metric == "intercept":
        position = 1 if point.metric == "intercept" else _position(point)
        return time_in(point, d.decode_seconds(position, batch), d.system.clock_hz)
    raise Unpredictable(f"metric={point.metric!r}: not a rate or a time of decode")


def _waferengine_prefill(point: Point, constants: Mapping[str, float]) -> float:
    """Chunks of a prompt through eight stages of 256 x 256, the block of 512 x 1024 PEs."""
    d = _staged(point, _software(constants), _clock_hz(point))
    tokens = whole(point, "seq", "new_tokens", "context")
    return _as_measured(point, d.prefill_seconds(tokens, whole(point, "chunk", default=512)), tokens)


def _as_measured(point: Point, seconds: float, tokens: float) -> float:
    """A prompt's time, or its rate."""
    if point.metric.startswith("throughput"):
        return rate_in(point, tokens / seconds)
    if "time" in point.metric or "latency" in point.metric:
        return time_in(point, seconds / (tokens if point.unit.endswith("/token") else 1.0), _clock_hz(point))
    raise Unpredictable(f"metric={point.metric!r}: not a rate or a time of prefill")


# ---- memory ----------------------------------------------------------------------------------------------------------
RUNTIME_BYTES = 4176.0  # ALCF: 44,976 of 49,152 bytes are left beside the host runtime's program
DECODE_TEXT_BYTES = 22.6 * 1024  # EPCC: text of a WaferEngine decode PE


def _blocks(point: Point) -> int:
    found = re.search(r"(\d+)x(\d+)", point.algorithm)
    return int(found[1]) * int(found[2]) if found else 4


def _capacity(point: Point, constants: Mapping[str, float]) -> float:
    """WaferLLM spreads the layers over as many regions as the wafer holds; WaferEngine over its blocks.

    Of WaferLLM, weights and cache are counted as if they lay evenly over the wafer. Its programs pad a tile to whole elements, so what is
    left would jump with the side of the grid (rounded up, 13B loses five of six tokens between 375 and 390); its published capacities of
    both models are closer without. So the grid decides only how much of that a row holds.
    """
    if point.unit != "tokens":
        raise Unpredictable(f"unit={point.unit!r}: capacities are predicted in tokens")
    llm, system = model_of(point), system_of(point)
    balanced = "concat" not in point.algorithm.lower() and "paged" not in point.algorithm.lower()
    if point.hardware.startswith("EPCC"):
        region = CS3.replace(rows=float(_BLOCK), cols=float(_BLOCK), code_per_pe_bytes=RUNTIME_BYTES + DECODE_TEXT_BYTES)
        tokens = kv_capacity_tokens(region, llm, math.ceil(llm.layers / _blocks(point)), balanced=balanced)
    else:
        if system.name != CS2.name:
            raise Unpredictable(f"hardware={point.hardware!r}: these programs were measured on WSE-2")
        rows, _ = grid_of(point, "decode_grid", "360x360")
        free = float(CS2.pes) * (CS2.sram_per_pe_bytes - constants["code_bytes"]) - 2.0 * llm.layers * llm.block_parameters
        tokens = max(0.0, free) / llm.kv_bytes_per_token() / (1.0 if balanced else rows)
    if tokens <= 0.0:
        raise Unpredictable(f"{llm.name}: its weights and the programs leave nothing of {system.name}'s SRAM")
    return tokens


def _budget(point: Point, constants: Mapping[str, float]) -> float:
    if "weight" not in point.metric:
        raise Unpredictable("the size of compiled program text: a property of a compiler, not of the machine")
    llm = model_of(point)
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
    if "specul" in f"{name} {point.note}".lower() or (later and point.metric == "output_speed" and not EXPERTS.search(name)):
        raise Unpredictable("speculative decoding, which the service has used since October 2024: accepted drafts are not published")
    if "time_to_first" in point.metric and "input_len" not in point.config:
        raise Unpredictable("time to first token of a prompt of unpublished length, with the service's queue and network")
    if system_of(point).name != CS3.name:
        raise Unpredictable(f"hardware={point.hardware!r}: the service runs on CS-3")
    d = deploy(SERVICE, model_of(point), context=2048)
    if point.metric == "systems":
        return float(d.wafers)
    if point.metric == "output_speed":
        return rate_in(point, d.tokens_per_second_per_user(int(positive(point, "context", default=1024.0))))
    if "time_to_first" in point.metric:
        return time_in(point, d.prefill_seconds(whole(point, "input_len")))
    raise Unpredictable(f"metric {point.metric!r}: not a rate of tokens, a number of wafers or a time to first token")


# ---- the groups ------------------------------------------------------------------------------------------------------
def _epcc(point: Point) -> bool:
    return point.hardware.startswith("EPCC") and point.experiment in ("llm_decode", "llm_prefill")


GROUPS = (
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
