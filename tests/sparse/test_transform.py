"""The optimiser of sparse weights: exact counts, zeros that stay zeros, changes at their steps alone, and nothing outside the state."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

import wsejax as wse
from tests.sparse.oracle import adam, exchanged, top, zhu_gupta
from wsejax import sparse
from wsejax.training import Checkpoints, abstract_like, init_train_state, make_train_step
from wsejax.training.state import TrainState

RATE, STEPS, SHAPE = 0.05, 8, (2, 8, 12)
inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.1))
drop = {"begin": 1, "every": 2, "drop": 0.5, "first": "even"}  # a random draw takes long to compile

# One parameter for each, all trained by one compiled step.
MAKE = {
    "static": lambda path: sparse.static(path, 0.9),
    "even": lambda path: sparse.static(path, 0.75, first="even"),
    "gmp": lambda path: sparse.gmp(path, 0.8, begin=1, end=6, every=2),
    "set": lambda path: sparse.set_(path, 0.7, begin=1, every=2, end=5, first="even"),
    "rigl": lambda path: sparse.rigl(path, 0.7, end=7, **drop),
    "periodic": lambda path: sparse.gmp(path, sparse.periodic(0.2, 0.6, period=4), end=6, every=1),
    "2:4": lambda path: sparse.rigl(path, structure=sparse.NM(2, 4), end=7, **drop),
    "block": lambda path: sparse.rigl(path, 0.5, structure=sparse.Block((2, 3)), end=5, **drop),
    "densified": lambda path: sparse.densified(sparse.rigl(path, 0.7, end=7, **drop), 4),
    "whole": lambda path: sparse.rigl(path, 0.7, end=7, stack_axes=0, **drop),
}
PATHS = {name: f"{name}/blocks/kernel" for name in MAKE}
GROUPS = {name: make(PATHS[name]) for name, make in MAKE.items()}


def params_of(seed: int, dtype=jnp.float32) -> dict:
    values = jnp.asarray(np.random.default_rng(seed).normal(size=(len(MAKE), *SHAPE)), dtype)
    return {**{name: {"blocks": {"kernel": values[n]}} for n, name in enumerate(MAKE)}, "dense": {"kernel": values[0, 0]}}


def loss(params, batch, key=None):
    """A gradient for every weight, also where it is 0."""
    return sum(jnp.mean((w - target) ** 2) for w, target in zip(jax.tree.leaves(params), jax.tree.leaves(batch), strict=True))


BATCHES = [params_of(7 + n) for n in range(STEPS)]


def start(tx, dtype=jnp.float32) -> TrainState:
    def make():
        state = init_train_state(params_of(0, dtype), tx, seed=0)
        return dataclasses.replace(state, params=sparse.masked(state.params, state.opt_state))

    return jax.jit(make)()


@cache
def compiled():
    tx = sparse.sparsify(inner, *GROUPS.values(), seed=3)
    return tx, jax.jit(make_train_step(loss, tx, stochastic=False))


@cache
def history() -> list[TrainState]:
    """States before the first step and after each."""
    tx, step = compiled()
    states = [start(tx)]
    for batch in BATCHES:
        states.append(step(states[-1], batch)[0])
    return jax.device_get(states)


def kernel(tree: dict, name: str) -> np.ndarray:
    return np.asarray(tree[name]["blocks"]["kernel"])


def mask_of(state: TrainState, name: str) -> np.ndarray:
    return np.asarray(sparse.masks_of(state.opt_state)[PATHS[name]])


def kept(group: sparse.Group, step: int) -> int:
    """Of the weights of one layer, or what else is counted together, after the change at `step`."""
    n = {sparse.NM: 4, sparse.Block: 16, sparse.Unstructured: 96 * (2 if group.stack_axes == 0 else 1)}[type(group.structure)]
    changes = [s for s in group.steps if s <= step]
    return round((1 - group.sparsity(changes[-1] if changes else 0)) * n)


@pytest.mark.parametrize("name", GROUPS)
def test_counts_are_exact_at_every_step_and_masks_change_at_theirs_alone(name):
    group, found = GROUPS[name], [mask_of(state, name) for state in history()]
    for step in range(-1, STEPS):
        mask = found[step + 1]
        if isinstance(group.structure, sparse.NM):
            counts = mask.reshape(2, 2, 4, 12).sum(2)
        elif isinstance(group.structure, sparse.Block):
            blocks = mask.reshape(2, 4, 2, 4, 3)
            assert (blocks.all((2, 4)) == blocks.any((2, 4))).all()
            counts = blocks.any((2, 4)).sum((1, 2))
        else:
            counts = mask.sum() if group.stack_axes == 0 else mask.sum((1, 2))
        assert np.unique(counts).tolist() == [kept(group, step)]
        if step >= 0 and step not in group.steps:
            np.testing.assert_array_equal(mask, found[step])
    moved = [step for step in group.steps if (found[step] != found[step + 1]).any()]
    assert moved or not group.steps


@pytest.mark.parametrize("name", GROUPS)
def test_pruned_weights_and_their_moments_are_exactly_zero(name):
    for state in history():
        mask, adams = mask_of(state, name), state.opt_state.inner[1][0]
        for tree in (state.params, adams.mu, adams.nu):
            assert not kernel(tree, name)[~mask].any() and not np.signbit(kernel(tree, name)[~mask]).any()
        if state.step > 0:
            assert (kernel(state.params, name)[mask] != 0).all() and adams.nu["dense"]["kernel"].all()


@pytest.mark.parametrize("name", ["rigl", "set", "densified", "periodic", "2:4", "block"])
def test_what_comes_back_begins_at_zero_with_nothing_known_of_it(name):
    """So after its first step its moments are those of one gradient."""
    came = 0
    for before, after in zip(history(), history()[1:], strict=False):
        back, adams = mask_of(after, name) & ~mask_of(before, name), after.opt_state.inner[1][0]
        first, second = kernel(adams.mu, name)[back], kernel(adams.nu, name)[back]
        np.testing.assert_allclose(first**2 / 0.01, second / 0.001, rtol=1e-4)
        assert np.abs(kernel(after.params, name)[back]).max(initial=0) <= 3.2 * RATE  # of the first step of Adam, late in a run
        came += back.sum()
    assert came


@settings(max_examples=6)
@given(seed=st.integers(0, 1000))
def test_rigl_is_the_algorithm_of_the_paper_round_adam(seed):
    """Gradients of any kind, not of a loss: masks and weights against sorting in numpy and Adam in float64."""
    update, init = _rigl_alone()
    rng = np.random.default_rng(seed)
    weights, grads = rng.normal(size=(2, 6, 8)).astype(np.float32), rng.normal(size=(4, 2, 6, 8)).astype(np.float32).round(1)
    params = {"blocks": {"kernel": jnp.asarray(weights)}}
    state = init(params)
    params, found = sparse.masked(params, state), [np.asarray(sparse.masks_of(state)["blocks/kernel"])]
    seen = []
    for grad in grads:
        seen.append(np.asarray(params["blocks"]["kernel"]))
        params, state = update({"blocks": {"kernel": jnp.asarray(grad)}}, state, params)
        found.append(np.asarray(sparse.masks_of(state)["blocks/kernel"]))
    for layer in range(2):
        flat = [mask[layer].ravel() for mask in found]
        for step in range(4):
            drop = 0.5 / 2 * (1 + np.cos(np.pi * step / 3))
            want = (
                exchanged(flat[step], seen[step][layer].ravel(), np.abs(grads[step][layer].ravel()), drop) if step in (1, 2) else flat[step]
            )
            np.testing.assert_array_equal(flat[step + 1], want)
        w, m, v = adam(weights[layer].ravel() * flat[0], [g[layer].ravel() for g in grads], flat[1:], RATE)
        np.testing.assert_allclose(params["blocks"]["kernel"][layer].ravel(), w, atol=1e-5)
        np.testing.assert_allclose(state.inner[0].mu["blocks"]["kernel"][layer].ravel(), m, atol=1e-6)
        np.testing.assert_allclose(state.inner[0].nu["blocks"]["kernel"][layer].ravel(), v, atol=1e-6)


@cache
def _rigl_alone():
    tx = sparse.sparsify(optax.adam(RATE), sparse.rigl("blocks/kernel", 0.75, begin=1, every=1, end=3, drop=0.5, first="even"))

    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(update), jax.jit(tx.init)


def test_gmp_keeps_the_greatest_of_the_paper_s_counts_and_reaches_its_target():
    states = history()
    for step in (1, 3, 5, 6):
        count = round((1 - zhu_gupta(step, 0.8, 1, 6)) * 96)
        for layer in range(2):
            before = np.where(mask_of(states[step], "gmp")[layer], np.abs(kernel(states[step].params, "gmp")[layer]), -1.0)
            np.testing.assert_array_equal(mask_of(states[step + 1], "gmp")[layer].ravel(), top(before.ravel(), count))
    assert mask_of(states[0], "gmp").all() and mask_of(states[-1], "gmp").sum((1, 2)).tolist() == [19, 19]


def test_draws_follow_from_the_seed_and_parameters_are_drawn_apart():
    draw = lambda seed: sparse.masks_of(sparse.sparsify(inner, sparse.static("(set|rigl)/.*", 0.5), seed=seed).init(params_of(0)))
    one, same, other = draw(0), draw(0), draw(1)
    up, down = PATHS["set"], PATHS["rigl"]
    np.testing.assert_array_equal(one[up], same[up])
    assert (one[up] != other[up]).any() and (one[up] != one[down]).any() and (one[up][0] != one[up][1]).any()
    set_ = [mask_of(state, "set") for state in history()]
    assert ((set_[2] & ~set_[1]) != (set_[4] & ~set_[3])).any(), "each step draws anew"


def test_first_masks_by_magnitude_and_sparsities_that_are_told():
    tx = sparse.sparsify(inner, sparse.static(PATHS["set"], 0.9, first="magnitude"), sparse.static("dense/kernel", 0.5))
    state = jax.jit(optax.chain(tx).init)(params_of(1))  # wherever in a state it is
    for layer in range(2):
        want = top(np.abs(kernel(params_of(1), "set")[layer]).ravel(), 10)
        np.testing.assert_array_equal(sparse.masks_of(state)[PATHS["set"]][layer].ravel(), want)
    told = {path: float(share) for path, share in sparse.sparsity_of(state).items()}
    assert told == {"dense/kernel": 0.5, PATHS["set"]: pytest.approx(172 / 192), "all": pytest.approx((172 + 48) / 288)}
    with pytest.raises(ValueError, match="opt_state: holds no masks"):
        sparse.masks_of(optax.EmptyState())


def test_the_inner_optimiser_sees_masked_gradients_so_it_clips_by_what_is_left():
    tx = sparse.sparsify(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), sparse.static("w/kernel", 0.5, first="magnitude"))
    params = {"w": {"kernel": jnp.array([[4.0, 3.0], [0.2, 0.1]])}}
    grads = {"w": {"kernel": jnp.array([[3.0, 4.0], [1e6, 1e6]])}}
    updates, _ = jax.jit(lambda: tx.update(grads, tx.init(params), params))()
    np.testing.assert_allclose(
        updates["w"]["kernel"], [[-0.6, -0.8], [-0.2, -0.1]], rtol=1e-6
    )  # pruned ones go to 0 from wherever they are
    with pytest.raises(ValueError, match="params=None"):
        tx.update(grads, tx.init(params))


@pytest.mark.slow
def test_other_optimisers_and_bfloat16():
    """Of which some parameters have no state, or one that is not shaped like them."""
    labels = lambda params: {name: "a" if name == "rigl" else "b" for name in params}
    grouped = optax.multi_transform({"a": optax.sgd(RATE, momentum=0.9), "b": optax.adam(RATE)}, labels)
    factored = optax.adafactor(RATE, min_dim_size_to_factor=4, momentum=0.9)
    group = sparse.rigl(PATHS["rigl"], 0.5, begin=1, every=1, end=3, first="even")
    sparsified = [sparse.sparsify(tx, group) for tx in (grouped, factored, optax.MultiSteps(optax.lion(RATE), 2))]

    def three_steps():
        states = [start(tx, jnp.bfloat16) for tx in sparsified]
        for batch in BATCHES[:3]:
            states = [make_train_step(loss, tx, stochastic=False)(state, batch)[0] for tx, state in zip(sparsified, states, strict=True)]
        return states

    for state in jax.jit(three_steps)():
        mask, moments = mask_of(state, "rigl"), 0
        assert state.params["rigl"]["blocks"]["kernel"].dtype == jnp.bfloat16 and mask.sum((1, 2)).tolist() == [48, 48]
        assert not kernel(state.params, "rigl").astype(np.float32)[~mask].any()
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state.inner):
            if "rigl" in jax.tree_util.keystr(path) and x.shape == mask.shape:
                assert not np.asarray(x, np.float32)[~mask].any() and np.asarray(x, np.float32)[mask].any()
                moments += 1
        assert moments


def test_a_restored_run_goes_on_with_the_very_bits(tmp_path):
    _, step = compiled()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, jax.tree.map(jnp.asarray, history()[2]))
        checkpoints.wait()
        state = checkpoints.restore(2, abstract_like(history()[2], SingleDeviceSharding(jax.devices()[0]))).state
    for batch in BATCHES[2:]:
        state, _ = step(state, batch)
    assert jax.tree.structure(state) == jax.tree.structure(history()[-1]) and same_bits(state, history()[-1])


def same_bits(a: TrainState, b: TrainState) -> bool:
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def trained(compile_step) -> TrainState:
    """Four steps of a net of two layers under a scan: a group that grows by gradient, and one at random, from step 0."""
    tx = sparse.sparsify(
        inner,
        sparse.rigl("blocks/up/kernel", 0.7, end=7, **drop),
        sparse.set_("blocks/down/kernel", structure=sparse.NM(1, 2), begin=0, every=1, end=2, drop=1.0, first="magnitude"),
    )
    values = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8, 8)), jnp.float32)
    params = {"blocks": {"up": {"kernel": values[0]}, "down": {"kernel": values[1]}}}

    def loss(params, batch, key):
        layer = lambda x, block: (x + jnp.tanh(x @ block["up"]["kernel"]) @ block["down"]["kernel"], None)
        return jnp.mean(jax.lax.scan(layer, batch, params["blocks"])[0] ** 2)

    def begin():
        state = init_train_state(params, tx, seed=0)
        return dataclasses.replace(state, params=sparse.masked(state.params, state.opt_state))

    step, state = compile_step(make_train_step(loss, tx, stochastic=False)), jax.jit(begin)()
    for n in range(4):
        state, _ = step(state, values[2, n % 2])
    return jax.device_get(state)


@cache
def plain() -> TrainState:
    return trained(jax.jit)


@cache
def on_wafer(devices: tuple[int, int]) -> TrainState:
    return trained(lambda step: wse.jit(step, wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=devices)))


def same_masks(a: TrainState, b: TrainState) -> bool:
    pairs = zip(sparse.masks_of(a.opt_state).values(), sparse.masks_of(b.opt_state).values(), strict=True)
    return all((one == other).all() for one, other in pairs)


def test_on_a_wafer_the_same_bits_on_every_device_mesh_and_the_masks_of_plain_jax(device_grid):
    assert same_bits(on_wafer(device_grid), on_wafer((1, 1))) and same_masks(on_wafer(device_grid), plain())


@pytest.mark.slow
def test_streamed_is_resident():
    cluster = wse.Cluster(wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(2, 2), devices=(1, 1)), 1)
    run = lambda execution: trained(lambda step: wse.jit(step, cluster, streamed_argnums=0, execution=execution))
    streamed = run("streamed")
    assert same_bits(streamed, run("resident")) and same_masks(streamed, plain())
