"""The folder of one run: held by one process at a time, belonging to one configuration, and whole after a kill at any
moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_LOCK, _CONFIG = ".lock", "config.json"


class RunDirectoryError(ValueError):
    """The folder cannot be used for this run: it is in use, or it belongs to something else."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill half-way, finds the old content or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a nested mapping."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each field that differs, as `name: then -> now`, in name order."""
    old, new = dict(flatten(before)), dict(flatten(now))
    names = sorted(old.keys() | new.keys())
    pairs = [(name, *(json.dumps(side[name]) if name in side else "absent" for side in (old, new))) for name in names]
    return [f"{name}: {then} -> {here}" for name, then, here in pairs if then != here]


def check_run_directory(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether `path` holds an earlier part of this very run; False where it is new or empty. Writes nothing.

    Raises RunDirectoryError where it is a file, holds another run's configuration (naming the fields) or files of
    something else.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise RunDirectoryError(f"--out {path} is a file; name a folder")
    try:
        saved = json.loads((path / _CONFIG).read_text(encoding="utf-8"))["config"]
    except FileNotFoundError:
        others = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        if others:
            raise RunDirectoryError(
                f"--out {path} holds files but no run ({', '.join(others[:3])}...); name a new or empty folder"
            ) from None
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"--out {path}: {_CONFIG} is not one that a run wrote ({error}); name a new folder") from None
    differences = differing_fields(saved, json.loads(json.dumps(config)))
    if differences:
        raise RunDirectoryError(
            f"--out {path} holds a run of another configuration ({'; '.join(differences)}); repeat that run's flags "
            "to go on with it, or name a new --out"
        )
    return True


class RunDirectory:
    """`path`, locked for this process. A kill of any kind lets go of the lock.

    config: nested mapping of JSON values that says what the run is; a folder that holds another one is refused.
    about: whatever else is worth writing beside it (versions), never compared.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], about: Mapping[str, Any] | None = None):
        self.path = Path(path)
        check_run_directory(self.path, config)  # before anything is made
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = open(self.path / _LOCK, "w")  # noqa: SIM115  (held until close)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunDirectoryError(f"--out {path} is in use by another run; wait for it, or name another folder") from None
            self.resumed = check_run_directory(self.path, config)
            if not self.resumed:
                write_atomically(self.path / _CONFIG, json.dumps({"config": config, "about": about or {}}, indent=2) + "\n")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, up to the first that is not whole (a kill can tear the last line)."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                rows.append(json.loads(line))
    except (FileNotFoundError, json.JSONDecodeError):
        pass
    return rows


class MetricsLog:
    """`metrics.jsonl`: one row a step, in order, none twice and none missing, also over kills.

    Opening it for a run that continues after `step` drops the rows of later steps (they will come again). Call `sync`
    before a checkpoint is saved: then the rows up to any checkpoint are on disk with it. `report` is told of rows
    that are gone.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int, report: Callable[[str], None]):
        self.path = Path(path)
        kept = [row for row in read_metrics(path) if row.get("step", step + 1) <= step]
        if [row["step"] for row in kept] != list(range(1, step + 1)):
            report(f"{path} lacks some of the steps up to {step}, where this run goes on: it was changed since")
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.rows = kept
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (held until close)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; it must have its `step`."""
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Block until every row is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def available_host_bytes() -> int | None:
    """Memory that a new process could use without swapping, or None where the system does not say (then nothing is
    estimated)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    group = Path("/sys/fs/cgroup")
    # a container's own limit, where there is one ("max" is none); cached files give way, so only "anon" counts as used
    try:
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        in_group = int((group / "memory.max").read_text()) - int(used["anon"])
    except (OSError, ValueError, KeyError):
        return free
    return in_group if free is None else min(free, in_group)


def require_host_memory(
    needed_bytes: int,
    what: str,
    *,
    available_bytes: int | None,
    instead: str = "choose a smaller --model.preset, --model.layers, --model.width or --batch",
) -> None:
    """Raise MemoryError, naming both figures and what to do `instead`, where `what` needs more than there is."""
    if available_bytes is not None and needed_bytes > available_bytes:
        raise MemoryError(
            f"{what} needs about {needed_bytes / 1e9:.3g} GB of host memory and {available_bytes / 1e9:.3g} GB are available; {instead}"
        )
