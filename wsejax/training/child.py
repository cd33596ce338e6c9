"""A child process that cannot outlive its supervisor, and whose whole group ends with it.

A guard, a shell that sleeps in a read, leads the child's process group. When the pipe that it reads breaks, because the supervisor is
gone in whatever way, it kills the group. So the law holds for any command, whatever state that is in, and nothing waits busily. The
group is the guard's, which is not reaped before the end, so its number never means anything else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from .tether import VARIABLE

_GUARD = ["/bin/sh", "-c", "read told || kill -KILL 0"]
TAIL_BYTES = 16384
_GONE_SECONDS = 5.0  # what was killed has let go of its files by then, or hangs in the kernel


def _to_stderr(text: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        os.write(2, text)


class Child:
    """`command`, started now. Use it as a context manager: leaving it kills what is left of the group.

    What it says on stderr goes to `echo` as it comes, and its end is kept in `tail`.
    Raises OSError where the command cannot be started.
    """

    def __init__(self, command: Sequence[str], *, echo: Callable[[bytes], None] = _to_stderr):
        self.tail = b""
        self._echo, self._messages = echo, b""
        self._stderr, stderr = os.pipe()
        self._line, line = socket.socketpair()
        self._guard = subprocess.Popen(_GUARD, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                process_group=self._guard.pid,
                pass_fds=[line.fileno()],
                env={**os.environ, VARIABLE: str(line.fileno())},
            )
        except BaseException:
            self._end()
            raise
        finally:
            os.close(stderr)
            line.close()
        os.set_blocking(self._stderr, False)
        self._line.setblocking(False)

    @property
    def group(self) -> int:
        """The process group of all that belongs to it."""
        return self._guard.pid

    def exit_code(self) -> int | None:
        """None while it runs; minus the signal where one killed it."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Pass on a signal, to the command alone: what it started itself is its own business."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)

    def attend(self, seconds: float | None, wake: int | None = None) -> list[str]:
        """Sleep until it says something, `wake` is readable, or the time is over; the messages of its tether, oldest first."""
        readers = [reader for reader in (self._stderr, self._line.fileno(), wake) if reader is not None and reader >= 0]
        ready, _, _ = select.select(readers, [], [], seconds)
        if self._stderr in ready:
            self._read_stderr()
        if self._line.fileno() not in ready:
            return []
        with contextlib.suppress(BlockingIOError, ConnectionError):
            text = self._line.recv(65536)
            if not text:  # it has closed its end, as it ends
                self._line.close()
            *lines, self._messages = (self._messages + text).split(b"\n")
            return [line.decode(errors="replace") for line in lines]
        return []

    def last_words(self) -> str:
        """The last line that it said on stderr, cut to 300 characters."""
        lines = self.tail.decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def drain(self) -> None:
        """Take what it has said on stderr so far."""
        while self._stderr >= 0 and self._read_stderr():
            pass

    def _read_stderr(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            if text := os.read(self._stderr, 65536):
                self._echo(text)
                self.tail = (self.tail + text)[-TAIL_BYTES:]
                return True
            os.close(self._stderr)
            self._stderr = -1
        return False

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._process.wait()
        self.drain()
        self._end()

    def _end(self) -> None:
        self.kill()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:  # grandchildren: they are init's to reap, so their end is not told
                os.killpg(self.group, 0)
                time.sleep(0.01)
        self._line.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
