"""An exported forward pass: in a process that knows none of this library its logits are ours, of any batch and length."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import exported, int8
from models.matching import flat
from tests.models.small import CONTEXT, VOCAB, close, parameters, quickly, small

ELSEWHERE = """
import runpy, sys
from safetensors.numpy import load_file, save_file
tokens, logits, *folders = sys.argv[1:]
sys.argv = ["run.py", "3", "1", "2"]
found = {}
for folder in folders:
    run = runpy.run_path(f"{folder}/run.py", run_name="__main__")
    found |= {f"{folder}/{name}": run["np"].asarray(run["forward"](run["params"], x)) for name, x in load_file(tokens).items()}
save_file(found, logits)
known = {name.partition(".")[0] for name in sys.modules}
assert not known & {"wsejax", "models", "wsejax_models", "experiments", "flax", "optax", "orbax"}, known
"""


def tokens_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, shape).astype(np.int32)


def test_another_process_gives_our_logits(tmp_path):
    """With the files alone, outside this folder: two batches and lengths; floats, and int8. What run.py prints, too."""
    given = {"one": np.array([[3, 1, 2]], np.int32), "three": tokens_of(3, CONTEXT)}
    save_file(given, tmp_path / "tokens")
    family, config = small("llama")
    params = parameters("llama")
    coded = int8.quantised(family, config, params, group=4, tables=True)
    models = {"floats": params, "int8": coded}
    for name, one in models.items():
        exported.save(tmp_path / name, family, config, one)
    command = [sys.executable, "-I", "-c", ELSEWHERE, "tokens", "logits", *models]
    done = subprocess.run(command, cwd=tmp_path, env={"JAX_PLATFORMS": "cpu"}, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, said = load_file(tmp_path / "logits"), [line.split(": ") for line in done.stdout.splitlines()]
    apply = quickly(lambda p, t: family.apply(config, p, t))
    for name, one in models.items():
        floats = int8.dequantised(one)
        for key, tokens in given.items():
            close(found[f"{name}/{key}"], apply(floats, tokens), 1e-6)
        logits = np.asarray(apply(floats, given["one"]))[0, -1]
        best, said = said[:5], said[5:]
        assert [int(token) for token, _ in best] == logits.argsort()[::-1][:5].tolist()
        np.testing.assert_allclose([float(logit) for _, logit in best], np.sort(logits)[::-1][:5], atol=1e-4)
    held = load_file(tmp_path / "int8" / "params.safetensors")
    assert {x.dtype for path, x in held.items() if path.endswith("/codes")} == {np.dtype(np.int8)} and held.keys() == flat(coded).keys()
    about = json.loads((tmp_path / "int8" / "about.json").read_text())
    assert about["int8"] and about["platforms"] == ["cpu", "cuda", "tpu"] and about["inputs"] == ["int32['batch', 'time']"]
    assert (about["family"], about["config"]["context"]) == ("llama", CONTEXT)


@pytest.mark.parametrize("name", ["mixtral", "falcon_alibi", "bert", "t5"])
def test_every_kind_of_model_has_one_function_for_all_shapes(name):
    family, config = small(name)
    params = flat(parameters(name))
    blob = exported.forward(family, config, params, platforms=("cpu", "cuda")).serialize()
    call, apply = quickly(jax.export.deserialize(blob).call), quickly(lambda p, *t: family.apply(config, p, *t))
    tokens = (tokens_of(2, 7),) * (2 if family.kind == "encoder-decoder" else 1)
    close(call(params, *tokens), apply(parameters(name), *tokens), 1e-5)
    with pytest.raises(ValueError, match="refining shapes"):
        call(params, *((tokens_of(1, CONTEXT + 1),) * len(tokens)))


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path):
    family, config = small("llama")
    params = parameters("llama")
    with pytest.raises(ValueError, match=r"platforms=\('abacus',\): give some of cpu"):
        exported.save(tmp_path / "new", family, config, params, platforms=("abacus",))
    with pytest.raises(ValueError, match="norm/scale hold what is not finite"):
        exported.save(tmp_path / "new", family, config, params | {"norm": {"scale": params["norm"]["scale"] * np.inf}})
    with pytest.raises(ValueError, match="head/kernel: missing"):
        exported.save(tmp_path / "new", family, config, {name: x for name, x in params.items() if name != "head"})
    (tmp_path / "there").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        exported.save(tmp_path, family, config, params)
    assert not (tmp_path / "new").exists()
