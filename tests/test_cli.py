"""The command line: every command as a table and as JSON, its figures against what they are made of, and bad input."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys

import pytest
import rich.cells
import rich.console
import tyro

import wsejax as wse
from models import presets
from wsejax.cli import command as command_line
from wsejax.cli import main
from wsejax.cli.command import COMMANDS
from wsejax.cli.output import plain, with_unit
from wsejax.cli.programs import SMALL, ProgramArguments, shape_of
from wsejax.cost.compare import compare
from wsejax.cost.estimate import fits
from wsejax.cost.table import published
from wsejax.cost.validation import validate
from wsejax.cost.workload import Workload
from wsejax.hardware import SYSTEMS

FUNCTION = """
import jax.numpy as jnp
from jax import lax

def product(a, b):
    return jnp.tanh(a @ b)

def step(w, x):
    return w - 0.1 * x.T @ (x @ w), (x @ w).sum()

def unknown_length(x):
    return lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x @ x, x)

def unmatched(a, b):
    return a @ b.T @ b.T

number = 3
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(FUNCTION)
    return str(path)


def asked(capsys, *arguments: str) -> tuple[str, dict]:
    """The command's table, and its JSON, which is all that stdout then holds."""
    assert main(list(arguments)) == 0
    text = capsys.readouterr()
    assert text.err == ""
    assert main([*arguments, "--json"]) == 0
    document = capsys.readouterr()
    assert document.err == ""
    return text.out, json.loads(document.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def refused(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that cannot be done."""
    assert main(list(arguments)) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and found.err.count("\n") == 1
    return found.err


# ---- specs and wafer -------------------------------------------------------------------------------------------------
def test_specs_keep_the_two_bandwidths_and_the_two_peaks_apart(capsys):
    text, data = asked(capsys, "specs")
    for spec in (wse.WSE1, wse.WSE2, wse.WSE3):
        of = data["wafers"][spec.name]
        assert of["dense_peak_fp16_flops_per_second"] == spec.dense_peak_fp16_flops_per_second
        assert of["sram_bandwidth_bytes_per_second"] == spec.sram_bandwidth_bytes_per_second
        assert of["fabric_bandwidth_bits_per_second"] == spec.fabric_bandwidth_bits_per_second
    assert set(data["systems"]) == {s.name for s in SYSTEMS.values()}
    row = lambda label: next(line for line in text.splitlines() if label in line)
    assert "21 PB/s" in row("SRAM bandwidth") and "214 Pb/s" in row("fabric bandwidth")
    assert "12 Pflop/s" in row("dense 16-bit peak") and "125 Pflop/s" in row("counts skipped zeros")


@pytest.mark.parametrize("name", ["wse2", "WSE-2", "cs2"])
def test_specs_of_one_generation(capsys, name: str):
    text, data = asked(capsys, "specs", name)
    assert list(data["wafers"]) == ["WSE-2"] and list(data["systems"]) == ["CS-2"] and "WSE-3" not in text


def test_a_wafer_is_the_one_that_its_seed_names(capsys, tmp_path):
    picture, kept = tmp_path / "wafer.png", tmp_path / "defects.npz"
    arguments = ("wafer", "--rows", "64", "--cols", "48", "--per-mm2", "0.2", "--clustering", "1.5", "--seed", "4", "--policy", "largest")
    text, data = asked(capsys, *arguments, "--out", str(picture), "--defects-out", str(kept))
    spec = wse.WSE3.scaled(64, 48)
    defects = wse.DefectMap.sample(spec, per_mm2=0.2, clustering=1.5, seed=4)
    mesh = wse.remap(spec, defects, 8, 8, policy="largest")
    assert wse.DefectMap.load(kept) == defects and data["defects_digest"] == defects.digest
    assert data["logical_grid"] == [mesh.rows, mesh.cols] and data["dead_pes"] == defects.dead_pe_count > 0
    assert f"{mesh.rows} x {mesh.cols} PEs" in text
    assert picture.stat().st_size > 10_000


def test_a_wafer_of_evenly_spread_defects(capsys):
    _, data = asked(capsys, "wafer", "--rows", "40", "--cols", "50", "--dead-pes", "0.02", "--dead-links", "0.01")
    assert data["dead_pes"] == 40 and data["dead_links"] == round(0.01 * (39 * 50 + 40 * 49))


# ---- programs --------------------------------------------------------------------------------------------------------
def test_the_audit_is_that_of_wse(capsys, program):
    text, data = asked(capsys, "audit", f"{program}:product", "--arg", "float32[64,32]", "--arg", "float32[32,16]", "--tiles", "4", "4")
    assert data["clean"] and data["tiles"] == [4, 4]
    assert [row["kernel"] for row in data["rows"]] == ["gemm"] and data["link_bytes"] == data["rows"][0]["link_bytes"] > 0
    assert "on the fabric" in text and "gemm" in text


def test_the_audit_of_a_preset_is_that_of_its_train_step(capsys):
    text, data = asked(capsys, "audit", "tiny", "--batch", "4", "--seq", "32")
    assert data["clean"] and data["program"] == "tiny, 4 x 32 tokens, train step"
    assert "models/attention.py" in text  # source lines are those of the model
    forward = ProgramArguments("tiny", task="forward", batch=4, seq=32).lowered()[1].audit()
    assert 0 < forward.to_dict()["link_bytes"] < data["link_bytes"]


def test_cost_is_that_of_wse_and_says_that_it_is_modelled(capsys, program, tmp_path):
    picture = tmp_path / "memory.png"
    arguments = ("cost", f"{program}:step", "--donate", "0", "--arg", "bfloat16[1024,1024]", "--arg", "bfloat16[4096,1024]")
    text, data = asked(capsys, *arguments, "--memory-out", str(picture))
    _, lowered = ProgramArguments(f"{program}:step", arguments[5::2], (0,)).lowered()
    assert data["step_seconds"] == wse.cost(lowered).step_seconds and data["memory"]["verdict"] == wse.memory(lowered).verdict
    assert data["modelled"] is True and data["model_errors"] and "modelled" in text and "median error" in text
    assert picture.stat().st_size > 5_000


def test_what_does_not_fit_stands_beside_its_time(capsys):
    text, data = asked(capsys, "cost", "gpt2", "--batch", "512", "--seq", "1024")
    line = next(line for line in text.splitlines() if line.startswith("modelled step"))
    assert data["memory"]["verdict"] == "does not fit" and data["fits"] is False and "DOES NOT FIT" in line
    text, data = asked(capsys, "cost", "gpt2", "--batch", "1", "--seq", "128")
    assert data["fits"] is True and "DOES NOT FIT" not in text and "wsejax compare" in text


def test_a_forward_pass_is_not_held_against_training_steps(capsys):
    text, data = asked(capsys, "cost", "tiny", "--task", "forward")
    assert "whole training steps" not in text and not any("whole training" in line for line in data["errors"])


def test_another_machine_costs_something_else(capsys, program):
    common = ("cost", f"{program}:product", "--arg", "float16[2048,2048]", "--arg", "float16[2048,2048]")
    seconds = lambda *more: asked(capsys, *common, *more)[1]["step_seconds"]
    base = seconds()
    assert seconds("--set", "clock_hz=1.7e9") == pytest.approx(base / 2)
    assert seconds("--system", "cs2") != base


def test_cost_of_a_published_model(capsys):
    text, data = asked(capsys, "cost", "gpt3-125m", "--batch", "16", "--seq", "1024")
    assert data["tokens_per_second"] == pytest.approx(16 * 1024 / data["step_seconds"])
    one = wse.LLM.from_dict(presets.find("gpt3-125m"))
    assert data["price"]["flops"] == pytest.approx(16 * 1024 * one.train_flops_per_token(1024), rel=0.35)  # remat computes a layer twice
    assert "tokens/s" in text


def test_a_loop_of_unknown_length_gives_bounds_until_it_is_told(capsys, program):
    common = ("cost", f"{program}:unknown_length", "--arg", "float32[64,64]")
    text, data = asked(capsys, *common)
    assert data["most_step_seconds"] is None and "unbounded" in text
    _, told = asked(capsys, *common, "--while-trips", "7")
    assert told["most_step_seconds"] == pytest.approx(told["step_seconds"]) and told["step_seconds"] > data["step_seconds"]


def test_a_trace_opens_in_a_viewer_and_adds_up(capsys, program, tmp_path):
    out, picture = tmp_path / "trace.json", tmp_path / "trace.png"
    arguments = ("trace", f"{program}:step", "--donate", "0", "--arg", "float32[512,512]", "--arg", "float32[256,512]")
    text, data = asked(capsys, *arguments, "--out", str(out), "--picture", str(picture))
    events = [e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(events) == data["events"] and data["modelled"] is True
    kernels = [e for e in events if e["cat"] == "kernels"]
    assert sum(e["dur"] for e in kernels) == pytest.approx(1e6 * data["seconds"]) == pytest.approx(1e6 * data["busy_seconds"]["kernels"])
    assert "modelled" in text and str(out) in text and picture.stat().st_size > 5_000


@pytest.mark.parametrize("text", ["float32[8,16]", " bfloat16[ 8, 16 ]", "int8[8,16,]"])
def test_shapes_are_read(text: str):
    assert shape_of(text).shape == (8, 16) and str(shape_of(text).dtype) in text


def test_a_scalar_has_no_sizes():
    assert shape_of("float32[]").shape == ()


# ---- models ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("model", "verdict"), [("gpt2", "resident"), ("Llama 3 8B", "streamed")])
def test_fit_is_that_of_the_estimate(capsys, model: str, verdict: str):
    text, data = asked(capsys, "fit", model)
    want = fits(wse.LLM.from_dict(presets.find(model)), wse.CS3, "train")
    assert data["verdict"] == want.verdict == verdict and data["most_tokens"] == pytest.approx(want.most_tokens)
    assert verdict in text.splitlines()[0]
    assert ("modelled" in text) == (want.min_tokens is not None)


def test_fit_of_a_json_of_dimensions(capsys, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"layers": 4, "width": 256, "heads": 4, "ffn_width": 1024, "vocab_size": 1000, "context": 512}))
    _, data = asked(capsys, "fit", str(path), "--task", "infer", "--batch", "8")
    assert data["model"] == "mine" and data["dimensions"]["kv_heads"] == 4 and data["verdict"] == "resident"


@pytest.mark.parametrize("name", ["tiny", "small", "TINY", "Llama-3-8B"])
def test_every_command_knows_the_same_models(capsys, name: str):
    listed = {one["name"]: one for one in asked(capsys, "models")[1]["models"]}
    _, data = asked(capsys, "fit", name)
    assert listed[name.lower()]["parameters"] == data["parameters"]
    assert set(listed) >= set(presets.names()) | set(SMALL)


@pytest.mark.parametrize("systems", [(), ("cs3", "16xcs3", "64xh100")])
def test_compare_says_how_far_off_each_model_is(capsys, tmp_path, systems: tuple[str, ...]):
    picture = tmp_path / "compare.png"
    more = ("--systems", *systems) if systems else ()
    text, data = asked(capsys, "compare", "gpt3-6.7b", "--batch", "256", "--out", str(picture), *more)
    want = compare(Workload.of_llm(wse.LLM.from_dict(presets.find("gpt3-6.7b")), 256, 2048), systems or ("cs3", "8xh100"))
    assert [row["name"] for row in data["rows"]] == [row.name for row in want.rows] and len(want.rows) >= 2
    assert [row["step_seconds"] for row in data["rows"]] == [row.step_seconds for row in want.rows]
    assert set(data["model_errors"]) == {row.error_group for row in want.rows}
    assert "modelled" in text and all(group in text and error in text for group, error in data["model_errors"].items())
    assert picture.stat().st_size > 5_000


def test_rates_of_machines_are_taken(capsys):
    common = ("compare", "gpt3-6.7b", "--systems", "8xh100")
    dollars = lambda *more: asked(capsys, *common, *more)[1]["rows"][0]["dollars"]
    once = dollars("--dollars-per-hour", "8xh100=10")
    assert dollars("--dollars-per-hour", "8xh100=30") == pytest.approx(3 * once)


def test_validate_is_that_of_the_table_that_ships(capsys, tmp_path):
    picture = tmp_path / "validation.png"
    text, data = asked(capsys, "validate", "--out", str(picture))
    want = validate()
    assert len(data["points"]) == len(want.predictions) > 300 and len(data["excluded"]) == len(want.excluded)
    assert all(g.name.split()[0] in text for g in want.groups) and "odelled" in text
    assert picture.stat().st_size > 10_000


def test_validate_of_points_of_ones_own(capsys, tmp_path):
    kept = next(p for p in published() if p.experiment == "router_latency")
    point = {f.name: getattr(kept, f.name) for f in dataclasses.fields(kept)} | {"config": dict(kept.config), "value": 2 * kept.value}
    path = tmp_path / "points.json"
    path.write_text(json.dumps([point]))
    _, data = asked(capsys, "validate", "--points", str(path))
    assert [p["id"] for p in data["points"]] == [kept.id] and data["points"][0]["error"] == pytest.approx(0.5, abs=0.05)


# ---- bad input -------------------------------------------------------------------------------------------------------
BAD = [
    (("specs", "wse9"), "wse1, wse2, wse3"),
    (("wafer", "--rows", "40"), "give both or neither"),
    (("wafer", "--rows", "9", "--cols", "9", "--tiles", "10", "1"), "tiles"),
    (("wafer", "--rows", "40", "--cols", "40", "--dead-pes", "2"), "fraction"),
    (("wafer", "--rows", "40", "--cols", "40", "--dead-pes", "1"), ""),
    (("wafer", "--per-mm2", "-1"), "density"),
    (("wafer", "--rows", "40", "--cols", "40", "--out", "no/such/folder/wafer.png"), "no/such/folder"),
    (("wafer", "--rows", "32", "--cols", "32", "--per-mm2", "1e9"), "none would live"),
    (("audit", "gpt5"), "gpt2"),
    (("fit", "qqqqqqqq"), "wsejax models"),
    (("audit", "bert-base"), "no decoder"),
    (("audit", "tiny", "--seq", "129"), "context of 128"),
    (("audit", "tiny", "--batch", "0"), "at least 1"),
    (("audit", "tiny", "--arg", "float32[1]"), "arguments of its own"),
    (("audit", "no.such.module:f"), "cannot import"),
    (("audit", "nothing.py:f"), "no such file"),
    (("audit", "PROGRAM:absent"), "it has"),
    (("audit", "PROGRAM:number"), "number"),
    (("audit", "PROGRAM:product", "--arg", "float32"), "float32[1024,1024]"),
    (("audit", "PROGRAM:product", "--arg", "floaty[3]"), "floaty"),
    (("audit", "PROGRAM:product"), "cannot be traced"),
    (("audit", "PROGRAM:unmatched", "--arg", "float32[2,3]", "--arg", "float32[4,5]"), "cannot be traced"),
    (("cost", "tiny", "--system", "cs9"), "cs1, cs2, cs3"),
    (("cost", "tiny", "--set", "clock_hz=0.85"), "unit"),  # somebody thought of GHz
    (("cost", "tiny", "--set", "clock=9"), "near it: clock_hz"),
    (("cost", "tiny", "--set", "warp=9"), "wsejax specs"),
    (("cost", "tiny", "--set", "clock_hz"), "FIELD"),
    (("cost", "tiny", "--set", "clock_hz=fast"), "FIELD"),
    (("cost", "tiny", "--set", "clock_hz=nan"), "finite"),
    (("cost", "tiny", "--set", "name=5"), "is no number"),
    (("cost", "tiny", "--set", "clock_hz=8e8", "--set", "clock-hz=9e8"), "given twice"),
    (("cost", "tiny", "--lines", "-3"), "--lines -3"),
    (("trace", "PROGRAM:product", "--arg", "float32[8,8]", "--arg", "float32[8,8]", "--out", "no/such/t.json"), "no/such/t.json: no such"),
    (("fit", "GATED.json"), "gated='no'"),
    (("compare", "llama-2-7b", "--systems", "cs3", "--micro-batches", "1"), "in less than 3"),
    (("compare", "llama-3.1-405b", "--systems", "cs3", "--batch", "1", "--seq", "8192"), "activations of one sequence are 38.1 GB"),
    (("trace", "PROGRAM:unknown_length", "--arg", "float32[8,8]"), "loop"),
    (("trace", "tiny", "--max-kernels", "0"), "max_kernels"),
    (("fit", "llama-4-8b"), "llama-3-8b"),
    (("fit", "absent.json"), "no such file"),
    (("fit", "PROGRAM.json"), "JSON"),
    (("fit", "gpt2", "--wafers", "0"), "wafers"),
    (("fit", "gpt2", "--tokens", "-5"), "tokens"),
    (("compare", "gpt2", "--systems", "8xcs9"), "cs1, cs2, cs3"),
    (("compare", "gpt2", "--systems", "cs3", "--batch", "0"), "batch"),
    (("compare", "gpt2", "--seq", "4096"), "context of 1024"),
    (("compare", "gpt2", "--dollars-per-hour", "8xh100=cheap"), "SYSTEM=NUMBER"),
    (("compare", "gpt2", "--dollars-per-hour", "cs1=3"), "not compared"),
    (("validate", "--points", "absent.json"), "absent.json"),
    (("validate", "--points", "PROGRAM.json"), "JSON"),
]


@pytest.mark.parametrize(("arguments", "hint"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_is_one_line_that_helps(capsys, program, tmp_path, arguments: tuple[str, ...], hint: str):
    (tmp_path / "program.py.json").write_text("{'single': quotes}")
    dims = {"layers": 4, "width": 256, "heads": 4, "ffn_width": 1024, "vocab_size": 1000, "context": 512, "gated": "no"}
    (tmp_path / "gated.json").write_text(json.dumps(dims))
    names = {"PROGRAM": program, "GATED.json": str(tmp_path / "gated.json")}
    said = refused(capsys, *(next((a.replace(k, v) for k, v in names.items() if k in a), a) for a in arguments))
    assert len(said) < 400
    assert hint.lower() in said.lower()


@pytest.mark.parametrize("arguments", [("frobnicate",), ("specs", "--no-such-flag"), ("wafer", "--seed", "one"), ("fit",), ()])
def test_a_wrong_flag_is_refused_with_status_2_and_nothing_on_stdout(capsys, arguments: tuple[str, ...]):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert found.out == "" and "Traceback" not in found.err and found.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_takes_json(capsys, name: str):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--json" in said and f"wsejax {name}" in said


def test_it_tells_its_version(capsys):
    assert main(["--version"]) == 0
    assert re.match(r"wsejax\b.*(\d+\.\d+|checkout)", capsys.readouterr().out)


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "wsejax", "specs", "wse3", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["wafers"]["WSE-3"]["cols"] == 792


def test_a_reader_that_has_read_enough_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "wsejax", "validate", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"{\n"
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 141


def test_a_reader_that_wants_no_help_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "wsejax", "cost", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() in (0, 1, 141)


@pytest.mark.parametrize(
    "command",
    ["specs", "cost tiny --weight-sparsity 0.9", "compare llama-2-7b --systems cs3 16xcs3 64xh100 tpu-v5p", "audit tiny", "models",
     "fit llama-3.1-405b", "validate", "wafer --rows 32 --cols 32", "trace tiny", "scale llama-3-8b",
     "scale llama-3.1-405b --strong --batch 64"],
)  # fmt: skip
def test_every_table_fits_eighty_columns(command: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tyro.cli(command_line._commands(), args=command.split(), config=command_line.CONFIG).run()
    out = io.StringIO()
    console = rich.console.Console(width=80, file=out, markup=False, highlight=False)
    for part in output.parts:
        console.print(part)
    assert max(rich.cells.cell_len(line) for line in out.getvalue().splitlines()) <= 80
    assert "…" not in out.getvalue()


# ---- output ----------------------------------------------------------------------------------------------------------
def test_json_has_no_word_for_what_is_not_finite():
    assert plain({"a": math.inf, "b": [math.nan, 1.5], "c": (True, None)}) == {"a": None, "b": [None, 1.5], "c": [True, None]}


@pytest.mark.parametrize(("value", "text"), [(1.2e12, "1.2 Tb"), (999.0, "999 b"), (1e3, "1 kb"), (0.25, "0.25 b"), (2.14e17, "214 Pb")])
def test_prefixes_are_decimal(value: float, text: str):
    assert with_unit(value, "b") == text
    number = float(re.match(r"[\d.]+", with_unit(value, "b"))[0])  # pyright: ignore[reportOptionalSubscript]
    assert 0 < number < 1000
