"""A decoder of any published dimensions (`models.presets`), and a train step of it as shapes, to be priced.

Llama's block if `gated`, GPT-3's without biases otherwise. Queries go through attention in blocks and the head sees a sequence in blocks,
each recomputed in the backward pass, so that no more than a block's scores and logits exist at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .positions import Rotary
from .transformer import Decoder, DecoderConfig


def decoder_config(dims: Mapping[str, Any], **changes: Any) -> DecoderConfig:
    """From a preset's dimensions; `name` and `causal` are ignored.

    Raises:
      ValueError: dimensions that do not fit together.
    """
    dims = {name: value for name, value in dims.items() if name not in ("name", "causal")} | changes
    gated = dims.get("gated", True)
    kind: dict[str, Any] = {"norm": "layer", "positions": "learned", "activation": "gelu_tanh"}
    if gated:
        kind = {"norm": "rms", "positions": "rotary", "activation": "silu", "rotary": Rotary(width=dims["head_width"])}
    plain = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)
    return DecoderConfig(**{**kind, **plain, "tied": False, "query_block": 512, "remat": "full", **dims, "gated": gated})


def abstract_train_step(config: DecoderConfig, tx: Any, loss_block: int = 128) -> tuple[Any, dict[str, Any]]:
    """(step, state): a pure `step(state, tokens) -> (state, loss)` and the shapes of its state, with nothing allocated.

    tx: an optax transformation. tokens: int32 [batch, seq + 1]; the loss is the mean cross-entropy of the next token, in nats.
    loss_block: tokens of a sequence whose logits exist together.
    """
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))

    def loss(params: Any, tokens: Int[Array, "batch seq_and_one"]) -> Float[Array, ""]:
        model = nnx.merge(graph, params)
        (x, _), targets = model.features(tokens[:, :-1]), tokens[:, 1:]

        def of(x, targets):
            picked = jnp.take_along_axis(jax.nn.log_softmax(model.logits(x)), targets[..., None], axis=-1)
            return -picked.sum()

        count, block = targets.shape[1] // loss_block, loss_block
        if count < 2:
            return of(x, targets) / targets.size
        cut = lambda v: jnp.moveaxis(v[:, : count * block].reshape(v.shape[0], count, block, *v.shape[2:]), 1, 0)
        again = jax.checkpoint(lambda sum_, some: (sum_ + of(*some), None), prevent_cse=False)
        total, _ = jax.lax.scan(again, jnp.zeros(()), (cut(x), cut(targets)))
        if targets.shape[1] % block:
            total = total + of(x[:, count * block :], targets[:, count * block :])
        return total / targets.size

    def step(state: dict[str, Any], tokens: Int[Array, "batch seq_and_one"]) -> tuple[dict[str, Any], Float[Array, ""]]:
        value, grads = jax.value_and_grad(loss)(state["params"], tokens)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state["params"], updates)
        return {"params": params, "opt": opt}, value

    return step, {"params": params, "opt": jax.eval_shape(tx.init, params)}
