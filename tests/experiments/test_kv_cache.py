"""The study of balanced and concatenated caches runs, on small squares, and says what was emulated and what is modelled."""

from __future__ import annotations

import json

import pytest

from experiments.kv_cache import Published, Settings, longest_outputs, main


def test_a_small_study_prints_and_keeps_what_it_found(tmp_path, capsys):
    main(Settings(sides=(16, 24), prompt=20, tokens=(4, 40), capacity=False, out=tmp_path / "study"))
    found = json.loads((tmp_path / "study" / "kv_cache.json").read_text())
    assert set(found["rows"]["shift"]) == {3, 4} and sum(found["rows"]["shift"]) == 60  # on 16 rows
    assert found["rows"]["concat"] == [1] * 12 + [2] * 3 + [42]
    for r in found["modelled_steps"]:
        assert r["concat_longest_row"] == -(-20 // r["side"]) + r["tokens"]
        assert r["shift_longest_row"] == -(-(20 + r["tokens"]) // r["side"])
        assert r["shift_attention_cycles"] < r["concat_attention_cycles"] and r["shift_cycles"] > 0
    assert (tmp_path / "study" / "kv_cache.png").stat().st_size > 10_000
    assert "Modelled cycles" in capsys.readouterr().out


def test_a_row_of_slots_becomes_as_many_rows_of_them():
    found = longest_outputs(Published("llama-3-8b", 5, 3, 15))
    assert (found["emulated_concat"], found["emulated_shift"]) == (3, 15)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sides": (4,)}, "sides=4: fewer columns"), ({"tokens": ()}, "--tokens"), ({"sides": (9999,)}, "9999"), ({"model": "?"}, r"\?")],
)
def test_what_no_cache_can_have_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        main(Settings(**{"capacity": False, **wrong}))
