"""Host memory of loading published weights: `python -m experiments.loading_memory --help`.

A random checkpoint in Llama's shape is written as Hugging Face writes it, and loaded in a fresh process: onto one device,
and into the layouts that a forward pass has on a wafer. How far the process grows over what it was before the load is to be little more
than the size of the files: a model is in memory once, plus a tensor.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track
from rich.table import Table

import wsejax as wse
from models import hf_files, matching, weights
from models.families import FAMILIES

from .entry import console, start


@dataclasses.dataclass(frozen=True)
class Settings:
    """Host memory of loading a checkpoint."""

    layers: int = 22
    """Of the model; with the other sizes as they are, 1.1 billion parameters."""
    width: int = 2048
    """Features of the residual stream."""
    ffn_width: int = 5632
    """Features of the gated MLP."""
    heads: int = 32
    """Heads of queries; an eighth as many of keys and values."""
    vocab_size: int = 32000
    """Rows of the table, and columns of the head."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of the checkpoints."""
    shard_bytes: float = 1e9
    """Of one file."""
    folder: Path | None = None
    """Where checkpoints are written, and removed again; the system's folder for temporary files if left out."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One load. peak_bytes: how far resident memory rose above `before_bytes`."""

    dtype: str
    devices: tuple[int, int]
    file_bytes: int
    before_bytes: int
    peak_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        return self.peak_bytes / self.file_bytes


def write_random(folder: Path, settings: Settings, dtype: str) -> int:
    """Write a checkpoint of random numbers. Returns the bytes of its tensors."""
    family = FAMILIES["llama"]
    values: dict[str, Any] = {
        "model_type": "llama", "hidden_size": settings.width, "intermediate_size": settings.ffn_width, "vocab_size": settings.vocab_size,
        "num_hidden_layers": settings.layers, "num_attention_heads": settings.heads, "num_key_value_heads": max(1, settings.heads // 8),
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    kind, rng = np.dtype(jnp.dtype(dtype)), np.random.default_rng(0)
    draw = lambda shape: lambda: rng.standard_normal(shape, np.float32).astype(kind, copy=False)
    lines = matching.lines(family, family.from_hf(values))
    made = {name: hf_files.Made(line.shape, kind, draw(line.shape)) for line in lines for name in line.names}
    hf_files.write(folder, values, made, max_shard_bytes=settings.shard_bytes)
    return sum(one.nbytes for one in made.values())


def layouts(config: Any, dtype: Any, devices: tuple[int, int]) -> Any:
    """Of the parameters, as a forward pass on a wafer wants them; of one device, nothing in particular."""
    if devices == (1, 1):
        return None
    family = FAMILIES["llama"]
    wafer = wse.Wafer(wse.WSE3.scaled(64, 64), tiles=(8, 8), devices=devices)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), family.abstract(config))
    forward = wse.jit(lambda params, tokens: family.apply(config, params, tokens), wafer)
    return forward.lower(shapes, jax.ShapeDtypeStruct((8, 128), jnp.int32)).in_shardings[0]


def resident_bytes(*, peak: bool = False) -> int:
    """Memory of this process that is in RAM, now or at most since `forget_peak`, pages of mapped files included."""
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def forget_peak() -> None:
    """Linux counts the peak anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(folder: str, dtype: str, devices: tuple[int, int]) -> dict[str, Any]:
    """Load once, in this process."""
    wse.request_cpu_devices(devices[0] * devices[1])
    family = FAMILIES["llama"]
    config = matching.configuration(hf_files.read_config(folder), family, folder)
    shardings = layouts(config, jnp.dtype(dtype), devices)
    jax.block_until_ready(jax.device_put(np.zeros(8)))  # what JAX starts once
    gc.collect()
    before, began = resident_bytes(), time.perf_counter()
    forget_peak()
    _, params = weights.load(folder, family, config, shardings=shardings)
    found = {"before_bytes": before, "peak_bytes": resident_bytes(peak=True) - before, "seconds": time.perf_counter() - began}
    leaves = jax.tree.leaves(params)
    assert {x.dtype for x in leaves} == {jnp.dtype(dtype)} and all(len(x.sharding.device_set) == devices[0] * devices[1] for x in leaves)
    return found


def measured(folder: Path, dtype: str, devices: tuple[int, int], file_bytes: int) -> Row:
    """Load once, in a fresh process.

    Raises:
      ValueError: it failed, with what it said.
    """
    code = f"import json; from experiments.loading_memory import measure; print(json.dumps(measure({str(folder)!r}, {dtype!r}, {devices})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise ValueError(f"loading {folder} onto {devices} devices failed: {done.stderr[-800:]}")
    return Row(dtype, devices, file_bytes, **json.loads(done.stdout.splitlines()[-1]))


def table(rows: Sequence[Row]) -> Table:
    """What was measured, a line a load."""
    shown = Table(title="Host memory of a load, above what it was before", title_justify="left")
    for name in ("dtype", "devices", "files", "before", "peak", "peak / files", "seconds", "GB/s"):
        shown.add_column(name, justify="right")
    for r in rows:
        sizes = (f"{n / 1e9:.3f} GB" for n in (r.file_bytes, r.before_bytes, r.peak_bytes))
        speed = f"{r.file_bytes / 1e9 / r.seconds:.2f}"
        shown.add_row(r.dtype, "x".join(map(str, r.devices)), *sizes, f"{r.ratio:.3f}", f"{r.seconds:.1f}", speed)
    return shown


def study(settings: Settings) -> None:
    """Measure every dtype on every grid of devices, and print the table."""
    shown, rows = console(), []
    for dtype in track(settings.dtypes, "loading", console=shown, transient=True):
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            size = write_random(Path(folder), settings, dtype)
            rows += [measured(Path(folder), dtype, devices, size) for devices in ((1, 1), (2, 2))]
    shown.print(table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    return start(study, Settings, __doc__, arguments, prog="python -m experiments.loading_memory")


if __name__ == "__main__":
    sys.exit(main())
