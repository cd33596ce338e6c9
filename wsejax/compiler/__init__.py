"""How a function is mapped onto the wafer."""

from wsejax.compiler.ir import UnsupportedOpError
from wsejax.compiler.jit import Compiled, Lowered, WaferFunction, jit
from wsejax.compiler.program import Audit, Call, Program

__all__ = ["Audit", "Call", "Compiled", "Lowered", "Program", "UnsupportedOpError", "WaferFunction", "jit"]
