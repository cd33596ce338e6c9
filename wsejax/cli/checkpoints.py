"""Checkpoints of any format, opened without reading their arrays; and a bar for when those are read."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from .programs import model_file

_HF, _ORBAX = "Hugging Face's safetensors", "orbax"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any format, of which nothing but lists has been read.

    Attributes:
      arrays: what has a shape and a dtype, by its name there: Hugging Face's, or the "/"-joined path.
      tree: of orbax's; None in safetensors.
      family, config: of the model; None where they are not known, and then `unknown` says why.
      settings: the configuration as it is written there.
    """

    where: Path
    format: str
    arrays: Mapping[str, Any]
    tree: Any
    family: Any
    config: Any
    unknown: str
    settings: Mapping[str, Any]

    def read(self, name: str) -> np.ndarray:
        """One array, in host memory."""
        return self.arrays[name].read() if self.tree is None else self.tree.read({name: None})[name]

    @property
    def params(self) -> dict[str, Any]:
        """The arrays that are parameters of the model, under their names here."""
        if self.tree is not None:
            return {self.tree.prefix + path: x for path, x in self.tree.params.items()}
        if self.family is None:
            return dict(self.arrays)
        matching = model_file("matching")
        known = matching.known_as(self.arrays, names_of(self.family, self.config), self.family)
        return {given: self.arrays[given] for given in known.values()}

    def load(self, *, shardings: Any = None, dtype: Any = None, report: Callable[[int, int], None] | None = None) -> Any:
        """The parameters, as `models.weights.load` and `load_orbax` have them; left out, `shardings` is the first CPU device.

        Raises:
          ValueError: the model is not known, or what those raise.
        """
        if self.family is None:
            raise ValueError(f"{self.where}: its model is not known ({self.unknown}); give --model family:preset")
        weights = model_file("weights")
        shardings = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0]) if shardings is None else shardings
        options: dict[str, Any] = {"shardings": shardings, "dtype": dtype}
        if self.tree is not None:
            return weights.load_orbax(self.where, self.family, self.config, **options)[1]
        return weights.load(self.where, self.family, self.config, **options, **({} if report is None else {"report": report}))[1]


def open_checkpoint(where: Path, model: str = "") -> Checkpoint:
    """Raises ValueError or OSError for what is no checkpoint, or a corrupt one. `model` is a family:preset, for one that does not say."""
    files, orbax = model_file("hf_files"), model_file("orbax_files")
    path = orbax.find_tree(where)
    if path is None:
        arrays, tree, kind = files.read_tensors(where), None, _HF
        places = [where if where.is_dir() else where.parent]
    else:
        tree, kind = orbax.open_tree(where), _ORBAX
        arrays, places = tree.arrays, [where, *path.parents[:3]]
    settings = next((files.read_config(place) for place in places if (place / files.CONFIG).is_file()), {})
    family, config, unknown = _model(where, model, settings, arrays)
    return Checkpoint(where, kind, arrays, tree, family, config, unknown, settings)


def _model(where: Path, model: str, settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """(family, configuration, ""), or (None, None, why neither is known)."""
    families, matching = model_file("families"), model_file("matching")
    if model:
        return *families.find(model), ""
    trained = settings.get("config", {}).get("model", {})  # of experiments.train
    said = settings.get("family") or trained.get("name", "").partition(":")[0] or settings.get("model_type")
    family = next((one for one in families.FAMILIES.values() if said in (one.name, one.model_type)), None)
    if family is None:
        guess = matching.looks_like(arrays)
        return (
            None,
            None,
            (f"{said!r} is not known here" if said else "no config.json says it") + (f", looks like {guess}" if guess else ""),
        )
    try:
        if trained:
            return family, matching.from_full({name: value for name, value in trained.items() if name != "name"}, family), ""
        return family, matching.configuration(settings, family, str(where)), ""
    except ValueError as error:
        return None, None, str(error)


def lines_of(family: Any, config: Any) -> tuple[Any, ...]:
    return model_file("matching").lines(family, config)


def names_of(family: Any, config: Any) -> dict[str, Any]:
    """Hugging Face's names -> their lines of the table."""
    return {name: line for line in lines_of(family, config) for name in line.names}


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left, on a terminal's stderr and nowhere else; told of bytes done and bytes in all."""
    console = rich.console.Console(file=sys.stderr)
    columns = (
        "{task.description}", rich.progress.BarColumn(), rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )  # fmt: skip
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done_bytes, total_bytes: bar.update(task, completed=done_bytes, total=total_bytes)
