"""A bidirectional encoder over padded sentences, trained to fill in masked tokens: loss and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

VOCAB, BATCH, LENGTH, WIDTH, HEADS = 211, 3, 20, 40, 5


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(3 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.tokens, self.places = nnx.Embed(VOCAB, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, tokens, present):
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        mask = nnx.make_attention_mask(present, present)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def fill_in():
    graph, params = nnx.split(jax.jit(lambda: Encoder(nnx.Rngs(0)))())

    def loss(params, tokens, lengths, hidden):
        present = jnp.arange(LENGTH) < lengths[:, None]
        logits = nnx.merge(graph, params)(jnp.where(hidden, 0, tokens), present)
        counted = (hidden & present).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return (losses * counted).sum() / jnp.maximum(counted.sum(), 1), (logits.argmax(-1) == tokens).sum(where=hidden & present)

    r = np.random.default_rng(1)
    tokens = r.integers(1, VOCAB, (BATCH, LENGTH), np.int32)
    return jax.value_and_grad(loss, has_aux=True), (params, tokens, np.array([20, 13, 7], np.int32), r.random((BATCH, LENGTH)) < 0.3)
