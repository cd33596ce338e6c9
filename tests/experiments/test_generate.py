"""Text out of a model that was trained here."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generate, train
from experiments.reproduce import settings_of
from models.orbax_files import load_orbax

pytestmark = pytest.mark.slow
FLAGS = (
    "--model.layers 2 --model.heads 2 --model.width 16 --model.context 32 --batch 4 --steps 4 --eval-every 4 --eval-batches 1 "
    "--checkpoint-every 4 --sample-bytes 4 --optimiser.warmup-steps 2 --optimiser.learning-rate 0.05 --wafer.off"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a short run of experiments.train."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("\n".join(f"wafer {n} and fabric {n * n}" for n in range(4000)))
    with jax.numpy_rank_promotion("allow"):
        assert train.main([*FLAGS.split(), "--data", str(folder / "text.txt"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_run_goes_on_as_its_newest_checkpoint_says(run, capsys):
    capsys.readouterr()
    assert generate.main(["--model", str(run), "--prompt", "the w", "--max-new-tokens", "12", "--wafer.off", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    model = settings_of(run / "manifest.jsonl").model
    family, config = model.family(), model.config()
    params = load_orbax(run, family, config)[1]
    tokens, apply = list(b"the w"), jax.jit(lambda tokens: family.apply(config, params, tokens))
    for _ in range(12):
        tokens.append(int(np.argmax(apply(jnp.array([tokens + [0] * (32 - len(tokens))]))[0, len(tokens) - 1])))
    assert data["sequences"][0]["tokens"] == tokens[5:]
    assert data["sequences"][0]["text"] == bytes(tokens[5:]).decode("utf-8", "replace")
    assert data["model"].startswith("gpt2:tiny of ") and data["note"] == ""


def test_other_models_and_bad_input_are_as_in_wsejax_generate(run, capsys):
    assert generate.main(["--model", "llama:none", "--prompt", "a", "--wafer.off"]) == 2
    assert "llama has no preset 'none'" in capsys.readouterr().err
    (run / "manifest.jsonl").write_text("")
    assert generate.main(["--model", str(run), "--prompt", "a", "--wafer.off"]) == 2
    assert "manifest.jsonl has no entry" in capsys.readouterr().err
