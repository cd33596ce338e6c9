"""One run in several processes, on one host or many, joined by JAX's own distributed runtime (`jax.distributed`).

Every process runs the same command; together their devices are the devices of the wafer. What a process finds wrong is shared before
anything is written, so that all end with the same words. A process that is lost ends the others: by the error of a collective, by the
coordination service, which ends a process from C++, or by a watchdog for a run that makes no progress. In each case the process says
what happened and exits with `EXIT_LOST_PEER`, after which the same commands go on from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from wsejax.hardware import request_cpu_devices

from .rundir import RunDirectory, RunDirectoryError, differing_fields

T = TypeVar("T")

EXIT_LOST_PEER = 75
"""Exit code of a process that lost another one: EX_TEMPFAIL of sysexits.h, "try again later"."""

_NAMING_SECONDS = 3.0  # to find out which process was lost: its locks are let go a moment after its connections
_LEAVING_SECONDS = 10  # that a process which ends waits for the others to end


class DistributedError(ValueError):
    """The processes cannot work together; the message says which of them, and what to do."""


class LostPeerError(ConnectionError):
    """Another process is gone."""


class NobodyThereError(DistributedError, ConnectionError):
    """There is no coordinator; it may come yet."""


@dataclass
class _Peers:
    """What this process knows of the others, for its last words."""

    phase: str = ""
    folder: Path | None = None
    handler: Any = field(default=None, repr=False)  # kept alive: C calls it


_PEERS = _Peers()


def process_count() -> int:
    """Processes of this run. Unlike `jax.process_count` it leaves JAX's backends alone where there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes what a run writes once: the metrics, pictures and text; also true where there is one process."""
    return process_count() == 1 or jax.process_index() == 0


def join(
    coordinator: str | None, processes: int | None, process: int | None, *, timeout_seconds: int = 300, deadline_seconds: int = 300
) -> None:
    """Meet the other processes. Call it before anything starts JAX's backends.

    Args:
      coordinator: host:port where process 0 listens, the same text in every process. None, with the two others: as the cluster's own
        scheduler says (Slurm, Open MPI, Kubernetes, TPU pods), by JAX's detection.
      processes: how many there are.
      process: which one this is, from 0.
      timeout_seconds: how long to wait for the others; they may come in any order.
      deadline_seconds: silence after which a process counts as lost.

    Raises:
      DistributedError: a malformed argument, a port that is taken, no coordinator within the time. Where some other process does not
        come, JAX's runtime ends this one; it says so and exits with EXIT_LOST_PEER.
    """
    where = None
    if (coordinator, processes, process) != (None, None, None):
        where = _checked(coordinator, processes, process)
        _find_coordinator(*where, first=process == 0, timeout_seconds=timeout_seconds)
    _PEERS.phase = f"not all processes came to {coordinator or 'the coordinator'} within {timeout_seconds} seconds; start every one of them"
    _speak_at_abort()
    request_cpu_devices(1)  # the runtime reads XLA's flags when it connects, and without them bits differ from those of one process
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=timeout_seconds,
            heartbeat_timeout_seconds=deadline_seconds,
            shutdown_timeout_seconds=_LEAVING_SECONDS,
        )
    except (RuntimeError, ValueError) as error:  # also what JAX's runtime raises
        found = "" if where else "; where no scheduler says so, give the coordinator, the number of processes and which one this is"
        raise DistributedError(f"the processes did not meet: {' '.join(str(error).split())[:300]}{found}") from error
    _PEERS.phase = "JAX's runtime found a process dead or silent and ended this one"


def _checked(coordinator: str | None, processes: int | None, process: int | None) -> tuple[str, int]:
    if coordinator is None or processes is None or process is None:
        raise DistributedError(
            f"coordinator={coordinator!r}, processes={processes!r}, process={process!r}: give all three in every process, such as "
            "host0:12421, 2 and 0"
        )
    host, colon, port = coordinator.rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise DistributedError(f"coordinator={coordinator!r}: give the host of process 0 and a free port of it, such as host0:12421")
    if processes < 1 or not 0 <= process < processes:
        raise DistributedError(f"process={process} of processes={processes}: they are counted from 0, so give 0 to {processes - 1}")
    return host.strip("[]"), int(port)


def _find_coordinator(host: str, port: int, *, first: bool, timeout_seconds: float) -> None:
    """Look at the port before JAX does, which would end the process from C++ (a missing coordinator) or share it in silence (a port that
    is taken: gRPC opens ports with SO_REUSEPORT)."""
    if first:
        try:
            with socket.create_server(("", port)):
                return
        except OSError as error:
            raise DistributedError(f"coordinator port {port} cannot be opened on this host ({error.strerror}); give another port") from None
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, min(2.0, end - time.monotonic()))):
                return
        except OSError as error:
            if time.monotonic() + 0.2 > end:
                raise NobodyThereError(
                    f"no coordinator at {host}:{port} within {timeout_seconds} seconds ({error}); start process 0 on {host}, and see that "
                    "its port can be reached from here"
                ) from None
        time.sleep(0.2)


def leave() -> None:
    """Part from the others, who leave at the same time. Does nothing in a process that never joined."""
    with contextlib.suppress(RuntimeError, ValueError):  # somebody is gone already: then there is nobody to part from
        jax.distributed.shutdown()


def gather(values: np.ndarray) -> np.ndarray:
    """The values of all processes, in their order, along a new first axis. Shape and dtype (of 32 bits at most) are the same in all.

    Raises LostPeerError where one of them is gone.
    """
    count = process_count()
    if count == 1:
        return values[None]
    # one device of each process: processes that were started with different numbers of devices must be able to say so
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([first[process] for process in range(count)]), ("process",))
    spread = NamedSharding(mesh, PartitionSpec("process"))
    try:
        whole = jax.make_array_from_process_local_data(spread, values[None], (count, *values.shape))
        return np.asarray(jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))(whole).addressable_data(0))
    except (ValueError, RuntimeError) as error:  # what JAX makes of a broken connection differs between its backends
        raise LostPeerError(f"a message between the processes failed ({' '.join(str(error).split())[:160]})") from error


def _same(x: jax.Array) -> jax.Array:
    return x  # of the module, so that JAX compiles it once


def gather_text(text: str) -> list[str]:
    """The text of every process, in their order."""
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = gather(np.array([len(own)], np.int32))[:, 0]
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(own)] = own
    return [bytes(row[:length]).decode() for row, length in zip(gather(padded), lengths, strict=True)]


def agree(what: str, facts: Mapping[str, Any]) -> None:
    """Compare what must be the same in every process: a nested mapping of JSON values, such as a configuration or digests.

    Raises DistributedError, in every process, with the processes that differ from process 0 and the fields in which they do.
    """
    told = [json.loads(text) for text in gather_text(json.dumps(facts))]
    words = [
        f"process {process}: {'; '.join(differences)}"
        for process, other in enumerate(told)
        if (differences := differing_fields(told[0], other))
    ]
    if words:
        raise DistributedError(
            f"the processes differ in {what} (that of process 0 -> that of the other): {' | '.join(words)}. Start every process with the "
            "same flags, code and data"
        )


def together(action: Callable[[], T], expected: tuple[type[Exception], ...]) -> T:
    """Do something that may go wrong in one process alone: then all processes raise.

    Returns what `action` gave. Raises its own error where there is one process, else DistributedError with the errors of all that failed.
    """
    result, failed = None, None
    try:
        result = action()
    except expected as error:
        if process_count() == 1:
            raise
        failed = error
    told = gather_text("" if failed is None else str(failed) or type(failed).__name__)
    if any(told):
        reasons = dict.fromkeys(text for text in told if text)
        by = {text: [str(process) for process, other in enumerate(told) if other == text] for text in reasons}
        raise DistributedError(" | ".join(f"process {', '.join(by[text])}: {text}" for text in reasons)) from failed
    return result  # pyright: ignore[reportReturnType]  (none failed)


def fetch(tree: PyTree) -> PyTree:
    """Whole arrays of the host, in every process, from arrays that lie over the devices of all. All processes call it together."""
    return jax.device_get(tree) if process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


@contextlib.contextmanager
def run_folder(path: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a run, which all processes see (a shared file system): held by process 0 as `RunDirectory`, and by each other process
    with a lock of its own, by which the others know whether it lives. Every kind of end lets go of it.

    Raises RunDirectoryError, or DistributedError where there are several processes, for what RunDirectory refuses.
    """
    process = jax.process_index()
    with contextlib.ExitStack() as stack:
        # the first makes the folder before the others look for it
        together(lambda: is_first() and stack.enter_context(RunDirectory(path, config, about)), (RunDirectoryError, OSError))
        together(lambda: is_first() or stack.enter_context(_held(path, process)), (RunDirectoryError, OSError))
        _PEERS.folder = path
        try:
            yield path
        finally:
            _PEERS.folder = None


def _lock_of(folder: Path, process: int) -> Path:
    return folder / (".lock" if process == 0 else f".lock-{process}")


@contextlib.contextmanager
def _held(folder: Path, process: int) -> Iterator[None]:
    if not folder.is_dir():
        raise RunDirectoryError(f"--out {folder} of process 0 is not seen by process {process}; give a folder that all hosts share")
    with open(_lock_of(folder, process), "w") as file:
        end = time.monotonic() + 1.0  # for a moment others may look whether it is held
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise RunDirectoryError(
                        f"--out {folder} is in use by a process {process} of an earlier start; wait for it, or end it"
                    ) from None
                time.sleep(0.05)
        yield


def lost_peers(folder: Path | None, *, wait_seconds: float) -> list[int]:
    """The other processes that no longer hold the folder, looked for until one is found or the time is over."""
    end = time.monotonic() + wait_seconds
    while folder is not None:
        found = [i for i in range(jax.process_count()) if i != jax.process_index() and not _is_held(_lock_of(folder, i))]
        if found or time.monotonic() > end:
            return found
        time.sleep(0.1)
    return []


def _is_held(lock: Path) -> bool:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look do not see each other
    except OSError:
        return True
    return False


def end(reason: str, *, looking_seconds: float = _NAMING_SECONDS) -> None:
    """Say what happened and end this process, whatever hangs in it."""
    gone = lost_peers(_PEERS.folder, wait_seconds=looking_seconds)
    names = f"process {', '.join(map(str, gone))} of {jax.process_count()} is gone: " if gone else ""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    text = f"error: {names}{reason}. The same commands, one for every process, go on from the newest checkpoint\n"
    os.write(2, text.encode())
    os._exit(EXIT_LOST_PEER)


def _speak_at_abort() -> None:
    """Where another process dies, JAX's coordination service ends this one with abort(). Python's handlers come too late for that
    signal, so a C function pointer says which process was lost and gives the exit code."""
    if _PEERS.handler is None:
        _PEERS.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: end(_PEERS.phase))
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p  # else a pointer is cut to an int
        libc.signal(signal.SIGABRT, _PEERS.handler)


class Watch:
    """While entered, ends this process where a step takes longer than `deadline_seconds` or raises because another process is lost.

    `step` says that one more step is done; the time counts from the first one, so compiling it has no deadline. `pause` stops the clock
    until the next step. With one process it does nothing.
    """

    def __init__(self, deadline_seconds: float):
        self._deadline_seconds = deadline_seconds
        self._last: float | None = None
        self._over = threading.Event()

    def step(self) -> None:
        self._last = time.monotonic()

    def pause(self) -> None:
        self._last = None

    def __enter__(self) -> Watch:
        if process_count() > 1:
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        # what a collective raises when its peer is gone is a bare ValueError or RuntimeError, so the locks decide
        if process_count() > 1 and isinstance(error, Exception) and lost_peers(_PEERS.folder, wait_seconds=_NAMING_SECONDS):
            end(f"a step failed here ({' '.join(str(error).split())[:160]})")

    def _look(self) -> None:
        while not self._over.wait(min(1.0, self._deadline_seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self._deadline_seconds:
                end(f"no step was done for {self._deadline_seconds:g} seconds", looking_seconds=0)


class CommonStop:
    """`GracefulStop` for several processes: Ctrl-C or SIGTERM at one of them stops all after the same step.

    JAX's preemption service spreads the notice and finds the step, so every process looks at `asked` once a step. A second Ctrl-C raises
    KeyboardInterrupt.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say, self._pressed, self._looked = say, False, 0

    @property
    def asked(self) -> bool:
        self._looked += 1
        return multihost_utils.reached_preemption_sync_point(self._looked)

    def __enter__(self) -> CommonStop:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, _: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        self._say("stopping all processes after the same step, with a checkpoint; once more stops at once")
        os.kill(os.getpid(), signal.SIGTERM)  # to JAX's preemption service, which handles it in C++
