"""experiments.export: the folder is that of `models.exported`, of weights in any format; what does not go together is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.export import main
from models import int8, weights
from models.matching import flat
from tests.models.small import parameters, quickly, small


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    family, config = small("llama")
    weights.save(folder / "hf", family, config, parameters("llama"))
    weights.save_orbax(folder / "orbax", family, config, parameters("llama"))
    return folder


def test_both_formats_become_the_same_function(saved, tmp_path, capsys):
    family, config = small("llama")
    coded = int8.quantised(family, config, parameters("llama"), group=4)
    tokens = np.array([[3, 1, 2]], np.int32)
    wanted = quickly(lambda p: family.apply(config, p, tokens))(int8.dequantised(coded))
    for name in ("hf", "orbax"):
        run = ["--weights", str(saved / name), "--out", str(tmp_path / name), "--int8", "--group", "4", "--platforms", "cpu", "cuda"]
        assert main(run) == 0 and "run.py 1 2 3" in capsys.readouterr().out
        params = load_file(tmp_path / name / "params.safetensors")
        assert all((x == flat(coded)[path]).all() for path, x in params.items()) and params.keys() == flat(coded).keys()
        found = jax.export.deserialize(bytearray((tmp_path / name / "forward.stablehlo").read_bytes()))
        np.testing.assert_allclose(quickly(found.call)(params, tokens), wanted, rtol=1e-4, atol=1e-4)
        assert json.loads((tmp_path / name / "about.json").read_text())["platforms"] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--group", "4"], "--group: says how matrices become int8; give --int8"),
        (["--int8", "--group", "7"], "which are no such groups"),
        (["--weights", "nowhere"], "nowhere"),
        (["--out", "."], "is not empty"),
    ],
)
def test_what_cannot_be_exported_is_said(saved, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("")
    assert main(["--weights", str(saved / "hf"), "--out", "new", *more]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "new").exists()
