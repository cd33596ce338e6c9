"""The study of streaming: stalls just below the modelled minimum, and recipes that keep clear of it."""

from __future__ import annotations

import json

import pytest

from experiments.streaming_study import RECIPES, Settings, main, programs, sweep


@pytest.mark.parametrize("weight_bytes", [2.0, 4.0])
@pytest.mark.parametrize("name", RECIPES)
def test_it_stalls_exactly_below_the_minimum(name: str, weight_bytes: float):
    rows = sweep(name, weight_bytes, 25)
    assert len({row["stall_seconds"] > 1e-12 for row in rows}) == 2
    assert all((row["stall_seconds"] > 1e-12) == (row["tokens"] < row["least_tokens"]) for row in rows)
    shares = [row["stall_share"] for row in rows]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes_keep_clear_of_the_minimum(name: str):
    """With weights of 16 bits."""
    row = sweep(name, 2.0, 2)[0]
    assert row["recipe"] == {"llama-3.1-8b": 163_840, "llama-3.1-70b": 65_536, "llama-3.1-405b": 131_072}[name] > row["least_tokens"]


def test_a_compiled_step_stalls_just_below_its_minimum():
    small, large = programs("llama-3.1-8b", (1, 4))
    assert small["tokens"] < small["least_tokens"] and small["stall_seconds"] > 0
    assert large["tokens"] > large["least_tokens"] and large["stall_seconds"] < 1e-12
    assert 8e3 < small["least_tokens"] < 41e3 and "through" in small["loop"]


def test_it_keeps_what_it_prints(tmp_path, capsys):
    main(Settings(models=("llama-3.1-8b",), weight_bytes=(2.0,), points=8, program="", out=tmp_path / "study"))
    record = json.loads((tmp_path / "study" / "streaming.json").read_text())
    assert record["modelled"] and len(record["published"]) == 5 and len(record["scaling"]) == 2
    assert {"stall.png", "scaling.png"} <= {path.name for path in (tmp_path / "study").iterdir()}
    said = capsys.readouterr().out
    assert "modelled" in said and f"{record['closed_form']['2']['forward']:,.0f}" in said
    with pytest.raises(ValueError, match="points=1"):
        main(Settings(points=1))
