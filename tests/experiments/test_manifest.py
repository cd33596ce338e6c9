"""A training run's manifest: it verifies, and from it alone the run is done again, bit for bit."""

from __future__ import annotations

import json
import os
import random
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
    PLAIN,
    ROOT,
    SMALL,
    arrays,
    assert_same_run,
    command,
    compile_once,
    flags_of,
    promotion_as_users_have_it,
)
from wsejax.cli import main as wsejax
from wsejax.training import read_metrics, trainer
from wsejax.training.manifest import MANIFEST, Entry, read_chain
from wsejax.training.provenance import parameters_digest

KILLS = flags_of("--kill-pe 4 3 5 --kill-link 7 8 8 8 9")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the command is started: with two files of text beside each other."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text").mkdir()
    for number in range(2):
        (folder / f"text/{number}.txt").write_text("".join(f"tile {n * n + number} of {n} wafers\n" for n in range(150)))
    return folder


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """A plain run of few steps, stopped once and gone on with."""
    before, add = Path.cwd(), trainer.Trainer.add

    def add_then_press(self, step, metrics):
        add(self, step, metrics)
        if step == 5 and "settings" not in pressed:
            pressed.append("settings")
            os.kill(os.getpid(), signal.SIGINT)

    pressed: list[str] = []
    os.chdir(place)
    try:
        trainer.Trainer.add = add_then_press
        assert main([*SMALL, *PLAIN, "--data", "text/*.txt", "--out", "run"]) == 130
        assert main([*SMALL, *PLAIN, "--data", "text/*.txt", "--out", "run"]) == 0
    finally:
        trainer.Trainer.add = add
        os.chdir(before)
    return place / "run"


def entries(out: Path) -> tuple[Entry, ...]:
    return read_chain(out / MANIFEST).entries


def verified(out: Path, capsys, status: int = 0) -> dict[str, list[dict]]:
    """What `wsejax verify` finds, by the status of the check."""
    capsys.readouterr()
    assert wsejax(["verify", str(out), "--json"]) == status
    found: dict[str, list[dict]] = {}
    for check in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(check["status"], []).append(check)
    return found


def again(manifest: Path, out: Path, *flags: str) -> int:
    return main(["--from-manifest", str(manifest), "--out", str(out), *flags])


def test_it_tells_what_was_run_and_what_came_of_it(whole, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    first, *_, last = entries(whole)
    kinds = [(entry.kind, entry.content.get("step")) for entry in entries(whole)]
    assert kinds == [
        ("begin", None), ("checkpoint", 3), ("checkpoint", 5), ("resume", 5), ("checkpoint", 6), ("checkpoint", 9), ("checkpoint", 12),
        ("end", 12),
    ]  # fmt: skip
    assert first.content["config"] == json.loads((whole / "config.json").read_text())["config"]
    assert [one["name"] for one in first.content["data"]["files"]] == ["text/0.txt", "text/1.txt"]
    assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "wsejax"} <= first.content["versions"].keys()
    assert first.content["sources"].keys() == {"wsejax", "models", "experiments"} and first.content["wafer"] is None
    prefix = "['params']"
    params = {path: array for path, array in arrays(whole).items() if path.startswith(prefix)}
    nested: dict = {}
    for path, array in params.items():
        *keys, leaf = path.removeprefix(prefix)[2:-2].split("']['")
        at = nested
        for key in keys:
            at = at.setdefault(key, {})
        at[leaf] = array
    assert last.content["parameters_sha256"] == parameters_digest(nested)
    assert verified(whole, capsys).keys() == {"ok"}


def test_the_run_again_from_its_manifest_alone(whole, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    shutil.copy(whole / MANIFEST, tmp_path / "alone.jsonl")
    assert again(tmp_path / "alone.jsonl", tmp_path / "run") == 0
    assert "bits may differ" not in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")
    one, other = entries(whole), entries(tmp_path / "run")
    assert one[-1].content["parameters_sha256"] == other[-1].content["parameters_sha256"]
    assert one[0].content["program"] == other[0].content["program"] and one[0].content["config"] == other[0].content["config"]
    assert verified(tmp_path / "run", capsys).keys() == {"ok"}
    # the same command once more goes on, here with nothing, and the chain with it
    assert again(tmp_path / "alone.jsonl", tmp_path / "run") == 0
    assert [entry.kind for entry in entries(tmp_path / "run")[-2:]] == ["resume", "end"]
    assert verified(tmp_path / "run", capsys).keys() == {"ok"}


def test_data_that_are_not_those_are_refused_by_name(whole, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "text", tmp_path / "text")
    manifest = whole / MANIFEST
    (tmp_path / "text/1.txt").write_text("other " * 300)
    (tmp_path / "text/2.txt").write_text("more")
    assert again(manifest, tmp_path / "run") == 2
    assert "not those of that run (changed: text/1.txt; not of that run: text/2.txt)" in capsys.readouterr().err
    (tmp_path / "text/1.txt").unlink()
    (tmp_path / "text/2.txt").unlink()
    assert again(manifest, tmp_path / "run") == 2
    assert "not those of that run (missing: text/1.txt)" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "text")
    assert again(manifest, tmp_path / "run") == 2
    assert "--data text/*.txt matches no file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_and_other_places_are_not(whole, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    moved = ["--data", str(place / "text/*.txt")]
    assert again(whole / MANIFEST, tmp_path / "run", *moved, "--seed", "1", "--model.width", "32") == 2
    said = capsys.readouterr().err
    assert "model.width: 16 -> 32; seed: 0 -> 1); leave those flags out" in said
    assert "another run than that one (" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    (tmp_path / "none.jsonl").write_text("")
    tampered = (whole / MANIFEST).read_text().replace('"seed":0', '"seed":1')
    (tmp_path / "tampered.jsonl").write_text(tampered)
    for name, words in (("none", "has no entry"), ("tampered", "was tampered with: entry 0 (begin)"), ("nowhere", "no such file")):
        assert again(tmp_path / f"{name}.jsonl", tmp_path / "run") == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"9 of {name}")
    assert again(whole / MANIFEST, tmp_path / "run", *moved) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "so bits may differ: flax: " in said and '-> "9 of flax"' in said and "train step" not in said
    assert_same_run(whole, tmp_path / "run")


def test_a_changed_byte_of_a_checkpoint_is_found_and_not_gone_on_from(whole, place, tmp_path, monkeypatch, capsys):
    """Also one that changes no array, which no checksum of the arrays could tell."""
    monkeypatch.chdir(place)
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "checkpoints/12/_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace(" ", "  ", 1) if " " in path.read_text() else path.read_text() + "\n")
    (check,) = verified(out, capsys, 1)["TAMPERED"]
    assert check["file"] == "checkpoints/12/_CHECKPOINT_METADATA" and check["entry"] == "entry 6 (checkpoint)"
    assert main([*SMALL, *PLAIN, "--data", "text/*.txt", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "_CHECKPOINT_METADATA is not the file that entry 6 (checkpoint) of the manifest tells of" in said
    assert "going on from the checkpoint of step 9" in said
    assert_same_run(whole, out)
    assert verified(out, capsys).keys() == {"ok"}
    text = (out / MANIFEST).read_text()
    (out / MANIFEST).write_text(text.replace('"step":9', '"step":8'))
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    assert main([*SMALL, *PLAIN, "--data", "text/*.txt", "--out", str(out)]) == 2
    assert "manifest.jsonl was tampered with: entry 5 (checkpoint)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == before


@pytest.mark.slow
def test_on_a_wafer_that_loses_parts(place, tmp_path, monkeypatch, capsys):
    """The deaths are told of, and the program is the one of any wafer; again on other devices the bits are the same."""
    monkeypatch.chdir(place)
    out = tmp_path / "run"
    assert main([*SMALL, *ON_WAFER, *KILLS, "--data", "text/*.txt", "--out", str(out)]) == 0
    first, *rest = entries(out)
    faults = [entry.content for entry in rest if entry.kind == "fault"]
    assert [(fault["event"]["step"], fault["event"]["pes"], fault["event"]["links"]) for fault in faults] == [
        (4, [[3, 5]], []), (7, [], [[[8, 8], [8, 9]]])
    ]  # fmt: skip
    defects = [first.content["wafer"], *(fault["wafer"] for fault in faults)]
    assert len({wafer["defects_sha256"] for wafer in defects}) == 3
    assert first.content["wafer"]["defects_sha256"] == first.content["config"]["wafer"]["defects_digest"]
    assert verified(out, capsys).keys() == {"ok"}
    assert again(out / MANIFEST, tmp_path / "one", "--wafer.devices", "1", "1") == 0
    other = entries(tmp_path / "one")
    assert other[0].content["program"] == first.content["program"]
    assert other[-1].content["parameters_sha256"] == rest[-1].content["parameters_sha256"]
    losses = [[row["loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (out, tmp_path / "one")]
    assert losses[0] == losses[1]
    events = (out / "events.jsonl").read_text()
    (out / "events.jsonl").write_text(events.replace("[3, 5]", "[3, 6]"))
    (check,) = verified(out, capsys, 1)["TAMPERED"]
    assert check["file"] == "events.jsonl"


@pytest.mark.slow
def test_kill_9_in_the_middle_of_saves_is_never_tampering(place, tmp_path, monkeypatch, capsys):
    """A checkpoint every step, so that most kills come while one is written, or its entry."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    out, chance = tmp_path / "run", random.Random(2)
    flags = [*SMALL, *PLAIN, "--data", str(place / "text/*.txt"), "--steps", "40", "--checkpoint-every", "1"]
    for _ in range(4):
        already = len(read_metrics(out / "metrics.jsonl"))
        with subprocess.Popen(command(out, *flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            begin = time.monotonic()
            while run.poll() is None and time.monotonic() - begin < 200 and len(read_metrics(out / "metrics.jsonl")) < already + 3:
                time.sleep(0.002)
            time.sleep(chance.random() / 20)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL, "killed on its way"
        assert "TAMPERED" not in verified(out, capsys)
    assert main([*flags, "--out", str(out)]) == 0
    assert verified(out, capsys).keys() == {"ok"}
    assert [entry.content["step"] for entry in entries(out) if entry.kind == "end"] == [40]
    assert again(out / MANIFEST, tmp_path / "again") == 0
    assert entries(out)[-1].content["parameters_sha256"] == entries(tmp_path / "again")[-1].content["parameters_sha256"]
