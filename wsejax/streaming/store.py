"""States on disk, for what host memory does not hold: orbax checkpoints whose arrays are read and written a layer at a time.

A folder has two slots, "a" and "b", and a file "current" that names the one that is whole, and counts. A step reads that one and writes the
other, so a run that ends at any moment leaves a whole state; what has been written over since refuses to be read. A slot is an ordinary
orbax checkpoint of zarr arrays, stacked ones in a chunk a layer; tensorstore maps them into memory where their encoding allows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

SLOTS = ("a", "b")
_CHUNK_BYTES = 4 * 2**20  # of arrays that are not stacked
_MAPPED = {"file_io_mode": {"mode": "memmap"}}


class Stored:
    """An array on disk. `shape` and `dtype` as of an array; `numpy.asarray` reads it whole."""

    def __init__(self, path: Path, array: ts.TensorStore, count: int | None = None) -> None:
        """`count`: of the state that it belongs to; None: it belongs to none."""
        self.path, self._array, self.count = path, array, count
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def ask(self, index: int | None = None) -> Any:
        """The array, or one entry along its first dimension, on its way: `.result()` waits for it."""
        return (self._array if index is None else self._array[index]).read()

    def check(self, newest: bool = False) -> None:
        """Raises ValueError where it has been written over, or with `newest` where a newer state is in the folder."""
        if self.count is not None:
            slot, count = read_current(self.path.parent.parent)
            if self.count < count - (not newest) or (self.count == count and self.path.parent.name != slot):
                raise ValueError(
                    f"{self.path.name} is of state {self.count} in {self.path.parent.parent}, and {count} is the newest: a step replaces "
                    "the state it is given; go on with its result, or with wse.open_state"
                )

    def write(self, value: np.ndarray, index: int | None = None) -> Any:
        """Write all of it, or one entry; `.result()` of what is returned waits until it is on disk.

        Raises:
          ValueError: a value of another shape, or of a dtype that this one cannot hold.
        """
        value, shape = np.asarray(value), self.shape if index is None else self.shape[1:]
        if value.shape != shape or not np.can_cast(value.dtype, self.dtype, "same_kind"):
            raise ValueError(f"{self.path.name}: a value of {value.dtype}{list(value.shape)} for {self.dtype}{list(shape)}")
        return (self._array if index is None else self._array[index]).write(np.asarray(value, self.dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.check()
        found = np.asarray(self.ask().result())
        return found if dtype is None else found.astype(dtype)

    def __repr__(self) -> str:
        return f"Stored({self.path}, {self.dtype}{list(self.shape)})"


def _open(path: Path, count: int | None = None, **create: Any) -> Stored:
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}{os.sep}"}}
    return Stored(path, ts.open({**spec, **create}, context=ts.Context(_MAPPED)).result(), count)


def scratch(path: Path, shape: tuple[int, ...], dtype: Any) -> Stored:
    """A new array on disk for values between two ops, an entry of the first dimension a chunk."""
    shutil.rmtree(path, ignore_errors=True)
    metadata = {
        "shape": list(shape),
        "chunks": [1, *shape[1:]],
        "dtype": np.dtype(dtype).str if dtype != jax.numpy.bfloat16 else "bfloat16",
    }
    return _open(path, create=True, metadata=metadata)


def leaf_names(tree: Any) -> list[str]:
    """The name that orbax gives each leaf's folder.

    Raises:
      ValueError: a name that no folder can have or that two leaves would have, or a leaf that is no array of numbers.
    """
    key = lambda k: str(next(getattr(k, a) for a in ("key", "idx", "name") if hasattr(k, a)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [".".join(map(key, path)) for path, _ in leaves]
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if not name or os.sep in name or names.count(name) > 1:
            raise ValueError(f"leaf {name!r}: its name on disk must be its own and the name of a folder; rename it in the state")
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(f"leaf {name!r} is of {leaf.dtype}, which disk does not hold: keep its numbers, as with jax.random.key_data")
    return names


def _skeleton(slot: Path, shapes: Any) -> None:
    """An orbax checkpoint of zeros that take no memory."""
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
    layer = lambda x: max(x.nbytes // x.shape[0], 1) if x.ndim > 2 else _CHUNK_BYTES
    args = jax.tree.map(lambda x: ocp.SaveArgs(chunk_byte_size=layer(x) if x.ndim else None, shard_axes=(0,) if x.ndim else ()), zeros)
    shutil.rmtree(slot, ignore_errors=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        writer.save(slot, args=ocp.args.PyTreeSave(zeros, save_args=args))


def create_state(folder: str | os.PathLike[str], shapes: Any, fill: Callable[[str, int | None], np.ndarray] | None = None) -> Any:
    """A new state on disk.

    Args:
      folder: for it; must not hold a state yet.
      shapes: its pytree, of arrays or `jax.ShapeDtypeStruct`s.
      fill: (name of a leaf, entry along its first dimension, None for leaves of fewer than three dimensions) to its value. None: zeros.

    Returns:
      The pytree with a `Stored` for every leaf.

    Raises:
      ValueError: the folder holds a state.
    """
    home = Path(folder).resolve()
    if (home / "current").exists():
        raise ValueError(f"folder={str(folder)!r}: holds a state already; open it with open_state, or give another folder")
    leaf_names(shapes)
    home.mkdir(parents=True, exist_ok=True)
    for slot in SLOTS:
        _skeleton(home / slot, shapes)
    state = _opened(home / SLOTS[0], shapes, 0)
    if fill is not None:
        for name, leaf in zip(leaf_names(shapes), jax.tree.leaves(state), strict=True):
            for index in range(leaf.shape[0]) if leaf.ndim > 2 else (None,):
                leaf.write(fill(name, index), index).result()
    make_current(home, SLOTS[0], 0)
    return state


def open_state(folder: str | os.PathLike[str], shapes: Any) -> Any:
    """The state that a folder holds: the newest whole one.

    Raises:
      FileNotFoundError: the folder holds none.
      ValueError: it is one of other shapes or dtypes.
    """
    home = Path(folder).resolve()
    slot, count = read_current(home)
    return _opened(home / slot, shapes, count)


def read_current(home: Path) -> tuple[str, int]:
    """(slot of the newest whole state, its count).

    Raises:
      FileNotFoundError: there is none.
    """
    try:
        slot, count = (home / "current").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise FileNotFoundError(f"folder={str(home)!r}: no state in it; make one with create_state") from None
    return slot, int(count)


@contextlib.contextmanager
def only_user(home: Path) -> Iterator[None]:
    """While entered, no other process steps the state of this folder.

    Raises:
      ValueError: one does.
    """
    with open(home / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{home}: another process steps this state now; give each run a folder of its own") from None
        yield


def _opened(slot: Path, shapes: Any, count: int) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    found = []
    for name, want in zip(leaf_names(shapes), leaves, strict=True):
        try:
            leaf = _open(slot / name, count)
        except Exception as error:  # tensorstore raises ValueError for most, and other kinds by the driver
            raise ValueError(f"{slot} has no array {name!r}: it is the state of another program ({error})") from error
        if (leaf.shape, leaf.dtype) != (tuple(want.shape), np.dtype(want.dtype)):
            raise ValueError(f"{slot}: {name} is {leaf.dtype}{list(leaf.shape)}, the program's is {want.dtype}{list(want.shape)}")
        found.append(leaf)
    return jax.tree.unflatten(tree, found)


def other_slot(leaf: Stored) -> Stored:
    """The same array of the state that comes next, to be written."""
    slot = leaf.path.parent
    return _open(slot.parent / SLOTS[1 - SLOTS.index(slot.name)] / leaf.path.name, None if leaf.count is None else leaf.count + 1)


def make_current(home: Path, slot: str, count: int) -> None:
    """Say that a slot is whole, at once or not at all."""
    partial = home / "current.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(f"{slot} {count}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, home / "current")
