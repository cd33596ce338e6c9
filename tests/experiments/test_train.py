"""The training command: what it writes, what it refuses, and that stopping it in any way changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.train import main
from wsejax.training import Checkpoints, abstract_like, read_metrics
from wsejax.training.outcome import Fault

ROOT = Path(__file__).parents[2]


def flags_of(line: str) -> list[str]:
    return line.split()


SMALL = flags_of(
    "--model.layers 2 --model.heads 2 --model.width 16 --model.context 16 --batch 4 --steps 12 --eval-every 4 "
    "--eval-batches 2 --checkpoint-every 3 --sample-bytes 20 --optimiser.warmup-steps 2"
)
PLAIN = flags_of("--wafer.off")
ON_WAFER = flags_of("--wafer.rows 10 --wafer.cols 10 --wafer.tiles 2 2 --wafer.devices 1 2 --wafer.dead-pe-fraction 0.05")


@pytest.fixture(scope="module", autouse=True)
def promotion_as_users_have_it():
    """The model is plain JAX and broadcasts as users' code does; the tests' stricter setting is for this package."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every start of the command compiles the same programs anew; within these tests they are compiled once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    """Flags for a small text of its own."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["def", "return", "wafer", "tile", "for", "in", "\n"]
    path.write_text(" ".join(random.Random(0).choices(words, k=3000)))
    return ["--data", str(path)]


def arrays(out: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, read without knowing what it should hold."""
    import orbax.checkpoint as ocp

    step = max(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        path = (out / "checkpoints" / str(step) / "state").resolve()
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), shapes)
        state = checkpointer.restore(path, target)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves} | {"step": np.asarray(step)}


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical state, and the same metrics but for the clock."""
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].tobytes() == b[path].tobytes(), path
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("host_")} for row in read_metrics(out / "metrics.jsonl")] for out in (one, other)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, len(rows[0]) + 1))
    assert (one / "sample.txt").read_text() == (other / "sample.txt").read_text()


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> Path:
    """An uninterrupted plain run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*SMALL, *PLAIN, *text, "--out", str(out)]) == 0
    return out


def test_writes_what_it_promises(whole):
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "manifest.jsonl", "metrics.jsonl", "loss.png", "audit.txt", "sample.txt", "checkpoints"}
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8, 12]
    assert rows[-1]["loss"] < rows[0]["loss"] and abs(rows[0]["loss"] - np.log(256)) < 0.5
    assert {"loss", "grad_norm", "learning_rate", "host_seconds"} <= rows[0].keys()
    config = json.loads((whole / "config.json").read_text())["config"]
    assert config["model"]["width"] == 16 and config["wafer"] == {"off": True} and len(config["text_digest"]) == 64
    assert (whole / "sample.txt").read_text().startswith("def ")
    assert sorted(int(path.name) for path in (whole / "checkpoints").iterdir()) == [6, 9, 12]


def test_started_again_when_complete_it_trains_no_more(whole, text, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    assert main([*SMALL, *PLAIN, *text, "--out", str(tmp_path / "run")]) == 0
    assert "going on from the checkpoint of step 12" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("step", [6, 9])
def test_goes_on_from_a_checkpoint_bit_for_bit(whole, text, tmp_path, step):
    """As after a kill behind `step`: later checkpoints are not there yet, the metrics are ahead, a line is torn."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[: step + 2]) + lines[step + 2][:9])
    assert main([*SMALL, *PLAIN, *text, "--out", str(out)]) == 0
    assert_same_run(whole, out)


def test_a_corrupt_newest_checkpoint_is_said_and_the_run_ends_the_same(whole, text, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints" / "12" / "state" / "d").glob("*"):
        path.write_bytes(b"")
    assert main([*SMALL, *PLAIN, *text, "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "passed over the checkpoint of step 12" in said and "going on from the checkpoint of step 9" in said
    assert (out / "checkpoints" / "corrupt-12").is_dir()
    assert_same_run(whole, out)


@pytest.mark.parametrize("at", [2, 5])
def test_ctrl_c_saves_and_the_same_command_goes_on(whole, text, tmp_path, monkeypatch, at):
    from wsejax.training import trainer

    add = trainer.Trainer.add

    def add_then_press(self, step, metrics):
        add(self, step, metrics)
        if step == at and not (tmp_path / "pressed").exists():
            (tmp_path / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "add", add_then_press)
    out = tmp_path / "run"
    assert main([*SMALL, *PLAIN, *text, "--out", str(out)]) == 130
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == at
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(range(1, at + 1))
    assert main([*SMALL, *PLAIN, *text, "--out", str(out)]) == 0
    assert_same_run(whole, out)


def test_dropout_goes_on_with_the_same_draws(text, tmp_path):
    """Two runs with dropout, one of them stopped by a missing tail of checkpoints."""
    flags = [*SMALL, *PLAIN, *text, "--model.dropout", "0.2"]
    assert main([*flags, "--out", str(tmp_path / "a")]) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (9, 12):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / str(step))
    assert main([*flags, "--out", str(tmp_path / "b")]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_on_the_wafer_the_same_numbers_as_in_plain_jax(whole, text, tmp_path):
    out = tmp_path / "run"
    assert main([*SMALL, *ON_WAFER, *text, "--out", str(out)]) == 0
    plain, wafer = read_metrics(whole / "metrics.jsonl"), read_metrics(out / "metrics.jsonl")
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([row[name] for row in wafer], [row[name] for row in plain], rtol=1e-4, err_msg=name)
    assert (out / "wafer.png").stat().st_size > 1000
    assert "gemm" in (out / "audit.txt").read_text()

    # and its checkpoint gives a plain device the very same state
    before = arrays(out)
    from experiments.settings import ModelSettings, OptimiserSettings, Settings, WaferSettings
    from experiments.train import prepare

    run = prepare(
        Settings(
            data=(text[1],), batch=4, steps=12, out=tmp_path / "new", wafer=WaferSettings(off=True),
            model=ModelSettings(layers=2, heads=2, width=16, context=16), optimiser=OptimiserSettings(warmup_steps=2),
        )
    )  # fmt: skip
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(abstract_like(run.abstract_state, here))
    assert restored is not None and restored.step == 12
    assert sorted(leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(restored.state))) == sorted(
        leaf.tobytes() for name, leaf in before.items() if name != "step"
    )


def test_another_configuration_in_the_same_folder_is_refused(whole, text, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main([*SMALL, *PLAIN, *text, "--out", str(whole), "--seed", "1", "--model.width", "32"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.width: 16 -> 32" in said and "seed: 0 -> 1" in said and "layers" not in said
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nothere.txt"], "nothere.txt does not exist"),
        (["--data", "*.nothere"], r"\*.nothere matches no file"),
        (["--model.heads", "3"], "width=16 .* heads=3"),
        (["--model.width", "200000", "--model.layers", "100"], "GB of host memory"),
        (["--keep", "1"], "--keep 1 is too small"),
        (["--wafer.tiles", "64", "64", "--wafer.devices", "1", "1"], "tiles=.64, 64."),
        (["--wafer.defects-file", "nothere.npz"], "nothere.npz"),
        (["--wafer.dead-pe-fraction", "1.0"], "."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_nothing_is_written(text, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    machine = [] if any(flag.startswith("--wafer") for flag in flags) else PLAIN
    data = [] if "--data" in flags else text
    assert main([*SMALL, *machine, *data, "--out", "run", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert re.search(words, captured.err)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_good_checkpoint(text, tmp_path, capsys):
    flags = [
        *SMALL,
        *PLAIN,
        *text,
        "--out",
        str(tmp_path / "run"),
        "--optimiser.learning-rate",
        "1e30",
        "--optimiser.clip-norm",
        "1e30",
    ]
    assert main(flags) == Fault.NAN_LOSS
    said = capsys.readouterr().err
    assert "the loss of step" in said and "lower --optimiser.learning-rate than 1e+30" in said and said[-1] == "\n"
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_help_explains_and_a_typo_suggests(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--out", "--wafer.dead-pe-fraction", "--wafer.tiles", "--optimiser.learning-rate", "--model", "--model.set"):
        assert flag in text
    with pytest.raises(SystemExit) as leaving:
        main(["--wafer.dead-pe-fracton", "0.1"])
    assert leaving.value.code == 2
    assert "--wafer.dead-pe-fraction" in capsys.readouterr().err


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "experiments.train", "--out", str(out), *flags]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [ON_WAFER], ids=["wafer"])
def test_killed_three_times_it_ends_as_if_nothing_had_been(text, tmp_path, machine):
    """kill -9 whenever some more steps are written, and in the middle of saves; then once to the end."""
    flags = [*SMALL, *machine, *text, "--steps", "60"]
    subprocess.run(command(tmp_path / "whole", *flags), cwd=ROOT, check=True, capture_output=True, timeout=300)
    out, chance, returns = tmp_path / "killed", random.Random(1), []
    for _ in range(3):
        already = len(read_metrics(out / "metrics.jsonl"))
        target = already + chance.randint(1, 8)
        with subprocess.Popen(command(out, *flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            begin = time.monotonic()
            seen_start = not already
            while run.poll() is None and time.monotonic() - begin < 200:
                count = len(read_metrics(out / "metrics.jsonl"))
                seen_start |= count < already  # rows behind the checkpoint were dropped: it goes on
                if (count >= target and seen_start) or count > already + 8:
                    break
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
        returns.append(run.returncode)
    assert returns == [-signal.SIGKILL] * 3, "each was killed on its way"
    finished = subprocess.run(command(out, *flags), cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    assert "passed over" not in finished.stdout, "no unreadable checkpoint, ever"
    assert not list((out / "checkpoints").glob("corrupt*"))
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_two_at_once_in_one_folder(text, tmp_path):
    flags = [*SMALL, *PLAIN, *text, "--steps", "2000"]
    with subprocess.Popen(command(tmp_path / "run", *flags), cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        begin = time.monotonic()
        while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 2 and time.monotonic() - begin < 200:
            time.sleep(0.1)
        second = subprocess.run(command(tmp_path / "run", *flags), cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert second.returncode == 2
        assert "is in use by another run" in second.stderr and second.stderr.count("\n") == 1
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=100) == 130
