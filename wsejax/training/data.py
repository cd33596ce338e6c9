"""Text as byte tokens: documents, a split by document, and batches whose place in the data can be saved.

The corpus is one uint8 array in memory; a window is a start index into it, so neither the split nor the shuffle
copies text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

VOCABULARY = 256
"""Byte tokens: every file is valid text, whatever its encoding."""

SEPARATOR = b"\0"
"""Ends every document: a byte that text does not use."""

MAX_DOCUMENT_BYTES = 1 << 16
"""A longer document is cut, so that one large file still gives both training and validation text."""

# installed packages, tests and tables; pydoc_data is read through its module, as prose
_NOT_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "idlelib"}
_NOT_LIBRARY |= {"ensurepip", "encodings", "pydoc_data"}

Batch = dict[str, Int32[np.ndarray, "batch time"]]
BatchMaker = Callable[[UInt8[np.ndarray, "batch time"], Int64[np.ndarray, " batch"]], Any]


@dataclass(frozen=True)
class Corpus:
    """Documents as one array, and where the windows of each side of the split begin.

    tokens: uint8[bytes]. train_starts, validation_starts: int64, each the first byte of a window of context + 1
    bytes; windows of one side overlap by their last byte only, and no byte is in windows of both sides.
    ends: int64, the byte after each document, which begins where the one before it ends; held_out: bool, which are for validation.
    digest: names the text (SHA-256 over the documents), so that a resumed run can tell that its text has changed.
    files: (name, bytes, SHA-256 in hex) of each file that was read, in that order; none for documents from elsewhere.
    """

    tokens: UInt8[np.ndarray, " bytes"]
    train_starts: Int64[np.ndarray, " train_windows"]
    validation_starts: Int64[np.ndarray, " validation_windows"]
    context: int
    ends: Int64[np.ndarray, " documents"]
    held_out: Bool[np.ndarray, " documents"]
    digest: str
    files: tuple[tuple[str, int, str], ...] = ()

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.ends)

    def window(self, start: int) -> UInt8[np.ndarray, " time"]:
        """The context + 1 bytes from `start`."""
        return self.tokens[start : start + self.context + 1]


def standard_library_documents() -> Iterator[bytes]:
    """Text that every Python installation carries: the language's documentation topics, then the library's sources,
    in name order."""
    return (document for _, document in _standard_library())


def _standard_library() -> Iterator[tuple[str, bytes]]:
    """(name, document); the name of a source is its place in the library."""
    with contextlib.suppress(ImportError):  # some distributions package it apart
        from pydoc_data.topics import topics

        yield from ((f"pydoc topic {name}", topics[name].encode("utf-8", "replace")) for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    # as_posix, so that the order does not depend on the platform's separator
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if not _NOT_LIBRARY.intersection(path.relative_to(root).parts):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def library_files() -> Iterator[tuple[str, int, str]]:
    """(name, bytes, SHA-256 in hex) of the documents of Python's own library here, as `Corpus.files` has them."""
    return ((name, len(document), hashlib.sha256(document).hexdigest()) for name, document in _standard_library())


def name_from_here(path: Path) -> str:
    """As seen from the folder where the command runs, if it lies there: so that the name holds wherever that folder is moved."""
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and glob patterns (`**` included) name, without repeats, sorted within a pattern.

    Raises FileNotFoundError for a path that is not there or a pattern that matches no file, IsADirectoryError for a
    folder.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            raise IsADirectoryError(f"--data {pattern} is a folder; name its files, for example --data '{pattern.rstrip('/')}/**/*.txt'")
        if path.is_file():
            found[path] = None
            continue
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            what = "matches no file" if glob.has_magic(pattern) else "does not exist"
            raise FileNotFoundError(f"--data {pattern} {what}; give existing files, or leave --data out to train on Python's own library")
        found.update(dict.fromkeys(files))
    return list(found)


def load_corpus(patterns: Sequence[str] = (), *, context: int, validation_fraction: float = 0.05, windows: bool = True) -> Corpus:
    """Read the files that `patterns` name, or Python's own library where there are none, and split it by document.

    The split depends on the documents' content alone: no seed, no path. Raises ValueError where the text is empty or
    too short for one window of context + 1 bytes on each side, and what `find_files` raises. windows: False asks for a document on each
    side in place of a window, as is enough for rows of documents (`packing`).
    """
    if patterns:
        files = find_files(patterns)
        empty = [str(path) for path in files if path.stat().st_size == 0]
        if empty:
            raise ValueError(f"--data: {', '.join(empty[:5])} hold{'' if len(empty) > 1 else 's'} no text; leave that out")
        total_bytes = sum(path.stat().st_size for path in files)
        named: Iterable[tuple[str, bytes]] = ((name_from_here(path), path.read_bytes()) for path in files)
        # a single small file still has to give some twenty documents to split
        document_bytes = int(np.clip(total_bytes // 20, context + 1, MAX_DOCUMENT_BYTES))
    else:
        named, document_bytes = _standard_library(), MAX_DOCUMENT_BYTES
    listed: list[tuple[str, int, str]] = []

    def documents() -> Iterator[bytes]:
        for name, document in named:  # the digest is of the bytes that become text, whatever happens to the file
            listed.append((name, len(document), hashlib.sha256(document).hexdigest()))
            yield document

    corpus = corpus_of(
        documents(), context=context, document_bytes=document_bytes, validation_fraction=validation_fraction, windows=windows
    )
    return dataclasses.replace(corpus, files=tuple(listed))


def corpus_of(
    documents: Iterable[bytes],
    *,
    context: int,
    document_bytes: int = MAX_DOCUMENT_BYTES,
    validation_fraction: float = 0.05,
    windows: bool = True,
) -> Corpus:
    """Documents, cut at document_bytes, as a Corpus. The pieces with the smallest hashes are for validation, at least
    one. windows: as of `load_corpus`.

    Two pieces of equal content fall on the same side.
    """
    buffer = bytearray()
    ends: list[int] = []
    hashes: list[bytes] = []
    for document in documents:
        for begin in range(0, len(document), document_bytes):
            piece = document[begin : begin + document_bytes]
            buffer += piece
            if begin + document_bytes >= len(document):
                buffer += SEPARATOR
            ends.append(len(buffer))
            hashes.append(hashlib.sha256(piece).digest())
    digest = hashlib.sha256(b"".join(hashes)).hexdigest()
    sizes = np.diff(ends, prepend=0).tolist()
    validation = validation_pieces(hashes, sizes, context=context if windows else 0, fraction=validation_fraction)
    if not windows and not (~validation).any():
        raise ValueError(f"--data holds {len(set(hashes))} different documents: give at least two, one to train on and one to validate")
    train_starts, validation_starts = (_window_starts(ends, side, context) for side in (~validation, validation))
    if windows and (not len(train_starts) or not len(validation_starts)):
        raise ValueError(
            f"--data holds {len(buffer)} bytes in {len(set(hashes))} different pieces: too little text for one "
            f"training and one validation window of {context + 1} bytes; give more text or a smaller --model.context"
        )
    tokens = np.frombuffer(buffer, np.uint8)
    tokens.flags.writeable = False
    return Corpus(tokens, train_starts, validation_starts, context, np.array(ends, np.int64), validation, digest)


def validation_pieces(hashes: Sequence[bytes], sizes: Sequence[int], *, context: int, fraction: float) -> Bool[np.ndarray, " pieces"]:
    """Which pieces are held out: those of the smallest hashes, until they are `fraction` of the bytes and one is long
    enough for a window. Depends on the pieces' content alone, not on their order; equal pieces go together."""
    pieces: dict[bytes, list[int]] = {}
    for index, value in enumerate(hashes):
        pieces.setdefault(value, []).append(index)
    chosen = np.zeros(len(hashes), bool)
    held_bytes, have_window = 0, False
    for value in sorted(pieces):
        if have_window and held_bytes >= fraction * sum(sizes):
            break
        chosen[pieces[value]] = True
        held_bytes += sum(sizes[index] for index in pieces[value])
        have_window |= sizes[pieces[value][0]] > context
    return chosen


def _window_starts(ends: list[int], side: np.ndarray, context: int) -> Int64[np.ndarray, " windows"]:
    """Windows run over the borders of documents that lie beside each other on the same side, never over one of the
    other side."""
    starts, run_begin, begin = [], 0, 0
    for end, here in zip([*ends, ends[-1] if ends else 0], [*side, False], strict=True):
        if not here:
            starts.append(np.arange(run_begin, begin - context, context, dtype=np.int64))
            run_begin = end
        begin = end
    return np.concatenate(starts)


def as_batch(windows: UInt8[np.ndarray, "batch time"]) -> Batch:
    """Windows of context + 1 bytes as int32 `tokens` and, one byte later, `targets`, both [batch, context]."""
    return {"tokens": windows[:, :-1].astype(np.int32), "targets": windows[:, 1:].astype(np.int32)}


def train_batches(
    corpus: Corpus, *, batch_size: int, seed: int, rows: Int64[np.ndarray, " rows"] | None = None, maker: BatchMaker | None = None
) -> grain.DatasetIterator:
    """An endless iterator of batches, every epoch in an order of its own that depends on `seed` alone.

    `get_state()` is a small dict of plain numbers; `set_state()` of it on a fresh iterator continues with the very
    next batch. rows: read only these of every batch; the batches and the state are the same whichever they are.
    maker: makes a batch from windows and a seed for each, which differs from epoch to epoch; None: `as_batch`.
    """
    chosen = slice(None) if rows is None else rows

    def read(drawn: Any) -> Batch:
        starts, seeds = (drawn, drawn) if maker is None else drawn
        windows = np.stack([corpus.window(int(start)) for start in starts[chosen]])
        return as_batch(windows) if maker is None else maker(windows, seeds[chosen])

    source: Any = corpus.train_starts  # grain reads items by number, which is what an array gives
    dataset = grain.MapDataset.source(source).shuffle(seed).repeat()
    if maker is not None:
        dataset = dataset.random_map(lambda start, random: (start, random.integers(2**62)), seed=seed)
    dataset = dataset.batch(batch_size).map(read)
    # slicing an array in memory is too cheap for reader threads, and there are few cores
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def validation_batches(corpus: Corpus, *, batch_size: int, batches: int, maker: BatchMaker | None = None) -> list[Batch]:
    """The same batches every time: windows spread evenly over the validation documents. Fewer where the text has
    fewer, but at least one full batch, which repeats windows if it must. maker: as for `train_batches`."""
    starts = corpus.validation_starts
    batches = max(1, min(batches, len(starts) // batch_size))
    picks = np.linspace(0, len(starts), batches * batch_size, endpoint=False).astype(np.int64)
    windows = np.stack([corpus.window(int(start)) for start in starts[picks]])
    if maker is None:
        return [as_batch(part) for part in np.split(windows, batches)]
    return [maker(part, seeds) for part, seeds in zip(np.split(windows, batches), np.split(np.arange(len(windows)), batches), strict=True)]
