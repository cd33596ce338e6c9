"""Prefill and decode of a transformer on a region of a wafer, by the PLMR form of WaferLLM (He et al., OSDI 2025).

Latency is hops times their latency plus routing stages times theirs, beside what PEs compute. Prefill multiplies matrices (MeshGEMM, two
hops a step), decode multiplies vectors (MeshGEMV: the local product, then a two-phase tree along each line). The prices are those beside
the kernels; here they are put together layer by layer, as WaferLLM does. A *region* is `system.replace(rows=R, cols=C)`: what one layer
after the other runs on.

Everything is a function of floats, so it can be jitted, mapped over machines and differentiated. Every time is modelled.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.tree_util

from wsejax.cost.llm import LLM
from wsejax.hardware import System
from wsejax.kernels.pe.collectives import all_reduce_price, reduce_price
from wsejax.kernels.pe.gemm import mesh_gemm_price, times_transposed_price
from wsejax.kernels.pe.gemv import gemv_price
from wsejax.kernels.price import (
    Price,
    ceil,
    computing,
    copies_per_cycle,
    fma_per_cycle,
    least,
    most,
    share,
    vector_cycles,
)

# Of a decoded layer: two norms, q with k and v, scores, maximum, sum, values, output, gate with up, down (WaferLLM's decode program).
DECODE_KERNELS = 10
# Of a prefilled layer: two norms, q, k, v, scores, softmax, values, output, gate, up, down (the paper's prefill).
PREFILL_KERNELS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Software:
    """What the code on the PEs adds to the machine, in cycles. The defaults were fitted to WaferLLM's published runs (`measured.llm`)."""

    stage_cycles: Any = 13.5  # of a PE that adds to a sum and passes it on; the hardware's own are 2 ramp + 1
    kernel_cycles: Any = 0.0  # before and after a kernel of a layer: entry, branches, skew between PEs
    loop_cycles: Any = 51.0  # of a turn of the loop over the contracted dimension: reload descriptors
    vector_cycles: Any = 3.2  # of a vector instruction in such a loop, before its first element
    token_cycles: Any = 0.0  # of a token outside the layers: sampling, and the way back to the first layer
    row_wait: Any = 0.0  # share of a sum's way along a row that the next step of the scores waits for


jax.tree_util.register_dataclass(Software, data_fields=[f.name for f in dataclasses.fields(Software)], meta_fields=[])
WAFERLLM = Software()


def _coded(system: System, software: Software, launch_cycles: Any) -> System:
    return system.replace(ramp_cycles=(software.stage_cycles - 1.0) / 2.0, launch_cycles=launch_cycles)


def _kernels(software: Software, count: float) -> Price:
    cycles = software.kernel_cycles * count
    return Price(cycles=cycles, wait_cycles=cycles)


def _elementwise(system: System, elements: Any, passes: float, itemsize_bytes: int) -> Price:
    """So many vector instructions over the elements of the fullest PE, here and alike on all."""
    busy = vector_cycles(system, elements * passes, copies_per_cycle(system, itemsize_bytes), instructions=passes)
    return computing(busy, elements * passes * system.pes, 3.0 * elements * passes * itemsize_bytes * system.pes)


def _exponentials(system: System, elements: Any) -> Price:
    """Elements of the fullest PE, one at a time; an exponential counts as four flops, as WaferLLM's polynomial takes."""
    return computing(elements * system.special_cycles, 4.0 * elements * system.pes)


# ---- decode ----------------------------------------------------------------------------------------------------------
def middle_all_reduce_price(system: System, n: Any, lines: Any, size_bytes: Any, itemsize_bytes: int = 2) -> Price:
    """An all-reduce whose root is in the middle of the line, as WaferLLM's: both halves at once, each by a two-phase tree."""
    return all_reduce_price(system, ceil(n / 2), lines * 2.0, size_bytes, "two_phase", itemsize_bytes)


def middle_gemv_price(system: System, rows: Any, cols: Any, k: Any, n: Any, batch: Any = 1, itemsize_bytes: int = 2) -> Price:
    """`batch` vectors times a k x n matrix, `gemv_price` with roots in the middle of the columns.

    That is the price of a grid of half the height and twice the width, with the same blocks. Each further vector of the batch goes through
    the block again.
    """
    half, kt, nt = ceil(rows / 2), share(k, rows), share(n, cols)
    price = gemv_price(system, half, cols * 2.0, kt * half, nt * cols * 2.0 * batch, itemsize_bytes)
    return price + computing(system.launch_cycles * (batch - 1.0) * least(kt, nt), 0.0)


def decode_attention_price(system: System, llm: LLM, context: Any, batch: Any = 1, itemsize_bytes: int = 2) -> Price:
    """Scores, softmax and values of one new token against `context` kept ones, for each sequence of a batch.

    Rows split the context, columns the heads; a head's scores are added up over its own columns only.
    """
    rows, cols = system.rows, system.cols
    shared = float(llm.heads // llm.kv_heads)  # queries of a key
    apart = least(1.0 * llm.kv_heads, cols)  # heads side by side
    tokens, width = share(context, rows), share(llm.kv_heads * llm.head_width, cols)
    scores = batch * tokens * llm.heads / apart  # of a PE
    queries = batch * shared * width
    multiply = vector_cycles(
        system, queries * tokens, fma_per_cycle(system, itemsize_bytes), instructions=batch * shared * least(width, tokens)
    )
    macs = 1.0 * batch * context * llm.heads * llm.head_width
    product = computing(multiply, 2.0 * macs, macs * itemsize_bytes)
    add_scores = middle_all_reduce_price(system, share(cols, apart), rows * apart, scores * itemsize_bytes, itemsize_bytes)
    per_head = middle_all_reduce_price(system, rows, cols, batch * llm.heads / apart * itemsize_bytes, itemsize_bytes)
    soft = _elementwise(system, scores, 4.0, itemsize_bytes) + _exponentials(system, scores)
    add_values = middle_all_reduce_price(system, rows, cols, queries * itemsize_bytes, itemsize_bytes)
    return product * 2.0 + add_scores + per_head * 2.0 + soft + add_values


def decode_layer_price(
    system: System, llm: LLM, context: Any, batch: Any = 1, software: Software = WAFERLLM, itemsize_bytes: int = 2
) -> Price:
    """One layer for one new token of each sequence of a batch, on the region `system`."""
    s = _coded(system, software, software.loop_cycles)
    rows, cols, queries = s.rows, s.cols, llm.heads * llm.head_width
    ups = 2 if llm.gated else 1
    norm = middle_all_reduce_price(s, rows, cols, batch * itemsize_bytes, itemsize_bytes)
    norm += _elementwise(s, share(llm.width, rows) * batch, 4.0, itemsize_bytes)
    products = (
        middle_gemv_price(s, rows, cols, llm.width, queries + 2 * llm.kv_heads * llm.head_width, batch, itemsize_bytes)
        + middle_gemv_price(s, cols, rows, queries, llm.width, batch, itemsize_bytes)
        + middle_gemv_price(s, rows, cols, llm.width, ups * llm.ffn_width, batch, itemsize_bytes)
        + middle_gemv_price(s, cols, rows, llm.ffn_width, llm.width, batch, itemsize_bytes)
    )
    hidden = share(llm.ffn_width, cols) * batch
    rest = _exponentials(s, hidden) + _elementwise(s, hidden, 2.0, itemsize_bytes)
    attention = decode_attention_price(s, llm, context, batch, itemsize_bytes)
    return norm * 2.0 + products + rest + attention + _kernels(software, DECODE_KERNELS)


def head_price(system: System, llm: LLM, batch: Any = 1, software: Software = WAFERLLM, itemsize_bytes: int = 2) -> Price:
    """The output head for one token of each sequence, and the largest logit."""
    s = _coded(system, software, software.loop_cycles)
    logits = middle_gemv_price(s, s.rows, s.cols, llm.width, llm.vocab_size, batch, itemsize_bytes)
    best = middle_all_reduce_price(s, s.cols, s.rows, batch * 2.0 * itemsize_bytes, itemsize_bytes)
    once = Price(cycles=software.token_cycles, wait_cycles=software.token_cycles)
    return logits + best + _kernels(software, 2) + once


# ---- prefill ---------------------------------------------------------------------------------------------------------
def loop_rate(system: System, software: Software, m: Any, n: Any, itemsize_bytes: int = 2) -> Any:
    """Multiply-adds a cycle of a tile's product: for each term a turn of a loop, in it n vector instructions of m elements."""
    cycles = 1.0 / fma_per_cycle(system, itemsize_bytes) + software.vector_cycles / m + software.loop_cycles / (m * n)
    return 1.0 / cycles


def scores_price(system: System, m: Any, k: Any, n: Any, fma_rate: Any, software: Software = WAFERLLM, itemsize_bytes: int = 2) -> Price:
    """`times_transposed_price`, where the sums of a step may still be on their way along a row while the next step is multiplied."""
    rows, cols = system.rows, system.cols
    price = times_transposed_price(system, rows, cols, m, k, n, itemsize_bytes, fma_rate)
    add = reduce_price(system, cols, rows, share(m, rows) * n / rows * itemsize_bytes, "chain", itemsize_bytes)
    saved = (1.0 - software.row_wait) * (add.wait_cycles - 2.0 * system.ramp_cycles - 1.0) * (rows - 1.0)
    return price + Price(cycles=-saved, wait_cycles=-saved)


def prefill_layer_price(
    system: System, llm: LLM, tokens: Any, before: Any = 0, software: Software = WAFERLLM, itemsize_bytes: int = 2, block: Any = None
) -> Price:
    """One layer for `tokens` new tokens of a sequence of which `before` are kept already, on the region `system`.

    Products run vector instructions along the sequence; nothing is skipped above the diagonal of the scores, as in WaferLLM's program. What
    is kept comes by in blocks of `block` tokens, as long as the new tokens if None.
    """
    s = _coded(system, software, software.vector_cycles)
    bare = s.replace(launch_cycles=0.0)  # the starts of vector instructions are in the rate
    rows, cols, here = s.rows, s.cols, share(tokens, s.rows)
    queries, keys = llm.heads * llm.head_width, llm.kv_heads * llm.head_width
    panels = most(rows, cols)

    def gemm(k: Any, n: Any) -> Price:
        rate = loop_rate(s, software, here, share(n, cols), itemsize_bytes)
        return mesh_gemm_price(bare, rows, cols, tokens, share(k, panels) * panels, n, itemsize_bytes, rate)

    norm = middle_all_reduce_price(s, cols, rows, here * itemsize_bytes, itemsize_bytes)
    norm += _elementwise(s, here * share(llm.width, cols), 4.0, itemsize_bytes)
    hidden = here * share(llm.ffn_width, cols)
    rest = _exponentials(s, hidden) + _elementwise(s, hidden, 2.0, itemsize_bytes)
    up = gemm(llm.width, llm.ffn_width) * (2.0 if llm.gated else 1.0)
    products = gemm(llm.width, queries) + gemm(llm.width, keys) * 2.0 + gemm(queries, llm.width) + up + gemm(llm.ffn_width, llm.width)
    block = tokens if block is None else block

    def attend(n: Any) -> Price:
        """To `n` tokens: scores, and values weighted by them."""
        rate = loop_rate(s, software, here, share(n, rows), itemsize_bytes)
        return scores_price(bare, tokens, queries, n, rate, software, itemsize_bytes) + gemm(n, queries)

    elements = 1.0 * tokens * (before + tokens) * llm.heads / s.pes
    soft = _elementwise(s, elements, 4.0, itemsize_bytes) + _exponentials(s, elements)
    soft += middle_all_reduce_price(s, cols, rows, here * llm.heads * itemsize_bytes, itemsize_bytes) * 2.0
    attention = attend(tokens) + attend(block) * (before / block)
    return norm * 2.0 + products + rest + attention + soft + _kernels(software, PREFILL_KERNELS)
