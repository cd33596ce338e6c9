"""What a batch size buys, and what must change with it: the trade-off of steps and examples, rules for learning rates, warm-ups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optax
from scipy.optimize import least_squares

Rule = Literal["constant", "linear", "sqrt", "noise"]


@dataclass(frozen=True)
class TradeOff:
    """Steps S and examples E to the same loss, (S / S_min - 1) (E / E_min - 1) = 1 (McCandlish et al. 2018, section 2).

    Attributes:
      least_steps: S_min, with batches as large as one likes.
      least_examples: E_min, with batches as small as one likes. Examples are counted in the unit of the batch sizes.
      relative_error: standard error of `critical_batch` over it; not a number with two runs, which any such curve passes through.
    """

    least_steps: float
    least_examples: float
    relative_error: float = math.nan

    @property
    def critical_batch(self) -> float:
        """B_crit = E_min / S_min: twice the least steps, with twice the least examples."""
        return self.least_examples / self.least_steps

    def steps(self, batch: Any) -> Any:
        """S_min (1 + B_crit / B)."""
        return self.least_steps * (1 + self.critical_batch / batch)

    def examples(self, batch: Any) -> Any:
        """E_min (1 + B / B_crit)."""
        return self.least_examples * (1 + batch / self.critical_batch)


def fit_trade_off(runs: Sequence[tuple[float, float]]) -> TradeOff:
    """The curve through runs of different batch sizes to the same loss, each (steps, examples), by least squares of log steps.

    Since E = S B, the curve says S = S_min + E_min / B.

    Raises:
      ValueError: fewer than two batch sizes, numbers that are not above 0, or steps that do not fall as the batch grows.
    """
    steps, examples = np.array([*zip(*runs, strict=True)], float).reshape(2, -1) if runs else np.zeros((2, 0))
    if not (np.isfinite(steps) & np.isfinite(examples) & (steps > 0) & (examples > 0)).all():
        raise ValueError(f"runs={list(runs)!r}: steps and examples are finite and above 0")
    batch = examples / steps
    if len(np.unique(batch)) < 2:
        raise ValueError(f"runs={list(runs)!r}: give at least two batch sizes (examples over steps)")
    if np.cov(1 / batch, steps)[0, 1] <= 0:
        raise ValueError(
            f"runs={list(runs)!r}: steps do not fall as batches grow, so there is no critical batch size; are learning rates right?"
        )
    # in logarithms, so that both stay above 0; the start puts the critical batch in the middle
    middle = np.exp(np.log(batch).mean())
    first = np.exp(np.log(steps / (1 + middle / batch)).mean())
    apart = lambda x: np.logaddexp(x[0], x[1] - np.log(batch)) - np.log(steps)
    found = least_squares(apart, np.log([first, first * middle]), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    least_steps, least_examples = np.exp(found.x)
    error = math.nan
    if len(steps) > 2:
        spread = np.linalg.pinv(found.jac.T @ found.jac) * (2 * found.cost / (len(steps) - 2))
        error = float(np.sqrt(np.array([-1.0, 1.0]) @ spread @ np.array([-1.0, 1.0])))
    return TradeOff(float(least_steps), float(least_examples), error)


def scaled_rate(rule: Rule, rate: float, batch: float, base_batch: float, noise_scale: float | None = None) -> float:
    """The learning rate for batches of `batch`, where `rate` is good for `base_batch`.

    constant: the same. linear: times their ratio (Goyal et al. 2017, for SGD). sqrt: times its square root (Krizhevsky 2014; for Adam,
    Malladi et al. 2022, with `scaled_adam`). noise: rate_max / (1 + noise_scale / batch), linear far below the noise scale and constant far
    above it (McCandlish et al. 2018, section 2).

    Raises:
      ValueError: an unknown rule, sizes that are not above 0, or the rule "noise" without a noise scale.
    """
    _above_zero(rate=rate, batch=batch, base_batch=base_batch)
    if rule == "noise":
        if noise_scale is None or not noise_scale > 0:
            raise ValueError(f"noise_scale={noise_scale!r}: the rule 'noise' needs one above 0, in the unit of batch")
        return rate * (1 + noise_scale / base_batch) / (1 + noise_scale / batch)
    powers = {"constant": 0.0, "linear": 1.0, "sqrt": 0.5}
    if rule not in powers:
        raise ValueError(f"rule={rule!r}: unknown; known are {', '.join(powers)}, noise")
    return rate * (batch / base_batch) ** powers[rule]


def scaled_adam(rate: float, batch: float, base_batch: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> dict[str, float]:
    """Keywords of `optax.adam` for batches k = batch / base_batch times as large: rate sqrt(k), 1 - b1 and 1 - b2 times k, eps / sqrt(k)
    (Malladi et al. 2022, the square root rule: the same examples in fewer steps).

    Raises:
      ValueError: sizes that are not above 0, or a k at which a moment would have no memory left.
    """
    _above_zero(rate=rate, batch=batch, base_batch=base_batch)
    k = batch / base_batch
    for name, decay in (("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"{name}={decay!r}: must be at least 0 and below 1")
        if k * (1 - decay) > 1:
            raise ValueError(
                f"batch={batch}: {name}={decay} leaves no memory at {k:g} times the batch; give at most {base_batch / (1 - decay):g}"
            )
    return {"learning_rate": rate * math.sqrt(k), "b1": 1 - k * (1 - b1), "b2": 1 - k * (1 - b2), "eps": eps / math.sqrt(k)}


def scaled_steps(steps: int, batch: float, base_batch: float) -> int:
    """Steps (of a warm-up, of a run) that see at least as many examples as `steps` of `base_batch` do."""
    _above_zero(batch=batch, base_batch=base_batch)
    return max(1, math.ceil(steps * base_batch / batch - 1e-9)) if steps else 0


def gradual_warmup(base_rate: float, rate: float, steps: int) -> optax.Schedule:
    """From the rate of the small batch up to that of the large one in equal steps, then constant (Goyal et al. 2017, section 2.2, over five
    epochs). Raises ValueError for steps below 0."""
    if steps < 0:
        raise ValueError(f"steps={steps}: a warm-up has 0 or more")
    return optax.linear_schedule(base_rate, rate, steps) if steps else optax.constant_schedule(rate)


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}: must be finite and above 0")
