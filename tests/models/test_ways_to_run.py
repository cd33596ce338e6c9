"""How a model runs is no part of it: recomputing, unrolling, blocks of queries and precision; and dropout, which its key decides."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.t5 import Half

from .small import VOCAB, close, parameters, quickly, small

BATCH, SEQ = 2, 6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, SEQ)).astype(np.int32)


def logits_of(name: str, params: Any, key: Any = None, **how: Any) -> Any:
    family, config = small(name, **how)
    inputs = (TOKENS, TOKENS[:, ::-1]) if name == "t5" else (TOKENS,)
    return family.apply(config, params, *inputs, key)


@functools.cache
def trained(name: str, **how: Any) -> Any:
    """Logits, and the gradient of a loss in all of them."""

    def loss(params):
        logits = logits_of(name, params, **how)
        return (jnp.sin(logits) * logits).mean(), logits

    (_, logits), grads = quickly(jax.value_and_grad(loss, has_aux=True))(parameters(name))
    return logits, grads


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", {"remat": "full"}),
        ("llama", {"remat": "dots", "query_block": 4, "scan": False}),
        ("t5", {"remat": "full", "query_block": 2, "scan": False}),
        ("bert", {"remat": "dots", "query_block": 2, "scan": False}),
    ],
)
def test_results_and_gradients_do_not_depend_on_how_it_runs(name, how):
    (logits, grads), (want, wanted) = trained(name, **how), trained(name)
    close(logits, want)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    moved = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(wanted)]
    assert sum(moved) >= len(moved) - 1  # of a key's bias that all keys have, nothing follows


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_layers_are_unrolled_or_not_and_recomputed_or_not(name):
    """What the switches are for: a loop over layers or none, and blocks computed a second time."""
    recomputes = lambda text: "checkpoint" in text or "remat" in text  # by the version of JAX
    text = lambda **how: str(jax.make_jaxpr(lambda params: logits_of(name, params, **how))(parameters(name)))
    assert not recomputes(text()) and recomputes(text(remat="full")) and recomputes(text(remat="dots"))
    assert "unroll=2" not in text() and "unroll=2" in text(scan=False)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_low_precision_is_near(name):
    """bfloat16 has 8 bits; logits come in float32 all the same."""
    got = quickly(lambda params: logits_of(name, params, dtype="bfloat16"))(parameters(name))
    assert got.dtype == jnp.float32
    close(got, trained(name)[0], 0.15)
    family, config = small(name, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(family.abstract(config))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_dropout_is_decided_by_its_key_and_off_without_one(name):
    rates = {"dropout": 0.3} if name == "t5" else {"dropout": 0.3, "attention_dropout": 0.2}
    rates |= {"embedding_dropout": 0.1} if name == "llama" else {}
    assert small(name, **rates)[1].stochastic and not small(name)[1].stochastic

    @quickly
    def run(params, number):
        with_key = lambda n: logits_of(name, params, jax.random.key(n), **rates)
        return with_key(number), logits_of(name, params, **rates), logits_of(name, params, jax.random.key(number))

    one, off, rate_0 = run(parameters(name), 1)
    again, two = (run(parameters(name), number)[0] for number in (1, 2))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - two).max(-1) > 1e-3).all() and (np.abs(one - off).max(-1) > 1e-3).all()
    np.testing.assert_array_equal(off, rate_0)
    close(off, trained(name)[0])


def test_t5_draws_its_first_and_its_last_dropout_apart():
    """Blocks that add nothing leave both: three quarters are zero then, and would be a half if both were the same draw."""
    family, config = small("t5", dropout=0.5)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "'out'" in str(path) or "'down'" in str(path) else leaf, parameters("t5")
    )

    def run(params):
        half: Half = family.bound(config, params).encoder
        at = jnp.arange(8)[None, :]
        ones = jnp.ones((8, 8, config.width))
        return half(ones, at, lambda own: lambda k, v: (k, v, at), None, None, None, jax.random.key(0))[0]

    zeros = float((quickly(run)(silent) == 0).mean())
    assert zeros == pytest.approx(0.75, abs=0.04)
