"""The study of lengths, and the bench of packing, on a small model: what they print is what packing says, and times are called modelled."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import lengths, packing_bench
from experiments.task import ModelSettings
from wsejax.training.packing import waste

MODEL = ModelSettings(layers=1, width=16, heads=2, context=32)


@pytest.fixture
def texts(tmp_path):
    sizes = [3, 20, 30, 31, 95]  # rows of 4 and of 32
    for n, size in enumerate(sizes):
        (tmp_path / f"{n}.txt").write_bytes(b"x" * size)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "ab" * 10, "response": "çd"}) + "\n")
    return str(tmp_path / "*.*"), [size + 1 for size in sizes] + [24]


def test_lengths_are_of_files_and_of_lines(texts):
    pattern, wanted = texts
    assert sorted(lengths.lengths_of((pattern,))) == sorted(wanted)
    assert len(lengths.lengths_of(())) > 100


def test_a_study_prints_what_is_wasted_and_what_is_modelled(texts, tmp_path, capsys):
    pattern, sizes = texts
    lengths.main(lengths.Settings(data=(pattern,), batch=2, model=MODEL, out=tmp_path / "study"))
    found = json.loads((tmp_path / "study" / "lengths.json").read_text())
    said = capsys.readouterr().out
    assert found["split"] == 1 and found["tokens"] == sum(sizes) and (tmp_path / "study" / "lengths.png").stat().st_size > 10_000
    for how, one in found["ways"].items():
        want = waste(np.array(sizes), 32, 2, how)
        assert one["padding"] == pytest.approx(want.share) and f"{want.share:.1%}" in said
        assert one["modelled_real_tokens_per_second"] == pytest.approx(sum(sizes) / one["modelled_seconds"])
    pad, pack = found["ways"]["pad"], found["ways"]["pack"]
    # of one shape, and so of one price a step
    assert pad["modelled_seconds"] / pack["modelled_seconds"] == pytest.approx(pad["places"] / pack["places"])
    assert "modelled real tokens/s" in said and "whole training steps of transformers, median error" in said


@pytest.mark.slow
def test_a_bench_trains_all_three(tmp_path):
    settings = packing_bench.Settings(documents=60, batch=2, steps=2, model=MODEL, out=tmp_path / "bench.json")
    packing_bench.main(settings)
    found = json.loads(settings.out.read_text())
    assert set(found) == {"pad", "bucket", "pack"} and found["pack"]["padding"] < found["bucket"]["padding"] < found["pad"]["padding"]
    assert all(one["real_tokens_per_second"] > 0 for one in found.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lengths.main(lengths.Settings(batch=0, model=MODEL)), "--batch 0"),
        (lambda: lengths.main(lengths.Settings(model=ModelSettings(name="t5"))), "cannot be packed"),
        (lambda: packing_bench.main(packing_bench.Settings(steps=0)), "--steps 0"),
    ],
)
def test_what_cannot_be_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
