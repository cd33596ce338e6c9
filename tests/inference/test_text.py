"""Text and tokens: what is streamed is the text, and never half of a character, of a merged token or of a stop string."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.inference import tokenizers_of_tests as made
from tests.inference import toy
from wsejax.inference import Bytes, FromFile, Generator, TextStream, encoded, write

LOST = "\N{REPLACEMENT CHARACTER}"
texts = st.text(alphabet="ab the wafer,ü中文🙂\n\x00", max_size=24)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": Bytes(),
        "byte level": FromFile(made.byte_level(folder / "level.json")),
        "byte fallback": FromFile(made.byte_fallback(folder / "fallback.json")),
    }


def streamed(tokenizer, tokens, stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stops)
    return [*(stream.push(t) for t in tokens), stream.close()], stream


@pytest.mark.parametrize("kind", ["bytes", "byte level", "byte fallback"])
@given(text=texts)
def test_pieces_of_a_text_are_the_text_and_no_half_characters(kinds, kind, text):
    tokenizer = kinds[kind]
    tokens = tokenizer.encode(text)
    pieces, stream = streamed(tokenizer, tokens)
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == whole == stream.text
    if kind != "byte fallback":  # which strips the first space, as the model's own decoder does
        assert whole == text
    assert LOST not in whole
    for n, piece in enumerate(pieces[:-1]):
        assert whole.startswith("".join(pieces[: n + 1])), piece


@pytest.mark.parametrize("kind", ["bytes", "byte level", "byte fallback"])
@given(tokens=st.lists(st.integers(0, 255), max_size=24))
def test_bytes_that_are_no_text_are_never_half_a_character_too_early(kinds, kind, tokens):
    """What a model makes at random: a piece ends in the character that stands for lost bytes only when nothing can mend it."""
    tokenizer = kinds[kind]
    pieces, _ = streamed(tokenizer, tokens)
    if kind == "bytes":
        assert "".join(pieces) == bytes(tokens).decode("utf-8", "replace")
    else:
        assert not any(piece.endswith(LOST) for piece in pieces[:-1])
        if LOST not in tokenizer.decode(tokens):
            assert "".join(pieces) == tokenizer.decode(tokens)


def test_a_character_of_several_tokens_waits_for_the_last(kinds):
    for tokenizer in kinds.values():
        tokens = tokenizer.encode("🙃")  # not in the text of the trained one
        pieces, _ = streamed(tokenizer, [*tokens, *tokenizer.encode("b")])
        assert len(tokens) > 1 and next(p for p in pieces if p).strip() == "🙃"
        assert next(n for n, p in enumerate(pieces) if p) == len(tokens) - 1


def test_spaces_between_words_are_kept_and_special_tokens_have_no_text(kinds):
    fallback, level = kinds["byte fallback"], kinds["byte level"]
    assert "".join(streamed(fallback, fallback.encode("ab a b"))[0]) == "ab a b"
    after = TextStream(fallback, before=fallback.encode("a b"))
    assert [after.push(t) for t in fallback.encode("ab b")] == [" ab", " b"], "words of prompt and text run together"
    assert level.encode("<end>the") == [0, *level.encode("the")]
    assert streamed(level, [0, *level.encode("the"), 0])[1].text == "the"
    assert len(level.encode("the fabric and the wafer " * 4)) > 16, "cut or padded as the file says"
    assert Bytes().encode("\udcff") == [255] and streamed(Bytes(), [104, 300, 105])[1].text == "hi"


@given(text=texts, stops=st.lists(st.text(alphabet="ab the中🙂", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_and_no_part_of_one_is_shown(kinds, text, stops):
    for tokenizer in (kinds["bytes"], kinds["byte level"]):
        pieces, stream = streamed(tokenizer, tokenizer.encode(text), stops)
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        assert stream.text == "".join(pieces) == (text[: min(found)] if found else text)
        assert stream.stopped == bool(found)


def test_a_stop_string_over_several_tokens_is_held_back_until_it_is_sure():
    assert streamed(Bytes(), b"one two", ["two"])[0] == ["o", "n", "e", " ", "", "", "", ""]
    assert streamed(Bytes(), b"one twx", ["two"])[0] == ["o", "n", "e", " ", "", "", "twx", ""]
    assert streamed(Bytes(), b"one tw", ["two"])[0] == ["o", "n", "e", " ", "", "", "tw"]
    with pytest.raises(ValueError, match="every text has that in it"):
        TextStream(Bytes(), [""])


class Letters(Bytes):
    """Tokens of the toy model as letters."""

    def decode(self, tokens):
        return "".join(chr(97 + t) for t in tokens)

    def pieces(self, before=()):
        of = super().pieces(before)
        of.push = lambda token: chr(97 + token)  # pyright: ignore
        return of


def test_writing_ends_sequences_at_stop_strings_and_shows_no_stop_token():
    params, prompts = toy.params(), [[1, 2, 3], [4], [5, 6]]
    want = [toy.continued(params, prompt, 8) for prompt in prompts]
    letters = ["".join(chr(97 + t) for t in tokens) for tokens in want]
    stop, last = letters[0][3:5], next(t for t in want[1] if t not in want[0])
    run = Generator(toy.MODEL, params).start(params, prompts, 8, stop_tokens=[last])
    shown = [""] * 3
    for row, piece in write(run, Letters(), [stop]):
        shown[row] += piece
    for text, full, tokens, why in zip(shown, letters, want, run.ended, strict=True):
        ends = {"stop string": full.find(stop), "stop token": tokens.index(last) if last in tokens else -1}
        if why == "length":
            assert text == full and max(ends.values()) < 0
        else:
            assert text == full[: ends[why]] and ends[why] >= 0
    assert run.ended[0] == "stop string" and run.ended[1] == "stop token"
    assert np.all(run.done)


def test_what_is_no_tokenizer_and_what_is_not_the_models_is_refused(tmp_path, kinds):
    with pytest.raises(ValueError, match=r"no such file; give a tokenizer\.json"):
        FromFile(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json: is no tokenizer\.json that `tokenizers` reads"):
        FromFile(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"prompt 1 has token 104: the tokenizer \(bytes\) has 256 tokens, the model a vocabulary of 48"):
        encoded(Bytes(), ["!", "h"], 48)
    assert encoded(Bytes(), ["!", ""], 48) == [[33], []]
