"""Programs as anybody writes them in JAX, flax and optax: none knows of the wafer. One file per domain.

A program is made by a function that gives the function to run and its arguments. One that trains takes its state first and gives
the new state first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tests.conformance.programs import decode, encoder, gpt, heat, kmeans, mamba, mlp, moe, poisson, resnet, ridge, seq2seq, sorting


@dataclasses.dataclass(frozen=True)
class Program:
    """make() -> (function, arguments). steps: how often it is run, the first result taking the first argument's place.
    dtype: the coarsest that it computes in. seconds: what one compilation takes, roughly, which decides how much of it is not slow."""

    make: Callable[[], tuple[Callable, tuple[Any, ...]]]
    steps: int = 1
    dtype: Any = jnp.float32
    seconds: int = 5


PROGRAMS = {
    "gpt, odd sizes": Program(gpt.odd, steps=2, seconds=15),
    "gpt, even sizes": Program(gpt.even, steps=2, seconds=20),
    "encoder with padding": Program(encoder.fill_in, seconds=10),
    "encoder-decoder": Program(seq2seq.train, steps=2, seconds=15),
    "experts by products": Program(moe.products, steps=2),
    "experts by scatter": Program(moe.scatter, steps=2),
    "greedy decoding": Program(decode.greedy),
    "resnet": Program(resnet.train, steps=2, seconds=15),
    "mamba by scan": Program(mamba.scan),
    "mamba by associative scan": Program(mamba.associative),
    "mlp with adam": Program(mlp.adam, steps=2),
    "mlp with muon": Program(mlp.muon, steps=2),
    "mlp in bfloat16": Program(mlp.bfloat16, steps=2, dtype=jnp.bfloat16),
    "mlp in float16": Program(mlp.float16, steps=2, dtype=jnp.float16),
    "ridge by conjugate gradients": Program(ridge.conjugate_gradients, seconds=1),
    "ridge by solve": Program(ridge.solve, seconds=1),
    "ridge by cholesky": Program(ridge.cholesky, seconds=1),
    "k-means in a while loop": Program(kmeans.while_loop, seconds=1),
    "k-means in a for loop": Program(kmeans.fori_loop, seconds=1),
    "heat by slices": Program(heat.slices, seconds=1),
    "heat by slices, odd sizes": Program(heat.odd_slices, seconds=1),
    "heat by rolls": Program(heat.rolls, seconds=1),
    "heat by convolution": Program(heat.convolution, seconds=1),
    "heat backwards": Program(heat.sensitivity, seconds=1),
    "poisson by complex transforms": Program(poisson.complex_transforms, seconds=1),
    "poisson by real transforms": Program(poisson.real_transforms, seconds=1),
    "nucleus filter": Program(sorting.nucleus, seconds=1),
    "ranking": Program(sorting.ranking, seconds=1),
    "histogram equalisation": Program(sorting.equalisation, seconds=1),
}
