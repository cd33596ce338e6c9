"""How a function is mapped onto the wafer."""

from wsejax.compiler.audit import Audit
from wsejax.compiler.check import FabricError, HloReport, check_hlo
from wsejax.compiler.extend import register_rule, wafer_map
from wsejax.compiler.ir import Op, UnsupportedOpError
from wsejax.compiler.jit import Compiled, Lowered, WaferFunction, audit, jit
from wsejax.compiler.pin import with_layout
from wsejax.compiler.program import Call, Program
from wsejax.compiler.walk import Context, Step

__all__ = [
    "Audit", "Call", "Compiled", "Context", "FabricError", "HloReport", "Lowered", "Op", "Program", "Step", "UnsupportedOpError",
    "WaferFunction", "audit", "check_hlo", "jit", "register_rule", "wafer_map", "with_layout",
]  # fmt: skip
