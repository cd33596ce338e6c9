"""How a run ends: the exit codes, which ends are worth another start, and how an end is told from an error or a dead process.

The division is the one that the restarts of real wafer clusters make, as their documentation has it (Cerebras, "AutoRestart" of the
Model Zoo's trainer): compile errors, failed assertions and a stop by hand are fatal; not-a-number losses, deadlocks and unknown
errors of the system are worth a restart.
"""

from __future__ import annotations

import enum
import errno
import re
import signal
from pathlib import Path

from wsejax.compiler import UnsupportedOpError

from .checkpoint import CheckpointMismatchError
from .distributed import EXIT_LOST_PEER, DistributedError
from .faults import LostWaferError
from .rundir import RunDirectoryError


class Treatment(enum.Enum):
    """What a supervisor does about an end."""

    DONE = "done"
    FATAL = "fatal"  # the same again would end the same
    RESTART = "restart"  # the system's doing: up to the limit
    RESTART_ONCE = "restart once"  # a flipped bit, or the run's own numbers: the second time at one step tells
    RESTART_CHANGED = "restart with other flags"  # only where something can be changed


class Fault(enum.IntEnum):
    """How a run ended; the number is its exit code. 1 and 2 are Python's and argparse's own, 130 a shell's for Ctrl-C."""

    COMPLETE = 0
    UNKNOWN = 1
    BAD_INPUT = 2
    COMPILE_ERROR = 3
    FAILED_ASSERTION = 4
    LOST_WAFER = 5
    NAN_LOSS = 6
    OUT_OF_MEMORY = 7
    DISK_FULL = 8
    HUNG = 9
    KILLED = 10
    CRASHED = 11
    LOST_PEER = EXIT_LOST_PEER
    STOPPED = 130

    @property
    def treatment(self) -> Treatment:
        return _TREATMENTS.get(self, Treatment.RESTART)

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


_TREATMENTS = {
    Fault.COMPLETE: Treatment.DONE,
    Fault.BAD_INPUT: Treatment.FATAL,
    Fault.COMPILE_ERROR: Treatment.FATAL,
    Fault.FAILED_ASSERTION: Treatment.FATAL,
    Fault.STOPPED: Treatment.FATAL,
    Fault.NAN_LOSS: Treatment.RESTART_ONCE,
    Fault.LOST_WAFER: Treatment.RESTART_CHANGED,
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BY_ERRNO = dict.fromkeys(_FULL, Fault.DISK_FULL) | {errno.ENOMEM: Fault.OUT_OF_MEMORY}
_BY_TYPE: tuple[tuple[type[BaseException], Fault], ...] = (
    (KeyboardInterrupt, Fault.STOPPED),
    (LostWaferError, Fault.LOST_WAFER),
    (CheckpointMismatchError, Fault.BAD_INPUT),
    (RunDirectoryError, Fault.BAD_INPUT),
    (UnsupportedOpError, Fault.COMPILE_ERROR),
    (FloatingPointError, Fault.NAN_LOSS),
    (AssertionError, Fault.FAILED_ASSERTION),
    (MemoryError, Fault.OUT_OF_MEMORY),
    (ConnectionError, Fault.LOST_PEER),
    (DistributedError, Fault.BAD_INPUT),
    (PermissionError, Fault.BAD_INPUT),
    (FileNotFoundError, Fault.BAD_INPUT),
    (FileExistsError, Fault.BAD_INPUT),
    (NotADirectoryError, Fault.BAD_INPUT),
    (IsADirectoryError, Fault.BAD_INPUT),
)
_PEER = r"distributed service|coordination ?service|deadline_exceeded|connection (closed|reset) by peer|heartbeat timeout|barrier timed out"
# What libraries say in errors that have no class of their own, and on stderr before they abort, in small letters. The order counts:
# tensorstore calls a full disk RESOURCE_EXHAUSTED, as XLA calls a lack of memory.
_BY_TEXT: tuple[tuple[Fault, str], ...] = (
    (Fault.DISK_FULL, r"no space left on device|disk quota exceeded|file too large|enospc|efbig|edquot"),
    (Fault.LOST_PEER, _PEER),
    (Fault.OUT_OF_MEMORY, r"resource_exhausted|std::bad_alloc|memoryerror|out of memory|cannot allocate memory"),
    (Fault.FAILED_ASSERTION, r"assertionerror"),
)


def fault_in_text(text: str, default: Fault) -> Fault:
    """The fault that an error message or the end of a stderr tells of, or `default`."""
    return next((fault for fault, words in _BY_TEXT if re.search(words, text.lower())), default)


def telling_part(text: str, fault: Fault, *, around: int = 120) -> str:
    """A long message cut to what tells of the fault, with so many characters on both sides."""
    found = next((match for kind, words in _BY_TEXT if kind is fault and (match := re.search(words, text.lower()))), None)
    start, end = found.span() if found else (0, around)
    start, end = max(0, start - around), min(len(text), end + around)
    return f"{'...' * (start > 0)}{text[start:end]}{'...' * (end < len(text))}"


def fault_of_error(error: BaseException) -> Fault:
    """The fault behind an exception; Fault.UNKNOWN where neither its class, its errno nor its words tell, nor those of what it was
    raised from.

    Any other ValueError is UNKNOWN here: whether it is bad input only its place tells.
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__
    for each in seen:
        if isinstance(each, OSError) and each.errno in _BY_ERRNO:
            return _BY_ERRNO[each.errno]
        for kind, fault in _BY_TYPE:
            if isinstance(each, kind):
                return fault
    return fault_in_text("\n".join(f"{type(each).__name__}: {each}" for each in seen), Fault.UNKNOWN)


def fault_of_exit(code: int, stderr_tail: str = "", *, out_of_memory_kills: int = 0) -> Fault:
    """The fault behind the end of a process.

    Args:
      code: as `subprocess` gives it: the exit code, or minus the signal. From 129 it is a shell's word for a signal.
      stderr_tail: the last that it said; looked at only where the code does not tell.
      out_of_memory_kills: how often the kernel killed for lack of memory meanwhile (see `out_of_memory_kills`).
    """
    if code == -signal.SIGINT:
        return Fault.STOPPED  # before it could end in its own way
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return Fault.KILLED  # by a scheduler, or by hand: who wants the run to end asks the supervisor
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return Fault.OUT_OF_MEMORY if out_of_memory_kills > 0 else Fault.KILLED
    if code < 0 or (128 < code < 160 and code != Fault.STOPPED):
        return fault_in_text(stderr_tail, Fault.CRASHED)
    if code == Fault.UNKNOWN or code not in set(Fault):
        return fault_in_text(stderr_tail, Fault.UNKNOWN)
    return Fault(code)


def out_of_memory_kills(events: Path = Path("/sys/fs/cgroup/memory.events")) -> int:
    """How many processes of this machine (or container) the kernel has killed for lack of memory, as far as Linux says; else 0."""
    try:
        return int(dict(line.split() for line in events.read_text().splitlines()).get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
