"""A wafer program as a file of StableHLO, and back: `Lowered.export` and `load_exported`. Nothing is pickled."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.sharding import Mesh

from wsejax import fabric
from wsejax.compiler import artefact
from wsejax.compiler.arguments import WEAK, abstract, argument_lines, on_mesh, placed
from wsejax.compiler.artefact import ArtefactError
from wsejax.hardware.wafer import Wafer
from wsejax.kernels.relayout import Layout

_KIND = "exported function"
_DECISIVE = ("tiles", "reduction", "accumulate")  # what of a wafer decides the bits of a result


class Exported:
    """A lowered function as StableHLO. `serialize` or `save` it, and call it anywhere by `wse.load_exported`."""

    def __init__(self, header: dict[str, Any], exported: jax.export.Exported, vjp_order: int) -> None:
        self._header, self._exported, self._vjp_order = header, exported, vjp_order

    def mlir(self) -> str:
        """The StableHLO text."""
        return self._exported.mlir_module()

    @functools.cached_property
    def _content(self) -> bytes:
        return artefact.pack(self._header, bytes(self._exported.serialize(vjp_order=self._vjp_order)))

    def serialize(self) -> bytes:
        """The bytes of a file that `wse.load_exported` reads."""
        return self._content

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        artefact.write(path, self._content)


def export(
    jitted: Any,
    name: str,
    shapes: Sequence[jax.ShapeDtypeStruct],
    donated: Sequence[int],
    trees: tuple[Any, Any],
    layouts: tuple[Sequence[Layout], Sequence[Layout]],
    wafer: Wafer,
    vjp_order: int,
    platforms: Sequence[str] | None,
) -> Exported:
    """Export a jitted function of flat arguments. `trees` and `layouts` are those of arguments and results."""
    header = {
        "kind": _KIND,
        "name": name,
        "jax": jax.__version__,
        "wafer": {trait: getattr(wafer, trait) for trait in _DECISIVE},
        "devices": wafer.devices,
        "arguments": argument_lines(shapes, trees[0]),
        "ins": layouts[0],
        "outs": layouts[1],
        "donated": () if vjp_order else tuple(donated),  # a derivative needs the arguments once more
        "results": _described(trees[1], {t: path for t, path in _subtrees(trees[0])}),
    }
    exported = jax.export.export(jitted, platforms=tuple(platforms or (artefact.platform(wafer.mesh),)))(*shapes)  # pyright: ignore[reportArgumentType]
    return Exported(header, exported, vjp_order)


def load_exported(source: str | os.PathLike[str] | bytes, wafer: Wafer | Mesh) -> LoadedFunction:
    """The function that `Lowered.export` wrote, to be run on the devices of `wafer`: the same numbers, bit for bit on CPU.

    Args:
      source: path of a file, or its bytes.
      wafer: a wafer of the same tiles, way of adding up and devices, or a mesh of as many devices with axes ("y", "x").

    Raises:
      FileNotFoundError: there is no such file.
      ArtefactError: (a ValueError) it is no exported function, or is damaged.
      ValueError: the function was exported for other tiles, another way of adding up, other devices or another platform.
    """
    where, content = ("the bytes", source) if isinstance(source, bytes) else (f"{os.fspath(source)!r}", Path(source).read_bytes())
    try:
        header, blob = artefact.unpack(content, _KIND)
        exported = artefact.thaw(blob)
    except ArtefactError as error:
        raise ArtefactError(f"{where}: not a readable exported function: {error}") from error
    mesh = wafer.mesh if isinstance(wafer, Wafer) else wafer
    if isinstance(wafer, Wafer):
        for trait, value in header["wafer"].items():
            if (have := getattr(wafer, trait)) != (want := tuple(value) if isinstance(value, list) else value):
                raise ValueError(f"{where} was exported for {trait}={want!r}, the wafer has {have!r}, which would give other bits")
    if mesh.axis_names != fabric.AXES or mesh.devices.shape != tuple(header["devices"]):
        raise ValueError(f'{where} was exported for devices={tuple(header["devices"])} along ("y", "x"), not for {mesh}')
    if (platform := artefact.platform(mesh)) not in exported.platforms:
        raise ValueError(f"{where} was exported for {', '.join(exported.platforms)}, not for {platform}: see lowered.export(platforms=...)")
    return LoadedFunction(header, exported, mesh)


class LoadedFunction:
    """An exported function, called as the original was, without the static arguments, which are part of it.

    Arguments may be of any structure that has the same leaves at the same places. Results are dicts, lists, tuples and None; a structure
    of another kind, such as a dataclass, is made where an argument holds the same one, as a training state does. `flat` does without
    structures. `arguments` has a line for each flat argument.
    """

    def __init__(self, header: dict[str, Any], exported: jax.export.Exported, mesh: Mesh) -> None:
        self.__name__: str = header["name"]
        self.arguments: list[str] = header["arguments"]
        self._results = header["results"]
        self._shardings, outs = on_mesh(mesh, header["ins"]), on_mesh(mesh, header["outs"])
        self._call = artefact.jitted(exported, self.__name__, self._shardings, outs, header["donated"])
        self._known: set[Any] = set()

    def flat(self, *arrays) -> list[Any]:
        """The results as a list, of the arguments in the order of `arguments`."""
        if len(arrays) != len(self._shardings):
            raise ValueError(f"{self.__name__} takes {len(self._shardings)} arrays, not {len(arrays)}: {'; '.join(self.arguments)}")
        return list(self._call(*placed(arrays, self._shardings)))

    def __call__(self, *args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        shapes = tuple(abstract(x) for x in leaves)
        key = (tree, tuple((s.shape, s.dtype) for s in shapes))
        if key not in self._known:
            self._check(argument_lines(shapes, tree))
            self._known.add(key)
        return _built(self._results, tree, iter(self.flat(*leaves)))

    def _check(self, given: list[str]) -> None:
        for n, (got, want) in enumerate(itertools.zip_longest(given, self.arguments, fillvalue="nothing")):
            if got.removesuffix(WEAK) != want.removesuffix(WEAK):
                raise ValueError(f"argument {n} is {got}, {self.__name__} was exported for {want}")


# ---- structures ------------------------------------------------------------------------------------------------------
def _subtrees(tree, path: tuple[int, ...] = ()) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Every structure inside a structure, with the numbers of the children on the way to it."""
    yield tree, path
    for n, child in enumerate(tree.children()):
        yield from _subtrees(child, (*path, n))


def _described(tree, given: dict[Any, tuple[int, ...]]) -> Any:
    """A structure as JSON. Of kinds that JSON cannot name, the place in the arguments where it is `given`, else what it is called."""
    data, children = tree.node_data(), tree.children()
    if data is None:
        return "leaf"
    kind, names = data
    if kind is type(None):
        return None
    parts = [_described(child, given) for child in children]
    if kind is list or kind is tuple:
        return {kind.__name__: parts}
    if kind is dict and all(type(name) in (str, int) for name in names):
        return {"dict": [[name, part] for name, part in zip(names, parts, strict=True)]}
    return {"as": given[tree]} if tree in given else {"other": f"{kind.__module__}.{kind.__qualname__}"}


def _built(described: Any, arguments, leaves: Iterator[Any]) -> Any:
    """A pytree of the described structure."""
    if described is None:
        return None
    if described == "leaf":
        return next(leaves)
    ((kind, parts),) = described.items()
    if kind == "other":
        raise TypeError(
            f"the results hold a {parts}, which is no dict, list, tuple or None and no part of the arguments: call .flat(*arrays) and "
            "put the results together, or let the function return another structure before it is exported"
        )
    if kind == "as":
        for n in parts:
            arguments = arguments.children()[n]
        return jax.tree.unflatten(arguments, [next(leaves) for _ in range(arguments.num_leaves)])
    if kind == "dict":
        return {name: _built(part, arguments, leaves) for name, part in parts}
    values = [_built(part, arguments, leaves) for part in parts]
    return values if kind == "list" else tuple(values)
