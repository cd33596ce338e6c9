"""The bench runs, on a small wafer, and says what it has measured."""

from __future__ import annotations

import json

from experiments.fabric_bench import RATIOS, Settings, main


def test_a_small_bench_gives_every_ratio_and_solves(tmp_path, capsys):
    main(Settings(rows=12, cols=10, floats=4, rounds=2, out=tmp_path / "bench.json"))
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert set(figures["ratios"]) == {f"{one} / {other}" for one, other, _ in RATIOS}
    assert set(figures["milliseconds"]) >= {name for one, other, _ in RATIOS for name in (one, other)}
    assert 0 < figures["residual"] < 1
    assert figures["peak_memory_gib"] > 0
    printed = capsys.readouterr().out
    assert "host time" in printed and "BiCGSTAB on 480 cells" in printed
