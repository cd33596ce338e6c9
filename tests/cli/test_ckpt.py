"""`wsejax ckpt`: what it says of a checkpoint, against the arrays that were saved, in every format."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.cells
import rich.console
import tyro
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.test_cli import asked, refused
from wsejax.cli import command as command_line
from wsejax.cli import main
from wsejax.cli.ckpt import distance
from wsejax.cli.programs import model_file
from wsejax.training.checkpoint import Checkpoints

MODEL = "llama:tiny"


def model() -> tuple:
    """A family, its configuration, and float32 parameters."""
    family, config = model_file("families").find(MODEL)
    rng = np.random.default_rng(0)
    return family, config, jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), family.abstract(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The same parameters thrice: hf/, orbax/, and run/, of which a checkpoint alone says nothing of its model."""
    root = tmp_path_factory.mktemp("saved")
    family, config, params = model()
    weights = model_file("weights")
    weights.save(root / "hf", family, config, params, max_shard_bytes=20_000)
    weights.save_orbax(root / "orbax", family, config, params)
    with Checkpoints(root / "run" / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"params": params, "opt_state": {"0": {"mu": params}}, "step": np.int32(step)})
    resolved = dataclasses.asdict(dataclasses.replace(config, remat="full"))
    (root / "run" / "config.json").write_text(json.dumps({"config": {"model": {"name": MODEL, **resolved}}, "about": {}}))
    return root


def count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


# ---- info --------------------------------------------------------------------------------------------------------------
def test_info_of_every_format(capsys, saved: Path):
    family, config, params = model()
    for name in ("hf", "orbax", "orbax/params"):
        text, data = asked(capsys, "ckpt", "info", str(saved / name))
        assert data["family"] == family.name and data["parameters"] == count(params) and data["bytes"] == 4 * count(params)
        assert f"family: {family.name}" in text and f"{count(params):,} parameters" in text and data["unknown"] == ""
        assert data["config"] == json.loads(json.dumps({k: v for k, v in vars(config).items()}, default=str))
    scale = params["norm"]["scale"]
    assert data["tensors"]["norm/scale"] == {"shape": list(scale.shape), "dtype": "float32", "bytes": scale.nbytes}
    _, data = asked(capsys, "ckpt", "info", str(saved / "hf"))
    listed = {name: (tuple(x["shape"]), x["dtype"]) for name, x in data["tensors"].items()}
    assert listed == {name: (x.shape, str(x.dtype)) for name, x in tensors_of(saved / "hf").items()}


def test_info_of_a_run_is_of_its_newest_checkpoint(capsys, saved: Path):
    family, _, params = model()
    _, data = asked(capsys, "ckpt", "info", str(saved / "run"))
    assert data["arrays_at"].endswith("checkpoints/2/state") and data["family"] == family.name and data["config"]["remat"] == "full"
    assert data["parameters"] == count(params) and data["bytes"] == 8 * count(params) + 4
    one = saved / "run" / "checkpoints" / "1"
    assert asked(capsys, "ckpt", "info", str(one))[1]["arrays_at"] == str(one.resolve() / "state")


def test_info_of_a_run_of_an_unknown_model_still_lists_its_arrays(capsys, saved: Path, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"config": {"model": {"name": "own:tiny", "layers": 2}}}')
    text, data = asked(capsys, "ckpt", "info", str(tmp_path / "run"))
    assert data["family"] is None and "family: unknown ('own' is not known here" in text
    assert data["config"] == {"name": "own:tiny", "layers": 2} and data["bytes"] == 8 * count(model()[2]) + 4


def test_info_without_a_configuration_guesses(capsys, saved: Path, tmp_path):
    file = next((saved / "hf").glob("*.safetensors"))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    text, data = asked(capsys, "ckpt", "info", str(tmp_path / file.name))
    assert data["family"] is None and "unknown (no config.json says it, looks like" in text


# ---- diff --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("a", "b"), [("hf", "hf"), ("hf", "orbax"), ("orbax", "run"), ("run", "hf"), ("run/checkpoints/1/state", "orbax")])
def test_the_same_parameters_do_not_differ_in_any_formats(capsys, saved: Path, a: str, b: str):
    text, data = asked(capsys, "ckpt", "diff", str(saved / a), str(saved / b))
    assert data["identical"] and "tensors are bit-identical" in text
    assert all(one["identical"] and one["max_abs"] == 0 for one in data["tensors"])
    assert len(data["tensors"]) == (len(tensors_of(saved / "hf")) if "hf" in (a, b) else len(jax.tree.leaves(model()[2])))


def test_two_runs_differ_in_all_of_their_state(capsys, saved: Path):
    assert main(["ckpt", "diff", str(saved / "run"), str(saved / "run" / "checkpoints" / "1"), "--json"]) == 1
    differing = [one for one in json.loads(capsys.readouterr().out)["tensors"] if not one["identical"]]
    assert differing == [{"name": "step", "a": "int32[]", "b": "int32[]", "identical": False, "max_abs": 1.0, "relative": 0.5}]


@pytest.mark.parametrize("other", ["hf", "orbax"])
def test_every_difference_is_told(capsys, saved: Path, tmp_path, other: str):
    """Hugging Face's file is changed, and held against the same format and against the other one."""
    tensors = tensors_of(saved / "hf")
    names = list(tensors)
    tensors[names[0]] = tensors[names[0]].astype(jnp.bfloat16)
    changed = tensors[names[1]].copy()
    changed.flat[3] += 2.0
    tensors[names[1]] = changed
    tensors[names[2]] = tensors[names[2]][:1]
    del tensors[names[3]]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    (tmp_path / "config.json").write_bytes((saved / "hf" / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    assert main(["ckpt", "diff", str(tmp_path), str(saved / other), "--json"]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["tensors"]}
    assert {name for name, one in found.items() if not one["identical"]} == {*names[:4], "extra.weight"}
    assert found[names[0]]["a"].startswith("bfloat16") and 0 < found[names[0]]["relative"] < 0.01
    assert found[names[1]]["max_abs"] == pytest.approx(2.0)
    assert found[names[2]]["max_abs"] is None and found[names[2]]["a"] != found[names[2]]["b"]
    assert (found[names[3]]["a"], found["extra.weight"]["b"]) == ("", "")
    assert main(["ckpt", "diff", str(tmp_path), str(saved / other)]) == 1
    text = capsys.readouterr().out
    assert all(name in text for name in (*names[:4], "extra.weight")) and names[4] not in text
    assert f"{len(names) - 4} of {len(names) + 1} tensors are bit-identical" in text


@given(st.lists(st.floats(width=32), min_size=1, max_size=9), st.data())
def test_distance_is_numpys(values: list[float], data):
    others = data.draw(st.lists(st.floats(width=32), min_size=len(values), max_size=len(values)))
    a, b = np.array(values, np.float32), np.array(others, np.float32)
    for x, y in ((a, b), (a, a.copy()), (a, a.astype(np.float64))):
        identical, apart, relative = distance(x, y)
        assert identical == (x.dtype == y.dtype and x.tobytes() == y.tobytes())
        alike = lambda p, q: p == q or (math.isnan(p) and math.isnan(q))
        differences = [0.0 if alike(p, q) else abs(p - q) for p, q in zip(x.tolist(), y.tolist(), strict=True)]
        worst = math.nan if any(map(math.isnan, differences)) else max(differences)
        np.testing.assert_equal(apart, worst)
        largest = np.nanmax(np.abs(np.array([*x, *y], np.float64)), initial=0.0)
        np.testing.assert_equal(relative, worst / largest if worst and np.isfinite(worst) else worst)


def test_distance_sees_past_the_first_piece():
    a = np.zeros((3, 1 << 20), jnp.bfloat16)
    b = a.copy()
    b[2, -1] = -3
    assert distance(a, b) == (False, 3.0, 1.0) and distance(a, a) == (True, 0.0, 0.0)


# ---- convert -----------------------------------------------------------------------------------------------------------
def test_there_and_back_is_bit_for_bit(capsys, saved: Path, tmp_path):
    _, data = asked_once(capsys, "ckpt", "convert", str(saved / "hf"), str(tmp_path / "orbax"), "--to", "orbax")
    assert data["parameters"] == count(model()[2])
    asked_once(capsys, "ckpt", "convert", str(tmp_path / "orbax"), str(tmp_path / "hf"), "--to", "hf", "--max-shard-bytes", "9000")
    for name, x in tensors_of(saved / "hf").items():
        assert tensors_of(tmp_path / "hf")[name].tobytes() == x.tobytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads((saved / "hf" / "config.json").read_text())


def asked_once(capsys, *arguments: str) -> tuple[str, dict]:
    """As JSON alone, since a second time would write over the first."""
    assert main([*arguments, "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out, json.loads(found.out)


def test_a_run_becomes_what_hugging_face_reads(capsys, saved: Path, tmp_path):
    asked_once(capsys, "ckpt", "convert", str(saved / "run"), str(tmp_path / "a"), "--to", "hf", "--dtype", "bfloat16")
    for name, x in tensors_of(saved / "hf").items():
        assert tensors_of(tmp_path / "a")[name].tobytes() == x.astype(jnp.bfloat16).tobytes()


def test_multipliers_of_mup_are_folded_in_for_hugging_face_and_it_is_said(capsys, tmp_path):
    family, config, params = model()
    wide = model_file("mup").parametrised(config, config.width // 4)
    model_file("weights").save_orbax(tmp_path / "orbax", family, wide, params)
    _, data = asked_once(capsys, "ckpt", "convert", str(tmp_path / "orbax"), str(tmp_path / "hf"), "--to", "hf")
    assert data["mup_folded"] and model_file("weights").load(tmp_path / "hf", family)[0] == config
    gain = tensors_of(tmp_path / "hf")["model.norm.weight"]
    np.testing.assert_array_equal(gain, params["norm"]["scale"] / 4)


def test_a_model_that_is_not_known_is_asked_for_and_nothing_is_written_over_without_leave(capsys, saved: Path, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(saved / "orbax" / "params", bare)
    convert = ("ckpt", "convert", str(bare), str(tmp_path / "a"))
    assert "give --model family:preset" in refused(capsys, *convert, "--to", "hf")
    asked_once(capsys, *convert, "--to", "hf", "--model", MODEL)
    assert "is not empty" in refused(capsys, *convert, "--to", "orbax", "--model", MODEL)
    asked_once(capsys, *convert, "--to", "orbax", "--model", MODEL, "--overwrite")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "params"]


# ---- the rest ----------------------------------------------------------------------------------------------------------
def test_bad_input_is_one_line_that_helps(capsys, saved: Path, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for arguments, hint in [
        ((str(tmp_path / "nowhere"),), "no such file or folder"),
        ((str(tmp_path / "empty"),), "holds neither"),
        ((str(tmp_path),), "convert it to safetensors"),
        ((str(saved / "hf"), "--model", "llama:giant"), "giant"),
    ]:
        assert hint in refused(capsys, "ckpt", "info", *arguments)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(next((saved / "hf").glob("*.safetensors")).read_bytes())
    shutil.copytree(saved / "orbax" / "params", tmp_path / "bare")
    assert "neither says its model" in refused(capsys, "ckpt", "diff", str(tmp_path / "bare"), str(alone))


@pytest.mark.parametrize("arguments", ["info {}/hf", "info {}/run", "diff {}/hf {}"])
def test_every_table_fits_eighty_columns(saved: Path, tmp_path, arguments: str):
    family, config, params = model()
    model_file("weights").save(tmp_path, family, config, jax.tree.map(lambda x: x + 1, params))
    command = ["ckpt", *arguments.format(saved, tmp_path).split()]
    output = tyro.cli(command_line._commands(), args=command, config=command_line.CONFIG).run()
    out = io.StringIO()
    console = rich.console.Console(width=80, file=out, markup=False, highlight=False)
    for part in output.parts:
        console.print(part)
    assert max(rich.cells.cell_len(line) for line in out.getvalue().splitlines()) <= 80
    assert "…" not in out.getvalue()
