"""Text into batches: every byte on one side of the split, every order repeatable, every mistake named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.data import (
    as_batch,
    corpus_of,
    find_files,
    load_corpus,
    standard_library_documents,
    train_batches,
    validation_batches,
    validation_pieces,
)

CONTEXT = 8


def text(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(1, 256, count, dtype=np.uint8).tobytes()


def covered(corpus, starts) -> set[int]:
    return {at for start in starts for at in range(start, start + corpus.context + 1)}


documents_strategy = st.lists(st.binary(min_size=1, max_size=120), min_size=1, max_size=12)


@given(documents=documents_strategy, document_bytes=st.sampled_from([9, 20, 64]), fraction=st.sampled_from([0.05, 0.5]))
def test_split_is_by_document_disjoint_and_never_empty(documents, document_bytes, fraction):
    options = dict(context=CONTEXT, document_bytes=document_bytes, validation_fraction=fraction)
    try:
        corpus = corpus_of(documents, **options)
    except ValueError as error:
        assert "too little text" in str(error)
        return
    train, held_out = covered(corpus, corpus.train_starts), covered(corpus, corpus.validation_starts)
    assert train and held_out and not train & held_out
    assert max(train | held_out) < len(corpus.tokens)
    joined = b"".join(document + b"\0" for document in documents)
    assert corpus.tokens.tobytes() == joined, "the text itself is kept, byte for byte"


@given(
    pieces=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.just(20)), min_size=2, max_size=12),
    order=st.randoms(use_true_random=False),
    fraction=st.sampled_from([0.05, 0.5]),
)
def test_held_out_pieces_depend_on_content_alone(pieces, order, fraction):
    def sides(pieces):
        hashes, sizes = zip(*pieces, strict=True)
        chosen = validation_pieces(hashes, sizes, context=CONTEXT, fraction=fraction)
        assert chosen.any()
        last = max(value for value, held in zip(hashes, chosen, strict=True) if held)
        before_last = sum(size for value, size in pieces if value < last)
        assert before_last < max(fraction * sum(sizes), 1), "held out more than was asked for"
        sides = set(zip(hashes, chosen.tolist(), strict=True))
        assert len(sides) == len(set(hashes)), "equal pieces on both sides"
        return dict(zip(hashes, chosen.tolist(), strict=True))

    shuffled = list(pieces)
    order.shuffle(shuffled)
    assert sides(pieces) == sides(shuffled)


def test_windows_of_a_run_tile_the_text():
    """Targets of one window's last position are the first token of the next: no byte of a long document is skipped."""
    corpus = corpus_of([text(400, seed) for seed in range(6)], context=CONTEXT)
    gaps = np.diff(corpus.train_starts)
    assert (gaps == CONTEXT).mean() > 0.8
    assert gaps.min() >= CONTEXT


def test_batches_are_shifted_by_one_byte():
    windows = np.arange(18, dtype=np.uint8).reshape(2, 9)
    batch = as_batch(windows)
    assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    np.testing.assert_array_equal(batch["targets"][:, -1], windows[:, -1])


@pytest.fixture(scope="module")
def corpus():
    return corpus_of([text(300, seed) for seed in range(20)], context=CONTEXT, validation_fraction=0.2)


@pytest.mark.parametrize("taken", [0, 1, 7, 200])
def test_iterator_state_continues_with_the_very_next_batch(corpus, taken):
    """Also across epochs: an epoch here is about 75 batches."""
    whole = train_batches(corpus, batch_size=8, seed=5)
    for _ in range(taken):
        next(whole)
    state = whole.get_state()
    resumed = train_batches(corpus, batch_size=8, seed=5)
    resumed.set_state(state)
    for _ in range(5):
        there, here = next(whole), next(resumed)
        np.testing.assert_array_equal(there["tokens"], here["tokens"])
        np.testing.assert_array_equal(there["targets"], here["targets"])


def test_an_epoch_sees_every_window_once_and_seeds_differ(corpus):
    count = len(corpus.train_starts)
    size = 8

    def epoch(seed):
        batches = train_batches(corpus, batch_size=size, seed=seed)
        return np.concatenate([next(batches)["tokens"] for _ in range(count // size)])

    seen = {row.tobytes() for row in epoch(0)}
    assert len(seen) == count // size * size, "no window twice before all were seen"
    assert not np.array_equal(epoch(0), epoch(1))


def test_validation_batches_are_full_spread_and_always_the_same(corpus):
    batches = validation_batches(corpus, batch_size=4, batches=5)
    assert [batch["tokens"].shape for batch in batches] == [(4, CONTEXT)] * 5
    again = validation_batches(corpus, batch_size=4, batches=5)
    for first, second in zip(batches, again, strict=True):
        np.testing.assert_array_equal(first["tokens"], second["tokens"])
    rows = np.concatenate([batch["tokens"] for batch in batches])
    assert len({row.tobytes() for row in rows}) == 20, "spread over different windows"
    many = validation_batches(corpus, batch_size=10_000, batches=5)
    assert [batch["tokens"].shape[0] for batch in many] == [10_000], "one full batch, even of little text"


def test_default_text_is_real_and_repeatable():
    first = [document for document, _ in zip(standard_library_documents(), range(200), strict=False)]
    second = [document for document, _ in zip(standard_library_documents(), range(200), strict=False)]
    assert first == second
    assert sum(map(len, first)) > 300_000
    assert any(b"def " in document and b"import " in document for document in first)


def test_files_may_hold_any_bytes(tmp_path):
    (tmp_path / "latin.txt").write_bytes(bytes(range(256)) + text(4000))
    corpus = load_corpus([str(tmp_path / "latin.txt")], context=CONTEXT)
    assert corpus.tokens.dtype == np.uint8 and corpus.tokens[:256].tolist() == list(range(256))
    batch = next(train_batches(corpus, batch_size=2, seed=0))
    assert batch["tokens"].max() <= 255


def test_find_files_takes_paths_and_globs_in_order_without_repeats(tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["b.txt", "a.txt", "sub/c.txt"]
    for name in names:
        (tmp_path / name).write_text("x")
    found = find_files([str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt")])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == names
    (tmp_path / "odd[1].txt").write_text("x")  # a real file wins over its reading as a pattern
    assert find_files([str(tmp_path / "odd[1].txt")]) == [tmp_path / "odd[1].txt"]


def test_the_digest_names_the_text():
    documents = [text(300, seed) for seed in range(4)]
    digest = corpus_of(documents, context=CONTEXT).digest
    assert corpus_of(documents, context=CONTEXT * 2).digest == digest
    assert corpus_of([*documents[:-1], documents[-1] + b"x"], context=CONTEXT).digest != digest


@pytest.mark.parametrize(
    ("patterns", "error", "words"),
    [
        (["missing.txt"], FileNotFoundError, "missing.txt does not exist"),
        (["*.none"], FileNotFoundError, r"\*.none matches no file"),
        (["."], IsADirectoryError, "is a folder; name its files"),
        (["empty.txt"], ValueError, "empty.txt holds no text"),
        (["short.txt"], ValueError, "too little text"),
    ],
)
def test_bad_data_is_named(tmp_path, monkeypatch, patterns, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_bytes(text(CONTEXT + 3))
    with pytest.raises(error, match=words):
        load_corpus(patterns, context=CONTEXT)
