"""Continuous batching: how requests that arrive over time share a deployment, and what each of them waits.

A plain event loop (Yu et al., Orca, OSDI 2022): between two steps the engine takes in what has arrived, first come first served, as long
as batch and keys and values allow; a request's prompt is prefilled alone, and one decode step gives every running request one token. Keys
and values are reserved for a request's whole length, so nobody is ever put out again. Times are modelled by the functions of an `Engine`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsejax.cost.pipeline import Deployment


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and the number of tokens it is answered with."""

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_seconds) and self.arrival_seconds >= 0):
            raise ValueError(f"arrival_seconds={self.arrival_seconds!r}: must be finite and not negative")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: a request has at least one")


@dataclasses.dataclass(frozen=True)
class Engine:
    """What serves requests.

    Attributes:
      prefill_seconds: (prompt tokens) -> until the first new token.
      prefill_busy_seconds: (prompt tokens) -> that nothing else runs: less where stages of a pipeline take turns.
      decode_seconds: (running requests, mean tokens that each has kept) -> one more token for each.
      kv_tokens: prompt and output tokens of all running requests, at most.
      max_batch: running requests, at most.
    """

    prefill_seconds: Callable[[int], float]
    prefill_busy_seconds: Callable[[int], float]
    decode_seconds: Callable[[int, float], float]
    kv_tokens: float
    max_batch: int


def engine(deployment: Deployment, max_batch: int | None = None, step: int = 256) -> Engine:
    """Of a deployment. Contexts and prompts are priced at multiples of `step` tokens, with straight lines between them."""
    if step < 1:
        raise ValueError(f"step={step!r}: must be positive")
    batch = max_batch if max_batch is not None else max(1, int(deployment.kv_tokens // step))
    prefill_at = functools.lru_cache(maxsize=None)(lambda i: deployment.prefill_seconds(max(1, i * step)))
    busy_at = functools.lru_cache(maxsize=None)(lambda i: deployment.prefill_busy_seconds(max(1, i * step)))
    decode_at = functools.lru_cache(maxsize=None)(lambda i, b: deployment.decode_seconds(max(1, i * step), b))

    def between(at: Callable[..., float], tokens: float, *rest: int) -> float:
        i, part = divmod(tokens / step, 1.0)
        low = at(int(i), *rest)
        return low if part == 0 else low + part * (at(int(i) + 1, *rest) - low)

    return Engine(
        prefill_seconds=lambda tokens: between(prefill_at, tokens),
        prefill_busy_seconds=lambda tokens: between(busy_at, tokens),
        decode_seconds=lambda running, kept: between(decode_at, kept, running),
        kv_tokens=deployment.kv_tokens,
        max_batch=batch,
    )


def read_trace(rows: Iterable[Sequence[float]]) -> list[Request]:
    """Requests from rows of (arrival seconds, prompt tokens, output tokens).

    Raises:
      ValueError: a row that is no such triple; the message says which.
    """
    requests = []
    for i, row in enumerate(rows):
        try:
            arrival, prompt, output = row
            requests.append(Request(float(arrival), int(prompt), int(output)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows[{i}]={row!r}: not (arrival seconds, prompt tokens, output tokens): {error}") from error
    return requests


def poisson_requests(
    count: int, per_second: float, prompt_tokens: int, output_tokens: int, seed: int = 0, spread: float = 0.0
) -> list[Request]:
    """`count` requests that arrive independently, `per_second` on average.

    Args:
      spread: of the lengths, as the standard deviation of their logarithm; 0 for all alike. The means stay as given.

    Raises:
      ValueError: an argument that is not positive, or a negative spread.
    """
    for name, value in dict(count=count, per_second=per_second, prompt_tokens=prompt_tokens, output_tokens=output_tokens).items():
        if not value > 0:
            raise ValueError(f"{name}={value!r}: must be positive")
    if spread < 0:
        raise ValueError(f"spread={spread!r}: must not be negative")
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1.0 / per_second, count))
    factors = np.exp(rng.normal(-(spread**2) / 2, spread, (2, count)))
    prompts = np.maximum(1, np.rint(prompt_tokens * factors[0])).astype(int)
    outputs = np.maximum(1, np.rint(output_tokens * factors[1])).astype(int)
    return [Request(float(a), int(p), int(o)) for a, p, o in zip(arrivals, prompts, outputs, strict=True)]


@dataclasses.dataclass(frozen=True)
class Served:
    """When each request got its first and its last token, in the order given; seconds, modelled."""

    requests: tuple[Request, ...]
    first_token_seconds: Float[np.ndarray, "n"]
    last_token_seconds: Float[np.ndarray, "n"]
    gaps_seconds: Float[np.ndarray, "gaps"]  # between two tokens of one request, all of them
    busy_seconds: float

    @property
    def waited_seconds(self) -> Float[np.ndarray, "n"]:
        """Time to first token."""
        return self.first_token_seconds - np.array([r.arrival_seconds for r in self.requests])

    @property
    def output_tokens(self) -> int:
        return sum(r.output_tokens for r in self.requests)

    def summary(self) -> dict[str, Any]:
        """Modelled: percentiles of the time to first token and between tokens, tokens a second of a user and of the system."""
        start = min(r.arrival_seconds for r in self.requests)
        span = float(self.last_token_seconds.max() - start)
        outputs = np.array([r.output_tokens for r in self.requests])
        decoding = self.last_token_seconds - self.first_token_seconds
        several = outputs > 1
        per_user = (outputs[several] - 1) / decoding[several] if several.any() else np.array([])
        return {
            "requests": len(self.requests),
            "output_tokens": self.output_tokens,
            "time_to_first_token_seconds": percentiles(self.waited_seconds),
            "time_between_tokens_seconds": percentiles(self.gaps_seconds),
            "tokens_per_second_per_user": float(np.median(per_user)) if per_user.size else None,
            "tokens_per_second": self.output_tokens / span if span > 0 else None,
            "busy_share": self.busy_seconds / span if span > 0 else None,
            "modelled": True,
        }


def percentiles(values: Float[np.ndarray, "n"]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


def serve(requests: Sequence[Request], engine: Engine) -> Served:
    """Runs the queue until everybody is served.

    Raises:
      ValueError: no requests, or one that can never fit; the message says which and by how much.
    """
    if not requests:
        raise ValueError("requests=[]: nothing to serve; see poisson_requests")
    if engine.max_batch < 1:
        raise ValueError(f"max_batch={engine.max_batch!r}: must be at least 1")
    for i, r in enumerate(requests):
        if r.prompt_tokens + r.output_tokens > engine.kv_tokens:
            over = r.prompt_tokens + r.output_tokens - engine.kv_tokens
            raise ValueError(
                f"requests[{i}]: {r.prompt_tokens} + {r.output_tokens} tokens never fit the {engine.kv_tokens:,.0f} tokens of keys and "
                f"values: {over:,.0f} too many; take more wafers"
            )
    order = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_seconds, i))
    first, last = np.zeros(len(requests)), np.zeros(len(requests))
    left = np.array([r.output_tokens for r in requests])
    size = [r.prompt_tokens + r.output_tokens for r in requests]
    filling: list[int] = []  # prompts under way
    running: list[int] = []
    gaps: list[float] = []
    now = busy = reserved = 0.0
    at = 0  # the next of `order` to be taken in
    while at < len(order) or filling or running:
        if not running:  # idle until a prompt is through or a request comes
            now = max(now, min([first[i] for i in filling] + [requests[i].arrival_seconds for i in order[at : at + 1]]))
        while at < len(order) and len(running) + len(filling) < engine.max_batch:
            i = order[at]
            if requests[i].arrival_seconds > now or reserved + size[i] > engine.kv_tokens:
                break
            first[i] = last[i] = now + engine.prefill_seconds(requests[i].prompt_tokens)
            taken = engine.prefill_busy_seconds(requests[i].prompt_tokens)
            now, busy, at = now + taken, busy + taken, at + 1
            reserved += size[i]
            filling.append(i)
        for i in [i for i in filling if first[i] <= now]:
            filling.remove(i)
            left[i] -= 1
            running.append(i)
        if any(left[i] for i in running):
            active = [i for i in running if left[i]]
            kept = sum(size[i] - left[i] for i in active) / len(active)
            seconds = engine.decode_seconds(len(active), float(kept))
            now, busy = now + seconds, busy + seconds
            for i in active:
                gaps.append(now - last[i])
                last[i] = now
                left[i] -= 1
        reserved -= sum(size[i] for i in running if not left[i])
        running = [i for i in running if left[i]]
    return Served(tuple(requests), first, last, np.array(gaps), busy)
