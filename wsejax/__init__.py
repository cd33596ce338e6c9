"""wsejax: a functional emulator of a wafer-scale engine, in JAX."""

from wsejax import fabric
from wsejax.compiler import (
    ArtefactError,
    Audit,
    CacheInfo,
    Call,
    Compiled,
    Context,
    Exported,
    FabricError,
    HloReport,
    LoadedFunction,
    Lowered,
    Op,
    Program,
    Step,
    Traffic,
    UnsupportedOpError,
    WaferFunction,
    attention,
    audit,
    check_hlo,
    jit,
    load_exported,
    register_rule,
    traffic,
    wafer_map,
    with_layout,
)
from wsejax.hardware import (
    WSE1,
    WSE2,
    WSE3,
    DefectMap,
    Remap,
    Routes,
    UnusableWaferError,
    Wafer,
    WaferSpec,
    remap,
    request_cpu_devices,
    static_routes,
)
from wsejax.kernels import pe
from wsejax.report import plot_traffic, plot_wafer

__all__ = [
    "WSE1", "WSE2", "WSE3", "ArtefactError", "Audit", "CacheInfo", "Call", "Compiled", "Context", "DefectMap", "Exported", "FabricError",
    "HloReport", "LoadedFunction", "Lowered", "Op", "Program", "Remap", "Routes", "Step", "Traffic", "UnsupportedOpError",
    "UnusableWaferError", "Wafer", "WaferFunction", "WaferSpec", "attention", "audit", "check_hlo", "fabric", "jit", "load_exported",
    "pe", "plot_traffic", "plot_wafer", "register_rule", "remap", "request_cpu_devices", "static_routes", "traffic", "wafer_map",
    "with_layout",
]  # fmt: skip
