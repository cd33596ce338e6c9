"""Examples to fine-tune on: what a line may be, what is cut and what is said of it, and that arrays hold the tokens and no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from wsejax.inference import Bytes, FromFile
from wsejax.training.examples import PREFERENCES, RESPONSES, Example, fitted, laid_out, read_examples, tokenised

ONE, TWO = '{"prompt": "a", "response": "b"}', '{"prompt": "a", "chosen": "b", "rejected": "c"}'
TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
HERE = Path("some.jsonl")


def test_lines_are_read_in_their_order_and_tell_their_kind(tmp_path):
    (tmp_path / "one").write_text('{"prompt": "ä", "response": "\\u00e4\\n"}\n\n  \n{"response": "y", "prompt": "x"}')
    assert read_examples(tmp_path / "one") == (RESPONSES, [Example(1, "ä", ("ä\n",)), Example(4, "x", ("y",))])
    (tmp_path / "two").write_text(TWO + "\r\n")
    assert read_examples(tmp_path / "two") == (PREFERENCES, [Example(1, "a", ("b", "c"))])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{ONE}\n{{", "line 2: is not JSON"),
        (b"\xff\xfe", "line 1: is not JSON in UTF-8"),
        ("[1]", "line 1: holds list; give prompt and response, or"),
        ('{"prompt": "a"}', "line 1: holds prompt; give"),
        ('{"prompt": "a", "response": "b", "id": 3}', "line 1: holds prompt, response, id; give .* and nothing else"),
        (f"{ONE}\n\n{TWO}\n", "line 3: holds chosen and rejected, the lines before it response"),
        ('{"prompt": "a", "response": ["b"]}', r'line 1: response is \["b"\]; give a text'),
        ('{"prompt": "", "response": "b"}', 'line 1: prompt is ""; give a text that is not empty'),
        (" \n", "holds no line"),
    ],
)
def test_what_is_no_example_is_named_by_file_and_line(tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as error:
        read_examples(path)
    assert str(path) in str(error.value)


def test_bytes_are_tokens_and_responses_end_with_the_end():
    made = tokenised([Example(7, "é", ("b", "cd"))], Bytes().encode, end=0, vocab_size=256, path=HERE)
    assert made == [Example(7, [0xC3, 0xA9], ([98, 0], [99, 100, 0]))]
    assert tokenised([Example(7, "é", ("b",))], Bytes().encode, end=None, vocab_size=256, path=HERE)[0].responses == ([98],)
    with pytest.raises(ValueError, match=r"some.jsonl, line 7: gives token 195, and the model has a vocabulary of 100"):
        tokenised([Example(7, "é", ("b",))], Bytes().encode, end=None, vocab_size=100, path=HERE)


def test_a_tokenizer_puts_its_special_tokens_round_the_prompt_alone_and_never_cuts_or_pads(tmp_path):
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3, "<pad>": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    words.enable_truncation(3)
    words.enable_padding(pad_id=4, pad_token="<pad>", length=8)
    words.save(str(tmp_path / "tokenizer.json"))
    encode = FromFile(tmp_path / "tokenizer.json").encode
    assert encode("a b a b", True) == [0, 1, 2, 1, 2] and encode("b x", False) == [2, 3]
    with pytest.raises(ValueError, match="gives no tokens"):
        tokenised([Example(1, "a", (" ",))], encode, end=None, vocab_size=5, path=HERE)
    (tmp_path / "bad.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is no tokenizer"):
        FromFile(tmp_path / "bad.json")


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4), st.integers(2, 20), st.booleans())
def test_what_is_cut_is_the_end_of_responses_and_the_beginning_of_prompts(drawn, length, together):
    examples = [Example(n, prompt, (one, two)) for n, (prompt, one, two) in enumerate(drawn, 1)]
    sizes = [(len(one.prompt), max(map(len, one.responses))) for one in examples]
    fits = [p + r <= length if together else max(p, r) <= length for p, r in sizes]
    kept, said = fitted(examples, length, together=together, truncate=True, path=HERE)
    lost = 0
    for before, after, whole in zip(examples, kept, fits, strict=True):
        longest = max(map(len, after.responses))
        assert (after == before) == whole and after.prompt and (len(after.prompt) + longest if together else longest) <= length
        for b, a in zip(before.responses, after.responses, strict=True):
            assert a == b[: len(a)] and len(a) >= min(len(b), length // 2)
        count = len(after.prompt)
        assert after.prompt == (before.prompt[-count:] if together else before.prompt[:count])
        lost += sum(len(b) - len(a) for b, a in zip((before.prompt, *before.responses), (after.prompt, *after.responses), strict=True))
    assert said == ("" if all(fits) else f"{lost:,} tokens cut off in {fits.count(False)} of {len(fits)} examples")
    if not all(fits):
        with pytest.raises(ValueError, match=f"some.jsonl, line {fits.index(False) + 1}: .* do not fit into {length}; .*--truncate"):
            fitted(examples, length, together=together, truncate=False, path=HERE)


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4), st.booleans())
def test_arrays_hold_the_tokens_of_which_the_responses_count(drawn, both):
    examples = [Example(n, prompt, (one, two)) for n, (prompt, one, two) in enumerate(drawn, 1)]
    made = laid_out(examples, start=11 if both else None)
    assert len(made) == len(examples) and made.digest == laid_out(examples, start=11 if both else None).digest
    for i, one in enumerate(examples):
        for j, response in enumerate(one.responses):
            row = {name: array[i, j] for name, array in made.arrays.items()}
            read = row["tokens"][row["present"] == 1].tolist()
            counted = row["weights"] == 1
            assert row["targets"][counted].tolist() == response and row["weights"].sum() == len(response)
            if both:
                assert read == one.prompt and row["answer"][counted].tolist() == [11, *response[:-1]]
            else:
                whole = one.prompt + response
                assert read == whole[:-1] and row["targets"][: len(read)].tolist() == whole[1:]
            assert not row["tokens"][len(read) :].any()
    present = made.arrays["present"]
    assert made.padding == pytest.approx(1 - present.sum() / present.size)


def test_batches_are_all_first_responses_then_all_second_and_go_on_from_their_state():
    made = laid_out([Example(n, [n], ([10 + n], [20 + n])) for n in range(1, 6)], start=None)
    assert made.batch(np.array([0, 3]))["targets"][:, 0].tolist() == [11, 14, 21, 24]
    assert [b["targets"][:2, 0].tolist() for b in made.in_turn(2)] == [[11, 12], [13, 14], [15, 11]]
    one, two = made.shuffled(2, seed=1), made.shuffled(2, seed=1)
    seen = [next(one)["targets"] for _ in range(9)]
    assert {int(x) for b in seen[:5] for x in b[:2, 0]} == {11, 12, 13, 14, 15}
    for _ in range(4):
        next(two)
    three = made.shuffled(2, seed=1)
    three.set_state(json.loads(json.dumps(two.get_state())))
    np.testing.assert_array_equal([next(three)["targets"] for _ in range(5)], seen[4:])


def test_the_reference_goes_to_the_response_that_it_was_computed_of():
    made = laid_out([Example(n, [n], ([10 + n], [20 + n])) for n in range(1, 6)], start=None)
    scored = made.with_reference([b["targets"][:, 0].astype(np.float32) for b in made.in_turn(2)])
    np.testing.assert_array_equal(scored.arrays["reference"], made.arrays["targets"][:, :, 0])
    assert scored.batch(np.array([4, 1]))["reference"].tolist() == [15, 12, 25, 22]
