"""wsejax: a functional emulator of a wafer-scale engine, in JAX."""

from wsejax.compiler import (
    ArtefactError,
    Audit,
    CacheInfo,
    Call,
    Compiled,
    Exported,
    FabricError,
    HloReport,
    LoadedFunction,
    Lowered,
    Program,
    UnsupportedOpError,
    WaferFunction,
    audit,
    check_hlo,
    jit,
    load_exported,
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
    "WSE1", "WSE2", "WSE3", "ArtefactError", "Audit", "CacheInfo", "Call", "Compiled", "DefectMap", "Exported", "FabricError", "HloReport",
    "LoadedFunction", "Lowered", "Program", "Remap", "UnsupportedOpError", "UnusableWaferError", "Wafer", "WaferFunction", "WaferSpec",
    "audit", "check_hlo", "jit", "load_exported", "remap", "request_cpu_devices", "with_layout",
]  # fmt: skip
