"""Presets of other machines: identities of their data sheets, and values that nothing has."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from wsejax.cost.accelerators import A100, ACCELERATORS, B200, H100, H200, TPU_V4, accelerator, cluster
from wsejax.hardware import WSE3


def test_the_ratio_of_memory_bandwidths_that_articles_quote():
    """21 PB/s of SRAM over eight H100: 784."""
    assert WSE3.sram_bandwidth_bytes_per_second / (8 * H100.memory_bytes_per_second) == pytest.approx(784, abs=1)


def test_eight_billion_16_bit_weights_need_seventy_chips_without_other_memory():
    assert 16e9 / accelerator("groq-lpu").memory_bytes == pytest.approx(70, abs=1)


@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=str)
def test_presets_are_consistent(chip):
    assert chip.fp8_flops_per_second >= chip.bf16_flops_per_second > chip.fp32_flops_per_second
    assert chip.chips_per_box * chip.chip_watts <= chip.box_watts
    assert chip.scale_out_bytes_per_second <= chip.scale_up_bytes_per_second < chip.memory_bytes_per_second
    assert chip.flops_per_second(1) >= chip.flops_per_second(2) > chip.flops_per_second(4) > chip.flops_per_second(8)


def test_generations_get_faster():
    peaks = [chip.bf16_flops_per_second / chip.chip_watts for chip in (A100, H100, B200)]
    assert peaks == sorted(peaks)
    assert H200.memory_bytes > H100.memory_bytes and H200.bf16_flops_per_second == H100.bf16_flops_per_second


@pytest.mark.parametrize("name", ["h100", "H100", "tpu-v5p", "TPU v5p", "groq_lpu"])
def test_names_are_forgiving(name):
    assert accelerator(name) in ACCELERATORS.values()


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"accelerator='h900'.*a100.*tpuv5p"):
        accelerator("h900")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_bytes": 0.0}, "memory_bytes=0.0: must be finite and positive"),
        ({"bf16_flops_per_second": -1.0}, "bf16_flops_per_second=-1.0"),
        ({"box_watts": float("nan")}, "box_watts=nan"),
        ({"scale_up_bytes_per_second": 450}, "scale_up_bytes_per_second=450.*convert it"),  # GB/s
        ({"memory_bytes": True}, "memory_bytes=True: must be a number"),
        ({"memory": 80e9}, "memory=80.*no such field; it has name, bf16_flops_per_second"),
    ],
)
def test_bad_values_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        H100.replace(**changes)


@pytest.mark.parametrize(("field", "value"), [("chips", 0), ("kernel_efficiency", 45), ("network_efficiency", 0.0)])
def test_bad_clusters_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        cluster("h100", 64).replace(**{field: value})


def test_latencies_may_be_zero():
    assert H100.replace(launch_seconds=0.0).launch_seconds == 0


def test_a_cluster_is_a_pytree_of_floats():
    some = cluster(TPU_V4, 64)
    assert some.name == "64 x TPU v4"
    assert len(jax.tree.leaves(some)) == 3 + len(dataclasses.fields(TPU_V4)) - 1
    slope = jax.grad(lambda machine: machine.watts)(jax.tree.map(float, some))
    assert float(slope.chips) == pytest.approx(some.watts / 64)
    assert some.dollars_per_hour == 64 * TPU_V4.dollars_per_hour
    assert some.dense_peak_flops_per_second(2) == pytest.approx(64 * 275e12)
