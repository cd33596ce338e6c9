"""What people give by mistake: configurations of other kinds of values, switches that nobody reads, folders that are not there."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from experiments.task import ModelSettings
from models import weights
from models.families import FAMILIES, find
from models.family import resized
from wsejax.inference import Generator, Model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tied": "no"}, "tied='no': give bool"),
        ({"dropout": "0.1"}, "dropout='0.1': give float"),
        ({"window": True}, "window=True: give int or None"),
        ({"eos_tokens": 5}, "eos_tokens=5: give tuple"),
        ({"rotary": {}}, "rotary={}: give Rotary or None"),
        ({"heads": "4"}, "heads='4': give a whole number"),
        ({"dtype": "int8"}, "dtype='int8': give one of float32"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0: give a number above 0"),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        resized(find("mixtral:tiny")[1], **change)


def test_settings_that_contradict_each_other_or_the_text():
    with pytest.raises(ValueError, match=r"vocab_size=100: bytes .* are 256 tokens"):
        ModelSettings(name="llama", set=("vocab_size=100",)).config()
    with pytest.raises(ValueError, match="layers is given already"):
        ModelSettings(name="llama", layers=1, set=("layers=2",)).config()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("t5", {"tie_encoder_decoder": True}, "tie_encoder_decoder"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"rope_theta": 0}, "rope_theta=0 is no number above 0"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling.factor='4' is no number"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.original_max_position_embeddings missing"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ("mistral", {"num_key_value_heads": 0}, "num_key_value_heads=0: must be at least 1"),
    ],
)
def test_a_switch_that_would_change_numbers_is_never_passed_over(name, change, words):
    family = FAMILIES[name]
    with pytest.raises(ValueError, match=words):
        family.from_hf({**family.to_hf(family.presets["tiny"]), **change})


def test_what_is_dropped_in_training_does_not_keep_a_model_from_being_written():
    family, config = find("llama:tiny")
    assert family.to_hf(dataclasses.replace(config, dropout=0.1)) == family.to_hf(config)
    family, config = find("mixtral:tiny")
    with pytest.raises(ValueError, match=r"capacity_factor=1.0: config.json of mixtral cannot say so"):
        family.to_hf(dataclasses.replace(config, capacity_factor=1.0))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="no such folder or file"):
        weights.load(tmp_path / "nowhere", FAMILIES["llama"])


@pytest.mark.parametrize("pad", [None, 61, 9999, -1])
def test_a_pad_token_that_the_table_has_not_disturbs_nobody(pad):
    family, config = find("llama:tiny")
    config = resized(config, layers=1, width=16, heads=2, context=32, vocab_size=61)
    params = family.init(config, jax.random.key(1))
    made = {}
    for token in (0, pad):
        model = Model.of(family, dataclasses.replace(config, pad_token=token))
        run = Generator(model, params).start(params, [[5, 6, 7], [8]], 4, stop_tokens=())
        made[token] = np.stack(list(run), 1)
    np.testing.assert_array_equal(made[0], made[pad])
    assert made[0].any()
