"""Weights in and out: every bit in its place, in any layout, and an error that says all that does not fit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

import wsejax as wse
from models import hf_files, matching, weights
from models.families import FAMILIES
from tests.models.fakes import DTYPES, Config, Fake, below, fakes, llama_like, numbers, same_bits, write_as_hf

GOLDEN = Path(__file__).parent.parent / "parity" / "golden"


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    """By the library that the format is from."""
    return {name: x for file in sorted(folder.glob("model*.safetensors")) for name, x in load_file(file).items()}


def same_tensors(one: dict, other: dict) -> bool:
    return same_bits(dict(sorted(one.items())), dict(sorted(other.items())))


# ---- every bit in its place ------------------------------------------------------------------------------------------
@given(fakes(), st.data())
def test_what_goes_out_comes_in_bit_for_bit(family: Fake, data):
    """Any table, any dtypes, any sizes of shards; the files hold what the library would read."""
    dtypes = {path: data.draw(st.sampled_from(DTYPES)) for line in family.lines for path in line.paths[:1]}
    dtypes |= {path: dtypes[line.paths[0]] for line in family.lines for path in line.paths}
    params = numbers(family.shapes, dtypes)
    shard_bytes = data.draw(st.sampled_from([1, 40, 200, 5e9]))
    with tempfile.TemporaryDirectory() as folder:
        weights.save(folder, family, Config(7), matching.nested(params), max_shard_bytes=shard_bytes)
        assert same_tensors(all_tensors(Path(folder)), family.tensors(params))
        assert len(list(Path(folder).glob("*.safetensors"))) == 1 or shard_bytes < 5e9
        config, loaded = weights.load(folder, family)
        assert config == Config(7) and same_bits(loaded, matching.nested(params))


@pytest.mark.parametrize("name", ["bert_untied", "falcon_7b", "gpt2", "gpt_neox", "gptj", "llama_bfloat16", "mistral", "mixtral", "mpt",
                                  "roberta", "t5_gated"])  # fmt: skip
def test_what_transformers_wrote_comes_in_and_goes_out_bit_for_bit(name: str, tmp_path):
    folder = GOLDEN / name
    family = next(one for one in FAMILIES.values() if one.model_type == json.loads((folder / "config.json").read_text())["model_type"])
    config, params = weights.load(folder, family)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, family.abstract(config))
    weights.save(tmp_path, family, config, params, max_shard_bytes=30_000)
    assert same_tensors(all_tensors(tmp_path), all_tensors(folder))


def test_names_as_they_were_once_published(tmp_path):
    """GPT-2's without their prefix and with its masks; BERT's norms with TensorFlow's names."""
    gpt2, bert = (all_tensors(GOLDEN / name) for name in ("gpt2", "bert"))
    older = {name.removeprefix("transformer."): x for name, x in gpt2.items()} | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}
    norms = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    spelled = lambda name: next((name.replace(new, old) for new, old in norms.items() if name.endswith(new)), name)
    for family, tensors in (("gpt2", older), ("bert", {spelled(name): x for name, x in bert.items()})):
        assert not tensors.keys() <= all_tensors(GOLDEN / family).keys()
        (tmp_path / family).mkdir()
        save_file(tensors, tmp_path / family / "model.safetensors")
        shutil.copy(GOLDEN / family / "config.json", tmp_path / family)
        want = weights.load(GOLDEN / family, FAMILIES[family])[1]
        assert same_bits(weights.load(tmp_path / family, FAMILIES[family])[1], want)


# ---- layouts -----------------------------------------------------------------------------------------------------------
def test_parameters_go_straight_into_a_wafers_layouts(tmp_path, device_grid):
    family = llama_like()
    family = Fake({**family.shapes, "blocks/up/kernel": (2, 4, 8)}, family.lines, family.tensors)
    params = numbers(family.shapes, jnp.bfloat16)
    write_as_hf(tmp_path, family, family.tensors(params), cuts=2)
    wafer = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(2, 2), devices=device_grid)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), family.abstract(Config()))
    twice = wse.jit(lambda p, x: x @ p["blocks"]["up"]["kernel"][1] + p["tokens"]["embedding"].sum(), wafer)
    shardings = twice.lower(shapes, jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)).in_shardings[0]
    assert device_grid == (1, 1) or not shardings["blocks"]["up"]["kernel"].is_fully_replicated
    _, loaded = weights.load(tmp_path, family, shardings=shardings)
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
    assert same_bits(loaded, matching.nested(params))


@pytest.mark.parametrize("spec", [P(), P("x"), P("y", "x"), P(None, "x", "y"), P(("y", "x"))])
def test_each_device_gets_its_part(tmp_path, spec: P):
    """Along the stack, too, where a tensor is for some devices alone."""
    shapes = {"blocks/a/kernel": (4, 4, 8)}
    names = lambda p: {f"l.{n}": np.ascontiguousarray(p["blocks/a/kernel"][n].T) for n in range(4)}
    family = Fake(shapes, (below("l.{layer}", ("blocks/a/kernel",)),), names)
    params = numbers(shapes)
    write_as_hf(tmp_path, family, family.tensors(params))
    mesh = jax.make_mesh((2, 2), ("y", "x"))
    _, loaded = weights.load(tmp_path, family, shardings=NamedSharding(mesh, spec))
    array = loaded["blocks"]["a"]["kernel"]
    assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), params["blocks/a/kernel"][shard.index])


def test_a_parameter_may_be_donated_though_devices_share_its_buffer(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write_as_hf(tmp_path, family, family.tensors(params))
    mesh = jax.make_mesh((2, 2), ("y", "x"))
    _, loaded = weights.load(tmp_path, family, shardings=NamedSharding(mesh, P()))
    x = loaded["tokens"]["embedding"]
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for part in step(step(x)).addressable_shards:
        np.testing.assert_array_equal(np.asarray(part.data), params["tokens/embedding"] + 1 + 1)


def test_a_sharding_of_its_own_for_each_parameter_or_one_for_all(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write_as_hf(tmp_path, family, family.tensors(params))
    last = SingleDeviceSharding(jax.devices()[-1], memory_kind="pinned_host")
    _, loaded = weights.load(tmp_path, family, shardings=last)
    assert {x.sharding for x in jax.tree.leaves(loaded)} == {last} and same_bits(loaded, matching.nested(params))
    weights.save(tmp_path / "again", family, Config(), loaded)
    assert same_tensors(all_tensors(tmp_path / "again"), family.tensors(params))
    with pytest.raises(ValueError, match=r"shardings: give one for each.*tokens/embedding"):
        weights.load(tmp_path, family, shardings={"blocks": {"up": {"kernel": last}, "norm": {"scale": last}}, "head": {"kernel": last}})


def test_a_load_tells_how_far_it_is(tmp_path):
    family = llama_like()
    write_as_hf(tmp_path, family, family.tensors(numbers(family.shapes)), cuts=2)
    told = []
    weights.load(tmp_path, family, report=lambda done, total: told.append((done, total)))
    total = 4 * sum(int(np.prod(shape)) for shape in family.shapes.values())
    assert len(told) == 6 and told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)


# ---- dtypes ------------------------------------------------------------------------------------------------------------
def test_a_dtype_is_cast_to_only_if_asked_for(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write_as_hf(tmp_path / "in", family, family.tensors(params))
    _, cast = weights.load(tmp_path / "in", family, dtype="bfloat16")
    want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), matching.nested(params))
    assert same_bits(cast, want)
    weights.save(tmp_path / "out", family, Config(), matching.nested(params), dtype=jnp.bfloat16)
    assert same_bits(weights.load(tmp_path / "out", family)[1], want)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_dtypes_that_cannot_be_kept_are_errors(tmp_path):
    family = llama_like()
    tensors = family.tensors(numbers(family.shapes))
    tensors["model.layers.1.up_proj.weight"] = tensors["model.layers.1.up_proj.weight"].astype(jnp.bfloat16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float64)
    write_as_hf(tmp_path, family, tensors)
    with pytest.raises(ValueError, match=r"up_proj.weight \(blocks/up/kernel\): is of dtypes bfloat16, float32.*\n.*head/kernel.*float64"):
        weights.load(tmp_path, family)
    _, loaded = weights.load(tmp_path, family, dtype=np.float32)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    write_as_hf(tmp_path, family, {name: x.astype(np.int8) for name, x in tensors.items()})
    with pytest.raises(ValueError, match="is int8, which is no dtype of trained weights"):
        weights.load(tmp_path, family, dtype=np.float32)
    for dtype, why in (("int8", "weights are floating"), ("float64", "jax_enable_x64"), ("nonsense", "weights are floating")):
        with pytest.raises(ValueError, match=f"dtype={dtype}: .*{why}"):
            weights.load(tmp_path, family, dtype=dtype)


def test_what_goes_into_one_tensor_is_of_one_dtype(tmp_path):
    family = Fake({"a": (2, 3), "b": (2, 3)}, (below("ab", ("a", "b")),), dict)
    params = numbers(family.shapes, {"a": np.float32, "b": jnp.bfloat16})
    with pytest.raises(ValueError, match=r"give dtype, since a float32, b bfloat16 go into one ab"):
        weights.save(tmp_path, family, Config(), params)
    weights.save(tmp_path, family, Config(), params, dtype=np.float32)
    assert all_tensors(tmp_path)["ab"].dtype == np.float32


# ---- names that other writers use --------------------------------------------------------------------------------------
def test_a_tied_head_may_be_written_twice_if_it_is_the_same(tmp_path):
    family = llama_like(tied=True)
    params = numbers(family.shapes)
    tensors = family.tensors(params)
    for n, extra in enumerate(({}, {"lm_head.weight": params["tokens/embedding"]}, {"rotary.inv_freq": np.ones(2, np.float32)})):
        write_as_hf(tmp_path / str(n), family, {**tensors, **extra})
        assert same_bits(weights.load(tmp_path / str(n), family)[1], matching.nested(params))
    write_as_hf(tmp_path, family, {**tensors, "lm_head.weight": params["tokens/embedding"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight: is not equal to model\.embed_tokens\.weight \(tokens/embedding\)"):
        weights.load(tmp_path, family)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write_as_hf(tmp_path, family, tensors)
    assert same_bits(weights.load(tmp_path, family)[1], matching.nested(params))


def test_names_may_lack_the_prefix_and_have_their_older_spelling(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    tensors = {name.removeprefix("model.").replace("norm.weight", "norm.gamma"): x for name, x in family.tensors(params).items()}
    assert "layers.0.norm.gamma" in tensors and "lm_head.weight" in tensors
    write_as_hf(tmp_path, family, tensors)
    assert same_bits(weights.load(tmp_path, family)[1], matching.nested(params))


def test_one_file_is_read_alone(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write_as_hf(tmp_path, family, family.tensors(params))
    os.rename(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    assert same_bits(weights.load(tmp_path / "other.safetensors", family)[1], matching.nested(params))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        weights.load(tmp_path / "other.safetensors", family)
    assert weights.load(tmp_path / "other.safetensors", family, Config(5))[0] == Config(5)


# ---- what does not fit -------------------------------------------------------------------------------------------------
def test_one_error_says_all_that_does_not_fit_by_both_names(tmp_path):
    family = llama_like()
    tensors = family.tensors(numbers(family.shapes))
    del tensors["model.layers.0.norm.weight"]
    tensors["model.layers.1.up_proj.weight"] = np.zeros((5, 4), np.float32)
    tensors["model.layers.2.norm.weight"] = np.zeros(4, np.float32)
    write_as_hf(tmp_path, family, tensors, cuts=2)
    with pytest.raises(ValueError) as error:
        weights.load(tmp_path, family)
    for said in (
        str(tmp_path),
        "model.layers.0.norm.weight (blocks/norm/scale[0]): missing",
        "model.layers.1.up_proj.weight (blocks/up/kernel[1]): has shape [5, 4], and should have [3, 4]",
        "model.layers.2.norm.weight float32[4]: no parameter of fake is filled from it",
    ):
        assert said in str(error.value)


def test_another_family_is_named(tmp_path):
    right, wrong = FAMILIES["gpt_neox"], FAMILIES["llama"]
    config = right.presets["tiny"]
    weights.save(tmp_path, right, config, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), right.abstract(config)))
    with pytest.raises(ValueError, match=f"says model_type '{right.model_type}', and llama is '{wrong.model_type}'"):
        weights.load(tmp_path, wrong)
    with pytest.raises(ValueError, match=r"is not such weights of family llama; it looks like gpt_neox:"):
        weights.load(tmp_path, wrong, wrong.presets["tiny"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds list where an object should be"),
        ('{"size": 3}', "has no model_type"),
        ('{"model_type": "fake_hf"}', "is of no fake that is known here: 'size'"),
        ('{"model_type": "fake_hf", "size": 3, "odd_switch": 1}', "is of no fake that is known here: odd_switch=1"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, text: str, said: str):
    family = llama_like()
    write_as_hf(tmp_path, family, family.tensors(numbers(family.shapes)))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        weights.load(tmp_path, family)
    assert said in str(error.value)


def test_a_table_has_to_fit_its_parameters():
    family = llama_like()
    lacking = Fake({**family.shapes, "more/scale": (3,)}, (*family.lines, family.lines[0]), family.tensors)
    with pytest.raises(ValueError, match=r"filled twice \['tokens/embedding'\].*never filled \['more/scale'\]"):
        matching.lines(lacking, Config())


# ---- writing -----------------------------------------------------------------------------------------------------------
def test_nothing_is_written_over_without_leave(tmp_path):
    family = llama_like()
    first, second = (matching.nested(numbers(family.shapes, seed=n)) for n in range(2))
    weights.save(tmp_path, family, Config(1), first, max_shard_bytes=60)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not empty \(config\.json, .*name a new folder, or overwrite"):
        weights.save(tmp_path, family, Config(2), second)
    weights.save(tmp_path, family, Config(2), second, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config, loaded = weights.load(tmp_path, family)
    assert config == Config(2) and same_bits(loaded, second)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        weights.save(tmp_path / "tokenizer.json", family, Config(), first)
    with pytest.raises(ValueError, match=r"max_shard_bytes=0"):
        weights.save(tmp_path / "none", family, Config(), first, max_shard_bytes=0)


def test_a_save_that_fails_leaves_nothing_and_what_was_there(tmp_path, monkeypatch):
    family = llama_like()
    params = matching.nested(numbers(family.shapes))
    weights.save(tmp_path / "old", family, Config(), params)
    (tmp_path / "old" / ".partial").mkdir()  # as a kill leaves it
    (tmp_path / "old" / ".partial" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    files = []

    def fails(tensors: dict, path: Path, **options) -> None:
        files.append(path)
        if len(files) == 2:
            raise OSError("no space left")
        save_file(tensors, path, **options)

    monkeypatch.setattr(hf_files, "save_file", fails)
    for folder in ("old", "new/deep"):
        files.clear()
        with pytest.raises(OSError, match="no space"):
            weights.save(tmp_path / folder, family, Config(), jax.tree.map(lambda x: x + 1, params), max_shard_bytes=60, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["config.json", "model.safetensors"]
    assert same_bits(weights.load(tmp_path / "old", family)[1], params)


def test_what_is_not_the_models_is_not_saved(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    odd = {**params, "blocks/up/kernel": np.zeros((2, 4, 9)), "norm/scale": np.zeros(3), "head/kernel": np.zeros((4, 6), np.int32)}
    del odd["tokens/embedding"]
    with pytest.raises(ValueError) as error:
        weights.save(tmp_path / "out", family, Config(), matching.nested(odd))
    for said in ("tokens/embedding: missing", "has shape [2, 4, 9], and should have [2, 4, 3]", "norm/scale: the model has no", "is int32"):
        assert said in str(error.value)
    assert not (tmp_path / "out").exists()
