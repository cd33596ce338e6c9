"""What a compiled program depends on, as text: the key of the cache, and how two keys differ.

The program is written out as the compiler reads it (`ir.Graph`), not as JAX prints it: constants by their bytes, no addresses, no
source lines. A parameter that cannot be written out completely makes the program uncacheable, since a key that leaves something out
would give somebody another program's code.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import itertools
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from wsejax.compiler import rules as _rules  # noqa: F401  registers the rules
from wsejax.compiler.ir import Graph, Primitive, Value, read
from wsejax.compiler.walk import RULES
from wsejax.hardware.wafer import Wafer

_BODIES = {"jaxpr", "cond_jaxpr", "body_jaxpr", "branches"}  # of an op with bodies, which are written out below it
_TRACED = {"computation"}  # the function behind a jaxpr that stands beside it
_COUNTED = {"ft_in", "ft_out"}  # the compiler counts what a scan carries from ranks instead
_LIBRARIES = {"jax", "jaxlib", "numpy", "ml_dtypes"}  # their versions are in the key
_OWN_RULES = dict(RULES)  # all, since wsejax is still being imported
_FLOORS = ("hardware", "fabric", "kernels", "compiler")  # what a program is made by
# Settings of JAX and XLA that change no program. All others are in the key, since one more miss costs little.
_HARMLESS = re.compile(
    "cache|jax_log|logging|traceback|dump|transfer|timeout|pprint|jax_platforms|num_cpu_devices|host_platform_device_count"
)


class UncacheableError(ValueError):
    """The program holds something that has no canonical text."""


def key_parts(
    name: str,
    graph: Graph,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    same: Sequence[tuple[Value, Value]],
    wafer: Wafer,
) -> dict[str, Any]:
    """All that the compiled program depends on, as plain JSON.

    Args:
      name: of the function.
      graph: its program.
      arguments: one line for each flat argument.
      options: of `wse.jit`, other than the wafer.
      same: arguments and results that are laid out alike.

    Raises:
      UncacheableError: the program cannot be written out.
    """
    for op in graph.walk():
        if op.name in RULES and RULES[op.name] is not _OWN_RULES.get(op.name):
            raise UncacheableError(f"{op.name} at {op.source} has a rule that is no part of wsejax, and may change")
        if op.name not in RULES and not any(p is op.primitive for p in _jax_primitives()):
            raise UncacheableError(f"{op.name} at {op.source} is no primitive of jax.lax, so what it does may change behind its name")
    devices = list(wafer.mesh.devices.flat)
    return {
        "function": name,
        "arguments": list(arguments),
        **{option: canonical(value) for option, value in options.items()},
        "laid out alike": [[_index(graph.ins, a), _index(graph.outs, b)] for a, b in same],
        "wafer": _wafer(wafer),
        "machine": {
            "processor": platform.machine(),
            "platform": devices[0].platform,
            "devices": [[d.id, d.device_kind] for d in devices],
        },
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
            "numpy": np.__version__,
            "wsejax": f"sources {_sources()[:16]}",
        },
        "environment": {
            name: " ".join(sorted(flag for flag in os.environ.get(name, "").split() if not _HARMLESS.search(flag)))
            for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
        },
        "settings": {
            name: str(getattr(jax.config, name, default)) for name, default in jax.config.values.items() if not _HARMLESS.search(name)
        },
        "program": program_lines(graph),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed from one key to another, a line each; arguments and program last."""
    before, after = dict(_flat(old)), dict(_flat(new))
    found = []
    for name in sorted({*before, *after} - {"arguments", "program"}):
        a, b = before.get(name, "nothing"), after.get(name, "nothing")
        if a != b and not (name.startswith("settings.") and before["versions.jax"] != after["versions.jax"]):  # each JAX has its own
            found.append(f"{name}: {a} -> {b}")
    found += [f"argument {n}: {a} -> {b}" for n, a, b in _unequal(before["arguments"], after["arguments"], 0)]
    program = _unequal(before["program"], after["program"], 1)
    found += [f"program, first in line {n}: {_cut(a)} -> {_cut(b)}" for n, a, b in itertools.islice(program, 1)]
    return found


def _unequal(old: Sequence[str], new: Sequence[str], start: int) -> Iterator[tuple[int, str, str]]:
    pairs = enumerate(itertools.zip_longest(old, new, fillvalue="nothing"), start)
    return ((n, a, b) for n, (a, b) in pairs if a != b)


def _cut(line: str) -> str:
    return line.strip() if len(line) < 200 else line.strip()[:197] + "..."


def _flat(parts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in parts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _wafer(wafer: Wafer) -> dict[str, Any]:
    """All that makes a wafer, whatever that may be one day; the mesh is its devices, which are written elsewhere."""
    parts = {name: getattr(wafer, name) for name in inspect.signature(Wafer).parameters if name != "mesh"}
    known = {"spec": dataclasses.asdict(parts.pop("spec")), "defects": parts.pop("defects").digest}
    return known | {name: canonical(value) for name, value in parts.items()}


def _index(values: Sequence[Value], value: Value) -> int:
    return next(n for n, v in enumerate(values) if v is value)


@functools.cache
def _jax_primitives() -> list[Any]:
    return [p for module in (jax.lax, jax.lax.linalg) for name, p in vars(module).items() if name.endswith("_p")]


@functools.cache
def _sources() -> str:
    """SHA-256, in hex, of wsejax's own sources: surer than a version number while somebody works on them."""
    root = Path(__file__).resolve().parent.parent
    content = hashlib.sha256()
    for file in sorted(file for floor in _FLOORS for file in (root / floor).rglob("*.py")):
        content.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode() + file.read_bytes())
    return content.hexdigest()


# ---- the program -----------------------------------------------------------------------------------------------------
def program_lines(graph: Graph) -> list[str]:
    """A program as canonical text, an op a line.

    Raises:
      UncacheableError: a parameter of an op has no canonical text.
    """
    names: dict[Value, str] = {}
    lines: list[str] = []

    def use(value: Value) -> str:
        if value not in names and value.const is not None:
            names[value] = _const(value)
        return names[value]

    def define(values: Sequence[Value]) -> str:
        for v in values:
            names[v] = f"v{len(names)}"
        return ", ".join(f"{names[v]}: {v}" for v in values)

    def write(graph: Graph, indent: str) -> None:
        ins = define(graph.ins)
        if indent:  # those of the program are the arguments
            lines.append(f"{indent}from {ins}")
        for op in graph.ops:
            skipped = _BODIES | _COUNTED if op.bodies else _TRACED if "jaxpr" in op.params else ()
            try:
                params = " ".join(f"{k}={canonical(v)}" for k, v in sorted(op.params.items()) if k not in skipped)
            except UncacheableError as error:
                raise UncacheableError(f"{op.name} at {op.source}: {error}") from None
            operands = ", ".join(use(v) for v in op.ins)
            lines.append(f"{indent}{define(op.outs)} = {op.name}[{params}]({operands})")
            for body in op.bodies:
                write(body, indent + "  ")
        lines.append(f"{indent}give {', '.join(use(v) for v in graph.outs)}")

    write(graph, "")
    return lines


def _const(value: Value) -> str:
    weak = " weak" if getattr(jax.typeof(value.const), "weak_type", False) else ""  # a Python number takes the dtype of what it meets
    number = isinstance(value.const, bool | int | float | complex)
    return canonical(np.asarray(value.const, value.dtype) if number else value.const) + weak


def canonical(x: Any) -> str:
    """Text that two values share only if an op means the same with either.

    Raises:
      UncacheableError: there is none.
    """
    kind = type(x)
    if isinstance(x, enum.Enum):
        return f"{_name(kind)}({x.value!r})"
    if x is None or kind in (bool, int, float, complex, str, bytes):
        return repr(x)
    if isinstance(x, np.dtype):
        return str(x)
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        return _array(x)
    if isinstance(x, tuple | list):
        fields = getattr(x, "_fields", None)  # of a named tuple
        inside = ", ".join(map(canonical, x))
        return f"[{inside}]" if kind is list else f"{_name(kind) if fields else ''}({inside})"
    if kind is dict:
        return f"dict({', '.join(sorted(f'{canonical(k)}: {canonical(v)}' for k, v in x.items()))})"
    if isinstance(x, set | frozenset):
        return f"set({', '.join(sorted(map(canonical, x)))})"
    if hasattr(x, "eqns"):  # a jaxpr, which an op holds to say how it combines elements
        held = read(x)
        return " ; ".join([", ".join(map(str, held.ins)), *program_lines(held)])
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return f"{_name(kind)}({', '.join(f'{f.name}={canonical(getattr(x, f.name))}' for f in dataclasses.fields(x))})"
    if isinstance(x, Primitive) and any(p is x for p in _jax_primitives()):
        return f"primitive {x.name}"
    name = _name(x)
    if name.split(".")[0] in _LIBRARIES and hasattr(x, "__qualname__") and "<" not in name and not hasattr(x, "__self__"):
        return name  # a function or class of a module
    raise UncacheableError(f"{x!r} ({_name(kind)}) cannot be written out")


def _name(x: Any) -> str:
    return f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', '')}"


def _array(x: Any) -> str:
    dtype = x.dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        x = jax.random.key_data(x)
    plain = np.asarray(x)
    data = np.ascontiguousarray(plain).tobytes()
    shown = f"{plain.reshape(())} {data.hex()}" if plain.size == 1 else f"sha256:{hashlib.sha256(data).hexdigest()}"
    return f"{dtype}{list(plain.shape)} {shown}"
