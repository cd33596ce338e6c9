"""wsejax: a functional emulator of a wafer-scale engine, in JAX."""

from wsejax.compiler import Audit, Call, Compiled, Lowered, Program, UnsupportedOpError, WaferFunction, jit
from wsejax.hardware import (
    WSE1,
    WSE2,
    WSE3,
    DefectMap,
    Remap,
    UnusableWaferError,
    Wafer,
    WaferSpec,
    remap,
    request_cpu_devices,
)

__all__ = [
    "WSE1", "WSE2", "WSE3", "Audit", "Call", "Compiled", "DefectMap", "Lowered", "Program", "Remap", "UnsupportedOpError",
    "UnusableWaferError", "Wafer", "WaferFunction", "WaferSpec", "jit", "remap", "request_cpu_devices",
]  # fmt: skip
