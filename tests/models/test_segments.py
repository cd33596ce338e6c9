"""Rows of several documents: every family gives each token what it gives it in a row of its own, and no document hears of another."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from wsejax.training.objectives import cross_entropy, places
from wsejax.training.packing import Documents, laid_out_in_rows

from .small import CONTEXT, DECODERS, OTHERS, VOCAB, close, parameters, quickly, small

LENGTHS = (7, 5, 5, 7, 5, 5)
DOCUMENTS = [np.random.default_rng(n).integers(2, VOCAB, size).astype(np.int32) for n, size in enumerate(LENGTHS)]
ALL = tuple(name for name in (*DECODERS, *OTHERS) if not name.startswith("t5"))
FAST = ("gpt2", "mistral", "mpt", "roberta")  # learned, rotary in a window, ALiBi, counted from behind the padding token
EACH = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in FAST)]


def rows_of(documents: Any) -> dict[str, Any]:
    """All documents, packed; encoders are asked for every token's next one just the same."""
    (rows,) = laid_out_in_rows(Documents.of(documents), context=CONTEXT, how="pack", long="refuse").shapes
    return rows.batch(np.arange(len(rows)))


BATCH = rows_of(DOCUMENTS)


def loss(name: str, params: Any, batch: Any, **how: Any) -> Any:
    """Mean loss, and logits."""
    family, config = small(name, **how)
    logits, _ = family.training_logits(config, params, batch["tokens"], present=batch.get("present"), **places(batch))
    return cross_entropy(logits, batch["targets"], batch["weights"]), logits


@functools.cache
def compiled(name: str, **how: Any) -> Any:
    """(loss, logits) of parameters and a batch."""
    return quickly(functools.partial(loss, name, **how))


@functools.cache
def trained(name: str, **how: Any) -> Any:
    """((loss, logits), gradients) of parameters and a batch."""
    return quickly(jax.value_and_grad(functools.partial(loss, name, **how), has_aux=True))


def one_by_one(name: str) -> Any:
    """The batch in which every document has a row to itself, as models have always read it: without places, padded at the end."""
    (rows,) = laid_out_in_rows(Documents.of(DOCUMENTS), context=max(LENGTHS), how="pad", long="refuse").shapes
    batch = rows.batch(np.arange(len(rows)))
    present = {"present": (batch.pop("segment_ids") > 0).astype(np.int32)} if small(name)[0].kind == "encoder" else {}
    del batch["positions"]
    return batch | present


def at(batch: Any, document: Any) -> tuple[int, slice]:
    """Where a document lies: the row and the places."""
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segment_ids"][row].max() + 1):
            here = np.flatnonzero(batch["segment_ids"][row] == number)
            if np.array_equal(batch["tokens"][row, here], document):
                return row, slice(here[0], here[-1] + 1)
    raise AssertionError("the document is in no row")


def alike(got: Any, want: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        found = functools.reduce(lambda tree, key: tree[key.key], path, got)
        most = max(np.abs(leaf).max(), 1e-2)
        assert np.abs(np.asarray(found) - leaf).max() <= 1e-5 * most, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", EACH)
def test_packed_documents_are_what_they_are_alone(name):
    assert BATCH["tokens"].shape == (3, CONTEXT) and (BATCH["segment_ids"] == 0).any()
    value, logits = compiled(name)(parameters(name), BATCH)
    wanted, alone = compiled(name)(parameters(name), one_by_one(name))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for document, want in zip(DOCUMENTS, np.asarray(alone), strict=True):
        close(np.asarray(logits)[at(BATCH, document)], want[: len(document)])


@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ALL if n != "gpt2")])
def test_gradients_of_packed_documents_are_those_of_each_alone(name):
    _, grads = trained(name)(parameters(name), BATCH)
    alike(grads, jax.device_get(trained(name)(parameters(name), one_by_one(name))[1]))


@pytest.mark.parametrize("name", EACH)
def test_a_document_says_nothing_to_the_others(name):
    """Bit for bit. Except in itself: there it does."""
    logits = np.asarray(compiled(name)(parameters(name), BATCH)[1])
    here = at(BATCH, DOCUMENTS[0])
    tokens = BATCH["tokens"].copy()
    tokens[here] = 2 + (tokens[here] - 1) % (VOCAB - 2)
    changed = np.array(compiled(name)(parameters(name), {**BATCH, "tokens": tokens})[1])
    assert (np.abs(changed[here] - logits[here]).max(-1) > 0).all()
    changed[here] = logits[here]
    np.testing.assert_array_equal(changed, logits)


@pytest.mark.parametrize("name", FAST)
def test_it_does_not_matter_in_which_row_a_document_lies(name):
    moved = rows_of([DOCUMENTS[n] for n in (3, 4, 2, 0, 5, 1)])
    assert at(moved, DOCUMENTS[3]) != at(BATCH, DOCUMENTS[3]) and moved["tokens"].shape == BATCH["tokens"].shape
    value, logits = compiled(name)(parameters(name), BATCH)
    again, other = compiled(name)(parameters(name), moved)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for document in DOCUMENTS:
        close(np.asarray(other)[at(moved, document)], np.asarray(logits)[at(BATCH, document)])


def test_blocks_of_queries_know_their_segments():
    """Of five and a rest of two, recomputed."""
    (value, logits), grads = trained("gpt2", query_block=5, remat="full")(parameters("gpt2"), BATCH)
    (want, wanted), gradients = trained("gpt2")(parameters("gpt2"), BATCH)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    close(logits, wanted)
    alike(grads, jax.device_get(gradients))


def test_padding_counts_in_no_load_of_experts():
    """Padding tokens are others, and so would choose others; the load-balancing loss does not see it."""
    family, config = small("mixtral", balance_weight=0.5)
    run = quickly(lambda params, batch: family.training_logits(config, params, batch["tokens"], **places(batch))[1])
    other = {**BATCH, "tokens": np.where(BATCH["segment_ids"] > 0, BATCH["tokens"], 7)}
    params = parameters("mixtral")
    np.testing.assert_array_equal(run(params, BATCH), run(params, other))
    everywhere = {**BATCH, "segment_ids": np.maximum(BATCH["segment_ids"], 1)}
    assert run(params, BATCH) != run(params, everywhere)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_an_answer_of_t5_reads_its_own_document(name):
    """Loss and gradients of packed pairs as of each alone, and nothing of one is heard in another."""
    family, config = small(name)
    answers = [document[::-1][: len(document) - n % 3] for n, document in enumerate(DOCUMENTS[:4])]
    pairs = list(zip(DOCUMENTS[:4], answers, strict=True))
    read, told = np.zeros((2, CONTEXT), np.int32), np.zeros((2, CONTEXT), np.int32)
    places_of = {key: np.zeros((2, CONTEXT), np.int32) for key in ("segment_ids", "positions", "answer_segment_ids", "answer_positions")}
    spans = []
    for n, pair in enumerate(pairs):
        row, number = n // 2, n % 2 + 1
        for into, prefix, tokens in zip((read, told), ("", "answer_"), pair, strict=True):
            start = int((places_of[prefix + "segment_ids"][row] > 0).sum())
            into[row, start : start + len(tokens)] = tokens
            places_of[prefix + "segment_ids"][row, start : start + len(tokens)] = number
            places_of[prefix + "positions"][row, start : start + len(tokens)] = np.arange(len(tokens))
        spans.append((row, slice(start, start + len(pair[1]))))

    def packed(params, read):
        logits, _ = family.training_logits(config, params, read, told, **places_of)
        return sum(jnp.sin(logits[span]).sum() for span in spans), logits

    def alone(params):
        found = [family.apply(config, params, a[None], b[None])[0] for a, b in pairs]
        return sum(jnp.sin(logits).sum() for logits in found), found

    run = quickly(jax.value_and_grad(packed, has_aux=True))
    (_, logits), grads = run(parameters(name), read)
    (_, wanted), gradients = quickly(jax.value_and_grad(alone, has_aux=True))(parameters(name))
    logits = np.asarray(logits)
    for span, want in zip(spans, wanted, strict=True):
        close(logits[span], want)
    alike(grads, jax.device_get(gradients))
    read[0, : len(DOCUMENTS[0])] += 1
    changed = np.asarray(run(parameters(name), read % VOCAB)[0][1])
    assert (np.abs(changed[spans[0]] - logits[spans[0]]).max(-1) > 0).all()
    for span in spans[1:]:
        np.testing.assert_array_equal(changed[span], logits[span])


WAFERS = [("gpt2", (2, 2))] + [
    pytest.param(name, grid, marks=pytest.mark.slow) for name in ("gpt2", "mistral", "mpt", "bert") for grid in ((1, 1), (1, 2), (2, 2))
    if (name, grid) != ("gpt2", (2, 2))
]  # fmt: skip


@pytest.mark.parametrize(("name", "grid"), WAFERS)
def test_packed_rows_on_a_wafer(name, grid):
    """Loss, logits and gradients of plain JAX; and one document's are its own, bit for bit."""
    wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=grid)
    run = wse.jit(jax.value_and_grad(functools.partial(loss, name), has_aux=True), wafer)
    (value, logits), grads = run(parameters(name), BATCH)
    (want, wanted), gradients = trained(name)(parameters(name), BATCH)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    close(logits, wanted)
    alike(jax.device_get(grads), jax.device_get(gradients))
    here = at(BATCH, DOCUMENTS[0])
    tokens = BATCH["tokens"].copy()
    tokens[here] = 2 + (tokens[here] - 1) % (VOCAB - 2)
    changed, logits = (np.array(x) for x in (run(parameters(name), {**BATCH, "tokens": tokens})[0][1], logits))
    assert (changed[here] != logits[here]).any()
    changed[here] = logits[here]
    np.testing.assert_array_equal(changed, logits)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("gpt2", {"segment_ids": np.zeros((1, 4))}, r"segment_ids has shape \(1, 4\), and there are tokens of \(3, 12\)"),
        ("bert", {"positions": np.zeros(12)}, r"positions has shape \(12,\)"),
        ("t5", {"segment_ids": np.zeros((3, 12))}, "give answer_segment_ids"),
    ],
)
def test_bad_places_are_named(name, given, words):
    family, config = small(name)
    tokens = (BATCH["tokens"],) * (2 if name == "t5" else 1)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda params: family.apply(config, params, *tokens, **given), family.abstract(config))
