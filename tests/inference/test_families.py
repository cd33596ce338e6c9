"""Real models through the driver: tokens of `transformers`, and logits of single steps against whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import wsejax as wse
from models.families import FAMILIES
from models.family import resized
from wsejax.cli.generate import find_source
from wsejax.inference import Generator, Model

pytestmark = pytest.mark.slow  # tests/cli/test_generate.py holds one of them in a few seconds
GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
GENERATING = ["mistral", "mixtral", "falcon", "t5"]  # a window, experts, one key for all, an encoder; all families in tests/models


def on_wafer() -> wse.Wafer:
    spec = wse.WSE3.scaled(16, 16)
    return wse.Wafer(
        spec, wse.DefectMap.uniform(spec, dead_pe_fraction=0.02, dead_link_fraction=0.005, seed=0), tiles=(4, 4), devices=(2, 2)
    )


def golden(case: str, wafer: wse.Wafer | None, balanced: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the driver, in strict `wse.jit`, and of `transformers`, of prompts of different lengths."""
    source, io = find_source(str(GOLDEN / case), "float32"), load_file(GOLDEN / case / "io.safetensors")
    texts, lengths = (io["prompts"], io["prompt_lengths"]) if "prompts" in io else (io["tokens"], io["mask"].sum(1))
    prompts, want = [row[:n].tolist() for row, n in zip(texts, lengths, strict=True)], io["generated"]
    generator = Generator(Model.of(source.family, source.config), source.family.abstract(source.config), wafer=wafer, balanced=balanced)
    run = generator.start(source.load(None), prompts, want.shape[1], stop_tokens=())
    return np.stack(list(run), 1), want


@pytest.mark.parametrize("case", ["llama_gqa", "mixtral", "falcon_alibi", "t5_gated"])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_wafer_generates_what_transformers_does_with_either_cache(case, balanced):
    np.testing.assert_array_equal(*golden(case, on_wafer(), balanced))


@pytest.mark.parametrize("name", GENERATING)
def test_tokens_are_those_of_whole_sequences(name):
    """Sequences that end early are padded on, and disturb nobody. Logits of each step, by the very functions of the driver."""
    family = FAMILIES[name]
    config = resized(family.presets["tiny"], layers=2, width=16, heads=2, context=48, vocab_size=61)
    params = family.init(config, jax.random.key(3))
    params = jax.tree.map(lambda x: x * 4, params)  # as they are made, all tokens are about equally likely
    model = Model.of(family, config)
    prompts, new = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]], 10
    free = Generator(model, params).start(params, prompts, new, stop_tokens=())
    list(free)
    stop = free.tokens[1][3]
    run = Generator(model, params, wafer=on_wafer()).start(params, prompts, new, stop_tokens=[stop])
    list(run)
    logits = _stepwise(model, params, prompts, free.tokens)
    for row, (prompt, tokens) in enumerate(zip(prompts, free.tokens, strict=True)):
        end = tokens.index(stop) + 1 if stop in tokens else new
        assert run.tokens[row] == tokens[:end]
        if family.kind == "decoder":
            whole = family.apply(config, params, jnp.array([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
        else:
            whole = family.apply(config, params, jnp.array([prompt]), jnp.array([[config.start_token, *tokens[:-1]]]))[0]
        np.testing.assert_array_equal(np.argmax(whole, -1), tokens)
        scale = float(np.abs(whole).max())
        np.testing.assert_allclose(logits[:, row], whole, atol=1e-5 * scale)


def _stepwise(model: Any, params: Any, prompts: list[list[int]], tokens: list[list[int]]) -> np.ndarray:
    """[step, batch, vocab], of prompts of different lengths."""
    seq = max(map(len, prompts))
    padded = jnp.array([prompt + [0] * (seq - len(prompt)) for prompt in prompts], jnp.int32)
    logits, cache = jax.jit(model.prefill, static_argnums=3)(params, padded, jnp.array([len(p) for p in prompts]), 32)
    step, found = jax.jit(model.decode_step), [logits]
    for column in np.array(tokens).T[:-1]:
        logits, cache = step(params, jnp.asarray(column, jnp.int32), cache)
        found.append(logits)
    return np.stack(found)
