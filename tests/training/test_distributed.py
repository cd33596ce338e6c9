"""Several processes as one run: what can be held without starting them, and one meeting of two real ones over gloo."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax.training import checkpoint, distributed
from wsejax.training.checkpoint import checksums_of
from wsejax.training.data import corpus_of, train_batches
from wsejax.training.distributed import DistributedError, Watch, agree, gather, gather_text, join, lost_peers, together
from wsejax.training.shares import Share, lay_out, rows_here

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


# ---- the coordinator -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("host:1", None, None), "give all three"),
        (("host", 2, 0), "coordinator='host'"),
        (("host:port", 2, 0), "coordinator='host:port'"),
        (("host:70000", 2, 0), "coordinator='host:70000'"),
        (("host:1", 2, 2), "process=2 of processes=2"),
        (("host:1", 0, 0), "process=0 of processes=0"),
        (("host:1", 2, -1), "process=-1"),
    ],
)
def test_malformed_arguments_are_named(arguments, words):
    with pytest.raises(DistributedError, match=words):
        join(*arguments)


def test_a_coordinator_that_is_not_there_is_an_error_in_time():
    port, start = free_port(), time.monotonic()
    with pytest.raises(DistributedError, match=f"no coordinator at localhost:{port} within 1 seconds .*start process 0 on localhost"):
        join(f"localhost:{port}", 2, 1, timeout_seconds=1)
    assert time.monotonic() - start < 3
    with pytest.raises(DistributedError, match=r"no coordinator at no\.such\.host\.invalid:1"):
        join("no.such.host.invalid:1", 2, 1, timeout_seconds=1)


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(DistributedError, match=f"port {port} cannot be opened .*give another port"):
            join(f"localhost:{port}", 2, 0)


# ---- one process -----------------------------------------------------------------------------------------------------
def test_one_process_agrees_with_itself_and_keeps_its_own_errors():
    assert distributed.is_first() and distributed.process_count() == 1
    agree("anything", {"a": 1})
    assert gather(np.arange(3)).tolist() == [[0, 1, 2]] and gather_text("text") == ["text"]
    assert together(lambda: 5, (ValueError,)) == 5
    with pytest.raises(FileNotFoundError):
        together(Path("no such file").read_text, (OSError,))
    distributed.leave()


def test_what_differs_is_named_by_process_and_field(monkeypatch):
    told = [{"config": {"seed": 0, "batch": 4}}, {"config": {"seed": 0, "batch": 4}}, {"config": {"seed": 1}}]
    monkeypatch.setattr(distributed, "gather_text", lambda _: [json.dumps(one) for one in told])
    with pytest.raises(DistributedError) as caught:
        agree("configuration", told[0])
    assert "process 2: config.batch: 4 -> absent; config.seed: 0 -> 1" in str(caught.value) and "process 1" not in str(caught.value)


# ---- shares of the data ----------------------------------------------------------------------------------------------
CORPUS = corpus_of([random.Random(0).randbytes(3000)], context=8, document_bytes=150)


@given(rows=st.sets(st.integers(0, 5), min_size=1), skipped=st.integers(0, 9), seed=st.integers(0, 3))
def test_some_rows_of_a_batch_are_those_of_the_whole_batch_wherever_it_goes_on(rows, skipped, seed):
    chosen = np.array(sorted(rows))
    whole, part = (train_batches(CORPUS, batch_size=6, seed=seed, rows=r) for r in (None, chosen))
    for _ in range(skipped):
        next(whole)
    part.set_state(json.loads(json.dumps(whole.get_state())))
    for _ in range(3):
        expected, found = next(whole), next(part)
        assert all(np.array_equal(found[name], expected[name][chosen]) for name in ("tokens", "targets"))
    assert part.get_state() == whole.get_state()


@dataclass(frozen=True)
class Held:
    """As a sharding whose devices in this process hold these blocks."""

    blocks: tuple[tuple[slice, ...], ...]

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate(self.blocks))


def test_rows_that_a_process_needs():
    assert rows_here(Held(((slice(2, 4), slice(None)), (slice(2, 4), slice(0, 3)), (slice(6, 8),))), (8, 5)).tolist() == [2, 3, 6, 7]
    assert rows_here(Held(((),)), (3,)).tolist() == [0, 1, 2]
    share = Share.of({"a": Held(((slice(4, 6),),)), "b": Held(((slice(0, 2),),))}, {"a": np.zeros((8, 2)), "b": np.zeros((8, 3))})
    assert share.rows.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("spec", [("y", "x"), ("x",), (), (None, "y"), (("y", "x"),)], ids=str)
def test_what_processes_put_together_is_what_one_puts_down(spec, monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("y", "x"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    whole = np.arange(32, dtype=np.int32).reshape(8, 4)
    expected = jax.device_put(whole, sharding)
    share = Share.of({"a": sharding}, {"a": whole})
    monkeypatch.setattr("wsejax.training.shares.process_count", lambda: 2)  # the path of several, with all devices at hand
    for found in (share.spread({"a": whole})["a"], lay_out({"a": whole}, {"a": sharding})["a"], lay_out(whole, sharding)):
        assert found.sharding == expected.sharding and np.array_equal(found, expected)


# ---- checksums over processes ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """What one process sees of an array that lies over several."""

    whole: np.ndarray
    owned: tuple[slice, ...]
    copied: tuple[slice, ...]
    is_fully_addressable: bool = False

    shape = property(lambda self: self.whole.shape)
    dtype = property(lambda self: self.whole.dtype)
    nbytes = property(lambda self: self.whole.nbytes)

    @property
    def addressable_shards(self):
        """Shards that it owns, and replicas of somebody else's, which must not count twice."""
        shard = lambda rows, replica: SimpleNamespace(index=(rows,), data=self.whole[rows], replica_id=replica)
        return [*(shard(rows, 0) for rows in self.owned), *(shard(rows, 1) for rows in self.copied)]


@given(owners=st.lists(st.integers(0, 3), min_size=8, max_size=8), processes=st.integers(4, 5), seed=st.integers(0, 99))
def test_checksums_of_parts_are_those_of_the_whole(owners, processes, seed):
    whole = np.random.default_rng(seed).standard_normal((8, 3)).astype(np.float32)
    row = lambda n: slice(n, n + 1)
    parts = [
        Part(whole, tuple(row(n) for n in range(8) if owners[n] == p), tuple(row(n) for n in range(8) if owners[n] != p))
        for p in range(processes)
    ]
    own = np.array([[checkpoint._crc32_of_part(part), 0] for part in parts], np.uint32)  # pyright: ignore[reportArgumentType]
    local = np.arange(3.0)  # an array that every process has whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "gather", lambda _: own)
        assert checksums_of([parts[0], local]) == [zlib.crc32(whole.tobytes()), zlib.crc32(local.tobytes())]


# ---- who is lost -----------------------------------------------------------------------------------------------------
@pytest.fixture
def three(monkeypatch, tmp_path):
    """As if this were process 1 of 3, with the locks of the others in a folder."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed, "process_count", lambda: 3)
    for name in (".lock", ".lock-2"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_process_that_let_go_of_its_lock_is_lost(three):
    with open(three / ".lock", "w") as first, open(three / ".lock-2", "w") as third:
        for file in (first, third):
            fcntl.flock(file, fcntl.LOCK_EX)
        start = time.monotonic()
        assert lost_peers(three, wait_seconds=0.3) == [] and time.monotonic() - start > 0.25
        fcntl.flock(third, fcntl.LOCK_UN)
        assert lost_peers(three, wait_seconds=5) == [2]
    assert lost_peers(three, wait_seconds=0) == [0, 2]
    assert lost_peers(None, wait_seconds=9) == []


def test_the_watch_ends_a_process_that_makes_no_progress_and_only_that(three, monkeypatch):
    ends = []
    monkeypatch.setattr(distributed, "end", lambda reason, **_: ends.append(reason))
    with Watch(0.4) as watch:
        time.sleep(0.6)  # compiling
        for _ in range(6):
            watch.step()
            time.sleep(0.1)
        watch.pause()
        time.sleep(0.6)
        assert ends == []
        watch.step()
        time.sleep(0.8)
    assert ends and set(ends) == {"no step was done for 0.4 seconds"}


def test_an_error_under_the_watch_is_laid_to_a_lost_process_only_if_one_is(three, monkeypatch):
    ends = []
    monkeypatch.setattr(distributed, "end", lambda reason, **_: ends.append(reason))
    monkeypatch.setattr(distributed, "_NAMING_SECONDS", 0.2)
    monkeypatch.setattr(distributed._PEERS, "folder", three)
    with open(three / ".lock", "w") as first, open(three / ".lock-2", "w") as third:
        for file in (first, third):
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ZeroDivisionError), Watch(60):
            _ = 1 / 0
        assert ends == []
        fcntl.flock(first, fcntl.LOCK_UN)
        with pytest.raises(ValueError), Watch(60):
            raise ValueError("Connection closed by peer")
    assert ends == ["a step failed here (Connection closed by peer)"]


# ---- two real processes ----------------------------------------------------------------------------------------------
MEETING = """
import sys
import jax, numpy as np
from wsejax.hardware import request_cpu_devices
from wsejax.training.distributed import *
from wsejax.training.distributed import gather, gather_text
jax.config.update("jax_platforms", "cpu")
port, process = sys.argv[1], int(sys.argv[2])
request_cpu_devices(1 + process)  # as if somebody had started them with other flags
where = (None, None, None) if port == "slurm" else (f"localhost:{port}", 2, process)
join(*where, timeout_seconds=60, deadline_seconds=30)
assert process_count() == 2 and is_first() == (process == 0) and len(jax.devices()) == 3
assert gather(np.full(2, process, np.uint32)).tolist() == [[0, 0], [1, 1]]
assert gather_text("é" * process * 3) == ["", "ééé"]
agree("nothing", {"same": 1})
for attempt in (lambda: agree("seeds", {"seed": process}), lambda: together(lambda: int("x" if process else "1"), (ValueError,))):
    try:
        attempt()
    except DistributedError as error:
        print(error, file=sys.stderr)
assert together(lambda: process, ()) == process
leave()
"""


@contextlib.contextmanager
def meeting(port: str, process: int, **environment: str) -> Iterator[subprocess.Popen]:
    """One of the two, killed in the end whatever it does."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}  # of this process
    how: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", MEETING, port, str(process)]
    started = subprocess.Popen(command, cwd=ROOT, env=inherited | {"PYTHONPATH": str(ROOT)} | environment, **how)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def told_what_differs(started: list[subprocess.Popen]) -> None:
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    for text in said:
        assert "the processes differ in seeds" in text and "process 1: seed: 0 -> 1" in text
        assert "process 1: invalid literal for int() with base 10: 'x'" in text


def test_two_processes_meet_late_and_tell_each_other_what_differs():
    port = str(free_port())
    with meeting(port, 1) as second:  # before there is a coordinator
        time.sleep(1.5)
        with meeting(port, 0) as first:
            told_what_differs([first, second])


def test_a_scheduler_says_who_they_are():
    """What Slurm sets in each task of a step; JAX takes the coordinator's port from the number of the job."""
    job = next(n for n in random.Random(time.time()).sample(range(4096), 4096) if _is_free(n + 61440))
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    task = lambda n: step | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}
    with meeting("slurm", 0, **task(0)) as first, meeting("slurm", 1, **task(1)) as second:
        told_what_differs([first, second])


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("", port)):
        return True
    return False
