"""wsejax: a functional emulator of a wafer-scale engine, in JAX."""

from wsejax.compiler import (
    Audit,
    Call,
    Compiled,
    FabricError,
    HloReport,
    Lowered,
    Program,
    UnsupportedOpError,
    WaferFunction,
    audit,
    check_hlo,
    jit,
    with_layout,
)
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
    "WSE1", "WSE2", "WSE3", "Audit", "Call", "Compiled", "DefectMap", "FabricError", "HloReport", "Lowered", "Program", "Remap",
    "UnsupportedOpError", "UnusableWaferError", "Wafer", "WaferFunction", "WaferSpec", "audit", "check_hlo", "jit", "remap",
    "request_cpu_devices", "with_layout",
]  # fmt: skip
