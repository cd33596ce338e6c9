"""Gradient noise: how much of a batch's gradient is chance, and so which batch size pays (McCandlish et al. 2018, arXiv:1812.06162).

The gradient of one unit of weight (an example, a token) has a mean G and a covariance Sigma. That of a batch of B units has the expected
squared norm |G|^2 + tr(Sigma) / B, so two batch sizes tell both apart (appendix A). B_simple = tr(Sigma) / |G|^2 is the batch size at which
chance and signal are alike. Units count as independent: those that hang together (tokens of one text) have a larger noise each than alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

ALL = "all"
SIGNAL, NOISE = "gradient_signal", "gradient_noise"


def squared_norms(gradients: PyTree, groups: Mapping[str, str] | None = None) -> dict[str, Float[Array, ""]]:
    """Squared norm of all gradients as "all", and of each group; float32.

    groups: name -> regular expression of whole paths, such as {"mlp": "blocks/mlp/.*"}. Groups may overlap.
    Raises ValueError for an expression that matches none.
    """
    square = lambda x: jnp.square(x.astype(jnp.float32)).sum()
    named = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    leaves = {named(path): square(x) for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    found = {ALL: sum(leaves.values(), jnp.float32(0))}
    for name, pattern in (groups or {}).items():
        matching = [x for path, x in leaves.items() if re.fullmatch(pattern, path)]
        if not matching:
            raise ValueError(f"groups[{name!r}]={pattern!r}: matches no parameter; there are {', '.join(leaves)}")
        found[name] = sum(matching, jnp.float32(0))
    return found


def estimates(small: Any, big: Any, small_batch: Any, big_batch: Any) -> tuple[Any, Any]:
    """Unbiased (|G|^2, tr(Sigma)) from squared norms of gradients at two batch sizes (appendix A).

    small: of a batch of `small_batch` units, or the mean of several such; big: of one of `big_batch`. Batches that are parts of the big one
    will do, of unlike sizes, too: then `small` is the mean that weighs each part by its size, and `small_batch` the plain mean of the
    sizes, since E[small] = sum_m (b_m / B) (|G|^2 + tr(Sigma) / b_m) = |G|^2 + tr(Sigma) parts / B.
    Either may come out negative, by chance. Neither is a number where the sizes are equal.
    """
    signal = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    noise = (small - big) * (small_batch * big_batch / (big_batch - small_batch))
    return signal, noise


def noise_metrics(small: Mapping[str, Any], big: Mapping[str, Any], small_batch: Any, big_batch: Any) -> dict[str, Any]:
    """`estimates` by name: "gradient_signal" and "gradient_noise" of all, "gradient_signal/mlp" and so on of a group."""
    made = {}
    for name in big:
        signal, noise = estimates(small[name], big[name], small_batch, big_batch)
        made |= {_key(SIGNAL, name): signal, _key(NOISE, name): noise}
    return made


def _key(what: str, group: str) -> str:
    return what if group == ALL else f"{what}/{group}"


@dataclass
class NoiseScale:
    """B_simple from the metrics of many steps: the ratio of means. (The mean of ratios would be biased, and of next to no use where a
    signal is near 0.)

    group: of `squared_norms`. decay: a row that is n rows old counts decay**n; 1: all alike. Below 1 this is the ratio of two exponential
    moving averages, which follows a noise scale that grows while the model learns.
    """

    group: str = ALL
    decay: float = 1.0
    rows: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay!r}: must be above 0 and at most 1")

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a step's metrics. A row without both, or in which they are not finite (one micro-batch had all the weight), is passed
        over."""
        pair = [float(row.get(_key(what, self.group), math.nan)) for what in (SIGNAL, NOISE)]
        if all(map(math.isfinite, pair)):
            self.rows.append((pair[0], pair[1]))

    def __len__(self) -> int:
        return len(self.rows)

    def _shares(self) -> Float[np.ndarray, " rows"]:
        if not self.rows:
            raise ValueError(f"no row has {_key(SIGNAL, self.group)!r}: train with micro-batches and `squares`, and add the metrics")
        weights = self.decay ** np.arange(len(self.rows) - 1, -1, -1.0)
        return weights / weights.sum()

    def _means(self) -> tuple[float, float]:
        signal, noise = self._shares() @ np.array(self.rows)
        return float(signal), float(noise)

    @property
    def signal(self) -> float:
        """Mean estimate of |G|^2. Raises ValueError, as all here, where there is no row."""
        return self._means()[0]

    @property
    def noise(self) -> float:
        """Mean estimate of tr(Sigma), of one unit of weight."""
        return self._means()[1]

    @property
    def b_simple(self) -> float:
        """Noise over signal, in units of weight; infinite where the signal does not stand out from 0."""
        signal, noise = self._means()
        return noise / signal if signal > 0 else math.inf

    @property
    def standard_error(self) -> float:
        """Of `b_simple`, to first order, if rows are independent (over a stretch in which the model changes little). Infinite where
        `b_simple` is or with one row."""
        scale = self.b_simple
        if len(self) < 2 or math.isinf(scale):
            return math.inf
        shares, rows = self._shares(), np.array(self.rows)
        apart = rows[:, 1] - scale * rows[:, 0]  # mean 0
        many = float((shares**2).sum())
        return math.sqrt(float(shares @ apart**2) * many / (1 - many)) / self.signal
