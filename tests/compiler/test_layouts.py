"""A transformer's step does not thrash: its layouts, held as golden text, and the relayouts that are left."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import wsejax as wse
from models.gpt2 import GPT2Config
from models.transformer import Decoder
from wsejax.training import init_train_state, make_train_step, next_token_loss, split_model

CONFIG = GPT2Config(vocab_size=256, context=64, layers=2, heads=8, width=64, remat="full")
BATCH = {"inputs": jax.ShapeDtypeStruct((8, 64), np.int32), "targets": jax.ShapeDtypeStruct((8, 64), np.int32)}

# path of a parameter -> its layout; blocks' parameters have the layer in front
GOLDEN = """
['blocks']['attention']['k']['bias']: float32[2, 8/x, 8]
['blocks']['attention']['k']['kernel']: float32[2, 64/y, 8/x, 8]
['blocks']['attention']['out']['bias']: float32[2, 64/x]
['blocks']['attention']['out']['kernel']: float32[2, 8/y, 8, 64/x]
['blocks']['attention']['q']['bias']: float32[2, 8/x, 8]
['blocks']['attention']['q']['kernel']: float32[2, 64/y, 8/x, 8]
['blocks']['attention']['v']['bias']: float32[2, 8/x, 8]
['blocks']['attention']['v']['kernel']: float32[2, 64/y, 8/x, 8]
['blocks']['mlp']['down']['bias']: float32[2, 64/x]
['blocks']['mlp']['down']['kernel']: float32[2, 256/y, 64/x]
['blocks']['mlp']['up']['bias']: float32[2, 256/x]
['blocks']['mlp']['up']['kernel']: float32[2, 64/y, 256/x]
['blocks']['norm1']['bias']: float32[2, 64/x]
['blocks']['norm1']['scale']: float32[2, 64/x]
['blocks']['norm2']['bias']: float32[2, 64/x]
['blocks']['norm2']['scale']: float32[2, 64/x]
['norm']['bias']: float32[64/x]
['norm']['scale']: float32[64/x]
['positions']['embedding']: float32[64, 64/x]
['tokens']['embedding']: float32[256/y, 64/x]
""".strip()


@functools.cache
def train_step_and_state(config: GPT2Config):
    """AdamW with clipping, as the training command builds it, on shapes alone."""
    apply, params = split_model(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 5, 50)))
    step = make_train_step(lambda p, b, key: next_token_loss(apply(p, b["inputs"], key), b["targets"]), tx)
    return step, jax.eval_shape(lambda p: init_train_state(p, tx, seed=0), params)


@functools.cache
def lowered(config: GPT2Config = CONFIG):
    step, state = train_step_and_state(config)
    wafer = wse.Wafer(wse.WSE3.scaled(32, 32), tiles=(4, 4), devices=(2, 2))
    return wse.jit(step, wafer, donate_argnums=0).lower(state, BATCH)


def layouts_of(part: str) -> str:
    """Lines of the layouts below `part` of the state, path and layout only."""
    lines = [line.split("  (")[0] for line in lowered().layouts().splitlines() if line.startswith("argument")]
    return "\n".join(line.split(part)[1] for line in lines if f"{part}[" in line)


def test_weights_lie_in_by_out_and_vectors_with_the_features():
    assert layouts_of(".params") == GOLDEN


def test_moments_lie_as_their_parameters_and_the_state_comes_back_as_it_went_in():
    assert layouts_of(".mu") == layouts_of(".nu") == GOLDEN
    assert lowered().in_shardings[0] == lowered().out_shardings[0]


def test_nothing_is_unsharded_and_little_moves_between_layouts():
    program = lowered().program
    assert lowered().audit().clean
    relayouts = program.of_kind("relayout")
    assert len(relayouts) <= 3, "\n".join(map(str, relayouts))
    activations = 8 * 64 * 64
    assert not [c for c in relayouts if np.prod(c.ins[0].shape) > activations * 4], "a logits-sized value moves"


def test_every_product_meets_activations_on_tokens_by_features():
    """Of every product with a weight, forward and backward: the activations (and their gradients) lie (batch/y, ..., features/x)."""
    gemms = [c for c in lowered().program.of_kind("kernel") if c.kernel == "gemm"]
    assert gemms
    for call in gemms:
        for array in (*call.ins, *call.outs):
            if array.shape[:2] == (8, 64) and len(array.shape) == 3:  # (batch, seq, features)
                assert array.layout == ("y", None, "x"), str(call)


@pytest.mark.parametrize("remat", ["full", "none"])
def test_the_products_cost_what_a_transformers_products_cost(remat):
    """A layer has 12 width^2 weights in products, 2 flops a token each; backward takes twice the forward pass. Remat repeats the
    forward pass of a layer but for its last product (4 of the 12 width^2), which no gradient needs. The head is not repeated."""
    gemms = [c for c in lowered(dataclasses.replace(CONFIG, remat=remat)).program.of_kind("kernel") if c.kernel == "gemm"]
    tokens, width = 8 * 64, CONFIG.width
    layer, repeated = 12 * width**2, 8 * width**2 if remat == "full" else 0
    want = 2 * tokens * (CONFIG.layers * (3 * layer + repeated) + 3 * CONFIG.vocab_size * width)
    assert sum(c.flops * c.trips for c in gemms) == want
    assert {c.trips for c in gemms} == {1, CONFIG.layers}
