"""`wsejax scale`, and what `wsejax specs` says of clusters."""

from __future__ import annotations

import json

import pytest

import wsejax as wse
from models import presets
from tests.test_cli import asked, refused
from wsejax.cost.scaling import published_scaling, scaling
from wsejax.cost.training import Streaming
from wsejax.hardware import CLUSTERS
from wsejax.hardware.clusters import size_text


@pytest.mark.parametrize("strong", [False, True])
def test_scale_is_that_of_the_function(capsys, tmp_path, strong: bool):
    picture = tmp_path / "scale.png"
    flags = ("--strong",) if strong else ("--weak",)
    text, data = asked(
        capsys, "scale", "llama-3-8b", "--systems", "1", "4", "16", "--batch", "16", "--seq", "4096", *flags, "--out", str(picture)
    )
    work = wse.Workload.of_llm(wse.LLM.from_dict(presets.find("llama-3-8b")), 16, 4096)
    want = scaling("cs3", work, (1, 4, 16), weak=not strong)
    assert data["rows"] == json.loads(json.dumps([row.to_dict() for row in want.rows]))
    assert data["weak"] is not strong and "modelled" in text and f"{want.rows[-1].efficiency:.1%}" in text
    assert ("too few tokens" in text) == any(row.stalls for row in want.rows) == strong
    assert [row["published"] for row in data["published"]] == [one.published for one in published_scaling()]
    assert data["model_errors"]["training scaling"] in text and "15.3" in text
    assert picture.stat().st_size > 5_000


def test_a_cluster_has_its_memory_and_its_systems(capsys):
    text, data = asked(
        capsys, "scale", "gpt3-175b", "--on", "alcf", "--systems", "4", "--batch", "8", "--seq", "2048", "--weight-bytes", "2"
    )
    work = wse.Workload.of_llm(wse.LLM.from_dict(presets.find("gpt3-175b")), 8, 2048)
    assert data["memory"]["fits"] and f"{size_text(float(work.state_bytes))} of MemoryX 12 TB" in text
    assert data["rows"][0]["step_seconds"] == scaling("alcf", work, (4,), streaming=Streaming(weight_bytes=2.0)).rows[0].step_seconds


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--on", "andromeda", "--systems", "17"), "of CS-2 of andromeda there are 16 at most"),
        (("--on", "cg9"), "known are cs2, cs3, andromeda"),
        (("--weak", "--strong"), "one of the two"),
        (("--systems", "0"), "at least 1"),
        (("--seq", "99999"), "context of 8192"),
        (("--weight-bytes", "32"), "weight_bytes=32"),
        (("--out", "no/such/scale.png"), "no/such/scale.png"),
    ],
)
def test_bad_input_is_one_line_that_helps(capsys, arguments: tuple[str, ...], hint: str):
    assert hint in refused(capsys, "scale", "llama-3-8b", *arguments)


def test_a_state_that_is_too_large_says_which_memory_would_do(capsys):
    sizes = ("llama-3.1-405b", "--wafers", "64", "--tokens", "4096")
    text, data = asked(capsys, "fit", *sizes, "--memoryx", "1.5TB")
    assert data["verdict"] == "does not fit" and "the smallest that would do is MemoryX 12 TB" in " ".join(text.split())
    assert data["outside_capacity"] == 1.5e12
    assert asked(capsys, "fit", *sizes)[1]["outside_capacity"] == 12e12


def test_a_program_streams_through_so_many_systems(capsys, tmp_path):
    """`cost` and `trace` of a cluster: the stages that the program says, with their parts."""
    text, data = asked(capsys, "cost", "tiny", "--batch", "8", "--systems", "4")
    assert data["execution"] == "streamed" and data["wafers"] == 4 and data["streaming"]["wafers"] == 4
    assert sum(data["streaming"]["parts_seconds"].values()) == pytest.approx(data["step_seconds"])
    assert "4 x CS-3, streamed" in text and "modelled stages" in text
    trace = tmp_path / "t.json"
    text, data = asked(capsys, "trace", "tiny", "--batch", "8", "--systems", "4", "--out", str(trace))
    assert {"I/O in", "I/O out", "MemoryX", "stall"} <= set(data["busy_seconds"]) and "MemoryX" in text
    assert {e["cat"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"} >= {"kernels", "I/O in", "I/O out"}
    assert "systems=-1" in refused(capsys, "cost", "tiny", "--systems", "-1")
    assert "batch" in refused(capsys, "cost", "tiny", "--batch", "2", "--systems", "4")


def test_specs_list_the_clusters_of_a_generation(capsys):
    text, data = asked(capsys, "specs", "wse2")
    assert set(data["clusters"]) == {"cs2", "andromeda", "cg1"} and data["clusters"]["cg1"]["marketing_cores"] == 54_400_000
    assert data["clusters"]["cg1"]["source"] == CLUSTERS["cg1"].source
    assert data["memoryx"]["1.2PB"] == {"capacity_bytes": 1.2e15, "most_parameters": 75e12, "vendor_parameters": 24e12}
    assert "54.4 M" in text and "93.75 G" in text and "24 T (50 bytes each)" in text
