"""A selective state space layer (Mamba): the recurrence by `lax.scan` and by `lax.associative_scan`, with gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH, LENGTH, WIDTH, INNER, STATES, RANK, TAPS = 2, 12, 16, 24, 4, 3, 4


def by_scan(decay, drive):
    def step(h, now):
        a, b = now
        h = a * h + b
        return h, h

    first = jnp.zeros_like(drive[:, 0])
    return jnp.moveaxis(lax.scan(step, first, (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(drive, 1, 0)))[1], 0, 1)


def by_associative_scan(decay, drive):
    return lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, drive), axis=1)[1]


def layer(recurrence, p, x):
    x, gate = jnp.split(x @ p["in"], 2, -1)
    causal = ((TAPS - 1, 0),)
    x = lax.conv_general_dilated(x, p["taps"], (1,), causal, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=INNER)
    x = jax.nn.silu(x)
    delta, b, c = jnp.split(x @ p["select"], (RANK, RANK + STATES), -1)
    delta = jax.nn.softplus(delta @ p["delta"] + p["bias"])
    decay = jnp.exp(delta[..., None] * -jnp.exp(p["log_a"]))
    states = recurrence(decay, (delta * x)[..., None] * b[:, :, None])
    y = jnp.einsum("blis,bls->bli", states, c) + p["skip"] * x
    return (y * jax.nn.silu(gate)) @ p["out"]


def gradients(recurrence):
    def loss(params, x, y):
        return jnp.mean((x + layer(recurrence, params, x) - y) ** 2)

    r = np.random.default_rng(5)
    normal = lambda *shape: (r.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
    params = {
        "in": normal(WIDTH, 2 * INNER),
        "taps": normal(TAPS, 1, INNER),
        "select": normal(INNER, RANK + 2 * STATES),
        "delta": normal(RANK, INNER),
        "bias": normal(INNER) - 1,
        "log_a": np.log(np.tile(np.arange(1, STATES + 1, dtype=np.float32), (INNER, 1))),
        "skip": np.ones(INNER, np.float32),
        "out": normal(INNER, WIDTH),
    }
    return jax.value_and_grad(loss, argnums=(0, 1)), (params, normal(BATCH, LENGTH, WIDTH), normal(BATCH, LENGTH, WIDTH))


scan = functools.partial(gradients, by_scan)
associative = functools.partial(gradients, by_associative_scan)
