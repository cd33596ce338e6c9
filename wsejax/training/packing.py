"""Documents of any length in rows of one length: several to a row (packed), one to a row (padded), or in buckets of like lengths.

A row says of each token which document it belongs to (`segment_ids`) and where it stands in it (`positions`), so that a model that reads
both gives every token what it gives it in a row of its own. Weights are 1 where a next token is asked for, so means are over real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import grain
import numpy as np
from jaxtyping import Bool, Int, Int64

from .data import Corpus
from .examples import Arrays, Example
from .objectives import Objective

How = Literal["pack", "pad", "bucket"]
Long = Literal["split", "refuse"]
Lengths = Int64[np.ndarray, " documents"]

CAUSAL = Objective("causal", 1)


# ---- where documents lie -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Assignment:
    """row, start: int64 [documents], where each lies, and at which place of the row it begins. rows: how many there are."""

    row: Lengths
    start: Lengths
    rows: int


def pack(lengths: Lengths, context: int) -> Assignment:
    """First-fit decreasing: documents from the longest to the shortest (equal ones in their order), each into the first row with room.

    Never more than 11/9 of the fewest rows possible, and 6/9 of a row (Dosa 2007). Rows stand in a tree that knows the most room below
    each node, and documents of one length are dealt out together: n log(rows) at most.

    Raises:
      ValueError: a length below 1 or above the context.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= context:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}: give 1 to context={context}; split what is longer")
    order = np.argsort(-lengths, kind="stable")
    # no two rows of a first fit are half empty, so there are fewer than this
    leaves = 1 << max(0, min(len(lengths), 2 * int(lengths.sum()) // context + 1) - 1).bit_length()
    room = [context] * (2 * leaves)
    runs: list[tuple[int, int, int, int]] = []  # row, first place, length, how many
    sizes, counts = np.unique(lengths, return_counts=True)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            at = 1
            while at < leaves:
                at *= 2
                at += room[at] < size
            taken = min(count, room[at] // size)
            runs.append((at - leaves, context - room[at], size, taken))
            count -= taken
            room[at] -= taken * size
            while at > 1:
                at //= 2
                most = max(room[2 * at], room[2 * at + 1])
                if room[at] == most:
                    break
                room[at] = most
    rows, starts, sizes, counts = np.array(runs, np.int64).reshape(-1, 4).T
    in_run = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, start = np.empty_like(lengths), np.empty_like(lengths)
    row[order], start[order] = np.repeat(rows, counts), np.repeat(starts, counts) + in_run * np.repeat(sizes, counts)
    return Assignment(row, start, int(rows.max()) + 1 if len(rows) else 0)


def bucket_widths(context: int) -> tuple[int, ...]:
    """The lengths of rows in buckets, each but the first twice the one before: few, since each is a program of its own."""
    return tuple(sorted({max(1, context >> n) for n in range(4)}))


def arranged(lengths: Lengths, context: int, how: How) -> list[tuple[int, Int64[np.ndarray, " some"], Assignment]]:
    """(places of a row, which documents, where they lie) of each length of rows: one, or of buckets several.

    Raises ValueError for what `pack` refuses, or an unknown way.
    """
    if how not in get_args(How):
        raise ValueError(f"how={how!r}: give one of {', '.join(get_args(How))}")
    every = np.arange(len(lengths))
    if how == "pack":
        return [(context, every, pack(lengths, context))]
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= context:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}: give 1 to context={context}; split what is longer")
    widths = (context,) if how == "pad" else bucket_widths(context)
    bucket = np.searchsorted(widths, lengths)
    found = [(width, every[bucket == n]) for n, width in enumerate(widths)]
    alone = lambda some: Assignment(np.arange(len(some)), np.zeros(len(some), np.int64), len(some))
    return [(width, some, alone(some)) for width, some in found if len(some)]


@dataclass(frozen=True)
class Pieces:
    """Parts of documents of at most a context each: of which document, from which token of it, and how many. longer: documents that are
    more than one."""

    document: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    length: Int64[np.ndarray, " pieces"]
    longer: int


def pieces_of(lengths: Lengths, context: int, long: Long) -> Pieces:
    """Documents cut at every `context` tokens.

    Raises:
      ValueError: documents longer than the context with long="refuse"; an unknown `long`; a context below 1.
    """
    if long not in get_args(Long):
        raise ValueError(f"long={long!r}: give one of {', '.join(get_args(Long))}")
    if context < 1:
        raise ValueError(f"context={context}: give at least 1 token")
    lengths = np.asarray(lengths, np.int64)
    longer = int((lengths > context).sum())
    if longer and long == "refuse":
        worst = int(lengths.argmax())
        said = f"{longer:,} of {len(lengths):,} documents are longer than the context of {context} tokens"
        raise ValueError(f"{said}, document {worst} the longest with {lengths[worst]:,}; give a longer context, or long='split'")
    counts = -(-lengths // context)
    document = np.repeat(np.arange(len(lengths)), counts)
    start = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * context
    return Pieces(document, start, np.minimum(lengths[document] - start, context), longer)


# ---- what is wasted ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Waste:
    """Real tokens of one pass over the documents, and in what they are read: (batches, tokens of a row) of each shape of a batch."""

    tokens: int
    batch_size: int
    batches: tuple[tuple[int, int], ...]

    @property
    def places(self) -> int:
        """Tokens and padding."""
        return self.batch_size * sum(count * width for count, width in self.batches)

    @property
    def share(self) -> float:
        """Of the places, those that are padding."""
        return 1.0 - self.tokens / self.places


def waste(lengths: Lengths, context: int, batch_size: int, how: How, long: Long = "split") -> Waste:
    """What one pass reads, the last batch of each shape filled up with padding.

    Padding to a context b wastes 1 - mean / b. Lengths spread evenly over a to b have the mean (a + b) / 2: of 100 to 2048, 47.6% is
    padding. Where their logarithms are spread evenly the mean is (b - a) / ln(b / a), the integral of x / (x ln(b / a)): 68.5%.

    Raises:
      ValueError: no documents, a batch_size below 1, and what `pieces_of` and `arranged` refuse.
    """
    if not len(lengths) or batch_size < 1:
        raise ValueError(f"{len(lengths)} documents in batches of {batch_size}: give at least 1 of each")
    pieces = pieces_of(lengths, context, long)
    found = arranged(pieces.length, context, how)
    batches = tuple((-(-where.rows // batch_size), width) for width, _, where in found)
    return Waste(int(pieces.length.sum()), batch_size, batches)


# ---- documents ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Documents:
    """Documents one after the other. tokens: integers. starts, lengths: int64, of each document in them. asked: bool, which tokens a model
    has to find (the first of a document it never has); None: all."""

    tokens: Int[np.ndarray, " tokens"]
    starts: Lengths
    lengths: Lengths
    asked: Bool[np.ndarray, " tokens"] | None = None

    @classmethod
    def of(cls, sequences: Sequence[Any], asked: Sequence[Any] | None = None) -> Documents:
        """From a sequence of tokens each, and for each token whether it is asked for. Raises ValueError where there is none."""
        if not len(sequences):
            raise ValueError("documents is empty: give at least one")
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        which = None if asked is None else np.concatenate([np.asarray(one, bool) for one in asked])
        tokens = np.concatenate([np.asarray(sequence) for sequence in sequences])
        return cls(tokens, np.cumsum(lengths) - lengths, lengths, which)

    @classmethod
    def of_corpus(cls, corpus: Corpus, *, held_out: bool = False) -> Documents:
        """Those that are trained on, or those for validation, each with the byte that ends it. Nothing is copied."""
        starts = np.concatenate([np.zeros(1, np.int64), corpus.ends[:-1]])
        side = corpus.held_out == held_out
        return cls(corpus.tokens, starts[side], (corpus.ends - starts)[side])

    @classmethod
    def of_examples(cls, examples: Sequence[Example]) -> Documents:
        """Prompts in tokens with their response, which alone is asked for. Raises ValueError for pairs of responses."""
        if any(len(one.responses) != 1 for one in examples):
            raise ValueError("examples with chosen and rejected responses cannot be packed: both are read with one prompt; give responses")
        whole = [[*one.prompt, *one.responses[0]] for one in examples]
        return cls.of(whole, [np.arange(len(tokens)) >= len(one.prompt) for one, tokens in zip(examples, whole, strict=True)])


# ---- rows --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rows:
    """Pieces of documents in rows of `width` tokens, in the order of the rows.

    begins, ends: int64 [pieces], of a piece in the documents' tokens, and of its document. lengths, starts: of a piece, and its first place
    in the row. borders: int64 [rows + 1], pieces borders[r] to borders[r + 1] lie in row r.
    """

    documents: Documents
    width: int
    begins: Int64[np.ndarray, " pieces"]
    ends: Int64[np.ndarray, " pieces"]
    lengths: Int64[np.ndarray, " pieces"]
    starts: Int64[np.ndarray, " pieces"]
    borders: Int64[np.ndarray, " rows_and_1"]

    def __len__(self) -> int:
        return len(self.borders) - 1

    def batch(self, rows: Int[np.ndarray, " batch"]) -> Arrays:
        """Some rows, all arrays [batch, width], and 0 where there is padding: int32 `tokens`, `targets` (the next token of the document,
        also where it goes on in another row), `segment_ids` (from 1) and `positions`, and float32 `weights`: 1 where the target is asked
        for."""
        counts = self.borders[rows + 1] - self.borders[rows]
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        piece = np.repeat(self.borders[rows], counts) + number
        lengths = self.lengths[piece]
        each = lambda values: np.repeat(values, lengths)
        position = np.arange(lengths.sum()) - each(np.cumsum(lengths) - lengths)
        source = each(self.begins[piece]) + position
        place = each(np.repeat(np.arange(len(rows)), counts) * self.width + self.starts[piece]) + position
        follows = source + 1 < each(self.ends[piece])
        after = np.where(follows, source + 1, source)
        asked = follows if self.documents.asked is None else follows & self.documents.asked[after]
        filled = {
            "tokens": self.documents.tokens[source], "targets": np.where(follows, self.documents.tokens[after], 0), "weights": asked,
            "segment_ids": each(number + 1), "positions": position,
        }  # fmt: skip
        made = {name: np.zeros((len(rows), self.width), np.float32 if name == "weights" else np.int32) for name in filled}
        for name, values in filled.items():
            made[name].reshape(-1)[place] = values
        return made


@dataclass(frozen=True)
class Layout:
    """Documents laid out in rows, and what it took.

    shapes: the rows of each length; one, or of buckets several. longer: documents that were split. silent: pieces that ask for no token,
    and so are in no row.
    """

    shapes: tuple[Rows, ...]
    longer: int
    silent: int

    def batches(
        self, *, batch_size: int, seed: int, objective: Objective = CAUSAL, rows: Int64[np.ndarray, " rows"] | None = None
    ) -> grain.DatasetIterator:
        """As `packed_batches`."""
        chosen = slice(None) if rows is None else rows

        def reader(some: Rows) -> Any:
            def read(drawn: Any) -> Arrays:
                if not objective.draws:
                    return some.batch(drawn[chosen])
                return objective.of_rows(some.batch(drawn[0][chosen]), drawn[1][chosen])

            return read

        datasets = []
        for some in self.shapes:
            numbers: Any = np.arange(len(some))
            dataset = grain.MapDataset.source(numbers).shuffle(seed).repeat()
            if objective.draws:
                dataset = dataset.random_map(lambda row, random: (row, random.integers(2**62)), seed=seed)
            datasets.append(dataset.batch(batch_size).map(reader(some)))
        dataset = datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, [float(len(some)) for some in self.shapes])
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def spread(self, *, batch_size: int, batches: int, objective: Objective = CAUSAL) -> list[Arrays]:
        """As `packed_validation_batches`, of rows of one length."""
        (some,) = self.shapes
        batches = max(1, min(batches, len(some) // batch_size))
        picks = np.linspace(0, len(some), batches * batch_size, endpoint=False).astype(np.int64)
        parts = zip(np.split(picks, batches), np.split(np.arange(len(picks)), batches), strict=True)
        return [objective.of_rows(some.batch(part), seeds) for part, seeds in parts]


def laid_out_in_rows(documents: Documents, *, context: int, how: How, long: Long, objective: Objective = CAUSAL) -> Layout:
    """Every token of every document once, but for pieces that ask for none. Arguments as of `packed_batches`.

    Raises:
      ValueError: what `pieces_of` and `arranged` refuse, spans, or documents in which nothing is asked for.
    """
    objective.check_rows()
    pieces = pieces_of(documents.lengths, context, long)
    begins = documents.starts[pieces.document] + pieces.start
    ends = (documents.starts + documents.lengths)[pieces.document]
    heard = np.ones(len(begins), bool)
    if objective.kind == "causal":
        last = np.minimum(begins + pieces.length + 1, ends)
        before = None if documents.asked is None else np.concatenate([np.zeros(1, np.int64), np.cumsum(documents.asked)])
        heard = (last - begins - 1 if before is None else before[last] - before[np.minimum(begins + 1, last)]) > 0
    if not heard.any():
        raise ValueError(f"{len(documents.lengths):,} documents ask for no token: give one of at least 2 tokens")
    begins, ends, lengths = begins[heard], ends[heard], pieces.length[heard]
    shapes = []
    for width, which, where in arranged(lengths, context, how):
        order = np.lexsort((where.start, where.row))
        some, borders = which[order], np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(where.row))])
        shapes.append(Rows(documents, width, begins[some], ends[some], lengths[some], where.start[order], borders))
    return Layout(tuple(shapes), pieces.longer, int((~heard).sum()))


# ---- batches -----------------------------------------------------------------------------------------------------------
def packed_batches(
    source: Corpus | Documents,
    *,
    context: int,
    batch_size: int,
    seed: int,
    how: How = "pack",
    long: Long = "split",
    objective: Objective = CAUSAL,
    rows: Int64[np.ndarray, " rows"] | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of batches as `Rows.batch` has them; every epoch reads every row once, in an order of its own that depends on
    `seed` alone.

    `get_state()` is a small dict of plain numbers; `set_state()` of it on a fresh iterator continues with the very next batch.

    Args:
      source: documents, or a corpus, whose documents for training are meant.
      context: tokens of a row; of buckets the most, and their batches differ in it (`bucket_widths`).
      how: "pack" by `pack`, the same documents together in every epoch; "pad", one a row; "bucket", one in the shortest row that holds it.
      long: what is longer than the context is split, or an error.
      objective: causal, or masked, for which 15% of each row's tokens are hidden anew each time.
      rows: read only these of every batch; the batches and the state are the same whichever they are.

    Raises:
      ValueError: what `laid_out_in_rows` refuses. It also tells how many documents were split.
    """
    documents = Documents.of_corpus(source) if isinstance(source, Corpus) else source
    layout = laid_out_in_rows(documents, context=context, how=how, long=long, objective=objective)
    return layout.batches(batch_size=batch_size, seed=seed, objective=objective, rows=rows)


def packed_validation_batches(
    source: Corpus | Documents,
    *,
    context: int,
    batch_size: int,
    batches: int,
    how: How = "pack",
    long: Long = "split",
    objective: Objective = CAUSAL,
) -> list[Arrays]:
    """The same batches every time: rows spread evenly over the documents, of a corpus those for validation. Fewer where there are fewer
    rows, but at least one full batch, which repeats rows if it must. In buckets documents are padded to the context. Batches hold different
    numbers of real tokens, so a mean over several weighs each by the sum of its `weights`.
    """
    documents = Documents.of_corpus(source, held_out=True) if isinstance(source, Corpus) else source
    layout = laid_out_in_rows(documents, context=context, how="pad" if how == "bucket" else how, long=long, objective=objective)
    return layout.spread(batch_size=batch_size, batches=batches, objective=objective)


@dataclass(frozen=True)
class PackWindow(grain.experimental.FlatMapTransform):
    """A list of documents, each a sequence of tokens, as rows of them, each a dict of arrays [context]."""

    context: int
    long: Long = "split"
    max_fan_out: int = 1 << 62  # no bound

    def flat_map(self, element: Sequence[Any]) -> list[Arrays]:
        (rows,) = laid_out_in_rows(Documents.of(element), context=self.context, how="pack", long=self.long).shapes
        whole = rows.batch(np.arange(len(rows)))
        return [{name: array[row] for name, array in whole.items()} for row in range(len(rows))]


def packed_stream(documents: grain.IterDataset, *, context: int, window: int, long: Long = "split") -> grain.IterDataset:
    """Rows of a stream of documents (each a sequence of tokens) that need not be known before: `window` documents are packed together, and
    the last rows of a window stay as full as they are. For batches, `.batch(batch_size)`.

    The state of its iterator is that of the stream before the window, and how many rows of it were read: the window is packed again, so
    what comes next is the same bit for bit.
    """
    windows = documents.batch(window, batch_fn=list)
    return grain.experimental.FlatMapIterDataset(windows, PackWindow(context, long))
