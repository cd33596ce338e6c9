"""Flags of what wafers are known for in training: narrow numbers, sparse weights, documents of any length, very large batches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from models import mup
from models.family import Family
from wsejax import sparse
from wsejax.training.ema import with_ema
from wsejax.training.groups import Group, clipped, grouped
from wsejax.training.lossscale import FLOOR
from wsejax.training.packing import How, Long
from wsejax.training.precision import Policy
from wsejax.training.scaled import scale_by_tree

MATRICES = r"(.*/)?blocks/.*(kernel|experts/(gate|up|down))"
"""All matrices of a model's blocks, whatever its family."""


@dataclass(frozen=True)
class LossScaleSettings:
    """Loss scaling, where the precision asks for it, or `initial` does."""

    initial: float | None = None
    """Factor of the first step's loss, a power of two. Left out: what goes with the precision (2^15 for float16, 2^31 for cb16)."""
    static: bool = False
    """Keep that factor; steps whose gradients overflow are skipped all the same."""
    interval: int = 2000
    """Steps without an overflow after which the factor doubles."""

    def options(self, policy: Policy) -> dict[str, Any]:
        """Arguments of `loss_scaled`; none where there is nothing to scale. Raises ValueError for flags that do nothing."""
        initial = self.initial if self.initial is not None else policy.initial_scale
        if initial is None:
            if self != LossScaleSettings():
                raise ValueError(f"--loss-scale flags with --precision {policy.name}, which scales no loss: give --loss-scale.initial, too")
            return {}
        fixed = {"floor": initial} if self.static else {}
        return {"initial": initial, "interval": self.interval, "ceiling": initial if self.static else max(initial, 2.0**15), **fixed}


@dataclass(frozen=True)
class SparsitySettings:
    """Weights that are kept sparse while they are trained."""

    method: Literal["none", "static", "gmp", "set", "rigl"] = "none"
    """static: the same weights all the time; gmp: more and more of the smallest go (Zhu & Gupta 2017); set, rigl: some are exchanged for
    others, drawn by lot (Mocanu 2018) or by gradient (Evci 2020)."""
    sparsity: float | None = None
    """Share of the weights that are zero (of gmp: at the end), in [0, 1)."""
    pattern: str = MATRICES
    """Which parameters: a regular expression of whole paths, such as "blocks/mlp/(up|down)/kernel"."""
    structure: str = "unstructured"
    """What is pruned as one: unstructured, N:M such as 2:4 (N of every M inputs are kept), or blocks such as 16x16, of matrices
    alone (--sparsity.pattern 'blocks/mlp/.*kernel'): kernels of attention have an axis of heads."""
    distribution: Literal["uniform", "erk"] = "uniform"
    """The same sparsity everywhere, or more where tensors are large (Erdos-Renyi-Kernel)."""
    begin: int | None = None
    """First step that changes the masks. Left out: 0, of set and rigl `every`."""
    end: int | None = None
    """Last step that changes the masks. Left out: after three quarters of the steps."""
    every: int | None = None
    """Steps between changes of the masks. Left out: a twentieth of the steps."""
    drop: float = 0.3
    """Share of the kept weights that set and rigl exchange at a time."""
    dense_from: int | None = None
    """Train without masks from this step on (sparse pre-training, dense fine-tuning)."""

    def groups(self, steps: int) -> tuple[sparse.Group, ...]:
        """Raises ValueError for what cannot be."""
        if self.method == "none":
            if self != SparsitySettings():
                raise ValueError("--sparsity flags without --sparsity.method: give static, gmp, set or rigl")
            return ()
        structure = self._structure()
        if self.sparsity is None and not isinstance(structure, sparse.NM):
            raise ValueError("--sparsity.sparsity is missing: give the share of weights that are zero, in [0, 1)")
        how: dict[str, Any] = {"structure": structure, "distribution": self.distribution}
        end = max(1, 3 * steps // 4) if self.end is None else self.end
        every = max(1, steps // 20) if self.every is None else self.every
        if self.method == "static":
            made = sparse.static(self.pattern, self.sparsity, **how)
        elif self.method == "gmp":
            made = sparse.gmp(self.pattern, self.sparsity, begin=self.begin or 0, end=end, every=every, **how)
        else:
            make = sparse.set_ if self.method == "set" else sparse.rigl
            made = make(self.pattern, self.sparsity, begin=self.begin, end=end, every=every, drop=self.drop, **how)
        return (made if self.dense_from is None else sparse.densified(made, self.dense_from),)

    def _structure(self) -> Any:
        if self.structure == "unstructured":
            return sparse.Unstructured()
        if found := re.fullmatch(r"(\d+):(\d+)", self.structure):
            return sparse.NM(int(found[1]), int(found[2]))
        if found := re.fullmatch(r"(\d+)x(\d+)", self.structure):
            return sparse.Block((int(found[1]), int(found[2])))
        raise ValueError(f"--sparsity.structure {self.structure}: give unstructured, N:M such as 2:4, or blocks such as 16x16")


@dataclass(frozen=True)
class DocumentSettings:
    """How documents become rows of tokens."""

    how: Literal["windows"] | How = "windows"
    """windows: all text in one line, cut where a row is full. pack: whole documents, several in a row that do not see each other. pad:
    one document a row. bucket: one in the shortest of a few lengths of rows that hold it."""
    long: Long = "split"
    """Documents longer than the context are split, or refused; not for windows."""

    def __post_init__(self) -> None:
        if self.how == "windows" and self.long != "split":
            raise ValueError(f"--documents.long {self.long} with windows of text: give --documents.how pack, pad or bucket")


def transformation(
    optimiser: Any, steps: int, *, policy: Policy, loss_scale: LossScaleSettings, sparsity: SparsitySettings, seed: int,
    model: tuple[Family, Any], decayed: Any,
) -> optax.GradientTransformation:  # fmt: skip
    """AdamW as the settings have it, in the order in which the parts see gradients: loss scaling, average, masks, clipping, groups.

    Raises ValueError for settings that do not fit together.
    """
    family, config = model
    rates = mup.learning_rates(family, config) if getattr(config, "mup_base_width", None) is not None else None
    if rates is not None and optimiser.group:
        raise ValueError("--optimiser.group with muP, which gives every parameter its learning rate already; leave one of them out")

    def make(*, learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        if rates is None:
            return optax.adamw(learning_rate, b1=optimiser.beta1, b2=optimiser.beta2, weight_decay=weight_decay, mask=decayed)
        return optax.chain(
            optax.scale_by_adam(b1=optimiser.beta1, b2=optimiser.beta2),
            scale_by_tree(rates),
            optax.add_decayed_weights(weight_decay, mask=decayed),
            optax.scale_by_learning_rate(learning_rate),
        )

    groups = [Group(pattern, times, weight_decay=decay) for pattern, times, decay in optimiser.group]
    tx = grouped(make, groups, learning_rate=optimiser.schedule(steps), weight_decay=optimiser.weight_decay)
    if optimiser.clip_norm is not None and optimiser.clip_value is not None:
        raise ValueError(
            f"--optimiser.clip-norm {optimiser.clip_norm} with --optimiser.clip-value {optimiser.clip_value}: clip by one of them, and "
            "give the other as None"
        )
    tx = clipped(tx, norm=optimiser.clip_norm, value=optimiser.clip_value)
    if masks := sparsity.groups(steps):
        tx = sparse.sparsify(tx, *masks, seed=seed)
    if optimiser.ema_decay is not None:
        tx = with_ema(tx, optimiser.ema_decay)
    options = loss_scale.options(policy)
    return policy.scaled(tx, **options) if options else tx


def loss_scale_floor(policy: Policy, settings: LossScaleSettings) -> float:
    """The least factor that the loss of a run has."""
    return settings.options(policy).get("floor", FLOOR)


def pruned(params: Any, opt_state: Any, sparsity: SparsitySettings) -> Any:
    """The parameters that training begins with."""
    return params if sparsity.method == "none" else sparse.masked(params, opt_state)


def pruned_shares(state: Any) -> dict[str, jax.Array]:
    """What share of its weights each sparse parameter lacks, for the rows of a run."""
    return {f"sparsity/{name}": share for name, share in sparse.sparsity_of(state.opt_state).items()}
