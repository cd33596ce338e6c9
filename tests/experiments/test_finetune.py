"""Fine-tuning: what the losses are, what stays as it was, and that stopping a run in any way changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.finetune import load_examples, main
from experiments.tuning import LoraSettings, Settings, Tuning
from models import weights
from models.families import find
from models.family import resized
from tests.parity.ours import run
from wsejax.training import read_metrics
from wsejax.training.examples import Example, laid_out
from wsejax.training.provenance import file_digest


def flags_of(line: str) -> list[str]:
    return line.split()


SMALL = flags_of("--steps 8 --batch 4 --checkpoint-every 2 --keep 9 --optimiser.learning-rate 0.05 --optimiser.warmup-steps 1")
PLAIN = ["--wafer.off"]
ON_WAFER = flags_of("--wafer.rows 10 --wafer.cols 10 --wafer.tiles 2 2 --wafer.devices 1 2 --wafer.dead-pe-fraction 0.05")
LORA = ["--lora.pattern", "(blocks/(attention/(q|v)|mlp/.*)|head)/kernel", "--lora.rank", "4"]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every start of the command compiles the same programs anew; within these tests they are compiled once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def tiny(name: str):
    family, config = find(name)
    return family, resized(config, layers=1, width=16, heads=2, context=24)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with a small Llama and examples of both kinds: the prompt in capital letters is right, twice the prompt is wrong."""
    folder = tmp_path_factory.mktemp("here")
    family, config = tiny("llama:tiny")
    weights.save(folder / "base", family, config, run(lambda key: family.init(config, key), jax.random.key(0)))
    draw = random.Random(0)
    words = ["".join(draw.choices("abcd", k=draw.randint(2, 5))) for _ in range(10)]
    rows = {
        "responses": [{"prompt": f"{word}>", "response": word.upper() + "\n"} for word in words],
        "pairs": [{"prompt": f"{word}>", "chosen": word.upper(), "rejected": word * 2} for word in words],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def flags(here: Path, out: Path, *more: str, kind: str = "responses") -> list[str]:
    from_folder = ["--weights", str(here / "base"), "--tokenizer", "bytes"]
    return ["--data", str(here / f"{kind}.jsonl"), *from_folder, "--out", str(out), *SMALL, *more]


@pytest.fixture(scope="module")
def whole(here) -> Path:
    """An uninterrupted plain run with adapters, which exports in both ways."""
    more = ["--export", str(here / "model"), "--lora.export", str(here / "adapters"), "--validation", str(here / "responses.jsonl")]
    assert main(flags(here, here / "run", *PLAIN, *LORA, *more)) == 0
    return here / "run"


def state_of(out: Path) -> dict[str, str]:
    newest = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    meta = json.loads((newest / "meta" / "metadata").read_text())
    return {"step": newest.name, "listing": json.dumps(meta, sort_keys=True)}


def rows_of(out: Path) -> list[dict]:
    return [{name: x for name, x in row.items() if not name.startswith("host_")} for row in read_metrics(out / "metrics.jsonl")]


# ---- the losses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama:tiny", "t5:tiny"])
def test_the_loss_is_that_of_the_responses_alone_whatever_they_are_padded_with(name):
    """Against log-probabilities of each example by itself, without padding."""
    family, config = tiny(name)
    both = family.kind == "encoder-decoder"
    params = run(lambda key: family.init(config, key), jax.random.key(1))
    examples = [Example(1, [5, 6, 7], ([8, 9],)), Example(2, [4], ([3, 2, 1, 9],))]
    start = config.start_token if both else None
    logs, counts = [], []
    apply = lambda *inputs: run(lambda *tokens: family.apply(config, params, *tokens), *inputs)
    for one in examples:
        whole = one.prompt + one.responses[0]
        inputs = (one.prompt, [start, *one.responses[0][:-1]]) if both else (whole[:-1],)
        logits = np.asarray(apply(*(np.array([x], np.int32) for x in inputs)))[0].astype(np.float64)
        targets = one.responses[0] if both else whole[1:]
        each = [x[t] - np.log(np.exp(x).sum()) for x, t in zip(logits, targets, strict=True)][-len(one.responses[0]) :]
        logs.append(sum(each))
        counts.append(len(each))
    batch = laid_out(examples, start=start).batch(np.arange(2))
    tuning = Tuning(family, config)
    loss, log_probabilities = run(lambda p, b: (tuning.loss(p, {}, b)[0], tuning.log_probabilities(p, b)), params, batch)
    np.testing.assert_allclose(log_probabilities, logs, rtol=1e-5)
    np.testing.assert_allclose(loss, -sum(logs) / sum(counts), rtol=1e-5)


def test_adapters_alone_get_gradients_and_optimiser_state():
    import optax

    family, config = tiny("llama:tiny")
    tuning = Tuning(family, config, lora=LoraSettings("blocks/attention/q/kernel", rank=2))
    state = jax.eval_shape(lambda params: tuning.initial_state(params, optax.adam(1e-3), 0), tuning.abstract)
    assert jax.tree.map(lambda x: x.shape, state.params) == {
        "blocks": {"attention": {"q": {"kernel": {"a": (1, 16, 2), "b": (1, 2, 2, 8)}}}}
    }
    held = [x.shape for x in jax.tree.leaves(state.opt_state) if x.shape]
    assert sorted(held) == sorted(2 * [(1, 16, 2), (1, 2, 2, 8)])


# ---- runs --------------------------------------------------------------------------------------------------------------
def test_a_run_learns_its_responses_and_says_what_it_did(whole, here):
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "manifest.jsonl", "metrics.jsonl", "loss.png", "audit.txt", "checkpoints"}
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9)) and rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["validation_loss"] < rows[0]["loss"] and {"grad_norm", "learning_rate"} <= rows[0].keys()
    begin = json.loads((whole / "manifest.jsonl").read_text().splitlines()[0])
    named = {Path(file["name"]).name: file["sha256"] for file in begin["content"]["data"]["files"]}
    assert named == {path.name: file_digest(path)["sha256"] for path in (here / "responses.jsonl", here / "base" / "model.safetensors")}


def test_the_exports_are_the_base_and_what_the_adapters_add(whole, here):
    before, after = (load_file(here / name / "model.safetensors") for name in ("base", "model"))
    adapters = load_file(here / "adapters" / "adapter_model.safetensors")
    said = json.loads((here / "adapters" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(here / "base") and (said["r"], said["lora_alpha"]) == (4, 16.0)
    adapted = {f"{name}.weight" for name in said["target_modules"]}
    assert len(adapted) == 6 and before.keys() == after.keys()
    for name in before:
        if name not in adapted:
            assert before[name].tobytes() == after[name].tobytes(), name
            continue
        a, b = (adapters[f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight"] for x in "AB")
        assert b.any()
        np.testing.assert_allclose(after[name], before[name] + 16 / 4 * b @ a, rtol=1e-5, atol=1e-6)
    family, _ = find("llama")
    config, params = weights.load(here / "model", family)
    assert np.isfinite(jax.jit(lambda p: family.apply(config, p, np.ones((1, 4), np.int32)))(params)).all()


def test_goes_on_from_a_checkpoint_bit_for_bit(whole, here, tmp_path):
    """As after a kill behind step 4: later checkpoints are not there yet, the metrics are ahead, a line is torn."""
    out, step = tmp_path / "run", 4
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[: step + 1]) + lines[step + 1][:9])
    assert main(flags(here, out, *PLAIN, *LORA, "--validation", str(here / "responses.jsonl"))) == 0
    assert rows_of(out) == rows_of(whole) and state_of(out) == state_of(whole)


def test_preferences_are_learned_and_a_stopped_run_goes_on(here, tmp_path, monkeypatch):
    from wsejax.training import trainer

    add = trainer.Trainer.add

    def add_then_press(self, step, metrics):
        add(self, step, metrics)
        if step == 3 and not (tmp_path / "pressed").exists():
            (tmp_path / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)

    given = (*PLAIN, *LORA, "--method", "dpo")
    assert main(flags(here, tmp_path / "whole", *given, kind="pairs")) == 0
    monkeypatch.setattr(trainer.Trainer, "add", add_then_press)
    assert main(flags(here, tmp_path / "stopped", *given, kind="pairs")) == 130
    assert [row["step"] for row in rows_of(tmp_path / "stopped")] == [1, 2, 3]
    assert main(flags(here, tmp_path / "stopped", *given, kind="pairs")) == 0
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "stopped") == rows and state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")
    assert abs(rows[0]["loss"] - np.log(2)) < 1e-6 and rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["accuracy"] == 1.0 and rows[-1]["margin"] > 0.1 and rows[-1]["loss"] < 0.6
    assert rows[-1]["chosen_reward"] > rows[-1]["rejected_reward"]


def test_another_configuration_in_the_same_folder_is_refused(whole, here, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main(flags(here, whole, *PLAIN, *LORA, "--seed", "1", "--lora.alpha", "3")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lora.alpha: 16.0 -> 3.0" in said and "seed: 0 -> 1" in said
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "dpo"], "holds response, and --method dpo wants chosen and rejected; give --method sft"),
        (["--data", "nothere.jsonl"], "nothere.jsonl"),
        (["--length", "5"], "line 1: .* do not fit into 5; .*--truncate"),
        (["--length", "99"], "--length 99: the model reads 24 tokens; give 2 to 24"),
        (["--lora.pattern", "blocks/attention/q"], "--lora.pattern 'blocks/attention/q': matches .* blocks/attention/k/kernel"),
        (["--lora.pattern", ".*/q/kernel", "--lora.rank", "17"], "--lora.rank 17: .* 16 x 16; give 1 to 16"),
        (["--lora.export", "adapters"], "--lora.export adapters: without --lora.pattern"),
        (["--dtype", "bfloat16"], "--dtype bfloat16: .*--lora.pattern"),
        (["--method", "dpo", "--dpo.label-smoothing", "0.7"], "--dpo.label-smoothing 0.7"),
        (["--steps", "1"], "--steps 1 is too small"),
        (["--model", "llama:3-8b"], "--model with --weights .*: its config.json says"),
        (["--weights", "nothere"], "nothere"),
        (["--tokenizer", "nothere.json"], "nothere.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_nothing_is_written(here, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    assert main([*flags(here, Path("run"), *PLAIN), *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert re.search(words, captured.err)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_writes_over_anything(here, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(flags(here, tmp_path / "run", *PLAIN, "--export", str(tmp_path / "full"))) == 2
    assert "--export" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["bert:tiny", "roberta:tiny"])
def test_an_encoder_is_refused_with_the_reason(here, tmp_path, capsys, name):
    assert main(["--data", str(here / "responses.jsonl"), "--model", name, "--out", str(tmp_path / "run"), *PLAIN]) == 2
    assert "is an encoder, which writes no text" in capsys.readouterr().err


def test_what_was_cut_off_is_said(here):
    settings = Settings(here / "responses.jsonl", length=8, truncate=True)
    examples, said = load_examples(settings, settings.data, Tuning(*tiny("llama:tiny")), None)
    lengths = [len(line["prompt"]) + len(line["response"]) for line in map(json.loads, settings.data.read_text().splitlines())]
    longer = [length - 8 for length in lengths if length > 8]
    assert longer and said.endswith(f"; {sum(longer)} tokens cut off in {len(longer)} of 10 examples")
    present = sum(min(length, 8) - 1 for length in lengths) / 70
    assert said.startswith(f"{settings.data}: 10 examples of at most 7 bytes, {1 - present:.0%} padding") and len(examples) == 10


# ---- slow --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_on_the_wafer_the_same_numbers_as_in_plain_jax(here, tmp_path, method, adapted):
    kind = "responses" if method == "sft" else "pairs"
    more = [*(LORA if adapted else []), "--method", method, "--validation", str(here / f"{kind}.jsonl")]
    for name, machine in (("wafer", ON_WAFER), ("plain", PLAIN)):
        assert main(flags(here, tmp_path / name, *machine, *more, kind=kind)) == 0
    wafer, plain = rows_of(tmp_path / "wafer"), rows_of(tmp_path / "plain")
    for name in plain[-1]:
        values = [[row[name] for row in rows if name in row] for rows in (wafer, plain)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-5, err_msg=name)
    assert (tmp_path / "wafer" / "wafer.png").stat().st_size > 1000 and "gemm" in (tmp_path / "wafer" / "audit.txt").read_text()
    # and it goes on there, bit for bit
    shutil.copytree(tmp_path / "wafer", tmp_path / "again")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / str(step))
    assert main(flags(here, tmp_path / "again", *ON_WAFER, *more, kind=kind)) == 0
    assert rows_of(tmp_path / "again") == wafer and state_of(tmp_path / "again") == state_of(tmp_path / "wafer")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5:tiny", "mixtral:tiny", "gpt2:tiny"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_other_families_learn_too(here, tmp_path, name, method):
    kind = "responses" if method == "sft" else "pairs"
    size = flags_of("--model.layers 1 --model.width 16 --model.heads 2 --model.context 24")
    given = ["--data", str(here / f"{kind}.jsonl"), "--model", name, *size, *SMALL, "--method", method, "--lora.pattern", ".*/kernel"]
    for machine, out in ((PLAIN, "plain"), (ON_WAFER, "wafer")):
        assert main([*given, *machine, "--lora.rank", "2", "--out", str(tmp_path / out)]) == 0
    plain, wafer = rows_of(tmp_path / "plain"), rows_of(tmp_path / "wafer")
    assert plain[-1]["loss"] < plain[0]["loss"]
    np.testing.assert_allclose([row["loss"] for row in wafer], [row["loss"] for row in plain], rtol=1e-4)
