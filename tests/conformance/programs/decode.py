"""Greedy decoding with a key-value cache in a while loop that ends when every sentence has said the stop token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VOCAB, BATCH, HEADS, HEAD, LAYERS, PROMPT, LONGEST, STOP = 35, 3, 4, 8, 2, 4, 16, 1
WIDTH = HEADS * HEAD


def norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def token(params, cache, tokens, place):
    """Logits after `tokens` [batch] at `place`, and the cache with their keys and values in it."""
    x = params["embed"][tokens] + params["places"][place]

    def layer(x, scanned):
        p, keys, values = scanned
        q, k, v = jnp.einsum("bd,dchk->cbhk", norm(x), p["qkv"])
        keys = lax.dynamic_update_slice(keys, k[:, None], (0, place, 0, 0))
        values = lax.dynamic_update_index_in_dim(values, v, place, 1)
        scores = jnp.where(jnp.arange(LONGEST) <= place, jnp.einsum("bhk,bthk->bht", q, keys) * HEAD**-0.5, -jnp.inf)
        x = x + jnp.einsum("bht,bthk,hkd->bd", jax.nn.softmax(scores), values, p["out"])
        return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], (keys, values)

    x, cache = lax.scan(layer, x, (params["layers"], *cache))
    return norm(x) @ params["head"], cache


def generate(params, prompt):
    """[batch, longest] tokens, 0 after the stop token; the sentences' lengths; how many steps it took."""
    batch, start = prompt.shape
    cache = (jnp.zeros((LAYERS, batch, LONGEST, HEADS, HEAD)),) * 2
    cache, logits = lax.scan(lambda c, at: token(params, c, *at)[::-1], cache, (prompt.T, jnp.arange(start)))
    text = jnp.zeros((batch, LONGEST), jnp.int32).at[:, :start].set(prompt)

    def more(state):
        return (state["place"] < LONGEST) & ~state["done"].all()

    def step(state):
        new = jnp.where(state["done"], 0, state["logits"].argmax(-1).astype(jnp.int32))
        logits, cache = token(params, state["cache"], new, state["place"])
        return {
            "text": state["text"].at[:, state["place"]].set(new),
            "cache": cache,
            "logits": logits,
            "done": state["done"] | (new == STOP),
            "place": state["place"] + 1,
        }

    state = {"text": text, "cache": cache, "logits": logits[-1], "done": jnp.zeros(batch, bool), "place": jnp.int32(start)}
    state = lax.while_loop(more, step, state)
    return state["text"], (state["text"] > 0).sum(1), state["place"]


def greedy(seed: int = 358):  # the sentences stop at different lengths, all before the longest
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    layers = {
        "qkv": normal(LAYERS, WIDTH, 3, HEADS, HEAD) * WIDTH**-0.5,
        "out": normal(LAYERS, HEADS, HEAD, WIDTH) * WIDTH**-0.5,
        "up": normal(LAYERS, WIDTH, 2 * WIDTH) * WIDTH**-0.5,
        "down": normal(LAYERS, 2 * WIDTH, WIDTH) * WIDTH**-0.5,
    }
    params = {"embed": normal(VOCAB, WIDTH), "places": normal(LONGEST, WIDTH), "head": normal(WIDTH, VOCAB), "layers": layers}
    return generate, (params, r.integers(2, VOCAB, (BATCH, PROMPT), np.int32))
