"""What the manifest of a run tells: what was run, on what, from which data, and what came of it.

Kinds of entries:
  begin: the configuration as given and as resolved, versions, sources, platform, wafer, data, program.
  resume: a start after the first: from which step, by which process, with which versions.
  checkpoint: the files of one, and metrics.jsonl up to its step. Written after the checkpoint is whole.
  fault: a death that the run has survived, and the wafer after it.
  end: the last step, its checkpoint, metrics.jsonl and the parameters.
A resume at a step makes void what earlier entries tell of later steps.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from wsejax.compiler.cachekey import UncacheableError, program_lines
from wsejax.compiler.ir import read
from wsejax.hardware import Wafer

from .faults import EVENTS, Event, read_events
from .manifest import FORMAT, Entry, Manifest, canonical, sha256

METRICS, CONFIG, CHECKPOINTS = "metrics.jsonl", "config.json", "checkpoints"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "wsejax")
_SOURCES = {".py", ".json"}
_READ_BYTES = 1 << 20


# ---- hashes ----------------------------------------------------------------------------------------------------------
def file_digest(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def head_digest(path: Path, lines: int) -> dict[str, Any]:
    """{"bytes", "sha256"} of the first lines of a file; of an empty text where there is no file."""
    content, count = hashlib.sha256(), 0
    if path.exists():
        with open(path, "rb") as file:
            for line in itertools.islice(file, lines):
                content.update(line)
                count += len(line)
    return {"bytes": count, "sha256": content.hexdigest()}


def folder_digest(folder: Path) -> dict[str, Any]:
    """Of every file below a folder: {"files": [[name, bytes, sha256], ...] in name order, "sha256" of that list}."""
    found = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    files = [[name, (digest := file_digest(path))["bytes"], digest["sha256"]] for name, path in found]
    return {"files": files, "sha256": sha256(canonical(files))}


def sources_digest(folder: Path) -> str:
    """SHA-256, in hex, of a package's Python and JSON files: surer than a version number while somebody works on them."""
    content = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.suffix in _SOURCES and path.is_file())
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        content.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return content.hexdigest()


def parameters_digest(params: PyTree) -> str:
    """SHA-256, in hex, of every array's path, dtype, shape and bytes, whatever devices it lies on. Where arrays are spread over
    processes, all processes must call it."""
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        content.update(f"{name} {array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    return content.hexdigest()


def program_digest(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """{"sha256", "ops"} of a function of arrays as the compiler reads it: op by op, with constants by their bytes, before anything is laid
    out. So it is the same in every process, on every device mesh and wafer, and in plain JAX; another JAX may read the same function
    otherwise. A function that has no complete text gets {"sha256": None, "why"}.

    Args:
      arguments: arrays, or `jax.ShapeDtypeStruct`s.
    """
    graph = read(jax.make_jaxpr(function)(*arguments))
    try:
        lines = [", ".join(map(str, graph.ins)), *program_lines(graph)]
    except UncacheableError as error:
        return {"sha256": None, "why": str(error)}
    return {"sha256": sha256("\n".join(lines)), "ops": sum(1 for _ in graph.walk())}


# ---- what is run, and on what ----------------------------------------------------------------------------------------
def versions() -> dict[str, str]:
    """Of Python and the packages that decide numbers; "not installed" of wsejax in a checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def sources(packages: Mapping[str, Path]) -> dict[str, str]:
    """The digests of wsejax's own sources and of these packages': name -> folder."""
    return {name: sources_digest(folder) for name, folder in {"wsejax": Path(__file__).resolve().parent.parent, **packages}.items()}


def devices() -> dict[str, Any]:
    """Processor, system, and JAX's devices: kind and count."""
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "backend": jax.default_backend(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "processes": jax.process_count(),
    }


def wafer_facts(wafer: Wafer | None) -> dict[str, Any] | None:
    """A wafer as it is now, its defects by their digest; None where there is none."""
    if wafer is None:
        return None
    grid = {"rows": wafer.spec.rows, "cols": wafer.spec.cols, "logical": list(wafer.logical_grid)}
    laid = {"tiles": list(wafer.tiles), "devices": list(wafer.devices)}
    return {"spec": wafer.spec.name, **grid, **laid, "defects_sha256": wafer.defects.digest}


def origin(
    *,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    program: Mapping[str, Any],
    wafer: Wafer | None,
    packages: Mapping[str, Path],
) -> dict[str, Any]:
    """All that the first entry tells of a run, as JSON, but for what is in its folder.

    Args:
      settings: as they were given; "keep" says how many checkpoints stay.
      config: as it was resolved, as in config.json; "steps" says how many make the run complete.
      data: "sha256" of the corpus, and "files": {"name", "bytes", "sha256"} of each.
      program: from `program_digest`, of the train step.
      packages: folders of sources other than wsejax's, by name.
    """
    return {
        "settings": settings, "config": config, "data": data, "program": program, "wafer": wafer_facts(wafer),
        "versions": versions(), "sources": sources(packages), "platform": devices(),
    }  # fmt: skip


# ---- what holds ------------------------------------------------------------------------------------------------------
def in_force(entries: Iterable[Entry]) -> tuple[dict[int, Entry], Entry | None]:
    """(checkpoint entries by step, the end entry) that no later resume has made void; of two of one step the newer."""
    live: dict[int, Entry] = {}
    end: Entry | None = None
    for entry in entries:
        if entry.kind == "resume":
            step = entry.content["step"]
            live = {at: one for at, one in live.items() if at <= step}
            end = end if end is not None and end.content["step"] <= step else None
        elif entry.kind == "checkpoint":
            live[entry.content["step"]] = entry
        elif entry.kind == "end":
            end = entry
    return live, end


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's folder, oldest first; orbax gives a folder its number when it is whole."""
    home = folder / CHECKPOINTS
    return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit()) if home.is_dir() else []


def differing_files(recorded: Mapping[str, Any], folder: Path) -> list[tuple[str, str, str]]:
    """(name, expected, found) of each file of a checkpoint that is not as recorded; what is not there is "absent"."""
    then = {name: f"{digest}, {count} bytes" for name, count, digest in recorded["files"]}
    now = {name: f"{digest}, {count} bytes" for name, count, digest in folder_digest(folder)["files"]}
    pairs = [(name, then.get(name, "absent"), now.get(name, "absent")) for name in sorted(then.keys() | now.keys())]
    return [pair for pair in pairs if pair[1] != pair[2]]


def primary(method: Callable[..., None]) -> Callable[..., None]:
    """Of the processes of one run only the first writes."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> None:
        if jax.process_index() == 0:
            method(*args, **kwargs)

    return run


class Provenance:
    """Writes the manifest of one run as it goes.

    Args:
      folder: of the run, held by this process.
      begin: from `origin`.
      report: is told what was dropped or does not fit.

    Raises:
      ManifestError: the manifest that is there was tampered with, or is of another format.
    """

    def __init__(self, folder: Path, begin: Mapping[str, Any], report: Callable[[str], None]):
        self._folder, self._begin, self._report = folder, begin, report
        self._manifest = Manifest(folder, report)

    def differs(self, step: int) -> str | None:
        """In what the checkpoint of `step` is not the one that was written; None where it is, or where no entry tells of it. All processes
        must call it, and have the first one's answer: they go on from one checkpoint."""
        why = self._differs(step) if jax.process_index() == 0 else None
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(why is not None)):
            return why or "process 0 does not find it as its manifest has it"
        return why

    def _differs(self, step: int) -> str | None:
        entry = in_force(self._manifest.entries)[0].get(step)
        if entry is None:
            return None
        differing = differing_files(entry.content, self._folder / CHECKPOINTS / str(step))
        return f"{differing[0][0]} is not the file that {entry} of the manifest tells of" if differing else None

    @primary
    def started(self, step: int) -> None:
        """The run goes on after `step` (0: from the start), of which a checkpoint has been read and its checksums are right."""
        fresh, live = not self._manifest.entries, in_force(self._manifest.entries)[0]
        if fresh:
            config = file_digest(self._folder / CONFIG)
            self._manifest.append("begin", {"format": FORMAT, **self._begin, "config_file": config, "process": _process()})
        # In a folder that is older than its manifest nothing tells of any checkpoint; else only of the newest, where a kill came between
        # the checkpoint and its entry.
        for at in checkpoint_steps(self._folder):
            if at not in live and (at == step or (fresh and at < step)):
                self.checkpoint(at, adopted=True)
        told = sum(entry.kind == "fault" for entry in self._manifest.entries)
        for row in read_events(self._folder)[told:]:
            self._manifest.append("fault", {"event": row, "wafer": None, "adopted": True, "events": self._events(told := told + 1)})
        if not fresh or step:
            live = in_force(self._manifest.entries)[0]
            now = {name: value for name, value in self._begin.items() if name not in ("config", "data")}
            source = live[step].content["sha256"] if step in live else None
            dropped = {"dropped_bytes": self._manifest.torn_bytes} if self._manifest.torn_bytes else {}
            self._manifest.append("resume", {"step": step, "checkpoint_sha256": source, "process": _process(), **now, **dropped})

    @primary
    def checkpoint(self, step: int, *, adopted: bool = False) -> None:
        """The checkpoint of `step` is on disk, and so are the metrics up to it. `adopted`: it was there before its entry."""
        files = folder_digest(self._folder / CHECKPOINTS / str(step))
        metrics = head_digest(self._folder / METRICS, step)
        self._manifest.append("checkpoint", {"step": step, **files, "metrics": metrics, "adopted": adopted})

    @primary
    def fault(self, event: Event, wafer: Wafer) -> None:
        """A death was survived, and is in events.jsonl; `wafer` is what is left."""
        told = sum(entry.kind == "fault" for entry in self._manifest.entries)
        content = {"event": event.as_json(), "wafer": wafer_facts(wafer), "adopted": False, "events": self._events(told + 1)}
        self._manifest.append("fault", content)

    def end(self, step: int, params: PyTree) -> None:
        """The run is complete, its last checkpoint and its metrics are on disk. All processes must call it."""
        digest = parameters_digest(params)
        self._end(step, digest)

    @primary
    def _end(self, step: int, digest: str) -> None:
        source = in_force(self._manifest.entries)[0][step].content["sha256"]
        metrics = file_digest(self._folder / METRICS)
        self._manifest.append("end", {"step": step, "checkpoint_sha256": source, "metrics": metrics, "parameters_sha256": digest})

    def _events(self, lines: int) -> dict[str, Any]:
        return head_digest(self._folder / EVENTS, lines)


def _process() -> dict[str, int]:
    return {"id": os.getpid(), "index": jax.process_index(), "count": jax.process_count()}


def recorded_data(files: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """name -> digest and size, in words, of the files of a "data" entry."""
    return {one["name"]: f"{one['sha256']}, {one['bytes']} bytes" for one in files}


def as_json(value: Any) -> Any:
    """Settings as JSON has them: paths as texts, tuples as lists."""
    return json.loads(json.dumps(value, default=str))
