"""Adapters: the model that they begin as, what they add in every family, and how PEFT has them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from models import lora, peft, weights
from models.families import FAMILIES, find
from models.matching import flat, lines

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
CASES = ["gpt2", "gpt_neox", "falcon_40b", "mpt", "mixtral", "llama_gqa", "t5_gated"]
"""One of every way that tables make tensors: Conv1D, fused one after the other and by head, grouped, experts, single, two stacks."""


def loaded(case: str):
    said = json.loads((GOLDEN / case / "config.json").read_text())["model_type"]
    family = next(family for family in FAMILIES.values() if family.model_type == said)
    return family, *weights.load(GOLDEN / case, family)


def drawn(adapters, seed=0):
    """Adapters of the same shapes that are nowhere zero."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32) / 4, adapters)


def every_matrix(family, config) -> str:
    return "|".join(lora.linears(family, config))


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_adds_to_each_tensor_what_is_merged_into_it(case):
    """W + alpha / rank B A, module by module, is the tensor that the table makes of the merged parameters."""
    family, config, params = loaded(case)
    pattern, alpha, rank = every_matrix(family, config), 3.0, 2
    adapters = drawn(jax.eval_shape(lambda key: lora.init(family, config, key, pattern=pattern, rank=rank), jax.random.key(0)))
    merged = jax.jit(lambda p, a: lora.merge(p, a, alpha=alpha))(params, adapters)
    tensors = [
        {name: made.make() for name, made in weights.tensors(lines(family, config), flat(p).__getitem__, {x: np.float32 for x in flat(p)})}
        for p in (params, merged)
    ]
    changed = {name for name in tensors[0] if (tensors[0][name] != tensors[1][name]).any()}
    exported = {name + ".weight": (a, b) for name, a, b in peft.modules(family, config, adapters)}
    assert exported.keys() == changed
    for name, (a, b) in exported.items():
        before, after = (t[name] if case != "gpt2" or "lm_head" in name else t[name].T for t in tensors)
        assert a.shape == (len(a), before.shape[1]) and b.shape == (before.shape[0], len(a)) and len(a) in (rank, 3 * rank), name
        np.testing.assert_allclose(before + alpha / rank * b @ a, after, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_merged_kernel_does_what_the_kernel_and_its_adapter_do():
    family, config, params = loaded("llama_gqa")
    pattern = "blocks/(attention/(q|out)|mlp/down)/kernel|head/kernel"
    adapters = drawn(jax.eval_shape(lambda key: lora.init(family, config, key, pattern=pattern, rank=2), jax.random.key(0)))
    merged, kernels = (flat(x) for x in (jax.jit(lambda p, a: lora.merge(p, a, alpha=8.0))(params, adapters), params))
    random = np.random.default_rng(0)
    for path, linear in lora.matched(family, config, pattern, 2).items():
        pair = lora.pairs_of(adapters)[path]
        for at in np.ndindex(linear.cut[0]):
            matrix = lambda x, axes, at=at: np.asarray(x)[at].reshape(axes)
            n, m = linear.sizes
            x = random.normal(size=(5, n)).astype(np.float32)
            beside = x @ matrix(kernels[path], (n, m)) + 8.0 / 2 * (x @ matrix(pair["a"], (n, 2))) @ matrix(pair["b"], (2, m))
            np.testing.assert_allclose(x @ matrix(merged[path], (n, m)), beside, rtol=1e-5, atol=1e-6)
    assert all((merged[path] == kernels[path]).all() for path in kernels if path not in lora.pairs_of(adapters))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_start_the_parameters_are_bit_for_bit_those_that_they_were(dtype):
    family, config, params = loaded("llama_gqa")
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    start = lambda p, key: lora.merge(
        p, lora.init(family, config, key, pattern="(blocks/(attention/out|mlp/down)|head)/kernel", rank=4), alpha=16.0
    )
    merged = flat(jax.jit(start)(params, jax.random.key(0)))
    for path, leaf in flat(params).items():
        assert merged[path].dtype == dtype and np.asarray(merged[path]).tobytes() == np.asarray(leaf).tobytes(), path


def test_a_is_normal_and_depends_on_its_own_matrix_alone():
    family, config = find("llama:tiny")
    one = lora.init(family, config, jax.random.key(3), pattern="blocks/mlp/up/kernel", rank=8)
    two = lora.init(family, config, jax.random.key(3), pattern="blocks/mlp/(up|down)/kernel", rank=8)
    a = np.asarray(one["blocks"]["mlp"]["up"]["kernel"]["a"])
    np.testing.assert_array_equal(a, two["blocks"]["mlp"]["up"]["kernel"]["a"])
    assert a.shape == (4, 128, 8) and a.dtype == np.float32 and abs(a.std() * np.sqrt(128) - 1) < 0.05
    assert two["blocks"]["mlp"]["down"]["kernel"]["b"].shape == (4, 8, 128)
    assert not np.asarray(two["blocks"]["mlp"]["down"]["kernel"]["b"]).any()


def test_nothing_is_allocated_for_shapes():
    family, config = find("llama:3-70b")
    adapters = jax.eval_shape(
        lambda key: lora.init(family, config, key, pattern="blocks/attention/(q|v)/kernel", rank=16), jax.random.key(0)
    )
    merged = jax.eval_shape(lambda p, a: lora.merge(p, a, alpha=16.0), family.abstract(config), adapters)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(lambda x: (x.shape, x.dtype), family.abstract(config))
    # (width + heads x head width) x rank for q, (width + kv heads x head width) x rank for v
    assert sum(x.size for x in jax.tree.leaves(adapters)) == 80 * 16 * (8192 + 8192 + 8192 + 1024)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kernel_of_every_family_is_known_and_nothing_else(name):
    family, config = find(name)
    known = set(lora.linears(family, config))
    assert known == {path for path in flat(family.abstract(config)) if path.endswith("/kernel") or "/experts/" in path}


@pytest.mark.parametrize(
    ("pattern", "rank", "words"),
    [
        ("(", 2, r"pattern='\(': is no regular expression"),
        ("blocks/attention/q", 2, "matches the whole path of no parameter; matrices of llama are blocks/attention/k/kernel, blocks"),
        ("blocks/.*", 2, "matches blocks/norm1/scale, blocks/norm2/scale, which is no matrix"),
        ("tokens/embedding", 2, "matches tokens/embedding, which is no matrix"),
        (".*/v/kernel", 65, "rank=65: blocks/attention/v/kernel is a matrix of 128 x 64; give 1 to 64"),
        (".*/v/kernel", 0, "rank=0"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(pattern, rank, words):
    family, config = find("llama:tiny")
    with pytest.raises(ValueError, match=words):
        lora.init(family, config, jax.random.key(0), pattern=pattern, rank=rank)


def test_adapters_of_another_model_are_refused():
    family, config = find("llama:tiny")
    pair = {"a": jnp.zeros((4, 128, 2)), "b": jnp.zeros((4, 2, 7))}
    with pytest.raises(ValueError, match="has no parameters blocks/mlp/in/kernel"):
        lora.merge(family.abstract(config), {"blocks": {"mlp": {"in": {"kernel": pair}}}}, alpha=1.0)
    with pytest.raises(ValueError, match=r"blocks/mlp/up/kernel has shape \[4, 128, 384\]"):
        jax.eval_shape(lambda p: lora.merge(p, {"blocks": {"mlp": {"up": {"kernel": pair}}}}, alpha=1.0), family.abstract(config))


def test_the_files_are_those_that_peft_reads(tmp_path):
    family, config = find("gpt2:tiny")
    pattern = "blocks/(attention/(q|v)|mlp/up)/kernel"
    adapters = drawn(jax.eval_shape(lambda key: lora.init(family, config, key, pattern=pattern, rank=4), jax.random.key(0)))
    peft.save(tmp_path / "adapter", family, config, adapters, alpha=8.0, base="base/model")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    names = [f"transformer.h.{layer}.{module}" for module in ("attn.c_attn", "mlp.c_fc") for layer in range(4)]
    assert said["peft_type"] == "LORA" and said["task_type"] == "CAUSAL_LM" and said["base_model_name_or_path"] == "base/model"
    assert (said["r"], said["lora_alpha"], said["fan_in_fan_out"]) == (4, 8.0, True) and said["target_modules"] == names
    assert said["rank_pattern"] == {"attn.c_attn": 8} and said["alpha_pattern"] == {"attn.c_attn": 16.0}
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors.keys() == {f"base_model.model.{name}.lora_{x}.weight" for name in names for x in "AB"}
    assert tensors["base_model.model.transformer.h.3.mlp.c_fc.lora_A.weight"].shape == (4, 128)
    assert tensors["base_model.model.transformer.h.3.attn.c_attn.lora_B.weight"].shape == (384, 8)
    with pytest.raises(ValueError, match="not empty"):
        peft.save(tmp_path / "adapter", family, config, adapters, alpha=8.0)


def test_an_encoder_has_no_task_of_peft(tmp_path):
    family, config = find("bert:tiny")
    adapters = lora.init(family, config, jax.random.key(0), pattern="blocks/mlp/up/kernel", rank=1)
    with pytest.raises(ValueError, match="family=bert"):
        peft.save(tmp_path / "adapter", family, config, adapters, alpha=1.0)
