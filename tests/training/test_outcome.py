"""Exit codes, and how an end is told from real errors and from the end of a process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import jax.numpy as jnp
import pytest

from wsejax.compiler import UnsupportedOpError
from wsejax.training import CheckpointMismatchError, LostWaferError, RunDirectoryError
from wsejax.training.outcome import Fault, Treatment, fault_of_error, fault_of_exit, out_of_memory_kills, telling_part


def test_exit_codes_are_distinct_and_leave_alone_what_others_use():
    assert (Fault.COMPLETE, Fault.UNKNOWN, Fault.BAD_INPUT, Fault.STOPPED) == (0, 1, 2, 130)
    own = set(Fault) - {Fault.STOPPED, Fault.LOST_PEER}
    assert all(0 <= fault < 64 for fault in own), "64 to 78 are sysexits.h's, 126 and up the shell's"
    assert Fault.LOST_PEER == os.EX_TEMPFAIL
    for fault in Fault:
        assert fault_of_exit(int(fault)) is fault


def test_what_is_fatal_and_what_is_not():
    fatal = {fault for fault in Fault if fault.treatment is Treatment.FATAL}
    assert fatal == {Fault.BAD_INPUT, Fault.COMPILE_ERROR, Fault.FAILED_ASSERTION, Fault.STOPPED}
    restarted = {Fault.UNKNOWN, Fault.OUT_OF_MEMORY, Fault.DISK_FULL, Fault.LOST_PEER, Fault.HUNG, Fault.KILLED, Fault.CRASHED}
    assert {fault for fault in Fault if fault.treatment is Treatment.RESTART} == restarted
    assert Fault.NAN_LOSS.treatment is Treatment.RESTART_ONCE and Fault.LOST_WAFER.treatment is Treatment.RESTART_CHANGED


@pytest.mark.parametrize(
    ("code", "text", "fault"),
    [
        (-signal.SIGKILL, "", Fault.KILLED),
        (137, "", Fault.KILLED),
        (-signal.SIGTERM, "", Fault.KILLED),
        (-signal.SIGINT, "", Fault.STOPPED),
        (143, "", Fault.KILLED),
        (-signal.SIGSEGV, "", Fault.CRASHED),
        (139, "", Fault.CRASHED),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", Fault.OUT_OF_MEMORY),
        (-signal.SIGABRT, "Terminating process because the JAX distributed service detected fatal errors", Fault.LOST_PEER),
        (-signal.SIGABRT, "Check failed: something of the library", Fault.CRASHED),
        (1, "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory", Fault.OUT_OF_MEMORY),
        (1, "ValueError: RESOURCE_EXHAUSTED: Failed to write: No space left on device", Fault.DISK_FULL),
        (1, "AssertionError: 3 != 4", Fault.FAILED_ASSERTION),
        (1, "ZeroDivisionError: division by zero", Fault.UNKNOWN),
        (77, "", Fault.UNKNOWN),
        (2, "RESOURCE_EXHAUSTED", Fault.BAD_INPUT),  # where the code tells, the text has no say
    ],
)
def test_the_end_of_a_process(code, text, fault):
    assert fault_of_exit(code, text) is fault


def test_a_kill_while_the_kernel_killed_for_memory_is_laid_to_that(tmp_path):
    assert fault_of_exit(-signal.SIGKILL, out_of_memory_kills=1) is Fault.OUT_OF_MEMORY
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\n")
    assert out_of_memory_kills(tmp_path / "memory.events") == 3
    assert out_of_memory_kills(tmp_path / "nothing") == 0


def raised(do) -> BaseException:
    with pytest.raises(BaseException) as info:
        do()
    return info.value


def from_a(cause: BaseException) -> BaseException:
    def do():
        raise RuntimeError("in the background") from cause

    return raised(do)


def test_errors_as_they_really_come():
    if Path("/dev/full").exists():

        def write():
            with open("/dev/full", "w") as file:
                file.write("x")

        assert fault_of_error(raised(write)) is Fault.DISK_FULL
    assert fault_of_error(raised(lambda: jnp.zeros(2**52).block_until_ready())) is Fault.OUT_OF_MEMORY
    assert fault_of_error(raised(Path("/nothing/here").read_text)) is Fault.BAD_INPUT
    assert fault_of_error(raised(lambda: 1 / 0)) is Fault.UNKNOWN


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MemoryError(), Fault.OUT_OF_MEMORY),
        (AssertionError("no"), Fault.FAILED_ASSERTION),
        (FloatingPointError("the loss of step 3 is nan"), Fault.NAN_LOSS),
        (UnsupportedOpError("no rule for erf_inv"), Fault.COMPILE_ERROR),
        (LostWaferError("nothing left"), Fault.LOST_WAFER),
        (CheckpointMismatchError("another model"), Fault.BAD_INPUT),
        (RunDirectoryError("in use"), Fault.BAD_INPUT),
        (KeyboardInterrupt(), Fault.STOPPED),
        (ConnectionResetError(), Fault.LOST_PEER),
        (ValueError("INTERNAL: Gloo: Connection closed by peer [127.0.0.1]:1234"), Fault.LOST_PEER),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. 1/2 tasks reached it"), Fault.LOST_PEER),
        (ValueError("OUT_OF_RANGE: Failed to write 12 bytes: File too large"), Fault.DISK_FULL),
        (ValueError("shapes differ"), Fault.UNKNOWN),
        (from_a(MemoryError()), Fault.OUT_OF_MEMORY),
        (from_a(ValueError("ENOSPC")), Fault.DISK_FULL),
        (from_a(ValueError("no more")), Fault.UNKNOWN),
    ],
    ids=repr,
)
def test_errors_by_class_and_by_words(error, fault):
    assert fault_of_error(error) is fault


def test_a_long_message_is_cut_to_what_tells():
    long = "a" * 500 + " No space left on device " + "b" * 500
    assert telling_part(long, Fault.DISK_FULL, around=3) == "...aa No space left on device bb..."
    assert telling_part("short", Fault.DISK_FULL) == "short"
    assert telling_part(long, Fault.LOST_PEER, around=10) == "a" * 20 + "..."
