"""In which numbers a training run computes: policies by name. Master weights and the optimiser's state are float32 in all of them
(but see `Policy.stored`).

Models cast their weights to `config.dtype` in each layer, and keep norms' statistics, softmax, logits and losses in float32. A policy says
what that dtype is, and whether the loss is scaled. CB16 is no dtype of JAX: models compute in float16, and all that is float16 is emulated.

Cerebras' precision optimisation levels (POL; docs.cerebras.net, "Control numerical precision level") say how 16-bit numbers are added up.
`LEVELS` maps them to `Wafer(accumulate=...)`, which is (in a tile, from tile to tile):

- 0: all sums in float32.
- 1: in attention in float32, products in float32 and 16 bits mixed. Here: in a tile in float32, from tile to tile in 16 bits. Reductions
  of attention are float32 in our models in any case; its products follow the wafer, unless `wse.accumulating` says otherwise.
- 2: also attention is mixed, and its softmax is 16-bit. Here: sums are rounded in the tile, too; softmax stays float32, since the model
  decides it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from wsejax.compiler.emulate import emulated
from wsejax.kernels.formats import BFLOAT16, CB16, FLOAT16, Format, round_to

from .lossscale import loss_scaled

LEVELS: Mapping[int, str | tuple[str, str]] = {0: "float32", 1: ("float32", "operand"), 2: "operand"}

_FORMATS = {"bfloat16": BFLOAT16, "float16": FLOAT16}


@dataclasses.dataclass(frozen=True)
class Policy:
    """name: as `policy` knows it. compute_dtype: what a model's config.dtype takes. format: what its values of that dtype are emulated in,
    None for the dtype itself. initial_scale: of the loss, and its largest; None where the loss is not scaled."""

    name: str
    compute_dtype: str
    format: Format | None = None
    initial_scale: float | None = None

    def apply(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        """The loss to differentiate, of a model whose config.dtype is `compute_dtype`. What is float32 in `loss_fn` stays so."""
        return loss_fn if self.format is None else emulated(loss_fn, self.format, self.compute_dtype)

    def stored(self, params: PyTree, key: Key[Array, ""] | None) -> PyTree:
        """Float32 parameters as values of the format itself, for a run without float32 masters: `make_train_step(store=...)`. A key rounds
        at random, which keeps the mean of updates that are smaller than a step of the format; None rounds to nearest, which loses them.

        Raises ValueError where the format is float32.
        """
        kept = self.format or _FORMATS.get(self.name)
        if kept is None:
            raise ValueError(f"precision={self.name!r}: its parameters are float32 already; nothing is rounded")
        leaves, tree = jax.tree.flatten(params)
        keys = [None] * len(leaves) if key is None else jax.random.split(key, len(leaves))
        rounded = [round_to(x, kept, one) if x.dtype == jnp.float32 else x for x, one in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, rounded)

    def scaled(self, tx: optax.GradientTransformation, **options: Any) -> optax.GradientTransformation:
        """`tx`, with loss scaling if the format's range asks for it. options: of `loss_scaled`; without initial_scale they turn it on."""
        if self.initial_scale is None and not options:
            return tx
        start = self.initial_scale or 2.0**15
        return loss_scaled(tx, **{"initial": start, "ceiling": max(start, options.get("initial", start)), **options})


POLICIES: Mapping[str, Policy] = {
    one.name: one
    for one in (
        Policy("float32", "float32"),
        Policy("bfloat16", "bfloat16"),  # with the range of float32
        Policy("float16", "float16", initial_scale=2.0**15),
        Policy("cb16", "float16", CB16, initial_scale=2.0**31),
    )
}


def policy(name: str) -> Policy:
    """A policy by name: "float32", "bfloat16", "float16" or "cb16".

    Raises:
      ValueError: there is none of that name.
    """
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.4)
        raise ValueError(f"precision={name!r}: give one of {', '.join(POLICIES)}{f'; perhaps {near[0]!r}' if near else ''}")
    return POLICIES[name]
