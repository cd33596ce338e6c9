"""Distillation: a student learns the distribution that a teacher has of the next token, beside the text's own tokens or in their place.

Hinton, Vinyals and Dean 2015 ("Distilling the knowledge in a neural network", arXiv:1503.02531), section 2: both distributions are softened
by a temperature T, and since gradients of the soft loss fall as 1 / T^2, it counts T^2 times. The soft loss is here the divergence instead
of the cross-entropy, which is more by the teacher's entropy: gradients are the same, and a student that is the teacher has loss 0. The
reverse divergence is that of Gu et al. 2024 ("MiniLLM", arXiv:2306.08543): a student too small for all that the teacher does keeps to what
is likeliest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from .objectives import cross_entropy

Divergence = Literal["forward", "reverse"]
Metrics = dict[str, Float[Array, ""]]


def check_distillation(temperature: float, soft_weight: float, divergence: str) -> None:
    """Raises ValueError for what is no such loss."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be above 0; 1 leaves the distributions as they are, more softens them")
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"soft_weight={soft_weight}: give the teacher's share of the loss, 0 to 1")
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence={divergence!r}: give one of {', '.join(get_args(Divergence))}")


def distillation_loss(
    student: Float[Array, "batch time vocab"],
    teacher: Float[Array, "batch time vocab"],
    targets: Int32[Array, "batch time"],
    weights: Float32[Array, "batch time"] | None = None,
    *,
    temperature: float = 1.0,
    soft_weight: float = 0.5,
    divergence: Divergence = "forward",
) -> tuple[Float[Array, ""], Metrics]:
    """soft_weight T^2 KL + (1 - soft_weight) cross-entropy, a mean over tokens in nats.

    student, teacher: logits of one vocabulary. No gradient reaches the teacher's.
    weights: of each token in the means, not all 0; None: all alike.
    divergence: "forward" is KL(teacher || student), "reverse" KL(student || teacher), both at the temperature T.

    The metrics: `soft_loss` (T^2 KL), `hard_loss` (the cross-entropy), and `agreement`, the share of tokens for which both find the same
    likeliest. Raises ValueError for vocabularies of different sizes, and for numbers as `check_distillation`.
    """
    check_distillation(temperature, soft_weight, divergence)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student has a vocabulary of {student.shape[-1]}, and the teacher one of {teacher.shape[-1]}: give both the same"
        )
    teacher = jax.lax.stop_gradient(teacher)
    soft, wanted = (jax.nn.log_softmax(logits.astype(jnp.float32) / temperature) for logits in (student, teacher))
    one, other = (wanted, soft) if divergence == "forward" else (soft, wanted)
    mean = (lambda x: x.mean()) if weights is None else lambda x: (x * weights).sum() / weights.sum()
    soft_loss = temperature**2 * mean((jnp.exp(one) * (one - other)).sum(-1))
    hard_loss = cross_entropy(student.astype(jnp.float32), targets, weights)
    agreement = mean((jnp.argmax(student, -1) == jnp.argmax(teacher, -1)).astype(jnp.float32))
    metrics = {"soft_loss": soft_loss, "hard_loss": hard_loss, "agreement": agreement}
    return soft_weight * soft_loss + (1 - soft_weight) * hard_loss, metrics


def distilled(
    student: Callable[[Any, Any, Any], tuple[Array, Array | None]],
    teacher: Callable[[Any, Any], Array],
    *,
    temperature: float = 1.0,
    soft_weight: float = 0.5,
    divergence: Divergence = "forward",
) -> Callable[[Any, Any, Any, Any], tuple[Float[Array, ""], Metrics]]:
    """loss(params, the teacher's parameters, batch, key) -> (loss, metrics), of which the first argument alone is trained.

    student(params, batch, key) -> logits, and what else is added to the loss (a mixture's load balancing) or None. teacher(params, batch)
    -> logits. batch has `targets`, and `weights` where not all tokens count. The teacher's parameters are an argument and no constants of
    the program: inside a step of (state, frozen, batch), `make_train_step(..., has_aux=True)` takes
    `lambda params, batch, key: loss(params, frozen, batch, key)`. Raises ValueError as `distillation_loss`.
    """
    check_distillation(temperature, soft_weight, divergence)

    def loss(params: Any, frozen: Any, batch: Any, key: Any) -> tuple[Float[Array, ""], Metrics]:
        logits, more = student(params, batch, key)
        wanted = teacher(jax.lax.stop_gradient(frozen), batch)
        how: Any = dict(temperature=temperature, soft_weight=soft_weight, divergence=divergence)
        value, metrics = distillation_loss(logits, wanted, batch["targets"], batch.get("weights"), **how)
        return (value if more is None else value + more), metrics

    return loss
