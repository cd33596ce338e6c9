"""The main job's own model, text and optimiser, long enough for a small difference to grow: minutes, hence slow."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.settings import Settings, WaferSettings
from experiments.train import main, on_machine, prepare
from wsejax.training import train_batches

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@functools.cache
def trained(steps: int, **wafer) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses of every step and the final state of the default run, on a wafer that differs from the default by `wafer`."""
    run = prepare(Settings(wafer=WaferSettings(**wafer), out=Path("runs/never-written")))
    machine = on_machine(run)
    state = jax.device_put(run.initial_state(), machine.state_shardings)
    batches, losses = train_batches(run.corpus, batch_size=run.settings.batch, seed=0), []
    for _ in range(steps):
        state, metrics = machine.step(state, next(batches))
        losses.append(np.asarray(metrics["loss"]))
    return np.array(losses), [np.asarray(x) for x in jax.tree.leaves(state)]


def same_bits(a, b) -> bool:
    return np.array_equal(a[0], b[0]) and all(x.tobytes() == y.tobytes() for x, y in zip(a[1], b[1], strict=True))


def test_a_hundred_steps_give_the_losses_of_plain_jax():
    plain, wafer = trained(100, off=True)[0], trained(100)[0]
    assert plain[-1] < plain[0] - 2.5  # from ln 256 down
    difference = np.abs(wafer / plain - 1)
    print(f"largest relative difference of the loss in 100 steps: {difference.max():.1e}")
    assert difference.max() < 1e-4


def test_five_percent_dead_pes_change_no_bit_in_a_hundred_steps():
    perfect = trained(100, dead_pe_fraction=0.0, dead_link_fraction=0.0)
    assert same_bits(trained(100, dead_pe_fraction=0.05), perfect)
    assert same_bits(trained(100), perfect)


@pytest.mark.parametrize(("tiles", "devices"), [((2, 2), (1, 2)), ((8, 8), (2, 2))], ids=str)
def test_twenty_steps_have_the_same_bits_on_any_device_mesh(tiles, devices):
    assert same_bits(trained(20, tiles=tiles, devices=devices), trained(20, tiles=tiles, devices=(1, 1)))


def test_a_checkpoint_gives_the_same_logits_on_another_wafer_and_in_plain_flax(tmp_path):
    """Trained on one wafer; continued on another (tiles, defects, devices), and read by flax and orbax alone."""
    small = "--model.layers 2 --batch 8 --steps 6 --eval-every 3 --eval-batches 1 --checkpoint-every 3 --sample-bytes 8"
    assert main(f"--out {tmp_path / 'a'} {small} --optimiser.warmup-steps 2 --data {ROOT / 'README.md'} {ROOT / 'Makefile'}".split()) == 0
    script = f"""
        import json, sys
        import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
        from flax import nnx
        from models.gpt2 import GPT2Config
        from models.transformer import Decoder
        config = GPT2Config(layers=2, width=128)
        path = {str(tmp_path / "a" / "checkpoints" / "6" / "state")!r}
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = checkpointer.metadata(path).item_metadata.tree
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), shapes)
            params = checkpointer.restore(path, target)["params"]
        graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params)
        tokens = jnp.arange(8 * 128, dtype=jnp.int32).reshape(8, 128) % 251
        assert not any(name.split(".")[0] == "wsejax" for name in sys.modules)
        np.save({str(tmp_path / "plain.npy")!r}, jax.jit(nnx.merge(graph, state))(tokens))
        np.savez({str(tmp_path / "params.npz")!r}, **{{jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300, cwd=ROOT)
    run = prepare(
        Settings(
            out=tmp_path / "other",
            data=(str(ROOT / "README.md"), str(ROOT / "Makefile")),
            batch=8,
            wafer=WaferSettings(rows=20, cols=24, dead_pe_fraction=0.05, defect_seed=7, tiles=(2, 4), devices=(1, 2)),
            model=Settings().model.__class__(layers=2),
        )
    )
    from wsejax import jit
    from wsejax.training import Checkpoints, abstract_like

    machine = on_machine(run)
    with Checkpoints(tmp_path / "a" / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(6, abstract_like(run.abstract_state, machine.state_shardings))
    tokens = np.arange(8 * 128, dtype=np.int32).reshape(8, 128) % 251
    assert run.wafer is not None
    logits = jit(run.task.apply, run.wafer)(restored.state.params, tokens)
    saved = np.load(tmp_path / "params.npz")
    for path, value in jax.tree_util.tree_leaves_with_path(restored.state.params):
        assert np.asarray(value).tobytes() == saved[jax.tree_util.keystr(path)].tobytes()
    np.testing.assert_allclose(np.asarray(logits), np.load(tmp_path / "plain.npy"), rtol=2e-5, atol=2e-5)
    assert json.loads((tmp_path / "a" / "config.json").read_text())
