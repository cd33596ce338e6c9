"""Packing against first-fit decreasing as it is told, and the fewest rows there are; every token once, exact waste, and resuming."""

from __future__ import annotations

import functools

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.data import corpus_of
from wsejax.training.examples import Example, laid_out
from wsejax.training.objectives import Objective
from wsejax.training.packing import (
    Documents,
    bucket_widths,
    laid_out_in_rows,
    pack,
    packed_batches,
    packed_stream,
    packed_validation_batches,
    pieces_of,
    waste,
)

CONTEXT = 16
HOWS = ("pack", "pad", "bucket")


def first_fit_decreasing(lengths, context):
    """Row by row, as the rule is told."""
    rooms, row, start = [], [0] * len(lengths), [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        r = next((r for r, room in enumerate(rooms) if room >= lengths[i]), len(rooms))
        if r == len(rooms):
            rooms.append(context)
        row[i], start[i] = r, context - rooms[r]
        rooms[r] -= lengths[i]
    return row, start, len(rooms)


def fewest_rows(lengths, context):
    """By trying all: each document into any row begun, or a new one."""

    @functools.cache
    def rest(i, rooms):
        if i == len(lengths):
            return 0
        into = [
            rest(i + 1, tuple(sorted((*rooms[:r], room - lengths[i], *rooms[r + 1 :]))))
            for r, room in enumerate(rooms)
            if room >= lengths[i]
        ]
        return min([*into, 1 + rest(i + 1, tuple(sorted((*rooms, context - lengths[i]))))])

    return rest(0, ())


def counted(lengths):
    """Documents whose tokens are 1, 2, 3, ...: every token tells where it comes from."""
    ends = np.cumsum(lengths)
    return Documents.of([np.arange(end - n + 1, end + 1) for end, n in zip(ends, lengths, strict=True)])


def whole(layout):
    """All rows of all shapes."""
    return [rows.batch(np.arange(len(rows))) for rows in layout.shapes]


@given(lengths=st.lists(st.integers(1, 30), max_size=60), context=st.integers(30, 47))
def test_packing_is_first_fit_decreasing(lengths, context):
    found = pack(np.array(lengths, np.int64), context)
    assert (found.row.tolist(), found.start.tolist(), found.rows) == first_fit_decreasing(lengths, context)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_packing_is_near_the_fewest_rows(lengths):
    best = fewest_rows(tuple(lengths), 12)
    assert best <= pack(np.array(lengths), 12).rows <= (11 * best + 6) / 9


def test_many_documents_are_packed_tightly():
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(100), np.log(2048), 100_000)).astype(int)
    found = pack(lengths, 2048)
    filled = np.bincount(found.row, weights=lengths)
    assert filled.max() <= 2048 and lengths.sum() / (2048 * found.rows) > 0.99
    order = np.lexsort((found.start, found.row))
    begins = np.r_[True, np.diff(found.row[order]) > 0]
    np.testing.assert_array_equal(found.start[order], np.where(begins, 0, np.roll((found.start + lengths)[order], 1)))


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=20), how=st.sampled_from(HOWS))
def test_every_token_lies_in_one_row_and_every_next_token_is_asked_for_once(lengths, how):
    if max(lengths) < 2:
        with pytest.raises(ValueError, match="ask for no token"):
            laid_out_in_rows(counted(lengths), context=CONTEXT, how=how, long="split")
        return
    layout = laid_out_in_rows(counted(lengths), context=CONTEXT, how=how, long="split")
    assert layout.longer == sum(n > CONTEXT for n in lengths)
    ends = set(np.cumsum(lengths).tolist())
    read, asked = [], []
    for batch in whole(layout):
        real = batch["segment_ids"] > 0
        assert (batch["tokens"][~real] == 0).all() and (batch["weights"][~real] == 0).all() and (batch["positions"][~real] == 0).all()
        assert real[:, 0].all() and (np.diff(real.astype(int)) <= 0).all(), "padding is at the end"
        for row, tokens in enumerate(batch["tokens"]):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = np.flatnonzero(batch["segment_ids"][row] == segment)
                np.testing.assert_array_equal(batch["positions"][row, at], np.arange(len(at)))
                np.testing.assert_array_equal(np.diff(tokens[at]), 1)
        weighed = batch["weights"] > 0
        np.testing.assert_array_equal(batch["targets"][weighed], batch["tokens"][weighed] + 1)
        assert not ends & set(batch["tokens"][weighed].tolist()), "the last token of a document has no next one"
        read += batch["tokens"][real].tolist()
        asked += batch["targets"][weighed].tolist()
    silent = [n for n in lengths if n % CONTEXT == 1]
    assert layout.silent == len(silent) and len(read) == len(set(read)) == sum(lengths) - len(silent)
    assert len(asked) == len(set(asked)) == sum(n - 1 for n in lengths if n)


def test_masked_tokens_are_those_of_documents():
    objective = Objective("masked", CONTEXT)
    random = np.random.default_rng(1)
    documents = Documents.of([random.integers(1, 200, n) for n in random.integers(1, 16, 200)])
    batches = packed_batches(documents, context=CONTEXT, batch_size=32, seed=0, objective=objective)
    first, second = next(batches), next(batches)
    real, hidden = first["segment_ids"] > 0, first["weights"] > 0
    np.testing.assert_array_equal(hidden.sum(1), np.maximum(1, np.round(0.15 * real.sum(1))))
    assert (hidden <= real).all() and (first["targets"][real] > 0).all()
    np.testing.assert_array_equal(first["tokens"][~hidden], first["targets"][~hidden])
    assert 0.5 < (first["tokens"][hidden] == 256).mean() <= 1 and (hidden != (second["weights"] > 0)).any()
    with pytest.raises(ValueError, match="spans that were cut out cannot be packed"):
        packed_batches(documents, context=CONTEXT, batch_size=2, seed=0, objective=Objective("spans", CONTEXT))


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("taken", [0, 1, 40])
def test_iterator_state_continues_with_the_very_next_batch(how, kind, taken):
    """Also across epochs; and a process that reads some rows reads those of the same batches."""
    documents = counted(np.random.default_rng(2).integers(1, 60, 40))
    how_ = dict(context=CONTEXT, batch_size=8, seed=5, how=how, objective=Objective(kind, CONTEXT))
    batches, part = packed_batches(documents, **how_), packed_batches(documents, **how_, rows=np.array([1, 6]))
    for _ in range(taken):
        next(batches)
    resumed = packed_batches(documents, **how_)
    for one in (resumed, part):
        one.set_state(batches.get_state())
    for _ in range(6):
        want, got, some = next(batches), next(resumed), next(part)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
            np.testing.assert_array_equal(some[name], want[name][[1, 6]])
    assert part.get_state() == batches.get_state()


@pytest.mark.parametrize("how", HOWS)
def test_an_epoch_reads_every_row_once_and_seeds_differ(how):
    documents = counted(np.random.default_rng(3).integers(2, 17, 96))
    layout = laid_out_in_rows(documents, context=CONTEXT, how=how, long="refuse")
    size = 4
    steps = sum(len(rows) for rows in layout.shapes) // size

    def epoch(seed):
        batches = layout.batches(batch_size=size, seed=seed)
        return [next(batches)["tokens"] for _ in range(steps)]

    rows = [row.tobytes() for batch in epoch(0) for row in batch]
    # of buckets each has an epoch of its own, and the mixture keeps their shares up to a batch
    assert len(set(rows)) >= steps * size - (size * len(layout.shapes) if how == "bucket" else 0)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(epoch(0), epoch(1), strict=True))
    assert {batch.shape[1] for batch in epoch(0)} == ({CONTEXT} if how != "bucket" else {rows.width for rows in layout.shapes})


@pytest.mark.parametrize("taken", [0, 1, 5, 11])
def test_a_stream_goes_on_from_its_state(taken):
    """Within a window of documents and between two."""
    random = np.random.default_rng(4)
    documents = [random.integers(1, 99, n) for n in random.integers(1, 40, 50)]
    make = lambda: iter(packed_stream(grain.MapDataset.source(documents).to_iter_dataset(), context=CONTEXT, window=7).batch(3))
    batches = make()
    for _ in range(taken):
        next(batches)
    resumed = make()
    resumed.set_state(batches.get_state())
    want, got = list(batches), list(resumed)
    assert len(want) == len(got) > 0
    for one, other in zip(want, got, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    if not taken:
        assert sum(batch["weights"].sum() for batch in want) == sum(len(document) - 1 for document in documents)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), how=st.sampled_from(HOWS), batch_size=st.integers(1, 5))
def test_waste_is_the_padding_of_the_rows(lengths, how, batch_size):
    found = waste(np.array(lengths), CONTEXT, batch_size, how)
    layout = laid_out_in_rows(counted(lengths), context=CONTEXT, how=how, long="split", objective=Objective("masked", CONTEXT))
    batches = tuple((-(-len(rows) // batch_size), rows.width) for rows in layout.shapes)
    assert found.batches == batches and found.tokens == sum(lengths) == sum((b["segment_ids"] > 0).sum() for b in whole(layout))
    assert found.share == pytest.approx(1 - sum(lengths) / sum(n * batch_size * width for n, width in batches))


@pytest.mark.parametrize(("spread", "share"), [("even", 0.476), ("logarithms", 0.685)])
def test_padding_to_the_longest_wastes_what_the_closed_forms_say(spread, share):
    a, b = 100, 2048
    form = 1 - ((a + b) / 2 if spread == "even" else (b - a) / np.log(b / a)) / b
    assert form == pytest.approx(share, abs=5e-4)
    drawn = np.random.default_rng(5).random(200_000)
    lengths = a + drawn * (b - a) if spread == "even" else a * (b / a) ** drawn
    lengths = np.round(lengths).astype(int)
    padded, bucketed, packed = (waste(lengths, b, 1, how).share for how in ("pad", "bucket", "pack"))
    assert padded == pytest.approx(form, abs=2e-3) and packed < 0.01 < bucketed < padded


def test_buckets_double():
    assert bucket_widths(128) == (16, 32, 64, 128) and bucket_widths(1) == (1,)


def test_documents_of_a_corpus_are_on_their_side_and_whole():
    texts = [bytes([65 + n]) * (n + 3) for n in range(20)]
    corpus = corpus_of(texts, context=64, validation_fraction=0.3, windows=False)
    sides = [Documents.of_corpus(corpus, held_out=held_out) for held_out in (False, True)]
    found = [d.tokens[start : start + n].tobytes() for d in sides for start, n in zip(d.starts, d.lengths, strict=True)]
    assert sorted(found) == sorted(text + b"\0" for text in texts) and all(len(d.lengths) for d in sides)
    assert sum(d.lengths.sum() for d in sides) == len(corpus.tokens) and corpus.documents == 20
    batch = next(packed_batches(corpus, context=64, batch_size=2, seed=0))
    assert batch["tokens"].shape == (2, 64) and set(np.unique(batch["tokens"])) <= {0, *sides[0].tokens.tolist()}
    held = packed_validation_batches(corpus, context=64, batch_size=2, batches=9)
    assert set(np.concatenate([b["tokens"] for b in held]).ravel().tolist()) == {
        0,
        *(t for d in texts for t in d if d + b"\0" in found[len(sides[0].lengths) :]),
    }
    padded = packed_validation_batches(corpus, context=64, batch_size=2, batches=1, how="bucket")
    assert padded[0]["segment_ids"].max() == 1 and padded[0]["tokens"].shape == (2, 64)
    with pytest.raises(ValueError, match="at least two"):
        corpus_of(texts[:1], context=64, windows=False)


def test_examples_ask_for_their_responses_alone():
    """The same tokens as when each has a row to itself."""
    examples = [Example(n, list(range(10 * n, 10 * n + n)), (list(range(50 + n, 50 + 2 * n)),)) for n in range(1, 6)]
    (batch,) = whole(laid_out_in_rows(Documents.of_examples(examples), context=CONTEXT, how="pack", long="refuse"))
    arrays = laid_out(examples, start=None).arrays
    pairs = lambda some: sorted(zip(some["tokens"][some["weights"] > 0], some["targets"][some["weights"] > 0], strict=True))
    assert pairs(batch) == pairs(arrays) and batch["weights"].sum() == 15 and len(batch["tokens"]) < len(examples)
    with pytest.raises(ValueError, match="chosen and rejected"):
        Documents.of_examples([Example(1, [1], ([2], [3]))])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pieces_of(np.array([3, 40, 17]), 16, "refuse"), r"2 of 3 documents are longer .* document 1 the longest with 40"),
        (lambda: pieces_of(np.array([3]), 16, "cut"), "long='cut': give one of split, refuse"),
        (lambda: pieces_of(np.array([3]), 0, "split"), "context=0"),
        (lambda: pack(np.array([3, 17]), 16), "lengths from 3 to 17: give 1 to context=16"),
        (lambda: waste(np.array([3]), 16, 0, "pack"), "batches of 0"),
        (lambda: waste(np.array([3]), 16, 1, "sort"), "how='sort': give one of pack, pad, bucket"),
        (lambda: Documents.of([]), "documents is empty"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
