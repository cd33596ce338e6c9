"""Settings every test shares: four virtual CPU devices, no rank promotion, reproducible hypothesis, time limits."""

from __future__ import annotations

import os

import jax
import pytest
from hypothesis import settings

from wsejax.hardware.devices import request_cpu_devices

# Enough for a 2x2 device grid. Each more costs threads and compile time on a small machine and proves nothing new.
CPU_DEVICES = 4
SLOW_TIMEOUT_SECONDS = 900

# The tests are about virtual CPU devices, also where JAX would find an accelerator; JAX_PLATFORMS still decides if set.
if not os.environ.get("JAX_PLATFORMS"):
    jax.config.update("jax_platforms", "cpu")

# Tests compile what they test, whatever cache this machine has.
os.environ.pop("WSEJAX_CACHE_DIR", None)

# The device count can only be set before the first use of a backend, so it is set while the tests are collected.
request_cpu_devices(CPU_DEVICES)

# An array of a wrong rank that broadcasts is a bug that still gives numbers.
jax.config.update("jax_numpy_rank_promotion", "raise")

# A new shape is a new compilation, so no deadline and few examples; derandomised, so that a failure repeats.
settings.register_profile("wsejax", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("wsejax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests the long limit, except where the test names its own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_SECONDS))


@pytest.fixture(params=[(1, 1), (1, 2), (2, 2)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def device_grid(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Shape (rows, cols) of a device mesh. A test that takes it holds on each: the mesh is only how the wafer runs."""
    return request.param
