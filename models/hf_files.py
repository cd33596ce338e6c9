"""Folders of tensors as Hugging Face lays them out: config.json, and safetensors in one file or in shards with an index.

Tensors are read by their offsets into arrays of their own. Mapping the files would be simpler, but pages of a map count as memory of this
process for as long as it stands, and a load would seem to take twice the model.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "C64": np.complex64,
}  # fmt: skip
_HEADER_BYTES = 100_000_000  # at most, by the format
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_CHUNK_BYTES = 1 << 24
PARAMS = "params"  # where orbax's arrays lie
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, from `offset_bytes` on."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset_bytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own.

        Raises:
          ValueError: the file has become shorter since its header was read.
        """
        tensor = np.empty(self.shape, self.dtype)
        left = tensor.reshape(-1).view(np.uint8).data
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset_bytes)
            while left:
                count = file.readinto(left)
                if not count:
                    raise ValueError(f"{self.file}: truncated while it was read: {len(left):,} of {self.nbytes:,} bytes are missing")
                left = left[count:]
        return tensor

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a piece at a time."""
        with open(self.file, "rb") as file:
            file.seek(self.offset_bytes)
            for start in range(0, self.nbytes, _CHUNK_BYTES):
                yield file.read(min(_CHUNK_BYTES, self.nbytes - start))


# ---- reading ---------------------------------------------------------------------------------------------------------
def read_config(where: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a folder, or of the folder that a file lies in.

    Raises:
      ValueError: there is none, or it is no JSON object.
    """
    if not Path(where).exists():
        raise ValueError(f"{where}: no such folder or file; give a folder of {CONFIG} and safetensors")
    path = Path(where) / CONFIG if Path(where).is_dir() else Path(where).parent / CONFIG
    if not path.is_file():
        raise ValueError(f"{where}: no {CONFIG} tells what model this is; put it there, or give the configuration")
    return _json_object(path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__} where an object should be")
    return found


def read_tensors(where: str | os.PathLike[str]) -> dict[str, Stored]:
    """All tensors of a folder, or of one file, by name; headers alone are read.

    Raises:
      ValueError: no safetensors are there, the index and the shards do not fit together, or a file is truncated or corrupt.
    """
    where = Path(where)
    if where.is_file() and where.suffix != ".json":
        if where.suffix in _PICKLED:
            raise _pickled(where)
        return read_header(where)
    folder = where.parent if where.is_file() else where
    if where.is_dir() and (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    index = where if where.is_file() else folder / INDEX
    if index.is_file():
        return _sharded(index)
    if not folder.is_dir():
        raise ValueError(f"{where}: no such file or folder")
    if any(path.suffix in _PICKLED for path in folder.iterdir()):
        raise _pickled(folder)
    names = sorted(path.name for path in folder.iterdir())
    raise ValueError(f"{folder}: holds neither {SINGLE} nor {INDEX}, but {', '.join(names[:8]) or 'nothing'}")


def _pickled(where: Path) -> ValueError:
    return ValueError(
        f"{where}: its weights are pickled, and a pickle can run any code, so it is never opened here; convert it to safetensors "
        "where you trust it, as with transformers' save_pretrained(folder, safe_serialization=True)"
    )


def _sharded(index: Path) -> dict[str, Stored]:
    places = _json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) and Path(shard).name == shard for shard in places.values()):
        raise ValueError(f"{index}: corrupt: its weight_map should name a file of this folder for every tensor")
    shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise ValueError(f"{index}: names {len(missing)} of {len(shards)} shards that are not there: {', '.join(missing)}")
    headers = {shard: read_header(index.parent / shard) for shard in shards}
    if absent := [f"{name} of {shard}" for name, shard in places.items() if name not in headers[shard]]:
        raise ValueError(f"{index}: names tensors that their shards do not hold: {', '.join(absent)}")
    return {name: headers[shard][name] for name, shard in places.items()}


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    Raises:
      ValueError: truncated or corrupt, with the bytes expected and found, or of a dtype that numpy has no name for.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = int.from_bytes(file.read(8), "little")
        if size < 8 or head > min(size - 8, _HEADER_BYTES):
            raise ValueError(f"{path}: truncated, or no safetensors: its header should take {8 + head:,} bytes, and the file has {size:,}")
        text = file.read(head)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        places = sorted((*map(int, x["data_offsets"]), name, str(x["dtype"]), tuple(map(int, x["shape"]))) for name, x in header.items())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: corrupt: its header is none of safetensors ({type(error).__name__}: {error})") from None
    found, end = {}, 0
    for start, stop, name, dtype, shape in places:
        if dtype not in _DTYPES:
            raise ValueError(f"{path}: {name} is of dtype {dtype}, which is not read here; known are {', '.join(_DTYPES)}")
        stored = Stored(path, shape, np.dtype(_DTYPES[dtype]), 8 + head + start)
        if start != end or stop - start != stored.nbytes:
            what = f"{dtype}{list(shape)} in bytes {start:,} to {stop:,}, where it should take {stored.nbytes:,} from {end:,} on"
            raise ValueError(f"{path}: corrupt: {name} is {what}")
        found[name], end = stored, stop
    if size != 8 + head + end:
        what = "truncated" if size < 8 + head + end else "corrupt"
        raise ValueError(f"{path}: {what}: its header tells of {8 + head + end:,} bytes, and the file has {size:,}")
    return {name: found[name] for name in header}


# ---- writing ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Made:
    """A tensor to write; `make` gives its numbers when their turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Made],
    *,
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
) -> None:
    """Write config.json and tensors, in one file or, where they are more than `max_shard_bytes`, in shards, of which one at a time is in
    memory. Complete or not at all: what a kill leaves behind does not load.

    Raises:
      ValueError: `max_shard_bytes` is below 1, or the folder holds something and `overwrite` is false.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes={max_shard_bytes}: a shard holds at least one byte")
    shards = _shards(tensors, max_shard_bytes)
    total, done = sum(one.nbytes for one in tensors.values()), 0
    files = [SINGLE] if len(shards) == 1 else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    with replacing(folder, overwrite) as partial:
        for file, names in zip(files, shards, strict=True):
            save_file({name: _whole(tensors[name]) for name in names}, partial / file, metadata={"format": "pt"})
            done += sum(tensors[name].nbytes for name in names)
            report(done, total)
        if len(shards) > 1:
            places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        write_json(partial / CONFIG, config)


def _shards(tensors: Mapping[str, Made], max_bytes: float) -> list[list[str]]:
    """Names in their order, as many to a shard as it holds, at least one."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, one in tensors.items():
        if shards[-1] and filled + one.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += one.nbytes
    return shards


def _whole(tensor: Made) -> np.ndarray:
    made = tensor.make()
    if made.flags.c_contiguous:
        return made
    whole = np.empty(made.shape, made.dtype)  # safetensors writes the memory as it lies, whatever the strides
    copy(whole, made)
    return whole


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(folder: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A folder inside `folder` to write into. When the block is done its files move out and those of an older checkpoint go; when it
    fails, nothing of it is left.

    Raises:
      ValueError: `folder` is a file, or holds something and `overwrite` is false.
    """
    folder = Path(folder)
    check_writable(folder, overwrite)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a kill
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            _to_disk(path)
        # What a reader begins with goes first and comes last, so that old and new are never read as one.
        for name in (CONFIG, INDEX, SINGLE):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob("model-*-of-*.safetensors"):
            path.unlink()
        if (folder / PARAMS).exists():
            shutil.rmtree(folder / PARAMS)
        for path in sorted(partial.iterdir(), key=lambda path: path.name in (SINGLE, INDEX, PARAMS)):
            os.replace(path, folder / path.name)
        _to_disk(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                path.rmdir()
        raise
    partial.rmdir()


def check_writable(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where `folder` is a file, or holds something that would be written over without leave."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and not overwrite and (there := sorted(p.name for p in folder.iterdir() if p.name != _PARTIAL)):
        raise ValueError(f"{folder}: is not empty ({', '.join(there[:4])}); name a new folder, or overwrite it")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- copies ----------------------------------------------------------------------------------------------------------
_STRIP = 16  # elements: a cache line of float32


def copy(into: np.ndarray, source: np.ndarray) -> None:
    """`into[...] = source`, cast if need be. A transpose goes in strips that fit into the cache, some eight times as fast as numpy's."""
    if source.ndim < 2 or source.size < 1 << 12 or source.strides[-1] == min(source.strides):
        into[...] = source
        return
    rows = int(np.argmin(source.strides[:-1]))  # along this axis the source is contiguous, along the last `into` is
    others = [n if axis != rows else 1 for axis, n in enumerate(source.shape[:-1])]
    for at in np.ndindex(*others):
        place: tuple[int | slice, ...] = tuple(slice(None) if axis == rows else i for axis, i in enumerate(at))
        for start in range(0, source.shape[-1], _STRIP):
            strip = (*place, slice(start, start + _STRIP))
            into[strip] = source[strip]


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An empty array at an address that JAX's CPU devices take over as it is; where else it would be copied."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT_BYTES
    return room[start : start + size].view(dtype).reshape(tuple(shape))


_ALIGNMENT_BYTES = 64
