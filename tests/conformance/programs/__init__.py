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
    dtype: the coarsest that it computes in."""

    make: Callable[[], tuple[Callable, tuple[Any, ...]]]
    steps: int = 1
    dtype: Any = jnp.float32


PROGRAMS = {
    "gpt, odd sizes": Program(gpt.odd, steps=2),
    "gpt, even sizes": Program(gpt.even, steps=2),
    "encoder with padding": Program(encoder.fill_in),
    "encoder-decoder": Program(seq2seq.train, steps=2),
    "experts by products": Program(moe.products, steps=2),
    "experts by scatter": Program(moe.scatter, steps=2),
    "greedy decoding": Program(decode.greedy),
    "resnet": Program(resnet.train, steps=2),
    "mamba by scan": Program(mamba.scan),
    "mamba by associative scan": Program(mamba.associative),
    "mlp with adam": Program(mlp.adam, steps=2),
    "mlp with muon": Program(mlp.muon, steps=2),
    "mlp in bfloat16": Program(mlp.bfloat16, steps=2, dtype=jnp.bfloat16),
    "mlp in float16": Program(mlp.float16, steps=2, dtype=jnp.float16),
    "ridge by conjugate gradients": Program(ridge.conjugate_gradients),
    "ridge by solve": Program(ridge.solve),
    "ridge by cholesky": Program(ridge.cholesky),
    "k-means in a while loop": Program(kmeans.while_loop),
    "k-means in a for loop": Program(kmeans.fori_loop),
    "heat by slices": Program(heat.slices),
    "heat by slices, odd sizes": Program(heat.odd_slices),
    "heat by rolls": Program(heat.rolls),
    "heat by convolution": Program(heat.convolution),
    "heat backwards": Program(heat.sensitivity),
    "poisson by complex transforms": Program(poisson.complex_transforms),
    "poisson by real transforms": Program(poisson.real_transforms),
    "nucleus filter": Program(sorting.nucleus),
    "ranking": Program(sorting.ranking),
    "histogram equalisation": Program(sorting.equalisation),
}
