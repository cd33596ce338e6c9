"""Loss scaling: gradients too small for a 16-bit format are made larger with the loss, and small again in float32.

A wrapper round an optax transformation, whose state lives in that of the optimiser: checkpoints and resumed runs need nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32, PyTree

FLOOR = 2.0**-14
INTERVAL = 2000


class LossScaleState(NamedTuple):
    """scale: of the next step's loss. clean_steps: those with finite gradients since the scale last changed. skipped: all so far whose
    gradients were not finite. inner: state of the wrapped transformation."""

    scale: Float32[Array, ""]
    clean_steps: Int32[Array, ""]
    skipped: Int32[Array, ""]
    inner: optax.OptState


def loss_scaled(
    tx: optax.GradientTransformation, *, initial: float = 2.0**15, floor: float = FLOOR, ceiling: float = 2.0**15, interval: int = INTERVAL
) -> optax.GradientTransformationExtraArgs:
    """`tx`, to be given gradients of the loss times `loss_scale_of(state)`: `make_train_step` does so by itself.

    It divides them by the scale in float32. If one is not finite, `tx` is not asked: its state stays as it is, updates are zeros (negative
    ones, which leave even a parameter of -0.0 its bits), and the scale is halved, down to `floor`. After `interval` clean steps it is
    doubled, up to `ceiling`. With floor = initial = ceiling the scale is static; what is not finite is skipped all the same.

    Defaults are those of Cerebras' `GradScaler` (cerebras.pytorch.amp, release 2.1): it starts at its maximum, which is 2^15, or 2^31 with
    cbfloat16, and never goes below 2^-14. It doubles one step later, after 2001.

    Raises:
      ValueError: a scale that is no power of two (others would round), or not floor <= initial <= ceiling; an interval below 1.
    """
    for name, value in (("initial", initial), ("floor", floor), ("ceiling", ceiling)):
        if not 0 < value < math.inf or math.frexp(value)[0] != 0.5 or not -126 <= math.log2(value) <= 126:
            raise ValueError(f"{name}={value!r}: give a power of two from 2.0**-126 to 2.0**126, such as 2.0**15: others would round")
    if not floor <= initial <= ceiling:
        raise ValueError(f"initial={initial!r}: must lie from floor={floor!r} to ceiling={ceiling!r}")
    if interval < 1:
        raise ValueError(f"interval={interval!r}: give a number of steps, at least 1")
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> LossScaleState:
        zero = lambda: jnp.zeros((), jnp.int32)  # a buffer each, to be donated
        return LossScaleState(jnp.float32(initial), zero(), zero(), inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, LossScaleState]:
        grads = unscaled(updates, state.scale)
        finite = _all_finite(grads)
        found, new = inner.update(grads, state.inner, params, **extra)
        keep = lambda new, old: jnp.where(finite, new, old)
        doubles = finite & (state.clean_steps + 1 >= interval)
        scale = keep(jnp.where(doubles, jnp.minimum(state.scale * 2, ceiling), state.scale), jnp.maximum(state.scale / 2, floor))
        clean_steps = jnp.where(finite & ~doubles, state.clean_steps + 1, 0)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        found = jax.tree.map(lambda u: jnp.where(finite, u, jnp.asarray(-0.0, u.dtype)), found)
        return found, LossScaleState(scale, clean_steps, skipped, jax.tree.map(keep, new, state.inner))

    return optax.GradientTransformationExtraArgs(init, update)


def unscaled(grads: PyTree, scale: Float32[Array, ""]) -> PyTree:
    """Gradients of the loss from those of the loss times `scale`, in float32."""
    return jax.tree.map(lambda g: g.astype(jnp.float32) * (1.0 / scale), grads)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    found = jnp.bool_(True)
    for leaf in jax.tree.leaves(tree):
        found = found & jnp.isfinite(leaf).all()
    return found


def loss_scale_state(opt_state: PyTree) -> LossScaleState | None:
    """The state of loss scaling somewhere in an optimiser's, None where there is none.

    Raises:
      ValueError: there are two, which would both divide.
    """
    is_scale = lambda x: isinstance(x, LossScaleState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_scale) if is_scale(x)]
    if len(found) > 1 or (found and loss_scale_state(found[0].inner) is not None):
        raise ValueError("the optimiser's state has loss scaling twice: wrap the whole transformation once, outermost")
    return found[0] if found else None


def loss_scale_of(opt_state: PyTree) -> Float32[Array, ""]:
    """The factor for the next step's loss: 1.0 where there is no loss scaling."""
    state = loss_scale_state(opt_state)
    return jnp.float32(1.0) if state is None else state.scale


def skipped_steps_of(opt_state: PyTree) -> Int32[Array, ""]:
    """Steps so far that were skipped for gradients that were not finite: 0 where there is no loss scaling."""
    state = loss_scale_state(opt_state)
    return jnp.int32(0) if state is None else state.skipped


class GradientsNotFiniteError(FloatingPointError):
    """Gradients overflow although the loss scale is as small as it may be: smaller steps are needed, or wider numbers."""


def check_gradients(metrics: Mapping[str, Any], floor: float = FLOOR) -> None:
    """Look at a row of metrics on the host; nothing to see in a run without loss scaling.

    Raises:
      GradientsNotFiniteError: `grad_norm` is not finite at a `loss_scale` of `floor` or less.
    """
    if "loss_scale" in metrics and float(metrics["loss_scale"]) <= floor and not math.isfinite(float(metrics["grad_norm"])):
        at = f" of step {int(metrics['step'])}" if "step" in metrics else ""
        raise GradientsNotFiniteError(
            f"gradients{at} are not finite (norm {float(metrics['grad_norm'])}) at a loss scale of {float(metrics['loss_scale'])}, which "
            f"cannot go below {floor}: lower the learning rate, clip gradients, or train in bfloat16 or float32"
        )
