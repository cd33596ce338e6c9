"""Does a model fit on wafers, and what does it need: bytes by component, and the tokens that keep a streamed model from waiting.

Two ways to run: *resident* (everything in the SRAM of the wafers, what the vendor calls pipelined execution) and *streamed* (weights come
layer by layer over the wafer's I/O from memory outside, which holds gradients and optimizer state, too; only activations and the weights
of the layer at hand are on the wafer). A pass over b-byte weights takes b P / BW to stream and 2 P T / F to compute with T tokens, so
waiting ends at T_min = b F / (2 BW), whatever the width of the layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from wsejax.cost.llm import LLM
from wsejax.hardware import CS3, MemoryX, System
from wsejax.hardware import capacity as capacity_of

# ALCF run logs (argonne-lcf/user-guides): Llama-2-7B at 131k tokens/s on one CS-3 is 6.14 PF, of the dense peak of the grid that a
# program gets at the clock of `CS3`.
MEASURED_SHARE_OF_PEAK = 6.14e15 / CS3.dense_peak_fp16_flops_per_second
# Cerebras at Hot Chips 2024: memory outside the wafers comes as 1.5 TB, 12 TB or up to 1.2 PB.
OUTSIDE_BYTES = 12e12


@dataclasses.dataclass(frozen=True)
class TrainingBytes:
    """What training keeps, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    master: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.master + self.activations

    def to_dict(self) -> dict[str, float]:
        return {**dataclasses.asdict(self), "total": self.total}


def training_bytes(
    parameters: float,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    optimizer_bytes: float = 8,
    master_bytes: float = 0,
    activations_bytes: float = 0,
) -> TrainingBytes:
    """Bytes of training `parameters` weights; the other arguments but the last are bytes for each of them.

    The defaults are 16-bit weights and gradients and the two 32-bit moments of Adam: 12 bytes. Mixed precision also keeps a 32-bit master
    copy (`master_bytes=4`): 16 bytes (Rajbhandari et al., ZeRO, 2020).

    Raises:
      ValueError: an argument is negative.
    """
    for name, value in locals().items():
        if value < 0:
            raise ValueError(f"{name}={value!r}: bytes and counts are not negative")
    return TrainingBytes(
        parameters * weight_bytes, parameters * gradient_bytes, parameters * optimizer_bytes, parameters * master_bytes, activations_bytes
    )


def popular_estimate_gb(billions: float) -> float:
    """Gigabytes by a popular article's estimator, as a cautionary example: 2 + 2 + 8 bytes a weight, and nothing else.

    The article prints 5, 35, 65, 100 and 350 GB for 1, 7, 13, 20 and 70 billion weights and concludes that 7 billion train within 44 GB of
    SRAM. Its own code says otherwise, and leaves out the 32-bit master copy and all activations:

    >>> [round(popular_estimate_gb(n)) for n in (1, 7, 13, 20, 70)]
    [12, 84, 156, 240, 840]
    """
    return training_bytes(billions * 1e9).total / 1e9


def layer_activation_elements(llm: LLM) -> int:
    """Of one token in one layer, kept for the gradient if nothing is computed again: inputs of matrices and of nonlinearities.

    Two residual inputs, two normed ones, queries, keys, values, the attention's result, and what the MLP keeps. Scores are not kept
    (attention in blocks), nor are logits (the loss goes piece by piece).
    """
    attention = llm.head_width * (2 * llm.heads + 2 * llm.kv_heads)
    return 4 * llm.width + attention + (3 if llm.gated else 2) * llm.ffn_width


def activation_bytes(llm: LLM, tokens: float, itemsize_bytes: int = 2, recompute: bool = True) -> float:
    """Kept on the wafer for the gradients of `tokens`: everything, or with `recompute` the input of each layer and one layer in full."""
    layer = layer_activation_elements(llm)
    kept = llm.layers * llm.width + layer if recompute else llm.layers * layer
    return float(kept) * tokens * itemsize_bytes


def kv_bytes(llm: LLM, context: int, batch: int, itemsize_bytes: int = 2) -> float:
    """Keys and values of `batch` sequences of `context` tokens."""
    return float(llm.kv_bytes_per_token(itemsize_bytes)) * context * batch


def sustained_flops_per_second(system: System) -> Any:
    """What training reached on a CS-3, as a share of dense peak, on this system."""
    return MEASURED_SHARE_OF_PEAK * system.dense_peak_fp16_flops_per_second


def min_tokens(system: System, weight_bytes: float = 2, flops_per_second: Any = None) -> tuple[Any, Any]:
    """Tokens per batch and wafer from which streaming does not stall: of a forward pass, and of a step.

    Forward, b P bytes in against 2 P T flops: b F / (2 BW). A step has two passes in against 6 P T flops: b F / (3 BW). Gradients go the
    other way at the same time. At 150 GB/s and the measured 6.1 PF: 41 and 27 thousand tokens.
    """
    flops = sustained_flops_per_second(system) if flops_per_second is None else flops_per_second
    one_way = weight_bytes * flops / system.io_bytes_per_second
    return one_way / 2.0, one_way / 3.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether a model fits, and what it takes.

    Attributes:
      tokens: of a batch on one wafer (training), or sequences at once (inference).
      on_wafer: bytes by component, all wafers together. Of a resident fit, or of the streamed one that was tried last.
      outside: bytes by component in memory outside.
      short: components that are too much, with the bytes that are missing; empty if it fits.
      min_tokens: per batch and wafer, so that streaming does not stall: forward (inference) or step (training); None if resident.
      most_tokens: whose activations (training), or keys and values (inference), fit beside the rest, all wafers together.
    """

    model: str
    system: str
    what: str
    wafers: int
    tokens: int
    verdict: Literal["resident", "streamed", "does not fit"]
    on_wafer: Mapping[str, float]
    on_wafer_capacity: float
    outside: Mapping[str, float]
    outside_capacity: float
    short: Mapping[str, float]
    min_tokens: float | None
    most_tokens: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _gb(size_bytes: float) -> str:
    size = size_bytes / 1e9
    return f"{size:,.0f} GB" if size >= 100 else f"{size:.3g} GB"


def _missing(parts: Mapping[str, float], capacity: float, where: str) -> dict[str, float]:
    """What is over, charged to the largest component."""
    over = sum(parts.values()) - capacity
    return {f"{max(parts, key=lambda k: parts[k])} ({where})": over} if over > 0 else {}


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r}: must be positive")


@dataclasses.dataclass(frozen=True)
class _Ways:
    """Bytes by component of both ways to run, and what one more token takes."""

    resident: Mapping[str, float]
    streamed: Mapping[str, float]
    outside: Mapping[str, float]
    grows: str  # the component that tokens make larger
    token_bytes: float

    def room(self, parts: Mapping[str, float], capacity: float) -> float:
        """Tokens that fit beside the rest."""
        return max(0.0, capacity - sum(v for k, v in parts.items() if k != self.grows)) / self.token_bytes


def largest_layer_parameters(llm: LLM) -> int:
    """Weights of a block, or of the table of tokens where that is larger."""
    return max(llm.block_parameters, llm.vocab_size * llm.width)


def _two_layers(llm: LLM, wafers: int, weight_bytes: float) -> dict[str, float]:
    """Every wafer holds the weights of the layer at hand, and the next one's as they come in."""
    return {"weights of two layers": 2.0 * largest_layer_parameters(llm) * weight_bytes * wafers}


def _training(llm: LLM, wafers: int, tokens: float, each: Mapping[str, float], recompute: bool) -> _Ways:
    acts = {"activations": activation_bytes(llm, tokens, recompute=recompute) * wafers}
    state = training_bytes(llm.parameters, **each).to_dict()
    kept = {k: state[k] for k in ("weights", "gradients", "optimizer", "master")}
    layers = _two_layers(llm, wafers, each["weight_bytes"])
    leaving = {"gradient of a layer": layers["weights of two layers"] / 2.0 * each["gradient_bytes"] / each["weight_bytes"]}
    return _Ways({**kept, **acts}, {**layers, **leaving, **acts}, kept, "activations", activation_bytes(llm, 1.0, recompute=recompute))


def _inference(llm: LLM, wafers: int, context: int, batch: int, weight_bytes: float) -> _Ways:
    cache = {"keys and values": kv_bytes(llm, context, batch), "activations": float(layer_activation_elements(llm)) * batch * 2}
    weights = {"weights": llm.parameters * weight_bytes}
    streamed = {**_two_layers(llm, wafers, weight_bytes), **cache}
    return _Ways({**weights, **cache}, streamed, weights, "keys and values", float(llm.kv_bytes_per_token()))


def fits(
    llm: LLM,
    system: System,
    what: Literal["train", "infer"] = "train",
    *,
    wafers: int = 1,
    tokens: int | None = None,
    context: int | None = None,
    batch: int = 1,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    optimizer_bytes: float = 8,
    master_bytes: float = 4,
    recompute: bool = True,
    outside_bytes: float = OUTSIDE_BYTES,
    flops_per_second: float | None = None,
) -> Fit:
    """Whether `llm` trains or infers on `wafers` of `system`: resident, streamed, or not at all.

    Args:
      tokens: of one batch on one wafer, for training. None: one sequence (at most 2048 tokens of it) if that is resident; else what
        streaming needs, or as many as fit.
      context: tokens of a sequence whose keys and values are kept, for inference. None: the model's own, at most 8192.
      batch: sequences at once, for inference.
      flops_per_second: a wafer's, for the tokens that streaming needs; the measured share of dense peak if None.

    Raises:
      ValueError: an argument that is not positive, or an unknown `what`.
    """
    _positive(wafers=wafers, batch=batch, weight_bytes=weight_bytes, gradient_bytes=gradient_bytes, outside_bytes=outside_bytes)
    if what not in ("train", "infer"):
        raise ValueError(f'what={what!r}: is "train" or "infer"')
    context = min(llm.context, 8192) if context is None else context
    at_hand = min(llm.context, 2048) if tokens is None else tokens
    _positive(tokens=at_hand, context=context)
    capacity = float(system.sram_bytes) * wafers
    forward, step = (float(t) for t in min_tokens(system, weight_bytes, flops_per_second))
    need = step if what == "train" else forward
    each = dict(weight_bytes=weight_bytes, gradient_bytes=gradient_bytes, optimizer_bytes=optimizer_bytes, master_bytes=master_bytes)

    def ways(tokens: int) -> _Ways:
        return _training(llm, wafers, tokens, each, recompute) if what == "train" else _inference(llm, wafers, context, batch, weight_bytes)

    def result(verdict: Any, parts: Mapping[str, float], outside: Mapping[str, float], short: Mapping[str, float], *notes: str) -> Fit:
        return Fit(
            model=llm.name,
            system=system.name,
            what=what,
            wafers=wafers,
            tokens=at_hand if what == "train" else batch,
            verdict=verdict,
            on_wafer=parts,
            on_wafer_capacity=capacity,
            outside=outside,
            outside_capacity=outside_bytes,
            short=short,
            min_tokens=None if verdict == "resident" else need,
            most_tokens=ways(at_hand).room(parts, capacity),
            notes=(*notes, _code_note(system)),
        )

    tried = ways(at_hand)
    if not _missing(tried.resident, capacity, "on the wafer"):
        return result("resident", tried.resident, {}, {})
    resident_note = f"resident would need {_gb(sum(tried.resident.values()))} on wafers that hold {_gb(capacity)}"
    if what == "train" and tokens is None:
        most = tried.room(tried.streamed, capacity) / wafers
        at_hand = max(1, int(min(math.ceil(need), most)))
        tried = ways(at_hand)
    short = {**_missing(tried.streamed, capacity, "on the wafer"), **_missing(tried.outside, outside_bytes, "outside")}
    if short:
        over = [f"too large: {part}, by {_gb(size)}" for part, size in short.items()]
        if sum(tried.outside.values()) > outside_bytes:
            over.append(f"memory outside: {capacity_of(MemoryX(outside_bytes, name='memory outside'), tried.outside)}")
        at_once = math.floor(tried.room(tried.streamed, capacity) / wafers) if what == "train" else 0
        if at_once >= 1:
            parts = math.ceil(at_hand / at_once)
            over.append(f"in micro-batches: {parts:,} of at most {at_once:,} tokens on a wafer, if its sequences are no longer")
        return result("does not fit", tried.streamed, tried.outside, short, resident_note, *over)
    notes = [resident_note]
    if (now := at_hand if what == "train" else batch) < need:
        notes.append(f"streaming stalls: {now:,.0f} tokens a batch and wafer, {need:,.0f} needed")
    if what == "infer":
        notes.append(streaming_decode_warning(llm, system, weight_bytes))
    return result("streamed", tried.streamed, tried.outside, {}, *notes)


def _code_note(system: System) -> str:
    return f"of {system.sram_per_pe_bytes:,.0f} bytes of SRAM in a PE, {system.code_per_pe_bytes:,.0f} are taken to be code"


def streamed_decode_seconds(llm: LLM, system: System, weight_bytes: float = 2) -> Any:
    """Least time of a decode step whose weights come over the wafer's I/O: all of them, once for all sequences of a batch."""
    return llm.parameters * weight_bytes / system.io_bytes_per_second


def streaming_decode_warning(llm: LLM, system: System, weight_bytes: float = 2) -> str:
    seconds = streamed_decode_seconds(llm, system, weight_bytes)
    return (
        f"decoding with streamed weights takes at least {1e3 * seconds:,.0f} ms a token (modelled): {_gb(llm.parameters * weight_bytes)} "
        f"over {_gb(system.io_bytes_per_second)}/s. Spread the layers over more wafers"
    )
