"""Running a command until it is complete: restarts after faults of the system, from where its own checkpoints let it go on.

The command's process says through its `tether` how far it is, and by its exit code how it ended (`outcome`). What is decided about an
end is a pure function, `decide`.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType

from .child import Child
from .outcome import Fault, Treatment, fault_of_exit, out_of_memory_kills
from .summary import Ended, Summary

AT_ONCE = 3  # this many signals by hand mean: now
_KILL_SECONDS = 1.0  # then the group is killed once more: something may have been about to join it


@dataclass(frozen=True)
class Policy:
    """How patient a supervisor is.

    max_restarts: restarts in a row without progress (a newer checkpoint).
    hang_seconds: longest time between two steps; compile_seconds: until the first, and of what says that it takes as long.
    grace_seconds: from being asked to stop to being killed.
    backoff_seconds, backoff_limit_seconds: wait before the first restart; twice as long for each failure in a row, and no longer than
      the limit.
    """

    max_restarts: int
    hang_seconds: float = 600.0
    compile_seconds: float = 3600.0
    grace_seconds: float = 120.0
    backoff_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0

    def check(self) -> None:
        """Raises ValueError for what no supervisor can keep to."""
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts}: give 0 or more")
        for name in ("hang_seconds", "compile_seconds", "grace_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("backoff_seconds", "backoff_limit_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be below 0")

    def delay_seconds(self, failures: int) -> float:
        """Wait before the restart after so many failures without progress; 0 (there was progress) waits as 1 does."""
        doublings = min(max(failures - 1, 0), 60)  # beyond that a float has no room, and the limit holds anyway
        return min(self.backoff_seconds * 2.0**doublings, self.backoff_limit_seconds)


@dataclass(frozen=True)
class Tally:
    """What the starts so far count for: failures in a row without progress, the newest checkpoint ever, the steps after which a loss was
    no number."""

    failures: int = 0
    best: int | None = None
    nan_after: frozenset[int | None] = frozenset()


@dataclass(frozen=True)
class Decision:
    """What is done about an end: a restart after so many seconds, or none (None); the reason in words."""

    delay_seconds: float | None
    reason: str


def decide(policy: Policy, tally: Tally, ended: Ended) -> tuple[Decision, Tally]:
    """What to do about an end, and the tally after it."""
    progress = ended.checkpoint is not None and (tally.best is None or ended.checkpoint > tally.best)
    failures = 0 if progress else tally.failures + 1
    after = Tally(failures, ended.checkpoint if progress else tally.best, tally.nan_after)
    treatment = ended.fault.treatment
    if treatment is Treatment.DONE:
        return Decision(None, "complete"), tally
    if treatment is Treatment.FATAL:
        return Decision(None, f"{ended.fault}: the same again would end the same"), after
    if treatment is Treatment.RESTART_ONCE:
        if ended.last_step in tally.nan_after:
            return Decision(None, f"{ended.fault} for the second time after step {ended.last_step}: no chance fault"), after
        after = replace(after, nan_after=tally.nan_after | {ended.last_step})
    if failures > policy.max_restarts:
        return Decision(None, f"{ended.fault}: {policy.max_restarts} restarts in a row brought no newer checkpoint"), after
    seconds = policy.delay_seconds(failures)
    counted = "there was progress" if progress else f"failure {failures} of {policy.max_restarts} without progress"
    return Decision(seconds, f"{ended.fault}; {counted}"), after


@dataclass
class Signals:
    """While entered, Ctrl-C and SIGTERM are collected in `asked`, and `wake` is readable when one came or a child ended. Enter it on the
    main thread."""

    asked: list[int] = field(default_factory=list)

    def __enter__(self) -> Signals:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        handlers = {signal.SIGINT: self._ask, signal.SIGTERM: self._ask, signal.SIGCHLD: lambda *_: None}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)
        self._read.close()
        self._write.close()

    @property
    def wake(self) -> int:
        return self._read.fileno()

    def clear(self) -> None:
        """Forget that something came; `asked` stays. Look at what may have happened after this, not before."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until asked to stop. Returns whether that was asked."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            select.select([self._read], [], [], left)
            self.clear()
        return bool(self.asked)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked.append(number)


def watch(child: Child, policy: Policy, signals: Signals, begun: Callable[[int], None]) -> tuple[Ended, int]:
    """Stay with a child to its end: pass signals on, and kill it where it hangs. Returns the end, without the checkpoint, and the exit
    code.

    begun: told the step after which the run goes on, once this process holds its folder.
    """
    passed, hung, last_step, kills_before = 0, False, None, out_of_memory_kills()
    deadline = time.monotonic() + policy.compile_seconds
    while True:
        signals.clear()
        code = child.exit_code()
        for number in signals.asked[passed:]:
            passed += 1
            deadline = time.monotonic() + policy.grace_seconds
            child.kill() if passed >= AT_ONCE else child.send(number)
        messages = child.attend(0.0 if code is not None else max(0.0, deadline - time.monotonic()), signals.wake)
        for message in messages:
            name, _, step = message.partition(" ")
            if name in ("start", "join", "step") and step.isdigit():
                last_step = int(step)
            if name == "start":
                begun(last_step or 0)
            if not signals.asked:
                deadline = time.monotonic() + (policy.hang_seconds if name == "step" else policy.compile_seconds)
        if messages:
            continue
        if code is not None:
            break
        if time.monotonic() >= deadline:
            hung = not signals.asked
            child.kill()
            deadline = time.monotonic() + _KILL_SECONDS
    if hung:
        return Ended(Fault.HUNG, last_step), code
    if signals.asked and code != Fault.COMPLETE:
        return Ended(Fault.STOPPED, last_step), code
    child.drain()
    fault = fault_of_exit(code, child.tail.decode(errors="replace"), out_of_memory_kills=out_of_memory_kills() - kills_before)
    return Ended(fault, last_step), code


def supervise(
    command: Sequence[str],
    policy: Policy,
    *,
    summary: Summary,
    checkpoint: Callable[[], int | None],
    mend: Callable[[Ended, Sequence[str]], Sequence[str] | None] = lambda ended, command: command,
    say: Callable[[str], None] = lambda message: None,
) -> Fault:
    """Run `command` until it is complete, stopped by hand, or past help. Returns how it all ended. Call it on the main thread.

    Args:
      command: the program and its arguments.
      policy: see Policy.
      summary: written to at each start and end.
      checkpoint: the step of the newest checkpoint on disk.
      mend: called before a restart with the end and the command: the command to go on with, the same or another (fewer systems, a
        checkpoint put aside), or None where there is nothing to be done about this end.
      say: told what happens, one line each.

    Raises ValueError for a policy that cannot be kept to.
    """
    policy.check()
    tally = Tally(best=checkpoint())
    with Signals() as signals:
        while True:
            start = summary.begin()
            with Child(command) as child:
                ended, code = watch(child, policy, signals, partial(summary.holds, start))
            ended = replace(ended, checkpoint=checkpoint())
            decision, tally = decide(policy, tally, ended)
            if decision.delay_seconds is not None:
                mended = mend(ended, command)
                if mended is None:
                    decision = Decision(None, f"{ended.fault}: nothing could be changed about it")
                else:
                    command = mended
            action = "end" if decision.delay_seconds is None else f"restart in {decision.delay_seconds:g} s"
            summary.end(start, ended, code, child.last_words(), action, decision.reason)
            if decision.delay_seconds is None:
                summary.finish(str(ended.fault), decision.reason)
                return ended.fault
            say(f"start {start.number} ended {_place(ended.last_step)}: {decision.reason}; {action}")
            if signals.wait(decision.delay_seconds):
                summary.finish(str(Fault.STOPPED), "by hand, between two starts")
                return Fault.STOPPED


def _place(last_step: int | None) -> str:
    return "before it held its folder" if last_step is None else f"after step {last_step}"
