"""The training command in two real processes over gloo: the same bits as in one, and a clear end whatever happens to one of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from wsejax.training import read_metrics
from wsejax.training.distributed import EXIT_LOST_PEER

ROOT = Path(__file__).parents[2]
PACKAGES = ("wsejax", "models", "experiments")


def flags_of(line: str) -> list[str]:
    return line.split()


FLAGS = flags_of(
    "--model.layers 2 --model.heads 2 --model.width 16 --model.context 16 --batch 4 --steps 40 --eval-every 20 --eval-batches 2 "
    "--checkpoint-every 5 --sample-bytes 20 --optimiser.warmup-steps 2 --wafer.rows 10 --wafer.cols 10 --wafer.tiles 2 2 "
    "--wafer.dead-pe-fraction 0.05 --keep 20"
)
ROW, COLUMN = ["--wafer.devices", "1", "2"], ["--wafer.devices", "2", "1"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@dataclass
class Place:
    """Where runs of these tests take their text and keep what XLA compiled."""

    text: Path
    environment: dict[str, str] = field(repr=False)

    def command(self, out: Path, *flags: str) -> list[str]:
        return [sys.executable, "-m", "experiments.train", *FLAGS, "--data", str(self.text), "--out", str(out), *flags]

    def alone(self, out: Path, *flags: str) -> str:
        """A run in one process; what it printed."""
        run = subprocess.run(self.command(out, *flags), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def start(self, out: Path, process: int, port: int, *flags: str, cwd: Path = ROOT) -> subprocess.Popen:
        where = f"--distributed.coordinator localhost:{port} --distributed.processes 2 --distributed.process {process}".split()
        environment = self.environment | {"PYTHONPATH": str(cwd)}
        how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace", "start_new_session": True}
        times = ["--distributed.deadline-seconds", "60", "--distributed.join-seconds", "100"]
        return subprocess.Popen(self.command(out, *where, *times, *flags), cwd=cwd, env=environment, **how)

    @contextlib.contextmanager
    def both(self, out: Path, *flags: str, second: tuple[str, ...] = (), second_cwd: Path = ROOT) -> Iterator[list[subprocess.Popen]]:
        """Two processes, killed in the end whatever they do (JAX's runtime ignores SIGTERM)."""
        port = free_port()
        started = [self.start(out, 0, port, *flags), self.start(out, 1, port, *flags, *second, cwd=second_cwd)]
        try:
            yield started
        finally:
            for process in started:
                process.kill()
                process.communicate()

    def together(self, out: Path, *flags: str) -> list[str]:
        """A run in two processes; what each printed."""
        with self.both(out, *flags) as started:
            said = ends(started)
        assert [process.returncode for process in started] == [0, 0], said
        return [printed for printed, _ in said]


def ends(started: list[subprocess.Popen], timeout: float = 300) -> list[tuple[str, str]]:
    """What the processes printed, (stdout, stderr), once all have ended."""
    end = time.monotonic() + timeout
    return [process.communicate(timeout=max(1.0, end - time.monotonic())) for process in started]


def rows_written(out: Path, count: int, started: list[subprocess.Popen]) -> None:
    """Wait for so many rows of metrics."""
    end = time.monotonic() + 300
    while len(read_metrics(out / "metrics.jsonl")) < count:
        assert time.monotonic() < end and all(process.poll() is None for process in started), ends(started, 1)
        time.sleep(0.01)


def listing(out: Path, step: int) -> dict:
    """What a checkpoint says of its arrays, with their checksums and its seal."""
    with ocp.CheckpointManager((out / "checkpoints").resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def assert_same_run(one: Path, other: Path) -> None:
    """The same bits in the last checkpoint, read without wsejax, and the same metrics but for the clock."""
    states = []
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for out in (one, other):
        with ocp.StandardCheckpointer() as checkpointer:
            path = (out / "checkpoints" / "40" / "state").resolve()
            shapes = checkpointer.metadata(path).item_metadata.tree
            state = checkpointer.restore(path, jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), shapes))
        states.append({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)})
    assert states[0].keys() == states[1].keys() and len(states[0]) > 30
    assert [name for name in states[0] if states[0][name].tobytes() != states[1][name].tobytes()] == []
    assert listing(one, 40) == listing(other, 40), "and so the checksums that the processes made together are those of one process"
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("host_")} for row in read_metrics(out / "metrics.jsonl")] for out in (one, other)
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == list(range(1, 41))
    assert (one / "sample.txt").read_text() == (other / "sample.txt").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A small text, and a cache of compiled programs, since each start would compile the same ones."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(random.Random(0).choices(["def", "return", "wafer", "tile", "for", "in", "\n"], k=3000)))
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}  # of this process
    return Place(text, inherited | cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory) -> Path:
    """An uninterrupted run in one process with two devices."""
    out = tmp_path_factory.mktemp("alone") / "run"
    place.alone(out, *ROW)
    return out


@pytest.fixture(scope="module")
def both(place, tmp_path_factory) -> tuple[Path, list[str]]:
    """The same in two processes with a device each, and what they printed."""
    out = tmp_path_factory.mktemp("both") / "run"
    return out, place.together(out, *ROW)


def test_two_processes_give_the_bits_of_one(alone, both):
    out, said = both
    assert_same_run(alone, out)
    names = lambda folder: {path.name for path in folder.iterdir() if not path.name.startswith(".lock")}
    assert names(alone) == names(out)
    for name in ("audit.txt", "config.json"):
        assert (alone / name).read_text() == (out / name).read_text()
    assert "validation loss" in said[0]
    assert [line for line in said[1].splitlines() if line and "Gloo" not in line and "peer ranks" not in line] == [], (
        "only the first prints"
    )


def test_where_the_layout_splits_rows_each_process_reads_its_own(place, tmp_path):
    place.alone(tmp_path / "alone", *COLUMN)
    place.together(tmp_path / "both", *COLUMN)
    assert_same_run(tmp_path / "alone", tmp_path / "both")


def as_after_step(run: Path, out: Path, step: int) -> Path:
    shutil.copytree(run, out)
    for path in (out / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return out


def test_one_process_goes_on_from_a_checkpoint_of_two(place, alone, both, tmp_path):
    out = as_after_step(both[0], tmp_path / "run", 20)
    assert "going on from the checkpoint of step 20" in place.alone(out, *ROW)
    assert_same_run(alone, out)


def test_two_processes_go_on_from_a_checkpoint_of_one_and_pass_over_a_corrupt_one(place, alone, tmp_path):
    out = as_after_step(alone, tmp_path / "run", 25)
    for path in (out / "checkpoints" / "25" / "state" / "d").glob("*"):
        path.write_bytes(path.read_bytes()[:50])
    said = place.together(out, *ROW)
    assert "passed over the checkpoint of step 25" in said[0] and "going on from the checkpoint of step 20" in said[0]
    assert (out / "checkpoints" / "corrupt-25").is_dir()
    assert_same_run(alone, out)


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_both_end_and_the_next_start_goes_on(place, alone, tmp_path, killed):
    out = tmp_path / "run"
    with place.both(out, *ROW) as started:
        rows_written(out, 12, started)
        started[killed].kill()
        begin = time.monotonic()
        said = ends(started, 60)
        assert time.monotonic() - begin < 30
    assert started[killed].returncode == -signal.SIGKILL
    assert started[1 - killed].returncode == EXIT_LOST_PEER
    last = said[1 - killed][1].strip().splitlines()[-1]
    assert last.startswith(f"error: process {killed} of 2 is gone: ") and "go on from the newest checkpoint" in last
    again = place.together(out, *ROW)
    assert "going on from the checkpoint of step" in again[0] and "passed over" not in again[0]
    assert_same_run(alone, out)


@pytest.mark.parametrize(("pressed", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)], ids=str)
def test_a_stop_at_one_stops_both_after_the_same_step(place, alone, tmp_path, pressed, number):
    out = tmp_path / "run"
    with place.both(out, *ROW) as started:
        rows_written(out, 7, started)
        started[pressed].send_signal(number)
        said = ends(started, 120)
    assert [process.returncode for process in started] == [130, 130], said
    stopped = len(read_metrics(out / "metrics.jsonl"))
    assert f"stopped after step {stopped};" in said[0][0] and 7 <= stopped < 40
    assert max(int(path.name) for path in (out / "checkpoints").iterdir()) == stopped
    assert f"going on from the checkpoint of step {stopped}" in place.together(out, *ROW)[0]
    assert_same_run(alone, out)


def test_a_process_that_falls_silent_ends_the_other_within_the_deadline(place, tmp_path):
    out = tmp_path / "run"
    with place.both(out, *ROW, "--distributed.deadline-seconds", "20") as started:
        rows_written(out, 5, started)
        started[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        (_, said), *_ = ends(started[:1], 120)
        assert time.monotonic() - begin < 60
    assert started[0].returncode == EXIT_LOST_PEER
    assert "error: " in said and "go on from the newest checkpoint" in said


def refused(started: list[subprocess.Popen]) -> list[str]:
    """The errors of two processes that refuse to begin."""
    said = [stderr for _, stderr in ends(started, 120)]
    assert [process.returncode for process in started] == [2, 2], said
    assert all("Traceback" not in text for text in said)
    return [text.strip().splitlines()[-1] for text in said]


def test_other_flags_and_other_text_are_found_before_anything_is_written(place, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(place.text.read_text() + "more")
    with place.both(tmp_path / "run", *ROW, second=("--seed", "1", "--data", str(other))) as started:
        for line in refused(started):
            assert "process 1: config.data" in line and "config.seed: 0 -> 1" in line and "data: " in line
            assert "config.model" not in line and "sources" not in line and "environment" not in line
    assert not (tmp_path / "run").exists()


def test_other_code_is_found_before_anything_is_written(place, tmp_path):
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "code" / "wsejax" / "training" / "state.py", "a") as file:
        file.write("# mended on this host alone\n")
    with place.both(tmp_path / "run", *ROW, second_cwd=tmp_path / "code") as started:
        for line in refused(started):
            assert "process 1: sources.wsejax: " in line
            assert "sources.models" not in line and "config" not in line.split("process 1:")[1].split("Start every")[0]
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_one_process_is_told_by_both(place, tmp_path):
    with place.both(tmp_path / "run", *ROW, second=("--data", "nothere.txt")) as started:
        assert all(line.startswith("error: process 1: --data nothere.txt does not exist") for line in refused(started))
    with place.both(tmp_path / "run", "--wafer.devices", "1", "1") as started:
        assert all(
            "process 0, 1: --wafer.devices 1 1, --cluster.groups 1: 2 processes cannot share 1 device" in line for line in refused(started)
        )
    assert not (tmp_path / "run").exists()


def test_nobody_comes(place, tmp_path):
    wait = ("--distributed.join-seconds", "3")
    second = place.start(tmp_path / "run", 1, port := free_port(), *ROW, *wait)
    assert second.communicate(timeout=100)[1].startswith(f"error: no coordinator at localhost:{port} within 3 seconds")
    assert second.returncode == EXIT_LOST_PEER, "it may come yet, so a supervisor starts this again"
    first = place.start(tmp_path / "run", 0, free_port(), *ROW, *wait)
    try:
        said = first.communicate(timeout=100)[1].strip().splitlines()[-1]
    finally:
        first.kill()
    assert first.returncode == EXIT_LOST_PEER
    assert said.startswith("error: not all processes came to localhost:") and "within 3 seconds; start every one of them" in said
    assert not (tmp_path / "run").exists()


def test_a_death_told_while_it_runs_is_taken_by_both_after_the_same_step(place, alone, tmp_path):
    out = tmp_path / "run"
    with place.both(out, *ROW) as started:
        rows_written(out, 1, started)
        (out / "faults.json").write_text(json.dumps([{"pes": [[5, 5]]}]))
        said = ends(started)
    assert [process.returncode for process in started] == [0, 0], said
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] in ([16], [32])
    assert_same_run(alone, out)


@pytest.mark.parametrize("execution", ["resident", "streamed"])
def test_a_wafer_in_each_process(place, tmp_path, execution):
    """The same cluster of two wafers, in one process and with a wafer in each of two."""
    cluster = flags_of(f"--wafer.devices 1 1 --cluster.systems 2 --cluster.groups 2 --cluster.execution {execution}")
    place.alone(tmp_path / "alone", *cluster)
    place.together(tmp_path / "both", *cluster)
    assert_same_run(tmp_path / "alone", tmp_path / "both")
