"""Orbax's folders: plain orbax reads what is saved here, and what plain orbax or a run has saved is read here."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from models import matching, orbax_files, weights
from models.families import FAMILIES
from tests.models.fakes import Config, Fake, llama_like, numbers, same_bits
from wsejax.training.checkpoint import Checkpoints


def some() -> tuple[Fake, dict]:
    """A family, and parameters of several dtypes."""
    family = llama_like()
    dtypes = dict.fromkeys(family.shapes, np.float32) | {"blocks/up/kernel": jnp.bfloat16}
    return family, matching.nested(numbers(family.shapes, dtypes))


def plainly_saved(path, tree) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def test_plain_orbax_reads_what_is_saved(tmp_path):
    family, params = some()
    weights.save_orbax(tmp_path / "a", family, Config(5), jax.device_put(params))
    with ocp.StandardCheckpointer() as checkpointer:
        read = checkpointer.restore(tmp_path / "a" / "params")
    assert same_bits(read, params)
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {"family": "fake", "config": {"size": 5}}
    mesh = jax.make_mesh((2, 2), ("y", "x"))
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, P(*[None] * (x.ndim - 1), "x") if x.shape[-1] % 2 == 0 else P()), params)
    config, loaded = weights.load_orbax(tmp_path / "a", family, shardings=shardings)
    assert config == Config(5) and same_bits(loaded, params)
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_is_told_in_full(name: str):
    family = FAMILIES[name]
    for config in family.presets.values():
        told = json.loads(json.dumps(matching.in_full(config, family)))
        assert matching.configuration(told, family, "here") == config
    for odd, why in (({"family": "other"}, "says family 'other'"), ({"config": {"no_such_field": 1}}, "no_such_field")):
        with pytest.raises(ValueError, match=rf"here: config\.json .*{why}"):
            matching.configuration(told | odd, family, "here")


def test_what_plain_orbax_or_a_run_has_saved_is_read(tmp_path):
    family, params = some()
    plainly_saved(tmp_path / "plain", params)
    state = {"params": params, "opt_state": {"0": {"count": np.zeros((), np.int32), "mu": params}, "1": None}, "step": np.int32(3)}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for step in (9, 10):
            checkpoints.save(step, {**state, "params": jax.tree.map(lambda x, step=step: x + step, params)})
    ten, nine = (jax.tree.map(lambda x, step=step: x + step, params) for step in (10, 9))
    places = {"plain": params, "run": ten, "run/checkpoints": ten, "run/checkpoints/9": nine, "run/checkpoints/9/state": nine}
    for place, want in places.items():
        config, loaded = weights.load_orbax(tmp_path / place, family, Config(1))
        assert config == Config(1) and same_bits(loaded, want)
    with pytest.raises(ValueError, match=r"no config\.json tells"):
        weights.load_orbax(tmp_path / "plain", family)
    _, cast = weights.load_orbax(tmp_path / "plain", family, Config(), dtype="float16")
    assert same_bits(cast, jax.tree.map(lambda x: x.astype(np.float16), params))


def test_one_error_says_all_that_does_not_fit(tmp_path):
    family, params = some()
    flat = matching.flat(params)
    del flat["tokens/embedding"]
    odd = {"blocks/norm/scale": np.zeros((2, 9), np.float32), "more/scale": np.zeros(2, np.float32), "head/kernel": np.zeros((4, 6))}
    plainly_saved(tmp_path / "odd", matching.nested(flat | odd))
    with pytest.raises(ValueError) as error:
        weights.load_orbax(tmp_path / "odd", family, Config())
    for said in (
        "tokens/embedding: missing",
        "blocks/norm/scale: has shape [2, 9], and should have [2, 4]",
        "more/scale: the model has no such parameter",
        "head/kernel: is float64, which JAX would cast; give dtype",
    ):
        assert said in str(error.value)


def test_what_cannot_be_read_is_one_error(tmp_path):
    family, params = some()
    with pytest.raises(ValueError, match="orbax has saved nothing here"):
        weights.load_orbax(tmp_path, family)
    for n, (file, content) in enumerate([("_METADATA", b"{"), ("manifest.ocdbt", b"none")]):
        folder = tmp_path / str(n)
        weights.save_orbax(folder, family, Config(), params)
        (folder / "params" / file).write_bytes(content)
        with pytest.raises(ValueError, match="params: corrupt, as orbax cannot read"):
            weights.load_orbax(folder, family)
    weights.save_orbax(tmp_path / "gone", family, Config(), params)
    (tmp_path / "gone" / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match="params: corrupt, as orbax cannot read"):
        weights.load_orbax(tmp_path / "gone", family)
    weights.save_orbax(tmp_path / "cut", family, Config(), params)
    for path in (tmp_path / "cut" / "params").glob("**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="params: corrupt, as orbax cannot read"):
        weights.load_orbax(tmp_path / "cut", family)


def test_nothing_is_written_over_without_leave_and_formats_do_not_mix(tmp_path):
    family, params = some()
    weights.save_orbax(tmp_path, family, Config(), params)
    with pytest.raises(ValueError, match="is not empty"):
        weights.save(tmp_path, family, Config(), params)
    weights.save(tmp_path, family, Config(), params, overwrite=True)
    assert orbax_files.find_tree(tmp_path) is None and same_bits(weights.load(tmp_path, family)[1], params)
    weights.save_orbax(tmp_path, family, Config(), params, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "params"]
    with pytest.raises(ValueError, match="head/kernel: missing"):
        weights.save_orbax(tmp_path / "b", family, Config(), {"blocks": params["blocks"]})
