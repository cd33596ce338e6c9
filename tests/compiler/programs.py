"""All the small programs that the compiler must run, by name."""

from __future__ import annotations

from tests.compiler import programs_of_arrays, programs_of_control, programs_of_science
from tests.compiler.registry import PROGRAMS, floats, ints

__all__ = ["PROGRAMS", "floats", "ints", "programs_of_arrays", "programs_of_control", "programs_of_science"]
