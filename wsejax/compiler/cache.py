"""The cache of compiled programs: a folder an entry, named by the hash of everything that the program depends on.

An entry holds the program as StableHLO with its layouts, so that a hit neither plans nor traces it for the mesh, and XLA's executable,
kept by JAX's own compilation cache, so that a hit does not compile. An entry appears whole, by one rename. Executables are native code:
whoever can write to the folder can run code here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from wsejax.compiler import artefact
from wsejax.compiler.arguments import on_mesh
from wsejax.compiler.cachekey import UncacheableError, differences, key_parts
from wsejax.kernels.relayout import Layout

LOG = logging.getLogger("wsejax.cache")
VARIABLE = "WSEJAX_CACHE_DIR"
_KIND = "cache entry"
_COMPARED = 16  # newest entries of a function that a miss is compared with
_SHOWN = 8  # differences from the nearest of them


@dataclasses.dataclass(frozen=True)
class CacheInfo:
    """What the cache did for a compiled function.

    `state` is "hit", "miss" or "off"; `seconds` were spent tracing, planning and compiling, or loading. `why` says of a miss what differs
    from the nearest entry of the same function or what was wrong, and of a program that cannot be kept what is in the way.
    """

    state: str
    seconds: float
    key: str = ""
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.state} {self.key[:12]}".strip() + f", ready in {self.seconds:.2f} s"
        return text + "".join(f"\n  {line}" for line in self.why)


def cache_folder(cache: str | os.PathLike[str] | bool | None) -> Path | None:
    """The folder that `wse.jit(cache=...)` means, made if it was not there. None: no cache.

    Raises:
      ValueError: `cache` is no path, or cannot be written to.
    """
    name, path = ("cache", cache) if cache is not None else (VARIABLE, os.environ.get(VARIABLE) or False)
    if path is False:
        return None
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name}={path!r}: give the path of a folder, or False for no cache")
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}={str(path)!r}: {error}; give the path of a folder that can be made") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}={str(path)!r}: the folder cannot be written to; give another, or False for no cache")
    return folder


def find(folder: Path | None, name: str, *program) -> tuple[Entry | None, tuple[str, ...]]:
    """The entry of a program, given as to `key_parts`; or None with the reason, where there is a cache that cannot keep it."""
    if folder is None:
        return None, ()
    try:
        return Entry(folder, key_parts(name, *program)), ()
    except UncacheableError as error:
        LOG.warning("%s: the program cannot be kept: %s", name, error)
        return None, (f"the program cannot be kept: {error}",)


class Entry:
    """One program's place in the cache; `found` says whether it is there, `why` why not.

    Args:
      folder: of the cache.
      parts: the key, from `key_parts`.
    """

    def __init__(self, folder: Path, parts: dict[str, Any]) -> None:
        self._parts, self.name = parts, parts["function"]
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        self._stem = re.sub(r"\W+", "_", self.name)[-40:]
        self._path = folder / f"{self._stem}-{self.key[:32]}"
        self._stored: tuple[dict[str, Any], bytes, jax.export.Exported] | None = None
        self.why: tuple[str, ...] = ()
        try:
            self._stored = self._read()
        except FileNotFoundError:
            self.why = tuple(self._changes())
        except (artefact.ArtefactError, OSError) as error:
            self.why = (f"{self._path} was damaged, and is made anew: {error}",)
            LOG.warning("%s: %s", self.name, self.why[0])
            shutil.rmtree(self._path, ignore_errors=True)

    @property
    def found(self) -> bool:
        return self._stored is not None

    def _read(self) -> tuple[dict[str, Any], bytes, jax.export.Exported]:
        header, blob = artefact.unpack((self._path / "program").read_bytes(), _KIND)
        if header["parts"] != self._parts:
            raise artefact.ArtefactError("it holds another program")
        for name, digest in header["executables"].items():
            if not (file := self._path / "xla" / name).exists() or artefact.digest(file) != digest:
                raise artefact.ArtefactError(f"{file} is not what was stored")
        return header, blob, artefact.thaw(blob)

    def _changes(self) -> list[str]:
        files = sorted(self._path.parent.glob(f"{self._stem}-*/program"), key=lambda f: f.stat().st_mtime, reverse=True)
        others = []
        for file in files[:_COMPARED]:
            with contextlib.suppress(OSError, artefact.ArtefactError):
                others.append(differences(artefact.unpack(file.read_bytes(), _KIND)[0]["parts"], self._parts))
        nearest = min(others, key=len, default=[f"nothing is stored for {self.name}"])
        return nearest[:_SHOWN] + ([f"and {len(nearest) - _SHOWN} more"] if len(nearest) > _SHOWN else [])

    def explain(self) -> str:
        """That the program is stored, or what differs from the nearest program of the same function that is."""
        head = f"{self.name}, key {self.key[:12]}, in {self._path.parent}: "
        return head + ("stored" if self.found else "\n  ".join(["not stored", *self.why]))

    def layouts(self) -> tuple[list[Layout], list[Layout]]:
        """The stored layouts of arguments and results."""
        assert self._stored is not None
        header = self._stored[0]
        return [tuple(lay) for lay in header["ins"]], [tuple(lay) for lay in header["outs"]]

    def compile(
        self,
        jitted: Callable[[], Any],
        shapes: Sequence[jax.ShapeDtypeStruct],
        layouts: tuple[Sequence[Layout], Sequence[Layout]],
        donated: Sequence[int],
        mesh: Mesh,
    ) -> tuple[jax.stages.Compiled, str, tuple[str, ...]]:
        """(the executable, what `CacheInfo.state` is, why): loaded, or compiled and stored.

        Args:
          jitted: gives the jitted function of flat arguments; asked for on a miss only.
          shapes: of the flat arguments.
          layouts: of arguments and results.
          donated: numbers of the flat arguments that are given away.
        """
        ins, outs = layouts

        def build(exported: jax.export.Exported, home: Path) -> tuple[jax.stages.Compiled, dict[str, str]]:
            shardings = on_mesh(mesh, ins), on_mesh(mesh, outs)
            lowered = artefact.jitted(exported, self.name, *shardings, donated).lower(*shapes)
            with _xla_cache(home / "xla"):
                stage = lowered.compile()
            return stage, {file.name: artefact.digest(file) for file in sorted((home / "xla").iterdir())}

        if self._stored is not None:
            header, blob, exported = self._stored
            stage, executables = build(exported, self._path)
            if executables and executables == header["executables"]:
                return stage, "hit", ()
            self._store(self._path, header | {"executables": executables}, blob)
            return stage, "miss", ("the program was stored, but no executable for this machine and its drivers",)
        try:
            platforms = (artefact.platform(mesh),)
            blob = bytes(jax.export.export(jitted(), platforms=platforms)(*shapes).serialize())
            exported = artefact.thaw(blob)
        except Exception as error:  # what JAX cannot export it refuses in many ways; the program can be run all the same
            why = (f"the program cannot be kept: {error}",)
            LOG.warning("%s: %s", self.name, why[0])
            return jitted().lower(*shapes).compile(), "off", why
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._path.parent, ignore_cleanup_errors=True) as scratch:
            home = Path(scratch) / "entry"
            (home / "xla").mkdir(parents=True)
            stage, executables = build(exported, home)
            header = {"kind": _KIND, "parts": self._parts, "ins": ins, "outs": outs, "executables": executables}
            self._store(home, header, blob)
        return stage, "miss", self.why

    def _store(self, home: Path, header: dict[str, Any], blob: bytes) -> None:
        try:
            artefact.write(home / "program", artefact.pack(header, blob))
            if home != self._path:
                os.rename(home, self._path)
        except OSError as error:
            if not (self._path / "program").exists():  # else another process has stored the same meanwhile
                LOG.warning("%s: not stored: %s", self.name, error)


# What JAX's compilation cache is told while a program of ours is compiled.
_SETTINGS = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_max_size": -1,
    "jax_compilation_cache_include_metadata_in_key": False,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": "none",  # they would put the folder's name into XLA's key
}
_LOCK = threading.Lock()


@contextlib.contextmanager
def _xla_cache(folder: Path) -> Iterator[None]:
    """JAX's compilation cache in `folder`, and afterwards as it was."""
    with _LOCK:
        wanted = {"jax_compilation_cache_dir": str(folder), **_SETTINGS}
        before = {name: getattr(jax.config, name) for name in wanted}
        try:
            for name, value in wanted.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # it looks at its settings once only
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
