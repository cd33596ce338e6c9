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
from wsejax.cost import LLM, Cost, Memory, Timeline, UnknownTripsError, cost, memory, timeline
from wsejax.hardware import (
    CS1,
    CS2,
    CS3,
    WSE1,
    WSE2,
    WSE3,
    DefectMap,
    Remap,
    Routes,
    System,
    UnusableWaferError,
    Wafer,
    WaferSpec,
    remap,
    request_cpu_devices,
    static_routes,
    system,
)
from wsejax.kernels import pe
from wsejax.report import plot_memory, plot_timeline, plot_traffic, plot_wafer

__all__ = [
    "CS1", "CS2", "CS3", "LLM", "WSE1", "WSE2", "WSE3", "ArtefactError", "Audit", "CacheInfo", "Call", "Compiled", "Context", "Cost",
    "DefectMap", "Exported", "FabricError", "HloReport", "LoadedFunction", "Lowered", "Memory", "Op", "Program", "Remap", "Routes", "Step",
    "System", "Timeline", "Traffic", "UnknownTripsError", "UnsupportedOpError", "UnusableWaferError", "Wafer", "WaferFunction",
    "WaferSpec", "attention", "audit", "check_hlo", "cost", "fabric", "jit", "load_exported", "memory", "pe", "plot_memory",
    "plot_timeline", "plot_traffic", "plot_wafer", "register_rule", "remap", "request_cpu_devices", "static_routes", "system", "timeline",
    "traffic", "wafer_map", "with_layout",
]  # fmt: skip
