"""Models of published training runs: what they cover, in which units, and that they say what they do not cover."""

from __future__ import annotations

import pytest

from wsejax.cost.measured.training import GROUPS, model
from wsejax.cost.points import Group, Point, Unpredictable


def point(experiment: str, hardware: str = "Cerebras CS-3", metric: str = "throughput", unit: str = "samples/s", **config) -> Point:
    algorithm = config.pop("algorithm", "weight streaming")
    return Point(
        id="x",
        source="here",
        hardware=hardware,
        experiment=experiment,
        metric=metric,
        unit=unit,
        value=1.0,
        algorithm=algorithm,
        config=config,
    )


def predicted(of: Point, **constants: float) -> float:
    group = claimant(of)
    return group.predict(of, {name: c.start for name, c in group.constants.items()} | constants)


def claimant(of: Point) -> Group:
    return next(g for g in GROUPS if g.claims(of))


LLAMA = dict(model="Llama-2-7B", systems=1, sequence_length=4096, batch=1024)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-2-7B", 6.74e9), ("LLaMA3-8B", 8.03e9), ("LLaMA2-13B", 13.0e9), ("CodeLLaMA-34B", 33.7e9), ("QWen2-72B", 72.7e9),
        ("Mistral-7B", 7.24e9), ("GPT-J-6B", 6.05e9), ("BERT-large", 335e6), ("ESM-2-650M", 650e6), ("Cerebras-GPT-111M", 111e6),
        ("Cerebras-GPT-13B", 12.9e9), ("Pythia-12B", 11.8e9), ("GPT-3-1.3B", 1.3e9), ("Something-20B", 20e9), ("1T", 1e12),
    ],
)  # fmt: skip
def test_models_have_the_parameters_of_their_names(name, parameters):
    assert model(name).parameters == pytest.approx(parameters, rel=0.05)


def test_a_name_without_a_size_is_not_guessed():
    with pytest.raises(Unpredictable, match="model='mystery': not known"):
        model("mystery")


def test_published_runs_are_predicted_within_the_aim():
    """Argonne's logs: with the constants as fitted."""
    fitted = dict(efficiency=0.474, layer_seconds=2.64e-3)
    assert predicted(point("training_throughput", **LLAMA), **fitted) == pytest.approx(31.98, rel=0.2)
    gpt_j = dict(model="GPT-J-6B", systems=2, sequence_length=2048, batch=120)
    assert predicted(point("training_throughput", "Cerebras CS-2", **gpt_j), **fitted) == pytest.approx(43.67, rel=0.2)
    bert = dict(model="BERT-large", systems=1, sequence_length=128, batch=1024)
    assert predicted(point("training_throughput", "Cerebras CS-2", **bert), **fitted) == pytest.approx(4044, rel=0.2)


@pytest.mark.parametrize("hardware", ["Cerebras CS-2", "Cerebras CS-3"])
@pytest.mark.parametrize("name", ["Llama-7B", "GPT-J-6B", "ESM-2 35M", "Mistral 7B", "Foo-3B"])
@pytest.mark.parametrize("batch", [64, 1024])
def test_other_runs_get_a_sane_prediction(hardware, name, batch):
    config = dict(model=name, sequence_length=1024, batch=batch)
    step = predicted(point("training_throughput", hardware, "time_per_step", "ms/step", systems=1, **config))
    one, two = (predicted(point("training_throughput", hardware, systems=n, **config)) for n in (1, 2))
    assert 0.1 < one < two <= 2 * one < 1e6
    tokens = predicted(point("training_throughput", hardware, unit="tokens/s", systems=1, **config))
    assert tokens == pytest.approx(1024 * one) and step == pytest.approx(1e3 * batch / one)


def test_utilisation_is_relative_to_the_small_run():
    small = dict(metric="flops_utilisation_relative_to_1_CS2_111M", unit="x", batch_per_cs2=120)
    assert predicted(point("training_scaling", "Andromeda (CS-2)", model="111M", cs2_systems=1, **small)) == pytest.approx(1)
    many = predicted(point("training_scaling", "Andromeda (CS-2)", model="6.7B", cs2_systems=16, **small))
    assert 0.9 < many < 1.05


def test_a_slower_slowest_wafer_costs_speed():
    run = point("training_scaling", "16 x CS-3", metric="speedup_vs_1", unit="x", systems=16)
    fast, slow = (predicted(run, wait_per_doubling=w) for w in (0.0, 0.0115))
    assert fast == pytest.approx(16, abs=0.01) and slow == pytest.approx(15.3, abs=0.1)


@pytest.mark.parametrize(
    ("size", "gpus", "hours"),
    [("70m", 32, 510), ("160m", 32, 1030), ("410m", 32, 2540), ("1b", 64, 4830), ("1.4b", 64, 7120), ("2.8b", 64, 14240),
     ("6.9b", 128, 33500), ("12b", 256, 72300)],
)  # fmt: skip
def test_pythia_s_hours_are_near(size, gpus, hours):
    """Biderman et al., 2023, appendix D. The smallest models are slower than compute and memory say: up to twice."""
    run = point("training_gpu_hours", "A100 40GB", "gpu_hours", "A100-hours", algorithm=f"pythia-{size}", gpus=gpus, tokens=299_892_736_000)
    ratio = predicted(run, kernel_efficiency=0.435) / hours
    assert (0.5 if size in ("70m", "160m") else 0.85) < ratio < 1.15


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (point("training_loss", metric="pile_test_cross_entropy", unit="nats/token"), "not what a step costs"),
        (point("training_throughput", hardware="TPU", **LLAMA), "names 0 generations"),
        (point("training_throughput", unit="parsecs", **LLAMA), "unit='parsecs'"),
        (point("training_throughput", **{**LLAMA, "sequence_length": 8192}), "sequence_length=8192: llama-2-7b takes at most 4096"),
        (point("training_throughput", **{**LLAMA, "model": "BERT-large", "sequence_length": 1024}), "at most 512"),
        (point("training_throughput", **{**LLAMA, "batch": -4}), "batch=-4: must be a number that is not negative"),
        (point("training_throughput", **LLAMA, dtype="fp32"), "dtype='fp32' of 32 bits"),
        (point("training_gpu_hours", "H100", "gpu_hours", "H100-hours", algorithm="pythia-12b", gpus=256), "hours of A100"),
        (point("training_throughput", model="Llama-2-7B"), "does not state batch"),
        (point("training_throughput"), "model='': not known"),
        (point("training_scaling", metric="fun"), "metric='fun'"),
        (point("training_gpu_hours", "A100 40GB", "gpu_hours", "A100-hours", algorithm="pythia-12b", gpus=255), "not divisible by the 4"),
    ],
)
def test_what_is_not_covered_has_a_reason(of, reason):
    with pytest.raises(Unpredictable, match=reason):
        predicted(of)
