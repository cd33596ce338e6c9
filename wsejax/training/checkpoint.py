"""Checkpoints that survive kills, corruption and a change of machine: orbax, plus a listing of what each one holds.

A checkpoint is an ordinary orbax folder, `<directory>/<step>/{state,meta}`: `state` restores with orbax alone (nested
dicts of arrays), `meta` is JSON. The listing in `meta` (shape, dtype and CRC-32 of every array) is there because
orbax casts a differing dtype without a word and would not notice a changed byte in an uncompressed array.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import serialization
from jaxtyping import PyTree

from .distributed import DistributedError, gather, gather_text, is_first, together

T = TypeVar("T")

_FORMAT = 1
_CORRUPT_PREFIX = "corrupt-"


class CheckpointMismatchError(ValueError):
    """The checkpoint is sound but of another model, optimiser or dtype than the state it was to fill."""


class CorruptCheckpointError(ValueError):
    """The checkpoint cannot be read, or its arrays are not the ones that were saved."""


@dataclass(frozen=True)
class Restored:
    """One checkpoint read back: its step, the state laid out as asked, the data iterator's state, and the caller's
    own meta."""

    step: int
    state: PyTree
    data_state: dict[str, Any] | None
    meta: dict[str, Any]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _flat(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(serialization.to_state_dict(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _listing(tree: PyTree, *, checksums: bool) -> dict[str, dict[str, Any]]:
    leaves = _flat(tree)
    listing: dict[str, dict[str, Any]] = {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves.items()}
    if checksums:
        for (_, entry), crc32 in zip(listing.items(), checksums_of(list(leaves.values())), strict=True):
            entry["crc32"] = crc32
    return listing


def checksums_of(arrays: Sequence[Any]) -> list[int]:
    """CRC-32 of every array's bytes. Where arrays lie over several processes, all of them call it together and get the same numbers
    as one process with the whole arrays would.

    A CRC is affine over bits: crc(a ^ b) = crc(a) ^ crc(b) ^ crc(0) for texts of one length. So each process takes that of its own part
    with zeros in place of the rest, and four bytes an array are sent.
    """
    whole = [getattr(x, "is_fully_addressable", True) for x in arrays]
    own = [zlib.crc32(np.asarray(x).tobytes()) if here else _crc32_of_part(x) for x, here in zip(arrays, whole, strict=True)]
    if all(whole):
        return own
    told = gather(np.array(own, np.uint32))
    together = np.bitwise_xor.reduce(told, axis=0)
    zeros = [0 if len(told) % 2 else zlib.crc32(bytes(x.nbytes)) for x in arrays]
    return [one if here else int(joined) ^ zero for one, joined, zero, here in zip(own, together, zeros, whole, strict=True)]


def _crc32_of_part(array: jax.Array) -> int:
    part = np.zeros(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            part[shard.index] = np.asarray(shard.data)
    return zlib.crc32(part.tobytes())


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def compare_states(saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Differences of two listings in words, one a line: arrays that only one has, other shapes, other dtypes."""
    words = []
    for path in sorted(saved.keys() | wanted.keys()):
        here, there = wanted.get(path), saved.get(path)
        if here is None or there is None:
            words.append(f"{path} is only in the {'checkpoint' if here is None else 'state to fill'}")
        elif (here["shape"], here["dtype"]) != (there["shape"], there["dtype"]):
            words.append(
                f"{path} is {there['dtype']}{there['shape']} in the checkpoint, {here['dtype']}{here['shape']} in the state to fill"
            )
    return words


class Checkpoints:
    """The checkpoints of one run in `directory`, at most `keep` of them, the oldest going first.

    Saving is asynchronous and atomic: a folder named by its step is complete, whenever the process dies. `report`
    gets one line for every checkpoint that had to be passed over (default: a warning). read_only=True opens another
    run's checkpoints and changes nothing there. `completed` is told the step of each save once it is on disk, when the
    next one begins or at the latest when `wait` returns. Use it as a context manager: leaving it waits for the last save.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        read_only: bool = False,
        report: Callable[[str], None] = _warn,
        completed: Callable[[int], None] = lambda step: None,
    ):
        if keep < 2:
            raise ValueError(f"keep={keep}: keep at least 2 checkpoints, so that one is left when the newest turns out corrupt")
        self.directory = Path(directory).resolve()  # orbax takes absolute paths only, and says so late
        self._read_only, self._report, self._completed = read_only, report, completed
        self._saving: int | None = None
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(f"{directory} holds no checkpoints: there is no such folder")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        logging.getLogger("absl").addFilter(self._is_news)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are complete, oldest first."""
        self._manager.reload()  # what is on disk now: somebody may have removed one
        own = sorted(self._manager.all_steps())
        return json.loads(gather_text(json.dumps(own))[0])  # hosts of a shared folder may see it at different times

    def wait(self) -> None:
        """Block until the last save is on disk; raises what went wrong in it."""
        saving, self._saving = self._saving, None  # one that failed is not told of
        self._manager.wait_until_finished()
        if saving is not None:
            self._completed(saving)

    def close(self) -> None:
        """Wait for the last save and let go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()
            logging.getLogger("absl").removeFilter(self._is_news)

    @staticmethod
    def _is_news(record: logging.LogRecord) -> bool:
        """Orbax logs what fails in the background with a traceback from each of its threads; `wait` raises it all the same."""
        return not (record.exc_info and "orbax" in record.pathname)

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        data_state: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to save `state` (its values as of now: it may be donated straight after), with JSON `data_state` and
        `meta`.

        Raises ValueError where a checkpoint of this step exists or an array has no elements, and whatever the
        previous asynchronous save failed with.
        """
        self.wait()
        if step in self.steps():
            raise ValueError(f"step {step} is already saved in {self.directory}; a checkpoint is never overwritten")
        body = {
            "format": _FORMAT,
            "step": step,
            "arrays": _listing(state, checksums=True),
            "data": data_state,
            "meta": dict(meta or {}),
        }
        body = json.loads(json.dumps(body))  # what will be read back, so that the seal is of that
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(serialization.to_state_dict(state)),
            meta=ocp.args.JsonSave({**body, "seal": _seal(body)}),
        )
        self._manager.save(step, args=arguments, force=True)
        self._saving = step

    def restore(self, step: int, abstract_state: PyTree) -> Restored:
        """The checkpoint of `step`, laid out as `abstract_state` says: the saved structure, of
        `jax.ShapeDtypeStruct`s with shardings.

        Raises CheckpointMismatchError where structure, a shape or a dtype differs, CorruptCheckpointError where it
        cannot be trusted.
        """
        body = _in_all(lambda: self._read_listing(step))
        differences = compare_states(body["arrays"], _listing(abstract_state, checksums=False))
        if differences:
            more = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
            raise CheckpointMismatchError(
                f"the checkpoint of step {step} in {self.directory} is of another model or optimiser: "
                f"{'; '.join(differences[:5])}{more}. "
                "Build the state with the configuration of the run that saved it"
            )
        folder = self.directory / str(step) / "state"
        _in_all(lambda: _trusting(lambda: _read_through(folder), "its arrays cannot be read"))
        state = _in_all(lambda: _trusting(lambda: self._read_arrays(step, abstract_state), "its arrays cannot be read"))
        for path, entry in _listing(state, checksums=True).items():
            if entry.get("crc32", 0) != body["arrays"][path].get("crc32", entry.get("crc32", 0)):
                raise CorruptCheckpointError(f"{path} is not what was saved (its checksum differs)")
        return Restored(step, state, body["data"], body["meta"])

    def _read_listing(self, step: int) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            body = dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
            if body.pop("seal", None) != _seal(body) or body["step"] != step:
                raise CorruptCheckpointError("its listing was changed after it was written")
            return body

        return _trusting(read, "its listing cannot be read")

    def _read_arrays(self, step: int, abstract_state: PyTree) -> PyTree:
        target = serialization.to_state_dict(abstract_state)
        saved = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return serialization.from_state_dict(abstract_state, saved)

    def restore_newest(self, abstract_state: PyTree, differs: Callable[[int], str | None] = lambda step: None) -> Restored | None:
        """The newest checkpoint that can be trusted, or None where there is none. `differs` may say why one cannot, by its step.

        A corrupt one is passed over: its folder is renamed to `corrupt-<step>` beside the others (kept, out of the
        way of later saves at that step) and `report` is told. A mismatch is not corruption: it raises
        CheckpointMismatchError.
        """
        for step in reversed(self.steps()):
            try:
                if why := differs(step):
                    raise CorruptCheckpointError(why)
                return self.restore(step, abstract_state)
            except CorruptCheckpointError as error:
                kept = "" if self._read_only else f"; it is kept as {self._set_aside(step).name}"
                self._report(f"passed over the checkpoint of step {step} in {self.directory}: {error}{kept}")
        return None

    def _set_aside(self, step: int) -> Path:
        name = gather_text(self._rename(step) if is_first() else "")[0]  # the others go on when it is done
        self._manager.reload()
        return self.directory / name

    def _rename(self, step: int) -> str:
        target = self.directory / f"{_CORRUPT_PREFIX}{step}"
        count = 1
        while target.exists():
            count += 1
            target = self.directory / f"{_CORRUPT_PREFIX}{step}-{count}"
        os.rename(self.directory / str(step), target)
        return target.name


def _trusting(read: Callable[[], T], what: str) -> T:
    """What `read` gives; all that can go wrong in reading is corruption, but for want of memory or leave."""
    try:
        return read()
    except (MemoryError, PermissionError, CorruptCheckpointError):
        raise
    except Exception as error:
        raise CorruptCheckpointError(f"{what}: {_one_line(error)}") from error


def _in_all(read: Callable[[], T]) -> T:
    """A checkpoint that one process cannot trust is corrupt for all of them, so that all take the same one."""
    try:
        return together(read, (CorruptCheckpointError,))
    except DistributedError as error:
        raise CorruptCheckpointError(str(error)) from error


def _read_through(folder: Path) -> None:
    """Read every stored value once. Orbax would meet an unreadable one in a background task and print its traceback
    besides."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{folder.as_uri()}/"}).result()
    keys = store.list().result()
    if not keys:
        raise FileNotFoundError("it holds no arrays")
    for key in keys:
        store.read(key).result()
    for path in (folder / "array_metadatas").glob("*"):
        json.loads(path.read_bytes())


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
