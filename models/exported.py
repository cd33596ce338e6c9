"""A trained forward pass as a folder that runs with jax, numpy, safetensors and flatbuffers alone: no model library, and no pickle.

  forward.stablehlo   forward(params, tokens) -> logits, as `jax.export` serialises it: of any batch, and any length up to the context
  params.safetensors  params, a flat dict of arrays by "/"-joined paths; int8 codes and scales where they are quantised
  about.json          the model, inputs, platforms, and the jax that wrote it
  run.py              loads them, and says the likeliest next tokens

A serialised function is read by any jax of the six months after the one that wrote it, at least (docs.jax.dev/en/latest/export).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import PyTree
from safetensors.numpy import save_file

from . import hf_files, int8
from .family import Family
from .matching import check_params, flat, fresh, in_full, nested

FORWARD, PARAMS, ABOUT, RUN = "forward.stablehlo", "params.safetensors", "about.json", "run.py"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

RUN_SOURCE = '''"""Logits of tokens: `python run.py 1 2 3` says the likeliest next ones; `import run` gives `forward` and `params`."""

import pathlib
import sys

import jax
import numpy as np
from safetensors.numpy import load_file

folder = pathlib.Path(__file__).parent
params = jax.device_put(load_file(folder / "params.safetensors"))
forward = jax.jit(jax.export.deserialize(bytearray((folder / "forward.stablehlo").read_bytes())).call)

if __name__ == "__main__":
    tokens = np.array([[int(token) for token in sys.argv[1:]]], np.int32)
    logits = np.asarray(forward(params, tokens))[0, -1]
    print(*(f"{token}: {logits[token]:.4f}" for token in logits.argsort()[::-1][:5]), sep="\\n")
'''


def forward(
    family: Family, config: Any, params: Mapping[str, Any], *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> export.Exported:
    """forward(params, tokens) -> float32[batch, time, vocab_size], of any batch and 1 to config.context tokens.

    tokens: int32[batch, time]. An encoder-decoder has a second input, int32[batch, time], of the same length. An encoder sees all tokens,
    and knows no padding here.

    Args:
      params: shapes and dtypes by paths; also those of `int8.quantised`, which are made floats inside, as they are needed.
      platforms: that it is lowered for; none of them has to be here.

    Raises:
      ValueError: a platform that there is not.
    """
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms={tuple(platforms)}: give some of {', '.join(PLATFORMS)}")

    def run(params: dict[str, Any], *tokens: Any) -> Any:
        return family.apply(config, int8.dequantised(nested(params), config.param_dtype), *tokens)

    batch, time = export.symbolic_shape("batch, time", constraints=(f"time <= {config.context}",))
    tokens = [jax.ShapeDtypeStruct((batch, time), np.int32)] * (2 if family.kind == "encoder-decoder" else 1)
    like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    return export.export(jax.jit(run), platforms=tuple(platforms))(like, *tokens)


def save(
    folder: str | os.PathLike[str], family: Family, config: Any, params: PyTree, *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> None:
    """Write the folder. Complete or not at all.

    params: nested dict of arrays, also quantised ones.

    Raises:
      ValueError: the folder holds something; the parameters are not those of the configuration, or not finite; or a platform that there
        is not.
    """
    leaves = {path: np.ascontiguousarray(fresh(x)) for path, x in flat(params).items()}
    check_params(flat(jax.eval_shape(int8.dequantised, params)), family, config)
    if odd := [path for path, x in leaves.items() if not np.isfinite(x.astype(np.float32)).all()]:
        raise ValueError(f"params: {', '.join(odd)} hold what is not finite; mend the weights")
    hf_files.check_writable(Path(folder), False)  # before the work
    made = forward(family, config, leaves, platforms=platforms)
    with hf_files.replacing(folder, False) as partial:
        (partial / FORWARD).write_bytes(made.serialize())
        save_file(leaves, partial / PARAMS)
        (partial / RUN).write_text(RUN_SOURCE, encoding="utf-8")
        about = {
            **in_full(config, family), "inputs": [f"{x.dtype}{list(map(str, x.shape))}" for x in made.in_avals[len(leaves) :]],
            "platforms": list(made.platforms), "jax": jax.__version__, "calling_convention": made.calling_convention_version,
            "int8": any(x.dtype == np.int8 for x in leaves.values()),
        }  # fmt: skip
        hf_files.write_json(partial / ABOUT, about)
