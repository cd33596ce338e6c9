"""`wsejax ckpt`: what a checkpoint holds, how two differ, and from one format into another."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from wsejax.report import Sheet

from .checkpoints import Checkpoint, lines_of, names_of, open_checkpoint, progress
from .output import Output, with_unit
from .programs import model_file
from .quantise import Quantise

_PIECE = 1 << 20  # elements of two tensors that are compared at a time


# ---- info --------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Info:
    """What a checkpoint holds: format, family, configuration, parameters, and every tensor with its shape, dtype and bytes."""

    path: Annotated[Path, tyro.conf.Positional]
    """Hugging Face's folder or file, orbax's folder, or the folder of a run of experiments.train."""
    model: str = ""
    """The model as family:preset, such as llama:tiny, where the checkpoint does not say."""
    json: bool = False
    """Print one JSON document, which names every tensor."""

    def run(self) -> Output:
        found = open_checkpoint(self.path, self.model)
        params = found.params
        count, total = (sum(math.prod(x.shape) for x in params.values()), sum(map(_bytes, found.arrays.values())))
        settings = _settings(found)
        data: dict[str, Any] = {
            "path": str(self.path), "format": found.format, "arrays_at": str(found.where if found.tree is None else found.tree.path),
            "family": found.family and found.family.name, "unknown": found.unknown, "config": settings,
            "parameters": count, "bytes": total,
            "tensors": {name: {"shape": x.shape, "dtype": x.dtype, "bytes": _bytes(x)} for name, x in found.arrays.items()},
        }  # fmt: skip
        groups: dict[tuple[str, str], list[Any]] = {}
        for name, x in sorted(found.arrays.items(), key=lambda item: item[0] not in params):
            groups.setdefault((re.sub(r"(?<=[./])\d+(?=[./])", "*", name), _kind(x)), []).append(x)
        rows = [(name, len(some), kind, with_unit(sum(map(_bytes, some)), "B")) for (name, kind), some in groups.items()]
        sheet = Sheet(("tensor", "count", "shape", "bytes"), rows, left=(0, 2), fold={"tensor": 20, "shape": 12})
        lines = [
            f"{self.path}: {found.format}" + (f" at {found.tree.path}" if found.tree is not None else ""),
            f"family: {found.family.name if found.family else f'unknown ({found.unknown})'}",
            "config: " + (", ".join(f"{k}={v}" for k, v in settings.items()) or "none"),
            f"{count:,} parameters; {len(found.arrays):,} arrays, {with_unit(total, 'B', 4)}",
        ]
        return Output(data, [*lines, "", sheet])


def _settings(found: Checkpoint) -> dict[str, Any]:
    """The model's configuration, as far as it is known."""
    if found.config is not None:
        return {field.name: getattr(found.config, field.name) for field in dataclasses.fields(found.config)}
    return dict(found.settings.get("config", {}).get("model") or found.settings)


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _kind(array: Any) -> str:
    return f"{np.dtype(array.dtype)}[{','.join(map(str, array.shape))}]"


# ---- diff --------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one tensor: what it is in A and in B ("" where it is not), and how far apart the numbers are, where both have them.

    relative: the largest difference by the largest magnitude in either.
    """

    name: str
    a: str
    b: str
    identical: bool = False
    max_abs: float | None = None
    relative: float | None = None


@dataclasses.dataclass(frozen=True)
class Diff:
    """How two checkpoints differ, tensor by tensor. Exit code 1 unless all are bit-identical. Of two formats, both go by the names of
    Hugging Face."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """One checkpoint, of any format."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The other one."""
    model: str = ""
    """The model as family:preset, where formats differ and neither checkpoint says."""
    json: bool = False
    """Print one JSON document, which has the bit-identical tensors, too."""

    def run(self) -> Output:
        sides = _sides(open_checkpoint(self.a, self.model), open_checkpoint(self.b, self.model))
        rows = list(_differences(*sides))
        differing = [row for row in rows if not row.identical]
        data = {"a": str(self.a), "b": str(self.b), "identical": not differing, "tensors": [dataclasses.asdict(row) for row in rows]}
        same = f"{len(rows) - len(differing):,} of {len(rows):,} tensors are bit-identical"
        if not differing:
            return Output(data, [same])
        cells = [(row.name, row.a or "-", row.b or "-", _figure(row.max_abs), _figure(row.relative)) for row in differing]
        names = ("tensor", "in A", "in B", "max abs", "relative")
        return Output(data, [Sheet(names, cells, left=(0, 1, 2), fold={"tensor": 16, "in A": 10, "in B": 10}), same], status=1)


Side = Mapping[str, tuple[str, Callable[[], np.ndarray]]]  # name -> dtype and shape, and how to read it


def _sides(a: Checkpoint, b: Checkpoint) -> tuple[Side, Side]:
    """What is to be compared, under names that both have.

    Raises:
      ValueError: the formats differ, and the names of one cannot be told in those of the other.
    """
    if (a.tree is None) != (b.tree is None):
        known = next((one for one in sorted((a, b), key=lambda one: one.tree is None) if one.family is not None), None)
        if known is None:
            raise ValueError(
                f"{a.where} and {b.where}: names differ with the formats, and neither says its model ({a.unknown}; {b.unknown}); "
                "give --model family:preset"
            )
        return _in_hfnames_of(a, known.family, known.config), _in_hfnames_of(b, known.family, known.config)
    whole = (a.tree and a.tree.prefix) == (b.tree and b.tree.prefix)  # else one has a state around its parameters
    return _as_they_are(a, whole), _as_they_are(b, whole)


def _as_they_are(one: Checkpoint, whole: bool) -> Side:
    if one.tree is not None:
        one.tree.read_through()
    some = one.arrays if whole else one.params
    prefix = "" if whole or one.tree is None else one.tree.prefix
    return {name.removeprefix(prefix): (_kind(x), functools.partial(one.read, name)) for name, x in some.items()}


def _in_hfnames_of(one: Checkpoint, family: Any, config: Any) -> Side:
    matching, weights = model_file("matching"), model_file("weights")
    if one.tree is None:
        given = {given: name for name, given in matching.known_as(one.arrays, names_of(family, config), family).items()}
        kept = {given.get(name, name): name for name in one.arrays if name in given or not matching.is_ignored(name, family)}
        return {name: (_kind(one.arrays[own]), functools.partial(one.read, own)) for name, own in kept.items()}
    saved = one.tree.params
    matching.check_params(saved, family, config)
    one.tree.read_through()
    made = weights.tensors(lines_of(family, config), lambda path: one.read(one.tree.prefix + path), {k: x.dtype for k, x in saved.items()})
    return {name: (_kind(x), x.make) for name, x in made}


def _differences(a: Side, b: Side) -> Iterator[Difference]:
    for name in dict.fromkeys((*a, *b)):
        (here, read_a), (there, read_b) = a.get(name, ("", None)), b.get(name, ("", None))
        if read_a is None or read_b is None or here.partition("[")[2] != there.partition("[")[2]:
            yield Difference(name, here, there)
        else:
            yield Difference(name, here, there, *distance(read_a(), read_b()))


def distance(a: np.ndarray, b: np.ndarray) -> tuple[bool, float, float]:
    """(bit-identical, largest difference, that by the largest magnitude in either) of two arrays of one shape. A NaN in one of them alone
    makes the difference NaN."""
    identical, apart, largest = a.dtype == b.dtype, 0.0, 0.0
    a, b = a.reshape(-1), b.reshape(-1)
    for start in range(0, a.size, _PIECE):
        x, y = a[start : start + _PIECE], b[start : start + _PIECE]
        same = a.dtype == b.dtype and x.tobytes() == y.tobytes()
        x, y = x.astype(np.float64), y.astype(np.float64)
        largest = max(largest, *(float(np.nanmax(np.abs(one), initial=0.0)) for one in (x, y)))
        if not same:
            identical = False
            with np.errstate(invalid="ignore"):  # infinities that are equal
                differs = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
            apart = float(np.maximum(apart, differs.max()))
    return bool(identical), apart, apart / largest if apart and math.isfinite(apart) else apart


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


# ---- convert -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a checkpoint in another format: every parameter bit by bit, unless --dtype is given, or a model in muP goes to hf, for
    which muP's multipliers are folded into its queries and its last norm."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """Checkpoint of any format."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write."""
    to: Literal["hf", "orbax"]
    """model.safetensors, or params/ by orbax; with config.json."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Cast all parameters to it."""
    model: str = ""
    """The model as family:preset, such as llama:tiny, where the checkpoint does not say."""
    max_shard_bytes: float = 5e9
    """Of one file of safetensors."""
    overwrite: bool = False
    """Replace a checkpoint that is there."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> Output:
        files, weights, mup = (model_file(name) for name in ("hf_files", "weights", "mup"))
        files.check_writable(self.out, self.overwrite)
        found = open_checkpoint(self.source, self.model)
        with progress("reading") as report:
            params = found.load(dtype=self.dtype, report=report)
        family, config = found.family, found.config
        if fold := self.to == "hf" and getattr(config, "mup_base_width", None) is not None:
            config, params = mup.folded(family, config, params)
        with progress("writing") as report:
            if self.to == "hf":
                sizes = {"max_shard_bytes": self.max_shard_bytes, "report": report}
                weights.save(self.out, family, config, params, overwrite=self.overwrite, **sizes)
            else:
                weights.save_orbax(self.out, family, config, params, overwrite=self.overwrite)
        leaves = jax.tree.leaves(params)
        count, total = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
        data = {"in": str(self.source), "out": str(self.out), "to": self.to, "family": family.name, "parameters": count, "bytes": total}
        said = ", muP's multipliers folded in" if fold else ""
        return Output(data | {"mup_folded": fold}, [f"{self.out}: {family.name}, {count:,} parameters, {with_unit(total, 'B', 4)}{said}"])


# ---- the command -------------------------------------------------------------------------------------------------------
_Action = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Quantise, tyro.conf.subcommand("quantise")]
)


@dataclasses.dataclass(frozen=True)
class Ckpt:
    """Checkpoints of Hugging Face, of orbax and of runs: what one holds, how two differ, from one format into another, and into int8. Each
    prints JSON with --json."""

    action: _Action

    @property
    def json(self) -> bool:
        return self.action.json

    def run(self) -> Output:
        return self.action.run()
