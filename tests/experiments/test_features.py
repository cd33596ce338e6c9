"""Precision, sparsity, packed documents, micro-batches, averages and guards, as `experiments.train` has them by its flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from experiments.features import DocumentSettings, LossScaleSettings, SparsitySettings
from experiments.run import checked, on_machine
from experiments.settings import LoopSettings, OptimiserSettings, Settings
from experiments.task import ModelSettings
from experiments.train import main
from wsejax import sparse
from wsejax.training.lossscale import loss_scale_state
from wsejax.training.rundir import read_metrics

SIZES = "--model.layers 2 --model.width 16 --model.heads 2 --model.context 16 --batch 4"
STEPS = "--steps 8 --eval-every 4 --eval-batches 1 --checkpoint-every 4 --optimiser.warmup-steps 2 --sample-bytes 4"
SMALL = f"{SIZES} {STEPS} --wafer.off".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    """Many short documents."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(60):
        (folder / f"{n:02d}.txt").write_text(f"tile {n * n} of {n} wafers"[: 5 + n % 20])
    return ["--data", str(folder / "*.txt")]


def rows(out: Path) -> list[dict]:
    return [{name: x for name, x in row.items() if not name.startswith("host_")} for row in read_metrics(out / "metrics.jsonl")]


def newest(out: Path) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore((out / "checkpoints" / "8" / "state").absolute()))


FORMS = "--precision float16 --loss-scale.interval 3 --sparsity.method rigl --sparsity.sparsity 0.8 --sparsity.every 2"
LARGE = "--documents.how pack --micro-batches 2 --loop.noise-scale --optimiser.ema-decay 0.9 --loop.norms-every 4 --loop.tensorboard"
ALL = f"{FORMS} {LARGE}".split()


@pytest.mark.slow
def test_with_everything_on_a_stopped_run_goes_on_bit_for_bit(text, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*SMALL, *ALL, *text, "--out", str(whole)]) == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "8")
    assert main([*SMALL, *ALL, *text, "--out", str(cut)]) == 0
    assert rows(whole) == rows(cut)
    one, other = newest(whole), newest(cut)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    last = rows(whole)[-1]
    assert {"loss_scale", "skipped_steps", "gradient_signal", "gradient_noise", "validation_loss", "sparsity/all"} <= last.keys()
    assert last["sparsity/all"] == pytest.approx(0.8, abs=0.01) and last["loss_scale"] == 2.0**15
    kernel = one["params"]["blocks"]["mlp"]["up"]["kernel"]
    assert (kernel == 0).mean() == pytest.approx(0.8, abs=0.01) and kernel.dtype == np.float32
    assert last["norm/blocks/mlp/up/kernel"] == pytest.approx(np.sqrt((kernel.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert list((whole / "tensorboard").glob("events.*"))


def test_micro_batches_change_no_number_up_to_rounding(text, tmp_path):
    for count in (1, 4):
        flags = ["--micro-batches", str(count), "--documents.how", "pad", "--out", str(tmp_path / str(count))]
        assert main([*SMALL, *text, *flags]) == 0
    one, four = rows(tmp_path / "1"), rows(tmp_path / "4")
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([row[name] for row in four], [row[name] for row in one], rtol=1e-4, err_msg=name)


def settings(text, **changes) -> Settings:
    model = ModelSettings(layers=2, width=16, heads=2, context=16)
    usual = {"model": model, "data": tuple(text[1:]), "batch": 4, "steps": 8, "eval_batches": 1}
    return Settings(**{**usual, **changes, "wafer": Settings().wafer.__class__(off=True)})


@pytest.mark.parametrize(
    "precision, dtype", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("cb16", "float16")]
)
def test_the_precision_is_that_of_activations_not_of_parameters(precision, dtype, text):
    run = checked(settings(text, precision=precision))
    assert run.task.config.dtype == dtype
    assert {x.dtype for x in jax.tree.leaves(run.abstract_state.params)} == {np.dtype("float32")}
    scaling = loss_scale_state(run.initial_state().opt_state)
    assert (None if scaling is None else float(scaling.scale)) == {"float16": 2.0**15, "cb16": 2.0**31}.get(precision)


def test_what_becomes_of_documents_is_said(text):
    said = checked(settings(text, documents=DocumentSettings("pack"))).said
    assert "documents to train on" in said and "longer than the context of 16 and are split" in said and "% padding" in said
    assert "documents" not in checked(settings(text, documents=DocumentSettings())).said


def test_training_begins_with_weights_that_are_pruned(text):
    model = ModelSettings(layers=2, width=16, heads=4, context=16)  # four heads, along which `out` contracts
    state = checked(settings(text, model=model, sparsity=SparsitySettings("static", structure="2:4"))).initial_state()
    for path, mask in sparse.masks_of(state.opt_state).items():
        leaf = state.params
        for part in path.split("/"):
            leaf = leaf[part]
        assert float(mask.mean()) == 0.5 and not np.any(np.asarray(leaf)[~np.asarray(mask)])
    assert len(sparse.masks_of(state.opt_state)) == 6  # q, k, v, out, up, down


def test_groups_learn_at_rates_of_their_own(text):
    still = OptimiserSettings(group=((r"blocks/mlp/.*", 0.0, None),))
    run = checked(settings(text, optimiser=still))
    state = run.initial_state()
    before = jax.device_get(state.params)
    machine = on_machine(run)
    batches = run.batches()
    for _ in range(3):
        state, _ = machine.step(state, next(batches))
    same = jax.tree.map(lambda a, b: bool((a == np.asarray(b)).all()), before, jax.device_get(state.params))
    assert jax.tree.all(same["blocks"]["mlp"]) and not any(jax.tree.leaves(same["blocks"]["attention"]["q"]["kernel"]))


def test_what_is_validated_has_the_zeros_of_the_weights_and_a_group_is_written_down(text, tmp_path):
    """Of an average that remembers weights which are pruned by now."""
    flags = ["--sparsity.method", "gmp", "--sparsity.sparsity", "0.75", "--sparsity.every", "2", "--optimiser.ema-decay", "0.9"]
    groups = ["--optimiser.group", "blocks/mlp/.*", "0.5", "None"]
    assert main([*SMALL, *text, *flags, *groups, "--documents.how", "pad", "--out", str(tmp_path / "run")]) == 0
    optimiser = OptimiserSettings(ema_decay=0.9, group=(("blocks/mlp/.*", 0.5, None),))
    run = checked(settings(text, sparsity=SparsitySettings("gmp", 0.75, every=2), optimiser=optimiser))
    saved = newest(tmp_path / "run")
    state = serialization.from_state_dict(jax.tree.map(jnp.zeros_like, run.abstract_state), saved)
    for one, other in zip(jax.tree.leaves(run.averaged(state)), jax.tree.leaves(state.params), strict=True):
        assert not np.asarray(one)[np.asarray(other) == 0].any()
    assert rows(tmp_path / "run")[-1]["sparsity/all"] == pytest.approx(0.75, abs=0.01)


def test_a_loss_that_is_never_finite_names_the_operation_and_its_layer(text, tmp_path, capsys, monkeypatch):
    """The second block divides by zero."""
    from models import layers

    through = layers.MLP.__call__
    monkeypatch.setattr(layers.MLP, "__call__", lambda self, x: through(self, x) + jnp.log(-jnp.square(x)))
    assert main([*SMALL, *text, "--documents.how", "pack", "--out", str(tmp_path / "run")]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the loss of step 1 is nan (first in log at" in said and "trip 0 of the loop" in said


def test_a_run_ends_when_the_loss_falls_no_more_and_is_then_complete(text, tmp_path, capsys):
    flags = [*SMALL, *text, "--out", str(tmp_path / "run"), "--loop.patience", "1", "--loop.least-fall", "100", "--eval-every", "2"]
    assert main(flags) == 0
    assert rows(tmp_path / "run")[-1]["step"] == 4 and (tmp_path / "run" / "sample.txt").exists()
    assert "was best after step 2" in " ".join(capsys.readouterr().out.split())
    assert main(flags) == 0  # nothing is left to do
    assert rows(tmp_path / "run")[-1]["step"] == 4
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    assert kinds.count("end") == 2


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sparsity": SparsitySettings("static", 0.5, "blocks/mlp/up/bias")}, "is no matrix"),
        ({"sparsity": SparsitySettings("static", 0.5, "nothing")}, "matches the whole path of no parameter"),
        ({"sparsity": SparsitySettings("static", 1.0)}, "1.0"), ({"sparsity": SparsitySettings("static")}, "is missing"),
        ({"sparsity": SparsitySettings("gmp", 0.5, begin=6, end=2)}, "end before they begin"),
        ({"sparsity": SparsitySettings(sparsity=0.5)}, "without --sparsity.method"),
        ({"sparsity": SparsitySettings("static", 0.5, structure="half")}, "--sparsity.structure half"),
        ({"precision": "float61"}, "float61"),
        ({"stochastic_rounding": True}, "rounds nothing"), ({"loss_scale": LossScaleSettings(static=True)}, "scales no loss"),
        ({"documents": DocumentSettings("pack", "refuse"), "model": ModelSettings(width=16, heads=2, context=8)}, "are longer"),
        ({"optimiser": OptimiserSettings(clip_value=1.0)}, "clip by one of them"),
        ({"optimiser": OptimiserSettings(group=(("nothing", 1.0, 0.0),))}, "matches no parameter"),
        ({"optimiser": OptimiserSettings(clip_norm=None, clip_value=-1.0)}, "clip-value -1.0"),
        ({"micro_batches": 3}, "--micro-batches 3"), ({"loop": LoopSettings(noise_scale=True)}, "--micro-batches 2 or more"),
        ({"loop": LoopSettings(patience=0)}, "--loop.patience 0"), ({"loop": LoopSettings(norms_every=0)}, "--loop.norms-every 0"),
        ({"precision": "bfloat16", "model": ModelSettings(layers=1, set=("dtype=float16",))}, "--precision"),
        ({"documents": DocumentSettings("pack"), "model": ModelSettings(name="t5", layers=1, width=16, heads=2, context=16)}, "spans"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(changes, said, text):
    with pytest.raises(ValueError, match=said):
        checked(settings(text, **changes))
