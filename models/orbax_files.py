"""Parameters in orbax's folders: what `save_orbax` writes, what plain orbax wrote of a nested dict, and the checkpoints of a run.

`<folder>/params` is plain orbax, and config.json beside it says what model it is, field by field.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jaxtyping import PyTree

from . import hf_files
from .family import Family
from .matching import asked_dtype, check_params, configuration, differences, dtype_in_jax, flat, fresh, in_full, nested, spread

_MARK = "_METADATA"  # a file of every folder that holds a tree of orbax's
_STATE, _CHECKPOINTS = "state", "checkpoints"  # of a run: <run>/checkpoints/<step>/state


@dataclass(frozen=True)
class Tree:
    """A tree of arrays that orbax has saved.

    Attributes:
      path: its folder.
      arrays: shape and dtype of each, by "/"-joined path.
      prefix: what the paths of parameters begin with: "params/" where they are part of a state.
    """

    path: Path
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    prefix: str

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters among the arrays, without the prefix."""
        return {path.removeprefix(self.prefix): x for path, x in self.arrays.items() if path.startswith(self.prefix)}

    def read(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the arrays by their whole paths: as `jax.ShapeDtypeStruct`s with shardings say, or numpy's where the value is None.

        Raises:
          ValueError: they cannot be read.
        """
        kinds = {path: ocp.RestoreArgs(restore_type=np.ndarray) if one is None else _restore_args(one) for path, one in wanted.items()}
        items = {path: self.arrays[path] if one is None else one for path, one in wanted.items()}
        arguments = ocp.args.PyTreeRestore(item=nested(items), restore_args=nested(kinds), partial_restore=True)
        with _readable(self.path, "its arrays"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return flat(checkpointer.restore(self.path, args=arguments))

    def read_through(self) -> None:
        """Read every stored value once, and keep none.

        Raises:
          ValueError: one cannot be read.
        """
        with _readable(self.path, "its arrays"):
            _read_values(self.path, lambda key: True)


def _read_values(path: Path, which: Callable[[bytes], bool]) -> None:
    """Read stored values one after the other. Orbax reads all at once, and what is still under way when one fails prints tracebacks."""
    if not (path / "manifest.ocdbt").exists() and any(path.glob("*/.zarray")) | any(path.glob("*/zarr.json")):
        return  # one folder an array, as orbax can write, too
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{path.as_uri()}/"}).result()
    keys = store.list().result()
    if not keys:
        raise ValueError("it holds no arrays")
    for key in filter(which, keys):
        store.read(key).result()


@contextlib.contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """All that can go wrong in reading is said in one way, since orbax has many."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: corrupt, as orbax cannot read {what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _restore_args(one: jax.ShapeDtypeStruct) -> ocp.ArrayRestoreArgs:
    return ocp.ArrayRestoreArgs(sharding=one.sharding, global_shape=one.shape, dtype=one.dtype)


def find_tree(where: str | os.PathLike[str]) -> Path | None:
    """The folder of orbax's tree: `where`, its params, its state (a step of a run), or the state of the newest step in it; None if there
    is none."""
    where = Path(where).resolve()
    for one in (where, where / hf_files.PARAMS, where / _STATE):
        if (one / _MARK).is_file():
            return one
    for folder in (where, where / _CHECKPOINTS):
        names = [path.name for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
        steps = sorted((int(name), name) for name in names if (folder / name / _STATE / _MARK).is_file())
        if steps:
            return folder / steps[-1][1] / _STATE
    return None


def open_tree(where: str | os.PathLike[str]) -> Tree:
    """What orbax has saved at, or below, a folder; arrays are not read.

    Raises:
      ValueError: nothing, or something that cannot be read.
    """
    path = find_tree(where)
    if path is None:
        raise ValueError(f"{where}: orbax has saved nothing here: neither a tree of arrays, nor {hf_files.PARAMS}/, nor steps of a run")
    with _readable(path, "what it lists"):
        _read_values(path, lambda key: key.endswith((b".zarray", b"zarr.json")))
        saved = ocp.PyTreeCheckpointHandler().metadata(path)  # pyright: ignore[reportArgumentType]  (pathlib's will do)
        arrays = {name: jax.ShapeDtypeStruct(tuple(x.shape), np.dtype(x.dtype)) for name, x in flat(saved.tree).items()}
        if not arrays:
            raise ValueError("it lists no arrays")
    beside = any(not name.startswith("params/") for name in arrays)
    return Tree(path, arrays, "params/" if beside and any(name.startswith("params/") for name in arrays) else "")


def load_orbax(
    where: str | os.PathLike[str], family: Family, config: Any = None, *, shardings: PyTree = None, dtype: Any = None
) -> tuple[Any, dict[str, Any]]:
    """(config, params) of what `save_orbax` or plain orbax has saved, or of a run's folder or checkpoint (of its newest step).

    Arguments are those of `models.weights.load`.

    Raises:
      ValueError: nothing is there, or cannot be read; no config.json is there and no configuration was given; or arrays are missing,
        unknown, or of another shape or dtype than the parameters, of which the error lists all.
    """
    dtype = asked_dtype(dtype)
    tree = open_tree(where)
    if config is None:
        config = configuration(hf_files.read_config(where), family, str(where))
    tree.read_through()
    saved = tree.params
    problems = list(differences(family.abstract(config), saved))
    # orbax casts to what JAX knows without a word, so it is never asked to
    problems += [f"{path}: is {x.dtype}, which JAX would cast; give dtype" for path, x in saved.items() if dtype is None and _is_cast(x)]
    if problems:
        raise ValueError(f"{where}: is not such parameters of family {family.name}:\n  " + ";\n  ".join(problems))
    default = jax.device_put(np.zeros(())).sharding
    placed = {path: one or default for path, one in spread(shardings, list(saved)).items()}
    wanted = {tree.prefix + path: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=placed[path]) for path, x in saved.items()}
    return config, nested({path.removeprefix(tree.prefix): x for path, x in tree.read(wanted).items()})


def _is_cast(array: jax.ShapeDtypeStruct) -> bool:
    return dtype_in_jax(array.dtype) != array.dtype


def save_orbax(folder: str | os.PathLike[str], family: Family, config: Any, params: PyTree, *, overwrite: bool = False) -> None:
    """Write config.json and params/, which plain orbax reads as a nested dict.

    Raises:
      ValueError: the folder holds something and `overwrite` is false; the parameters are not those of the configuration, or lie on devices
        of other processes.
    """
    leaves = flat(params)
    check_params(leaves, family, config)
    with hf_files.replacing(folder, overwrite) as partial:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((partial / hf_files.PARAMS).resolve(), nested({path: fresh(x) for path, x in leaves.items()}))
        hf_files.write_json(partial / hf_files.CONFIG, in_full(config, family))
