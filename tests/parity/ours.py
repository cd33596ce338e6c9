"""Running our models on what a golden folder holds (`write_golden.py` says what that is)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from models.family import Family

Arrays = dict[str, np.ndarray]
# Models this small run for a moment; making fast code of them is all that takes time.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run(fun: Callable[..., Any], *args: Any) -> Any:
    """`jax.jit(fun)(*args)`, compiled in haste."""
    return jax.jit(fun).lower(*args).compile(compiler_options=COMPILE_FAST)(*args)


def arrays(folder: Path) -> Arrays:
    """Inputs and outputs."""
    return load_file(folder / "io.safetensors")


def tensors(folder: Path) -> Arrays:
    """Every tensor of every file of weights, by its name."""
    return {name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()}


def inputs(family: Family, given: Arrays) -> Arrays:
    """What `forward` reads."""
    names = {"decoder": ("tokens",), "encoder": ("tokens", "mask", "segments"), "encoder-decoder": ("tokens", "mask", "targets")}
    return {name: given[name] for name in names[family.kind] if name in given}


def forward(family: Family, config: Any, params: Any, given: dict[str, Any]) -> jax.Array:
    """Logits [rows, length, vocab] float32."""
    if family.kind == "decoder":
        return family.apply(config, params, given["tokens"])
    if family.kind == "encoder":
        return family.apply(config, params, given["tokens"], present=given["mask"], segments=given.get("segments"))
    return family.apply(config, params, given["tokens"], given["targets"], present=given["mask"])


def counted(family: Family, given: Arrays) -> np.ndarray:
    """Which logits count [rows, length], bool."""
    if family.kind == "encoder":
        return given["mask"] == 1
    lengths, like = ("lengths", "tokens") if family.kind == "decoder" else ("target_lengths", "targets")
    return np.arange(given[like].shape[1])[None, :] < given[lengths][:, None]


def loss(family: Family, config: Any, params: Any, given: dict[str, Any], counts: Any) -> jax.Array:
    """Mean cross-entropy over what counts: of the next token for a decoder, of the labels for others."""
    logits = forward(family, config, params, given)
    if family.kind == "decoder":
        logits, labels, counts = logits[:, :-1], given["tokens"][:, 1:], counts[:, 1:]
    else:
        labels = given["labels"]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, :, None], axis=-1)[:, :, 0]
    return (losses * counts).sum() / counts.sum()


def greedy(family: Family, config: Any, params: Any, prompts: jax.Array, lengths: jax.Array, new: int) -> jax.Array:
    """The likeliest continuations [rows, new] int32 of prompts that are padded on the right (of T5: what it reads)."""
    slots = new + (prompts.shape[1] if family.kind == "decoder" else 1)

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        token = state[0].argmax(axis=-1).astype(jnp.int32)
        return family.decode_step(config, params, token, state[1]), token

    return jax.lax.scan(step, family.prefill(config, params, prompts, lengths, slots), None, length=new)[1].T


def prompts(family: Family, given: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and their lengths; of T5 what it reads."""
    if family.kind == "decoder":
        return given["prompts"], given["prompt_lengths"]
    return given["tokens"], given["mask"].sum(axis=1).astype(np.int32)


def difference(ours: Any, theirs: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Largest difference where it counts, over the largest of theirs."""
    there = np.ones(theirs.shape[:2], bool) if counts is None else counts
    a, b = np.asarray(ours, np.float32)[there], theirs[there]
    return float(np.abs(a - b).max() / np.abs(b).max())
