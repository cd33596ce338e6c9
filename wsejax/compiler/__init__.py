"""How a function is mapped onto the wafer."""

from wsejax.compiler.artefact import ArtefactError
from wsejax.compiler.attend import attention
from wsejax.compiler.audit import Audit
from wsejax.compiler.cache import CacheInfo
from wsejax.compiler.check import FabricError, HloReport, check_hlo
from wsejax.compiler.export import Exported, LoadedFunction, load_exported
from wsejax.compiler.extend import register_rule, wafer_map
from wsejax.compiler.ir import Graph, Op, UnsupportedOpError, Value
from wsejax.compiler.jit import WaferFunction, audit, jit
from wsejax.compiler.kvstore import BalancedStore, balanced_store
from wsejax.compiler.layout import Layouts
from wsejax.compiler.lowered import Compiled, Lowered
from wsejax.compiler.pin import with_layout
from wsejax.compiler.program import Call, Loop, Program, Unknown
from wsejax.compiler.skipped import ActivationSparsity, measure_activation_sparsity
from wsejax.compiler.traffic import Traffic, traffic
from wsejax.compiler.walk import Context, Step
from wsejax.compiler.work import weights_of

__all__ = [
    "ActivationSparsity", "ArtefactError", "Audit", "BalancedStore", "CacheInfo", "Call", "Compiled", "Context", "Exported", "FabricError",
    "Graph", "HloReport", "Layouts", "LoadedFunction", "Loop", "Lowered", "Op", "Program", "Step", "Traffic", "Unknown",
    "UnsupportedOpError", "Value", "WaferFunction", "attention", "audit", "balanced_store", "check_hlo", "jit", "load_exported",
    "measure_activation_sparsity", "register_rule", "traffic", "wafer_map", "weights_of", "with_layout",
]  # fmt: skip
