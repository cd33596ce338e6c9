"""Write a trained model as a folder that jax runs without this library, on CPUs, GPUs or TPUs: `python -m experiments.export --help`.

The folder holds the forward pass as StableHLO, its parameters as safetensors, and run.py, which shows how both are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from models import exported, hf_files, int8
from wsejax.cli.checkpoints import open_checkpoint
from wsejax.cli.output import with_unit

from .entry import console, start


@dataclass(frozen=True)
class Settings:
    """Export a trained forward pass."""

    weights: Annotated[Path, tyro.conf.arg(metavar="FOLDER|RUN")]
    """Folder of Hugging Face's or orbax's, or of a run of experiments.train, of which the newest checkpoint is read."""
    out: Path
    """New folder to write."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of parameters and activations; logits are float32."""
    int8: bool = False
    """Keep the matrices in int8; they become floats inside the function."""
    group: int | None = None
    """With --int8: inputs that share a scale; left out: all of an output."""
    tables: bool = False
    """With --int8: also the token table."""
    keep: str | None = None
    """With --int8: matrices that stay floats, a regular expression of whole paths."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What it is to run on; none of these has to be here."""


def run(settings: Settings) -> None:
    """Raises ValueError or OSError for what the user can mend."""
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("group", "tables", "keep")}
    if not settings.int8 and (given := [f"--{name}" for name, value in how.items() if value]):
        raise ValueError(f"{', '.join(given)}: {'says' if len(given) == 1 else 'say'} how matrices become int8; give --int8, too")
    hf_files.check_writable(settings.out, False)
    found = open_checkpoint(settings.weights)
    params = found.load(dtype=settings.dtype)
    family, config = found.family, replace(found.config, dtype=settings.dtype, param_dtype=settings.dtype)
    if settings.int8:
        params = int8.quantised(family, config, params, **how)
    exported.save(settings.out, family, config, params, platforms=settings.platforms)
    leaves = jax.tree.leaves(params)
    size = with_unit(sum(leaf.nbytes for leaf in leaves), "B", 4)
    lines = [
        f"{settings.out}: {family.name}, {family.parameters(config):,} parameters in {size}, for {', '.join(settings.platforms)}",
        f"  python {settings.out / exported.RUN} 1 2 3   the likeliest tokens after tokens 1 2 3; needs jax, flatbuffers, safetensors",
    ]
    console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, or 2 for what the user can mend."""
    return start(run, Settings, __doc__, arguments, prog="python -m experiments.export", config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
