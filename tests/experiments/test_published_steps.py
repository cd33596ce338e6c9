"""What `wse.cost` says of whole programs is held to published runs."""

from __future__ import annotations

import pytest

import wsejax as wse
from experiments.published_steps import RUNS, errors, modelled, modelled_streamed, streamed, streamed_errors
from wsejax.cost.errors import model_error
from wsejax.cost.training import Streaming


@pytest.mark.parametrize("id", RUNS)
def test_a_published_run_is_met_within_a_quarter(id: str) -> None:
    """One constant for two runs of each generation."""
    assert modelled(id) == pytest.approx(RUNS[id].samples_per_second, rel=0.25)


def test_the_presets_hold_what_was_fitted() -> None:
    found = errors()
    for system in (wse.CS2, wse.CS3):
        share = found["constants"][f"{system.name} gemm share"]
        assert system.gemm_fp16_fma_per_cycle / system.fp16_fma_per_cycle == pytest.approx(share, rel=0.03)
    error = model_error("whole programs")
    assert (error.points, error.held_out) == (4, True)
    assert error.median == pytest.approx(found["held_out_median"], abs=0.01)


# ---- compiled for a cluster, so that the program says what streams ---------------------------------------------------
@pytest.mark.parametrize("id", RUNS)
def test_a_published_run_that_streams_is_met_within_an_eighth(id: str) -> None:
    """One constant for four runs of two generations."""
    assert modelled_streamed(id) == pytest.approx(RUNS[id].samples_per_second, rel=0.14)


def test_software_and_boundary_counted_apart_say_more_than_kernels_alone() -> None:
    found, alone = streamed_errors(), errors()
    assert Streaming().matrix_share == pytest.approx(found["constants"]["matrix share"], rel=0.02)
    assert found["held_out_median"] < 0.5 * alone["held_out_median"] and found["median"] < alone["median"]
    error = model_error("streamed programs")
    assert (error.points, error.held_out) == (4, True)
    assert error.median == pytest.approx(found["held_out_median"], abs=0.01)


def test_a_run_that_streams_has_its_parts() -> None:
    run = wse.cost(streamed("alcf-gptj-6b-train-1cs3"), wse.CS3)
    assert run.streamed is not None and run.error_group == "streamed programs"
    layers = 28
    assert run.streamed.parts()["software"] == pytest.approx(2 * layers * Streaming().layer_seconds)
    weights = run.streamed.in_bytes, run.streamed.out_bytes
    assert weights[0] >= 2 * layers / 30 * 12.1e9 and weights[1] >= layers / 30 * 12.1e9  # most of 6 G parameters of 16 bits
