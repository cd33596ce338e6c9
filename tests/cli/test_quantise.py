"""`wsejax ckpt quantise`: what it writes is read back, and what it prints is of the very same."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from models import int8, weights
from models.matching import flat
from tests.models.fakes import same_bits
from tests.models.small import small
from tests.test_cli import asked, refused
from wsejax.cli import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    family, config = small("llama", vocab_size=128, layers=1)
    scale = lambda path, x: 0.3 * np.random.default_rng(len(path)).standard_normal(x.shape).astype(np.float32)
    params = jax.tree_util.tree_map_with_path(scale, family.abstract(config))
    weights.save(folder / "hf", family, config, params)
    weights.save_orbax(folder / "orbax", family, config, params)
    (folder / "text").write_text("to be or not")
    return folder, family, config, params


def test_what_is_written_is_read_back_and_what_is_printed_is_of_it(capsys, saved, tmp_path):
    folder, family, config, params = saved
    flags = ["--group", "4", "--keep", "head/kernel"]
    assert main(["ckpt", "quantise", str(folder / "hf"), str(tmp_path / "hf"), *flags, "--text", str(folder / "text")]) == 0
    text = capsys.readouterr().out
    assert main(["ckpt", "quantise", str(folder / "orbax"), str(tmp_path / "orbax"), *flags, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    coded = int8.quantised(family, config, params, group=4, keep="head/kernel")
    for name in ("hf", "orbax"):
        assert same_bits(weights.load(tmp_path / name, family)[1], int8.dequantised(coded))
    assert {row["path"]: row["max_abs"] for row in data["tensors"]} == {row.path: row.max_abs for row in int8.errors(params, coded)}
    assert data["bytes_before"] == sum(x.nbytes for x in flat(params).values()) and data["bytes_after"] == sum(
        x.nbytes for x in flat(coded).values()
    )
    tokens = np.frombuffer(b"to be or not", np.uint8).astype(np.int32)[None]
    change = int8.change(family, config, params, coded, tokens)
    assert f"loss {change['loss_before']:.4f} became {change['loss_after']:.4f} nats a token" in text and data["change"] is None
    assert f"{change['max_abs']:.3g} off at most, {change['rms']:.3g} RMS, of {change['logits_rms']:.3g} RMS" in text
    assert all(path in text for path in ("blocks/mlp/down/kernel", "SQNR dB")) and "head/kernel" not in text


def test_the_other_commands_take_it(capsys, saved, tmp_path):
    folder, family, _, params = saved
    assert main(["ckpt", "quantise", str(folder / "hf"), str(tmp_path / "q")]) == 0
    capsys.readouterr()
    _, data = asked(capsys, "ckpt", "info", str(tmp_path / "q"))
    assert data["family"] == "llama" and data["parameters"] == sum(x.size for x in flat(params).values())
    assert main(["ckpt", "convert", str(tmp_path / "q"), str(tmp_path / "floats"), "--to", "hf"]) == 0
    assert same_bits(weights.load(tmp_path / "floats", family)[1], weights.load(tmp_path / "q", family)[1])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "is not empty"),
        (["--group", "7"], "which are no such groups"),
        (["--keep", "nothing"], "matches the whole path of no matrix"),
        (["--text", "short"], "has 1 tokens"),
        (["--text", "odd"], "vocabulary of 128"),
    ],
)
def test_what_cannot_be_quantised_is_said_and_nothing_is_written(capsys, saved, tmp_path, monkeypatch, flags, words):
    folder = saved[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("a")
    (tmp_path / "odd").write_text("naïve")
    out = tmp_path / "new" if flags else tmp_path
    assert words in refused(capsys, "ckpt", "quantise", str(folder / "hf"), str(out), *flags)
    assert not (tmp_path / "new").exists()
