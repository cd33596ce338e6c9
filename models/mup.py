"""Maximal update parametrisation (Yang et al. 2022, "Tensor Programs V", table 8, the one that tied tables allow), for Adam.

A model whose configuration has `mup_base_width` is the standard one at that width. At m times the width, with heads and MLP in proportion,
so that every sum over features has m times the terms:

    matrices between features   initial variance / m, learning rate / m
    a mixture's router          initial standard deviation / m, learning rate / m (table 3's way, which asks for no multiplier)
    tables, gains, biases       as at the base
    the head, tied or not       as at the base, and what it reads is divided by m
    attention's scores          * sqrt(mup_base_head_width) / head_width in place of head_width ** -0.5

The modules know initial values and multipliers; learning rates are here, for the optimiser.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .family import Family
from .matching import check_params, flat, nested

_HEAD = {"decoder": "head", "encoder": "out", "encoder-decoder": "head"}
_LAST_NORM = {"decoder": "norm", "encoder": "head_norm", "encoder-decoder": "decoder/norm"}
_MATRICES = ("kernel", "gate", "up", "down")  # the last three of experts
_AS_AT_THE_BASE = ("embedding", "scale", "bias", "head_bias")


def parametrised(config: Any, base_width: int, base_head_width: int = 0) -> Any:
    """The configuration in muP, which at `base_width` is the standard one.

    base_head_width: features of a head there; 0: as many heads as here. Give head_width where wider models have more heads instead.

    Raises:
      ValueError: a width that is not positive, or that as many heads do not divide.
    """
    return dataclasses.replace(config, mup_base_width=base_width, mup_base_head_width=base_head_width)


def learning_rates(family: Family, config: Any) -> dict[str, Any]:
    """For each parameter what Adam's learning rate is multiplied by: floats in the structure of the parameters; all 1 without muP.

    Raises:
      ValueError: a parameter of a kind for which no rate is known here.
    """
    return nested({path: _rate(path, family, config) for path in flat(family.abstract(config))})


def _rate(path: str, family: Family, config: Any) -> float:
    top, last = path.partition("/")[0], path.rpartition("/")[2]
    if last in _AS_AT_THE_BASE or (last == "kernel" and top == _HEAD[family.kind]):
        return 1.0
    if last in _MATRICES:
        return config.base_width / config.width
    raise ValueError(f"{path} of {family.name}: no muP is known for it; say in models.mup whether it is a matrix between features")


def folded(family: Family, config: Any, params: PyTree) -> tuple[Any, dict[str, Any]]:
    """(config, params) of the same function in the standard parametrisation, to be written where nobody knows of muP.

    The head's multiplier goes into the gain and bias of the norm before it, that of the scores into queries. Each of these parameters is
    multiplied in float32 and rounded once to its dtype; nothing is rounded where a multiplier is a power of two. Without muP, or at the
    base, parameters are what they were. For inference: trained on, the result would not train as before.

    Raises:
      ValueError: the parameters are not those of the configuration; or the multiplier of the scores is not 1, and queries are clipped
        before it (`clip_qkv`), or ALiBi is scaled with the scores (`alibi_rounded`).
    """
    plain = dataclasses.replace(config, mup_base_width=None, mup_base_head_width=0)
    leaves = flat(params)
    check_params(leaves, family, config)
    logits, scores = config.logits_scale / plain.logits_scale, config.scores_scale / plain.scores_scale
    if scores != 1.0:
        _check_foldable(config)
    last, made = _LAST_NORM[family.kind] + "/", {}
    for path, leaf in leaves.items():
        of_queries = path.rpartition("/")[0].endswith(("attention/q", "cross/q"))
        made[path] = _multiplied(leaf, logits if path.startswith(last) else scores if of_queries else 1.0)
    return plain, nested(made)


def _check_foldable(config: Any) -> None:
    said = f"head_width={config.head_width} with mup_base_head_width={config.base_head_width}: the multiplier of the scores"
    if getattr(config, "clip_qkv", None) is not None:
        raise ValueError(f"{said} cannot go into queries that are clipped (clip_qkv={config.clip_qkv}); use orbax")
    if getattr(config, "positions", None) == "alibi" and config.alibi_rounded:
        raise ValueError(f"{said} cannot go into queries, since ALiBi is scaled with the scores (alibi_rounded=True); use orbax")


def _multiplied(leaf: Any, factor: float) -> Array:
    return leaf if factor == 1.0 else (jnp.asarray(leaf).astype(jnp.float32) * factor).astype(leaf.dtype)
