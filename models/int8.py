"""int8 weights: round(w / s), with a float32 scale s for each output, or for each group of inputs of an output, and no zero point.

Quantised parameters are a nested dict like the parameters, with {"codes": int8, "scale": float32} in place of a matrix. Scales have the
axes of the codes, and along the inputs as many as there are groups, so that a family's weight table lays codes and scales out alike.
Nothing but weights is quantised: what multiplies them is float.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from . import hf_files, int8_files, lora
from .family import Family
from .hf_files import Made
from .int8_files import SCALE, times_scale
from .matching import Line, check_params, flat, fresh, lines, nested
from .weights import tensors

LARGEST = 127  # of the codes; -128 is left out, so that they are symmetric
_LEAST_SCALE = np.finfo(np.float32).tiny  # below it devices round to 0
TABLE = "tokens/embedding"
CODES, SCALES = "/codes", "/scale"  # what paths end in


# ---- to and from int8 --------------------------------------------------------------------------------------------------
def quantised(
    family: Family, config: Any, params: PyTree, *, group: int | None = None, tables: bool = False, keep: str | None = None
) -> PyTree:
    """Parameters with their matrices in int8, as numpy arrays: |w - codes * scale| <= scale / 2.

    Args:
      group: inputs that share a scale; None: all of an output.
      tables: also the token table, with a scale for each token.
      keep: a regular expression of whole paths of matrices that stay as they are, such as "head/kernel|.*/router/kernel".

    Raises:
      ValueError: the parameters are not those of the configuration, or not finite; inputs of a matrix cannot be cut into such groups; or
        `keep` is no regular expression, or matches no matrix.
    """
    leaves = flat(params)
    check_params(leaves, family, config)
    made: dict[str, Any] = {}
    inputs = _inputs(family, config, tables, keep)
    for path, leaf in leaves.items():
        if path not in inputs:
            made[path] = np.asarray(fresh(leaf))
            continue
        made[path + CODES], made[path + SCALES] = _coded(path, np.asarray(fresh(leaf)), *inputs[path], group)
    return nested(made)


def _inputs(family: Family, config: Any, tables: bool, keep: str | None) -> dict[str, tuple[int, int, int]]:
    """Paths of what is quantised -> (axes of the stack, first axis that is contracted, the axis behind the last)."""
    known = lora.linears(family, config)
    found = {path: (n := len(linear.line.stack), n, n + linear.ins) for path, linear in known.items()}
    if tables:
        found[TABLE] = (0, 1, 2)
    try:
        kept = {path for path in found if keep is not None and re.fullmatch(keep, path)}
    except re.error as error:
        raise ValueError(f"keep={keep!r}: is no regular expression ({error})") from None
    if keep is not None and not kept:
        raise ValueError(f"keep={keep!r}: matches the whole path of no matrix; those of {family.name} are {', '.join(found)}")
    kept |= {other for path in kept & known.keys() for other in known[path].line.entry.paths}  # a tensor is of one dtype
    return {path: how for path, how in found.items() if path not in kept}


def _coded(path: str, weight: np.ndarray, stack: int, start: int, stop: int, group: int | None) -> tuple[np.ndarray, np.ndarray]:
    shape = (*weight.shape[:start], *_groups(path, weight.shape[start:stop], group), *weight.shape[stop:])
    codes, scale = np.empty(weight.shape, np.int8), np.empty(shape, np.float32)
    cut = [part for n, scales in zip(weight.shape[stack:], shape[stack:], strict=True) for part in (scales, n // scales)]
    within = tuple(range(1, len(cut), 2))
    for at in np.ndindex(*weight.shape[:stack]):  # in float64, a layer at a time
        blocks = weight[at].astype(np.float64).reshape(cut)
        if not np.isfinite(blocks).all():
            raise ValueError(f"params: {path}{list(at) if at else ''} is not finite, which no code stands for; mend the weights")
        scales = np.maximum(np.abs(blocks).max(within, keepdims=True) / LARGEST, _LEAST_SCALE).astype(np.float32)
        codes[at] = np.rint(blocks / scales).reshape(weight.shape[stack:])
        scale[at] = scales.reshape(shape[stack:])
    return codes, scale


def _groups(path: str, ins: tuple[int, ...], group: int | None) -> tuple[int, ...]:
    """Scales along each axis of the inputs, of which the last runs fastest."""
    if group is None:
        return (1,) * len(ins)
    if group < 1:
        raise ValueError(f"group={group}: give the inputs that share a scale, at least 1, or None for all")
    counts, left = [], group
    for n in reversed(ins):
        part = math.gcd(left, n)
        if part not in (left, n):
            break
        counts.append(n // part)
        left //= part
    if left > 1 or len(counts) < len(ins):
        raise ValueError(
            f"group={group}: {path} has {' x '.join(map(str, ins))} inputs, which are no such groups; give another size, or keep"
        )
    return tuple(reversed(counts))


def dequantised(params: PyTree, dtype: Any = jnp.float32) -> PyTree:
    """Parameters with floats of this dtype in place of codes and scales; all others as they are. Of numpy or JAX, also traced."""
    leaves = flat(params)
    coded = _coded_paths(leaves)
    parts = {path + end for path in coded for end in (CODES, SCALES)}
    floats = {path: times_scale(leaves[path + CODES], leaves[path + SCALES]).astype(dtype) for path in coded}
    return nested({path: leaf for path, leaf in leaves.items() if path not in parts} | floats)


def _coded_paths(leaves: Mapping[str, Any]) -> list[str]:
    return [path.removesuffix(CODES) for path in leaves if path.endswith(CODES)]


# ---- files -------------------------------------------------------------------------------------------------------------
def save(
    folder: str | os.PathLike[str], family: Family, config: Any, params: PyTree, *, max_shard_bytes: float = 5e9, overwrite: bool = False
) -> None:
    """Write quantised parameters as `int8_files` says. `models.weights.load` reads them back as floats, of the dtype of what is no matrix.

    Raises:
      ValueError: the folder holds something; nothing is quantised; or the parameters are not those of the configuration.
    """
    leaves = flat(params)
    if not (coded := _coded_paths(leaves)):
        raise ValueError("params: nothing is quantised; give what `quantised` returns, or save them with models.weights")
    check_params(flat(jax.eval_shape(dequantised, params)), family, config)
    made: dict[str, Made] = {}
    kept: list[str] = []  # matrices, as modules are named
    matrices = lora.linears(family, config)
    inputs = {path: how for path, how in _inputs(family, config, True, None).items() if path in coded}
    for line in lines(family, config):
        first = line.entry.paths[0]
        ends = ((CODES, ""), (SCALES, SCALE)) if first in coded else (("", ""),)
        for ours, theirs in ends:
            parts = {path: leaves[path + ours] for path in line.entry.paths}
            made |= tensors([_with(line, parts, theirs)], parts.__getitem__, {path: np.dtype(x.dtype) for path, x in parts.items()})
        if first in matrices and first not in coded:
            kept += [name.removesuffix(".weight") for name in line.names]
    floats = {str(x.dtype) for path, x in leaves.items() if not path.endswith((CODES, *(one + SCALES for one in coded)))}
    config_json = {
        **family.to_hf(config), "model_type": family.model_type, "torch_dtype": floats.pop() if len(floats) == 1 else "float32",
        "quantization_config": int8_files.described(_group(leaves, inputs), ["Linear", *["Embedding"] * (TABLE in coded)], kept),
    }  # fmt: skip
    hf_files.write(folder, config_json, made, max_shard_bytes=max_shard_bytes, overwrite=overwrite)


def _with(line: Line, parts: Mapping[str, Any], end: str) -> Line:
    """The line for tensors whose names have `end` behind them, of parameters of these shapes."""
    shapes = tuple(x.shape[len(line.stack) :] for x in parts.values())
    given = jax.eval_shape(line.entry.give, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes))
    return dataclasses.replace(line, names={name + end: at for name, at in line.names.items()}, shapes=shapes, shape=tuple(given.shape))


def _group(leaves: Mapping[str, Any], inputs: Mapping[str, tuple[int, int, int]]) -> int | None:
    """Inputs that share a scale; None where each output has one."""
    cut = {
        path: (leaves[path + CODES].shape[start:stop], leaves[path + SCALES].shape[start:stop]) for path, (_, start, stop) in inputs.items()
    }
    if all(math.prod(scales) == 1 for _, scales in cut.values()):
        return None
    sizes = sorted({math.prod(codes) // math.prod(scales) for codes, scales in cut.values()})
    if len(sizes) > 1:
        raise ValueError(
            f"params: have groups of {', '.join(map(str, sizes))} inputs, and one checkpoint says one size; quantise all alike"
        )
    return sizes[0]


# ---- what it costs -----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Error:
    """Of a matrix: largest and RMS |w - codes * scale|, the largest share that one takes of its bound, scale / 2, the ratio of the
    energies of w and of the error in dB, and bytes as floats and as codes with scales."""

    path: str
    shape: tuple[int, ...]
    max_abs: float
    rms: float
    of_bound: float
    sqnr_db: float
    bytes_before: int
    bytes_after: int


def errors(params: PyTree, coded: PyTree) -> Iterator[Error]:
    """What quantising has done to each matrix, in exact products of codes and scales.

    Raises:
      ValueError: an error is above scale / 2, so that one was not quantised from the other.
    """
    leaves, parts = flat(params), flat(coded)
    for path in _coded_paths(parts):
        weight, codes, scale = (np.asarray(fresh(x)) for x in (leaves[path], parts[path + CODES], parts[path + SCALES]))
        stack = weight.shape[:1] if weight.ndim > 2 and scale.shape[0] == weight.shape[0] else ()
        largest = share = noise = energy = 0.0
        for at in np.ndindex(*stack):
            one = weight[at].astype(np.float64)
            wide = scale[at].astype(np.float64)
            error = np.abs(one - times_scale(codes[at], wide))
            largest, share = max(largest, error.max()), max(share, (error / times_scale(np.ones_like(one), wide / 2)).max())
            noise, energy = noise + np.square(error).sum(), energy + np.square(one).sum()
        if share > 1 + 1e-9:
            raise ValueError(f"{path}: is {largest:.3g} off, {share:.3g} times scale / 2: it was not quantised from these weights")
        ratio = 10 * math.log10(energy / noise) if noise and energy else math.inf
        after = codes.nbytes + scale.nbytes
        yield Error(path, weight.shape, float(largest), math.sqrt(noise / weight.size), float(share), ratio, weight.nbytes, after)


def change(family: Family, config: Any, params: PyTree, coded: PyTree, *inputs: Array) -> dict[str, float]:
    """What quantising does to the logits of these inputs: `logits_rms` before, `max_abs` and `rms` of the difference; of a decoder also
    `loss_before` and `loss_after`, cross-entropy of the next token in nats."""
    apply = jax.jit(lambda params, *inputs: family.apply(config, dequantised(params, config.param_dtype), *inputs))
    before, after = (apply(one, *inputs) for one in (params, coded))
    rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))
    found = {"logits_rms": rms(before), "max_abs": jnp.abs(after - before).max(), "rms": rms(after - before)}
    if family.kind == "decoder":
        loss = lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], inputs[0][:, 1:]).mean()
        found |= {"loss_before": loss(before), "loss_after": loss(after)}
    return {name: float(value) for name, value in found.items()}
