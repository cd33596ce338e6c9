"""The study of batch sizes: runs to a target, a curve, prices; and what it says where there is none."""

from __future__ import annotations

import json

import pytest

from experiments import batch_size
from experiments.batch_size import Run, Settings, main, micro_batches_of
from experiments.task import ModelSettings
from wsejax.training.noise import NoiseScale

TINY = ModelSettings(layers=1, heads=1, width=16, context=16)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(f"the {n} of {n % 7} is {n * n % 11}\n" for n in range(3000)))
    return str(path)


@pytest.mark.slow
def test_it_trains_measures_prices_and_keeps_what_it_prints(tmp_path, capsys, text):
    settings = dict(batches=(2, 5, 128), base_batch=2, target=3.8, learning_rate=1e-2, warmup_steps=0, data=(text,), model=TINY)
    main(Settings(**settings, rule="noise", examples=300, out=tmp_path / "study"))  # type: ignore[arg-type]
    record = json.loads((tmp_path / "study" / "batch_size.json").read_text())
    assert (tmp_path / "study" / "batch_size.png").stat().st_size > 10_000
    runs = record["runs"]
    assert record["modelled"] and [run["batch"] for run in runs] == [2, 5, 128]
    assert runs[0]["learning_rate"] == 1e-2 < runs[1]["learning_rate"] < 2.5e-2, "the rule lies between constant and linear"
    for run in runs[:2]:
        assert run["b_simple"] > 0 and "gradient_noise" in run["rows"][-1]
        losses = [row["validation_loss"] for row in run["rows"] if "validation_loss" in row]
        assert losses[-1] <= 3.8 < losses[0] and run["to_target"]["steps"] <= run["rows"][-1]["step"]
    assert runs[2]["to_target"] is None and len(runs[2]["rows"]) == 3
    prices = record["converged"]
    assert len(prices) == 2 and record["cheapest"] == min(prices, key=lambda one: one["dollars"])["batch"]
    said = capsys.readouterr().out
    assert "cheapest on CS-3" in said and "modelled" in said and "batch 128: target=3.8: not reached in 2 steps" in said


def test_a_target_that_no_run_reaches_is_said(tmp_path, text, monkeypatch):
    monkeypatch.setattr(batch_size, "train_all", lambda *_: [Run(2, 1e-2, [], NoiseScale(), None)])
    with pytest.raises(ValueError, match=r"--target 0\.1: no run reached it"):
        main(Settings(target=0.1, data=(text,), model=TINY, out=tmp_path / "study"))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(("batch", "parts"), [(2, 2), (3, 3), (5, 5), (6, 3), (8, 4), (7, 7)])
def test_every_batch_has_parts_to_compare(batch, parts):
    assert micro_batches_of(batch) == parts


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batches": (4,)}, "--batches 4: give at least two sizes"),
        ({"batches": (1, 4)}, "--batches 1 4: give at least two sizes, each 2 or more"),
        ({"base_batch": 5}, "--base-batch 5: is none of --batches 2 4"),
        ({"target": -1.0}, r"--target -1\.0 must be above 0"),
        ({"warmup_steps": -1}, "--warmup-steps -1"),
    ],
)
def test_what_no_study_can_have_is_refused(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        main(Settings(**{"batches": (2, 4), "base_batch": 4, **changes}, out=tmp_path))
