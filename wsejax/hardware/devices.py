"""Virtual CPU devices: several devices in one process, before JAX starts its backends."""

from __future__ import annotations

import os
import platform

import jax


def request_cpu_devices(n: int) -> None:
    """Make JAX run its CPU backend with `n` virtual devices. Call it at the start of the program, before `jax.distributed.initialize`.

    It works until JAX starts its backends, which happens at the first array, `jax.devices()` or `Wafer`. If the CPU
    backend already runs with `n` devices or more, nothing happens; several calls keep the largest request. On a machine
    whose default platform is a GPU or a TPU, set `JAX_PLATFORMS=cpu` too: a wafer uses the default platform's devices.

    XLA's CPU thread pool is enlarged to at least `2 n` threads (environment variable `NPROC`): with fewer, releases of
    JAX before 0.12 deadlock once some tens of programs with collectives are queued.

    On x86 XLA is kept from contracting a multiply and an add into one rounding (`XLA_FLAGS=--xla_cpu_max_isa=AVX`, unless the flag is
    set already): where it would do so depends on the whole program's fusions, and then the last bits of a result on the device mesh.
    Matrix products, which come from a library, are not affected; `experiments/bench.py` shows what it costs.

    Raises:
      ValueError: `n` is not a positive integer.
      RuntimeError: the backends already run, with fewer than `n` CPU devices.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: the number of CPU devices is a positive integer, such as request_cpu_devices(4)")
    wanted = max(n, jax.config.jax_num_cpu_devices)  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: os.environ.get(name) for name in ("NPROC", "XLA_FLAGS")}  # XLA reads both when its backend starts
    os.environ["NPROC"] = str(max(_thread_count(before["NPROC"]), 2 * wanted))
    if platform.machine().lower() in ("x86_64", "amd64") and "xla_cpu_max_isa" not in (before["XLA_FLAGS"] or ""):
        os.environ["XLA_FLAGS"] = f"{before['XLA_FLAGS'] or ''} --xla_cpu_max_isa=AVX".strip()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as late:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        running = len(jax.devices("cpu"))
        if running < n:
            raise RuntimeError(
                f"request_cpu_devices({n}): JAX already runs with {running} CPU device(s), and the number cannot "
                "change any more. Call request_cpu_devices first, right after the imports and before any array, "
                "jax.devices() or Wafer; or start the program with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={n}"
            ) from late


def _thread_count(value: str | None) -> int:
    """Threads that XLA would use with `NPROC=value`: it takes the number of cores when the value is no number."""
    return int(value) if value is not None and value.isdigit() else os.cpu_count() or 1
