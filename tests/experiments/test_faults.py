"""Parts of the wafer die while a run goes: its numbers are those of the healthy run, however it is told, stopped and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import pytest

from experiments.train import main
from tests.experiments.test_train import (  # noqa: F401  (fixtures for every test here)
    ON_WAFER,
    ROOT,
    SMALL,
    assert_same_run,
    command,
    compile_once,
    flags_of,
    promotion_as_users_have_it,
)
from wsejax.training import read_metrics, trainer
from wsejax.training.outcome import Fault

KILLS = flags_of("--kill-pe 4 3 5 --kill-pe 4 4 5 --kill-link 7 8 8 8 9")
EVENTS = [([[3, 5], [4, 5]], []), ([], [[[8, 8], [8, 9]]])]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"tile {n * n} of {n} wafers\n" for n in range(300)))
    return [*SMALL, *ON_WAFER, "--data", str(path)]


@pytest.fixture(scope="module")
def healthy(flags, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("healthy") / "run"
    assert main([*flags, "--out", str(out)]) == 0
    return out


def events(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def died(out: Path) -> list[tuple[list, list]]:
    return [(event["pes"], event["links"]) for event in events(out)]


@pytest.fixture
def after_step(monkeypatch):
    """after_step(n, do): `do` is called when step n of the next run is done."""
    actions, add = {}, trainer.Trainer.add

    def add_and_act(self, step, metrics):
        add(self, step, metrics)
        actions.pop(step, lambda: None)()

    monkeypatch.setattr(trainer.Trainer, "add", add_and_act)
    return actions.__setitem__


def test_killed_twice_it_gives_the_same_bits_and_says_what_happened(healthy, flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*flags, *KILLS, "--out", str(out)]) == 0
    assert_same_run(healthy, out)
    assert died(out) == EVENTS
    first, second = events(out)
    assert (first["step"], second["step"]) == (4, 7)
    assert first["logical_grid"][1] == second["logical_grid"][0] != first["logical_grid"][0]
    assert first["mean_dilation"][1] == second["mean_dilation"][0] != second["mean_dilation"][1]
    assert all(event[f"{what}_seconds"] >= 0 for event in (first, second) for what in ("remap", "recompile", "move"))
    assert (out / "wafer.png").read_bytes() != (healthy / "wafer.png").read_bytes()
    said = " ".join(capsys.readouterr().out.split())
    assert "after step 4 died: PE (3, 5), PE (4, 5); logical grid" in said and "after step 7 died: link (8, 8)-(8, 9)" in said

    # a kill -9 behind step 9, in the middle of writing another event: the log of deaths is not rewound, nor written twice
    shutil.rmtree(out / "checkpoints" / "12")
    shutil.rmtree(out / "checkpoints" / "9")
    whole = (out / "events.jsonl").read_text()
    (out / "events.jsonl").write_text(whole + whole[:20])
    assert main([*flags, *KILLS, "--out", str(out)]) == 0
    assert_same_run(healthy, out)
    assert (out / "events.jsonl").read_text() == whole


def test_stopped_it_goes_on_with_the_wafer_as_it_was_and_with_deaths_told_later(healthy, flags, tmp_path, after_step, capsys):
    out = tmp_path / "run"
    after_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main([*flags, *KILLS, "--out", str(out)]) == 130
    assert died(out) == EVENTS[:1]
    capsys.readouterr()
    after_step(10, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main([*flags, "--out", str(out)]) == 130  # without the flags: what is dead stays dead, and nothing more dies
    grid = "logical grid  {} x {} PEs".format(*events(out)[0]["logical_grid"][1])
    assert grid in capsys.readouterr().out and died(out) == EVENTS[:1]
    assert main([*flags, *KILLS, "--out", str(out)]) == 0  # the link of step 7 is told of after step 10
    assert died(out) == EVENTS and events(out)[1]["step"] == 10
    assert_same_run(healthy, out)


def test_told_from_outside_whole_or_not_at_all(healthy, flags, tmp_path, after_step, capsys):
    out = tmp_path / "run"
    after_step(2, lambda: (out / "faults.json").write_text('[{"step": 1, "pes": [[3, 5'))
    after_step(3, lambda: (out / "faults.json").write_text('[{"pes": [[3, 5]]}, {"pes": [[30, 5]]}]'))
    after_step(4, lambda: (out / "faults.json").write_text('[{"pes": [[3, 5]]}, {"step": 7, "links": [[[8, 9], [8, 8]]]}]'))
    assert main([*flags, "--out", str(out)]) == 0
    assert_same_run(healthy, out)
    assert died(out) == [([[3, 5]], []), EVENTS[1]] and [event["step"] for event in events(out)] == [4, 7]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("it is not JSON") == 1 and said.count("death 1: PE (30, 5) is off the wafer") == 1


def test_a_wafer_that_is_lost_costs_no_step(healthy, flags, tmp_path, after_step, capsys):
    out, all_but_a_row = tmp_path / "run", [{"pes": [[row, col] for row in range(9) for col in range(10)]}]
    after_step(5, lambda: (out / "faults.json").write_text(json.dumps(all_but_a_row)))
    assert main([*flags, "--out", str(out)]) == Fault.LOST_WAFER
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "after step 5 died: PE (0, 0)" in said and "goes on after step 5" in said
    assert max(int(path.name) for path in (out / "checkpoints").iterdir()) == 5
    assert len(read_metrics(out / "metrics.jsonl")) == 5 and not (out / "events.jsonl").exists()
    assert main([*flags, "--out", str(out)]) == Fault.LOST_WAFER  # it is still lost
    (out / "faults.json").unlink()
    assert main([*flags, "--out", str(out)]) == 0
    assert_same_run(healthy, out)


@pytest.mark.slow
def test_a_real_kill_9_after_a_death(healthy, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    out = tmp_path / "run"
    with subprocess.Popen(command(out, *flags, *KILLS), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        begin = time.monotonic()
        while run.poll() is None and time.monotonic() - begin < 200 and not (out / "events.jsonl").exists():
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "killed on its way"
    assert main([*flags, *KILLS, "--out", str(out)]) == 0
    assert died(out) == EVENTS
    assert_same_run(healthy, out)


@pytest.mark.parametrize(
    ("kill", "words"),
    [
        ("--kill-pe 3 10 0", "--kill-pe 3 10 0: PE (10, 0) is off the wafer: rows go from 0 to 9"),
        ("--kill-link 3 1 1 2 2", "--kill-link 3 1 1 2 2: link (1, 1)-(2, 2) leads nowhere"),
        ("--kill-pe 12 1 1", "give a step from 0 to 11"),
        ("--kill-pe 3 1 1 --wafer.off", "it has no wafer"),
    ],
)
def test_what_cannot_die_is_refused_before_anything_is_written(flags, tmp_path, monkeypatch, capsys, kill, words):
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--out", "run", *kill.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert list(tmp_path.iterdir()) == []
