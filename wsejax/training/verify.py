"""Whether a run folder is still what its manifest says, file by file.

What this finds: a byte that differs in any entry, or in any file that entries name; entries removed, moved or put in; checkpoints that no
entry tells of. What it cannot find: somebody who writes the whole chain anew to fit files of their own, or who cuts entries off its end
together with the checkpoints and metrics that they tell of (such a run is merely unfinished). Nothing in the folder can tell that, as
nothing in it is signed. The hash of the last entry, kept elsewhere, does: give it as `head`. Files that no entry names (pictures, the
sample, the audit) are not looked at, nor are metrics after the newest checkpoint of an unfinished run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data import library_files
from .faults import EVENTS
from .manifest import MANIFEST, Chain, Entry, ManifestError, canonical, read_chain, sha256
from .provenance import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    checkpoint_steps,
    differing_files,
    file_digest,
    head_digest,
    in_force,
    sources_digest,
    versions,
)
from .rundir import differing_fields

OK, TAMPERED, TORN, UNFINISHED, OTHER, ABSENT = "ok", "TAMPERED", "torn", "unfinished", "other", "not at hand"
_SHOWN = 8  # findings of one kind, of which there may be thousands


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. status: "ok"; "TAMPERED"; "torn", a last line that a kill cut off; "unfinished", the run has not come
    to its end; "other", not as it was, which is no harm (versions); "not at hand". `expected` and `found` are digests or values."""

    what: str
    status: str
    detail: str = ""
    file: str = ""
    entry: str = ""
    expected: str = ""
    found: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of a run. `head` is the hash of the last entry that can be trusted, "" if there is none."""

    checks: tuple[Check, ...]
    entries: int
    head: str

    @property
    def tampered(self) -> bool:
        return any(check.status == TAMPERED for check in self.checks)


def verify(folder: Path, *, data: Path, packages: Mapping[str, Path], head: str = "") -> Verdict:
    """Hold a run folder against its manifest. Changes nothing, and reads a run that is going on as it is.

    Args:
      folder: of the run.
      data: where relative names of data files start: the folder that the run was started in.
      packages: where the sources of packages other than wsejax are now, by name; those left out are not at hand.
      head: SHA-256 of the last entry, or of an earlier one, as it was kept elsewhere; "" if it was not.

    Raises:
      ManifestError: it is no run folder, has no manifest, or one of another format.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is no folder; name the folder of a run")
    if not (folder / MANIFEST).exists():
        what = "a run without a manifest" if (folder / CONFIG).exists() else "no run"
        raise ManifestError(f"{folder} holds {what}: there is no {MANIFEST}; name the folder of a run that has written one")
    chain = read_chain(folder / MANIFEST)
    last = chain.last.sha256 if chain.last else ""
    checks = [*_chain(chain), *(_head(chain, head) if head else ())]
    if chain.problems:
        checks.append(Check("the rest", ABSENT, "not looked at, since the manifest says nothing for certain"))
    elif chain.entries:
        try:
            checks += _contents(folder, chain.entries, data, packages)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            detail = f"its entries fit together, but are not such as a run writes ({type(error).__name__}: {error})"
            checks.append(Check("contents", TAMPERED, detail, MANIFEST))
    return Verdict(tuple(checks), len(chain.entries), last)


def _contents(folder: Path, entries: Sequence[Entry], data: Path, packages: Mapping[str, Path]) -> Iterator[Check]:
    begin = entries[0]
    yield from _config(folder, begin)
    yield from _data(begin, data)
    yield from _checkpoints(folder, entries)
    yield from _metrics(folder, entries)
    yield from _events(folder, entries)
    yield from _end(folder, entries)
    yield from _sources(entries, packages)


# ---- the chain -------------------------------------------------------------------------------------------------------
def _chain(chain: Chain) -> Iterator[Check]:
    for problem in chain.problems[:_SHOWN]:
        yield Check("manifest", TAMPERED, problem.what, MANIFEST, problem.entry, problem.expected, problem.found)
    if chain.problems:
        return
    if not chain.entries:
        yield Check("manifest", TORN if chain.torn else UNFINISHED, "it has no entry: the run was killed as it began", MANIFEST)
    else:
        yield Check("manifest", OK, f"{len(chain.entries)} entries, each with the hash of the one before", MANIFEST)
    if chain.entries and chain.torn:
        yield Check(
            "last line", TORN, f"{len(chain.torn)} bytes without a newline, as a kill leaves them; dropped when the run goes on", MANIFEST
        )


def _head(chain: Chain, head: str) -> Iterator[Check]:
    after = next((len(chain.entries) - 1 - n for n, entry in enumerate(chain.entries) if entry.sha256 == head), None)
    if after is None:
        found = chain.last.sha256 if chain.last else "none"
        yield Check("head", TAMPERED, "no entry has the hash that was kept elsewhere", MANIFEST, "", head, found)
    else:
        since = f"; {after} entries came since" if after else ""
        yield Check("head", OK, f"an entry has the hash that was kept elsewhere{since}", MANIFEST)


# ---- what entries name -----------------------------------------------------------------------------------------------
def _config(folder: Path, begin: Entry) -> Iterator[Check]:
    path, expected = folder / CONFIG, begin.content["config_file"]["sha256"]
    if not path.is_file():
        yield Check("configuration", TAMPERED, "it is gone", CONFIG, str(begin), expected, "absent")
        return
    found = file_digest(path)["sha256"]
    if found == expected:
        yield Check("configuration", OK, "as the first entry has it", CONFIG, str(begin))
        return
    try:
        fields = differing_fields(begin.content["config"], json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError, AttributeError):
        fields = ["it is no longer JSON of a run"]
    detail = "; ".join(fields[:_SHOWN]) or "its text was changed, but no field of the configuration"
    yield Check("configuration", TAMPERED, detail, CONFIG, str(begin), expected, found)


def _data(begin: Entry, home: Path) -> Iterator[Check]:
    recorded = begin.content["data"]["files"]
    library = begin.content["data"]["library"]
    present = {name: digest for name, _, digest in library_files()} if library else {}
    same, absent, differing = 0, 0, []
    for one in recorded:
        if not library and (home / one["name"]).is_file():
            present[one["name"]] = file_digest(home / one["name"])["sha256"]
        found = present.get(one["name"])
        same += found == one["sha256"]
        absent += found is None
        if found is not None and found != one["sha256"]:
            differing.append((one["name"], one["sha256"], found))
    if library and (differing or absent):  # another Python, rather than somebody's hand
        yield Check("data", OTHER, f"Python's library here has {same} of the {len(recorded)} documents that it had", entry=str(begin))
        return
    for name, expected, found in differing[:_SHOWN]:
        yield Check("data", TAMPERED, "", name, str(begin), expected, found)
    if len(differing) > _SHOWN:
        yield Check("data", TAMPERED, f"and {len(differing) - _SHOWN} files more", entry=str(begin))
    if same and not differing:
        yield Check("data", OK, f"{same} of {len(recorded)} files", entry=str(begin))
    if absent:
        yield Check("data", ABSENT, f"{absent} of {len(recorded)} files; start in the folder that the run was started in", entry=str(begin))


def _checkpoints(folder: Path, entries: Sequence[Entry]) -> Iterator[Check]:
    live, _ = in_force(entries)
    here = checkpoint_steps(folder)
    kept = _kept(entries)
    untold = [step for step in here if step not in live]
    for step in sorted({*live, *here}):
        name, entry = f"{CHECKPOINTS}/{step}", live.get(step)
        what = f"checkpoint {step}"
        if entry is None:
            if untold == [step] and step > max(live, default=-1):
                yield Check(what, OK, "no entry yet, as a kill or a run that is going on leaves it; told of when the run goes on", name)
            else:
                yield Check(what, TAMPERED, "no entry tells of it", name, found="present")
        elif sha256(canonical(entry.content["files"])) != entry.content["sha256"]:
            yield Check(what, TAMPERED, "its list of files is not the one it names", MANIFEST, str(entry))
        elif step in here:
            differing = differing_files(entry.content, folder / name)
            may_go = step not in kept or (untold and step == min(kept))
            if differing and may_go and all(found == "absent" for _, _, found in differing):
                yield Check(what, OK, "a kill came while the run removed it: what is left of it is as recorded", name, str(entry))
                continue
            for file, expected, found in differing[:_SHOWN]:
                yield Check(what, TAMPERED, "", f"{name}/{file}", str(entry), expected, found)
            if not differing:
                yield Check(what, OK, f"{len(entry.content['files'])} files", name, str(entry))
        elif step in kept and not (untold and step == min(kept)):  # the newest may have pushed it out before it had its entry
            detail = "it is gone, and the run did not remove it"
            yield Check(what, TAMPERED, detail, name, str(entry), entry.content["sha256"], "absent")


def _kept(entries: Sequence[Entry]) -> list[int]:
    """The steps of the checkpoints that the run has left in its folder for certain. A start makes one fewer certain: a checkpoint that was
    saved before it, and turned out corrupt or has never had an entry, may have pushed out the oldest."""
    kept: list[int] = []
    keep = 0
    for entry in entries:
        if entry.kind == "begin":
            keep = entry.content["settings"]["keep"]
        elif entry.kind == "resume":
            kept = [step for step in kept if step <= entry.content["step"]][1 - keep :]
            keep = entry.content["settings"]["keep"]
        elif entry.kind == "checkpoint":
            kept = sorted({*kept, entry.content["step"]})[-keep:]
    return kept


def _metrics(folder: Path, entries: Sequence[Entry]) -> Iterator[Check]:
    path = folder / METRICS
    live, end = in_force(entries)
    told = [*(live[step] for step in sorted(live)), *([end] if end else [])]
    for entry in told:
        expected, found = entry.content["metrics"], head_digest(path, entry.content["step"])
        if entry is end:
            found = file_digest(path) if path.is_file() else found
        if found != expected:
            detail = f"the rows up to step {entry.content['step']}"
            yield Check("metrics", TAMPERED, detail, METRICS, str(entry), expected["sha256"], found["sha256"])
            return
    steps = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        try:
            steps.append(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            yield Check("metrics", TAMPERED, f"line {len(steps) + 1} is no row", METRICS)
            return
    if steps != list(range(1, len(steps) + 1)):
        at = next(n for n, step in enumerate(steps, 1) if step != n)
        yield Check("metrics", TAMPERED, "its steps are not 1, 2, 3, ...", METRICS, expected=f"step {at}", found=f"step {steps[at - 1]}")
        return
    yield Check("metrics", OK, f"steps 1 to {len(steps)}" if steps else "no steps yet", METRICS, str(told[-1]) if told else "")


def _events(folder: Path, entries: Sequence[Entry]) -> Iterator[Check]:
    path, faults = folder / EVENTS, [entry for entry in entries if entry.kind == "fault"]
    for count, entry in enumerate(faults, 1):
        expected, found = entry.content["events"], head_digest(path, count)
        if found != expected:
            yield Check("deaths", TAMPERED, f"line {count}", EVENTS, str(entry), expected["sha256"], found["sha256"])
            return
    rows = path.read_bytes().count(b"\n") if path.is_file() else 0
    if rows > len(faults) + 1:
        yield Check("deaths", TAMPERED, "no entry tells of its last lines", EVENTS, expected=f"{len(faults)} lines", found=f"{rows} lines")
    elif rows:
        late = "; the last has no entry yet" if rows > len(faults) else ""
        yield Check("deaths", OK, f"{rows} survived{late}", EVENTS, str(faults[-1]) if faults else "")


def _end(folder: Path, entries: Sequence[Entry]) -> Iterator[Check]:
    live, end = in_force(entries)
    steps = entries[0].content["config"]["steps"]
    newest = max(live, default=0)
    if end is None:
        more = ", all of them: the end of the manifest is missing" if newest == steps else ""
        yield Check("end", UNFINISHED, f"the newest checkpoint is of step {newest} of {steps}{more}", MANIFEST, str(entries[-1]))
        return
    content = end.content
    expected = live[content["step"]].content["sha256"] if content["step"] in live else "absent"
    if content["step"] != steps or content["checkpoint_sha256"] != expected:
        found = content["checkpoint_sha256"]
        yield Check("end", TAMPERED, f"it names step {content['step']} of {steps}", MANIFEST, str(end), expected, found)
    else:
        yield Check("end", OK, f"step {steps}, parameters {content['parameters_sha256']}", MANIFEST, str(end))


def _sources(entries: Sequence[Entry], packages: Mapping[str, Path]) -> Iterator[Check]:
    starts = [entry for entry in entries if entry.kind in ("begin", "resume")]
    programs = [entry.content["program"]["sha256"] for entry in starts]
    if len(set(programs)) > 1:
        at = next(n for n, digest in enumerate(programs) if digest != programs[0])
        yield Check("program", OTHER, "it changed as the run went on", "", str(starts[at]), str(programs[0]), str(programs[at]))
    elif programs[0]:
        yield Check("program", OK, f"the same at every start: {programs[0]}", "", str(starts[0]))
    entry = starts[-1]
    own = Path(__file__).resolve().parent.parent
    for name, expected in sorted(entry.content["sources"].items()):
        home = own if name == "wsejax" else packages.get(name)
        found = sources_digest(home) if home else ""
        status = ABSENT if not found else OK if found == expected else OTHER
        detail = {OK: "as the run had them", OTHER: "other sources than the run had", ABSENT: ""}[status]
        yield Check(f"sources of {name}", status, detail, "", str(entry), *((expected, found) if status == OTHER else ()))
    words = differing_fields(entry.content["versions"], versions())
    yield Check("versions", OTHER if words else OK, "; ".join(words) or "as the run had them", "", str(entry))
