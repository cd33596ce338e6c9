"""Weights in and out: every bit in its place, in any layout, and an error that says all that does not fit."""

from __future__ import annotations

import json
import os
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
from tests.models.fakes import DTYPES, Config, Fake, below, fakes, llama_like, numbers, same_bits


def write(folder: Path, family: Fake, tensors: dict, cuts: int = 1, **config) -> None:
    """As Hugging Face writes: one file, or `cuts` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family.model_type, "size": 3, **config}))
    if cuts == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {name: f"model-{n % cuts:05}.safetensors" for n, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: x for name, x in tensors.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    """By the library that the format is from."""
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


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


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_in_and_goes_out_bit_for_bit(name: str, tmp_path):
    """From files that are cut anywhere, with some tensors in bfloat16."""
    family = FAMILIES[name]
    config = family.presets["tiny"]
    plan = matching.lines(family, config)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(line.shape).astype(DTYPES[n % 2]) for n, line in enumerate(plan) for name in line.names
    }  # fmt: skip
    write(tmp_path / "in", family, tensors, cuts=3, **family.to_hf(config))
    found, params = weights.load(tmp_path / "in", family)
    assert found == config
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, family.abstract(config))
    weights.save(tmp_path / "out", family, config, params, max_shard_bytes=30_000)
    assert same_tensors(all_tensors(tmp_path / "out"), tensors)


@given(st.integers(1, 4), st.permutations(range(3)), st.sampled_from(DTYPES), st.data())
def test_a_copy_of_a_transpose_is_a_copy(sizes, order, dtype, data):
    shape = tuple(data.draw(st.integers(1, 60)) for _ in order)
    source = np.random.default_rng(sizes).standard_normal(shape).astype(dtype).transpose(order)[:: data.draw(st.sampled_from([1, -1, 2]))]
    into = np.empty(source.shape, np.float32)
    hf_files.copy(into, source)
    np.testing.assert_array_equal(into, source.astype(np.float32))


# ---- layouts -----------------------------------------------------------------------------------------------------------
def test_parameters_go_straight_into_a_wafers_layouts(tmp_path, device_grid):
    family = llama_like()
    family = Fake({**family.shapes, "blocks/up/kernel": (2, 4, 8)}, family.lines, family.tensors)
    params = numbers(family.shapes, jnp.bfloat16)
    write(tmp_path, family, family.tensors(params), cuts=2)
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
    write(tmp_path, family, family.tensors(params))
    mesh = jax.make_mesh((2, 2), ("y", "x"))
    _, loaded = weights.load(tmp_path, family, shardings=NamedSharding(mesh, spec))
    array = loaded["blocks"]["a"]["kernel"]
    assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), params["blocks/a/kernel"][shard.index])


def test_a_parameter_may_be_donated_though_devices_share_its_buffer(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write(tmp_path, family, family.tensors(params))
    mesh = jax.make_mesh((2, 2), ("y", "x"))
    _, loaded = weights.load(tmp_path, family, shardings=NamedSharding(mesh, P()))
    x = loaded["tokens"]["embedding"]
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for part in step(step(x)).addressable_shards:
        np.testing.assert_array_equal(np.asarray(part.data), params["tokens/embedding"] + 1 + 1)


def test_a_sharding_of_its_own_for_each_parameter_or_one_for_all(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write(tmp_path, family, family.tensors(params))
    last = SingleDeviceSharding(jax.devices()[-1], memory_kind="pinned_host")
    _, loaded = weights.load(tmp_path, family, shardings=last)
    assert {x.sharding for x in jax.tree.leaves(loaded)} == {last} and same_bits(loaded, matching.nested(params))
    weights.save(tmp_path / "again", family, Config(), loaded)
    assert same_tensors(all_tensors(tmp_path / "again"), family.tensors(params))
    with pytest.raises(ValueError, match=r"shardings: give one for each.*tokens/embedding"):
        weights.load(tmp_path, family, shardings={"blocks": {"up": {"kernel": last}, "norm": {"scale": last}}, "head": {"kernel": last}})


def test_a_load_tells_how_far_it_is(tmp_path):
    family = llama_like()
    write(tmp_path, family, family.tensors(numbers(family.shapes)), cuts=2)
    told = []
    weights.load(tmp_path, family, report=lambda done, total: told.append((done, total)))
    total = 4 * sum(int(np.prod(shape)) for shape in family.shapes.values())
    assert len(told) == 6 and told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)


# ---- dtypes ------------------------------------------------------------------------------------------------------------
def test_a_dtype_is_cast_to_only_if_asked_for(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write(tmp_path / "in", family, family.tensors(params))
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
    write(tmp_path, family, tensors)
    with pytest.raises(ValueError, match=r"up_proj.weight \(blocks/up/kernel\): is of dtypes bfloat16, float32.*\n.*head/kernel.*float64"):
        weights.load(tmp_path, family)
    _, loaded = weights.load(tmp_path, family, dtype=np.float32)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    write(tmp_path, family, {name: x.astype(np.int8) for name, x in tensors.items()})
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
        write(tmp_path / str(n), family, {**tensors, **extra})
        assert same_bits(weights.load(tmp_path / str(n), family)[1], matching.nested(params))
    write(tmp_path, family, {**tensors, "lm_head.weight": params["tokens/embedding"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight: the model has no parameter of its own for it, as it is tied, but"):
        weights.load(tmp_path, family)


def test_the_first_word_of_names_may_lack_and_norms_may_have_their_old_names(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    tensors = family.tensors(params)
    shorter = {name.removeprefix("model.").replace("norm.weight", "norm.gamma"): x for name, x in tensors.items()}
    assert "layers.0.norm.gamma" in shorter
    write(tmp_path / "shorter", family, shorter)
    write(tmp_path / "longer", family, {"model." + name.removeprefix("model."): x for name, x in tensors.items()})
    for folder in ("shorter", "longer"):
        assert same_bits(weights.load(tmp_path / folder, family)[1], matching.nested(params))


def test_one_file_is_read_alone(tmp_path):
    family = llama_like()
    params = numbers(family.shapes)
    write(tmp_path, family, family.tensors(params))
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
    write(tmp_path, family, tensors, cuts=2)
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
    write(tmp_path, family, family.tensors(numbers(family.shapes)))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        weights.load(tmp_path, family)
    assert said in str(error.value)


def test_any_cut_of_a_file_is_found(tmp_path):
    family = llama_like()
    write(tmp_path, family, family.tensors(numbers(family.shapes, jnp.bfloat16)))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"model.safetensors: (truncated|corrupt).*{size:,}$"):
            hf_files.read_tensors(tmp_path)
    path.write_bytes(whole + b"0")
    with pytest.raises(ValueError, match=f"corrupt: its header tells of {len(whole):,} bytes, and the file has {len(whole) + 1:,}"):
        hf_files.read_tensors(tmp_path)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_header_with_any_other_byte_is_an_error_or_none(place: int, byte: int):
    """Never an error of another kind, and never a tensor that is not wholly in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, path)
        content = bytearray(path.read_bytes())
        content[place % (len(content) - 32)] = byte
        path.write_bytes(content)
        try:
            found = hf_files.read_tensors(folder)
        except ValueError as error:
            assert "model.safetensors" in str(error)
        else:
            assert all(x.read().nbytes == x.nbytes for x in found.values())


def test_an_index_and_its_shards_have_to_fit_together(tmp_path):
    family = llama_like()
    tensors = family.tensors(numbers(family.shapes))
    write(tmp_path, family, tensors, cuts=3)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    os.rename(tmp_path / "model-00001.safetensors", tmp_path / "model-00009.safetensors")
    with pytest.raises(ValueError, match=r"names 1 of 3 shards that are not there: model-00001\.safetensors"):
        weights.load(tmp_path, family)
    moved = {name: file.replace("00001", "00000") for name, file in places["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ValueError, match=r"names tensors that their shards do not hold: .* of model-00000\.safetensors"):
        weights.load(tmp_path, family)
    for odd in ({"weight_map": {"a": "../secret.safetensors"}}, {"weight_map": [1]}, {}):
        index.write_text(json.dumps(odd))
        with pytest.raises(ValueError, match="weight_map should name a file of this folder"):
            weights.load(tmp_path, family)


def test_what_is_pickled_is_never_opened(tmp_path):
    family = llama_like()
    (tmp_path / "config.json").write_text('{"model_type": "fake_hf", "size": 3}')
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor .*index\.json, but config\.json"):
        weights.load(tmp_path, family)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    for where in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="never opened here; convert it to safetensors"):
            weights.load(where, family)
    with pytest.raises(ValueError, match="no such file or folder"):
        weights.load(tmp_path / "nowhere", family, Config())


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
