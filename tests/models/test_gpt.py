"""The GPT: what it may look at, what it is tied to, and that the ways to run its layers agree."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.gpt import GPT, PRESETS, GPTConfig

SMALL = GPTConfig(vocab_size=37, context=12, layers=3, heads=2, width=16)
TOKENS = np.random.default_rng(0).integers(0, SMALL.vocab_size, (2, 12)).astype(np.int32)


@functools.cache
def built(config: GPTConfig) -> GPT:
    return jax.jit(lambda: GPT(config, rngs=nnx.Rngs(0)))()


@jax.jit
def logits_of(model: GPT, tokens, key=None):
    return model(tokens, key)


def with_weights_of(config: GPTConfig, other: GPT) -> GPT:
    """A model of `config` with another model's parameters."""
    return nnx.merge(nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))[0], nnx.split(other)[1])


def loss(model: GPT, key=None):
    logits = model(TOKENS[:, :-1], key)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], -1).mean()


@pytest.mark.parametrize("config", [SMALL, PRESETS["tiny"], dataclasses.replace(SMALL, layers=1, heads=1, width=8)], ids=str)
def test_parameter_count_is_that_of_the_tree(config):
    shapes = nnx.state(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))), nnx.Param)
    assert config.parameter_count == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_the_small_preset_is_gpt2():
    """124,439,808 parameters: Radford et al.'s smallest model as published (the paper's table says 117M)."""
    config = PRESETS["small"]
    shapes = nnx.state(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == config.parameter_count == 124_439_808
    assert (config.vocab_size, config.context, config.layers, config.heads, config.width) == (50257, 1024, 12, 12, 768)


@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_token_changes_the_logits_from_its_place_on_and_none_before(at):
    changed = TOKENS.copy()
    changed[:, at] = (changed[:, at] + 1) % SMALL.vocab_size
    a, b = (np.asarray(logits_of(built(SMALL), t)) for t in (TOKENS, changed))
    assert a.shape == (2, 12, SMALL.vocab_size) and a.dtype == np.float32
    np.testing.assert_array_equal(a[:, :at], b[:, :at])
    assert (np.abs(a[:, at:] - b[:, at:]).max(-1) > 0).all()


def test_sequences_of_a_batch_do_not_see_each_other_and_places_differ():
    logits = np.asarray(logits_of(built(SMALL), TOKENS))
    np.testing.assert_allclose(logits_of(built(SMALL), TOKENS[1:]), logits[1:], rtol=1e-5, atol=1e-6)
    same = np.asarray(logits_of(built(SMALL), np.full((1, 4), 7, np.int32)))
    assert np.abs(same[0, 0] - same[0, 1]).max() > 0  # the position table is read
    np.testing.assert_allclose(logits_of(built(SMALL), TOKENS[:, :5]), logits[:, :5], rtol=1e-5, atol=1e-6)


def test_the_head_is_the_token_table():
    model = nnx.clone(built(SMALL))
    before = np.asarray(logits_of(model, TOKENS))
    unused = next(t for t in range(SMALL.vocab_size) if t not in TOKENS)
    table = model.token_embed.embedding
    table[...] = table[...].at[unused].multiply(3.0)
    np.testing.assert_allclose(logits_of(model, TOKENS)[..., unused], 3 * before[..., unused], rtol=1e-4, atol=1e-6)
    assert not [path for path, _ in jax.tree_util.tree_flatten_with_path(nnx.state(model))[0] if "head" in jax.tree_util.keystr(path)]


def test_first_loss_is_that_of_a_uniform_guess():
    config = PRESETS["tiny"]
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (4, 33)).astype(np.int32)
    logits = logits_of(built(config), tokens[:, :-1])
    first = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()
    assert abs(float(first) - math.log(config.vocab_size)) < 0.1


@pytest.mark.parametrize("options", [{"scan": False}, {"remat": True}], ids=str)
def test_the_ways_to_run_the_layers_give_the_same_logits_and_gradients(options):
    model = built(SMALL)
    other = with_weights_of(dataclasses.replace(SMALL, **options), model)
    np.testing.assert_allclose(logits_of(other, TOKENS), logits_of(model, TOKENS), rtol=1e-5, atol=1e-6)
    want, got = jax.jit(nnx.grad(loss))(model), jax.jit(nnx.grad(loss))(other)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_scanned_layers_differ_and_each_is_used():
    model = built(SMALL)
    kernel = np.asarray(model.blocks.up.kernel[...])
    assert kernel.shape == (3, 16, 64) and np.abs(kernel[0] - kernel[1]).max() > 0
    grads = jax.jit(nnx.grad(loss))(model).blocks.up.kernel[...]
    assert (np.abs(grads).max((1, 2)) > 0).all()


def test_dropout_is_decided_by_its_key_and_off_without_one():
    dropped = with_weights_of(dataclasses.replace(SMALL, dropout=0.3), built(SMALL))
    one, again, two = (np.asarray(logits_of(dropped, TOKENS, jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-4
    np.testing.assert_array_equal(logits_of(dropped, TOKENS), logits_of(built(SMALL), TOKENS))
    np.testing.assert_array_equal(logits_of(built(SMALL), TOKENS, jax.random.key(1)), logits_of(built(SMALL), TOKENS))  # rate 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, ["layers=0", "at least 1"]),
        ({"vocab_size": -1}, ["vocab_size=-1"]),
        ({"heads": 3}, ["width=16", "heads=3", "multiple"]),
        ({"dropout": 1.0}, ["dropout=1.0", "[0, 1)"]),
        ({"dropout": -0.1}, ["dropout=-0.1"]),
    ],
)
def test_a_bad_config_names_its_field(change, words):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(SMALL, **change)
    assert all(word in str(error.value) for word in words), error.value


def test_a_sequence_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"sequence length 13.*context is 12"):
        logits_of(built(SMALL), np.zeros((1, 13), np.int32))
