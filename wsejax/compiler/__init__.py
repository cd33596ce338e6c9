"""How a function is mapped onto the wafer."""

from wsejax.compiler.artefact import ArtefactError
from wsejax.compiler.audit import Audit
from wsejax.compiler.cache import CacheInfo
from wsejax.compiler.check import FabricError, HloReport, check_hlo
from wsejax.compiler.export import Exported, LoadedFunction, load_exported
from wsejax.compiler.ir import UnsupportedOpError
from wsejax.compiler.jit import WaferFunction, audit, jit
from wsejax.compiler.lowered import Compiled, Lowered
from wsejax.compiler.pin import with_layout
from wsejax.compiler.program import Call, Program

__all__ = [
    "ArtefactError", "Audit", "CacheInfo", "Call", "Compiled", "Exported", "FabricError", "HloReport", "LoadedFunction", "Lowered",
    "Program", "UnsupportedOpError", "WaferFunction", "audit", "check_hlo", "jit", "load_exported", "with_layout",
]  # fmt: skip
