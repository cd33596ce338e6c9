"""A supervised process's line to its supervisor: it tells of its steps, and it ends when the supervisor is gone.

The line is a socket that the supervisor hands on under the number in the environment. Where there is none, nothing happens. It breaks
when the supervisor dies, however that dies; a thread that sleeps in a read sees it, and kills the process with its whole group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, MutableMapping
from functools import cache

VARIABLE = "WSEJAX_SUPERVISOR_FD"


class Tether:
    """Tells the supervisor how far the run is; without a socket, nobody."""

    def __init__(self, line: socket.socket | None = None):
        self._line = line

    def start(self, step: int, *, first: bool = True) -> None:
        """The run's folder is held, and it goes on after this step; what comes first is compiling. Of several processes of a run only the
        first holds it."""
        self._tell(f"{'start' if first else 'join'} {step}")

    def step(self, step: int) -> None:
        """This step is done and written down."""
        self._tell(f"step {step}")

    def busy(self) -> None:
        """What comes next may take as long as compiling."""
        self._tell("busy")

    def _tell(self, words: str) -> None:
        if self._line is not None:
            # a supervisor that is stopped or gone must not keep the run waiting
            with contextlib.suppress(OSError):
                self._line.send(f"{words}\n".encode(), socket.MSG_DONTWAIT)

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` from a thread, when the other end has closed."""
        assert self._line is not None
        line = self._line

        def wait() -> None:
            with contextlib.suppress(OSError):
                while line.recv(64):
                    pass
            gone()

        threading.Thread(target=wait, name="supervisor's end", daemon=True).start()


def grasp(environment: MutableMapping[str, str], gone: Callable[[], None]) -> Tether:
    """The tether that the environment tells of, watched; what the process starts itself does not get it."""
    number = environment.pop(VARIABLE, None)
    if number is None:
        return Tether()
    line = socket.socket(fileno=int(number))
    line.set_inheritable(False)
    tether = Tether(line)
    tether.watch(gone)
    return tether


@cache
def tether() -> Tether:
    """This process's one tether."""
    return grasp(os.environ, lambda: os.killpg(0, signal.SIGKILL))
