"""An exponential moving average of the parameters, kept beside the optimiser's own state: checkpoints and resumed runs have it unasked."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PyTree


class EmaState(NamedTuple):
    """count: updates so far. missing: how much the weights of the average fall short of 1. average: float32 at least."""

    count: Int32[Array, ""]
    missing: Float[Array, ""]
    average: PyTree
    inner: PyTree


def with_ema(
    tx: optax.GradientTransformation, decay: float, *, start: Literal["debias", "warmup"] = "debias"
) -> optax.GradientTransformationExtraArgs:
    """`tx`, and after each update average = decay average + (1 - decay) parameters. What `tx` does is unchanged. Wrap it round everything
    else that changes updates, so that what is averaged are the parameters that come out.

    start: debias: the average begins at 0 and is divided by the sum of its weights, as Adam does. warmup: it begins at the first
    parameters, with a decay of min(decay, (1 + n) / (10 + n)) at update n, as TensorFlow's `ExponentialMovingAverage` has it.

    Raises:
      ValueError: a decay outside 0 to 1, an unknown start; from update, where it is given no parameters.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay!r}: must be at least 0 and below 1")
    if start not in ("debias", "warmup"):
        raise ValueError(f"start={start!r}: unknown; known are debias, warmup")
    inner, debias = optax.with_extra_args_support(tx), start == "debias"

    def init(params: PyTree) -> EmaState:
        first = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)) if debias else p.astype(_wide(p)), params)
        return EmaState(jnp.zeros((), jnp.int32), jnp.float32(debias), first, inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, EmaState]:
        if params is None:
            raise ValueError("params=None: an average of parameters needs them; give update(updates, state, params)")
        updates, after = inner.update(updates, state.inner, params, **extra)
        n = state.count.astype(jnp.float32)
        keep = jnp.float32(decay) if debias else jnp.minimum(decay, (1 + n) / (10 + n))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p.astype(a.dtype), state.average, new)
        return updates, EmaState(state.count + 1, state.missing * keep, average, after)

    return optax.GradientTransformationExtraArgs(init, update)


def ema_of(opt_state: PyTree, params: PyTree) -> PyTree:
    """The average, in the dtypes of `params`; `params` themselves before the first update of one that begins at 0.

    Raises:
      ValueError: a state that keeps none, or several.
    """
    is_one = lambda x: isinstance(x, EmaState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]
    if len(found) != 1:
        raise ValueError(f"opt_state has {len(found)} averages of parameters; give the state of one `with_ema`")
    state = found[0]
    begun = state.missing < 1
    whole = jnp.where(begun, 1 - state.missing, 1)
    return jax.tree.map(lambda a, p: jnp.where(begun, (a / whole).astype(p.dtype), p), state.average, params)


def _wide(p: Any) -> Any:
    return jnp.promote_types(p.dtype, jnp.float32)
