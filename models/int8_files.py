"""int8 weights in safetensors, as the compressed-tensors library lays out what it calls "int-quantized".

The tensor <name> of a quantised matrix holds int8 codes, and <name>_scale their float32 scales: [out, 1], one for each output, or
[out, groups], one for each group of inputs; transposed where the matrix is [in, out]. config.json says so under quantization_config.

The library's own source says the same: src/compressed_tensors/compressors/quantized_compressors/naive_quantized.py and
quantization/quant_args.py of github.com/neuralmagic/compressed-tensors. It knows torch's Linear, whose matrices are [out, in]; of GPT-2's,
which are [in, out], it knows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import hf_files
from .hf_files import Stored

SCALE = "_scale"
_METHOD, _FORMATS = "compressed-tensors", ("int-quantized", "naive-quantized")
_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "actorder": None}


def described(group: int | None, targets: Sequence[str], ignore: Sequence[str]) -> dict[str, Any]:
    """quantization_config. group: inputs that share a scale; None: all. targets: kinds of modules, ignore: matrices left as they were."""
    weights = _WEIGHTS | {"strategy": "channel" if group is None else "group", "group_size": group}
    groups = {"group_0": {"targets": list(targets), "weights": weights, "input_activations": None, "output_activations": None}}
    how = {"quant_method": _METHOD, "format": _FORMATS[0], "quantization_status": "compressed"}
    return how | {"config_groups": groups, "ignore": list(ignore)}


def refusal(said: Any) -> str:
    """In words, what of a quantization_config is not read here; "" where all is."""
    if not isinstance(said, Mapping) or said.get("quant_method") != _METHOD or said.get("format") not in _FORMATS:
        return f"only {_METHOD} of format {_FORMATS[0]} is read; give that, or a checkpoint in float32, float16 or bfloat16"
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return "config_groups are missing"
    for name, one in groups.items():
        weights = one.get("weights") if isinstance(one, Mapping) else None
        if not isinstance(weights, Mapping):
            return f"config_groups.{name}.weights are missing"
        if odd := [f"{key}={weights[key]!r}" for key, value in _WEIGHTS.items() if weights.get(key, value) != value]:
            return f"{', '.join(odd)} of {name} is not read (only symmetric int8 in a fixed order)"
        if weights.get("strategy") not in ("channel", "group"):
            return f"strategy={weights.get('strategy')!r} of {name} is not read (only channel, group)"
        if one.get("input_activations") or one.get("output_activations"):
            return f"activations of {name} are quantised, and here only weights can be"
    if said.get("kv_cache_scheme") or said.get("sparsity_config"):
        return "kv_cache_scheme and sparsity_config are not read"
    return ""


def times_scale(codes: Any, scale: Any) -> Any:
    """float32 codes * scale, of numpy or JAX. Along each axis a scale is of as many codes as it takes for all scales to fill it."""
    inner = [part for n, scales in zip(codes.shape, scale.shape, strict=True) for part in (scales, n // scales)]
    outer = [part for scales in scale.shape for part in (scales, 1)]
    return (codes.astype(np.float32).reshape(inner) * scale.reshape(outer)).reshape(codes.shape)


@dataclass(frozen=True)
class Dequantised:
    """A tensor of codes and scales, which reads as what they stand for."""

    codes: Stored
    scale: Stored
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """As stored."""
        return self.codes.nbytes + self.scale.nbytes

    def read(self) -> np.ndarray:
        """codes * scale, in memory of its own.

        Raises:
          ValueError: a scale is not finite and above 0.
        """
        scale = self.scale.read().astype(np.float32)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"{self.scale.file}: corrupt: a scale that is not finite, or not above 0, in a tensor of {list(scale.shape)}")
        return times_scale(self.codes.read(), scale).astype(self.dtype, copy=False)

    def chunks(self) -> Iterator[bytes]:
        yield self.read().tobytes()


def dequantised(stored: Mapping[str, Stored], where: Any) -> dict[str, Any]:
    """The tensors of a folder or file, `Dequantised` in place of codes and scales where config.json says that there are such.

    The dtype is torch_dtype of config.json, else float32.

    Raises:
      ValueError: the format is another, or codes and scales do not belong together; all that is wrong with them.
    """
    folder = Path(where) if Path(where).is_dir() else Path(where).parent
    config = hf_files.read_config(folder) if (folder / hf_files.CONFIG).is_file() else {}
    if (said := config.get("quantization_config")) is None:
        return dict(stored)
    if why := refusal(said):
        raise ValueError(f"{where}: quantization_config: {why}")
    dtype = np.dtype(_dtype(config.get("torch_dtype") or config.get("dtype") or "float32", where))
    coded = {name for name, one in stored.items() if one.dtype == np.int8}
    scales = {name + SCALE for name in coded}
    problems = [f"{name}: int8 without {name + SCALE}" for name in sorted(coded) if name + SCALE not in stored]
    for name in sorted(coded & {name.removesuffix(SCALE) for name in stored.keys() & scales}):
        codes, scale = stored[name], stored[name + SCALE]
        fits = len(codes.shape) == len(scale.shape) and all(n and n % s == 0 for n, s in zip(codes.shape, scale.shape, strict=True) if s)
        if not fits or not math.prod(scale.shape):
            problems.append(f"{name}: {list(scale.shape)} scales do not share out {list(codes.shape)} codes")
    if problems:
        raise ValueError(f"{where}: corrupt: codes and scales do not belong together:\n  " + ";\n  ".join(problems))
    kept = {name: one for name, one in stored.items() if name not in scales}
    return {name: Dequantised(one, stored[name + SCALE], dtype) if name in coded else one for name, one in kept.items()}


def _dtype(name: Any, where: Any) -> Any:
    known = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
    if name not in known:
        raise ValueError(f"{where}: {hf_files.CONFIG}: torch_dtype={name!r} is none of {', '.join(known)}")
    return known[name]
