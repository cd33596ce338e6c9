"""Whole training steps, lowered from shapes and priced product by product, against the runs that ALCF published (user guides of its AI
testbed, 2023 to 2025). One constant of each generation is fitted: what share of its lanes products keep busy (`GEMM_SHARE`)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import wsejax as wse
from models.decoder import DecoderConfig, abstract_train_step
from models.presets import find


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


@functools.cache
def lowered(id: str) -> wse.Lowered:
    """The training step of a run in bfloat16, by AdamW, every layer recomputed in the backward pass."""
    run = RUNS[id]
    dims = find(run.model)
    config = DecoderConfig.of({**dims, "context": max(run.seq_len, dims["context"])}, dtype=jnp.bfloat16)
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    wafer = wse.Wafer(wse.WSE3, tiles=(16, 16), devices=(1, 1))
    return wse.jit(step, wafer, donate_argnums=0).lower(state, jax.ShapeDtypeStruct((run.batch, run.seq_len + 1), jnp.int32))


def modelled(id: str, share: float | None = None) -> float:
    """Samples a second; with `share`, of a system whose products keep that share of the nominal lanes busy."""
    run = RUNS[id]
    system = run.system
    if share is not None:
        lanes = {"gemm_fp16_fma_per_cycle": share * system.fp16_fma_per_cycle, "gemm_fp32_fma_per_cycle": share * system.fp32_fma_per_cycle}
        system = system.replace(**lanes)
    return run.batch / wse.cost(lowered(id), system, execution="streamed").step_seconds


def fitted_share(ids: list[str]) -> float:
    """That with the least squares of log(modelled / published) over some runs of one generation."""
    miss = lambda share: sum(math.log(modelled(id, share) / RUNS[id].samples_per_second) ** 2 for id in ids)
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
    rounded = lambda values, q: round(float(np.quantile(values, q)), 5)
    return {
        "constants": {f"{name} gemm share": round(share, 4) for name, share in shares.items()},
        "folds": [],
        "ids": list(RUNS),
        "points": len(RUNS),
        "median": rounded(inside, 0.5),
        "p90": rounded(inside, 0.9),
        "held_out_median": rounded(held_out, 0.5),
        "held_out_p90": rounded(held_out, 0.9),
    }
