"""Learning from preferences without a reward model: DPO (Rafailov et al. 2023), its label smoothing, and IPO (Azar et al. 2023).

A pair is two responses to one prompt, of which one was chosen. What counts is by how much more the trained policy favours it than a fixed
reference does: the margin, (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Kind = Literal["sigmoid", "ipo"]


def response_log_probability(
    logits: Float[Array, "batch time vocab"], targets: Int[Array, "batch time"], weights: Float[Array, "batch time"]
) -> Float[Array, " batch"]:
    """log p(response | prompt) of each sequence, in nats: the sum over the targets whose weight is 1."""
    return -(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights).sum(axis=1)


def preference_loss(
    chosen: Float[Array, " pairs"],
    rejected: Float[Array, " pairs"],
    reference_chosen: Float[Array, " pairs"],
    reference_rejected: Float[Array, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: Kind = "sigmoid",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean loss over pairs, and means that tell how training goes.

    Args:
      chosen, rejected: log-probabilities of the responses under the policy, in nats.
      reference_chosen, reference_rejected: the same under the reference.
      beta: how closely the policy is held to the reference. With "sigmoid" the loss is -log sigmoid(beta margin); with "ipo" it is
        (margin - 1 / (2 beta))^2, which does not go on pushing pairs apart.
      label_smoothing: the share of labels that may be wrong way round (cDPO, Mitchell 2023); of "sigmoid" alone.

    Returns:
      The loss, and `chosen_reward` and `rejected_reward` (beta (log p - log p_ref)), `margin` (of the rewards) and `accuracy` (the share
      of pairs in which the chosen one has the greater reward).

    Raises:
      ValueError: `beta` is not above 0, `label_smoothing` not in [0, 0.5), or given with "ipo".
    """
    check_preference(beta, label_smoothing, kind)
    rewards = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    margin = rewards[0] - rewards[1]
    if kind == "ipo":
        losses = (margin / beta - 0.5 / beta) ** 2
    else:
        losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)
    metrics = {
        "chosen_reward": rewards[0].mean(),
        "rejected_reward": rewards[1].mean(),
        "margin": margin.mean(),
        "accuracy": (margin > 0).astype(jnp.float32).mean(),
    }
    return losses.mean(), metrics


def check_preference(beta: float, label_smoothing: float, kind: Kind) -> None:
    """Raises ValueError for what `preference_loss` cannot be told."""
    if not beta > 0:
        raise ValueError(f"beta={beta}: must be above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: a share of wrong labels is at least 0 and below 0.5")
    if kind == "ipo" and label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing}: IPO has none; leave it out, or take kind='sigmoid'")
