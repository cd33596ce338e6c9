"""Networks and train steps that others wrote in flax NNX and published. Each maker imports its package when it is called."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gradients(model: nnx.Module, loss):
    """value_and_grad of loss(model, *data), as a function of the model's parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return jax.value_and_grad(lambda params, *data: loss(nnx.merge(graph, params, rest, copy=True), *data)), params


# ---- nnx-ppo: reinforcement learning -----------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """State of the environment below, with the fields that nnx-ppo asks for."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)


class ToTheMiddle:
    """A walk in a plane, rewarded for being near the middle; over when far off."""

    def at(self, place) -> Place:
        away = jnp.sum(place**2)
        return Place(place, jnp.exp(-2 * away), jnp.where(away > 4.0, 1.0, 0.0))

    def reset(self, key) -> Place:
        return self.at(jax.random.uniform(key, (2,), minval=-1.2, maxval=1.2))

    def step(self, state: Place, action) -> Place:
        return self.at(state.obs + 0.5 * jnp.clip(action, -1, 1))


def ppo():
    """A whole step of proximal policy optimisation: a rollout, advantages, two epochs of two minibatches of Adam."""
    from nnx_ppo.algorithms import ppo
    from nnx_ppo.networks.factories import make_mlp_actor_critic

    env = ToTheMiddle()
    networks = make_mlp_actor_critic(2, 2, [16, 16], [16], nnx.Rngs(0), activation="swish")
    state = ppo.new_training_state(env, networks, n_envs=8, seed=1, learning_rate=1e-3, gradient_clipping=1.0)

    def step(state):
        return ppo.ppo_step(env, state, 8, 5, 0.95, 0.97, 0.2, True, False, 2, 2)

    return step, (state,)


# ---- nmn: layers whose nonlinearity is a quotient -------------------------------------------------------------------------
def yat_classifier():
    from nmn.nnx import MultiHeadAttention, YatConv, YatNMN

    class Classifier(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = YatConv(3, 8, (3, 3), strides=(2, 2), rngs=rngs)
            self.attention = MultiHeadAttention(2, 8, rngs=rngs, decode=False)
            self.hidden, self.head = YatNMN(8, 24, rngs=rngs), nnx.Linear(24, 10, rngs=rngs)

        def __call__(self, x):
            x = self.conv(x)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            return self.head(self.hidden(x + self.attention(x)).mean(1))

    loss = lambda model, x, labels: optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()
    fun, params = gradients(Classifier(nnx.Rngs(0)), loss)
    return fun, (params, normal(4, 8, 8, 3), np.array([1, 0, 7, 9], np.int32))


# ---- jaxkan: Kolmogorov-Arnold networks ------------------------------------------------------------------------------------
def kan(layer: str, **parameters):
    """Physics-informed: the residual of the diffusion equation, through second derivatives of the network."""
    from jaxkan.models.KAN import KAN
    from jaxkan.pikan.pde import get_diffusion_res

    residual = get_diffusion_res()
    start = lambda model, at: model(at) - jnp.sin(jnp.pi * at[:, 1:])
    fun, params = gradients(
        KAN([2, 6, 1], layer, parameters),
        lambda model, inside, first: jnp.mean(residual(model, inside) ** 2) + jnp.mean(start(model, first) ** 2),
    )
    points = np.random.default_rng(1).uniform(-0.9, 0.9, (24, 2)).astype(np.float32)
    return fun, (params, points, points[:8] * np.array([0, 1], np.float32))


def chebyshev_kan():
    return kan("chebyshev", D=4)


def spline_kan():
    return kan("base", k=3, G=4)


# ---- bijx: normalizing flows --------------------------------------------------------------------------------------------------
def flow():
    """The log-likelihood of data under a coupling flow of rational-quadratic splines."""
    import bijx

    rngs = nnx.Rngs(0)
    spline = lambda rngs: bijx.MonotoneRQSpline(5, (), rngs=rngs)
    coupling = bijx.coupling_flow(4, spline, n_coupling_layers=2, width=16, depth=1, rngs=rngs)
    fun, params = gradients(
        bijx.Transformed(bijx.IndependentNormal((4,), rngs=rngs), coupling), lambda model, x: -model.log_density(x).mean()
    )
    return fun, (params, 0.5 * normal(12, 4))


# ---- heal-swin-nnx: Swin transformer V2 as a U-net -------------------------------------------------------------------------------
def swin():
    from heal_swin_nnx import SwinParams, SwinUnet

    shape = SwinParams(
        img_size=16, in_channels=3, out_channels=2, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 4), dtype="float32"
    )
    model = SwinUnet(shape, rngs=nnx.Rngs(0))
    model.eval()
    fun, params = gradients(model, lambda model, x, y: jnp.mean((model(x) - y) ** 2))
    return fun, (params, normal(2, 16, 16, 3), normal(2, 16, 16, 2, seed=1))
