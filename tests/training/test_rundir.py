"""The folder of a run: one process, one configuration, and metrics without gaps or repeats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.interrupt import GracefulStop
from wsejax.training.rundir import (
    MetricsLog,
    RunDirectory,
    RunDirectoryError,
    available_host_bytes,
    differing_fields,
    read_metrics,
    require_host_memory,
    write_atomically,
)

CONFIG = {"steps": 3, "model": {"width": 8, "preset": "tiny"}}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_run_comes_back_to_its_folder(tmp_path):
    out = tmp_path / "deep" / "run"
    with RunDirectory(out, CONFIG, {"jax": "1"}) as first:
        assert not first.resumed
    before = listing(out)
    with RunDirectory(out, json.loads(json.dumps(CONFIG)), {"jax": "2"}) as second:
        assert second.resumed, "versions may change between starts"
    assert listing(out) == before


def test_another_configuration_is_refused_by_field_and_nothing_changes(tmp_path):
    with RunDirectory(tmp_path / "run", CONFIG):
        pass
    before = listing(tmp_path)
    other = {"steps": 4, "model": {"width": 8, "heads": 2}}
    with pytest.raises(RunDirectoryError) as error:
        RunDirectory(tmp_path / "run", other)
    for words in ('model.preset: "tiny" -> absent', "model.heads: absent -> 2", "steps: 3 -> 4"):
        assert words in str(error.value)
    assert "width" not in str(error.value)
    assert listing(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"holds files but no run \(thesis.tex"):
        RunDirectory(tmp_path, CONFIG)
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "thesis.tex", CONFIG)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="not one that a run wrote"):
        RunDirectory(tmp_path, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "thesis.tex"]


def test_one_process_at_a_time_and_a_kill_lets_go(tmp_path):
    out = tmp_path / "run"
    script = (
        "import sys, time; from wsejax.training.rundir import RunDirectory\n"
        f"held = RunDirectory({str(out)!r}, {CONFIG!r}); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match="in use by another run"):
            RunDirectory(out, CONFIG)
        other.send_signal(signal.SIGKILL)
        other.wait()
    with RunDirectory(out, CONFIG) as mine:
        assert mine.resumed


def test_a_write_that_fails_leaves_the_old_content(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"


nested = st.recursive(st.integers(0, 2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1), max_leaves=5)
configs = st.dictionaries(st.sampled_from("abc"), nested)


@given(configs, configs)
def test_differing_fields_are_none_exactly_for_equal_configs(before, now):
    assert (differing_fields(before, now) == []) == (before == now)
    assert len(differing_fields(before, now)) == len(differing_fields(now, before))


def row(step: int) -> dict:
    return {"step": step, "loss": 1.0 / step}


@given(written=st.integers(0, 8), checkpoint=st.integers(0, 8), torn=st.integers(0, 12))
def test_metrics_have_every_step_once_after_any_kill(tmp_path_factory, written, checkpoint, torn):
    """Killed after `written` rows and part of the next; going on from a checkpoint that is not ahead of the metrics."""
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    checkpoint = min(checkpoint, written)
    said: list[str] = []
    with MetricsLog(path, step=0, report=said.append) as log:
        for step in range(1, written + 1):
            log.append(row(step))
    with open(path, "a") as file:
        file.write(json.dumps(row(written + 1))[:torn])
    with MetricsLog(path, step=checkpoint, report=said.append) as log:
        assert [kept["step"] for kept in log.rows] == list(range(1, checkpoint + 1))
        for step in range(checkpoint + 1, 10):
            log.append(row(step))
        log.sync()
        assert read_metrics(path) == log.rows
    assert read_metrics(path) == [row(step) for step in range(1, 10)]
    assert said == []


def test_rows_that_somebody_removed_are_said(tmp_path):
    said: list[str] = []
    with MetricsLog(tmp_path / "metrics.jsonl", step=2, report=said.append) as log:
        log.append(row(3))
    assert len(said) == 1 and "lacks some of the steps up to 2" in said[0]


def test_memory_is_refused_with_both_figures():
    require_host_memory(10, "this", available_bytes=10)
    require_host_memory(10**18, "this", available_bytes=None)
    with pytest.raises(MemoryError, match=r"this model needs about 200 GB .* 1.5 GB are available; choose a smaller"):
        require_host_memory(200 * 10**9, "this model", available_bytes=15 * 10**8)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say how much memory is free")
def test_available_memory_is_believable():
    available = available_host_bytes()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available is not None and 0 < available <= total


def test_one_signal_asks_and_a_second_one_interrupts():
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop(said.append) as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
