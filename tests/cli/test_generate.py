"""`wsejax generate`: text as it comes, the same as JSON, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.inference.tokenizers_of_tests import numbers
from tests.test_cli import refused
from wsejax.cli import main
from wsejax.cli.generate import find_source, read_prompts, visible
from wsejax.cli.programs import model_file
from wsejax.inference import Generator, Model

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
SMALL = ("--wafer.rows", "8", "--wafer.cols", "8", "--wafer.tiles", "2", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint whose tokens are words t0 ... t47."""
    where = tmp_path_factory.mktemp("checkpoint") / "llama"
    shutil.copytree(GOLDEN / "llama", where)
    numbers(where / "tokenizer.json", 48)
    return where


def words(tokens) -> str:
    return " ".join(f"t{t}" for t in tokens)


def expected(count: int) -> tuple[list[list[int]], list[list[int]]]:
    io = load_file(GOLDEN / "llama" / "io.safetensors")
    prompts = [row[:n].tolist() for row, n in zip(io["prompts"], io["prompt_lengths"], strict=True)]
    return prompts, io["generated"][:, :count].tolist()


def document(capsys, *arguments: str) -> dict:
    assert main(["generate", *arguments, "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return json.loads(found.out)


def test_json_has_what_transformers_says_and_both_times(capsys, folder, tmp_path):
    prompts, want = expected(6)
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"prompt": words(p)}) for p in prompts[1:]) + "\n\n")
    stop = f"t{want[1][3]}"
    data = document(
        capsys, "--model", str(folder), "--prompt", words(prompts[0]), "--prompts-file", str(tmp_path / "more.jsonl"), *SMALL,
        "--max-new-tokens", "6", "--stop", stop, "--kv-cache", "shifted", "--stop-token", str(want[2][4]),
    )  # fmt: skip
    for found, prompt, tokens in zip(data["sequences"], prompts, want, strict=True):
        new, whys = [f"t{t}" for t in tokens], ("stop string", "stop token")
        ends, why = min([(new.index(t), why) for t, why in zip((stop, f"t{want[2][4]}"), whys, strict=True) if t in new] + [(6, "length")])
        assert found["prompt"] == words(prompt) and found["prompt_tokens"] == len(prompt)
        assert found["text"].split() == new[:ends]
        assert found["tokens"] == tokens[: ends + 1]
        assert found["ended"] == why
    figures = data["figures"]
    assert figures["first_seconds"] > 0 and figures["step_seconds"] > 0 and figures["host_tokens_per_second"] > 0
    first, step, plain = figures["modelled_first"], figures["modelled_step"], data["plain_cache_step"]
    assert first["modelled"] and step["seconds"] > 0 and step["link_bytes"] > step["store_link_bytes"] > 0
    assert plain["store_link_bytes"] == 0 and figures["modelled_tokens_per_second"] > 0
    assert data["tokenizer"] == str(folder / "tokenizer.json") and data["note"] == ""


def test_text_comes_with_a_table_and_the_model_of_time_beside(capsys, folder):
    prompts, want = expected(3)
    assert main(["generate", "--model", str(folder), "--prompt", words(prompts[0]), "--max-new-tokens", "3", *SMALL]) == 0
    text = capsys.readouterr().out
    assert f"\n{words(prompts[0])} {words(want[0])}\n" in text
    assert "on this host, measured" in text and "on CS-3, modelled" in text and "error of parts: " in text
    assert "bytes x hops on the fabric: " in text and "3 new tokens" in text


def test_several_texts_in_plain_jax_and_random_weights_are_said(capsys):
    arguments = ("--model", "llama:tiny", "--prompt", "a\x1b", "b", "--max-new-tokens", "2", "--temperature", "1.5", "--wafer.off")
    assert main(["generate", *arguments]) == 0
    text = capsys.readouterr().out
    assert "note: weights are random" in text and "[0] a␛" in text and "[1] b" in text and "plain jax.jit" in text
    assert "modelled" not in text and "\x1b" not in text


def test_who_stops_it_gets_what_there_is(capsys, folder, monkeypatch):
    def two_pieces(run, tokenizer, stops):
        for row, token in enumerate(next(run)):
            yield row, chr(97 + int(token) % 26)
        raise KeyboardInterrupt

    monkeypatch.setattr("wsejax.cli.generate.write", two_pieces)
    assert main(["generate", "--model", str(folder), "--prompt", "t1", "t2", "--wafer.off", "--json"]) == 130
    data = json.loads(capsys.readouterr().out)
    assert [one["ended"] for one in data["sequences"]] == ["interrupted"] * 2 and data["figures"]["new_tokens"] == 2


def test_a_checkpoint_of_orbax_gives_the_same(folder, tmp_path):
    source = find_source(str(folder), "float32")
    model_file("weights").save_orbax(tmp_path / "orbax", source.family, source.config, source.load(None))
    again = find_source(str(tmp_path / "orbax"), "float32")
    assert again.config == source.config and again.tokenizer is None
    prompts, want = expected(2)
    generator = Generator(Model.of(again.family, again.config), again.family.abstract(again.config))
    np.testing.assert_array_equal(np.stack(list(generator.start(again.load(None), prompts, 2)), 1), want)


OFF = ("--wafer.off",)
LLAMA = ("--model", "llama:tiny")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((*LLAMA,), "no prompt: give --prompt TEXT ..., or --prompts-file FILE"),
        ((*LLAMA, "--prompt", ""), "prompt 0 has no tokens"),
        ((*LLAMA, "--prompt", "a" * 200), "prompt 0 has 200 tokens, the model's context is 128"),
        ((*LLAMA, "--prompt", "a", "--max-new-tokens", "128"), "give 127 or less"),
        ((*LLAMA, "--prompt", "a", "--temperature", "-1"), "temperature=-1.0"),
        ((*LLAMA, "--prompt", "a", "--kv-cache", "shifted"), "--kv-cache shifted with --wafer.off"),
        ((*LLAMA, "--prompt", "a", "--stop", ""), "--stop '': every text has that in it"),
        ((*LLAMA, "--prompt", "a", "--tokenizer", "no.json"), "tokenizer no.json: no such file"),
        ((*LLAMA, "--prompt", "a", "--set", "link_bits"), "--set link_bits: give FIELD=NUMBER"),
        ((*LLAMA, "--prompts-file", "no.txt"), "no.txt"),
        (("--model", "bert:tiny", "--prompt", "a"), "bert is an encoder, which makes no text"),
        (("--model", "lama", "--prompt", "a"), "--model lama: no such folder, and model='lama': no family 'lama', perhaps 'llama'"),
        (("--model", str(GOLDEN / "llama"), "--prompt", "abc"), "(bytes) has 256 tokens, the model a vocabulary of 48"),
        (("--model", "llama:3-70b", "--prompt", "a"), "more than this host's memory: weights and cache of llama:3-70b are 282 GB"),
    ],
)
def test_bad_input_is_one_line_that_helps(capsys, arguments, hint):
    assert hint in refused(capsys, "generate", *arguments, *OFF)


def test_a_folder_that_is_no_checkpoint_says_what_it_is(capsys, tmp_path):
    asked = ("generate", "--model", str(tmp_path), "--prompt", "a", *OFF)
    (tmp_path / "config.json").write_text('{"config": {"model": {}}}')
    assert "is a run's folder; python -m experiments.generate takes those of experiments.train" in refused(capsys, *asked)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert "model_type 'mamba'; known are gpt2, " in refused(capsys, *asked)
    (tmp_path / "config.json").unlink()
    assert "no config.json tells what model this is" in refused(capsys, *asked)


def test_prompts_are_read_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert read_prompts(tmp_path / "a.txt") == ["one", " two "]
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\\ntwo", "id": 3}\n"three"\n')
    assert read_prompts(tmp_path / "a.jsonl") == ["one\ntwo", "three"]
    for line, hint in (("{", r"b\.jsonl:2: is not JSON"), ('{"text": "x"}', r"b\.jsonl:2: has no prompt"), ("3", r"b\.jsonl:2: has no")):
        (tmp_path / "b.jsonl").write_text('"a"\n' + line)
        with pytest.raises(ValueError, match=hint):
            read_prompts(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"c\.txt: is no UTF-8 text"):
        read_prompts(tmp_path / "c.txt")


def test_control_characters_are_pictures():
    assert visible("a\tb\n\x00\x1b[2J\x7f\x9b中") == "a\tb\n␀␛[2J␡\N{REPLACEMENT CHARACTER}中"
