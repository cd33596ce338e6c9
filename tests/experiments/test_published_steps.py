"""What `wse.cost` says of whole programs is held to published runs."""

from __future__ import annotations

import pytest

import wsejax as wse
from experiments.published_steps import RUNS, errors, modelled
from wsejax.cost.errors import model_error


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
