"""`wsejax cost --weight-sparsity`."""

from __future__ import annotations

import json

import pytest

from wsejax.cli import main

FUNCTION = "def step(w, x):\n    return w - 0.1 * x.T @ (x @ w), (x @ w).sum()\n"


@pytest.fixture
def common(tmp_path) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(FUNCTION)
    shapes = ["--arg", "bfloat16[1024,1024]", "--arg", "bfloat16[4096,1024]"]
    return ["cost", f"{path}:step", "--donate", "0", *shapes]


def test_zero_weights_save_time_where_they_stream(capsys, common):
    assert main([*common, "--weight-sparsity", "0.9", "--execution", "streamed", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    step = data["weight_sparsity"]["step"]
    assert data["step_seconds"] == step["seconds"] <= step["dense_seconds"] and step["bound"] == pytest.approx(10)
    assert main([*common, "--weight-sparsity", "argument=0.9", "--execution", "streamed"]) == 0
    text = capsys.readouterr().out
    assert "at most" in text and "argument 0" in text


def test_resident_ones_save_nothing_and_the_table_says_so(capsys, common):
    assert main([*common, "--weight-sparsity", "0.9", "--execution", "resident"]) == 0
    assert "saves nothing of a resident program" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["1.0"], "less than 1"),
        (["mlp=0.5"], "matches no weight"),
        (["half"], "such as 0.75"),
        (["0.5", "0.6"], "one number for all"),
        (["argument=0.5", "0.6"], "one number for all"),
    ],
)
def test_what_is_no_share_is_one_line_that_helps(capsys, common, given, hint):
    assert main([*common, *(text for one in given for text in ("--weight-sparsity", one))]) == 2
    said = capsys.readouterr()
    assert said.out == "" and hint in said.err and said.err.count("\n") == 1
