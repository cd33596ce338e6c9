"""Host time of compiling: tracing against `jax.jit`, the audit of a 70B model, the cache. `python -m experiments.compile_bench --help`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from rich.console import Console

import wsejax as wse
from models.gpt2 import GPT2Config
from models.transformer import Decoder
from wsejax.training import init_train_state, make_train_step, next_token_loss, split_model

from .entry import start

BATCH, CONTEXT = 8, 128


@dataclass(frozen=True)
class Settings:
    """Measure how long it takes to trace, audit and (with the cache) compile a training step."""

    part: Literal["all", "trace", "audit", "cache", "once"] = "all"
    """What to measure; "once" compiles the scanned GPT once and prints the seconds, as each process of "cache" does."""
    layers: int = 24
    """Blocks of the scanned GPT."""
    rounds: int = 5
    """Times each trace is taken; the median counts."""


def gpt_step(layers: int) -> tuple[Callable, tuple[Any, ...]]:
    """A GPT train step with scan, remat, AdamW and clipping, and the shapes of its arguments."""
    config = GPT2Config(vocab_size=512, context=CONTEXT, layers=layers, heads=8, width=256, remat="full")
    apply, params = split_model(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))
    step = make_train_step(lambda p, b, key: next_token_loss(apply(p, b["inputs"], key), b["targets"]), tx)
    tokens = jax.ShapeDtypeStruct((BATCH, CONTEXT), np.int32)
    return step, (jax.eval_shape(lambda p: init_train_state(p, tx, seed=0), params), {"inputs": tokens, "targets": tokens})


def llama_step(layers: int = 80, width: int = 8192, heads: int = 64, kv_heads: int = 8, inner: int = 28672, vocab: int = 128256):
    """An AdamW step of a decoder of the shape of Llama 3 70B (Grattafiori et al. 2024, table 3) in plain JAX, and its arguments' shapes."""
    head, batch, tokens = width // heads, 16, 4096
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype)
    params = {
        "table": shape(vocab, width), "head": shape(width, vocab), "norm": shape(width),
        "layers": {
            "q": shape(layers, width, heads, head), "k": shape(layers, width, kv_heads, head), "v": shape(layers, width, kv_heads, head),
            "out": shape(layers, heads, head, width), "gate": shape(layers, width, inner), "up": shape(layers, width, inner),
            "down": shape(layers, inner, width), "norm1": shape(layers, width), "norm2": shape(layers, width),
        },
    }  # fmt: skip

    def norm(x, scale):
        wide = x.astype(jnp.float32)
        return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-5)).astype(x.dtype) * scale

    def rotate(x):
        angle = jnp.arange(x.shape[1])[:, None] * 500000.0 ** (-jnp.arange(0, head, 2) / head)[None]
        cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)

    def layer(x, w):
        h = norm(x, w["norm1"])
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, w[name]) for name in "qkv")
        x = x + jnp.einsum("bthk,hkd->btd", jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True), w["out"])
        h = norm(x, w["norm2"])
        return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"], None

    def loss(params, ids):
        x, _ = lax.scan(jax.checkpoint(layer), params["table"][ids[:, :-1]], params["layers"])
        logits = (norm(x, params["norm"]) @ params["head"]).astype(jnp.float32)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1))

    tx = optax.adamw(1e-4)

    def step(state, ids):
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params, ids)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    return step, ((params, jax.eval_shape(tx.init, params)), shape(batch, tokens + 1, dtype=jnp.int32))


def seconds(work: Callable[[], Any]) -> float:
    jax.clear_caches()  # else what one trace finds helps the next
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def trace(settings: Settings, console: Console) -> None:
    step, args = gpt_step(settings.layers)
    wafer = wse.Wafer(wse.WSE3, tiles=(8, 8), devices=(1, 1))
    work = {
        "trace": (lambda: jax.jit(step).trace(*args), lambda: wse.jit(step, wafer, donate_argnums=0).lower(*args)),
        "trace and StableHLO": (
            lambda: jax.jit(step).lower(*args).as_text(),
            lambda: wse.jit(step, wafer, donate_argnums=0).lower(*args).as_text(),
        ),
    }
    for what, (plain, ours) in work.items():
        pairs = [(seconds(plain), seconds(ours)) for _ in range(settings.rounds)]
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(y / x for x, y in pairs)
        console.print(f"{settings.layers}-layer scanned GPT, {what}: jax.jit {a:.2f} s, wse.jit {b:.2f} s, ratio {ratio:.2f}")


def audit(console: Console) -> None:
    step, args = llama_step()
    for tiles in ((8, 8), (16, 16)):
        fun = wse.jit(step, wse.Wafer(wse.WSE3, tiles=tiles, devices=(1, 1)), donate_argnums=0)
        took = seconds(lambda fun=fun: wse.audit(fun, *args))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB here
        found = wse.audit(fun, *args).to_dict()
        clean = "all on the fabric" if found["clean"] else "NOT all on the fabric"
        console.print(
            f"audit of a Llama-70B-shaped train step on {tiles[0]} x {tiles[1]} tiles: {took:.2f} s, peak of the process {peak:.2f} GiB, "
            f"{clean}, {found['link_bytes']:.2e} link bytes"
        )


def once(settings: Settings) -> None:
    wse.request_cpu_devices(4)
    step, args = gpt_step(settings.layers)
    compiled = wse.jit(step, wse.Wafer(wse.WSE3, tiles=(8, 8), devices=(2, 2)), donate_argnums=0).lower(*args).compile()
    print(compiled.cache.state, compiled.cache.seconds)


def cache(settings: Settings, console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.compile_bench", "--part", "once", "--layers", str(settings.layers)]
        environment = os.environ | {"WSEJAX_CACHE_DIR": folder}
        took = {}
        for expected in ("miss", "hit"):
            run = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
            state, spent = run.stdout.split()[-2:]
            if state != expected:
                raise RuntimeError(f"the cache says {state}, expected {expected}:\n{run.stderr}")
            took[state] = float(spent)
    miss, hit = took["miss"], took["hit"]
    console.print(f"compiled on 2 x 2 devices in a new process: miss {miss:.2f} s, hit {hit:.2f} s, {miss / hit:.1f} times")


def main(settings: Settings) -> None:
    console = Console(soft_wrap=True)
    if settings.part == "once":
        return once(settings)
    if settings.part in ("all", "trace"):
        trace(settings, console)
    if settings.part in ("all", "audit"):
        audit(console)
    if settings.part in ("all", "cache"):
        cache(settings, console)


if __name__ == "__main__":
    sys.exit(start(main, Settings, Settings.__doc__))
