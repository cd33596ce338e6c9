"""The fit's file: from any points, the same on every run, and read back by the validation."""

from __future__ import annotations

import json

from experiments.fit import Settings, main
from wsejax.cost.table import published
from wsejax.cost.validation import claimant


def test_it_writes_constants_folds_and_errors(tmp_path, capsys):
    some = [p for p in published() if p.experiment in ("multicast_line", "kv_shift")]
    (tmp_path / "points.json").write_text(json.dumps([{**vars(p), "config": dict(p.config)} for p in some]))
    main(Settings(out=tmp_path / "one.json", points=tmp_path / "points.json"))
    main(Settings(out=tmp_path / "two.json", points=tmp_path / "points.json"))
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    kept = json.loads((tmp_path / "one.json").read_text())
    assert len(kept["Multicast"]["ids"]) == kept["Multicast"]["points"] == 25 and len(kept["Multicast"]["folds"]) == 5
    assert kept["Multicast"]["held_out_median"] < 0.05 and kept["SpMM"]["points"] == 0
    assert "Multicast: 25 points" in capsys.readouterr().out
    assert {claimant(p).name for p in some} == {name for name, group in kept.items() if group["points"]}
