"""An encoder-decoder with cross attention and dropout, whose random state lies in the model; Adam with teacher forcing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

VOCAB, BATCH, SOURCE, TARGET, WIDTH, HEADS = 48, 4, 12, 9, 32, 4


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cross: bool):
        norm = lambda: nnx.LayerNorm(WIDTH, use_bias=False, rngs=rngs)
        attention = lambda: nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, use_bias=False, rngs=rngs)
        self.norm, self.attention = norm(), attention()
        self.cross_norm, self.cross = (norm(), attention()) if cross else (None, None)
        self.mlp = nnx.Sequential(norm(), nnx.Linear(WIDTH, 64, rngs=rngs), nnx.relu, nnx.Linear(64, WIDTH, rngs=rngs))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask, memory=None, memory_mask=None):
        x = x + self.dropout(self.attention(self.norm(x), mask=mask))
        if self.cross is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory, memory, mask=memory_mask))
        return x + self.dropout(self.mlp(x))


def sinusoids(length: int):
    angle = jnp.arange(length)[:, None] / 100.0 ** (jnp.arange(WIDTH // 2) / (WIDTH // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class Translator(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.encoder, self.decoder = Layer(rngs, cross=False), Layer(rngs, cross=True)

    def __call__(self, source, target):
        present = source > 0
        memory = self.encoder(self.embed(source) + sinusoids(source.shape[1]), nnx.make_attention_mask(present, present))
        x = self.embed(target) + sinusoids(target.shape[1])
        seen = nnx.make_attention_mask(jnp.ones_like(target), present)
        return self.embed.attend(self.decoder(x, nnx.make_causal_mask(target), memory, seen))


def train():
    graph, params, rest = nnx.split(jax.jit(lambda: Translator(nnx.Rngs(0)))(), nnx.Param, ...)
    tx = optax.adam(1e-3)

    def step(state, source, target):
        params, rest, opt = state

        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(source, jnp.pad(target[:, :-1], ((0, 0), (1, 0))))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
            return jnp.mean(losses, where=target > 0), nnx.state(model, nnx.Not(nnx.Param))

        (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(params, updates), new_rest, opt), value

    r = np.random.default_rng(2)
    source, target = (r.integers(1, VOCAB, (BATCH, n), np.int32) * (np.arange(n) < r.integers(4, n, (BATCH, 1))) for n in (SOURCE, TARGET))
    return step, ((params, rest, tx.init(params)), source.astype(np.int32), target.astype(np.int32))
