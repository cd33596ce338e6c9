"""Presets have as many parameters as the models they are named after, to the last one where the number was published."""

from __future__ import annotations

import pytest

from models.families import FAMILIES, find

# What is said with each family is where its numbers stand. A released file holds some tensors that are no parameters of the language
# model, or tied ones twice: these are subtracted here.
EXACT = {
    # Radford et al. 2019, as released: `num_parameters` of transformers; the paper's own 117M to 1542M leave something out
    "gpt2:small": 124_439_808,
    "gpt2:medium": 354_823_168,
    "gpt2:large": 774_030_080,
    "gpt2:xl": 1_557_611_200,
    # GPT-J-6B, `num_parameters` of transformers; the model card of GPT-NeoX-20B
    "gptj:6b": 6_050_882_784,
    "gpt_neox:20b": 20_554_567_680,
    # Biderman et al. 2023, table 1: without tables of tokens, which are two
    "gpt_neox:pythia-70m": 18_915_328 + 2 * 50304 * 512,
    "gpt_neox:pythia-160m": 85_056_000 + 2 * 50304 * 768,
    "gpt_neox:pythia-410m": 302_311_424 + 2 * 50304 * 1024,
    "gpt_neox:pythia-1b": 805_736_448 + 2 * 50304 * 2048,
    "gpt_neox:pythia-1.4b": 1_208_602_624 + 2 * 50304 * 2048,
    "gpt_neox:pythia-2.8b": 2_517_652_480 + 2 * 50304 * 2560,
    "gpt_neox:pythia-6.9b": 6_444_163_072 + 2 * 50432 * 4096,
    "gpt_neox:pythia-12b": 11_327_027_200 + 2 * 50688 * 5120,
    # safetensors' total of meta-llama/Llama-2-7b-hf, ..., with 64 frequencies of rotary positions a layer; LLaMA 1 has the sizes of 2, and
    # `num_parameters` of transformers besides
    "llama:7b": 6_738_417_664 - 32 * 64,
    "llama:13b": 13_015_866_880 - 40 * 64,
    "llama:33b": 32_528_943_616,
    "llama:65b": 65_285_660_672,
    "llama:2-7b": 6_738_417_664 - 32 * 64,
    "llama:2-13b": 13_015_866_880 - 40 * 64,
    "llama:2-70b": 68_976_653_312 - 80 * 64,
    # safetensors' totals
    "llama:3-8b": 8_030_261_248,
    "llama:3-70b": 70_553_706_496,
    "llama:3.1-8b": 8_030_261_248,
    "llama:3.1-70b": 70_553_706_496,
    "llama:3.1-405b": 405_853_388_800,
    "llama:3.2-1b": 1_235_814_400,
    "llama:3.2-3b": 3_212_749_824,
    "mistral:7b-v0.1": 7_241_732_096,
    "mistral:7b-v0.2": 7_241_732_096,
    "mistral:7b-v0.3": 7_248_023_552,
    "mixtral:8x7b": 46_702_792_704,
    "mixtral:8x22b": 140_620_634_112,
    # safetensors' totals, in which the tied head stands a second time; keras-hub's registry for RW-1B
    "falcon:7b": 7_217_189_760 - 65024 * 4544,
    "falcon:40b": 41_835_970_560 - 65024 * 8192,
    "falcon:180b": 179_522_565_120 - 65024 * 14848,
    "falcon:rw-1b": 1_311_625_216,
    # safetensors' totals of google-bert/bert-base-uncased, ..., with the pooler and the head that tells whether sentences follow
    "bert:base-uncased": 110_106_428 - 768 * 769 - 2 * 769,
    "bert:large-uncased": 336_226_108 - 1024 * 1025 - 2 * 1025,
    # the uncased one with another table of tokens and bias of the head
    "bert:base-cased": 110_106_428 - 768 * 769 - 2 * 769 - (30522 - 28996) * 769,
    # safetensors' totals without 514 integers
    "roberta:base": 124_697_433,
    "roberta:large": 355_412_057,
    # `num_parameters` of transformers; safetensors' total for XL
    "t5:small": 60_506_624,
    "t5:base": 222_903_552,
    "t5:large": 737_668_096,
    "t5:3b": 2_851_598_336,
    "t5:11b": 11_307_321_344,
    "t5:flan-small": 76_961_152,
    "t5:flan-base": 247_577_856,
    "t5:flan-large": 783_150_080,
    "t5:flan-xl": 2_849_757_184,
    "t5:flan-xxl": 11_135_332_352,
}

# Name -> (rounded number, what it may be off by, relatively).
ROUNDED = {
    # Brown et al. 2020, table 2.1
    "gpt2:gpt3-125m": (125e6, 0.02),
    "gpt2:gpt3-350m": (350e6, 0.02),
    "gpt2:gpt3-760m": (760e6, 0.02),
    "gpt2:gpt3-1.3b": (1.3e9, 0.02),
    "gpt2:gpt3-2.7b": (2.7e9, 0.02),
    "gpt2:gpt3-6.7b": (6.7e9, 0.02),
    "gpt2:gpt3-13b": (13e9, 0.02),
    "gpt2:gpt3-175b": (175e9, 0.02),
    # model cards
    "falcon:11b": (11.1e9, 0.001),
    "mpt:7b": (6.7e9, 0.01),
    "mpt:30b": (29.95e9, 0.001),
}


def counted(name: str) -> int:
    family, config = find(name)
    return family.parameters(config)


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_the_published_ones(name):
    assert counted(name) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_round_to_the_published_number(name):
    published, off = ROUNDED[name]
    assert abs(counted(name) / published - 1) <= off


def test_every_preset_has_a_published_number():
    presets = {f"{family.name}:{preset}" for family in FAMILIES.values() for preset in family.presets}
    tiny = {f"{name}:tiny" for name in FAMILIES}
    assert tiny <= presets
    assert {*EXACT, *ROUNDED} == presets - tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny_presets_are_tiny(name):
    assert counted(name) < 2e6
