"""A small ResNet with batch norm, strided convolutions, a max pool and an average pool. The train step takes and gives the
model and the optimiser themselves, which flax NNX makes pytrees."""

from __future__ import annotations

import jax
import numpy as np
import optax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, ins: int, outs: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(ins, outs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(outs, outs, (3, 3), use_bias=False, rngs=rngs)
        self.norm1, self.norm2 = nnx.BatchNorm(outs, rngs=rngs), nnx.BatchNorm(outs, rngs=rngs)
        self.shortcut = nnx.Conv(ins, outs, (1, 1), strides=stride, rngs=rngs) if (ins, stride) != (outs, 1) else None

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu((x if self.shortcut is None else self.shortcut(x)) + self.norm2(self.conv2(y)))


class ResNet(nnx.Module):
    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (5, 5), rngs=rngs)
        self.blocks = nnx.List([Block(8, 8, 1, rngs), Block(8, 16, 2, rngs)])
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.mean((1, 2)))


def step(state, images, labels):
    model, optimiser = state

    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (value, logits), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    optimiser.update(model, grads)
    return (model, optimiser), {"loss": value, "right": (logits.argmax(-1) == labels).mean()}


def train():
    model = jax.jit(lambda: ResNet(10, nnx.Rngs(0)))()
    optimiser = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9, nesterov=True), wrt=nnx.Param)
    r = np.random.default_rng(4)
    return step, ((model, optimiser), r.standard_normal((4, 16, 16, 3)).astype(np.float32), r.integers(0, 10, 4, np.int32))
