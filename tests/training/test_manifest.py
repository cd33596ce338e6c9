"""The manifest of a run: its chain, and what kills, stops and starts leave in it."""

from __future__ import annotations

import json
import os

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.run_folders import PARAMS, STEPS, Run, changed, finished, found
from wsejax.training.manifest import MANIFEST, Manifest, ManifestError, canonical, make_entry, parse_chain, read_chain
from wsejax.training.provenance import (
    Provenance,
    checkpoint_steps,
    folder_digest,
    in_force,
)
from wsejax.training.verify import TAMPERED, TORN, UNFINISHED


# ---- kills and starts ------------------------------------------------------------------------------------------------
@given(cut=st.integers(1, 2000), stop=st.sampled_from([STEPS, 4]))
def test_a_torn_last_line_is_no_tampering_and_is_dropped(tmp_path_factory, begin, cut, stop):
    run = Run(tmp_path_factory.mktemp("torn"), begin)
    run.provenance.started(0)
    run.train(0, stop)
    path = run.out / MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: min(cut, len(lines[-1]) - 1)])
    verdict = run.verify()
    assert [check.what for check in found(verdict, TORN)] == ["last line"] and not verdict.tampered
    before = path.read_bytes()
    again = Provenance(run.out, begin, run.said.append)
    assert path.read_bytes() == before and not run.said, "nothing is written before there is something to write"
    again.started(stop)
    assert len(run.said) == 1 and "half-written" in run.said[0]
    kinds = [(entry.kind, entry.content.get("adopted"), "dropped_bytes" in entry.content) for entry in read_chain(path).entries]
    assert kinds[-2:] == [("checkpoint", True, False), ("resume", None, True)]
    assert not run.verify().tampered and not found(run.verify(), TORN)


def test_text_that_no_write_leaves_behind_is_not_torn(whole):
    path = whole.out / MANIFEST
    line = path.read_bytes().splitlines()[-1]
    for rest in (b"x", line + b"x", line.replace(b"end", b"END"), b'{"content":\xff', b'{"contents":1'):
        with changed(path, path.read_bytes() + rest):
            assert whole.verify().tampered, rest


def test_only_the_newest_checkpoint_may_lack_an_entry_and_is_adopted(tmp_path, begin):
    run = Run(tmp_path, begin)
    run.provenance.started(0)
    run.train(0, 2)
    run.train(2, 4, entries=False)
    verdict = run.verify()
    assert not verdict.tampered and "no entry yet" in next(c.detail for c in verdict.checks if c.what == "checkpoint 4")
    run.die(4, (1, 1), entry=False)
    assert not run.verify().tampered
    Provenance(run.out, begin, run.said.append).started(4)
    entries = read_chain(run.out / MANIFEST).entries
    assert [entry.kind for entry in entries] == ["begin", "checkpoint", "checkpoint", "fault", "resume"]
    assert entries[2].content["adopted"] and entries[3].content["adopted"] and entries[4].content["step"] == 4
    assert entries[4].content["checkpoint_sha256"] == entries[2].content["sha256"] == folder_digest(run.out / "checkpoints/4")["sha256"]
    run.write_checkpoint(5)
    run.write_checkpoint(6)
    assert {check.what for check in found(run.verify(), TAMPERED)} >= {"checkpoint 5", "checkpoint 6"}


def test_going_back_makes_later_entries_void(run, begin):
    """The newest checkpoint is corrupt: it is set aside, and its step comes once more, with other bytes."""
    os.rename(run.out / "checkpoints/6", run.out / "checkpoints/corrupt-6")
    again = Provenance(run.out, begin, run.said.append)
    rows = (run.out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.out / "metrics.jsonl").write_text("".join(rows[:4]) + '{"step": 5}\n{"step": 6}\n')
    again.started(4)
    assert found(run.verify(), UNFINISHED) and not run.verify().tampered
    live, end = in_force(read_chain(run.out / MANIFEST).entries)
    assert sorted(live) == [2, 4] and end is None
    run.write_checkpoint(6)
    (run.out / "checkpoints/6/meta").write_text("other")
    again.checkpoint(6)
    again.end(6, PARAMS)
    assert not run.verify().tampered and not found(run.verify(), UNFINISHED)
    (run.out / "checkpoints/4/meta").write_text("other")
    assert again.differs(6) is None and "meta is not the file that entry" in (again.differs(4) or "")


ENDS = ["stopped", "killed before the entry", "killed in the entry", "the newest turns out corrupt"]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ENDS)), min_size=1, max_size=6))
def test_no_history_of_kills_and_starts_looks_like_tampering(tmp_path_factory, begin, history):
    """Each start saves some checkpoints with their entries, and ends in one of the ways that there are."""
    run = Run(tmp_path_factory.mktemp("history"), begin)
    for saves, how in history:
        step = run.start(begin)
        assert not run.verify().tampered, run.verify()
        run.train(step, step + 2 * saves)
        if how.startswith("killed"):
            run.train(step + 2 * saves, step + 2 * saves + 3, entries=False)
        if how == "killed in the entry":
            with open(run.out / MANIFEST, "ab") as file:
                file.write(make_entry(None, "checkpoint", {"step": 1}).line().encode()[:30])
        if how == "the newest turns out corrupt" and (steps := checkpoint_steps(run.out)):
            number = len(list((run.out / "checkpoints").iterdir()))
            os.rename(run.out / f"checkpoints/{steps[-1]}", run.out / f"checkpoints/corrupt-{steps[-1]}-{number}")
            run.start(begin)
        assert not run.verify().tampered, run.verify()
    live, _ = in_force(read_chain(run.out / MANIFEST).entries)
    assert set(checkpoint_steps(run.out)) - {max(checkpoint_steps(run.out), default=0)} <= set(live)


def test_a_folder_older_than_its_manifest_is_taken_over(tmp_path, begin):
    run = Run(tmp_path, begin)
    run.train(0, 4, entries=False)
    with pytest.raises(ManifestError, match=r"a run without a manifest: there is no manifest.jsonl"):
        run.verify()
    run.provenance.started(4)
    assert [entry.kind for entry in read_chain(run.out / MANIFEST).entries] == ["begin", "checkpoint", "checkpoint", "resume"]
    assert not run.verify().tampered


def test_of_several_processes_one_writes(tmp_path, begin, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = finished(tmp_path, begin)
    assert not (run.out / MANIFEST).exists()


def test_a_full_disk_leaves_the_manifest_as_it_was(run, monkeypatch):
    before = (run.out / MANIFEST).read_bytes()
    manifest = Manifest(run.out, run.said.append)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            manifest.append("fault", {})
    assert (run.out / MANIFEST).read_bytes() == before
    manifest.append("resume", {"step": 6})
    assert not read_chain(run.out / MANIFEST).problems


def test_a_tampered_manifest_is_not_gone_on_with(run, begin):
    text = (run.out / MANIFEST).read_text()
    (run.out / MANIFEST).write_text(text.replace('"step":2', '"step":3', 1))
    with pytest.raises(ManifestError, match=r"was tampered with: entry 1 \(checkpoint\).*move this one away"):
        Provenance(run.out, begin, run.said.append)


# ---- hashes ----------------------------------------------------------------------------------------------------------
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)))  # fmt: skip
def test_a_line_is_read_as_it_was_written(value):
    entry = make_entry(None, "begin", {"value": value})
    assert parse_chain(entry.line().encode()).entries == (entry,)
    assert canonical(json.loads(canonical(value))) == canonical(value)


def test_no_number_without_a_word_in_json():
    with pytest.raises(ValueError, match="JSON compliant"):
        make_entry(None, "begin", {"loss": float("nan")})
