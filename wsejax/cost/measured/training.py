"""Published training runs on wafers and on clusters, against the modelled step.

Dimensions are the models' own (their papers and model cards); norms and biases are left out. A name that is not known stands for a
transformer of as many parameters as it says, 128 times as wide as deep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wsejax.hardware import CS2, System, system

from ..accelerators import A100, cluster
from ..baselines import Plan, train_step
from ..llm import LLM
from ..points import Constant, Group, Point, Unpredictable
from ..training import Streaming, WaferStep, wafer_step
from ..workload import Workload


def _llm(name: str, layers: int, width: int, heads: int, ffn_width: int, vocab_size: int, context: int, **more: object) -> LLM:
    dims = dict(layers=layers, width=width, heads=heads, ffn_width=ffn_width, vocab_size=vocab_size, context=context, gated=False)
    return LLM.from_dict({"name": name, **dims, **more})


_MODELS = [
    _llm("Llama-7B", 32, 4096, 32, 11008, 32000, 4096, gated=True),  # Llama 1 and 2 (Touvron et al., 2023)
    _llm("Llama-13B", 40, 5120, 40, 13824, 32000, 4096, gated=True),
    _llm("Llama-70B", 80, 8192, 64, 28672, 32000, 4096, gated=True, kv_heads=8),
    _llm("Llama-8B", 32, 4096, 32, 14336, 128256, 131072, gated=True, kv_heads=8),  # Llama 3 (Dubey et al., 2024)
    _llm("Mistral-7B", 32, 4096, 32, 14336, 32000, 32768, gated=True, kv_heads=8),  # Jiang et al., 2023
    _llm("CodeLlama-34B", 48, 8192, 64, 22016, 32000, 16384, gated=True, kv_heads=8),  # Roziere et al., 2023
    _llm("Qwen2-72B", 80, 8192, 64, 29568, 152064, 32768, gated=True, kv_heads=8),  # Yang et al., 2024
    _llm("GPT-J-6B", 28, 4096, 16, 16384, 50400, 2048),  # Wang and Komatsuzaki, 2021
    _llm("GPT-NeoX-20B", 44, 6144, 64, 24576, 50432, 2048),  # Black et al., 2022
    _llm("BERT-base", 12, 768, 12, 3072, 30522, 512, tied=True, causal=False),  # Devlin et al., 2019
    _llm("BERT-large", 24, 1024, 16, 4096, 30522, 512, tied=True, causal=False),
    _llm("ESM-2-35M", 12, 480, 20, 1920, 33, 1024, tied=True, causal=False),  # Lin et al., 2023
    _llm("ESM-2-150M", 30, 640, 20, 2560, 33, 1024, tied=True, causal=False),
    _llm("ESM-2-650M", 33, 1280, 20, 5120, 33, 1024, tied=True, causal=False),
    _llm("ESM-2-3B", 36, 2560, 40, 10240, 33, 1024, tied=True, causal=False),
]
# Cerebras-GPT (Dey et al., 2023) and Pythia (Biderman et al., 2023): layers, width, heads.
_CEREBRAS_GPT = {
    "111M": (10, 768, 12), "256M": (14, 1088, 17), "590M": (18, 1536, 12), "1.3B": (24, 2048, 16), "2.7B": (32, 2560, 32),
    "6.7B": (32, 4096, 32), "13B": (40, 5120, 40),
}  # fmt: skip
_PYTHIA = {
    "70M": (6, 512, 8), "160M": (12, 768, 12), "410M": (24, 1024, 16), "1B": (16, 2048, 8), "1.0B": (16, 2048, 8), "1.4B": (24, 2048, 16),
    "2.8B": (32, 2560, 32), "6.9B": (32, 4096, 32), "12B": (36, 5120, 40),
}  # fmt: skip
_PYTHIA_TENSOR = {"6.9B": 2, "12B": 4}  # the authors' GPT-NeoX configurations; the smaller ones are data-parallel
_PYTHIA_BATCH, _PYTHIA_LENGTH = 1024, 2048


def _key(name: str) -> str:
    """Without punctuation, and without the versions that share dimensions."""
    plain = re.sub(r"[^a-z0-9.]", "", name.lower())
    return re.sub(r"^(meta)?llama(1|2|3|3\.1|3\.2)?(?=\d+b)", "llama", plain)


_BY_KEY = {_key(m.name): m for m in _MODELS}
_BY_KEY |= {_key("Cerebras-GPT-" + size): _llm(size, *d, 4 * d[1], 50257, 2048, tied=True) for size, d in _CEREBRAS_GPT.items()}
_BY_KEY |= {_key("GPT-3-" + size): _BY_KEY[_key("Cerebras-GPT-" + size)] for size in _CEREBRAS_GPT}
_BY_KEY |= {_key("Pythia-" + size): _llm(size, *d, 4 * d[1], 50304, 2048) for size, d in _PYTHIA.items()}


def model(name: str) -> LLM:
    """A model by its name, or one of the size that its name says.

    Raises:
      Unpredictable: neither a known name nor a size in it.
    """
    if (known := _BY_KEY.get(_key(name))) is not None:
        return known
    size = re.search(r"(\d+(?:\.\d+)?)\s*([MBT])\b", name, re.IGNORECASE)
    if size is None:
        raise Unpredictable(f"model {name!r} is not known, and its name says no number of parameters")
    parameters = float(size[1]) * {"m": 1e6, "b": 1e9, "t": 1e12}[size[2].lower()]
    layers = max(2, round((parameters / 12 / 128**2) ** (1 / 3)))
    return _llm(name, layers, 128 * layers, layers, 512 * layers, 50257, 10**6, tied=True)


def _wafer(name: str) -> System:
    for generation in ("CS-1", "CS-2", "CS-3"):
        if generation in name:
            return system(generation)
    raise Unpredictable(f"hardware {name!r}: no preset of a wafer")


def _integer(point: Point, *names: str, default: int | None = None) -> int:
    for name in names:
        if isinstance(value := point.config.get(name), int | float) and not isinstance(value, bool) and value >= 1:
            return int(value)
    if default is None:
        raise Unpredictable(f"config says no {' or '.join(names)}")
    return default


def _streaming(constants: Mapping[str, float]) -> Streaming:
    return Streaming(**{name: float(value) for name, value in constants.items()})


def _tuned(constants: Mapping[str, float]) -> Streaming:
    """As the vendor's own runs: they lose no more on small models than on large ones, so neither layers nor boundaries can cost much."""
    return Streaming(layer_seconds=0.0, boundary_passes=0.0, wait_per_doubling=float(constants["wait_per_doubling"]))


def _throughput(point: Point, constants: Mapping[str, float]) -> float:
    llm = model(str(point.config.get("model", "")))
    wafers = _integer(point, "systems", "num_csx", "cs2_systems", default=1)
    batch = _integer(point, "batch", "batch_size", "global_batch")
    length = _integer(point, "sequence_length", "seq_len", "msl")
    work = Workload.of_llm(llm, batch, min(length, llm.context))
    per_second = batch / wafer_step(_wafer(point.hardware), work, wafers, 1, _streaming(constants)).seconds
    if point.unit == "samples/s":
        return float(per_second)
    if point.unit == "tokens/s":
        return float(per_second * length)
    raise Unpredictable(f"unit {point.unit!r}: rates of training are predicted in samples/s and tokens/s")


def _cerebras_gpt(size: str, batch: int, wafers: int, constants: Mapping[str, float]) -> WaferStep:
    return wafer_step(CS2, Workload.of_llm(model("Cerebras-GPT-" + size), batch * wafers, 2048), wafers, 1, _tuned(constants))


def _scaling(point: Point, constants: Mapping[str, float]) -> float:
    if point.metric.startswith("flops_utilisation_relative_to_1_CS2_111M"):
        # the run of 111M parameters had a batch of 120 sequences on one system (Cerebras-GPT, table of hyperparameters)
        alone = _cerebras_gpt("111M", 120, 1, constants).mfu
        wafers, batch = _integer(point, "cs2_systems", "systems", default=1), _integer(point, "batch_per_cs2", default=120)
        return float(_cerebras_gpt(str(point.config.get("model", "111M")), batch, wafers, constants).mfu / alone)
    if point.metric == "speedup_vs_1":
        # a model of 1 T parameters and the same tokens on each wafer, enough of them that none waits for weights
        wafers, each = _integer(point, "systems"), Workload.of_llm(model(str(point.config.get("model", "1T"))), 128, 2048)
        all_of_it = each.replace(flops=each.flops * wafers, tokens=each.tokens * wafers)
        kind, by = _wafer(point.hardware), _tuned(constants)
        return float(wafers * wafer_step(kind, each, 1, 1, by).seconds / wafer_step(kind, all_of_it, wafers, 1, by).seconds)
    raise Unpredictable(f"metric {point.metric!r}: utilisation relative to one system and speed-up are predicted")


def _gpu_hours(point: Point, constants: Mapping[str, float]) -> float:
    """Pythia: recomputed activations, optimizer state divided over replicas, eight A100 of 40 GB and 400 Gb/s of network a node."""
    name = str(point.config.get("model") or point.algorithm)
    size = name.lower().removeprefix("pythia-").upper()
    llm = model("Pythia-" + size)
    chips = _integer(point, "gpus")
    tensor = _PYTHIA_TENSOR.get(size, 1)
    if chips % tensor:
        raise Unpredictable(f"{chips} GPUs are not divisible by the {tensor} of a tensor-parallel group")
    node = A100.replace(memory_bytes=40e9, memory_bytes_per_second=1.555e12, scale_out_bytes_per_second=6.25e9)
    machine = cluster(node, chips, kernel_efficiency=float(constants["kernel_efficiency"]))
    work = Workload.of_llm(llm, _PYTHIA_BATCH, _PYTHIA_LENGTH)
    step = train_step(work, machine, Plan(data=chips // tensor, tensor=tensor, recompute=True))
    return float(step.seconds * _integer(point, "tokens", default=299_892_736_000) / work.tokens * chips / 3600.0)


def _loss(point: Point, constants: Mapping[str, float]) -> float:
    raise Unpredictable("a loss, or a fit to losses: what training reaches, not what a step costs")


GROUPS: tuple[Group, ...] = (
    Group(
        name="training throughput",
        claims=lambda point: point.experiment == "training_throughput",
        predict=_throughput,
        constants={
            "efficiency": Constant(0.45, 0.02, 1.0, "1", "share of the dense peak that products sustain while weights keep up"),
            "layer_seconds": Constant(1e-3, 0.0, 0.1, "s", "fixed time of each layer's pass on a wafer"),
        },
        aim=0.20,
    ),
    Group(
        name="training scaling",
        claims=lambda point: point.experiment == "training_scaling",
        predict=_scaling,
        constants={
            "wait_per_doubling": Constant(0.01, 0.0, 0.5, "1", "share of a step for which the slowest wafer is waited for, each doubling"),
        },
    ),
    Group(
        name="GPU training hours",
        claims=lambda point: point.experiment == "training_gpu_hours",
        predict=_gpu_hours,
        constants={"kernel_efficiency": Constant(0.4, 0.02, 1.0, "1", "share of the dense peak that kernels sustain")},
    ),
    Group(name="training loss", claims=lambda point: point.experiment == "training_loss", predict=_loss),
)
