"""Mixtures of experts against loops over tokens and their choices."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from models.experts import Experts, load_balance
from models.transformer import DecoderConfig

from .small import VOCAB, parameters, quickly, small

BATCH, SEQ, WIDTH, FFN, EXPERTS, TOP = 2, 5, 6, 4, 4, 2
TOKENS = BATCH * SEQ
PRESENT = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def made(top: int = TOP, capacity_factor: float | None = None) -> Experts:
    kinds = {"dtype": "float32", "param_dtype": "float32", "rngs": nnx.Rngs(0)}
    return Experts(WIDTH, FFN, EXPERTS, top, "silu", capacity_factor=capacity_factor, scale=1.0, out_scale=1.0, **kinds)


@functools.cache
def weights_of() -> dict:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(made(), nnx.Param)))


@functools.cache
def graph_of(top: int, capacity_factor: float | None):
    return nnx.split(made(top, capacity_factor))


@functools.cache
def compiled(top: int = TOP, capacity_factor: float | None = None):
    return quickly(functools.partial(apply, top, capacity_factor))


def apply(top, capacity_factor, weights, x, present=None):
    graph, state = graph_of(top, capacity_factor)
    filled = jax.tree.map(lambda v: v, state)
    nnx.replace_by_pure_dict(filled, weights)
    return nnx.merge(graph, filled)(x, present)


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BATCH, SEQ, WIDTH)).astype(np.float32)


def expert(weights: dict, e: int, x: np.ndarray) -> np.ndarray:
    gate, up, down = (weights[name][e].astype(np.float64) for name in ("gate", "up", "down"))
    inner = x @ gate
    return (inner / (1 + np.exp(-inner)) * (x @ up)) @ down


def choices(weights: dict, x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [tokens, experts], experts in the order of preference [tokens, top])."""
    logits = x.reshape(TOKENS, WIDTH).astype(np.float64) @ weights["router"]["kernel"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True), np.argsort(-logits, axis=1)[:, :top]


def by_hand(weights: dict, x: np.ndarray, top: int, room: float = math.inf, present: np.ndarray | None = None):
    """Result, and how many choices found no room: all first choices in the order of tokens, then all second ones."""
    probabilities, chosen = choices(weights, x, top)
    taken, out, passed = [0] * EXPERTS, np.zeros((TOKENS, WIDTH)), 0
    for rank in range(top):
        for token in range(TOKENS):
            if present is not None and not present.reshape(-1)[token]:
                continue
            e = chosen[token, rank]
            if taken[e] >= room:
                passed += 1
                continue
            taken[e] += 1
            weight = probabilities[token, e] / probabilities[token, chosen[token]].sum()
            out[token] += weight * expert(weights, e, x.reshape(TOKENS, WIDTH)[token].astype(np.float64))
    return out.reshape(x.shape), passed


def room_of(capacity_factor: float, top: int = TOP) -> int:
    return math.ceil(capacity_factor * top * TOKENS / EXPERTS)


@pytest.mark.parametrize("top", [1, 2])
@given(seed=st.integers(0, 999))
def test_every_token_gets_its_best_experts(top, seed):
    x = values(seed)
    got, (picked, likely) = compiled(top)(weights_of(), x)
    np.testing.assert_allclose(got, by_hand(weights_of(), x, top)[0], atol=1e-4)
    probabilities, chosen = choices(weights_of(), x, top)
    np.testing.assert_allclose(likely, probabilities.mean(0), atol=1e-6)
    np.testing.assert_allclose(picked, [np.bincount(chosen[:, k], minlength=EXPERTS) / TOKENS for k in range(top)], atol=1e-6)


@given(seed=st.integers(0, 999))
def test_room_for_all_is_dropless(seed):
    x = values(seed)
    np.testing.assert_allclose(compiled(TOP, EXPERTS / TOP)(weights_of(), x)[0], compiled()(weights_of(), x)[0], atol=1e-4)


@pytest.mark.parametrize("capacity_factor", [0.01, 0.5, 1.0])
def test_who_finds_no_room_passes_by(capacity_factor):
    """In the order that a loop goes; the smallest room is for one token."""
    run, passed, room = compiled(TOP, capacity_factor), [], room_of(capacity_factor)
    for seed in range(20):
        want, missed = by_hand(weights_of(), values(seed), TOP, room)
        np.testing.assert_allclose(run(weights_of(), values(seed))[0], want, atol=1e-4)
        passed.append(missed)
    assert min(passed) >= TOKENS * TOP - EXPERTS * room and max(passed) > 0


@given(seed=st.integers(0, 999))
def test_padding_takes_no_room_and_does_not_count(seed):
    x = values(seed)
    other = np.where(PRESENT[:, :, None] > 0, x, values(seed + 1000))
    here = PRESENT > 0
    for factor in (None, 0.5):
        run = compiled(TOP, factor)
        one, two = (run(weights_of(), some, PRESENT) for some in (x, other))
        np.testing.assert_array_equal(np.asarray(one[0])[here], np.asarray(two[0])[here])
        for a, b in zip(one[1], two[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    want = by_hand(weights_of(), x, TOP, room_of(0.5), PRESENT)[0]
    np.testing.assert_allclose(np.asarray(one[0])[here], want[here], atol=1e-4)


@given(seed=st.integers(0, 999))
def test_weights_sum_to_one(seed):
    """So a mixture of equal experts is any one of them."""
    weights = weights_of()
    equal = {**weights, **{name: np.repeat(weights[name][:1], EXPERTS, axis=0) for name in ("gate", "up", "down")}}
    x = values(seed)
    np.testing.assert_allclose(compiled()(equal, x)[0], expert(weights, 0, x.astype(np.float64)), atol=1e-4)


@given(order=st.permutations(range(EXPERTS)))
def test_experts_have_no_names(order):
    weights, order = weights_of(), np.array(order)
    renamed = {name: weights[name][order] for name in ("gate", "up", "down")}
    renamed["router"] = {"kernel": weights["router"]["kernel"][:, order]}
    got, (picked, likely) = compiled()(renamed, values(0))
    want, (picked_before, likely_before) = compiled()(weights, values(0))
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(picked, np.asarray(picked_before)[:, order], atol=1e-6)
    np.testing.assert_allclose(likely, np.asarray(likely_before)[order], atol=1e-6)


@functools.cache
def gradients():
    """Of a loss in the results alone, and of the load balance alone; the last expert is liked by nobody."""
    weights = weights_of()
    kernel = weights["router"]["kernel"].copy()
    kernel[:, -1] = 0
    x = np.abs(values(0))
    kernel[0, -1] = -100.0
    weights = {**weights, "router": {"kernel": kernel}}
    results = lambda w: (apply(TOP, None, w, x)[0] ** 2).sum()
    balance = lambda w: load_balance(apply(TOP, None, w, x)[1])
    roomy = lambda w: (apply(TOP, 0.5, w, x)[0] ** 2).sum()
    return jax.tree.map(np.asarray, quickly(lambda w: [jax.grad(loss)(w) for loss in (results, balance, roomy)])(weights))


@pytest.mark.parametrize("which", [0, 2], ids=["dropless", "capacity"])
def test_the_router_learns_from_results_and_experts_that_nobody_chose_do_not(which):
    found = gradients()[which]
    assert np.abs(found["router"]["kernel"][:, :-1]).max() > 1e-3
    for name in ("gate", "up", "down"):
        assert (found[name][-1] == 0).all() and np.abs(found[name][:-1]).max() > 1e-3


def test_the_load_balance_moves_the_router_alone():
    found = gradients()[1]
    assert np.abs(found["router"]["kernel"]).max() > 1e-3
    assert all((found[name] == 0).all() for name in ("gate", "up", "down"))


@pytest.mark.parametrize("top", [1, 2, 4])
def test_load_balance_is_top_where_experts_are_evenly_used(top):
    even = (jnp.full((top, EXPERTS), 1 / EXPERTS), jnp.full(EXPERTS, 1 / EXPERTS))
    assert float(load_balance(even)) == pytest.approx(top)
    if top == EXPERTS:
        return
    settled = (jnp.eye(EXPERTS)[:top], jnp.r_[jnp.full(top, 1 / top), jnp.zeros(EXPERTS - top)])
    assert float(load_balance(settled)) == pytest.approx(EXPERTS)  # on as few as can be
    leaning = [0.6 * a + 0.4 * b for a, b in zip(even, settled, strict=True)]
    assert top < float(load_balance(tuple(leaning))) < EXPERTS


def test_load_balance_of_layers_is_that_of_their_mean():
    loads = [compiled()(weights_of(), values(seed))[1] for seed in range(3)]
    stacked = tuple(jnp.stack(parts) for parts in zip(*loads, strict=True))
    mean = tuple(jnp.mean(part, axis=0) for part in stacked)
    assert float(load_balance(stacked)) == pytest.approx(float(load_balance(mean)), rel=1e-6)
    assert float(load_balance(stacked)) != pytest.approx(np.mean([float(load_balance(load)) for load in loads]), rel=1e-4)


def test_a_model_gives_its_logits_with_the_balance_of_the_tokens_that_count():
    family, config = small("mixtral")
    both = quickly(lambda tokens, present: family.bound(config, parameters("mixtral")).with_balance(tokens, present=present))
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, SEQ))
    logits, balance = both(tokens, PRESENT)
    np.testing.assert_array_equal(logits, both(tokens, np.ones_like(PRESENT))[0])
    assert 0 < float(balance) <= config.experts
    other = np.where(PRESENT > 0, tokens, 7)
    assert float(both(other, PRESENT)[1]) == pytest.approx(float(balance), rel=1e-6)
    assert float(both(tokens, np.ones_like(PRESENT))[1]) != pytest.approx(float(balance), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts_per_token": 5}, "experts_per_token=5"),
        ({"experts_per_token": 0}, "experts_per_token=0"),
        ({"gated": False}, "gated=True"),
        ({"mlp_bias": True}, "mlp_bias=False"),
    ],
)
def test_a_bad_mixture_names_its_field(change, words):
    given_ = {"experts": 4, "experts_per_token": 2, "gated": True, "mlp_bias": False, **change}
    with pytest.raises(ValueError, match=words):
        DecoderConfig(**given_)
