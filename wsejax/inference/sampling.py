"""The next token from logits, as `generate` of `transformers` picks it: repetition penalty, temperature, top k, top p, in that order."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are picked. Hashable, and static in a program: what is off costs nothing there.

    Attributes:
      temperature: logits are divided by it. 0: always the best token, and then nothing is drawn.
      top_k: draw from so many of the best tokens. None: from all.
      top_p: draw from the fewest of the best tokens that have together at least this probability, and from one at least. 1: from all.
      repetition_penalty: logits of tokens that were seen are divided by it where positive, else multiplied. 1: off.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: give 0 for the best token each time, or a positive number such as 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: give 1 or more, or None to draw from all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability above 0, such as 0.9; 1 draws from all tokens")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: give a positive number; 1 is none")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken each time."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens were seen."""
        return self.repetition_penalty != 1


Seen = Bool[Array, "batch vocab"] | None
"""Which tokens each sequence has had, prompt included; None where nobody asks."""


def mark(seen: Seen, tokens: Int[Array, " batch"]) -> Seen:
    """`seen` with one more token of each sequence."""
    return None if seen is None else seen | (jnp.arange(seen.shape[1])[None, :] == tokens[:, None])


def sequence_keys(key: Key[Array, ""], batch: int) -> Key[Array, " batch"]:
    """A key for each sequence, which depends on its number alone, not on how many others there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def sample(logits: Float[Array, "batch vocab"], seen: Seen, keys: Key[Array, " batch"] | None, how: Sampling) -> Int32[Array, " batch"]:
    """One token of each sequence.

    Args:
      logits: of the next token.
      seen: needed for a repetition penalty.
      keys: one for each sequence, whose draw depends on nothing of the others; needed unless `how` is greedy.
    """
    x = warped(logits, seen, how)
    if how.greedy:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    assert keys is not None
    return jax.vmap(jax.random.categorical)(keys, x).astype(jnp.int32)


def warped(logits: Float[Array, "batch vocab"], seen: Seen, how: Sampling) -> Float32[Array, "batch vocab"]:
    """The logits that a token is drawn from: the softmax of these are its probabilities, and -inf is never drawn."""
    x = logits.astype(jnp.float32)
    if how.penalises:
        assert seen is not None
        x = jnp.where(seen, jnp.where(x > 0, x / how.repetition_penalty, x * how.repetition_penalty), x)
    if how.greedy:
        return x
    x = (x - x.max(axis=-1, keepdims=True)) / how.temperature  # the best at 0, so that no temperature is too low
    return jnp.where(kept(x, how), x, -jnp.inf)


def kept(logits: Float32[Array, "batch vocab"], how: Sampling) -> Bool[Array, "batch vocab"]:
    """The tokens that top k and top p leave, after temperature. Of equal ones those of lower numbers come first (`transformers` keeps all
    that equal the last of top k)."""
    k = logits.shape[-1] if how.top_k is None else min(how.top_k, logits.shape[-1])
    if k == logits.shape[-1] and how.top_p == 1:
        return jnp.ones(logits.shape, bool)
    best, _ = jax.lax.top_k(logits, k)
    keep = jnp.ones(best.shape, bool)
    if how.top_p < 1:
        share = jax.nn.softmax(best, axis=-1)
        keep = (jnp.cumsum(share, axis=-1) - share < how.top_p) | (jnp.arange(k) == 0)[None, :]
    last = jnp.where(keep, best, jnp.inf).min(axis=-1, keepdims=True)
    above, equal = logits > last, logits == last
    room = keep.sum(axis=-1, keepdims=True) - above.sum(axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))
