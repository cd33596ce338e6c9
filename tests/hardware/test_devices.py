"""Virtual CPU devices. Each test needs a process of its own: JAX starts its backends once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsejax.hardware import request_cpu_devices

ROOT = Path(__file__).parents[2]


def run(program: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
    program = "import os, jax\nfrom wsejax.hardware import WSE3, Wafer, request_cpu_devices\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "4"])
def test_the_number_is_a_positive_integer(n):
    with pytest.raises(ValueError, match=f"n={n!r}"):
        request_cpu_devices(n)


def test_the_largest_request_counts_and_threads_are_twice_the_devices():
    program = """
request_cpu_devices(40)
request_cpu_devices(3)
print(jax.device_count(), os.environ["NPROC"])
request_cpu_devices(5)
"""
    assert run(program) == "40 80"


def test_a_larger_thread_pool_is_kept():
    assert run('request_cpu_devices(2); print(os.environ["NPROC"])', NPROC="999") == "999"


def test_a_late_request_says_what_to_do_and_changes_nothing():
    program = """
jax.devices()
before = dict(os.environ)
request_cpu_devices(1)
try:
    request_cpu_devices(2)
except RuntimeError as error:
    print(error)
assert dict(os.environ) == before and jax.device_count() == 1
"""
    message = run(program)
    assert "request_cpu_devices(2): JAX already runs with 1 CPU device(s)" in message
    assert "Call request_cpu_devices first" in message and "host_platform_device_count=2" in message


def test_devices_asked_for_by_a_flag_are_enough():
    program = "jax.devices(); request_cpu_devices(3); print(Wafer(WSE3.scaled(4, 4)).devices)"
    assert run(program, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "(2, 2)"


def test_a_wafer_on_one_device_starts_no_backend():
    program = """
wafer = Wafer(WSE3.scaled(4, 4), tiles=(2, 2), devices=(1, 1))
request_cpu_devices(2)
print(jax.device_count(), wafer.mesh.devices.shape)
"""
    assert run(program) == "2 (1, 1)"


def test_a_long_queue_of_collectives_does_not_deadlock():
    """What the thread pool is enlarged for: several hundred steps in flight, never waited for."""
    program = """
request_cpu_devices(4)
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
mesh = Wafer(WSE3.scaled(4, 4), devices=(2, 2)).mesh
@jax.jit
@jax.shard_map(mesh=mesh, in_specs=P("y", "x"), out_specs=P("y", "x"))
def step(x):
    return jax.lax.ppermute(jax.lax.ppermute(x, "y", [(0, 1), (1, 0)]), "x", [(0, 1), (1, 0)]) + 1
x = jnp.zeros((8, 8))
for _ in range(300):
    x = step(x)
print(float(x[0, 0]))
"""
    assert run(program) == "300.0"
