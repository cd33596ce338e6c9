"""Published training runs on wafers and on clusters, against the modelled step.

A name that is not known (`models`) stands for a transformer of as many parameters as it says, 128 times as wide as deep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wsejax.hardware import CS2

from ..accelerators import A100, cluster
from ..baselines import Plan, train_step
from ..llm import LLM
from ..points import Constant, Group, Point, Unpredictable
from ..training import Streaming, WaferStep, wafer_step
from ..workload import Workload
from .models import known
from .read import itemsize_bytes, system_of, time_in, whole

_PYTHIA_TENSOR = {"6.9B": 2, "12B": 4}  # the authors' GPT-NeoX configurations; the smaller ones are data-parallel
_PYTHIA_BATCH, _PYTHIA_LENGTH = 1024, 2048


def model(name: str) -> LLM:
    """A model by its name, or one of the size that its name says.

    Raises:
      Unpredictable: neither a known name nor a size in it.
    """
    if (llm := known(name)) is not None:
        return llm
    size = re.search(r"(\d+(?:\.\d+)?)\s*([MBT])\b", name, re.IGNORECASE)
    if size is None:
        raise Unpredictable(f"model={name!r}: not known, and its name says no number of parameters")
    parameters = float(size[1]) * {"m": 1e6, "b": 1e9, "t": 1e12}[size[2].lower()]
    layers = max(2, round((parameters / 12 / 128**2) ** (1 / 3)))
    dims = dict(layers=layers, width=128 * layers, heads=layers, ffn_width=512 * layers, vocab_size=50257, context=10**6)
    return LLM.from_dict({"name": name, **dims, "gated": False, "tied": True})


def _streaming(constants: Mapping[str, float]) -> Streaming:
    return Streaming(**{name: float(value) for name, value in constants.items()})


def _tuned(constants: Mapping[str, float]) -> Streaming:
    """As the vendor's own runs: they lose no more on small models than on large ones, so neither layers nor boundaries can cost much."""
    return Streaming(layer_seconds=0.0, boundary_passes=0.0, wait_per_doubling=float(constants["wait_per_doubling"]))


def _throughput(point: Point, constants: Mapping[str, float]) -> float:
    llm = model(str(point.config.get("model") or ""))
    wafers = whole(point, "systems", "num_csx", "cs2_systems", default=1)
    batch = whole(point, "batch", "batch_size", "global_batch")
    length = whole(point, "sequence_length", "seq_len", "msl")
    if length > llm.context:
        raise Unpredictable(f"config has sequence_length={length}: {llm.name} takes at most {llm.context} tokens")
    if (bits := 8 * itemsize_bytes(point, "fp16")) != 16:
        raise Unpredictable(f"config has dtype={point.config['dtype']!r} of {bits} bits: runs in 16 bits were measured")
    work = Workload.of_llm(llm, batch, length)
    per_second = batch / wafer_step(system_of(point), work, wafers, 1, _streaming(constants)).seconds
    if point.unit in ("samples/s", "sequences/s"):
        return float(per_second)
    if point.unit == "tokens/s":
        return float(per_second * length)
    if point.unit.endswith(("/step", "/iteration")) or point.unit in ("s", "ms"):
        return time_in(point, float(batch / per_second))
    raise Unpredictable(f"unit={point.unit!r}: training is predicted in samples/s, tokens/s, and s or ms a step")


def _cerebras_gpt(size: str, batch: int, wafers: int, constants: Mapping[str, float]) -> WaferStep:
    return wafer_step(CS2, Workload.of_llm(model("Cerebras-GPT-" + size), batch * wafers, 2048), wafers, 1, _tuned(constants))


def _scaling(point: Point, constants: Mapping[str, float]) -> float:
    if point.metric.startswith("flops_utilisation_relative_to_1_CS2_111M"):
        # the run of 111M parameters had a batch of 120 sequences on one system (Cerebras-GPT, table of hyperparameters)
        alone = _cerebras_gpt("111M", 120, 1, constants).mfu
        wafers, batch = whole(point, "cs2_systems", "systems", default=1), whole(point, "batch_per_cs2", default=120)
        return float(_cerebras_gpt(str(point.config.get("model", "111M")), batch, wafers, constants).mfu / alone)
    if point.metric == "speedup_vs_1":
        # a model of 1 T parameters and the same tokens on each wafer, enough of them that none waits for weights
        wafers, each = whole(point, "systems"), Workload.of_llm(model(str(point.config.get("model", "1T"))), 128, 2048)
        all_of_it = each.replace(flops=each.flops * wafers, tokens=each.tokens * wafers)
        kind, by = system_of(point), _tuned(constants)
        return float(wafers * wafer_step(kind, each, 1, 1, by).seconds / wafer_step(kind, all_of_it, wafers, 1, by).seconds)
    raise Unpredictable(f"metric={point.metric!r}: utilisation relative to one system and speed-up are predicted")


def _gpu_hours(point: Point, constants: Mapping[str, float]) -> float:
    """Pythia: recomputed activations, optimizer state divided over replicas, eight A100 of 40 GB and 400 Gb/s of network a node."""
    if "A100" not in point.hardware or point.metric != "gpu_hours":
        raise Unpredictable(f"metric={point.metric!r} on {point.hardware!r}: hours of A100 are predicted")
    name = str(point.config.get("model") or point.algorithm)
    size = name.lower().removeprefix("pythia-").upper()
    llm = model("Pythia-" + size)
    chips = whole(point, "gpus")
    tensor = _PYTHIA_TENSOR.get(size, 1)
    if chips % tensor:
        raise Unpredictable(f"{chips} GPUs are not divisible by the {tensor} of a tensor-parallel group")
    node = A100.replace(memory_bytes=40e9, memory_bytes_per_second=1.555e12, scale_out_bytes_per_second=6.25e9)
    machine = cluster(node, chips, kernel_efficiency=float(constants["kernel_efficiency"]))
    work = Workload.of_llm(llm, _PYTHIA_BATCH, _PYTHIA_LENGTH)
    step = train_step(work, machine, Plan(data=chips // tensor, tensor=tensor, recompute=True))
    return float(step.seconds * whole(point, "tokens", default=299_892_736_000) / work.tokens * chips / 3600.0)


def _loss(point: Point, constants: Mapping[str, float]) -> float:
    raise Unpredictable("a loss, or a fit to losses: what training reaches, not what a step costs")


GROUPS: tuple[Group, ...] = (
    Group(
        name="training throughput",
        claims=lambda point: point.experiment == "training_throughput",
        predict=_throughput,
        constants={
            "efficiency": Constant(0.45, 0.02, 1.0, "", "share of the dense peak that products sustain while weights keep up"),
            "layer_seconds": Constant(1e-3, 0.0, 0.1, "s", "fixed time of each layer's pass on a wafer"),
        },
        aim=0.20,
    ),
    Group(
        name="training scaling",
        claims=lambda point: point.experiment == "training_scaling",
        predict=_scaling,
        constants={
            "wait_per_doubling": Constant(0.01, 0.0, 0.5, "", "share of a step for which the slowest wafer is waited for, each doubling"),
        },
    ),
    Group(
        name="GPU training hours",
        claims=lambda point: point.experiment == "training_gpu_hours",
        predict=_gpu_hours,
        constants={"kernel_efficiency": Constant(0.4, 0.02, 1.0, "", "share of the dense peak that kernels sustain")},
    ),
    Group(name="training loss", claims=lambda point: point.experiment == "training_loss", predict=_loss),
)
