"""Programs made of sorts, running sums and counts: a nucleus filter for sampling, top-k accuracy, histogram equalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def nucleus_filter(logits, mass, key):
    """Logits with all but the smallest set of tokens of probability `mass` at -inf, and a token drawn from them."""
    order = jnp.argsort(-logits, axis=-1)
    ranked = jax.nn.softmax(jnp.take_along_axis(logits, order, -1))
    kept = jnp.cumsum(ranked, -1) - ranked < mass
    keep = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1)
    filtered = jnp.where(keep, logits, -jnp.inf)
    return filtered, keep.sum(-1), jax.random.categorical(key, filtered)


def ranked(scores, labels):
    """Accuracy among the first three, the scores' quantiles, ranks, and the median absolute deviation."""
    values, places = jax.lax.top_k(scores, 3)
    spread = jnp.median(jnp.abs(scores - jnp.median(scores, 1, keepdims=True)), 1)
    names, counts = jnp.unique(labels, return_counts=True, size=6, fill_value=-1)
    ranks = jnp.argsort(jnp.argsort(scores.reshape(-1), stable=True)).reshape(scores.shape)
    return (
        values,
        (places == labels[:, None]).any(1).mean(),
        jnp.quantile(scores, jnp.array([0.1, 0.5]), axis=0),
        spread,
        names,
        counts,
        ranks,
    )


def equalise(image):
    """Histogram equalisation of an image of 8-bit greys."""
    histogram = jnp.bincount(image.reshape(-1), length=256)
    running = jnp.cumsum(histogram)
    low = running[jnp.argmax(histogram > 0)]
    table = jnp.round((running - low) * 255 / jnp.maximum(image.size - low, 1)).astype(jnp.uint8)
    return table[image], histogram, jnp.searchsorted(running, jnp.array([100, 300]))


def nucleus():
    logits = 3 * np.random.default_rng(12).standard_normal((3, 211)).astype(np.float32)
    return nucleus_filter, (logits, np.float32(0.8), jax.random.key(5))


def ranking():
    r = np.random.default_rng(13)
    return ranked, (r.standard_normal((16, 24)).astype(np.float32), r.integers(0, 6, 16, np.int32))


def equalisation():
    return equalise, (np.random.default_rng(14).normal(100, 20, (24, 32)).clip(0, 255).astype(np.uint8),)
