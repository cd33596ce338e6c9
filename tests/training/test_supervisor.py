"""The supervisor over small commands of every kind: what it does about their ends, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.child import Child
from wsejax.training.outcome import Fault, Treatment
from wsejax.training.summary import Ended, Summary, read_summary
from wsejax.training.supervisor import Policy, Tally, decide, supervise

ROOT = Path(__file__).parents[2]
FAST = Policy(max_restarts=2, backoff_seconds=0.0, hang_seconds=20.0, compile_seconds=20.0)
SAY = "import os\ndef say(*words):\n    os.write(int(os.environ['WSEJAX_SUPERVISOR_FD']), (' '.join(map(str, words)) + '\\n').encode())\n"


def python(source: str) -> list[str]:
    """A command that starts fast; `say` speaks through the tether."""
    return [sys.executable, "-I", "-S", "-c", SAY + source]


def shell(source: str) -> list[str]:
    return ["/bin/sh", "-c", source]


def run(tmp_path, command, policy=FAST, checkpoint=lambda: None, **more) -> tuple[Fault, Summary]:
    summary = Summary(tmp_path / "summary.json", print)
    return supervise(command, policy, summary=summary, checkpoint=checkpoint, **more), summary


def gone(group: int, within_seconds: float = 10.0) -> bool:
    """Whether no process of the group is alive (what is dead and not yet reaped does not count)."""
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        states = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout.split("\n")
        if not [line for line in states if line.split()[:1] == [str(group)] and "Z" not in line]:
            return True
        time.sleep(0.02)
    return False


def assert_gone(group: int) -> None:
    ended = gone(group)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)  # a failure must leave nothing behind either
    assert ended, "something outlived its supervisor"


# -- what is done about an end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "fault", "starts"),
    [
        ("exit 0", Fault.COMPLETE, 1),
        ("exit 2", Fault.BAD_INPUT, 1),
        ("exit 3", Fault.COMPILE_ERROR, 1),
        ("exit 4", Fault.FAILED_ASSERTION, 1),
        ("exit 130", Fault.STOPPED, 1),
        ("kill -TERM $$", Fault.KILLED, 3),
        ("exit 1", Fault.UNKNOWN, 3),
        ("exit 6", Fault.NAN_LOSS, 2),  # at the same step again
        ("exit 7", Fault.OUT_OF_MEMORY, 3),
        ("exit 8", Fault.DISK_FULL, 3),
        ("exit 75", Fault.LOST_PEER, 3),
        ("kill -KILL $$", Fault.KILLED, 3),
        ("kill -SEGV $$", Fault.CRASHED, 3),
        ("echo RESOURCE_EXHAUSTED: Out of memory >&2; kill -ABRT $$", Fault.OUT_OF_MEMORY, 3),
        ("echo AssertionError: 3 >&2; exit 1", Fault.FAILED_ASSERTION, 1),
        ("yes noise | head -n 50000 >&2; echo the JAX distributed service failed >&2; kill -ABRT $$", Fault.LOST_PEER, 3),
    ],
)  # fmt: skip
def test_each_kind_of_end(tmp_path, capfd, source, fault, starts):
    ended, summary = run(tmp_path, shell(source))
    assert (ended, len(summary.starts)) == (fault, starts)
    assert {start.fault for start in summary.starts} == {str(fault)}
    assert summary.starts[-1].action == "end"
    if "echo" in source:
        assert (said := summary.starts[0].said) and said in capfd.readouterr().err, "what a child says on stderr is passed on"


def test_a_command_that_is_not_there_is_an_error_and_leaves_no_guard(tmp_path):
    before = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout.count("read told")
    with pytest.raises(FileNotFoundError):
        run(tmp_path, ["/nothing/here"])
    assert subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout.count("read told") <= before


FAULTS = st.sampled_from([fault for fault in Fault if fault.treatment is Treatment.RESTART])
ENDS = st.lists(st.builds(Ended, FAULTS, st.integers(0, 9), st.none() | st.integers(0, 9)), max_size=30)


@given(ENDS, st.integers(0, 4))
def test_only_failures_without_progress_count(ends, most):
    """Counted anew here: the length of the tail of ends since the newest checkpoint last grew."""
    tally, policy = Tally(), Policy(max_restarts=most)
    for index, ended in enumerate(ends):
        decision, tally = decide(policy, tally, ended)
        best, without = -1, 0
        for each in ends[: index + 1]:
            step = -1 if each.checkpoint is None else each.checkpoint
            without = 0 if step > best else without + 1
            best = max(best, step)
        assert tally.failures == without
        assert (decision.delay_seconds is not None) == (without <= most)
        if decision.delay_seconds is None:
            break


@given(st.integers(0, 2000), st.floats(0, 100), st.floats(0, 100))
def test_the_wait_doubles_and_is_bounded(failures, first, limit):
    policy = Policy(max_restarts=1, backoff_seconds=first, backoff_limit_seconds=limit)
    assert 0 <= policy.delay_seconds(failures) <= limit
    assert policy.delay_seconds(0) == policy.delay_seconds(1) == min(first, limit)
    assert policy.delay_seconds(failures + 1) >= policy.delay_seconds(failures)
    assert Policy(max_restarts=1, backoff_seconds=0.5).delay_seconds(4) == 4.0


def test_a_loss_that_is_no_number_is_forgiven_once_a_step():
    policy, tally = Policy(max_restarts=9), Tally()
    for step, again in ((5, True), (9, True), (9, False)):
        decision, tally = decide(policy, tally, Ended(Fault.NAN_LOSS, step, step - 1))
        assert (decision.delay_seconds is not None) == again
    decision, _ = decide(policy, tally, Ended(Fault.NAN_LOSS, 5, 12))
    assert decision.delay_seconds is None and "step 5" in decision.reason


def test_goes_on_while_there_is_progress_and_changes_what_the_hook_changes(tmp_path):
    """Five kills, each after a newer checkpoint, with a limit of none; the hook counts the flags up."""
    saved, seen = [], []

    def mend(ended, command):
        seen.append((ended.last_step, ended.checkpoint))
        return [*command[:-1], str(int(command[-1]) + 1)]

    def checkpoint():
        saved.append(len(saved))
        return saved[-1]

    source = "import sys\nn = int(sys.argv[1])\nsay('start', n)\nsay('step', n + 1)\nos.kill(os.getpid(), 9) if n < 5 else None"
    policy = Policy(max_restarts=0, backoff_seconds=0.0)
    fault, summary = run(tmp_path, [*python(source), "0"], policy, checkpoint, mend=mend)
    assert fault is Fault.COMPLETE and seen == [(n + 1, n + 1) for n in range(5)]
    assert [(start.from_step, start.last_step) for start in summary.starts] == [(n, n + 1) for n in range(6)]
    body = read_summary(tmp_path / "summary.json")
    assert body["outcome"] == "complete" and body["totals"]["faults"] == {"killed": 5}
    assert body["totals"]["steps_done"] == body["totals"]["last_step"] == 6


def test_where_nothing_can_be_changed_it_ends(tmp_path):
    fault, summary = run(tmp_path, shell("exit 5"), mend=lambda ended, command: None)
    assert fault is Fault.LOST_WAFER and len(summary.starts) == 1 and "nothing could be changed" in summary.starts[0].reason


# -- hanging -----------------------------------------------------------------------------------------------------------


def test_hung_after_a_step_it_is_killed_with_all_that_it_started(tmp_path):
    source = f"""
import subprocess, time
subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "group")!r}, "w").write(str(os.getpgid(0)))
say("start", 3)
say("step", 4)
time.sleep(60)
"""
    policy = Policy(max_restarts=0, hang_seconds=0.3, compile_seconds=30.0)
    begin = time.monotonic()
    fault, summary = run(tmp_path, python(source), policy)
    assert fault is Fault.HUNG and time.monotonic() - begin < 20
    assert (summary.starts[0].from_step, summary.starts[0].last_step, summary.starts[0].exit_code) == (3, 4, -signal.SIGKILL)
    assert gone(int((tmp_path / "group").read_text()))


def test_compiling_has_its_own_deadline(tmp_path):
    patient, hasty = (Policy(max_restarts=0, hang_seconds=0.1, compile_seconds=seconds) for seconds in (30.0, 0.4))
    quiet = "import time\nsay('start', 0)\ntime.sleep(0.7)\n"
    assert run(tmp_path, python(quiet), patient)[0] is Fault.COMPLETE
    assert run(tmp_path, python("say('step', 1)\nsay('busy')\n" + quiet), patient)[0] is Fault.COMPLETE
    assert run(tmp_path, python(quiet), hasty)[0] is Fault.HUNG


def test_steps_keep_it_alive(tmp_path):
    source = "import time\nfor step in range(1, 9):\n    say('step', step)\n    time.sleep(0.1)"
    assert run(tmp_path, python(source), Policy(max_restarts=0, hang_seconds=0.6))[0] is Fault.COMPLETE


# -- stopping ----------------------------------------------------------------------------------------------------------


def press(number: int, path: Path, times: int = 1) -> threading.Thread:
    """Send this process a signal, so many times, once `path` is there."""

    def do():
        while not path.exists():
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    thread = threading.Thread(target=do)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_the_child_ends_in_its_own_way(tmp_path, number):
    before = signal.getsignal(number)
    source = f"""
import signal, sys, time
def end(*_):
    open({str(tmp_path / "ended")!r}, 'w').close()
    sys.exit(130)
signal.signal({int(number)}, end)
open({str(tmp_path / "ready")!r}, 'w').close()
time.sleep(60)
"""
    thread = press(number, tmp_path / "ready")
    fault, summary = run(tmp_path, python(source))
    thread.join()
    assert fault is Fault.STOPPED and (tmp_path / "ended").exists() and summary.starts[0].exit_code == 130
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("times", "grace_seconds"), [(1, 0.3), (3, 60.0)], ids=["grace is over", "three times"])
def test_who_does_not_stop_is_killed(tmp_path, times, grace_seconds):
    source = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "ready")!r}, 'w').close()
time.sleep(60)
"""
    thread = press(signal.SIGTERM, tmp_path / "ready", times)
    fault, summary = run(tmp_path, python(source), Policy(max_restarts=5, grace_seconds=grace_seconds))
    thread.join()
    assert fault is Fault.STOPPED and len(summary.starts) == 1 and summary.starts[0].exit_code == -signal.SIGKILL


def test_stopped_between_two_starts(tmp_path):
    thread = press(signal.SIGINT, tmp_path / "ready")
    begin = time.monotonic()
    policy = Policy(max_restarts=5, backoff_seconds=50.0)
    fault, summary = run(tmp_path, shell(f"touch {tmp_path / 'ready'}; kill -KILL $$"), policy)
    thread.join()
    assert fault is Fault.STOPPED and len(summary.starts) <= 2 and time.monotonic() - begin < 30


# -- no orphans --------------------------------------------------------------------------------------------------------


def grown_up(path: Path) -> int:
    """The number in a file that another process writes."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.02)
    raise TimeoutError(path)


def test_the_supervisor_killed_takes_its_child_and_grandchild_along(tmp_path):
    """The child is a shell that ignores every polite signal and knows nothing of any tether."""
    child = f"trap '' INT TERM HUP; sleep 600 & echo $(ps -o pgid= -p $$) > {tmp_path / 'group'}; wait; sleep 600"
    source = f"""
from pathlib import Path
from wsejax.training.supervisor import Policy, supervise
from wsejax.training.summary import Summary
summary = Summary(Path({str(tmp_path)!r}) / "summary.json", print)
supervise(["/bin/sh", "-c", {child!r}], Policy(3), summary=summary, checkpoint=lambda: None)
"""
    with subprocess.Popen([sys.executable, "-c", source], cwd=ROOT) as supervisor:
        group = grown_up(tmp_path / "group")
        assert not gone(group, 0.2)
        supervisor.kill()
    assert_gone(group)


def test_a_tethered_child_goes_by_itself_when_the_guard_cannot_help(tmp_path):
    """The guard is killed first; then the other end of the tether closes."""
    source = f"""
import time, os, subprocess
from wsejax.training.tether import tether
line = tether()
assert tether() is line and "WSEJAX_SUPERVISOR_FD" not in os.environ
subprocess.Popen(["sleep", "600"])
line.start(7)
line.step(8)
open({str(tmp_path / "ready")!r}, "w").write("1\\n")
time.sleep(600)
"""
    holder = f"""
import time
from wsejax.training.child import Child
child = Child([{sys.executable!r}, "-c", {source!r}])
open({str(tmp_path / "group")!r}, "w").write(f"{{child.group}}\\n")
messages = []
while len(messages) < 2:
    messages += child.attend(None)
open({str(tmp_path / "said")!r}, "w").write(repr(messages))
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], cwd=ROOT) as process:
        group = grown_up(tmp_path / "group")
        grown_up(tmp_path / "ready")
        os.kill(group, signal.SIGKILL)  # the guard leads the group
        assert not gone(group, 0.3)
        process.kill()
    assert_gone(group)
    assert (tmp_path / "said").read_text() == "['start 7', 'step 8']"


def test_leaving_the_child_ends_its_group_and_keeps_its_last_words():
    with Child(shell("echo first >&2; echo ' last words ' >&2; sleep 600 & sleep 600"), echo=lambda text: None) as child:
        until = time.monotonic() + 10
        while b"last" not in child.tail and time.monotonic() < until:
            child.attend(1.0)
        group = child.group
    assert gone(group, 1.0) and child.last_words() == "last words" and child.exit_code() == -signal.SIGKILL


# -- the summary -------------------------------------------------------------------------------------------------------


def test_who_never_held_the_folder_leaves_no_trace_and_touches_no_summary(tmp_path):
    run(tmp_path, shell("exit 2"))
    _, summary = run(tmp_path, python("say('join', 4)\nsay('step', 5)"))  # another process of the run holds it
    assert list(tmp_path.iterdir()) == [] and summary.starts[0].last_step == 5
    run(tmp_path, python("say('start', 0)"))
    before = (tmp_path / "summary.json").read_text()
    run(tmp_path, shell("exit 2"))
    assert (tmp_path / "summary.json").read_text() == before


def test_a_summary_goes_on_over_supervisors_also_killed_ones(tmp_path):
    path = tmp_path / "summary.json"
    first = Summary(path, print)
    first.holds(first.begin(), 0)  # and this supervisor is killed
    assert read_summary(path)["outcome"] == "running"
    assert run(tmp_path, python("say('start', 4)\nsay('step', 6)"))[0] is Fault.COMPLETE
    body = read_summary(path)
    assert [start["number"] for start in body["starts"]] == [1, 2] and body["starts"][0]["fault"] == "supervisor lost"
    assert body["outcome"] == "complete" and body["totals"]["starts"] == 2 and body["totals"]["steps_done"] == 2
    assert json.loads(path.read_text()) == body


def test_what_is_no_summary_is_refused_and_a_full_disk_is_said(tmp_path):
    path = tmp_path / "summary.json"
    for text in ("{", "[]", '{"format": 1, "starts": [{"what": 1}]}', '{"format": 9, "starts": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no summary of a run"):
            Summary(path, print)
    path.unlink()
    said = []
    summary = Summary(tmp_path / "not there" / "summary.json", said.append)
    assert supervise(python("say('start', 0)"), FAST, summary=summary, checkpoint=lambda: None) is Fault.COMPLETE
    assert len(said) == 3 and all("could not be written" in line for line in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"hang_seconds": 0.0}, "hang_seconds=0.0 must be above 0"),
        ({"compile_seconds": float("nan")}, "compile_seconds=nan"),
        ({"backoff_seconds": -1.0}, "backoff_seconds=-1.0"),
    ],
)
def test_what_no_supervisor_can_keep_to(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, shell("exit 0"), Policy(**{"max_restarts": 1} | change))
