"""How a function is mapped onto the wafer."""

from wsejax.compiler.audit import Audit
from wsejax.compiler.check import FabricError, HloReport, check_hlo
from wsejax.compiler.ir import UnsupportedOpError
from wsejax.compiler.jit import Compiled, Lowered, WaferFunction, audit, jit
from wsejax.compiler.pin import with_layout
from wsejax.compiler.program import Call, Program

__all__ = [
    "Audit", "Call", "Compiled", "FabricError", "HloReport", "Lowered", "Program", "UnsupportedOpError", "WaferFunction", "audit",
    "check_hlo", "jit", "with_layout",
]  # fmt: skip
