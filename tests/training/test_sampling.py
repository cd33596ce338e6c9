"""Sampling: a model that knows the next byte must be heard, at any length beyond its context."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from wsejax.training.sampling import continue_text

CONTEXT = 6


def counting(params, tokens):
    """Logits that say: the byte after b is b + params['by']. Causal, whatever lies behind."""
    return 50.0 * jax.nn.one_hot((tokens + params["by"]) % 256, 256)


@pytest.mark.parametrize("prompt", [b"a", b"abcdefghij"], ids=["short", "longer than the context"])
def test_a_certain_model_is_followed(prompt):
    text = continue_text(counting, {"by": jnp.int32(1)}, prompt, count=20, context=CONTEXT, seed=0)
    assert text == bytes(range(ord("a"), ord("a") + len(prompt) + 20))


def test_draws_are_repeatable_and_follow_the_seed():
    def uniform(params, tokens):
        return jnp.zeros((*tokens.shape, 256))

    texts = [continue_text(uniform, {}, b"x", count=40, context=CONTEXT, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 20


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        continue_text(counting, {"by": 1}, b"", count=1, context=CONTEXT, seed=0)
