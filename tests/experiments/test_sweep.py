"""Sweeps: one compiled program where only scalars differ, and each run as it would be alone."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import sweep, train
from experiments.settings import OptimiserSettings
from wsejax.training.rundir import read_metrics

SIZES = "--model.layers 1 --model.width 16 --model.heads 2 --model.context 16 --batch 4"
SMALL = f"{SIZES} --steps 4 --eval-every 2 --eval-batches 1 --optimiser.warmup-steps 2".split()
PLAIN = ["--wafer.off"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"tile {n * n} of {n} wafers\n" for n in range(300)))
    return ["--data", str(path)]


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_eight_learning_rates_compile_once(text, tmp_path, monkeypatch, capsys):
    made, compiles = [], []
    programs_of = sweep.programs_of
    monkeypatch.setattr(sweep, "programs_of", lambda run: made.append(run) or programs_of(run))
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **kw: compiles.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    try:
        out = tmp_path / "one"
        assert sweep.main([*SMALL, *PLAIN, *text, "--out", str(out), "--over", "optimiser.learning-rate=1e-3"]) == 0
        alone, compiles[:] = len(compiles), []
        capsys.readouterr()
        out = tmp_path / "eight"
        assert sweep.main([*SMALL, *PLAIN, *text, "--out", str(out), "--over", "optimiser.learning-rate=1e-3..1.28e-1:8"]) == 0
        assert len(made) == 2 and len(compiles) <= alone  # eight runs compiled no more than one did
    finally:
        jax.monitoring.clear_event_listeners()
    rows = results(out)
    np.testing.assert_allclose([row["varied"]["optimiser.learning_rate"] for row in rows], 1e-3 * 2.0 ** np.arange(8), rtol=1e-5)
    assert len({row["loss"] for row in rows}) == 8
    assert (out / "sweep.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "8 runs, 1 programs compiled now" in said and said.count("best") == 1


def test_each_run_is_what_train_would_have_given(text, tmp_path):
    out = tmp_path / "sweep"
    over = ["--over", "optimiser.beta2=0.9", "--over", "seed=0,5"]
    assert sweep.main([*SMALL, *PLAIN, *text, "--out", str(out), *over]) == 0
    for row in results(out):
        alone = tmp_path / row["folder"]
        flags = ["--optimiser.beta2", str(row["varied"]["optimiser.beta2"]), "--seed", str(row["varied"]["seed"])]
        assert train.main([*SMALL, *PLAIN, *text, "--out", str(alone), *flags]) == 0
        for name in ("loss", "grad_norm", "learning_rate"):
            found, wanted = ([r[name] for r in read_metrics(folder / "metrics.jsonl")] for folder in (out / row["folder"], alone))
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-9, err_msg=name)
    assert len({row["loss"] for row in results(out)}) == 2


def test_on_a_wafer_a_run_that_diverges_is_one_of_the_results(text, tmp_path):
    out = tmp_path / "sweep"
    wafer = ["--wafer.rows", "8", "--wafer.cols", "8", "--wafer.tiles", "2", "2", "--wafer.devices", "1", "2"]
    over = ["--over", "optimiser.learning_rate=1e-3,1e30"]
    assert sweep.main([*SMALL, *wafer, *text, "--out", str(out), *over]) == 0
    rows = results(out)
    assert [row["diverged"] for row in rows] == [False, True] and rows[1]["loss"] is None


def test_the_same_command_goes_on_with_what_is_not_done(text, tmp_path, capsys):
    out = tmp_path / "sweep"
    command = [*SMALL, *PLAIN, *text, "--out", str(out), "--over", "model.width=16,32"]
    assert sweep.main(command) == 0
    whole = results(out)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text(lines[1])
    capsys.readouterr()
    assert sweep.main(command) == 0
    assert sorted(results(out), key=lambda row: row["folder"]) == whole
    assert sweep.main(command) == 0
    assert "0 programs compiled now" in capsys.readouterr().out


@pytest.mark.parametrize(
    "over, said",
    [
        ([], "--over is missing"), (["optimiser.learning_rate"], "give FIELD=VALUE"), (["optimiser.rate=1"], "no setting 'rate'"),
        (["optimiser=1"], "is a group of settings"), (["optimiser.learning_rate=fast"], "'fast' is no float"),
        (["optimiser.learning_rate=1..2"], "LOW..HIGH:COUNT"), (["optimiser.learning_rate=0..2:3"], "both above 0"),
        (["keep=2,3"], "changes no number"), (["seed=1", "seed=2"], "swept already"), (["steps=2.5"], "2.5 is no int"),
        (["optimiser.learning_rate=-1.0,1.0"], "must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_anything_is_trained(over, said, text, tmp_path, capsys):
    flags = [flag for one in over for flag in ("--over", one)]
    assert sweep.main([*SMALL, *PLAIN, *text, "--out", str(tmp_path / "sweep"), *flags]) == 2
    assert re.search(re.escape(said), " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "sweep" / "results.jsonl").exists()


@given(
    steps=st.integers(2, 300), rate=st.floats(1e-5, 1.0), warmup=st.integers(0, 400), final=st.floats(0.0, 1.0),
)  # fmt: skip
def test_the_schedule_is_that_of_optax(steps, rate, warmup, final):
    ours = OptimiserSettings(learning_rate=rate, warmup_steps=warmup, final_fraction=final).schedule(steps)
    theirs = optax.warmup_cosine_decay_schedule(0.0, rate, min(warmup, steps - 1), steps, rate * final)
    at = np.unique(np.linspace(0, steps + 2, 12).astype(int))
    np.testing.assert_allclose(ours(at), [theirs(int(n)) for n in at], rtol=2e-5, atol=1e-6 * rate)
