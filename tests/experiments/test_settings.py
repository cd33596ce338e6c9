"""Settings: what decides a run's numbers is its identity, and what cannot be is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.features import DocumentSettings, LossScaleSettings, SparsitySettings
from experiments.settings import ClusterSettings, LoopSettings, ModelSettings, OptimiserSettings, Settings, WaferSettings
from models.families import FAMILIES, find


def test_identity_is_json_and_follows_every_setting_that_changes_numbers_or_files():
    base = Settings().identity()
    json.dumps(base)
    numbers = ("steps", "batch", "eval_every", "eval_batches", "checkpoint_every", "seed", "sample_bytes", "micro_batches")
    changed = dict.fromkeys(numbers, 77) | {
        "data": ("a",),
        "model": ModelSettings(layers=1),
        "wafer": WaferSettings(rows=40),
        "cluster": ClusterSettings(systems=2),
        "optimiser": OptimiserSettings(beta1=0.5),
        "loop": LoopSettings(patience=3),
        "precision": "float16",
        "stochastic_rounding": True,
        "loss_scale": LossScaleSettings(interval=3),
        "sparsity": SparsitySettings(method="rigl", sparsity=0.5),
        "documents": DocumentSettings("pack"),
    }
    elsewhere = {"out", "keep", "kill_pe", "kill_link", "from_manifest", "supervision", "distributed"}
    assert set(changed) == {field.name for field in dataclasses.fields(Settings)} - elsewhere
    for name, value in changed.items():
        assert dataclasses.replace(Settings(), **{name: value}).identity() != base, name
    same = dataclasses.replace(Settings(), out=Path("elsewhere"), keep=9, kill_pe=((1, 2, 3),), kill_link=((1, 2, 3, 2, 4),))
    same = dataclasses.replace(same, loop=LoopSettings(tensorboard=True))
    assert same.identity() == base


def test_flags_without_effect_are_not_part_of_the_identity():
    off = [Settings(wafer=WaferSettings(off=True, rows=rows)).identity() for rows in (32, 64)]
    assert off[0] == off[1]
    _, tiny = find("gpt2:tiny")
    spelled = Settings(model=ModelSettings(layers=tiny.layers, heads=tiny.heads))
    assert spelled.identity() == Settings().identity(), "a preset's own value, spelled out, is the same run"


@pytest.mark.parametrize("name", [f"{family}:{preset}" for family, f in FAMILIES.items() for preset in list(f.presets)[:2]])
def test_the_model_is_the_preset_with_overrides_over_bytes(name):
    family, preset = find(name)
    config = ModelSettings(name=name, layers=3, dropout=0.1).config()
    assert config.vocab_size == {"decoder": 256, "encoder": 257, "encoder-decoder": 262}[family.kind] and config.stochastic
    sizes = {"width", "heads", "kv_heads", "head_width", "ffn_width", "rotary"}
    kept = sizes | {"window", "experts", "activation", "gated", "tied", "norm_epsilon"}
    given = {"layers": 3, "dropout": 0.1, "context": 128} | {f: getattr(preset, f) for f in kept if hasattr(preset, f)}
    assert given == {field: getattr(config, field) for field in given}


def test_other_sizes_keep_a_presets_proportions():
    config = ModelSettings(name="llama:3-8b", width=256, heads=8, set=("window=None",)).config()
    assert (config.kv_heads, config.head_width, config.ffn_width, config.rotary.width) == (2, 32, 896, 32)
    config = ModelSettings(name="gpt_neox:20b", width=128, heads=4).config()
    assert (config.head_width, config.rotary.width, config.kv_heads) == (32, 8, 4)
    with pytest.raises(ValueError, match="windows: LlamaConfig has no such field"):
        ModelSettings(name="llama", set=("windows=3",)).config()
    with pytest.raises(ValueError, match=r"--model\.set window: give FIELD=VALUE"):
        ModelSettings(name="llama", set=("window",)).config()
    with pytest.raises(ValueError, match="no family 'lama', perhaps 'llama'"):
        ModelSettings(name="lama").config()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(steps=1), "--steps 1 is too small; give at least 2"),
        (Settings(keep=1), "--keep 1 is too small"),
        (Settings(eval_every=0), "--eval-every 0"),
        (Settings(optimiser=OptimiserSettings(learning_rate=0.0)), "--optimiser.learning-rate 0.0 must be above 0"),
        (Settings(optimiser=OptimiserSettings(clip_norm=-1.0)), "--optimiser.clip-norm -1.0 must be above 0"),
    ],
)
def test_numbers_that_no_run_can_have(settings, words):
    with pytest.raises(ValueError, match=words):
        settings.check()


def test_wafer_is_built_as_told(tmp_path):
    asked = WaferSettings(rows=20, cols=16, dead_pe_fraction=0.05, dead_link_fraction=0.0, tiles=(4, 4), devices=(1, 2))
    wafer = asked.build()
    assert wafer is not None
    assert (wafer.spec.rows, wafer.spec.cols, wafer.tiles, wafer.devices) == (20, 16, (4, 4), (1, 2))
    assert (wafer.defects.dead_pe_count, wafer.defects.dead_link_count) == (16, 0)
    wafer.defects.save(tmp_path / "map.npz")
    again = dataclasses.replace(asked, dead_pe_fraction=0.5, defects_file=tmp_path / "map.npz").build()
    assert again == wafer
    assert WaferSettings(off=True).build() is None


@pytest.mark.parametrize(
    "bad",
    [
        WaferSettings(tiles=(64, 64)),
        WaferSettings(tiles=(6, 6), devices=(4, 1)),
        WaferSettings(tiles=(16, 16), devices=(16, 16)),
        WaferSettings(rows=0),
        WaferSettings(devices=(0, 1)),
        WaferSettings(dead_pe_fraction=1.0),
        WaferSettings(dead_pe_fraction=2.0),
    ],
    ids=repr,
)
def test_a_wafer_that_cannot_be_is_an_error_for_the_user(bad):
    with pytest.raises((ValueError, RuntimeError)) as error:
        bad.build()
    assert len(str(error.value)) > 20


def test_learning_rate_warms_up_peaks_and_decays():
    optimiser = OptimiserSettings(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = np.array([float(optimiser.schedule(100)(step)) for step in range(101)])
    assert rates[0] == 0 and rates.argmax() == 10 and rates.max() == 1
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    np.testing.assert_allclose(rates[100], 0.1, rtol=1e-5)
    float(optimiser.schedule(2)(1))  # shorter than the warm-up


def test_only_weights_decay():
    """With zero gradients AdamW's update is the decay alone; stacked biases have two axes, so rank cannot tell."""
    params = {"block": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones((2, 3))}}
    tx = OptimiserSettings(weight_decay=0.1).build(100)
    state = tx.init(params)
    zero = {"block": {"kernel": jnp.zeros((2, 3, 3)), "bias": jnp.zeros((2, 3))}, "norm": {"scale": jnp.zeros((2, 3))}}
    for _ in range(2):  # the first step's rate is 0
        updates, state = tx.update(zero, state, params)
    params = optax.apply_updates(params, updates)
    assert (params["block"]["kernel"] < 1).all()
    np.testing.assert_array_equal(params["block"]["bias"], 1)
    np.testing.assert_array_equal(params["norm"]["scale"], 1)
