"""Checkpoints: what comes back is what went in, on any machine; what is broken is said, kept and passed over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from wsejax.training import (
    CheckpointMismatchError,
    Checkpoints,
    CorruptCheckpointError,
    TrainState,
    abstract_like,
    init_train_state,
)

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))


def state_of(seed: int = 0, dtype=jnp.float32) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {
        "w": jnp.asarray(rng.normal(size=(8, 8)), dtype),
        "layers": {0: jnp.asarray(rng.normal(size=3), jnp.bfloat16), 1: jnp.zeros(1)},
    }
    return init_train_state(params, TX, seed=seed)


def one_device(state, index: int = 0):
    return abstract_like(state, SingleDeviceSharding(jax.devices()[index]))


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def on_mesh(state, grid, spec):
    mesh = jax.make_mesh(grid, ("y", "x"), axis_types=(AxisType.Auto,) * 2)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: split if x.shape == (8, 8) else whole, state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 10, 20, 30 of states with seeds 1, 2, 3; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for k in (1, 2, 3):
            checkpoints.save(10 * k, state_of(k), data_state={"next_index": k}, meta={"note": "x"})
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_what_comes_back_is_what_went_in(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(one_device(state_of()))
    assert restored is not None and restored.step == 30
    assert same(restored.state, state_of(3))
    assert restored.data_state == {"next_index": 3} and restored.meta == {"note": "x"}


def test_restores_onto_any_mesh(saved, device_grid):
    """Saved from one device, restored in another layout, saved from there, restored in a third: the same bits."""
    shardings = on_mesh(state_of(), device_grid, PartitionSpec("y", "x"))
    with Checkpoints(saved, read_only=True) as checkpoints:
        state = checkpoints.restore(20, abstract_like(state_of(), shardings)).state
    assert same(state, state_of(2))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    with Checkpoints(saved.parent / f"again{device_grid[0]}{device_grid[1]}") as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        turned = abstract_like(state_of(), on_mesh(state_of(), device_grid[::-1], PartitionSpec("x")))
        assert same(checkpoints.restore(1, turned).state, state_of(2))


def test_saves_the_values_of_now_although_the_state_is_donated_next(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros((256, 256))}
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(1, 5):
            tree = bump(tree)
            checkpoints.save(step, tree)
            for _ in range(3):
                tree = bump(tree)
        checkpoints.wait()
        for k in range(4):
            state = checkpoints.restore(k + 1, one_device(tree)).state
            np.testing.assert_array_equal(state["w"], 4 * k + 1)


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 7, 9, 11):
            checkpoints.save(step, {"w": jnp.ones(2)})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [9, 11]


def test_never_overwrites(copy):
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(ValueError, match="step 30 is already saved"):
            checkpoints.save(30, state_of(9))
        assert same(checkpoints.restore(30, one_device(state_of())).state, state_of(3))


def test_an_empty_folder_has_no_newest(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_newest(one_device(state_of())) is None


def test_what_a_kill_leaves_half_written_is_no_checkpoint(copy):
    shutil.copytree(copy / "30", copy / "40.orbax-checkpoint-tmp-1")
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
        checkpoints.save(40, state_of(4))
        checkpoints.wait()
        restored = checkpoints.restore_newest(one_device(state_of()))
        assert restored is not None and same(restored.state, state_of(4))


def break_array_data(folder: Path) -> None:
    """Truncate the largest file that holds arrays."""
    largest = max((folder / "state" / "d").glob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_every_array_file(folder: Path) -> None:
    for path in (folder / "state" / "d").glob("*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


def tamper_with_the_place_in_the_data(folder: Path) -> None:
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["data"]["next_index"] += 1
    path.write_text(json.dumps(meta))


def tamper_with_a_checksum(folder: Path) -> None:
    """As if an array had changed on disk in a way that still decodes."""
    path = folder / "meta" / "metadata"
    from wsejax.training import checkpoint

    meta = json.loads(path.read_text())
    del meta["seal"]
    meta["arrays"]["params/w"]["crc32"] ^= 1
    path.write_text(json.dumps(meta | {"seal": checkpoint._seal(meta)}))


DAMAGE = {
    "array data cut": break_array_data,
    "array data flipped": flip_every_array_file,
    "no arrays": lambda folder: shutil.rmtree(folder / "state"),
    "array index gone": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "listing empty": lambda folder: (folder / "meta" / "metadata").write_bytes(b""),
    "listing gone": lambda folder: shutil.rmtree(folder / "meta"),
    "place in the data changed": tamper_with_the_place_in_the_data,
    "array changed": tamper_with_a_checksum,
    "all gone": lambda folder: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_newest_is_said_kept_and_passed_over(copy, damage):
    DAMAGE[damage](copy / "30")
    broken = sorted((path.relative_to(copy / "30"), path.stat().st_size) for path in (copy / "30").rglob("*"))
    said: list[str] = []
    with Checkpoints(copy, report=said.append) as checkpoints:
        restored = checkpoints.restore_newest(one_device(state_of()))
        assert restored is not None and restored.step == 20 and same(restored.state, state_of(2))
        assert len(said) == 1 and "step 30" in said[0] and "corrupt-30" in said[0]
        kept = sorted((path.relative_to(copy / "corrupt-30"), path.stat().st_size) for path in (copy / "corrupt-30").rglob("*"))
        assert kept == broken, "the broken one is kept as it was"
        # and it is out of the way
        checkpoints.save(30, state_of(7), data_state={"next_index": 3})
        checkpoints.wait()
        again = checkpoints.restore_newest(one_device(state_of()))
        assert again is not None and again.step == 30 and same(again.state, state_of(7))
    assert len(said) == 1


def test_all_corrupt_leaves_none_and_keeps_each(copy):
    for step in (10, 20, 30):
        break_array_data(copy / str(step))
    with pytest.warns(UserWarning, match="passed over") as warned, Checkpoints(copy) as checkpoints:
        assert checkpoints.restore_newest(one_device(state_of())) is None
    assert len(warned) == 3
    assert sorted(path.name for path in copy.iterdir()) == ["corrupt-10", "corrupt-20", "corrupt-30"]


def test_twice_corrupt_at_one_step_keeps_both(copy):
    with Checkpoints(copy, report=lambda _: None) as checkpoints:
        for _ in range(2):
            break_array_data(copy / "30")
            checkpoints.restore_newest(one_device(state_of()))
            checkpoints.save(30, state_of(5))
            checkpoints.wait()
    assert {"corrupt-30", "corrupt-30-2", "30"} <= {path.name for path in copy.iterdir()}


def test_read_only_changes_nothing(copy):
    break_array_data(copy / "30")
    (copy / "40.orbax-checkpoint-tmp-1").mkdir()
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    with Checkpoints(copy, read_only=True, report=lambda _: None) as checkpoints:
        restored = checkpoints.restore_newest(one_device(state_of()))
    assert restored is not None and restored.step == 20
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before


def wrong_states():
    state = state_of()
    yield "dtype", state_of(dtype=jnp.float16), r"params/w is float32\[8, 8\] in the checkpoint, float16\[8, 8\]"
    wide = TrainState({**state.params, "w": jnp.zeros((8, 4))}, state.opt_state, state.step, state.rng)
    yield "shape", wide, r"params/w is float32\[8, 8\] in the checkpoint, float32\[8, 4\]"
    more = TrainState({**state.params, "v": jnp.zeros(2)}, state.opt_state, state.step, state.rng)
    yield "more", more, "params/v is only in the state to fill"
    fewer = TrainState({"w": state.params["w"]}, state.opt_state, state.step, state.rng)
    yield "fewer", fewer, "params/layers/0 is only in the checkpoint"


@pytest.mark.parametrize(("state", "words"), [case[1:] for case in wrong_states()], ids=[case[0] for case in wrong_states()])
def test_another_model_is_an_error_not_corruption(copy, state, words):
    with Checkpoints(copy) as checkpoints, pytest.raises(CheckpointMismatchError, match=words):
        checkpoints.restore_newest(one_device(state))
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20", "30"]


def test_restore_of_one_step_raises_what_is_wrong_with_it(copy):
    break_array_data(copy / "30")
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(CorruptCheckpointError, match="arrays cannot be read"):
            checkpoints.restore(30, one_device(state_of()))
        with pytest.raises(CorruptCheckpointError, match="listing cannot be read"):
            checkpoints.restore(31, one_device(state_of()))
    assert (copy / "30").is_dir()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep=1: keep at least 2"):
        Checkpoints(tmp_path, keep=1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Checkpoints(tmp_path / "none", read_only=True)


def test_orbax_alone_reads_the_state_without_this_package(saved):
    """A process that never imports wsejax gets plain nested dicts with the saved values."""
    script = f"""
        import sys, warnings
        import jax, numpy as np, orbax.checkpoint as ocp
        path = {str(saved / "30" / "state")!r}
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = checkpointer.metadata(path).item_metadata.tree
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), shapes)
            state = checkpointer.restore(path, target)
        assert type(state["params"]["layers"]["0"]) is not dict and state["params"]["layers"]["0"].dtype == "bfloat16"
        assert not any(name.split(".")[0] == "wsejax" for name in sys.modules)
        np.save({str(saved.parent / "w.npy")!r}, state["params"]["w"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120, cwd=saved.parent)
    np.testing.assert_array_equal(np.load(saved.parent / "w.npy"), state_of(3).params["w"])
