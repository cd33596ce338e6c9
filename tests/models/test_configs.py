"""config.json's: what was published is read as the preset, what is written is read back, and nothing in it is passed over in silence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.families import FAMILIES, find
from models.positions import RopeScaling, Rotary

from .published import CONFIGS, SAID_BESIDES

HOW_IT_RUNS = {"remat", "scan", "query_block", "dtype", "param_dtype", "init_scale", "dropout", "embedding_dropout", "attention_dropout"}
PRESETS = [f"{family.name}:{preset}" for family in FAMILIES.values() for preset in family.presets]
ODD = "unheard-of"

# Read and of no effect: other heads', other libraries', or said by another switch.
IDLE = {
    "gpt2": {"reorder_and_upcast_attn", "predict_special_tokens"},
    "gpt_neox": {"attention_probs_dropout_prob", "hidden_dropout_prob"},
    "llama": {"pretraining_tp"},
    "mpt": {"init_device", "init_config", "verbose", "embedding_fraction", "learned_pos_emb"},
    **dict.fromkeys(
        ("bert", "roberta"),
        frozenset({"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"}),
    ),
    "t5": {"dense_act_fn", "is_gated_act"},
}


def model(config: Any) -> dict[str, Any]:
    """What a configuration says of the model."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in HOW_IT_RUNS}


class Recorder(Mapping):
    """A config.json that remembers what was looked for."""

    def __init__(self, values: Mapping[str, Any]):
        self.values_of, self.asked = values, set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.values_of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


def published_of(name: str) -> dict[str, Any]:
    """One of a family's."""
    return next(config for key, config in CONFIGS.items() if key.startswith(name + ":"))


def missing_of(name: str) -> list[str]:
    """What a family cannot do without, by its own words."""
    with pytest.raises(ValueError) as error:
        FAMILIES[name].from_hf({})
    head, _, rest = str(error.value).partition(": ")
    assert head == f"config.json of {name}"
    parts = rest.split("; ")
    assert all(part.endswith(" is missing") for part in parts), parts
    return [part.removesuffix(" is missing") for part in parts]


def least(name: str) -> dict[str, Any]:
    """A published config.json without what has a default."""
    instead = {"max_position_embeddings": 2048, "hidden_size": 4544}
    return {key: published_of(name).get(key, instead.get(key)) for key in missing_of(name)}


def optional(name: str) -> set[str]:
    recorder = Recorder(least(name))
    FAMILIES[name].from_hf(recorder)
    return recorder.asked - {"model_type", *least(name)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read_as_the_preset(name):
    family, preset = find(name)
    besides = SAID_BESIDES.get(name, SAID_BESIDES.get(family.name, {}))
    assert model(family.from_hf(CONFIGS[name])) == model(dataclasses.replace(preset, **besides))


def test_every_preset_that_was_released_has_its_published_config():
    assert set(CONFIGS) == {name for name in PRESETS if not name.endswith(":tiny") and "gpt3" not in name}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(name):
    family, preset = find(name)
    written = family.to_hf(preset)
    assert written["model_type"] == family.model_type
    assert model(family.from_hf(json.loads(json.dumps(written)))) == model(preset)


OTHERWISE: dict[str, tuple[Any, ...]] = {
    "vocab_size": (77,), "context": (64,), "layers": (3,), "decoder_layers": (3,), "width": (64,), "heads": (4,), "kv_heads": (2,),
    "head_width": (32,), "ffn_width": (48,), "norm": ("rms", "layer"), "norm_epsilon": (0.25,), "positions": ("alibi", "rotary"),
    "rotary": (Rotary(width=2, base=7.0),), "alibi_bias_max": (4.0,), "parallel_norms": (2, 1),
    "activation": ("tanh",), "window": (5,), "attention_scale": (0.75,), "clip_qkv": (3.0,),
    "capacity_factor": (1.25,), "experts": (3,), "experts_per_token": (1,),
    "balance_weight": (0.5,), "dropout": (0.25,), "embedding_dropout": (0.25,), "attention_dropout": (0.25,), "bos_token": (5,),
    "eos_tokens": ((3, 4),), "pad_token": (6,), "segments": (3,), "head_activation": ("tanh",), "padding_token": (7,), "buckets": (16,),
    "max_distance": (99,), "start_token": (9,), "mup_base_width": (16,), "mup_base_head_width": (8,),
}  # fmt: skip
"""By field: values, of which one at least is not a family's default."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_is_written_or_refused(name):
    """Each field on its own with another value: read back as it is, or refused, since config.json has no words for it; never lost."""
    family, tiny = find(name)
    outcomes = {"read back": 0, "refused": 0}
    for field in dataclasses.fields(tiny):
        if field.name in HOW_IT_RUNS:
            continue
        value = getattr(tiny, field.name)
        other = not value if isinstance(value, bool) else next(x for x in OTHERWISE[field.name] if x != value)
        try:
            config = dataclasses.replace(tiny, **{field.name: other})
        except ValueError:  # on its own it contradicts another
            continue
        try:
            written = family.to_hf(config)
        except ValueError as error:
            assert "cannot say so" in str(error), (field.name, error)
            outcomes["refused"] += 1
        else:
            assert model(family.from_hf(written)) == model(config), field.name
            outcomes["read back"] += 1
    assert outcomes["read back"] >= 10 and outcomes["refused"] >= 2, outcomes


def test_what_is_dropped_in_training_is_written_where_there_are_words_for_it():
    family, tiny = find("gpt2")
    config = dataclasses.replace(tiny, dropout=0.1, embedding_dropout=0.2, attention_dropout=0.3)
    assert family.from_hf(family.to_hf(config)) == config


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_scalings_of_rotary_positions_are_read_back(kind):
    fields: dict[str, Any] = {
        "llama3": {"original_context": 64, "low_frequency_factor": 2.0, "high_frequency_factor": 8.0},
        "yarn": {"original_context": 64, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.5, "mscale_all_dim": 0.7, "truncate": False},
    }.get(kind, {})
    family, tiny = find("llama")
    config = dataclasses.replace(tiny, rotary=Rotary(width=16, base=500.0, scaling=RopeScaling(kind=kind, factor=4.0, **fields)))
    written = family.to_hf(config)
    assert family.from_hf(written) == config
    older = {**written, "rope_scaling": {("type" if key == "rope_type" else key): v for key, v in written["rope_scaling"].items()}}
    newer = {key: v for key, v in written.items() if key not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = {**written["rope_scaling"], "rope_theta": 500.0}
    assert family.from_hf(older) == family.from_hf(newer) == config


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_missing_is_listed_all_at_once(name):
    missing = missing_of(name)
    assert len(missing) >= 4
    family, config = FAMILIES[name], least(name)
    family.from_hf(config)
    for key in missing:
        with pytest.raises(ValueError, match=f"{key} is missing"):
            family.from_hf({k: v for k, v in config.items() if k != key})
        with pytest.raises(ValueError, match=f"{key}='{ODD}' is no whole number"):
            family.from_hf({**config, key: ODD})


@pytest.mark.parametrize("name", FAMILIES)
def test_nulls_are_as_if_they_were_not_there(name):
    family, config = FAMILIES[name], least(name)
    nulls = optional(name) - ({"sliding_window"} if name == "mistral" else set())  # there it says that there is none
    assert family.from_hf({**config, **dict.fromkeys(nulls)}) == family.from_hf(config)
    assert family.from_hf({**config, ODD: None}) == family.from_hf(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_switch_is_read_without_effect(name):
    """A value that no one has heard of is refused with the name of its switch, but where the switch changes nothing."""
    family, config = FAMILIES[name], least(name)
    usual = family.from_hf(config)
    idle = set()
    for key in optional(name):
        try:
            assert family.from_hf({**config, key: ODD}) == usual, key
            idle.add(key)
        except ValueError as error:
            assert str(error).startswith(f"config.json of {name}: ") and key in str(error), error
    assert idle == IDLE.get(name, set())


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_an_unknown_switch_is_never_passed_over(name, data):
    known = optional(name) | set(least(name))
    near = st.sampled_from(sorted(known)).flatmap(lambda key: st.sampled_from([key + "s", key[1:], key.upper(), "use_" + key]))
    key = data.draw(st.one_of(st.text(min_size=1), near).filter(lambda key: key not in known))
    value = data.draw(
        st.one_of(st.booleans(), st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.integers()))
    )
    with pytest.raises(ValueError) as error:
        FAMILIES[name].from_hf({**least(name), key: value})
    assert f"unknown switches {key}={value!r}" in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_familys_config_is_told_apart(name):
    for other, family in FAMILIES.items():
        if other != name:
            with pytest.raises(ValueError, match=f"config.json of {name}: model_type='{family.model_type}' is another family's"):
                FAMILIES[name].from_hf(published_of(other))


UNSUPPORTED: list[tuple[str, str, Any]] = [
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "activation_function", "mish"),
    ("gpt2", "is_encoder_decoder", True),
    ("gpt2", "n_special", 2),
    ("gpt2", "vocab_size", 0),
    ("gptj", "rotary", False),
    ("gptj", "rotary_dim", 7),
    ("gptj", "scale_attn_weights", False),
    ("gpt_neox", "use_parallel_residual", "yes"),
    ("gpt_neox", "is_decoder", True),
    ("llama", "hidden_act", ["silu"]),
    ("llama", "num_attention_heads", 0),
    ("llama", "quantization_config", {"bits": 4}),
    ("llama", "rms_norm_eps", "1e-5"),
    ("llama", "sliding_window", 4096),
    ("mistral", "attention_bias", True),
    ("mixtral", "router_jitter_noise", 0.1),
    ("falcon", "apply_residual_connection_post_layernorm", True),
    ("falcon", "ff_factor", 3),
    ("falcon", "n_embed", 64),
    ("falcon", "num_ln_in_parallel_attn", 2),
    ("mpt", "attn_config", "torch"),
    ("mpt", "emb_pdrop", 0.1),
    ("mpt", "expansion_ratio", 8),
    ("mpt", "logit_scale", "inv_sqrt_d_model"),
    ("mpt", "no_bias", False),
    ("mpt", "norm_type", "rmsnorm"),
    ("mpt", "resid_pdrop", 0.1),
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("roberta", "add_cross_attention", True),
    ("t5", "is_encoder_decoder", False),
    ("t5", "feed_forward_proj", "gated-mish"),
]


@pytest.mark.parametrize(("name", "key", "value"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name, key, value):
    with pytest.raises(ValueError, match=f"config.json of {name}: .*{key}"):
        FAMILIES[name].from_hf({**published_of(name), key: value})


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope type 'longrope' is not supported"),
        ({"type": "linear"}, "rope_scaling.factor missing"),
        ({"type": "linear", "factor": 0.5}, "rope_scaling: factor=0.5"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32.0}, "rope_scaling.beta_fast=32.0 is not known"),
        ({"rope_type": "llama3", "factor": 8.0}, "rope_scaling.low_freq_factor, .*original_max_position_embeddings missing"),
        ("linear", "rope_scaling='linear' is not a group"),
    ],
)
def test_scalings_that_are_not_supported_are_refused(scaling, words):
    with pytest.raises(ValueError, match=f"config.json of llama: {words}"):
        FAMILIES["llama"].from_hf({**published_of("llama"), "rope_scaling": scaling})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.03])
def test_rotary_positions_need_pairs_of_features(share):
    """Of a head of 64 these are 0, 0 and 1."""
    with pytest.raises(ValueError, match=r"config.json of gpt_neox: rotary positions of [01] features"):
        FAMILIES["gpt_neox"].from_hf({**published_of("gpt_neox"), "hidden_size": 4096, "rotary_pct": share})


@pytest.mark.parametrize(
    ("key", "value"),
    [("alibi", False), ("attn_type", "multiquery_attention"), ("attn_uses_sequence_id", True), ("clip_qkv", "6"), ("prefix_lm", True),
     ("qk_ln", True), ("rope", True)],
)  # fmt: skip
def test_what_is_not_supported_of_mpts_attention_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"config.json of mpt: .*{key}"):
        FAMILIES["mpt"].from_hf({**published_of("mpt"), "attn_config": {key: value}})


def test_everything_that_is_wrong_is_said_at_once():
    wrong = {**published_of("llama"), "hidden_act": "mish", "layer_scale": 0.1, "rope_scaling": {"type": "longrope"}, "vocab_size": None}
    with pytest.raises(ValueError) as error:
        FAMILIES["llama"].from_hf(wrong)
    assert all(word in str(error.value) for word in ("hidden_act='mish'", "layer_scale=0.1", "'longrope'", "vocab_size is missing"))


@pytest.mark.parametrize(
    ("name", "words"), [("lama:tiny", "perhaps 'llama'"), ("llama:4-8b", "no preset '4-8b'.*3.1-8b"), ("opt", "give one of gpt2, gptj")]
)
def test_an_unknown_name_is_refused_with_those_there_are(name, words):
    with pytest.raises(ValueError, match=words):
        find(name)
    assert find("llama") == find("llama:tiny")
