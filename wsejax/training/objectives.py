"""What a model learns from windows of bytes: the next one, masked ones, or spans that were cut out. Makers of batches, and losses.

What is random about a batch is drawn from a generator that belongs to each window, so batches do not depend on who reads which rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, UInt8

from .data import VOCABULARY, Batch, as_batch

Kind = Literal["causal", "masked", "spans"]
MASKED_SHARE, MEAN_SPAN = 0.15, 3.0  # Devlin et al. 2019, section 3.1; Raffel et al. 2020, section 3.3.4


@dataclass(frozen=True)
class Objective:
    """Of a model that reads `context` bytes at a time.

    causal: every byte from those before it. masked: 15% of the bytes, of which 80% are replaced by a mask (token 256), 10% by any byte, and
    10% stay (Devlin et al. 2019). spans: 15% of the bytes in spans of 3 on average, each replaced by a token of its own (the vocabulary's
    last ones, downwards); the answer names each and says what it was (Raffel et al. 2020).
    """

    kind: Kind
    context: int

    def __post_init__(self) -> None:
        if self.kind != "causal" and self.context < 8:
            raise ValueError(f"context={self.context}: too short to cut {MASKED_SHARE:.0%} of it out; give at least 8")

    @property
    def vocabulary(self) -> int:
        """Bytes, and the tokens that stand for what is not shown."""
        return VOCABULARY + {"causal": 0, "masked": 1, "spans": self.spans}[self.kind]

    @property
    def noise(self) -> int:
        """Bytes of a window that are not shown."""
        return max(1, round(MASKED_SHARE * self.context))

    @property
    def spans(self) -> int:
        return max(1, round(self.noise / MEAN_SPAN))

    @property
    def draws(self) -> bool:
        """Whether batches have anything random beyond their order."""
        return self.kind != "causal"

    def batch(self, windows: UInt8[np.ndarray, "batch time"], seeds: Any) -> Batch:
        """Windows of context + 1 bytes as a batch; seeds: a number for each, of no use to a causal model.

        causal: int32 `tokens`, `targets`. masked: also `weights`, 1 where a loss is asked for, else 0. spans: int32 `tokens`, `answer`
        (what the decoder reads, which begins with token 0) and `targets`.
        """
        if self.kind == "causal":
            return as_batch(windows)
        make = self._masked if self.kind == "masked" else self._spans
        pairs = zip(windows, seeds, strict=True)
        rows = [make(row[: self.context].astype(np.int32), np.random.default_rng(int(seed))) for row, seed in pairs]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def check_rows(self) -> None:
        """Raises ValueError for spans, whose answers would need rows of their own."""
        if self.kind == "spans":
            raise ValueError("spans that were cut out cannot be packed: what is read and its answer differ in length; give windows of text")

    def of_rows(self, batch: Batch, seeds: Any) -> Batch:
        """A batch of rows of documents (`packing`) for this objective: of a causal one as it is; masked are 15% of each row's bytes."""
        self.check_rows()
        if self.kind == "causal":
            return batch
        pairs = zip(batch["tokens"], batch["segment_ids"], seeds, strict=True)
        rows = [self._masked(row, np.random.default_rng(int(seed)), np.flatnonzero(segments)) for row, segments, seed in pairs]
        return {**batch, **{name: np.stack([row[name] for row in rows]) for name in rows[0]}}

    def _masked(self, tokens: Int32[np.ndarray, " time"], random: np.random.Generator, real: Any = None) -> dict[str, Any]:
        """real: the places to choose from; None: all."""
        real = np.arange(len(tokens)) if real is None else real
        noise = max(1, round(MASKED_SHARE * len(real)))
        picked = real[random.permutation(len(real))[:noise]]
        weights = np.zeros(len(tokens), np.float32)
        weights[picked] = 1.0
        shown, lot = tokens.copy(), random.random(noise)
        other = np.where(lot < 0.9, random.integers(0, VOCABULARY, noise), tokens[picked])
        shown[picked] = np.where(lot < 0.8, VOCABULARY, other)
        return {"tokens": shown, "targets": tokens, "weights": weights}

    def _spans(self, tokens: Int32[np.ndarray, " context"], random: np.random.Generator) -> dict[str, Any]:
        cut, kept = (_parts(total, self.spans, random) for total in (self.noise, self.context - self.noise))
        shown, targets, at = [], [], 0
        for number, (before, length) in enumerate(zip(kept, cut, strict=True)):
            mark = [self.vocabulary - 1 - number]
            shown += [tokens[at : at + before], mark]
            targets += [mark, tokens[at + before : at + before + length]]
            at += before + length
        read, told = (np.concatenate(parts).astype(np.int32) for parts in (shown, targets))
        return {"tokens": read, "answer": np.concatenate([np.zeros(1, np.int32), told[:-1]]), "targets": told}

    def loss(self, apply: Callable[..., Array], batch: Any, key: Any = None) -> Float[Array, ""]:
        """Mean cross-entropy in nats per byte or token that is asked for. apply(*inputs of the batch, key, **places) -> logits."""
        return cross_entropy(apply(*self.inputs(batch), key, **places(batch)), batch["targets"], batch.get("weights"))

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the model reads."""
        return (batch["tokens"], batch["answer"]) if self.kind == "spans" else (batch["tokens"],)

    def filled(self, logits: Any, batch: Any) -> tuple[bytes, bytes]:
        """(what the first row of a batch showed, the same with the model's likeliest bytes in place of what was not shown).

        A gap is shown as "_". Of spans, every byte is that after the right ones before it.
        """
        tokens, likeliest = np.asarray(batch["tokens"][0]), np.asarray(logits[0, :, :VOCABULARY].argmax(-1))
        if self.kind == "masked":
            asked = np.asarray(batch["weights"][0]) > 0
            return bytes(np.where(asked, ord("_"), tokens).astype(np.uint8)), bytes(np.where(asked, likeliest, tokens).astype(np.uint8))
        targets = np.asarray(batch["targets"][0])
        guesses: dict[int, bytearray] = {}
        for target, guess in zip(targets, likeliest, strict=True):
            if target >= VOCABULARY:
                mark = int(target)
                guesses[mark] = bytearray()
            else:
                guesses[mark].append(int(guess))
        fill = lambda of: b"".join(of(int(token)) if token >= VOCABULARY else bytes([token]) for token in tokens)
        return fill(lambda mark: b"_" * len(guesses[mark])), fill(lambda mark: bytes(guesses[mark]))


def places(batch: Any) -> dict[str, Any]:
    """What a model is told, besides tokens, of rows that hold several documents; nothing for other batches."""
    return {name: batch[name] for name in ("segment_ids", "positions") if name in batch}


def cross_entropy(
    logits: Float[Array, "batch time vocab"], targets: Int32[Array, "batch time"], weights: Float32[Array, "batch time"] | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy in nats; weights: of each token in the mean, not all 0."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean() if weights is None else (losses * weights).sum() / jnp.sum(weights)


def _parts(total: int, count: int, random: np.random.Generator) -> list[int]:
    """`total` things in `count` heaps of at least one, all ways alike."""
    borders = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(borders, prepend=0, append=total).tolist()


def objective_of(kind: str, context: int) -> Objective:
    """Of a model of this kind: "decoder", "encoder" or "encoder-decoder"."""
    return Objective({"decoder": "causal", "encoder": "masked", "encoder-decoder": "spans"}[kind], context)  # type: ignore[arg-type]
