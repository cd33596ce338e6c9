"""int8 weights: the bound on the error, the files and what is refused of them, and what a table does to codes and scales alike."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from models import int8, int8_files, lora, weights
from models.matching import flat, nested
from tests.models.fakes import same_bits
from tests.models.small import close, parameters, quickly, small

FAMILIES = ("gpt2", "gpt_neox", "llama", "mixtral", "falcon_grouped", "bert", "t5")


# ---- codes and scales ----------------------------------------------------------------------------------------------------
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(6, 4), (8, 2)]),
    st.sampled_from([1e-44, 1e-37, 1e-3, 1.0, 1e30]),
    st.sampled_from([None, 2, 4]),
)
def test_no_error_is_above_half_a_scale(seed, shape, size, group):
    """Also of zeros, of subnormal numbers, and of numbers near the largest."""
    random = np.random.default_rng(seed)
    weight = (size * random.standard_normal(shape) * 10.0 ** random.integers(-6, 3, shape)).astype(np.float32)
    weight[:, 0] = 0
    if group is not None and shape[0] % group:
        return
    codes, scale = int8._coded("w", weight, 0, 0, 1, group)
    assert (
        codes.dtype == np.int8
        and np.abs(codes.astype(int)).max() <= 127
        and scale.shape == (1 if group is None else shape[0] // group, shape[1])
    )
    wide = np.repeat(scale.astype(np.float64), shape[0] // scale.shape[0], axis=0)
    assert (
        (np.abs(weight.astype(np.float64) - codes * wide) <= wide / 2 * (1 + 1e-12)).all() and not codes[:, 0].any() and (scale > 0).all()
    )
    tops = np.abs(weight.reshape(scale.shape[0], -1, shape[1])).max(1)
    assert (scale == np.maximum(tops.astype(np.float64) / 127, np.finfo(np.float32).tiny).astype(np.float32)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_family_is_quantised_along_its_inputs(name):
    """Against one scale for each column of [in, out], as `lora.linears` tells where the inputs are."""
    family, config = small(name)
    params, coded = flat(parameters(name)), flat(int8.quantised(family, config, parameters(name)))
    matrices = lora.linears(family, config)
    assert {path.removesuffix("/codes") for path in coded if path.endswith("/codes")} == matrices.keys()
    assert all((coded[path] == params[path]).all() for path in params.keys() - matrices.keys())
    for path, linear in matrices.items():
        stack, ins, outs = (math.prod(sizes) for sizes in linear.cut)
        flatter = params[path].reshape(stack, ins, outs).astype(np.float64)
        wanted = (np.abs(flatter).max(1, keepdims=True) / 127).astype(np.float32)
        assert (coded[path + "/scale"].reshape(stack, 1, outs) == wanted).all()
        assert (coded[path + "/codes"].reshape(stack, ins, outs) == np.rint(flatter / wanted)).all()


def test_groups_of_inputs_run_over_heads_last_axis_first():
    family, config = small("llama")  # 4 heads of 4: the output matrix has 4 x 4 inputs
    params, path = parameters("llama"), "blocks/attention/out/kernel"
    weight = flat(params)[path]
    for group, shape in {2: (4, 2), 4: (4, 1), 8: (2, 1), 16: (1, 1)}.items():
        if 20 % group:  # the MLP has 20 inputs
            coded = flat(int8.quantised(family, config, params, group=group, keep="blocks/mlp/down/kernel"))
        else:
            coded = flat(int8.quantised(family, config, params, group=group))
        assert coded[path + "/scale"].shape == (2, *shape, 16)
        wanted = np.abs(weight.reshape(2, 16 // group, group, 16)).max(2) / 127
        np.testing.assert_allclose(coded[path + "/scale"].reshape(wanted.shape), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"group=3: .* inputs, which are no such groups"):
        int8.quantised(family, config, params, group=3)
    with pytest.raises(ValueError, match="group=0: give"):
        int8.quantised(family, config, params, group=0)


def test_bad_weights_and_patterns_are_named():
    family, config = small("llama")
    broken = flat(parameters("llama")).copy()
    broken["blocks/mlp/up/kernel"] = broken["blocks/mlp/up/kernel"].copy()
    broken["blocks/mlp/up/kernel"][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"blocks/mlp/up/kernel\[1\] is not finite"):
        int8.quantised(family, config, nested(broken))
    with pytest.raises(ValueError, match="matches the whole path of no matrix"):
        int8.quantised(family, config, parameters("llama"), keep="norm")
    with pytest.raises(ValueError, match="no regular expression"):
        int8.quantised(family, config, parameters("llama"), keep="(")
    with pytest.raises(ValueError, match="it was not quantised from these weights"):
        list(int8.errors(jax.tree.map(lambda x: 2 * x, parameters("llama")), int8.quantised(family, config, parameters("llama"))))


def test_the_report_is_numpys():
    family, config = small("mistral")
    params = parameters("mistral")
    coded = int8.quantised(family, config, params, group=4, tables=True)
    found, floats = {one.path: one for one in int8.errors(params, coded)}, flat(int8.dequantised(coded))
    assert set(found) == {*lora.linears(family, config), "tokens/embedding"}
    for path, one in found.items():
        w, d = (x[path].astype(np.float64) for x in (flat(params), floats))
        np.testing.assert_allclose([one.max_abs, one.rms], [np.abs(w - d).max(), np.sqrt(np.mean((w - d) ** 2))], rtol=1e-4)
        np.testing.assert_allclose(one.sqnr_db, 10 * np.log10((w**2).sum() / ((w - d) ** 2).sum()), rtol=1e-4)
        assert one.bytes_before == 4 * w.size and one.bytes_after == w.size + w.size // 4 * 4 and 0.5 < one.of_bound <= 1 + 1e-9
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(1, 12)
    change = int8.change(family, config, params, coded, tokens)
    apply = quickly(lambda p: family.apply(config, p, tokens))
    before, after = (np.asarray(apply(p)) for p in (params, int8.dequantised(coded)))
    np.testing.assert_allclose(change["max_abs"], np.abs(before - after).max(), rtol=1e-3)
    assert 0 < change["rms"] < 0.1 * change["logits_rms"] and abs(change["loss_after"] - change["loss_before"]) < 0.5


# ---- files -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_comes_back_as_its_floats(tmp_path, name):
    family, config = small(name)
    options = {"llama": {"group": 4, "tables": True}, "mixtral": {"keep": ".*router/kernel|head/kernel"}}.get(name, {})
    coded = int8.quantised(family, config, parameters(name), **options)
    int8.save(tmp_path / "q", family, config, coded)
    read, params = weights.load(tmp_path / "q", family)
    assert read == config and same_bits(params, jax.tree.map(jnp.asarray, int8.dequantised(coded)))
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    weights.save(tmp_path / "floats", family, config, params)
    for key, x in load_file(tmp_path / "floats" / "model.safetensors").items():  # a tensor is the product of what lies under its name
        if key + "_scale" in tensors:
            scale = tensors[key + "_scale"]
            assert tensors[key].dtype == np.int8 and scale.dtype == np.float32 and scale.ndim == 2
            wide = np.repeat(np.repeat(scale, x.shape[0] // scale.shape[0], 0), x.shape[1] // scale.shape[1], 1)
            assert (x == tensors[key] * wide).all()
        else:
            assert (x == tensors[key]).all()
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    how = said["config_groups"]["group_0"]["weights"]
    assert (how["strategy"], how["group_size"]) == (("group", 4) if name == "llama" else ("channel", None))
    if name == "mixtral":
        assert sorted(said["ignore"]) == ["lm_head", *(f"model.layers.{n}.block_sparse_moe.gate" for n in range(2))]


def test_it_is_laid_out_as_asked_and_cast_as_asked(tmp_path):
    """In the halves of two devices, and as bfloat16 of what config.json calls so."""
    family, config = small("llama")
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), parameters("llama"))
    coded = int8.quantised(family, config, half)
    int8.save(tmp_path / "q", family, config, coded)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    layouts = {path: layout if path.endswith("up/kernel") else everywhere for path in flat(half)}
    _, params = weights.load(tmp_path / "q", family, shardings=nested(layouts))
    up = params["blocks"]["mlp"]["up"]["kernel"]
    assert up.dtype == jnp.bfloat16 and up.sharding == layout
    wanted = int8.dequantised(coded, jnp.bfloat16)["blocks"]["mlp"]["up"]["kernel"]
    assert (np.asarray(up) == wanted).all()
    assert weights.load(tmp_path / "q", family, dtype="float32")[1]["blocks"]["mlp"]["up"]["kernel"].dtype == np.float32


def test_quantised_files_that_are_not_these_are_refused(tmp_path):
    family, config = small("llama")
    int8.save(tmp_path / "q", family, config, int8.quantised(family, config, parameters("llama")))
    file, about = tmp_path / "q" / "model.safetensors", tmp_path / "q" / "config.json"
    tensors, said = load_file(file), json.loads(about.read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    wrong = {
        "a scale that is not finite, or not above 0": tensors | {name + "_scale": 0 * tensors[name + "_scale"]},
        rf"{name}: int8 without {name}_scale": {key: x for key, x in tensors.items() if key != name + "_scale"},
        r"\[3, 1\] scales do not share out": tensors | {name + "_scale": np.ones((3, 1), np.float32)},
    }
    for words, changed in wrong.items():
        save_file(changed, file)
        with pytest.raises(ValueError, match=words):
            weights.load(tmp_path / "q", family)
    save_file(tensors, file)
    quantised = said["quantization_config"]
    weights_of = lambda **more: {"config_groups": {"group_0": {"weights": quantised["config_groups"]["group_0"]["weights"] | more}}}
    for words, more in (
        ("only compressed-tensors of format", {"quant_method": "bitsandbytes"}),
        ("only compressed-tensors of format", {"format": "pack-quantized"}),
        ("num_bits=4", weights_of(num_bits=4)),
        ("symmetric=False", weights_of(symmetric=False)),
        ("strategy='block'", weights_of(strategy="block")),
        (
            "activations of group_0",
            {"config_groups": {"group_0": quantised["config_groups"]["group_0"] | {"input_activations": {"num_bits": 8}}}},
        ),
        ("kv_cache_scheme", {"kv_cache_scheme": {"num_bits": 8}}),
        ("config_groups are missing", {"config_groups": {}}),
    ):
        about.write_text(json.dumps(said | {"quantization_config": quantised | more}))
        for own in (None, config):  # whoever says what the model is
            with pytest.raises(ValueError, match=words):
                weights.load(tmp_path / "q", family, own)
    about.unlink()
    with pytest.raises(ValueError, match="says how it is quantised"):
        weights.load(tmp_path / "q", family, config)


def test_nothing_is_written_over_and_nothing_unquantised_is_written(tmp_path):
    family, config = small("llama")
    coded = int8.quantised(family, config, parameters("llama"))
    (tmp_path / "there").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        int8.save(tmp_path, family, config, coded)
    with pytest.raises(ValueError, match="nothing is quantised"):
        int8.save(tmp_path / "new", family, config, parameters("llama"))
    mixed = flat(coded) | {k: v for k, v in flat(int8.quantised(family, config, parameters("llama"), group=4)).items() if "mlp" in k}
    with pytest.raises(ValueError, match="groups of"):
        int8.save(tmp_path / "new", family, config, nested(mixed))
    assert not (tmp_path / "new").exists()


def test_codes_times_scales_in_jax_are_numpys():
    random = np.random.default_rng(0)
    codes, scale = random.integers(-127, 128, (2, 6, 4)).astype(np.int8), random.random((2, 3, 4)).astype(np.float32)
    wanted = codes * np.repeat(scale, 2, axis=1)
    assert (int8_files.times_scale(codes, scale) == wanted).all()
    close(jax.jit(int8_files.times_scale)(codes, scale), wanted, 0)
