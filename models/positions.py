"""How a model tells places apart: rotary positions with their scalings, ALiBi's slopes, T5's relative buckets.

All take positions as arrays, one for each token, so that ragged batches and caches in any order are no special case.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How frequencies change for contexts longer than `original_context`.

    linear: positions divided by `factor` (Chen et al. 2023). llama3: long waves divided by `factor`, short ones kept, blended between
    (Dubey et al. 2024, as released). yarn: the same idea by dimension, and attention sharpened (Peng et al. 2023). dynamic: frequencies
    change only beyond the context, where a model here does not go, so it changes nothing.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_context: int | None = None
    low_frequency_factor: float = 1.0  # llama3
    high_frequency_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: of cos and sin; None: from mscale, or 0.1 ln(factor) + 1
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: ends of the blend are whole dimensions

    def __post_init__(self) -> None:
        if self.kind in ("llama3", "yarn") and self.original_context is None:
            raise ValueError(f"original_context=None: {self.kind} scaling needs the context of the first training")
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: a context can only be stretched, so give at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions (Su et al. 2021) of the first `width` features of a head.

    interleaved: pairs are (0, 1), (2, 3), ...; otherwise (i, i + width / 2), as in GPT-NeoX and Llama.
    """

    width: int
    base: float = 10_000.0
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise ValueError(f"base={self.base}: frequencies are its powers, so give a number above 0")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width={self.width}: rotary positions turn pairs of features, so it must be even")

    def frequencies(self) -> tuple[Float32[np.ndarray, " pairs"], float]:
        """Radians a position for each pair, and what cos and sin are multiplied by."""
        turns = np.float32(self.base) ** (np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width))
        plain = (1.0 / turns).astype(np.float32)
        s = self.scaling
        if s is None or s.kind == "dynamic":
            return plain, 1.0
        if s.kind == "linear":
            return (plain / np.float32(s.factor)).astype(np.float32), 1.0
        assert s.original_context is not None
        if s.kind == "llama3":
            waves = s.original_context * plain / (2 * np.pi)  # within the original context
            blend = (waves - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor)
            blend = np.clip(blend, 0.0, 1.0)
            return ((1 - blend) * plain / s.factor + blend * plain).astype(np.float32), 1.0
        low, high = (self._dimension_of(turns, s.original_context) for turns in (s.beta_fast, s.beta_slow))
        if s.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        ramp = np.clip((np.arange(self.width // 2) - low) / (high - low if high != low else 0.001), 0, 1)
        scaled = plain / s.factor * ramp + plain * (1 - ramp)
        if s.attention_factor is not None:
            return scaled.astype(np.float32), s.attention_factor
        sharpness = lambda mscale: 0.1 * mscale * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0
        both = s.mscale and s.mscale_all_dim
        return scaled.astype(np.float32), sharpness(s.mscale) / sharpness(s.mscale_all_dim) if both else sharpness(1.0)

    def _dimension_of(self, turns: float, context: int) -> float:
        """The pair that turns so often in the context (Peng et al. 2023, section 3.2)."""
        return self.width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(self.base))


def rotate(
    x: Float[Array, "batch seq heads dim"], positions: Int[Array, "rows seq"], rotary: Rotary
) -> Float[Array, "batch seq heads dim"]:
    """Each pair of features turned by its frequency times the token's position; in float32, then cast back. `rows` is batch or 1."""
    frequencies, factor = rotary.frequencies()
    angles = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequencies)[None, None, None, :]
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    turned, kept = x[..., : rotary.width].astype(jnp.float32), x[..., rotary.width :]
    if rotary.interleaved:
        pairs = turned.reshape(*turned.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., : rotary.width // 2], turned[..., rotary.width // 2 :]
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    out = out.astype(x.dtype)
    return out if kept.shape[-1] == 0 else jnp.concatenate([out, kept], axis=-1)


def alibi_slopes(heads: int, bias_max: float = 8.0) -> Float32[np.ndarray, " heads"]:
    """Of ALiBi's linear bias (Press et al. 2022): 2^(-bias_max i / heads), i from 1.

    Where heads is no power of two, as released: those of the power below, and every other one of its double.
    """
    slopes = lambda n: 2.0 ** (-bias_max * np.arange(1, n + 1) / n)
    below = 2 ** math.floor(math.log2(heads))
    return np.concatenate([slopes(below), slopes(2 * below)[::2][: heads - below]]).astype(np.float32)


def relative_bucket(distance: Int[Array, "*shape"], *, bidirectional: bool, buckets: int, max_distance: int) -> Int[Array, "*shape"]:
    """T5's bucket of a key's position minus a query's (Raffel et al. 2020, section 2.1): exact when near, by logarithm up to
    `max_distance`; of both signs where `bidirectional`, else what lies ahead is bucket 0."""
    offset = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    far = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = jnp.minimum(exact + far.astype(jnp.int32), buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
