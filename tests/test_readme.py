"""The README: its blocks of Python run as they stand, one after the other, its commands are there, and its tables are whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsejax.cli.command import COMMANDS
from wsejax.cost.table import published
from wsejax.cost.validation import validate

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# What the README takes for the reader's own.
STAND_INS = """
import optax
from wsejax.training.state import init_train_state, make_train_step

_tx = optax.adam(1e-3)
_loss = lambda params, batch, key: jnp.mean((jax.nn.one_hot(batch["tokens"], 32) @ params["w"]) ** 2)
train_step = make_train_step(_loss, _tx, stochastic=False)
state = init_train_state({"w": jnp.ones((32, 64))}, _tx, seed=0)
batch = {"tokens": jnp.ones((8, 16), jnp.int32)}
"""


def program() -> str:
    """All blocks in order, the stand-ins before the first that needs them."""
    at = next(n for n, block in enumerate(BLOCKS) if "train_step" in block)
    blocks = [*BLOCKS[:at], STAND_INS, *BLOCKS[at:]]
    return "\n".join(f"# ---- block {n}\n{block}" for n, block in enumerate(blocks))


def test_the_blocks_run_in_order(tmp_path):
    (tmp_path / "readme.py").write_text(program())
    done = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"step.wse", "traffic.png", "trace.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "modelled" in done.stdout and "Row(" not in done.stdout and "Price(" not in done.stdout


def test_it_names_every_command_and_only_those():
    named = set(re.findall(r"^python -m wsejax (\w+)", README, re.MULTILINE))
    assert named == set(COMMANDS)


def test_its_tables_are_not_cut():
    """A row after a blank line is no row of a table any more."""
    lines = README.splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|[-| ]+\|", after), line


# Rows of the table of errors, with their groups.
ERRORS = {
    "multicast on WSE-3": ["Multicast"],
    "2-D stencils on WSE-2, WSE-3 (simulator)": ["2-D stencil, WSE-2", "2-D stencil, WSE-3"],
    "sparse products (simulator)": ["SpMM"],
    "GEMV of a whole wafer": ["GEMV"],
    "LLM decode, prefill (WaferLLM, CS-2)": ["LLM decode", "LLM prefill"],
    "LLM decode on CS-3": ["LLM decode on WSE-3"],
    "training throughput, from dimensions": ["training throughput"],
    "training throughput, by `wse.cost` of the whole program": ["whole programs"],
    "the same, compiled for a cluster, weights streamed": ["streamed programs"],
    "training on 4 to 16 systems against one": ["training scaling"],
    "GPU all-reduce": ["GPU all-reduce"],
}


@pytest.mark.parametrize("label", ERRORS)
def test_errors_are_those_that_were_found(label: str):
    fitted = json.loads((ROOT / "wsejax" / "cost" / "fitted.json").read_text(encoding="utf-8"))
    of = [fitted[group] for group in ERRORS[label]]
    joined = lambda key: ", ".join(str(g[key]) if key == "points" else f"{g[key]:.1%}" for g in of)
    assert f"| {label} | {joined('points')} | {joined('median')} | {joined('held_out_median')} |" in README


def test_the_points_that_it_counts_are_those_of_the_table():
    found = validate()
    counts = (len(published()), len(found.predictions), len(found.bounds), len(found.excluded))
    words = r"takes the (\d+) published.*?predicts (\d+) of them.*?holds (\d+) as bounds, and says of the other (\d+)"
    said = re.search(words, README, re.DOTALL)
    assert said is not None and tuple(map(int, said.groups())) == counts


@pytest.mark.parametrize("name", sorted(set(re.findall(r"python -m (experiments\.\w+)", README))))
def test_the_studies_that_it_names_are_there(name: str):
    assert (ROOT / f"{name.replace('.', '/')}.py").is_file()
