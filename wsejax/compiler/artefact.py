"""A compiled program as bytes: a JSON header, the StableHLO that `jax.export` writes, and a checksum. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.sharding import Mesh

_MAGIC = b"wsejax artefact "
_FORMAT = b"1\n"
_START = len(_MAGIC) + len(_FORMAT)
_BODY = _START + 32  # after the checksum


class ArtefactError(ValueError):
    """The bytes are no artefact of wsejax, of another format, or damaged."""


def pack(header: dict[str, Any], blob: bytes) -> bytes:
    """The bytes of an artefact. `header` is plain JSON."""
    text = json.dumps(header, sort_keys=True).encode()
    body = len(text).to_bytes(8, "big") + text + blob
    return _MAGIC + _FORMAT + hashlib.sha256(body).digest() + body


def unpack(content: bytes, kind: str) -> tuple[dict[str, Any], bytes]:
    """Header and blob of what `pack` wrote with `header["kind"] == kind`.

    Raises:
      ArtefactError: the content is something else, or not whole; the message says which.
    """
    if not content.startswith(_MAGIC):
        raise ArtefactError(f"it does not begin with {_MAGIC.decode()!r}, so wsejax did not write it")
    if content[len(_MAGIC) : _START] != _FORMAT:
        found = content[len(_MAGIC) :].partition(b"\n")[0][:20].decode(errors="replace")
        raise ArtefactError(f"its format is {found!r}, this wsejax reads {_FORMAT.decode().strip()!r}")
    body = content[_BODY:]
    if hashlib.sha256(body).digest() != content[_START:_BODY]:
        raise ArtefactError(f"its {len(content):,} bytes do not match their checksum: it was cut short or changed")
    end = 8 + int.from_bytes(body[:8], "big")
    header = json.loads(body[8:end])
    if header["kind"] != kind:
        raise ArtefactError(f"it is a {header['kind']}, not a {kind}")
    return header, body[end:]


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def digest(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def thaw(blob: bytes) -> jax.export.Exported:
    """The program of a blob.

    Raises:
      ArtefactError: this JAX cannot read it.
    """
    try:
        return jax.export.deserialize(bytearray(blob))
    except Exception as error:  # flatbuffers and MLIR each have their own for what they cannot read
        raise ArtefactError(f"jax {jax.__version__} cannot read its program: {error}") from error


def jitted(exported: jax.export.Exported, name: str, ins: Sequence[Any], outs: Sequence[Any], donated: Sequence[int]) -> Callable[..., Any]:
    """An exported program as `jax.jit` makes it: called `name` in logs and profiles, flat arguments and results in shardings `ins` and
    `outs`."""

    def call(*flat):
        return tuple(exported.call(*flat))

    call.__name__ = call.__qualname__ = name
    return jax.jit(call, in_shardings=tuple(ins), out_shardings=tuple(outs), donate_argnums=tuple(donated))


def platform(mesh: Mesh) -> str:
    """What `jax.export` calls the platform of a mesh: "cuda", where its devices say "gpu"."""
    name = mesh.devices.flat[0].platform
    return jax.export.default_export_platform() if name == jax.default_backend() else name
