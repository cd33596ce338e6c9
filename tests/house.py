"""The house's rules as functions over source text, so that a test can hold them against the tree and against a breach.

Each rule takes the path of a file inside the repository and its source, and returns one line per breach:
"path:line: what, and what to do". Nothing is imported or run: the rules read the syntax tree.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

# What each floor of wsejax/ may import besides itself: one line, each floor sees all that are below.
_BELOW_COMPILER = ("hardware", "fabric", "kernels")
_BELOW_TRAINING = (*_BELOW_COMPILER, "compiler", "cost", "streaming")
FLOORS: dict[str, frozenset[str]] = {
    "hardware": frozenset(),
    "fabric": frozenset({"hardware"}),
    "kernels": frozenset({"hardware", "fabric"}),
    "compiler": frozenset(_BELOW_COMPILER),
    "streaming": frozenset({*_BELOW_COMPILER, "compiler"}),
    "cost": frozenset({*_BELOW_COMPILER, "compiler", "streaming"}),
    "inference": frozenset(_BELOW_TRAINING),
    "sparse": frozenset(),  # beside the others: an optimiser's part that needs none of them
    "training": frozenset(_BELOW_TRAINING),
    "report": frozenset({*_BELOW_TRAINING, "training", "inference"}),
    "cli": frozenset({*_BELOW_TRAINING, "training", "inference", "report"}),
}

# jax.lax functions that move bytes between devices. `ppermute` is the only one the wafer has; only fabric/ calls it.
PERMUTE = "ppermute"
OTHER_COLLECTIVES = frozenset(
    [
        "psum",
        "pmean",
        "pmax",
        "pmin",
        "psum_scatter",
        "all_gather",
        "all_gather_invariant",
        "all_to_all",
        "ragged_all_to_all",
        "pbroadcast",
        "pshuffle",
        "pswapaxes",
        "pgather",
        "psend",
        "precv",
    ]
)

UNSAFE_MODULES = frozenset(["pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"])
MAX_LINES = 400

_ABSOLUTE_PATH = re.compile(r"(?<![\w./~$}>-])/(?:home|root|work|tmp|Users|opt|mnt|srv|scratch)/\w|\b[A-Z]:\\\\?Users")
_REGISTRY_HOST = re.compile(r"pypi\.org|pythonhosted\.org|anaconda\.org|download\.pytorch\.org", re.IGNORECASE)


@dataclass(frozen=True)
class Use:
    """A name that a file reaches: `name` is its dotted origin, resolved through imports and import aliases."""

    name: str
    line: int
    imported: bool


def package_of(path: str) -> tuple[str, ...]:
    """The package a file's relative imports start from: its folder, for a module and for an `__init__.py` alike."""
    return PurePosixPath(path).parent.parts


def uses(path: str, source: str) -> list[Use]:
    """Every import and every attribute chain that starts at an imported name, wherever in the file it stands."""
    tree = ast.parse(source, filename=path)
    found: list[Use] = []
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Use(alias.name, node.lineno, imported=True))
                bound = alias.asname or alias.name.partition(".")[0]
                origin[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom):
            base = _imported_module(path, node)
            for alias in node.names:
                name = base if alias.name == "*" else f"{base}.{alias.name}"
                found.append(Use(name, node.lineno, imported=True))
                origin[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            chain = _chain(node)
            if chain and chain[0] in origin:
                found.append(Use(".".join((origin[chain[0]], *chain[1:])), node.lineno, imported=False))
        elif isinstance(node, ast.Call):
            found.extend(_dynamic(node, origin))
    return found


def _imported_module(path: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = package_of(path)
    parents = package[: len(package) - (node.level - 1)]
    return ".".join((*parents, *(node.module or "").split("."))).rstrip(".")


def _chain(node: ast.expr) -> tuple[str, ...]:
    """("jax", "lax", "psum") for `jax.lax.psum`; empty where the chain starts at something other than a name."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (head := _chain(node.value)):
        return (*head, node.attr)
    return ()


def _dynamic(node: ast.Call, origin: dict[str, str]) -> Iterator[Use]:
    """Names reached through a constant string: import_module("a.b"), __import__("a"), getattr(a, "b")."""
    called = _chain(node.func)
    strings = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if not called or not strings:
        return
    if called[-1] in ("import_module", "__import__"):
        yield Use(strings[0], node.lineno, imported=True)
    elif called == ("getattr",):
        chain = _chain(node.args[0])
        if chain and chain[0] in origin:
            yield Use(".".join((origin[chain[0]], *chain[1:], strings[0])), node.lineno, imported=False)


def _is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def arrows(path: str, source: str) -> list[str]:
    """Imports run one way: a floor of wsejax/ sees the floors below it, models/ sees neither wsejax nor experiments, and only
    the command line sees models/."""
    parts = PurePosixPath(path).parts
    breaches = []
    for use in uses(path, source):
        if not use.imported:
            continue
        target = use.name.split(".")
        where = f"{path}:{use.line}: imports {use.name}: "
        if parts[0] == "models":
            if target[0] in ("wsejax", "wsejax_models", "experiments", "tests"):
                breaches.append(where + "a model is plain flax; move what needs the wafer to experiments/")
            elif target[0] == "models" and f"{path}:{use.line}" in _absolute_import_lines(path, source):
                breaches.append(where + "models/ ships as wsejax_models; import relatively (from . import ...)")
        elif parts[0] == "wsejax":
            if target[0] in ("models", "wsejax_models") and parts[1].removesuffix(".py") == "cli":
                continue  # the command line takes models by name
            if target[0] in ("models", "wsejax_models", "experiments", "tests"):
                breaches.append(where + "the emulator knows no model and no experiment; pass it in from experiments/")
            elif target[0] == "wsejax":
                breaches.extend(where + reason for reason in _floor_breach(parts, target))
    return breaches


def _absolute_import_lines(path: str, source: str) -> set[str]:
    return {
        f"{path}:{node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
    }


def _floor_breach(parts: tuple[str, ...], target: list[str]) -> Iterator[str]:
    if len(parts) == 2 and parts[1] in ("__init__.py", "__main__.py"):
        return
    floor = parts[1].removesuffix(".py")
    other = target[1] if len(target) > 1 else ""
    if floor not in FLOORS:
        yield f"{floor} is no floor of the house; put the file into one of {', '.join(FLOORS)}, or add it to FLOORS"
    elif other == floor or other in FLOORS[floor]:
        return
    elif other in FLOORS:
        yield f"{floor} may import only {', '.join(sorted(FLOORS[floor])) or 'itself'}; turn it round or move it up"
    elif floor != "cli":
        yield "the package's front door is for users; import from the floor that defines the name"


def collectives(path: str, source: str) -> list[str]:
    """Only fabric/ names ppermute, and nothing in wsejax/ or models/ names another collective of jax.lax."""
    in_fabric = path.startswith("wsejax/fabric/")
    breaches = []
    for use in uses(path, source):
        last = use.name.rpartition(".")[2]
        if not _is_under(use.name, "jax"):
            continue
        if last in OTHER_COLLECTIVES:
            breaches.append(f"{path}:{use.line}: names {use.name}: build it from fabric shifts; the wafer has no other way")
        elif last == PERMUTE and not in_fabric:
            breaches.append(f"{path}:{use.line}: names {use.name}: call wsejax.fabric; only fabric/ moves data")
    return breaches


def private_jax(path: str, source: str) -> list[str]:
    """`jax._src` changes without notice."""
    return [
        f"{path}:{use.line}: reaches {use.name}: use JAX's public names" for use in uses(path, source) if _is_under(use.name, "jax._src")
    ]


def reaches_jax_extend(path: str, source: str) -> bool:
    """Whether the file uses `jax.extend`, which promises no compatibility and so belongs in one file."""
    return any(_is_under(use.name, "jax.extend") for use in uses(path, source))


def hardware_is_numpy(path: str, source: str) -> list[str]:
    """hardware/ describes the machine in numpy; from JAX it takes devices and meshes, never computation."""
    return [
        f"{path}:{use.line}: uses {use.name}: hardware/ is numpy; JAX is there to make the Mesh"
        for use in uses(path, source)
        if any(_is_under(use.name, module) for module in ("jax.numpy", "jax.lax", "jax.jit", "jax.grad", "jax.nn"))
    ]


def unsafe_loading(path: str, source: str) -> list[str]:
    """A file that is read must not be able to run code. A test may write such a file, to see it refused."""
    may_write = path.startswith("tests/")
    breaches = [
        f"{path}:{use.line}: names {use.name}: it can run code from a file; use npz, JSON or orbax"
        for use in uses(path, source)
        if use.name.partition(".")[0] in UNSAFE_MODULES and (not may_write or use.name.rpartition(".")[2] in ("load", "loads", "Unpickler"))
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or (may_write and "load" not in _chain(node.func)):
            continue
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                breaches.append(f"{path}:{node.lineno}: allow_pickle: it can run code from a file; save plain arrays")
    return breaches


def only_reexports(path: str, source: str) -> list[str]:
    """An `__init__.py` of wsejax/ holds a docstring, imports from wsejax, `__all__` and `__version__`."""
    breaches = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        if isinstance(node, ast.ImportFrom):
            module = _imported_module(path, node)
            if _is_under(module, "wsejax") or module in ("__future__", "importlib.metadata"):
                continue
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(target, ast.Name) and target.id in ("__all__", "__version__") for target in targets):
                continue
        breaches.append(f"{path}:{node.lineno}: {ast.unparse(node)[:60]!r}: an __init__ only re-exports; move it to a file")
    return breaches


def too_long(path: str, source: str) -> list[str]:
    """A file can be read in one sitting."""
    lines = len(source.splitlines())
    return [f"{path}:{lines}: {lines} lines, at most {MAX_LINES}: split it by concern"] if lines > MAX_LINES else []


def tied_to_a_place(path: str, text: str) -> list[str]:
    """No file, code or not, names a folder of one machine or the host of a package registry."""
    return [
        f"{path}:{number}: {match.group()!r}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, what in (
            (_ABSOLUTE_PATH, "an absolute path holds on one machine; make it relative or an argument"),
            (_REGISTRY_HOST, "the package registry is the user's choice; leave it to pip's settings"),
        )
        for match in pattern.finditer(line)
    ]
