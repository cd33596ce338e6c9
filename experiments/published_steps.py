"""Whole training steps, lowered from shapes and priced product by product, against the runs that ALCF published (user guides of its AI
testbed, 2023 to 2025).

Twice: as kernels alone, with one constant of each generation, what share of its lanes products keep busy (`GEMM_SHARE`); and compiled for a
cluster, so that the program says what streams and the software of each layer and the boundary of each step are counted apart, with one
constant of both generations (`Streaming.matrix_share`). `python -m experiments.published_steps` prints both beside what was published.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import wsejax as wse
from models.decoder import abstract_train_step, decoder_config
from models.presets import find
from wsejax.cost.training import Streaming
from wsejax.report import Sheet

from .entry import console


@dataclass(frozen=True)
class Run:
    """A published run. `batch` is that of one system, as is `samples_per_second`."""

    id: str
    model: str
    batch: int
    seq_len: int
    system: wse.System
    samples_per_second: float


RUNS = {
    run.id: run
    for run in (
        Run("alcf-llama2-7b-train-1cs3", "llama-2-7b", 1024, 4096, wse.CS3, 31.98),
        Run("alcf-gptj-6b-train-1cs3", "gpt-j-6b", 120, 2048, wse.CS3, 44.75),
        Run("alcf-gptj-6b-train-2cs2", "gpt-j-6b", 60, 2048, wse.CS2, 43.67 / 2),
        Run("alcf-bert-large-train-1cs2", "bert-large", 1024, 128, wse.CS2, 4044.0),
    )
}


def _lowered(id: str, machine: wse.Wafer | wse.Cluster, **options: Any) -> wse.Lowered:
    """The training step of a run in bfloat16, by AdamW, every layer recomputed in the backward pass."""
    run = RUNS[id]
    dims = find(run.model)
    config = decoder_config({**dims, "context": max(run.seq_len, dims["context"])}, dtype="bfloat16", param_dtype="bfloat16")
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    tokens = jax.ShapeDtypeStruct((run.batch, run.seq_len + 1), jnp.int32)
    return wse.jit(step, machine, donate_argnums=0, **options).lower(state, tokens)


@functools.cache
def lowered(id: str) -> wse.Lowered:
    """The step as kernels alone."""
    return _lowered(id, wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1)))


@functools.cache
def streamed(id: str) -> wse.Lowered:
    """The same step with its state in MemoryX."""
    cluster = wse.Cluster(wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1)))
    return _lowered(id, cluster, streamed_argnums=0, execution="streamed")


def modelled_streamed(id: str, share: float | None = None) -> float:
    """Samples a second of the step that streams; with `share`, of products that keep that share of the nominal lanes busy."""
    by = Streaming() if share is None else Streaming(matrix_share=share)
    return RUNS[id].batch / wse.cost(streamed(id), RUNS[id].system, streaming=by).step_seconds


def modelled(id: str, share: float | None = None) -> float:
    """Samples a second; with `share`, of a system whose products keep that share of the nominal lanes busy."""
    run = RUNS[id]
    system = run.system
    if share is not None:
        lanes = {"gemm_fp16_fma_per_cycle": share * system.fp16_fma_per_cycle, "gemm_fp32_fma_per_cycle": share * system.fp32_fma_per_cycle}
        system = system.replace(**lanes)
    return run.batch / wse.cost(lowered(id), system, execution="streamed").step_seconds


def fitted_share(ids: list[str], model: Callable[[str, float], float] = modelled) -> float:
    """That with the least squares of log(modelled / published) over some runs."""
    miss = lambda share: sum(math.log(model(id, share) / RUNS[id].samples_per_second) ** 2 for id in ids)
    found: Any = scipy.optimize.minimize_scalar(miss, bounds=(0.05, 1.0), method="bounded", options={"xatol": 1e-4})
    return float(found.x)


def errors() -> dict[str, Any]:
    """The record of `fitted.json`: the shares, and errors with them and with those of the other runs of the generation."""
    names = sorted({run.system.name for run in RUNS.values()})
    of = {name: [id for id, run in RUNS.items() if run.system.name == name] for name in names}
    shares = {name: fitted_share(ids) for name, ids in of.items()}
    error = lambda id, share: abs(modelled(id, share) / RUNS[id].samples_per_second - 1.0)
    inside = [error(id, shares[name]) for name, ids in of.items() for id in ids]
    held_out = [error(id, fitted_share([other for other in ids if other != id])) for ids in of.values() for id in ids]
    return _record({f"{name} gemm share": share for name, share in shares.items()}, inside, held_out)


def streamed_errors() -> dict[str, Any]:
    """The same of steps that stream, with one share for both generations, and errors with that of the other runs."""
    share = fitted_share(list(RUNS), modelled_streamed)
    error = lambda id, share: abs(modelled_streamed(id, share) / RUNS[id].samples_per_second - 1.0)
    held_out = [error(id, fitted_share([other for other in RUNS if other != id], modelled_streamed)) for id in RUNS]
    return _record({"matrix share": share}, [error(id, share) for id in RUNS], held_out)


def _record(constants: dict[str, float], inside: list[float], held_out: list[float]) -> dict[str, Any]:
    rounded = lambda values, q: round(float(np.quantile(values, q)), 5)
    return {
        "constants": {name: round(value, 4) for name, value in constants.items()},
        "folds": [],
        "ids": list(RUNS),
        "points": len(RUNS),
        "median": rounded(inside, 0.5),
        "p90": rounded(inside, 0.9),
        "held_out_median": rounded(held_out, 0.5),
        "held_out_p90": rounded(held_out, 0.9),
    }


def main() -> None:
    rows = []
    for id, run in RUNS.items():
        parts = wse.cost(streamed(id), run.system).streamed
        assert parts is not None
        off = lambda value, run=run: f"{value:,.2f} ({value / run.samples_per_second - 1:+.1%})"
        found = {name: f"{seconds:.3g}" for name, seconds in parts.parts().items()}
        rows.append(
            (
                id, f"{run.samples_per_second:,.2f}", off(modelled(id)), off(modelled_streamed(id)), found["compute"], found["software"],
                found["boundary"], found["stall"],
            )
        )  # fmt: skip
    columns = ("run", "samples/s", "kernels alone", "streamed", "compute (s)", "software", "boundary", "stall")
    show = console()
    show.print(Sheet(columns, rows, title="published runs, modelled with the constants that ship", fold={"run": 20}))
    for name, record in (("kernels alone", errors()), ("streamed", streamed_errors())):
        show.print(f"{name}: {record['constants']}, median error {record['median']:.1%}, held out {record['held_out_median']:.1%}")


if __name__ == "__main__":
    main()
