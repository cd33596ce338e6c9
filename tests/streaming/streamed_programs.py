"""Train steps as people write them, small: each gives (step, state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAYERS, WIDTH, BATCH = 4, 16, 8
Program = tuple[Callable[..., Any], Any, Any]


def _params(layers: int = LAYERS, width: int = WIDTH) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, *shape: 0.3 * jax.random.normal(key, shape)
    stack = {
        "w": normal(keys[0], layers, width, 2 * width),
        "v": normal(keys[1], layers, 2 * width, width),
        "b": jnp.zeros((layers, width)),
    }
    return {"layers": stack, "table": normal(keys[2], 32, width), "head": normal(keys[3], width, 32)}


def _block(x, p):
    return x + jnp.tanh(x @ p["w"]) @ p["v"] + p["b"][None, None]


def _loss(params, batch, remat: bool = True, dtype=jnp.float32):
    tokens, targets = batch
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
    x = cast(params["table"])[tokens]
    layer = lambda x, p: (_block(x, p), None)
    x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, cast(params["layers"]))
    logits = (x @ cast(params["head"])).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def _batch(batch: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 32, (batch, 6)).astype(np.int32), rng.integers(0, 32, (batch, 6)).astype(np.int32)


def _step(tx, loss=_loss):
    def step(state, batch):
        params, opt, count = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt, count + 1), {"loss": value, "norm": optax.tree.norm(grads)}

    return step


def _state(tx, params):
    return params, tx.init(params), jnp.zeros((), jnp.int32)


def adamw() -> Program:
    """Clipping by the global norm, a schedule, weight decay."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.linear_schedule(1e-2, 1e-3, 5), weight_decay=0.1))
    return _step(tx), _state(tx, _params()), _batch()


def saved() -> Program:
    """Activations saved, none recomputed."""
    tx = optax.adam(1e-2)
    return _step(tx, lambda p, b: _loss(p, b, remat=False)), _state(tx, _params()), _batch()


def sgd() -> Program:
    tx = optax.sgd(1e-1, momentum=0.9)
    return _step(tx), _state(tx, _params()), _batch()


def half() -> Program:
    """bfloat16 work, float32 masters."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    return _step(tx, lambda p, b: _loss(p, b, dtype=jnp.bfloat16)), _state(tx, _params()), _batch()


def lamb() -> Program:
    """A norm of each weight and of each update."""
    tx = optax.lamb(1e-2)
    return _step(tx), _state(tx, _params()), _batch()


def adafactor() -> Program:
    """Moments factored into rows and columns."""
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=8)
    return _step(tx), _state(tx, _params()), _batch()


def micro_batches() -> Program:
    """Gradients of four micro-batches added up in a loop round the loop over layers."""
    tx = optax.adamw(1e-2)

    def step(state, batch):
        params, opt, count = state
        pieces = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)

        def one(total, piece):
            value, grads = jax.value_and_grad(_loss)(params, piece)
            return jax.tree.map(jnp.add, total, (value / 4, jax.tree.map(lambda g: g / 4, grads))), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        (value, grads), _ = jax.lax.scan(one, zero, pieces)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt, count + 1), {"loss": value}

    return step, _state(tx, _params()), _batch()


def several_steps() -> Program:
    """Three steps in one call, the state carried by a loop."""
    tx = optax.adam(1e-2)
    inner = _step(tx)

    def step(state, batches):
        state, metrics = jax.lax.scan(inner, state, batches)
        return state, metrics

    return step, _state(tx, _params()), jax.tree.map(lambda x: np.stack([x, x[::-1], x]), _batch())


def unrolled() -> Program:
    """Layers written one after the other, each with arrays of its own."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    stacked = _params()
    params = {**stacked, "layers": [jax.tree.map(lambda x, i=i: x[i], stacked["layers"]) for i in range(LAYERS)]}

    def loss(params, batch):
        tokens, targets = batch
        x = params["table"][tokens]
        for p in params["layers"]:
            x = _block(x, p)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["head"], targets).mean()

    return _step(tx, loss), _state(tx, params), _batch()


def tied() -> Program:
    """One table for tokens and logits, one layer's weights used by all layers."""
    tx = optax.adamw(1e-2)
    params = _params()
    params = {"layers": params["layers"], "table": params["table"], "shared": params["head"] @ params["table"]}

    def loss(params, batch):
        tokens, targets = batch

        def layer(x, p):
            return _block(x, p) + jnp.tanh(x @ params["shared"]), None

        x, _ = jax.lax.scan(jax.checkpoint(layer), params["table"][tokens], params["layers"])
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["table"].T, targets).mean()

    return _step(tx, loss), _state(tx, params), _batch()


def odd_sizes() -> Program:
    """Sizes that no grid of tiles divides."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    return _step(tx), _state(tx, _params(layers=3, width=13)), _batch()


def gradient() -> Program:
    """No optimiser: the gradient takes the place of the parameters."""

    def step(params, batch):
        value, grads = jax.value_and_grad(_loss)(params, batch)
        return grads, {"loss": value}

    return step, _params(), _batch()


def forward() -> Program:
    """Parameters come in and nothing goes out."""
    return lambda params, batch: (_loss(params, batch), {"loss": _loss(params, batch) * 2}), _params(), _batch()


PROGRAMS = {
    f.__name__: f
    for f in (adamw, saved, sgd, half, lamb, adafactor, micro_batches, several_steps, unrolled, tied, odd_sizes, gradient, forward)
}
