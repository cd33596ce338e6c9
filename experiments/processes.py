"""What `experiments.train` does where it runs in several processes: what they must agree on, and who writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from wsejax.training import provenance
from wsejax.training.distributed import CommonStop, is_first, process_count
from wsejax.training.interrupt import GracefulStop
from wsejax.training.rundir import MetricsLog
from wsejax.training.shares import Share, lay_out

from .reproduce import sources

_NUMERIC = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_")  # environment that may change what a program computes
_PER_PROCESS = ("JAX_COORDINATOR", "JAX_PROCESS", "JAX_LOCAL", "JAX_NUM", "JAX_COMPILATION_CACHE", "JAX_DEBUG", "JAX_LOG")


def facts(identity: Mapping[str, Any], data_digest: str, defects_digest: str | None) -> dict[str, Any]:
    """What has to be the same in every process: the configuration, text, what has died so far, sources, versions and environment."""
    environment = {name: os.environ[name] for name in os.environ if name.startswith(_NUMERIC) and not name.startswith(_PER_PROCESS)}
    return {
        "config": dict(identity),
        "data": data_digest,
        "defects": defects_digest,
        "sources": provenance.sources(sources()),
        "versions": provenance.versions(),
        "environment": environment,
        "devices": len(jax.local_devices()),
    }


class MutedLog(MetricsLog):
    """Keeps rows and writes none: process 0 has the file."""

    def __init__(self) -> None:
        self.rows = []

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def sync(self) -> None:
        """Nothing to wait for."""

    def __exit__(self, *_: object) -> None:
        pass


def open_log(path: Path, *, step: int, report: Callable[[str], None]) -> MetricsLog:
    """The metrics file in the first process, a muted log in the others."""
    return MetricsLog(path, step=step, report=report) if is_first() else MutedLog()


def stopper(say: Callable[[str], None]) -> GracefulStop | CommonStop:
    """What listens to Ctrl-C and SIGTERM; with several processes, all stop after the same step."""
    return GracefulStop(say) if process_count() == 1 else CommonStop(say)


class Feed:
    """The training batches, of which each process reads the rows that its devices need. The batches, and the place in them that a
    checkpoint keeps, are the same in however many processes."""

    def __init__(self, make: Callable[[Any], Any], shardings: Any, like: Any):
        """make: from the rows that are read (None: all) an iterator over batches. like: a batch."""
        self._share = None if process_count() == 1 else Share.of(shardings, like)
        self._batches = make(self._share and self._share.rows)

    def __next__(self) -> Any:
        batch = next(self._batches)
        return batch if self._share is None else self._share.spread(batch)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)


def held_out_on(shardings: Any, batches: Sequence[Any]) -> list[Any]:
    """The validation batches where the program wants them, laid out once where there are several processes."""
    return list(batches) if process_count() == 1 else [lay_out(batch, shardings) for batch in batches]
