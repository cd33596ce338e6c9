"""A language model that is small enough to be followed by hand: the next token follows from all tokens so far, by sums of a table."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from wsejax.inference import Model

VOCAB, CONTEXT = 12, 40


def params(seed: int = 0) -> dict[str, np.ndarray]:
    return {"table": np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32)}


def _scores(params, values, position):
    """Later tokens count more, by their position; empty slots (-1) for nothing."""
    weight = jnp.where(position >= 0, (position + 1).astype(jnp.float32), 0.0)
    return (values * weight[:, :, None]).sum(1) @ params["table"]


def _one_hot(tokens):
    return (tokens[..., None] == jnp.arange(VOCAB).reshape((1,) * tokens.ndim + (VOCAB,))).astype(jnp.float32)


def prefill(params, tokens, lengths, slots):
    position = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None, :], (tokens.shape[0], slots))
    position = jnp.where(position < lengths[:, None], position, -1)
    values = jnp.pad(_one_hot(tokens), ((0, 0), (0, slots - tokens.shape[1]), (0, 0)))
    cache = {"k": values[None, :, :, None], "v": values[None, :, :, None], "position": position, "length": lengths}
    return _scores(params, values, position), cache


def put(leaf, new, length):
    here = jnp.arange(leaf.shape[1])[None, :] == length[:, None]
    return jnp.where(here.reshape(*here.shape, *(1,) * (leaf.ndim - 2)), new[:, None], leaf)


def decode_step(params, tokens, cache, store=put):
    length = cache["length"]
    position = store(cache["position"], length, length)
    keys = store(cache["k"][0], _one_hot(tokens)[:, None], length)
    new = {"k": keys[None], "v": keys[None], "position": position, "length": length + 1}
    return _scores(params, keys[:, :, 0], position), new


MODEL = Model(prefill, decode_step, VOCAB, CONTEXT, eos_tokens=(), pad_token=0)


def continued(params, prompt: list[int], count: int) -> list[int]:
    """What the model says greedily, in numpy."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int((np.arange(1, len(tokens) + 1) @ params["table"][tokens]).argmax()))
    return tokens[len(prompt) :]
