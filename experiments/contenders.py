"""The same GPT training step in several executions, for `experiments.bench`: plain JAX, the wafer, XLA's partitioning, PyTorch.

A contender takes one step at a time, so that a bench can take the steps of all in turn. One that wants a process of its own
(other XLA settings, another library's threads) is served by `python -m experiments.contenders`, a line in, a line out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import wsejax as wse
from models.gpt2 import GPT2Config
from models.transformer import Decoder
from wsejax.training.precision import policy
from wsejax.training.state import TrainState, init_train_state, make_train_step, next_token_loss, split_model

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 1e-4, 1.0
PROGRAMS = {
    "scan": {"scan": True, "remat": "none"},
    "remat": {"scan": True, "remat": "full"},
    "unrolled": {"scan": False, "remat": "none"},
}
WAFERS = {  # name -> (tiles, devices)
    "wafer-1x1": ((1, 1), (1, 1)),
    "wafer-2x2": ((2, 2), (2, 2)),
    "wafer-8x8-on-1x1": ((8, 8), (1, 1)),
    "wafer-8x8-on-2x2": ((8, 8), (2, 2)),
}
WHAT = {
    "plain-scan": "jax.jit, one device, scan over layers",
    "plain-remat": "jax.jit, one device, scan and remat",
    "plain-unrolled": "jax.jit, one device, layers unrolled",
    "plain-bfloat16": "as the reference, in bfloat16, the loss scaled",
    "plain-alone": "as the reference, own process, JAX's default settings",
    "torch": "PyTorch eager, own process",
    "wafer-1x1": "wse.jit, 1x1 tiles on 1x1 devices",
    "wafer-2x2": "wse.jit, 2x2 tiles on 2x2 devices",
    "wafer-8x8-on-1x1": "wse.jit, 8x8 tiles on 1x1 devices",
    "wafer-8x8-on-2x2": "wse.jit, 8x8 tiles on 2x2 devices",
    "xla-2x2": "XLA's own partitioning, 2x2 devices",
}
NARROW = ("plain-bfloat16",)
OWN_PROCESS = ("plain-alone", "torch")
# The environment before virtual devices were asked for: what a plain JAX program of the user's would see.
_ENVIRONMENT = dict(os.environ)


class MissingError(RuntimeError):
    """The contender cannot run here for lack of something that may be lacking."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every contender trains. Sizes count elements; `program` is how the model's layers are written, a key of PROGRAMS."""

    layers: int = 4
    width: int = 256
    heads: int = 8
    vocab: int = 512
    batch: int = 8
    sequence: int = 128
    program: str = "scan"
    threads: int = 2  # PyTorch's; XLA takes what the machine has

    def config(self, program: str | None = None) -> GPT2Config:
        """Raises ValueError for sizes that do not fit together."""
        return GPT2Config(
            vocab_size=self.vocab, context=self.sequence, layers=self.layers, heads=self.heads, width=self.width,
            **PROGRAMS[program or self.program],
        )  # fmt: skip

    @functools.cached_property
    def data(self) -> dict[str, np.ndarray]:
        """The one batch, taken at every step: its loss then falls fast, so that a wrong gradient or update shows."""
        text = np.random.default_rng(0).integers(0, self.vocab, (self.batch, self.sequence + 1)).astype(np.int32)
        return {"tokens": text[:, :-1], "targets": text[:, 1:]}

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))

    def step(self, program: str | None = None) -> Callable[..., Any]:
        """The pure training step: (state, batch) -> (state, metrics)."""
        apply, _ = split_model(nnx.eval_shape(lambda: Decoder(self.config(program), rngs=nnx.Rngs(0))))
        return make_train_step(
            lambda params, batch, key: next_token_loss(apply(params, batch["tokens"]), batch["targets"]), self.tx, stochastic=False
        )

    @functools.cached_property
    def initial_state(self) -> Callable[[], TrainState]:
        """Makes the state before the first step, in fresh buffers at every call: contenders donate theirs."""
        return self.starts_with(self.tx)

    def starts_with(self, tx: optax.GradientTransformation) -> Callable[[], TrainState]:
        return jax.jit(lambda: init_train_state(split_model(Decoder(self.config(), rngs=nnx.Rngs(0)))[1], tx, seed=0))


class Contender(Protocol):
    def step(self) -> tuple[float, float]:
        """Take the next training step to its end. Returns its loss (before the update) and its host seconds."""
        ...

    def close(self) -> None: ...


class JaxContender:
    """A compiled step and the state it advances. Blocks on every result: queued steps would hide what a step costs, and a
    long queue of programs with collectives deadlocks in older releases of JAX."""

    def __init__(self, function: Callable[..., Any], state: Any, batch: Any, mesh: Mesh | None = None) -> None:
        self.function, self.state, self.batch, self.mesh = function, state, batch, mesh

    def step(self) -> tuple[float, float]:
        with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
            start = time.perf_counter()
            self.state, metrics = jax.block_until_ready(self.function(self.state, self.batch))
            seconds = time.perf_counter() - start
        return float(metrics["loss"]), seconds

    def close(self) -> None:
        del self.state, self.batch


def plain(work: Workload, program: str | None = None) -> JaxContender:
    """`jax.jit` on one device, outside any mesh: under an ambient one, plain code runs on every device of it."""
    return JaxContender(jax.jit(work.step(program), donate_argnums=0), work.initial_state(), jax.device_put(work.data))


def in_bfloat16(work: Workload) -> JaxContender:
    """The reference's program in bfloat16 with float32 masters, its loss scaled: what the policy and the scaling cost on this host."""
    how = policy("bfloat16")
    narrow = dataclasses.replace(work.config(), dtype=how.compute_dtype)
    apply, _ = split_model(nnx.eval_shape(lambda: Decoder(narrow, rngs=nnx.Rngs(0))))
    loss = how.apply(lambda params, batch, key: next_token_loss(apply(params, batch["tokens"]), batch["targets"]))
    tx = how.scaled(work.tx, initial=2.0**15)
    step = jax.jit(make_train_step(loss, tx, stochastic=False), donate_argnums=0)
    return JaxContender(step, work.starts_with(tx)(), jax.device_put(work.data))


def on_wafer(work: Workload, tiles: tuple[int, int], devices: tuple[int, int]) -> JaxContender:
    """`wse.jit` on a perfect 32 x 32 piece of a wafer (defects change no result and no host time), arguments laid out as it wants them."""
    step = wse.jit(work.step(), wse.Wafer(wse.WSE3.scaled(32, 32), tiles=tiles, devices=devices), donate_argnums=0)
    state = work.initial_state()
    in_shardings = step.lower(state, work.data).in_shardings
    return JaxContender(step, *jax.device_put((state, work.data), in_shardings))


def xla_partitioned(work: Workload, devices: tuple[int, int] = (2, 2)) -> JaxContender:
    """The plain step over a mesh with Auto axes: weights (in/y, out/x), batch over y, the rest is XLA's choice.

    Results keep the layout of the arguments they replace: else the second call compiles again, and nothing is donated.
    """
    grid = np.array(jax.devices()[: devices[0] * devices[1]]).reshape(devices)
    mesh = Mesh(grid, ("y", "x"), axis_types=(AxisType.Auto,) * 2)
    state = work.initial_state()
    at_state = jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, _weight_spec(path, x.ndim)), state)
    batch = jax.device_put(work.data, NamedSharding(mesh, P("y")))
    step = jax.jit(work.step(), donate_argnums=0, out_shardings=(at_state, NamedSharding(mesh, P())))
    return JaxContender(step, jax.device_put(state, at_state), batch, mesh)


def _weight_spec(path: tuple[Any, ...], ndim: int) -> P:
    """Weights (in/y, out/x), vectors by feature; stacked ones whole along layers. Attention is split by heads, not within one."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    stacked = (None,) if "blocks" in names else ()
    rank = ndim - len(stacked)
    if rank <= 0 or "rng" in names:
        return P()
    if rank == 1:
        return P(*stacked, "x")
    if names[-2:-1] in (["q"], ["k"], ["v"]):
        return P(*stacked, *(("y", "x") if names[-1] == "kernel" else ("x",)))  # (width, heads, head_width), or without the width
    if names[-2:] == ["out", "kernel"]:
        return P(*stacked, "y", None, "x")  # (heads, head_width, width)
    return P(*stacked, "y", "x")


class TorchContender:
    """The PyTorch twin, its weights copied from the flax model. Needs torch in this process."""

    def __init__(self, work: Workload) -> None:
        from experiments import torch_twin

        twin = torch_twin.twin_of(jax.device_get(work.initial_state().params), heads=work.heads)
        self._step = torch_twin.make_torch_step(
            twin, **work.data, threads=work.threads, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
        )

    def step(self) -> tuple[float, float]:
        start = time.perf_counter()
        loss = self._step()
        return loss, time.perf_counter() - start

    def close(self) -> None:
        del self._step


class Served:
    """A contender in a process of its own, which times its steps itself. It idles while others take theirs."""

    def __init__(self, name: str, work: Workload) -> None:
        self.name = name
        request = json.dumps({"name": name, "work": dataclasses.asdict(work)})
        environment = _ENVIRONMENT | {"JAX_PLATFORMS": jax.default_backend()}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "experiments.contenders"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        try:
            self._ask(request)  # answered once it is built
        except RuntimeError:
            self.close()
            raise

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        with contextlib.suppress(BrokenPipeError):  # a child that died says so by an empty answer
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of contender {self.name} ended with status {self._child.wait()}; its error is above")
        return json.loads(answer)

    def step(self) -> tuple[float, float]:
        answer = self._ask("step")
        return answer["loss"], answer["seconds"]

    def close(self) -> None:
        self._child.communicate()  # the end of its input is its end
        self._child.wait()


def build(name: str, work: Workload) -> Contender:
    """The contender of that name, built (placed, not yet compiled).

    Raises MissingError where something it needs is not installed, ValueError for a name that is not in WHAT.
    """
    if name not in WHAT:
        raise ValueError(f"no contender {name!r}: there are {', '.join(WHAT)}")
    if name == "torch" and importlib.util.find_spec("torch") is None:
        raise MissingError("torch is not installed; `make bench` tries to install it")
    if name in OWN_PROCESS:
        return Served(name, work)
    return build_here(name, work)


def build_here(name: str, work: Workload) -> Contender:
    """The contender in this process."""
    if name == "torch":
        return TorchContender(work)
    if name == "plain-alone":
        return plain(work)
    if name == "xla-2x2":
        return xla_partitioned(work)
    if name in NARROW:
        return in_bfloat16(work)
    if name in WAFERS:
        return on_wafer(work, *WAFERS[name])
    return plain(work, name.removeprefix("plain-"))


def serve() -> None:
    """Take steps for another process: first a line of JSON that says what to build, then a step for each line."""
    request = json.loads(sys.stdin.readline())
    contender = build_here(request["name"], Workload(**request["work"]))
    print("{}", flush=True)
    for _ in sys.stdin:
        loss, seconds = contender.step()
        print(json.dumps({"loss": loss, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    serve()
