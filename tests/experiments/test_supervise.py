"""Training under supervision: its flags, its exit codes, full disks, and that no chaos changes a bit."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments import train
from experiments.settings import Settings
from experiments.supervise import Mender, Supervision, newest_checkpoint, put_aside_what_gave_nan, summary_table, without_supervision
from experiments.train import main
from tests.experiments.test_train import (  # noqa: F401  (fixtures for every test here)
    PLAIN,
    ROOT,
    SMALL,
    assert_same_run,
    command,
    compile_once,
    flags_of,
    promotion_as_users_have_it,
    text,
    whole,
)
from wsejax.compiler import UnsupportedOpError
from wsejax.training import read_metrics
from wsejax.training.outcome import Fault
from wsejax.training.summary import Ended, Start, read_summary

TINY = flags_of(
    "--model.layers 1 --model.heads 1 --model.width 8 --model.context 8 --batch 2 --eval-every 500 --eval-batches 1 "
    "--checkpoint-every 10 --sample-bytes 4 --optimiser.warmup-steps 2 --wafer.off"
)


# -- flags -------------------------------------------------------------------------------------------------------------

NAMES = [field.name for field in dataclasses.fields(Supervision)]
SUPERVISING = st.tuples(st.sampled_from(NAMES), st.booleans(), st.booleans(), st.integers(0, 99)).map(
    lambda drawn: (
        [f"--{drawn[0] if drawn[1] else drawn[0].replace('_', '-')}", str(drawn[3])]
        if drawn[2]
        else [f"--{drawn[0].replace('_', '-')}={drawn[3]}"]
    )
)
OTHERS = st.sampled_from([["--steps", "7"], ["--data", "a.txt", "b*.md"], ["--wafer.off"], ["--out=x"], ["--kill-pe", "4", "3", "5"]])


@given(st.lists(st.tuples(st.booleans(), SUPERVISING, OTHERS), max_size=6))
def test_the_child_gets_all_flags_but_those_of_the_supervisor(drawn):
    arguments = [word for supervising, one, other in drawn for word in (one if supervising else other)]
    assert without_supervision(arguments) == [word for supervising, _, other in drawn if not supervising for word in other]


def test_supervision_belongs_to_no_run():
    assert Settings().identity() == Settings(supervision=Supervision(max_restarts=3, hang_seconds=5.0)).identity()
    assert not any(name in json.dumps(Settings().identity()) for name in NAMES)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max-restarts -1", "--max-restarts -1: give 0 or more"),
        ("--max-restarts 3 --hang-seconds 0", "--hang-seconds 0.0 must be above 0"),
        ("--max-restarts 3 --min-systems 2", "--min-systems 2: this run has 1"),
        ("--min-systems 0", "--min-systems 0: this run has 1"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(text, tmp_path, capfd, flags, words):  # noqa: F811
    assert main([*SMALL, *PLAIN, *text, "--out", str(tmp_path / "run"), *flags.split()]) == Fault.BAD_INPUT
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err
    assert list(tmp_path.iterdir()) == []


def test_fewer_systems_after_a_lost_wafer_and_no_fewer_than_asked(tmp_path):
    said = []
    mender = Mender(tmp_path, said.append, systems=4, min_systems=3, groups=2)
    lost, other = Ended(Fault.LOST_WAFER, 5, 5), Ended(Fault.KILLED, 5, 5)
    (tmp_path / "faults.json").write_text("[]")
    assert mender(other, ["train"]) == ["train"]
    fewer = mender(lost, ["train"])
    assert fewer == ["train", *["--cluster.systems", "3", "--cluster.instead-of", "4", "--cluster.groups", "1"]]
    assert not (tmp_path / "faults.json").exists(), "what killed the wafer is not of those that are left"
    assert mender(lost, fewer) is None and said == ["going on with 3 of 4 systems"]
    assert Mender(tmp_path, said.append, systems=3)(lost, ["train"]) is None, "nobody asked for it"


@pytest.mark.slow
def test_a_lost_wafer_leaves_the_others_with_the_same_batches_and_losses(text, tmp_path):  # noqa: F811
    grid = "--wafer.rows 8 --wafer.cols 8 --wafer.dead-pe-fraction 0 --wafer.dead-link-fraction 0 --wafer.tiles 4 4 --wafer.devices 1 1"
    small = [word for word in (*SMALL, *text, *grid.split()) if word != "--wafer.off"]
    every = [part for row in range(5) for col in range(8) for part in ("--kill-pe", "2", str(row), str(col))]  # no 4 x 4 tiles are left
    losses = {}
    for name, flags in {
        "whole": [],
        "fewer": [*every, *["--max-restarts", "2", "--min-systems", "2", "--backoff-seconds", "0.01"]],
    }.items():
        out = tmp_path / name
        run = subprocess.run(
            [sys.executable, "-m", "experiments.train", *small, "--cluster.systems", "3", "--batch", "4", "--out", str(out), *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        losses[name] = [row["loss"] for row in read_metrics(out / "metrics.jsonl")]
    summary = read_summary(tmp_path / "fewer" / "summary.json")
    assert summary is not None
    assert [start["fault"] for start in summary["starts"]] == [str(Fault.LOST_WAFER), str(Fault.COMPLETE)]
    assert losses["fewer"][:2] == losses["whole"][:2] and losses["fewer"] != losses["whole"], "then sums go otherwise"
    assert max(abs(a - b) for a, b in zip(losses["fewer"], losses["whole"], strict=True)) <= 1e-5


def test_the_checkpoint_that_gave_nan_is_put_aside_and_no_other(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for name in ("5", "10", "15.orbax-checkpoint-tmp", "corrupt-20"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == 10
    assert put_aside_what_gave_nan(tmp_path, 12) is None and put_aside_what_gave_nan(tmp_path, None) is None
    assert newest_checkpoint(tmp_path) == 10
    assert put_aside_what_gave_nan(tmp_path, 10) == "nan-10" and newest_checkpoint(tmp_path) == 5
    (tmp_path / "checkpoints" / "10").mkdir()
    assert put_aside_what_gave_nan(tmp_path, 10) == "nan-10-2"


def test_the_table_has_a_row_for_each_start():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table([Start(1, "now", 0, 31, 30, 4.5, -9, "killed", "killed", "restart in 1 s", ""), Start(2, "now")]))
    lines = console.export_text().splitlines()
    assert any(line.split() == ["1", "0", "31", "4.5", "killed", "restart", "in", "1", "s"] for line in lines)
    assert any(line.split() == ["2", "-", "-", "-", "-", "-"] for line in lines)


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (AssertionError("3 != 4"), Fault.FAILED_ASSERTION),
        (UnsupportedOpError("no rule for erf_inv"), Fault.COMPILE_ERROR),
        (MemoryError("none left"), Fault.OUT_OF_MEMORY),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), Fault.OUT_OF_MEMORY),
        (OSError(5, "Input/output error"), Fault.UNKNOWN),
        (KeyboardInterrupt(), Fault.STOPPED),
    ],
    ids=repr,
)
def test_the_run_tells_by_its_exit_code_what_it_was(text, tmp_path, monkeypatch, capsys, error, fault):  # noqa: F811
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(train, "on_machine", fail)
    assert main([*SMALL, *PLAIN, *text, "--out", str(tmp_path / "run")]) == fault
    said = capsys.readouterr().err
    assert str(error) in said and ("Traceback" in said) == (fault is Fault.FAILED_ASSERTION)


def test_what_nobody_knows_is_raised(text, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_, **__):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(train, "on_machine", fail)
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        main([*SMALL, *PLAIN, *text, "--out", str(tmp_path / "run")])


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(compile_once) -> dict[str, str]:  # noqa: F811
    """The environment for children: programs compiled once."""
    folder = jax.config.jax_compilation_cache_dir
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}


FILLS = """
import resource, sys, time
from pathlib import Path
from experiments import train
from wsejax.training import trainer
add, saved = trainer.Trainer.add, Path(sys.argv[1]) / "checkpoints" / "3"
def add_and_fill(self, step, metrics):
    add(self, step, metrics)
    if step == 4:
        while not saved.is_dir():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
trainer.Trainer.add = add_and_fill
sys.exit(train.main(sys.argv[2:]))
"""


def test_no_room_for_a_checkpoint_ends_the_run_and_leaves_the_one_before(whole, text, tmp_path, cached, capsys):  # noqa: F811
    """A real EFBIG from the kernel, by a limit on the size of files from step 4 on, which lets metrics through."""
    out = tmp_path / "run"
    flags = [*SMALL, *PLAIN, *text, "--out", str(out)]
    command = [sys.executable, "-c", FILLS, str(out), *flags]
    full = subprocess.run(command, cwd=ROOT, env=cached, capture_output=True, text=True, timeout=200)
    assert full.returncode == Fault.DISK_FULL, full.stderr
    assert full.stderr.count("error: disk full: ") == 1 and "File too large" in full.stderr
    assert "goes on from the newest checkpoint" in full.stderr
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]
    assert main(flags) == 0
    assert "going on from the checkpoint of step 3" in capsys.readouterr().out
    assert_same_run(whole, out)


def supervised(out: Path, *flags: str) -> list[str]:
    return [*command(out, *flags), "--max-restarts", "2", "--backoff-seconds", "0.1"]


@pytest.mark.slow
def test_a_file_system_that_is_really_full(whole, text, tmp_path, cached):  # noqa: F811
    """A small tmpfs of its own, where the system lets one be mounted: all restarts are used up, and with more room it goes on."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    run = " ".join(supervised(disk / "run", *SMALL, *PLAIN, *text, "--keep", "9", "--hang-seconds", "60"))
    script = f"""mount -t tmpfs -o size=350k tmpfs {disk}
{run} 2> {tmp_path}/said; echo $? > {tmp_path}/code
ls {disk}/run/checkpoints > {tmp_path}/kept
mount -o remount,size=50m {disk}
{run} > {tmp_path}/out && cp -r {disk}/run {tmp_path}/run"""
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, env=cached, check=True, capture_output=True, timeout=300)
    assert int((tmp_path / "code").read_text()) == Fault.DISK_FULL
    assert "No space left on device" in (tmp_path / "said").read_text()
    kept = [name for name in (tmp_path / "kept").read_text().split() if name.isdigit()]
    assert kept and f"going on from the checkpoint of step {max(map(int, kept))}" in (tmp_path / "out").read_text()
    assert_same_run(whole, tmp_path / "run")


# -- real children -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_hangs_is_killed_and_goes_on(whole, text, tmp_path, cached):  # noqa: F811
    """Hung for real: the training process is stopped by SIGSTOP behind a checkpoint."""
    out = tmp_path / "run"
    # a validation, in which the stop may fall, has as long as compiling
    flags = supervised(out, *SMALL, *PLAIN, *text, "--hang-seconds", "4", "--compile-seconds", "60")
    with subprocess.Popen(flags, cwd=ROOT, env=marked(cached, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as supervisor:
        wait_for(lambda: newest_checkpoint(out))
        os.kill(training(out) or 0, signal.SIGSTOP)
        assert supervisor.wait(timeout=200) == 0
    body = read_summary(out / "summary.json")
    assert body is not None and body["totals"]["faults"] == {"hung": 1} and body["starts"][1]["from_step"] >= 3
    assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "times", "fault"), [(7, 1, Fault.COMPLETE), (8, 1, Fault.COMPLETE), (8, 2, Fault.NAN_LOSS)])
def test_a_loss_that_is_no_number_by_chance_and_one_that_is_not(whole, text, tmp_path, cached, at, times, fault):  # noqa: F811
    """The loss of a step is spoilt so many times. Step 7 comes straight after the checkpoint of step 6, which is then not trusted."""
    out, marker = tmp_path / "run", tmp_path / "spoilt"
    spoilt = f"""
import sys
from pathlib import Path
from experiments import supervise, train
from wsejax.training import trainer
add, marker = trainer.Trainer.add, Path({str(marker)!r})
def spoil(self, step, metrics):
    done = len(marker.read_text()) if marker.exists() else 0
    if step == {at} and done < {times}:
        marker.write_text("x" * (done + 1))
        metrics = dict(metrics, loss=float("nan"))
    add(self, step, metrics)
trainer.Trainer.add = spoil
sys.exit(train.main())
"""
    wrapper = tmp_path / "python"  # as the supervisor's Python, that starts another program than is asked for
    wrapper.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path / "spoilt.py"} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "spoilt.py").write_text(spoilt)
    start = f"import sys; sys.executable = {str(wrapper)!r}; from experiments.train import main; sys.exit(main())"
    flags = supervised(out, *SMALL, *PLAIN, *text)[3:]
    env = {**cached, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", start, *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == fault, done.stderr
    body = read_summary(out / "summary.json")
    assert body is not None and body["totals"]["faults"] == {"nan loss": times}
    assert body["starts"][1]["from_step"] == (3 if at == 7 else 6)
    if fault is Fault.COMPLETE:
        assert (out / "checkpoints" / "nan-6").is_dir() == (at == 7)
        shutil.rmtree(out / "checkpoints" / "nan-6", ignore_errors=True)
        assert_same_run(whole, out)
    else:
        assert newest_checkpoint(out) == 6 and "second time" in body["reason"]


# -- chaos -------------------------------------------------------------------------------------------------------------


def marked(environment: dict[str, str], out: Path) -> dict[str, str]:
    return {**environment, "CHAOS_OF": str(out)}


def alive(out: Path) -> dict[int, str]:
    """Process number -> command line, of every process with the run's mark in its environment."""
    found, mark = {}, f"CHAOS_OF={out}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
    return found


def training(out: Path) -> int | None:
    """The training process: it has no flags of the supervisor's, as what that has just forked still seems to have."""
    return next((pid for pid, line in alive(out).items() if "experiments.train" in line and "--max-restarts" not in line), None)


def wait_for(condition, seconds: float = 120.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.002)
    raise TimeoutError(condition)


def half_written(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("*.orbax-checkpoint-tmp")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_twenty_kills_change_nothing(text, tmp_path, cached, request):  # noqa: F811
    """Of the training process (early, between steps, while a checkpoint is written), of its whole group, and of the supervisor."""
    chance, out = random.Random(6), tmp_path / "run"
    flags = [*TINY, *text, "--steps", "1500"]
    subprocess.run(command(tmp_path / "whole", *flags), cwd=ROOT, env=cached, check=True, capture_output=True, timeout=300)
    kills = ["early"] * 3 + ["training"] * 4 + ["group"] * 4 + ["write"] * 5 + ["supervisor"] * 4
    chance.shuffle(kills)
    begin = [*command(out, *flags), "--max-restarts", "9", "--backoff-seconds", "0.2"]
    env, quiet = marked(cached, out), subprocess.DEVNULL

    def supervisor_started() -> subprocess.Popen:
        process = subprocess.Popen(begin, cwd=ROOT, env=env, stdout=quiet, stderr=quiet)
        request.addfinalizer(lambda: (process.kill(), process.wait()))  # a failure must leave nothing behind either
        return process

    supervisor, killed, in_write = supervisor_started(), None, 0

    def held(number: int) -> dict | None:
        """The start of that number, once it holds the folder."""
        body = read_summary(out / "summary.json")
        newest = body["starts"][-1] if body else {"number": 0}
        return newest if newest["number"] == number and newest["from_step"] is not None else None

    for number, kind in enumerate(kills, 1):  # each kill ends one start
        pid = wait_for(lambda: (found := training(out)) != killed and found)  # noqa: B023
        if kind == "early":
            time.sleep(chance.uniform(0.0, 1.5))
        else:
            target = wait_for(lambda: held(number))["from_step"] + chance.randint(1, 30)  # noqa: B023
            before = half_written(out)
            if kind == "write":
                wait_for(lambda: half_written(out) - before)  # noqa: B023
            else:
                wait_for(lambda: len(read_metrics(out / "metrics.jsonl")) >= target)  # noqa: B023
        assert supervisor.poll() is None, "killed on its way"
        if kind == "supervisor":
            supervisor.kill()
            supervisor.wait()
            wait_for(lambda: not alive(out), 10.0)
            supervisor, killed = supervisor_started(), None
        else:
            os.killpg(os.getpgid(pid), signal.SIGKILL) if kind == "group" else os.kill(pid, signal.SIGKILL)
            in_write += kind == "write" and bool(half_written(out))
            killed = pid
    assert supervisor.wait(timeout=300) == 0
    wait_for(lambda: not alive(out), 10.0)
    body = read_summary(out / "summary.json")
    assert body is not None and body["outcome"] == "complete" and body["totals"]["starts"] == len(kills) + 1
    assert Counter(body["totals"]["faults"]) == Counter({"killed": 16, "supervisor lost": 4})
    assert in_write >= 3, "most of these kills came in the middle of a save"
    assert not list((out / "checkpoints").glob("corrupt*")), "no unreadable checkpoint, ever"
    assert_same_run(tmp_path / "whole", out)
