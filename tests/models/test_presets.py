"""Presets are plain dimensions whose parameter counts are the published ones."""

import pytest

from models import presets
from models.families import FAMILIES
from wsejax.cost.llm import LLM


@pytest.mark.parametrize("name", presets.names())
def test_parameters_are_as_published(name):
    """1% where the dimensions hold all matrices; 2% below half a billion, where position tables (left out) weigh more.

    OPT's and GPT-3's counts are the rounded names of the papers: 2.5%.
    """
    llm = LLM.from_dict(presets.find(name))
    published = presets.PUBLISHED_PARAMETERS[name]
    rounded = name.startswith(("gpt3", "cerebras-gpt", "opt-66b"))
    allowed = 0.025 if rounded else 0.02 if published < 0.5e9 else 0.01
    assert abs(llm.parameters / published - 1) <= allowed, (llm.parameters, published)
    assert llm.name == name


def test_every_count_has_a_preset():
    assert set(presets.PUBLISHED_PARAMETERS) == set(presets.PRESETS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("LLaMA3-8B", "llama-3-8b"), ("QWen2-72B", "qwen2-72b"), ("Llama 3.1 8B", "llama-3.1-8b"), ("CodeLLaMA-34B", "codellama-34b")],
)
def test_spelling_does_not_matter(spelling, name):
    assert presets.find(spelling)["name"] == name


def test_names_do_not_collide():
    plain = [presets._plain(n) for n in presets.PRESETS]
    assert len(set(plain)) == len(plain)


def test_an_unknown_name_lists_what_is_near():
    with pytest.raises(ValueError, match=r"name='llama-3.1-9b'.*llama-3\.1-8b"):
        presets.find("llama-3.1-9b")


SPELLED = {"gpt2": ("gpt2-{}", "{}"), "gptj": ("gpt-j-{}",), "gpt_neox": ("gpt-neox-{}", "{}")}
OTHERWISE = {"gpt2:small": "gpt2", "bert:base-uncased": "bert-base", "bert:large-uncased": "bert-large", "mistral:7b-v0.1": "mistral-7b"}


def test_dimensions_that_families_have_too_are_the_same():
    """Both are written out: a family's presets say what dimensions have no words for."""
    seen = 0
    for family in FAMILIES.values():
        for preset, config in family.presets.items():
            names = [pattern.format(preset) for pattern in SPELLED.get(family.name, (family.name + "-{}",))]
            name = OTHERWISE.get(f"{family.name}:{preset}") or next((n for n in names if n in presets.PRESETS), None)
            if name is None or preset == "tiny":
                continue
            dims, seen = presets.PRESETS[name], seen + 1
            for field in ("layers", "width", "heads", "head_width", "ffn_width", "vocab_size", "context", "tied"):
                assert getattr(config, field) == dims[field], (name, field)
            assert getattr(config, "kv_heads", config.heads) == dims["kv_heads"], name
            assert getattr(config, "gated", False) == dims["gated"] and (family.kind == "decoder") == dims["causal"], name
    assert seen >= 40
