"""Device memory of a training step, resident and streamed: `python -m experiments.streaming_memory --help`.

Deeper and deeper GPTs are trained on a wafer whose SRAM holds the state of none of them. What the state takes grows with the layers; what
is on the device at one time, streamed, must not. On CPU bytes are counted by the lives of the program's values; where the device has an
allocator that counts (GPU), its peak is printed beside.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track
from rich.table import Table

import wsejax as wse
from models.gpt2 import GPT2Config
from models.transformer import Decoder
from wsejax.hardware import system_of
from wsejax.training.state import init_train_state, make_train_step, next_token_loss, split_model

from .entry import console, start


@dataclasses.dataclass(frozen=True)
class Settings:
    """Device memory of a training step against depth."""

    layers: tuple[int, ...] = (6, 12, 24)
    """Depths to try."""
    width: int = 192
    """Features of the residual stream."""
    batch: int = 4
    """Sequences in a batch."""
    context: int = 32
    """Tokens in a sequence."""
    pes: tuple[int, int] = (16, 16)
    """PEs (rows, columns) of the wafer, whose SRAM is what may be resident."""
    tiles: tuple[int, int] = (2, 2)
    """Tiles (rows, columns)."""
    steps: int = 2
    """Steps to train each; 0 only counts."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One depth. Bytes; `allocator_bytes` is None where the device does not count."""

    layers: int
    layer_bytes: int  # float32 weights of one layer
    state_bytes: int
    allowed_bytes: int  # SRAM for data
    resident_bytes: int
    streamed_bytes: int
    allocator_bytes: int | None
    losses: tuple[float, ...]
    seconds: float


def measure(settings: Settings, layers: int) -> Row:
    """Count, and train for a few steps, a GPT of so many layers."""
    config = GPT2Config(context=settings.context, layers=layers, heads=4, width=settings.width, remat="full")
    wafer = wse.Wafer(wse.WSE3.scaled(*settings.pes), tiles=settings.tiles, devices=(1, 1))
    cluster = wse.Cluster(wafer)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    def build() -> Any:
        return init_train_state(split_model(Decoder(config, rngs=nnx.Rngs(0)))[1], tx, seed=0)

    apply, _ = split_model(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    loss = lambda p, batch, key=None: next_token_loss(apply(p, batch["tokens"], key), batch["targets"])
    step = make_train_step(loss, tx, stochastic=False)
    shapes = jax.eval_shape(build)
    tokens = np.random.default_rng(0).integers(0, 256, (2, settings.batch, settings.context)).astype(np.int32)
    batch = {"tokens": tokens[0], "targets": tokens[1]}
    jitted = {
        execution: wse.jit(step, cluster, donate_argnums=0, streamed_argnums=0, execution=execution) for execution in ("resident", "auto")
    }
    lowered = {execution: fun.lower(shapes, batch) for execution, fun in jitted.items()}
    if {s.memory_kind for s in jax.tree.leaves(lowered["auto"].in_shardings[0])} == {"device"}:
        raise ValueError(f"layers={layers}: the state fits into the wafer, so nothing streams; give more layers or fewer --pes")
    losses, began, allocator = [], time.perf_counter(), None
    if settings.steps:
        state = jax.device_put(jax.device_get(build()), lowered["auto"].in_shardings[0])
        gc.collect()
        for _ in range(settings.steps):
            state, metrics = jitted["auto"](state, batch)
            losses.append(float(metrics["loss"]))
        allocator = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    size = lambda tree: sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
    machine = system_of(wafer.spec, wafer.spec.name).of(wafer)
    return Row(
        layers,
        size(shapes.params["blocks"]) // layers,
        size(shapes),
        int(machine.sram_bytes),
        lowered["resident"].device_bytes(),
        lowered["auto"].device_bytes(),
        allocator,
        tuple(losses),
        time.perf_counter() - began,
    )


def table(rows: Sequence[Row]) -> Table:
    """What was counted, a line a depth. A layer's state is its weights, their gradient and two moments."""
    shown = Table(title="Device memory of a training step (counted by the lives of values)", title_justify="left")
    for name in ("layers", "state", "state / SRAM", "resident", "streamed", "in layers' state", "allocator", "loss"):
        shown.add_column(name, justify="right")
    for r in rows:
        allocator = "-" if r.allocator_bytes is None else f"{r.allocator_bytes / 1e6:.1f} MB"
        shown.add_row(
            str(r.layers), f"{r.state_bytes / 1e6:.1f} MB", f"{r.state_bytes / r.allowed_bytes:.1f}", f"{r.resident_bytes / 1e6:.1f} MB",
            f"{r.streamed_bytes / 1e6:.1f} MB", f"{r.streamed_bytes / r.layer_bytes / 4:.1f}", allocator,
            " ".join(f"{x:.3f}" for x in r.losses[-1:]),
        )  # fmt: skip
    return shown


def study(settings: Settings) -> None:
    """Measure every depth and print the table."""
    wse.request_cpu_devices(1)
    shown = console()
    rows = [measure(settings, n) for n in track(settings.layers, "training", console=shown, transient=True)]
    shown.print(table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    return start(study, Settings, __doc__, arguments, prog="python -m experiments.streaming_memory")


if __name__ == "__main__":
    sys.exit(main())
