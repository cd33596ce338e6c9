"""The manifest of a run: a file to which entries are only ever added, each holding the hash of the one before.

An entry is one line of `manifest.jsonl`: JSON in its canonical form (keys in order, no spaces, ASCII), ended by a newline. Its `sha256` is
the SHA-256 of the same text without that field; its `previous` is the `sha256` of the entry before, so that no entry can be changed,
removed from the middle, moved or put in without a trace. This is the linear chain of Haber and Stornetta, "How to time-stamp a digital
document" (J. Cryptology 3, 1991), without their service that others trust: whoever writes all lines anew leaves no trace in them. The hash
of the last entry, kept elsewhere, is what tells (`wsejax verify --head`).

What a format must keep, whatever its number: a line an entry, its fields, and how they are hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .rundir import RunDirectoryError

MANIFEST = "manifest.jsonl"
FORMAT = 1
KINDS = ("begin", "resume", "checkpoint", "fault", "end")
FIRST = "0" * 64  # stands for the entry before the first
_HEAD = '{"content":'  # how the line of an entry begins


class ManifestError(RunDirectoryError):
    """There is no manifest, it is not one that this wsejax reads, or it was tampered with."""


def canonical(value: Any) -> str:
    """The one text of a JSON value.

    Raises:
      ValueError: a number that is not finite, for which JSON has no word.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(data: bytes | str) -> str:
    """In hex; of a text its UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One line. `time` is UTC, of the host's clock, which nobody vouches for; `content` is JSON."""

    number: int
    kind: str
    time: str
    content: Mapping[str, Any]
    previous: str
    sha256: str

    def __str__(self) -> str:
        return f"entry {self.number} ({self.kind})"

    def line(self) -> str:
        return canonical(dataclasses.asdict(self)) + "\n"

    def own_hash(self) -> str:
        """The hash that its other fields have."""
        fields = dataclasses.asdict(self)
        del fields["sha256"]
        return sha256(canonical(fields))


def make_entry(before: Entry | None, kind: str, content: Mapping[str, Any], time: str | None = None) -> Entry:
    """The entry that follows `before` (None: the first). `content` is taken as JSON has it: lists for tuples, texts for keys."""
    number, previous = (0, FIRST) if before is None else (before.number + 1, before.sha256)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time is None else time
    bare = Entry(number, kind, stamp, json.loads(canonical(content)), previous, "")
    return dataclasses.replace(bare, sha256=bare.own_hash())


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be part of the chain: which entry, what is wrong, and the two hashes where it is hashes that differ."""

    entry: str
    what: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        hashes = f"; expected {self.expected}, found {self.found}" if self.expected or self.found else ""
        return f"{self.entry}: {self.what}{hashes}"


@dataclass(frozen=True)
class Chain:
    """A manifest as read. `entries` are those before the first problem; `torn` is a last line that a kill left half-written."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()
    torn: bytes = b""

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


def parse_chain(data: bytes) -> Chain:
    """The chain that the bytes of a manifest hold, with all that is wrong with it.

    A last line without a newline is torn where it may be the beginning of an entry. What no write can leave behind (more text after a
    whole entry, a whole entry of another hash) is a problem like any other.
    """
    *lines, rest = data.split(b"\n")
    entries: list[Entry] = []
    problems: list[Problem] = []
    before: Entry | None = None
    for number, line in enumerate(lines):
        entry, problem = _read(line + b"\n", number, before)
        problems += [problem] if problem else []
        if entry is not None and not problems:
            entries.append(entry)
        before = entry or _Unreadable
    if rest and (wrong := _not_torn(rest, len(lines))):
        problems.append(wrong)
    return Chain(tuple(entries), tuple(problems), rest)


_Unreadable = Entry(-1, "unreadable", "", {}, "", "")  # follows nothing, and nothing is held against what follows it


def _read(line: bytes, number: int, before: Entry | None) -> tuple[Entry | None, Problem | None]:
    """The entry of a line, if it can be read at all, and what is wrong with it."""
    name = f"entry {number}"
    try:
        value = json.loads(line)
        entry = Entry(**value)
        whole = isinstance(entry.kind, str) and isinstance(entry.content, dict) and type(entry.number) is int
        if not whole or entry.line().encode() != line:
            return None, Problem(name, "its text is not the one that was written")
    except (ValueError, TypeError, RecursionError):
        return None, Problem(name, "it is not the JSON of an entry")
    name = f"entry {number} ({entry.kind})"
    if entry.own_hash() != entry.sha256:
        return entry, Problem(name, "it was changed: its own hash does not fit", entry.own_hash(), entry.sha256)
    if before is _Unreadable:
        return entry, None
    previous = FIRST if before is None else before.sha256
    if entry.previous != previous:
        return entry, Problem(name, "it does not follow the entry before: some were removed, moved or put in", previous, entry.previous)
    follows = 0 if before is None else before.number + 1
    if entry.number != follows:
        return entry, Problem(name, f"it has the number {entry.number}, and the entry before asks for {follows}")
    if (entry.kind == "begin") != (before is None) or entry.kind not in KINDS:
        return entry, Problem(name, f"no entry of the kind {entry.kind!r} can stand here")
    return entry, None


def _not_torn(rest: bytes, number: int) -> Problem | None:
    """Why a last line without a newline is more than a write that was cut off; None where it may be one."""
    name = f"entry {number}"
    try:
        text = rest.decode("ascii")
    except UnicodeDecodeError:
        return Problem(name, "the last line holds bytes that no entry has")
    if not (text.startswith(_HEAD) or _HEAD.startswith(text)):
        return Problem(name, "the last line, without a newline, is no beginning of an entry")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if end < len(text):
        return Problem(name, "more text follows it in its line")
    try:
        if (whole := Entry(**json.loads(text))).own_hash() == whole.sha256:
            return None  # only the newline is missing
    except (ValueError, TypeError):
        pass
    return Problem(name, "the last line, without a newline, is whole, and its own hash does not fit")


def read_chain(path: Path) -> Chain:
    """Raises ManifestError where there is none, or its format is not this one. What else is wrong is in the chain's problems."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; name the folder of a run that has written its manifest") from None
    except IsADirectoryError:
        raise ManifestError(f"{path} is a folder; a run's manifest is a file in its folder") from None
    chain = parse_chain(data)
    if chain.entries and (found := chain.entries[0].content.get("format")) != FORMAT:
        raise ManifestError(f"{path} is of format {found!r}, and this wsejax reads format {FORMAT}; use the wsejax that wrote it")
    return chain


class Manifest:
    """The manifest of a run folder, to be added to. The folder's lock keeps others from doing so (`RunDirectory`).

    A torn last line is dropped, once something is to be written, and `report` is told; a chain that was tampered with is refused.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]):
        self.path, self._report = folder / MANIFEST, report
        chain = read_chain(self.path) if self.path.exists() else Chain()
        if chain.problems:
            said = f"{self.path} was tampered with: {chain.problems[0]}"
            raise ManifestError(f"{said}; `wsejax verify` tells all; to go on with a manifest that begins anew, move this one away")
        self.entries, self.torn_bytes = list(chain.entries), len(chain.torn)
        self._size_bytes = sum(len(entry.line()) for entry in self.entries)

    def append(self, kind: str, content: Mapping[str, Any]) -> Entry:
        """Add an entry; it is on disk when this returns. Where it cannot be written the file is left as it was."""
        entry = make_entry(self.entries[-1] if self.entries else None, kind, content)
        made, data = not self.path.exists(), entry.line().encode()
        with open(self.path, "ab", buffering=0) as file:
            if file.seek(0, os.SEEK_END) > self._size_bytes:
                self._report(f"{self.path}: a last line that a kill had left half-written was dropped")
                file.truncate(self._size_bytes)
            try:
                if file.write(data) != len(data):
                    raise OSError(f"{self.path}: no room for an entry of {len(data)} bytes; make room on the disk")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._size_bytes)
                raise
        if made:
            _sync_folder(self.path.parent)
        self._size_bytes += len(data)
        self.entries.append(entry)
        return entry


def _sync_folder(folder: Path) -> None:
    """The name of a new file is on disk when this returns."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
