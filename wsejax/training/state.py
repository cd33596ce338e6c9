"""The state of a training run and the pure function that advances it by one step.

Everything here is plain pytrees and pure functions: what `jax.jit` takes, `wse.jit` takes, and what orbax saves,
plain flax reads back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, serialization
from jaxtyping import Array, Float, Int32, PyTree, UInt32

from .accumulate import Squares, count_targets, value_and_grad
from .lossscale import loss_scale_state, skipped_steps_of, unscaled

Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[PyTree, PyTree, Any], Any]
_STORE = 0x57  # draws of `store` are apart from the loss's
TrainStep = Callable[["TrainState", PyTree], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs besides its place in the data.

    params: nested dict of arrays. opt_state: what `tx.init(params)` gave. step: int32 scalar, updates done so far.
    rng: uint32[2], the seed key's data (plain numbers, so that any reader of the checkpoint understands them).
    """

    params: PyTree
    opt_state: PyTree
    step: Int32[Array, ""]
    rng: UInt32[Array, "2"]


_FIELDS = ("params", "opt_state", "step", "rng")


def _to_dict(state: TrainState) -> dict[str, Any]:
    return {name: serialization.to_state_dict(getattr(state, name)) for name in _FIELDS}


def _from_dict(state: TrainState, saved: dict[str, Any]) -> TrainState:
    fields: Any = {name: serialization.from_state_dict(getattr(state, name), saved[name], name) for name in _FIELDS}
    return TrainState(**fields)


serialization.register_serialization_state(TrainState, _to_dict, _from_dict)


def init_train_state(params: PyTree, tx: optax.GradientTransformation, *, seed: int) -> TrainState:
    """The state before the first step. `seed` feeds every random draw of the steps (dropout), never the
    parameters."""
    rng = jax.random.key_data(jax.random.key(seed))
    return TrainState(params=params, opt_state=tx.init(params), step=jnp.zeros((), jnp.int32), rng=rng)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule | None = None,
    stochastic: bool = True,
    has_aux: bool = False,
    micro_batches: int = 1,
    weigh: Callable[[PyTree], Float[Array, ""]] = count_targets,
    squares: Squares | None = None,
    store: Callable[[PyTree, Any], PyTree] | None = None,
) -> TrainStep:
    """A pure `step(state, batch) -> (state, metrics)`.

    loss_fn(params, batch, key) -> float scalar; key is a typed PRNG key that depends on the seed and the step alone,
    so a resumed run draws what the uninterrupted one drew. With stochastic=False the key is None and no key is
    derived.
    has_aux: loss_fn returns (loss, dict of further float scalars to report).
    learning_rate: the schedule that `tx` follows, only to report it.
    micro_batches, weigh, squares: as of `accumulate.value_and_grad`; with squares, metrics tell of the gradient noise.
    store: (parameters, key) -> parameters, done to what an update gives, such as `Policy.stored`.
    metrics, float32 scalars of this step's batch before the update: `loss`, `grad_norm` (global L2 norm, before
    clipping) and, where the schedule is given, `learning_rate`. Where `tx` scales the loss (`loss_scaled`), these are
    of the loss as it is; `loss_scale` is the factor that was taken, `skipped_steps` counts the steps so far without an
    update, and the schedule goes by those with one.
    """

    accumulate = partial(value_and_grad, micro_batches=micro_batches, weigh=weigh, has_aux=True)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step) if stochastic else None
        scaling = loss_scale_state(state.opt_state)

        def scaled_loss(params: PyTree, *others: Any) -> tuple[Any, Any]:
            loss, more = loss_fn(params, *others) if has_aux else (loss_fn(params, *others), {})
            return loss if scaling is None else loss.astype(jnp.float32) * scaling.scale, {"loss": loss, **more}

        measure = squares
        if squares is not None and scaling is not None:
            measure = lambda grads, of=squares: of(unscaled(grads, scaling.scale))
        (_, told), grads = accumulate(scaled_loss, squares=measure)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if store is not None:
            params = store(params, jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(state.rng), _STORE), state.step))
        taken = state.step
        if scaling is not None:
            grads, taken = unscaled(grads, scaling.scale), state.step - scaling.skipped
        metrics = {**told, "grad_norm": optax.tree.norm(grads)}
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(taken), jnp.float32)
        if scaling is not None:
            skipped = skipped_steps_of(opt_state).astype(jnp.float32)
            metrics |= {"loss_scale": scaling.scale, "skipped_steps": skipped}
        return TrainState(params=params, opt_state=opt_state, step=state.step + 1, rng=state.rng), metrics

    return step


def split_model(model: nnx.Module) -> tuple[Callable[..., Any], PyTree]:
    """A flax NNX module as (apply, params): `apply(params, *args, **kwargs)` is pure and equals `model(*args,
    **kwargs)`.

    params is a nested dict of arrays, keyed as the module's attributes are. What is not an `nnx.Param` is held fixed.
    Works on an abstract model (`nnx.eval_shape`) too: params are then `jax.ShapeDtypeStruct`.
    """
    graph, variables, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(variables)

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        filled = jax.tree.map(lambda v: v, variables)  # replace_by_pure_dict writes into the State it is given
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, rest)(*args, **kwargs)

    return apply, params


def abstract_like(tree: PyTree, shardings: PyTree) -> PyTree:
    """`tree` as `jax.ShapeDtypeStruct`s that carry `shardings` (one sharding for all leaves, or a pytree of the same
    structure)."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def next_token_loss(logits: Float[Array, "batch time vocab"], targets: Int32[Array, "batch time"]) -> Float[Array, ""]:
    """Mean cross-entropy in nats per token."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
