"""Gradients of a batch in micro-batches, one after the other: the mean of the whole batch, also where micro-batches weigh unlike.

A mean of means is the mean only where all have the same number of terms. Texts of different lengths, masked bytes or padding have not, so
each micro-batch counts by its weight (the number of its targets, say).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .noise import noise_metrics

LossFn = Callable[[PyTree, PyTree, Any], Any]
Squares = Callable[[PyTree], Mapping[str, Float[Array, ""]]]


def value_and_grad(
    loss_fn: LossFn,
    *,
    micro_batches: int,
    weigh: Callable[[PyTree], Float[Array, ""]],
    has_aux: bool = False,
    squares: Squares | None = None,
) -> Callable[[PyTree, PyTree, Any], tuple[tuple[Float[Array, ""], Any], PyTree]]:
    """`f(params, batch, key) -> ((loss, aux), gradients)`, up to rounding those of `jax.value_and_grad` on the whole batch.

    The batch is cut along the leading axis of its arrays; row r goes to micro-batch r % micro_batches. Activations are those of one
    micro-batch at a time. Sums are kept in float32 at least, and gradients given in the dtypes of the parameters.

    Args:
      loss_fn: (params, batch, key) -> float scalar, the mean over what `weigh` counts in that batch; with has_aux (that, a pytree of
        further such means). A micro-batch of weight 0 counts for nothing, even where its own mean is not a number; if all weigh 0, the
        result is not a number either.
      micro_batches: how many; must divide the leading axis.
      weigh: batch -> float32 scalar, 0 or more: the weight of this batch's means, such as the number of its targets.
      squares: gradients -> squared norms by name, such as `noise.squared_norms`. Their signal and noise (`noise.noise_metrics`) then
        come with aux, which is a dict.

    Returns:
      f. aux is {} without has_aux. key, which may be None, gives each of several micro-batches a key of its own. With one micro-batch
      f is `jax.value_and_grad`, bit for bit.

    Raises:
      ValueError: micro_batches below 1, or below 2 with squares; from f: a batch that micro_batches does not divide, a weight that is
        no scalar.
    """
    least = 1 if squares is None else 2
    if micro_batches < least:
        raise ValueError(f"micro_batches={micro_batches}: give at least {least}" + (", to compare gradients" if squares else ""))
    of_one = jax.value_and_grad(loss_fn if has_aux else lambda *args: (loss_fn(*args), {}), has_aux=True)
    if micro_batches == 1:
        return lambda params, batch, key=None: of_one(params, batch, key)

    def of_all(params: PyTree, batch: PyTree, key: Any = None) -> tuple[tuple[Float[Array, ""], Any], PyTree]:
        pieces = jax.tree.map(lambda x: _cut(x, micro_batches), batch)
        weights = jax.vmap(weigh)(pieces).astype(jnp.float32)
        if weights.shape != (micro_batches,):
            raise ValueError(f"weigh: gives an array of shape {weights.shape[1:]} for a micro-batch; give a scalar")
        total = weights.sum()
        shares = weights / total
        keys = None if key is None else jax.random.split(key, micro_batches)

        def one(params: PyTree, piece: PyTree, key: Any) -> tuple[PyTree, Mapping[str, Float[Array, ""]]]:
            found, gradients = of_one(params, piece, key)
            return (found, gradients), {} if squares is None else squares(gradients)

        def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
            piece, share, key = part
            # a share is not a number where all are 0, and then so is the sum
            weighted = lambda s, x: s + jnp.where(share == 0, 0, share.astype(s.dtype) * x.astype(s.dtype))
            return jax.tree.map(weighted, sums, one(params, piece, key)), None

        parts = (pieces, shares, keys)
        shapes = jax.eval_shape(one, params, *jax.tree.map(lambda x: jax.eval_shape(lambda x: x[0], x), (pieces, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
        sums, _ = jax.lax.scan(add, zeros, parts)
        ((loss, aux), gradients), small = jax.tree.map(lambda s, x: s.astype(x.dtype), sums, shapes)
        if squares is not None:
            aux = {**aux, **noise_metrics(small, squares(gradients), total / (weights > 0).sum(), total)}
        return (loss, aux), gradients

    return of_all


def count_targets(batch: Mapping[str, Any]) -> Float[Array, ""]:
    """What `objectives.cross_entropy` takes the mean over: the sum of `weights`, or where there are none the number of `targets`."""
    weights = batch.get("weights")
    return jnp.float32(batch["targets"].size) if weights is None else weights.astype(jnp.float32).sum()


def _cut(x: Any, micro_batches: int) -> Any:
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[0] % micro_batches:
        size = "a scalar" if x.ndim == 0 else f"a leading axis of {x.shape[0]}"
        raise ValueError(
            f"batch has an array with {size}, which micro_batches={micro_batches} does not divide; pad it with rows of weight 0"
        )
    # strided, so that rows which lie apart (on tiles, on wafers) stay where they are
    return jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0)
