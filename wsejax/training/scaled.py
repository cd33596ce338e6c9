"""Learning rates that differ from parameter to parameter."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import PyTree


def scale_by_tree(multipliers: PyTree[float]) -> optax.GradientTransformation:
    """Every update times its number; where that is 1, the update itself.

    multipliers: floats in the structure of the parameters, such as `models.mup.learning_rates` gives. Its place is after what normalises
    gradients (`optax.scale_by_adam`) and before decoupled weight decay (`optax.add_decayed_weights`), which then shrinks all parameters by
    the same share a step, whatever their numbers. Has no state.

    Raises:
      ValueError: (in `init`) parameters of another structure.
    """

    def init(params: PyTree) -> optax.EmptyState:
        given, wanted = (_paths(tree) for tree in (multipliers, params))
        if given != wanted:
            missing, unknown = sorted(wanted - given), sorted(given - wanted)
            raise ValueError(f"multipliers: missing {missing or 'none'}, of no parameter {unknown or 'none'}; give one for each parameter")
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        return jax.tree.map(lambda number, update: update if number == 1.0 else update * number, multipliers, updates), state

    return optax.GradientTransformation(init, update)


def _paths(tree: PyTree) -> set[str]:
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
