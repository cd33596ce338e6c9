"""An optimiser of sparse weights round one of dense weights.

Laws:
* where a mask is False the parameter is exactly 0 after each step, and so is all that the optimiser holds of it;
* the inner optimiser sees parameters and gradients with zeros where masks are False: norms that it clips by are of what is left;
* masks change before a step's update, at their group's steps alone; what comes back begins at 0, with nothing known of it;
* everything is in the state and follows from it: the draws of a step from the key and the step's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt32

from .groups import Group
from .plan import Plan, path_name, plan
from .select import NEVER, best, chance, even, magnitude


class SparseState(NamedTuple):
    """masks: as the parameters, bool of the same shape where they are pruned, else `optax.MaskedNode`. count: int32, updates done.
    key: uint32[2], a key's data. inner: the state of the optimiser inside."""

    masks: PyTree
    count: Int32[Array, ""]
    key: UInt32[Array, "2"]
    inner: PyTree


def sparsify(tx: optax.GradientTransformation, *groups: Group, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """`tx` for parameters that `groups` keep sparse. Begin with `masked(params, opt_state)`: the gradients that come are of a loss at
    parameters that have their zeros, and dense.

    Moments of an optimiser that have other shapes than the parameters (adafactor's rows and columns) are left as they are.

    Raises:
      ValueError: there is no group; from `init`, what the groups ask does not fit the parameters.
    """
    if not groups:
        raise ValueError("groups: give at least one, such as static('blocks/mlp/.*/kernel', 0.9)")
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> SparseState:
        data = jax.random.key_data(jax.random.key(seed))
        leaves = _by_path(params)
        masks: dict[str, Array] = {}
        for group, members in zip(groups, plan(groups, params), strict=True):
            masks |= {path: _first(group, p, leaves[path], _draws(data, 0)) for path, p in members.items()}
        tree = _tree(params, masks)
        return SparseState(tree, jnp.zeros((), jnp.int32), data, tx.init(_zeroed(params, tree)))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, SparseState]:
        if params is None:
            raise ValueError("params=None: sparsify needs the parameters; call update(grads, state, params)")
        masks = _tree(params, _changed(groups, state, params, updates))
        found, inner = tx.update(_zeroed(updates, masks), state.inner, _zeroed(params, masks), **extra)
        inner = _forgotten(inner, masks, params)
        # p + -p is 0 exactly, whatever dtype the update has
        found = jax.tree.map(lambda u, mask, p: u if _no_mask(mask) else jnp.where(mask, u, -p), found, masks, params)
        return found, SparseState(masks, jnp.asarray(optax.safe_increment(state.count)), state.key, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def masked(params: PyTree, opt_state: PyTree) -> PyTree:
    """`params` with zeros where the masks in `opt_state` are False. Raises ValueError where there are no masks."""
    return _zeroed(params, _state_of(opt_state).masks)


def masks_of(opt_state: PyTree) -> dict[str, Bool[Array, "..."]]:
    """The masks by the paths of their parameters, wherever in an optimiser's state they are. Raises ValueError where there are none."""
    return _by_path(_state_of(opt_state).masks)


def sparsity_of(opt_state: PyTree) -> dict[str, Float[Array, ""]]:
    """What share is pruned now: float32 of each parameter by its path, and of all of them together as "all". Raises ValueError where there
    are no masks."""
    masks = masks_of(opt_state)
    zeros = {path: jnp.sum(~mask, dtype=jnp.int32).astype(jnp.float32) for path, mask in masks.items()}
    shares = {path: zeros[path] / mask.size for path, mask in masks.items()}
    return {**shares, "all": sum(zeros.values(), jnp.float32(0)) / sum(mask.size for mask in masks.values())}


def _state_of(opt_state: PyTree) -> SparseState:
    is_ours = lambda x: isinstance(x, SparseState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(x)]
    if not found:
        raise ValueError("opt_state: holds no masks; make it with an optimiser of sparsify(tx, ...)")
    return found[0]


def _by_path(tree: PyTree) -> dict[str, Array]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _tree(params: PyTree, masks: Mapping[str, Array]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: masks.get(path_name(path), optax.MaskedNode()), params)


def _no_mask(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _zero(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _zeroed(tree: PyTree, masks: PyTree) -> PyTree:
    return jax.tree.map(lambda x, mask: x if _no_mask(mask) else _zero(x, mask), tree, masks)


def _forgotten(inner: PyTree, masks: PyTree, params: PyTree) -> PyTree:
    """`inner` with zeros where a mask is False. What belongs to a parameter is where a path ends in the parameter's, and has its shape:
    optimisers keep such trees, whole or with holes, at any depth."""
    known, flags = _by_path(params), _by_path(masks)

    def forget(path: tuple, x: Array) -> Array:
        names = [path_name(path[n:]) for n in range(len(path))]
        mask = flags.get(next((name for name in names if name in known), ""))
        return x if mask is None or x.shape != mask.shape else _zero(x, mask)

    return jax.tree_util.tree_map_with_path(forget, inner)


def _draws(data: Array, number: Array | int) -> Array:
    """The key of the masks at first (0), or of the step `number` - 1."""
    return jax.random.fold_in(jax.random.wrap_key_data(data), number)


def _first(group: Group, p: Plan, weights: Array, key: Array) -> Bool[Array, "..."]:
    shape, axes = group.structure.cells(p.shape, p.stack)
    if group.first == "magnitude":
        score = group.structure.fold(magnitude(weights), p.stack)
    elif group.first == "random":
        score = chance(jax.random.fold_in(key, p.number), shape)
    else:
        score = even(shape)
    return group.structure.spread(best(score, p.first, axes), p.shape, p.stack)


def _changed(groups: tuple[Group, ...], state: SparseState, params: PyTree, grads: PyTree) -> dict[str, Array]:
    """All masks as this step has them."""
    masks, weights, slopes = _by_path(state.masks), _by_path(params), _by_path(grads)
    changed = dict(masks)
    for group, members in zip(groups, plan(groups, params), strict=True):
        if not group.steps:
            continue
        now = jnp.asarray(group.steps, jnp.int32) == state.count
        key = _draws(state.key, state.count + 1) if group.grow == "random" else None

        def change(group=group, members=members, now=now, key=key) -> dict[str, Array]:
            return {path: _next(group, p, now, key, masks[path], weights[path], slopes[path]) for path, p in members.items()}

        def keep(members=members) -> dict[str, Array]:
            return {path: masks[path] for path in members}

        changed |= lax.cond(now.any(), change, keep)
    return changed


def _next(group: Group, p: Plan, now: Array, key: Array | None, mask: Array, weights: Array, slope: Array) -> Bool[Array, "..."]:
    structure = group.structure
    shape, axes = structure.cells(p.shape, p.stack)
    at = lambda table: jnp.sum(jnp.where(now, jnp.asarray(table), 0), dtype=jnp.int32)
    chosen = best(structure.fold(jnp.where(mask, magnitude(weights), NEVER), p.stack), at(p.survive), axes)
    if (p.kept > p.survive).any():
        score = structure.fold(magnitude(slope), p.stack) if key is None else chance(jax.random.fold_in(key, p.number), shape)
        chosen |= best(jnp.where(chosen, NEVER, score), at(p.kept - p.survive), axes)
    return structure.spread(chosen, p.shape, p.stack)
