"""A campaign of a few runs: what it counts is what it kept, and it comes out again the same."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.bitflip import BITS, STATES, Settings, main, outcome
from experiments.settings import ModelSettings, OptimiserSettings, WaferSettings
from wsejax.report import plot_bitflips


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Settings:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"tile {n * n} of {n} wafers\n" for n in range(300)))
    return Settings(
        runs=2, steps=6, flip_after=3, batch=2, seed=5, data=(str(path),), model=ModelSettings(layers=1, heads=1, width=8, context=8),
        wafer=WaferSettings(rows=6, cols=6, tiles=(2, 2), devices=(1, 1)), optimiser=OptimiserSettings(warmup_steps=2),
    )  # fmt: skip


@pytest.mark.slow
def test_it_counts_what_it_kept_and_more_runs_contain_the_first(small, tmp_path, capsys):
    with jax.numpy_rank_promotion("allow"):  # the model is plain JAX and broadcasts as users' code does
        main(dataclasses.replace(small, out=tmp_path / "two"))
        main(dataclasses.replace(small, out=tmp_path / "one", runs=1))
    two, one = (json.loads((tmp_path / name / "bitflip.json").read_text()) for name in ("two", "one"))
    assert one["records"] == [r for r in two["records"] if r["run"] == 0] and one["clean_losses"] == two["clean_losses"]
    assert len(two["records"]) == 18 and len(two["clean_losses"]) == 6 and two["settings"]["seed"] == 5
    for row in two["table"]:
        some = [r for r in two["records"] if (r["state"], r["bits"]) == (row["state"], row["bits"])]
        assert row["runs"] == 2 == sum(row[name] for name in ("masked", "benign", "degraded", "diverged"))
        for name in ("masked", "benign", "degraded", "diverged"):
            assert row[name] == sum(r["outcome"] == name for r in some)
    for r in two["records"]:
        assert r["bit"] in BITS[r["bits"]] and STATES[r["state"]] in r["leaf"]
        before, after = (int(np.float32(r[name]).view(np.uint32)) for name in ("before", "after"))
        assert before ^ after == 1 << r["bit"]
    negative = [r for r in two["records"] if (r["state"], r["bits"]) == ("second moment", "sign") and float(r["before"])]
    assert negative and all(r["outcome"] == "diverged" for r in negative), "the root of a negative second moment is no number"
    assert (tmp_path / "two" / "bitflip.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "one flip after step 3 of 6" in said and "second moment" in said and "seed 5" in said


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.0], "masked"),
        ([2.1, 1.0], "benign"),
        ([2.0, 0.5], "benign"),
        ([2.0, 1.01], "benign"),
        ([2.0, 1.02], "degraded"),
        ([9.0, 4.9], "degraded"),
        ([2.0, 5.1], "diverged"),
        ([float("nan")], "diverged"),
        ([2.0, float("inf")], "diverged"),
    ],
)
def test_what_becomes_of_a_run(losses, expected):
    assert outcome(losses, [2.0, 1.0], untrained=5.0, tolerance=0.011) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "--runs 0 is too small"),
        ({"flip_after": 6}, "--flip-after 6: give a step from 0 to 5"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"wafer": WaferSettings(off=True)}, "--wafer.off"),
        ({"data": ("nothere.txt",)}, "nothere.txt does not exist"),
    ],
)
def test_mistakes_are_one_line(small, changes, words):
    with pytest.raises((ValueError, OSError), match=words):
        main(dataclasses.replace(small, **changes))


def test_no_runs_no_picture():
    with pytest.raises(ValueError, match="no runs"):
        plot_bitflips([], "x.png")
