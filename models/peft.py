"""Adapters as the PEFT library keeps them: adapter_model.safetensors with two tensors a module, and adapter_config.json.

Where a checkpoint holds queries, keys and values in one tensor, that module gets one adapter of as many times the rank: the A of each one
above the other and their B in blocks, whose product is the very same. `rank_pattern` names such modules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file

from . import hf_files
from .family import Family
from .lora import Linear, linears, pairs_of
from .matching import lines

ADAPTERS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def modules(family: Family, config: Any, adapters: PyTree) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name of a module of the model as Hugging Face has it, A [rank, in], B [out, rank]), float32, layer by layer and expert by expert."""
    known = linears(family, config)
    pairs = {path: {x: np.asarray(leaf, np.float32) for x, leaf in pair.items()} for path, pair in pairs_of(adapters).items()}
    for line in lines(family, config):
        adapted = [path for path in line.entry.paths if path in pairs]
        for name, at in line.names.items() if adapted else ():
            a = [pairs[path]["a"][at].reshape(-1, pairs[path]["a"].shape[-1]).T for path in adapted]
            b = [_columns(known[path], path, pairs[path]["b"][at]) for path in adapted]
            yield name.removesuffix(".weight"), np.concatenate(a), np.concatenate(b, axis=1)


def _columns(linear: Linear, path: str, b: np.ndarray) -> np.ndarray:
    """B of one parameter [rank, *outs] as [out, rank] of the tensor that it fills: what the table makes of it, beside zeros."""
    entry, rank = linear.line.entry, len(b)
    if len(entry.paths) == 1:
        return b.reshape(rank, -1).T
    others = (np.zeros((rank, *shape[linear.ins :]), np.float32) for shape in linear.line.shapes)
    whole = entry.give(*(b if path == other else zeros for other, zeros in zip(entry.paths, others, strict=True)))
    return whole if linear.transposed else whole.T


def save(folder: str | os.PathLike[str], family: Family, config: Any, adapters: PyTree, *, alpha: float, base: str = "") -> None:
    """Write adapters so that `peft.PeftModel.from_pretrained` reads them. Complete or not at all.

    Args:
      folder: new or empty.
      alpha: as `lora.merge` has it.
      base: what the adapters belong to: a folder or a name, for `base_model_name_or_path`.

    Raises:
      ValueError: the folder holds something, the model is in muP, or the family is an encoder, for which no task is known.
    """
    if family.kind not in _TASKS:
        raise ValueError(f"family={family.name}: an encoder's head is no task of PEFT's; merge the adapters and save the model")
    if config.mup_base_width is not None:
        raise ValueError(f"mup_base_width={config.mup_base_width}: PEFT knows no multipliers of muP; merge the adapters and fold these in")
    pairs, known = pairs_of(adapters), linears(family, config)
    rank = next(iter(pairs.values()))["a"].shape[-1]
    tensors: dict[str, np.ndarray] = {}
    names, ranks = [], {}
    for name, a, b in modules(family, config, adapters):
        names.append(name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b)
        if len(a) != rank:
            ranks[".".join(name.split(".")[-2:])] = len(a)
    written = {
        "peft_type": "LORA", "task_type": _TASKS[family.kind], "base_model_name_or_path": base or None, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": {name: alpha * r / rank for name, r in ranks.items()},
        "target_modules": names, "lora_dropout": 0.0, "bias": "none", "modules_to_save": None,
        "fan_in_fan_out": not all(known[path].transposed for path in pairs),
    }  # fmt: skip
    with hf_files.replacing(folder, overwrite=False) as partial:
        save_file(tensors, partial / ADAPTERS, metadata={"format": "pt"})
        hf_files.write_json(partial / CONFIG, written)
