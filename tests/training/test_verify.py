"""Verifying a run: whatever is changed in its folder is found and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.run_folders import TEXT, Run, changed, finished, found, named_files
from wsejax.cli import main
from wsejax.training.data import library_files
from wsejax.training.faults import EVENTS
from wsejax.training.manifest import MANIFEST, make_entry, parse_chain, read_chain
from wsejax.training.verify import ABSENT, OTHER, TAMPERED, UNFINISHED, verify


# ---- what is found ---------------------------------------------------------------------------------------------------
def test_an_untouched_run_passes_and_says_its_head(whole):
    verdict = whole.verify()
    assert not verdict.tampered and verdict.entries == 7
    assert {check.status for check in verdict.checks} == {"ok", ABSENT}  # sources of "models" are nowhere here
    assert {"manifest", "configuration", "data", "checkpoint 4", "checkpoint 6", "metrics", "deaths", "end", "sources of wsejax"} <= {
        check.what for check in verdict.checks if check.status == "ok"
    }
    assert verdict.head == read_chain(whole.out / MANIFEST).entries[-1].sha256
    assert not whole.verify(verdict.head).tampered


@given(data=st.data())
def test_any_other_byte_in_any_file_is_found_and_named(whole, data):
    path = data.draw(st.sampled_from(named_files(whole)))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with changed(path, bytes(content)):
        tampered = found(whole.verify(), TAMPERED)
    name = path.name if path.name == TEXT else path.relative_to(whole.out).as_posix()
    assert name in {check.file for check in tampered}, tampered
    if path.name == MANIFEST:
        lines_before = path.read_bytes()[:at].count(b"\n")
        assert tampered[0].entry.startswith(f"entry {lines_before}")


@given(data=st.data())
def test_every_byte_of_the_manifest_counts(whole, data):
    """The likeliest way to go unseen, so it is tried more often than by the test above: what JSON takes for the same."""
    path = whole.out / MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    line = lines[number]
    swap = data.draw(st.sampled_from([(b":", b": "), (b"\n", b" \n"), (b"\n", b"\r\n"), (b"e", b"\\u0065"), (b"{", b'{"kind":"end",')]))
    at = data.draw(st.sampled_from([n for n in range(len(line)) if line.startswith(swap[0], n)]))
    lines[number] = line[:at] + swap[1] + line[at + len(swap[0]) :]
    with changed(path, b"".join(lines)):
        verdict = whole.verify()
    assert found(verdict, TAMPERED)[0].entry.startswith(f"entry {number}")


@given(data=st.data())
def test_entries_removed_moved_doubled_or_put_in_are_found(whole, data):
    path = whole.out / MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    first = data.draw(st.integers(0, len(lines) - 2))
    second = data.draw(st.integers(first + 1, len(lines) - 1))
    how = data.draw(st.sampled_from(["remove", "swap", "double", "put in"]))
    other = list(lines)
    if how == "remove":
        del other[first:second]
    elif how == "swap":
        other[first], other[second] = other[second], other[first]
    elif how == "double":
        other.insert(second, other[first])
    else:  # a forged one, right in itself and following the one before
        before = parse_chain(b"".join(lines[: first + 1])).last
        other.insert(first + 1, make_entry(before, "checkpoint", {"step": 1}).line().encode())
    with changed(path, b"".join(other)):
        verdict = whole.verify()
    at = first if how in ("remove", "swap") else second if how == "double" else first + 2
    assert found(verdict, TAMPERED)[0].entry.startswith(f"entry {at}"), (how, first, second, verdict.checks[0])


@given(kept=st.integers(1, 6))
def test_a_chain_cut_at_its_end_is_unfinished_or_tampered_and_a_head_tells(whole, kept):
    path = whole.out / MANIFEST
    head = whole.verify().head
    lines = path.read_bytes().splitlines(keepends=True)
    with changed(path, b"".join(lines[:kept])):
        verdict, against = whole.verify(), whole.verify(head)
    assert found(verdict, UNFINISHED) or found(verdict, TAMPERED)
    assert verdict.tampered == (kept < 5), "more checkpoints, or deaths, than a kill can leave without entries"
    assert next(check.what for check in found(against, TAMPERED)) == "head"


def test_a_chain_written_anew_is_told_by_its_head_alone(whole):
    """As the docstring says: nothing in the folder can tell."""
    path, head = whole.out / MANIFEST, whole.verify().head
    forged, before = [], None
    for entry in read_chain(path).entries:
        before = make_entry(before, entry.kind, entry.content, "2001-01-01T00:00:00Z")
        forged.append(before.line().encode())
    with changed(path, b"".join(forged)):
        assert not whole.verify().tampered
        assert [check.what for check in found(whole.verify(head), TAMPERED)] == ["head"]


def test_an_older_head_is_found_with_what_came_since(whole):
    entries = read_chain(whole.out / MANIFEST).entries
    verdict = whole.verify(entries[2].sha256)
    assert not verdict.tampered
    assert "4 entries came since" in next(check for check in verdict.checks if check.what == "head").detail


@pytest.mark.parametrize(
    ("name", "what"),
    [("checkpoints/6", "checkpoint 6"), ("checkpoints/4/meta", "checkpoint 4"), ("config.json", "configuration"),
     ("metrics.jsonl", "metrics"), (EVENTS, "deaths")],
)  # fmt: skip
def test_what_is_gone_is_named(run, name, what):
    path = run.out / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {check.what for check in found(run.verify(), TAMPERED)} == {what}


def test_a_checkpoint_that_was_being_removed_is_no_tampering_unless_something_is_in_it(run):
    """The run keeps those of steps 4 and 6; a kill came before the folder of step 2 was gone."""
    (run.out / "checkpoints/2").mkdir()
    verdict = run.verify()
    assert not verdict.tampered and "removed it" in next(c.detail for c in verdict.checks if c.what == "checkpoint 2")
    (run.out / "checkpoints/2/meta").mkdir()
    (run.out / "checkpoints/2/meta/metadata").write_text("x")
    assert {check.what for check in found(run.verify(), TAMPERED)} == {"checkpoint 2"}


def test_what_no_entry_tells_of_is_named(run):
    (run.out / "checkpoints/6/state/more").write_text("x")
    (run.out / "checkpoints/3").mkdir()
    with open(run.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 7}\n')
    names = {check.file for check in found(run.verify(), TAMPERED)}
    assert names == {"checkpoints/6/state/more", "checkpoints/3", "metrics.jsonl"}


def test_a_gap_in_the_metrics_is_named(tmp_path, begin):
    run = Run(tmp_path, begin)
    run.provenance.started(0)
    run.train(0, 2, every=9)
    run.train(3, 5, every=9)
    (check,) = found(run.verify(), TAMPERED)
    assert (check.file, check.expected, check.found) == ("metrics.jsonl", "step 3", "step 4")


def test_a_changed_configuration_is_told_by_field(run):
    text = (run.out / "config.json").read_text()
    (run.out / "config.json").write_text(text.replace('"width": 8', '"width": 9'))
    (check,) = found(run.verify(), TAMPERED)
    assert check.detail == "model.width: 8 -> 9" and check.entry == "entry 0 (begin)" and len(check.expected) == 64


def test_data_sources_and_versions_elsewhere_are_no_tampering(whole, tmp_path, begin, monkeypatch):
    absent = verify(whole.out, data=tmp_path, packages={})
    assert [check.what for check in found(absent, ABSENT)] == ["data", "sources of models"] and not absent.tampered
    (tmp_path / "a.py").write_text("x = 2")
    other = verify(whole.out, data=whole.home, packages={"models": tmp_path})
    assert [check.what for check in found(other, OTHER)] == ["sources of models"] and not other.tampered
    (tmp_path / "a.py").write_text("x = 1")
    assert not found(verify(whole.out, data=whole.home, packages={"models": tmp_path}), OTHER)
    monkeypatch.setattr(jax, "__version__", "0")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    (versions,) = found(whole.verify(), OTHER)
    assert versions.what == "versions" and '-> "0.0"' in versions.detail


def test_another_library_of_python_is_no_tampering(tmp_path, begin, monkeypatch):
    """Its documents are those of the Python that is here."""
    files = [{"name": name, "bytes": count, "sha256": digest} for name, count, digest in library_files()]
    assert len(files) > 100
    run = finished(tmp_path, begin | {"data": {"sha256": "0" * 64, "library": True, "files": files}})
    assert next(check for check in run.verify().checks if check.what == "data").status == "ok"
    other = [("abc.py", 1, "0" * 64), *[one for one in library_files() if one[0] != "abc.py"][5:]]
    monkeypatch.setattr("wsejax.training.verify.library_files", lambda: iter(other))
    (check,) = found(run.verify(), OTHER)
    assert f"has {len(files) - 6} of the {len(files)} documents" in check.detail and not run.verify().tampered


# ---- the command -----------------------------------------------------------------------------------------------------
def test_the_command_prints_a_line_a_check_and_exits_by_it(whole, capsys):
    arguments = ["verify", str(whole.out), "--data", str(whole.home)]
    assert main(arguments) == 0
    text, head = capsys.readouterr().out, whole.verify().head
    assert "nothing was tampered with" in text and f"head: {head} (entry 6)" in text
    assert main([*arguments, "--head", head, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["head"] == head and not document["tampered"] and {"what", "status", "file"} <= document["checks"][0].keys()
    with changed(whole.out / "checkpoints/6/meta", b"other"):
        assert main(arguments) == 1
        words = r"checkpoint 6 +TAMPERED +checkpoints/6/meta, entry 5 \(checkpoint\); expected [0-9a-f]{12}\.\.\., \d+ bytes, found "
        assert re.search(words, capsys.readouterr().out)
        assert main([*arguments, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["tampered"]


def bad_folders(home: Path, run: Run) -> Iterator[tuple[list[str], str]]:
    yield [str(home / "nowhere")], "nowhere is no folder; name the folder of a run"
    (home / "empty").mkdir()
    yield [str(home / "empty")], "holds no run: there is no manifest.jsonl"
    (home / "file").write_text("")
    yield [str(home / "file")], "file is no folder"
    (home / "folder" / MANIFEST).mkdir(parents=True)
    yield [str(home / "folder")], "is a folder; a run's manifest is a file"
    yield [str(run.out), "--head", "12ab"], "--head 12ab: give the 64 hexadecimal digits"
    (home / "later").mkdir()
    (home / "later" / MANIFEST).write_text(make_entry(None, "begin", {"format": 2}).line())
    yield [str(home / "later")], "is of format 2, and this wsejax reads format 1; use the wsejax that wrote it"


def test_bad_input_is_one_line(tmp_path, whole, capsys):
    for arguments, words in bad_folders(tmp_path, whole):
        assert main(["verify", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and words in said.err, words


def test_what_fits_together_but_no_run_writes_is_not_trusted(tmp_path):
    entries = [make_entry(None, "begin", {"format": 1})]
    (tmp_path / MANIFEST).write_text(entries[0].line())
    (check,) = found(verify(tmp_path, data=tmp_path, packages={}), TAMPERED)
    assert check.what == "contents" and check.file == MANIFEST
    (tmp_path / MANIFEST).write_text("")
    verdict = verify(tmp_path, data=tmp_path, packages={})
    assert not verdict.tampered and [check.status for check in verdict.checks] == [UNFINISHED]
