"""`wse.memory`: what is alive when, and what a verdict follows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsejax as wse
from models.decoder import abstract_train_step, decoder_config
from models.presets import find
from tests.cost.test_model import SMALL, lower, train
from wsejax.cost.memory import KINDS

GRID = wse.CS3.replace(rows=8.0, cols=8.0, code_per_pe_bytes=0.0)  # small, so that a few hundred elements are some a PE


def test_a_chain_of_products_holds_what_it_still_needs() -> None:
    """By hand, in float32 on 64 PEs: x 32 x 64 (128 bytes a PE), w1 64 x 192 (768), w2 192 x 48 (576), h 32 x 192 (384), y 32 x 48 (96)."""
    f = lambda x, w1, w2: jnp.tanh(x @ w1) @ w2
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    found = wse.memory(lower(f, shape(32, 64), shape(64, 192), shape(192, 48)), GRID)
    assert (found.peak["weights"], found.peak["inputs"]) == (768 + 576, 128)  # arguments are held throughout
    assert found.peak["activations"] == 384 + 96  # of the second product, an operand and the result; tanh was done in place
    assert found.peak["buffers"] == 384 + 576  # its operands, under way


def test_what_is_donated_gives_its_place_to_the_result() -> None:
    f = lambda x: jnp.tanh(x) * 2.0
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    kept, given_away = wse.memory(lower(f, x), GRID), wse.memory(lower(f, x, donate_argnums=0), GRID)
    assert kept.peak_bytes == 2 * 256
    assert given_away.peak_bytes == 256


def test_what_is_written_elsewhere_needs_room_and_loops_hold_their_carry_once() -> None:
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    joined = wse.memory(lower(lambda x, y: jnp.concatenate([x, y]), x, x, donate_argnums=(0, 1)), GRID)
    assert joined.peak_bytes == 2 * 256 + 512
    spread = wse.memory(lower(lambda b: jnp.broadcast_to(b, (512, 512)), jax.ShapeDtypeStruct((), jnp.float32)), GRID)
    assert spread.peak_bytes >= 512 * 512 * 4 / 64

    def nested(depth):
        return lambda x: jax.lax.fori_loop(0, 3, lambda i, x: nested(depth - 1)(x), x) if depth else jnp.tanh(x)

    one, four = (wse.memory(lower(nested(depth), x), GRID).peak_bytes for depth in (1, 4))
    assert 2 * 256 <= one <= four <= 2 * 256 + 256 + 64  # the argument and the result; counters are some bytes


def test_activations_of_a_forward_pass_are_activations() -> None:
    x, w = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    found = wse.memory(lower(lambda x, w, v: jnp.tanh(x @ w) @ v, x, w, w), GRID)
    assert (found.peak["weights"], found.peak["inputs"], found.peak["gradients"]) == (512, 256, 0)
    assert found.streamed_peak["activations"] == 512


def test_kinds_are_what_they_say() -> None:
    found = wse.memory(train(), GRID)
    params = sum(4 * int(np.prod(x.shape)) for x in jax.tree.leaves(abstract_train_step(SMALL, optax.adamw(1e-3))[1]["params"]))
    assert found.peak["weights"] + found.peak["state"] >= 3 * params / 64 * 0.95  # weights and two moments, some repeated
    assert set(found.peak) == set(KINDS)
    assert found.peak_bytes == pytest.approx(sum(found.peak.values()) + found.code_bytes)


def test_recomputing_saves_less_and_16_bits_halve() -> None:
    config = dataclasses.replace(SMALL, layers=8)
    plain, again = (wse.memory(train(dataclasses.replace(config, remat=r), 32), GRID) for r in ("none", "full"))
    assert again.streamed_peak["saved"] < plain.streamed_peak["saved"] / 3
    half = wse.memory(train(dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16"), 32), GRID)
    assert half.peak["weights"] == pytest.approx(again.peak["weights"] / 2, rel=0.05)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24))
def test_the_map_has_the_peak_and_never_more(rows: int, cols: int) -> None:
    found = wse.memory(_LOWERED, wse.CS3.replace(rows=float(rows), cols=float(cols)))
    held = found.map()
    assert held.shape == (rows, cols)
    assert held.max() == pytest.approx(found.peak_bytes)
    assert held.min() >= found.code_bytes


_LOWERED = train()


def test_verdicts_and_what_to_do() -> None:
    lowered = train(batch=32)
    need = wse.memory(lowered, GRID)
    roomy = wse.memory(lowered, GRID.replace(sram_per_pe_bytes=need.peak_bytes + 1))
    tight = wse.memory(lowered, GRID.replace(sram_per_pe_bytes=need.streamed_bytes + 1))
    small = wse.memory(lowered, GRID.replace(sram_per_pe_bytes=need.streamed_bytes / 2))
    assert [m.verdict for m in (roomy, tight, small)] == ["resident", "streamed", "does not fit"]
    assert roomy.advice == ()
    assert any("stay outside the wafer" in line for line in tight.advice)
    assert any("parts" in line for line in small.advice) and any("16-bit" in line for line in small.advice)
    assert any("too many" in line for line in small.advice)


def test_a_model_of_70b_streams_from_shapes() -> None:
    config = decoder_config(find("llama-3.1-70b"), dtype="bfloat16", param_dtype="bfloat16")
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    found = wse.memory(lower(step, state, jax.ShapeDtypeStruct((1, 4097), jnp.int32), tiles=(16, 16), donate_argnums=0))
    assert found.verdict == "streamed"
    assert found.peak["weights"] == pytest.approx(2 * 70.6e9 / wse.CS3.pes, rel=0.02)
