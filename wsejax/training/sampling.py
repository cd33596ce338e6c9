"""Text out of a byte model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .data import VOCABULARY


def continue_text(
    apply: Callable[..., Float[Array, "batch time vocab"]],
    params: PyTree,
    prompt: bytes,
    *,
    count: int,
    context: int,
    seed: int,
    temperature: float = 0.8,
) -> bytes:
    """The prompt and `count` bytes that a causal model draws after it, by plain JAX on one device.

    apply(params, tokens int32[1, context]) gives the logits. params may lie anywhere: they are fetched and put on the
    first device. The whole window is computed anew for every byte, which suits samples, not serving. Raises ValueError
    for an empty prompt.
    """
    if not prompt:
        raise ValueError("prompt is empty: a causal model needs at least one byte to go on from")

    @jax.jit
    def next_byte(params: PyTree, window: Array, last: Array, key: Array) -> Array:
        logits = apply(params, window[None])[0, last, :VOCABULARY]
        return jax.random.categorical(key, logits / temperature)

    params = jax.device_put(jax.device_get(params), jax.devices()[0])
    text = bytearray(prompt)
    for key in jax.random.split(jax.random.key(seed), count):
        seen = text[-context:]
        window = np.zeros(context, np.int32)  # what lies behind `last` is not seen: the model is causal
        window[: len(seen)] = np.frombuffer(bytes(seen), np.uint8)
        text.append(int(next_byte(params, window, jnp.int32(len(seen) - 1), key)))
    return bytes(text)
