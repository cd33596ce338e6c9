"""A decoder-only language model: the repository's GPT with dropout, remat and a scan over its layers; clipped AdamW."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models.gpt2 import GPT2Config
from models.transformer import Decoder

DROPOUT = {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}


def train(config: GPT2Config, batch: int):
    graph, params = nnx.split(jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))())
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.warmup_cosine_decay_schedule(1e-3, 3e-3, 3, 50), weight_decay=0.1))

    def step(state, tokens, key):
        params, opt, count = state

        def loss(params):
            logits = nnx.merge(graph, params)(tokens[:, :-1], jax.random.fold_in(key, count))
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt, count + 1), {"loss": value, "norm": optax.tree.norm(grads)}

    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.context + 1), np.int32)
    return step, ((params, tx.init(params), jnp.int32(0)), tokens, jax.random.key(1))


def odd():
    return train(
        GPT2Config(vocab_size=211, context=13, layers=2, heads=3, width=36, **DROPOUT, remat="full"),
        batch=3,
    )


def even():
    return train(
        GPT2Config(vocab_size=64, context=16, layers=2, heads=4, width=32, **DROPOUT, remat="full"),
        batch=4,
    )
