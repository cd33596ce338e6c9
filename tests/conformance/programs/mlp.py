"""A classifier of two hidden layers: with Adam, with Muon, and in half precision with float32 weights and a dynamic loss scale."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

SIZES = (20, 32, 24, 7)
BATCH = 12


def forward(params, x):
    for n, p in enumerate(params):
        x = x @ p["w"] + p["b"]
        if n < len(params) - 1:
            x = jax.nn.gelu(x)
    return x


def start(seed: int = 6):
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    params = [{"w": normal(a, b) * a**-0.5, "b": 0.1 * normal(b)} for a, b in itertools.pairwise(SIZES)]
    return params, normal(BATCH, SIZES[0]), r.integers(0, SIZES[-1], BATCH, np.int32)


def train(tx):
    def step(state, x, labels):
        params, opt = state
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(forward(p, x), labels).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    params, x, labels = start()
    return step, ((params, tx.init(params)), x, labels)


def adam():
    return train(optax.adam(1e-2))


def muon():
    return train(optax.contrib.muon(1e-2))


def mixed(dtype):
    """Weights in float32, the network in `dtype`; a step whose gradients overflow is left out and halves the scale."""
    tx = optax.sgd(0.1, momentum=0.9)

    def step(state, x, labels):
        params, opt, scale = state

        def loss(p):
            logits = forward(jax.tree.map(lambda w: w.astype(dtype), p), x.astype(dtype)).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() * scale

        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.tree.map(lambda g: g / scale, grads)
        finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all()
        updates, new_opt = tx.update(grads, opt, params)
        new = (optax.apply_updates(params, updates), new_opt)
        params, opt = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt))
        return (params, opt, jnp.where(finite, scale, scale / 2)), {"loss": value / scale, "finite": finite}

    params, x, labels = start()
    return step, ((params, tx.init(params), np.float32(2.0**10)), x, labels)


bfloat16 = functools.partial(mixed, jnp.bfloat16)
float16 = functools.partial(mixed, jnp.float16)
