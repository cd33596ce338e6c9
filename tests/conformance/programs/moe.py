"""A mixture of experts: top-2 routing with a capacity and a load-balance loss; tokens dispatched by one-hot products or by scatter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

EXPERTS, CAPACITY, WIDTH, HIDDEN = 4, 10, 16, 24


def route(params, x):
    """Gates and places of every token's two experts, [tokens, 2]; a place past the capacity means that the expert is full."""
    probs = jax.nn.softmax(x @ params["router"])
    gates, experts = jax.lax.top_k(probs, 2)
    gates = gates / gates.sum(-1, keepdims=True)
    first_come = jax.nn.one_hot(experts.T.reshape(-1), EXPERTS, dtype=jnp.int32)  # first choices before second ones
    places = ((jnp.cumsum(first_come, 0) - 1) * first_come).sum(-1).reshape(2, -1).T
    balance = EXPERTS * jnp.sum(probs.mean(0) * jax.nn.one_hot(experts[:, 0], EXPERTS).mean(0))
    return gates * (places < CAPACITY), experts, places, balance


def feed_forward(params, slots):
    return jnp.einsum("ech,ehd->ecd", jax.nn.silu(jnp.einsum("ecd,edh->ech", slots, params["up"])), params["down"])


def by_products(params, x):
    gates, experts, places, balance = route(params, x)
    slot = jax.nn.one_hot(experts, EXPERTS)[..., None] * jax.nn.one_hot(places, CAPACITY)[..., None, :]
    combine = jnp.einsum("tk,tkec->tec", gates, slot)
    slots = jnp.einsum("tec,td->ecd", (combine > 0).astype(x.dtype), x)
    return jnp.einsum("tec,ecd->td", combine, feed_forward(params, slots)), balance


def by_scatter(params, x):
    gates, experts, places, balance = route(params, x)
    rows = jnp.broadcast_to(x[:, None], (*experts.shape, x.shape[-1]))
    slots = jnp.zeros((EXPERTS, CAPACITY, x.shape[-1])).at[experts, places].add(rows, mode="drop")
    back = feed_forward(params, slots).at[experts, places].get(mode="fill", fill_value=0)
    return (gates[..., None] * back).sum(1), balance


def train(layer):
    tx = optax.adam(1e-2)

    def loss(params, x, y):
        out, balance = layer(params, x.reshape(-1, WIDTH))
        return jnp.mean((x + out.reshape(x.shape) - y) ** 2) + 0.01 * balance, balance

    def step(state, x, y):
        params, opt = state
        (value, balance), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), {"loss": value, "balance": balance}

    r = np.random.default_rng(3)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    params = {
        "router": normal(WIDTH, EXPERTS),
        "up": normal(EXPERTS, WIDTH, HIDDEN) * WIDTH**-0.5,
        "down": normal(EXPERTS, HIDDEN, WIDTH) * HIDDEN**-0.5,
    }
    return step, ((params, tx.init(params)), normal(3, 8, WIDTH), normal(3, 8, WIDTH))


products = functools.partial(train, by_products)
scatter = functools.partial(train, by_scatter)
