"""Both checks of muP at tiny sizes: sizes of activations over the width, and the best learning rate."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import mup
from experiments.mup import Settings, best_rate, coordinates, initial, main, slopes, stepper, task_at
from experiments.task import ModelSettings
from wsejax.report import plot_transfer
from wsejax.training.data import load_corpus, train_batches, validation_batches

TINY = ModelSettings(layers=2, heads=2, context=16, set=("init_scale=0.15",))
FLAT, GROWS = 0.1, 0.3
"""Slopes over the width in logarithms: below the first a size is flat, above the second it grows."""


def batch(sequences: int, context: int) -> dict[str, np.ndarray]:
    text = np.random.default_rng(0).integers(97, 123, (sequences, context + 1)).astype(np.int32)
    return {"tokens": text[:, :-1], "targets": text[:, 1:]}


@pytest.mark.slow
def test_activations_keep_their_size_under_mup_and_grow_without():
    """After three steps of Adam; at the base's width both are one model. Logits begin with a slope of -1/2 under muP, as sums of
    independent terms divided by the width, and rise from there to 0."""
    widths, some = (32, 256), batch(8, 16)
    settings = Settings(model=TINY, base_width=32, widths=widths, coordinate_rate=0.005)

    def after(kind, width):
        task = task_at(settings, width, kind)
        return coordinates(settings, task, initial(settings, task), some)

    base = after("mup", 32)
    flat, grown = (slopes(widths, [base[-1], after(kind, 256)[-1]]) for kind in ("mup", "standard"))
    assert set(flat) == {"attention", "mlp", "stream", "logits"} and len(base) == 4 and len(base[0]["stream"]) == 2
    assert max(abs(flat[name]) for name in ("attention", "mlp", "stream")) < FLAT, flat
    assert -0.5 < flat["logits"] < FLAT, flat
    assert min(grown.values()) > GROWS, grown


@pytest.mark.slow
def test_the_best_rate_stays_under_mup_and_falls_without():
    """From width 64 to 256, in octaves; the whole study's default goes to 512."""
    corpus = load_corpus(context=64)
    drawn = train_batches(corpus, batch_size=8, seed=0)
    batches, validation = mup.stacked(next(drawn) for _ in range(64)), mup.stacked(validation_batches(corpus, batch_size=32, batches=8))

    def best(kind, width, rates):
        settings = Settings()
        task = task_at(settings, width, kind)
        run, params = mup.program(settings, task), initial(settings, task)
        found, inside = best_rate(rates, [float(run(params, np.float32(2.0**rate), batches, validation)) for rate in rates])
        assert inside
        return found

    base = best("mup", 64, (-8, -7, -6, -5))
    assert abs(best("mup", 256, (-9, -8, -7, -6)) - base) < 1.5
    assert best("standard", 256, (-11, -10, -9, -8)) - base < -2


def test_slopes_are_powers_of_the_width():
    rows = [{"logits": [width**0.5], "stream": [3.0, 7.0 * width**-2]} for width in (8, 16, 64)]
    found = slopes((8, 16, 64), rows)
    np.testing.assert_allclose([found["logits"], found["stream"]], [0.5, -1.0])


@given(st.floats(-8.5, -5.5), st.floats(0.1, 2.0))
def test_the_best_rate_is_the_lowest_point_of_a_parabola(lowest, bend):
    rates = [-10.0, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0]
    found, inside = best_rate(rates, [math.exp(bend * (x - lowest) ** 2) for x in rates])
    assert inside and abs(found - lowest) < 1e-6


def test_what_diverged_is_no_best_rate_and_the_edge_is_told():
    assert best_rate([-3, -2, -1], [2.0, 3.0, math.nan]) == (-3.0, False)
    found, inside = best_rate([-3, -2, -1], [3.0, 2.0, math.inf])
    assert inside and found == pytest.approx(-2.0)
    with pytest.raises(ValueError, match="every run has diverged"):
        best_rate([-3, -2], [math.nan, math.inf])


def test_it_prints_and_keeps_what_it_found_and_compiles_once_a_width(tmp_path, capsys, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_bytes(np.random.default_rng(0).integers(97, 123, 20_000).astype(np.uint8).tobytes())
    traced = []
    monkeypatch.setattr(mup, "stepper", lambda task, tx: traced.append(task.config.width) or stepper(task, tx))
    settings = Settings(
        model=dataclasses.replace(TINY, layers=1), base_width=8, widths=(8,), steps=3, batch=2, log2_rates=(-9.0, -7.0, -5.0),
        parametrisations=("mup",), coordinate_steps=1, data=(str(text),), out=tmp_path / "study",
    )  # fmt: skip
    record = main(settings)
    assert json.loads((tmp_path / "study" / "mup.json").read_text())["transfer"] == record["transfer"]
    assert [row["log2_rate"] for row in record["transfer"]] == [-9.0, -7.0, -5.0] and traced == [8, 8]
    assert len({row["loss"] for row in record["transfer"]}) == 3
    assert [row["step"] for row in record["coordinates"]] == [0, 1]
    assert (tmp_path / "study" / "mup.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "validation loss" in said and "logits" in said and "2^-7" in said


def test_zeros_to_begin_with():
    settings = Settings(model=dataclasses.replace(TINY, set=("tied=False",)), base_width=8, zero_queries=True, zero_head=True)
    params = initial(settings, task_at(settings, 8, "mup"))
    zero = {
        "/".join(k.key for k in path) for path, x in jax.tree_util.tree_leaves_with_path(params) if "kernel" in str(path) and not x.any()
    }
    assert zero == {"blocks/attention/q/kernel", "head/kernel"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": ()}, r"widths=\(\)"),
        ({"steps": 1}, "--steps 1 is too small"),
        ({"widths": (36,), "base_width": 9}, "width=9 is not a multiple of heads=2"),
        ({"model": ModelSettings(width=64), "base_width": 32}, "--model.width 64: it is that of the base"),
        ({"zero_head": True, "base_width": 8, "widths": (8,)}, "--zero-head: the head of --model gpt2 is the table"),
        ({"coordinate_steps": 0, "log2_rates": ()}, "nothing is asked for"),
        ({"model": ModelSettings(name="t5", context=16), "base_width": 16, "widths": (16,), "steps": 2}, "--coordinate-steps 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        main(dataclasses.replace(Settings(model=TINY), **change))


def test_a_picture_needs_rows():
    with pytest.raises(ValueError, match="no rows"):
        plot_transfer([], [], "x.png")
