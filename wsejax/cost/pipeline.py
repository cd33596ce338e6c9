"""A model on whole wafers: layers in a pipeline of regions, over one wafer or several, with what memory is left for keys and values.

A wafer is cut into equal regions, and a stage of the pipeline is a region with a few layers. Between stages activations cross the fabric,
between wafers the I/O. Small regions make short reductions but few PEs multiply; `deploy` tries the cuts and takes the fastest. Every time
is modelled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from wsejax.cost.inference import WAFERLLM, Software, decode_layer_price, head_price, prefill_layer_price
from wsejax.cost.llm import LLM
from wsejax.hardware import ClusterSpec, System, cluster_spec
from wsejax.kernels.pe.collectives import broadcast_price
from wsejax.kernels.price import share

# Tokens of keys and values that were kept come by in blocks of this many, whatever the chunk at hand: with blocks as short as the chunk, a
# short chunk would start so many of them that it took longer than a long one. Of WaferEngine's two chunks and prompts that were published,
# 512 is as close as what fits best.
KEPT_BLOCK = 512
CHUNKS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # of a prompt, that are tried


# ---- memory ----------------------------------------------------------------------------------------------------------
def layer_bytes_per_pe(region: System, llm: LLM, weight_bytes: float = 2) -> Any:
    """One layer's weights in the fullest PE: tiles, padded to whole ones."""
    rows, cols, width = region.rows, region.cols, llm.width
    queries, keys = llm.heads * llm.head_width, llm.kv_heads * llm.head_width
    tile = lambda k, n: share(k, rows) * share(n, cols)
    up = tile(width, llm.ffn_width) * (2 if llm.gated else 1)
    attention = tile(width, queries) + 2 * tile(width, keys) + tile(queries, width)
    return (attention + up + tile(llm.ffn_width, width)) * weight_bytes


def kv_bytes_per_row_pe(region: System, llm: LLM, layers: Any, kv_bytes: float = 2) -> Any:
    """Keys and values of one token in the PEs of the row that holds it, each of the row's PEs with its columns."""
    return 2.0 * share(llm.kv_heads * llm.head_width, region.cols) * kv_bytes * layers


def kv_capacity_tokens(region: System, llm: LLM, layers: Any, weight_bytes: float = 2, kv_bytes: float = 2, balanced: bool = True) -> float:
    """Tokens whose keys and values fit beside the weights of `layers` layers on `region`.

    Args:
      balanced: rows of PEs pass their oldest entry on when they are level, so that all rows fill (WaferLLM's shift); else new entries
        are appended in one row, which fills alone (concatenation, as paged attention does).
    """
    free = region.sram_per_pe_bytes - region.code_per_pe_bytes - layers * layer_bytes_per_pe(region, llm, weight_bytes)
    in_a_row = max(0.0, float(free) / float(kv_bytes_per_row_pe(region, llm, layers, kv_bytes)))
    return in_a_row * float(region.rows) if balanced else in_a_row


def head_slots(llm: LLM) -> int:
    """Layers whose memory the output head takes; the table of tokens is looked up outside the wafer."""
    return math.ceil(llm.vocab_size * llm.width / llm.block_parameters)


# ---- the pipeline ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Deployment:
    """A model on `wafers` of `system`, each cut into `down` x `across` regions, stages of one pipeline."""

    system: System
    llm: LLM
    wafers: int
    down: int
    across: int
    weight_bytes: float = 2
    kv_bytes: float = 2
    software: Software = WAFERLLM

    @property
    def stages(self) -> int:
        return self.wafers * self.down * self.across

    @property
    def region(self) -> System:
        return self.system.replace(rows=float(self.system.rows // self.down), cols=float(self.system.cols // self.across))

    @property
    def layers_per_stage(self) -> int:
        """Of the fullest stage, with the output head counted in layers."""
        return math.ceil((self.llm.layers + head_slots(self.llm)) / self.stages)

    @property
    def kv_tokens(self) -> float:
        """Tokens of all sequences together that fit."""
        return kv_capacity_tokens(self.region, self.llm, self.layers_per_stage, self.weight_bytes, self.kv_bytes)

    def _handover_seconds(self, tokens: Any) -> tuple[float, float]:
        """From a stage to the next: (on a wafer, between wafers)."""
        r, size = self.region, 2.0 * self.llm.width * tokens
        near = broadcast_price(r, r.rows, r.cols, share(size, r.cols)).cycles + self.software.kernel_cycles
        return float(r.seconds(near)), float(self.system.io_latency_seconds + size / self.system.io_bytes_per_second)

    def _through_seconds(self, tokens: Any, layer_seconds: float) -> float:
        """Of a message through all layers; after the last stage it goes back to the first."""
        near, far = self._handover_seconds(tokens)
        return self.llm.layers * layer_seconds + (self.stages - self.wafers) * near + (self.wafers if self.wafers > 1 else 0) * far

    def _stage_seconds(self, tokens: Any, layer_seconds: float) -> float:
        """Of the slowest stage: its layers, then the hand-over."""
        near, far = self._handover_seconds(tokens)
        layers = math.ceil(self.llm.layers / self.stages)
        return layers * layer_seconds + (far if self.wafers > 1 else near)

    def token_interval_seconds(self, context: float) -> float:
        """Between tokens of one sequence that are all known, such as a prompt's, and follow each other through the stages of decode."""
        layer = decode_layer_price(self.region, self.llm, context, 1, self.software)
        return self._stage_seconds(1, float(self.region.seconds(layer.cycles)))

    def decode_seconds(self, context: int, batch: int = 1) -> float:
        """For one more token of each of `batch` sequences: as many as stages are under way at once.

        The batch is dealt to the stages: a token takes its way through all layers, or as long as the slowest stage needs for all.
        """
        together = math.ceil(batch / self.stages)
        layer = float(self.region.seconds(decode_layer_price(self.region, self.llm, context, together, self.software).cycles))
        head = float(self.region.seconds(head_price(self.region, self.llm, together, self.software).cycles))
        groups = math.ceil(batch / together)
        return max(self._through_seconds(together, layer) + head, groups * max(self._stage_seconds(together, layer), head))

    def _prefill(self, tokens: int, chunk: int) -> tuple[float, float]:
        """(to the first new token, that the slowest stage is busy)."""
        if tokens < 1 or chunk < 1:
            raise ValueError(f"tokens={tokens!r}, chunk={chunk!r}: must be positive")
        sizes = [chunk] * (tokens // chunk) + ([tokens % chunk] if tokens % chunk else [])
        before, busy, last = 0, 0.0, 0.0
        for size in sizes:
            price = prefill_layer_price(self.region, self.llm, size, before, self.software, block=KEPT_BLOCK)
            layer = float(self.region.seconds(price.cycles))
            stage, last = self._stage_seconds(size, layer), self._through_seconds(size, layer)
            busy, before = busy + stage, before + size
        head = float(self.region.seconds(head_price(self.region, self.llm, 1, self.software).cycles))
        return busy - stage + last + head, busy

    def best_chunk(self, tokens: int) -> int:
        """Of the lengths that are tried, the one whose first new token comes first."""
        lengths = sorted({min(tokens, c) for c in CHUNKS if tokens <= 64 * c})
        return min(lengths or [tokens], key=lambda c: self._prefill(tokens, c)[0])

    def prefill_seconds(self, tokens: int, chunk: int | None = None) -> float:
        """Of a prompt, to its first new token: chunks follow each other through the stages."""
        return self._prefill(tokens, self.best_chunk(tokens) if chunk is None else chunk)[0]

    def prefill_busy_seconds(self, tokens: int, chunk: int | None = None) -> float:
        """That a prompt keeps the slowest stage: what the next prompt waits at least."""
        return self._prefill(tokens, self.best_chunk(tokens) if chunk is None else chunk)[1]

    def tokens_per_second_per_user(self, context: int, batch: int = 1) -> float:
        return 1.0 / self.decode_seconds(context, batch)

    def tokens_per_second(self, context: int, batch: int) -> float:
        """Of all wafers together."""
        return batch / self.decode_seconds(context, batch)

    def joules_per_token(self, context: int, batch: int = 1) -> float:
        """Modelled energy of all wafers for a new token: what its layers and head move and compute, and its share of idle power."""
        region, idle = self.region, self.system.replace(idle_watts=0.0)
        layer = decode_layer_price(region, self.llm, context, 1, self.software).joules(idle)
        head = head_price(region, self.llm, 1, self.software).joules(idle)
        waiting = self.wafers * self.system.idle_watts / self.tokens_per_second(context, batch)
        return float(layer * self.llm.layers + head + waiting)

    def summary(self, context: int, batch: int = 1, prompt_tokens: int = 1024) -> dict[str, Any]:
        """Where the layers lie, and modelled times and rates with `batch` sequences of `context` tokens."""
        return {
            **self.to_dict(),
            "context": context,
            "batch": batch,
            "modelled_seconds_per_token": self.decode_seconds(context, batch),
            "modelled_tokens_per_second_per_user": self.tokens_per_second_per_user(context, batch),
            "modelled_tokens_per_second": self.tokens_per_second(context, batch),
            "modelled_prefill_seconds": self.prefill_seconds(prompt_tokens),
            "prompt_tokens": prompt_tokens,
            "modelled_joules_per_token": self.joules_per_token(context, batch),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.llm.name,
            "system": self.system.name,
            "wafers": self.wafers,
            "regions_per_wafer": [self.down, self.across],
            "region_pes": [int(self.region.rows), int(self.region.cols)],
            "layers_per_stage": self.layers_per_stage,
            "kv_tokens": int(self.kv_tokens),
        }


@functools.lru_cache(maxsize=32)
def _cuts(most: int) -> tuple[tuple[int, int], ...]:
    """Ways to cut a wafer into at most `most` regions that are nearly square."""
    return tuple((d, a) for d in range(1, most + 1) for a in range(1, most // d + 1) if d <= 4 * a and a <= 4 * d)


def _tried(system: System, llm: LLM, wafers: int, weight_bytes: float, kv_bytes: float, software: Software) -> list[Deployment]:
    slots = llm.layers + head_slots(llm)
    most = max(1, min(64, slots // wafers))
    return [Deployment(system, llm, wafers, d, a, weight_bytes, kv_bytes, software) for d, a in _cuts(most)]


def deploy(
    system: System | ClusterSpec | str,
    llm: LLM,
    *,
    context: int | None = None,
    batch: int = 1,
    wafers: int | None = None,
    most_wafers: int = 64,
    weight_bytes: float = 2,
    kv_bytes: float = 2,
    software: Software = WAFERLLM,
) -> Deployment:
    """The fewest wafers (or as many as given) that hold the weights and `batch` sequences of `context` tokens, cut for the fastest token.

    Args:
      system: a machine, of which there are `most_wafers`, or a cluster ("cg3", a `ClusterSpec`), of which there are as many as it has.
      wafers: stages of the pipeline over wafers; None: the fewest that hold it.

    Raises:
      ValueError: no cut holds it; the message says what is short and by how much. More wafers than the cluster has systems.
    """
    if not isinstance(system, System):
        spec = cluster_spec(system)
        if wafers is not None and not isinstance(wafers, bool) and isinstance(wafers, int) and wafers > spec.systems:
            raise ValueError(
                f"wafers={wafers}: a pipeline over {wafers} wafers needs as many systems, and {spec.name} has {spec.systems} "
                f"{spec.system.name}; give fewer, or a larger cluster"
            )
        system, most_wafers = spec.system, min(most_wafers, spec.systems)
    context = min(llm.context, 8192) if context is None else context
    for name, value in dict(context=context, batch=batch, wafers=1 if wafers is None else wafers, most_wafers=most_wafers).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a positive integer")
    for name, value in dict(weight_bytes=weight_bytes, kv_bytes=kv_bytes).items():
        if not value > 0:
            raise ValueError(f"{name}={value!r}: must be positive")
    need = context * batch
    for count in range(1, most_wafers + 1) if wafers is None else (wafers,):
        fitting = [d for d in _tried(system, llm, count, weight_bytes, kv_bytes, software) if d.kv_tokens >= need]
        if fitting:
            return min(fitting, key=lambda d: d.decode_seconds(context, batch))
    count = most_wafers if wafers is None else wafers
    weights, cache = llm.parameters * weight_bytes, need * llm.kv_bytes_per_token(1) * kv_bytes
    capacity = float(system.sram_bytes) * count
    largest = max((("weights", weights), ("keys and values", cache)), key=lambda part: part[1])[0]
    over = weights + cache - capacity
    by = f"short by {over / 1e9:,.3g} GB" if over > 0 else "short of whole tiles in a PE"
    raise ValueError(
        f"{llm.name} on {count} {system.name}: does not fit, {largest} {by}: weights {weights / 1e9:,.3g} GB and keys and values of "
        f"{batch} x {context} tokens {cache / 1e9:,.3g} GB on {capacity / 1e9:,.3g} GB of SRAM; more wafers, or a shorter context, would do"
    )
