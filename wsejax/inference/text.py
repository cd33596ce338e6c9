"""Text and tokens: a tokenizer by its file, or the bytes of UTF-8; and text that comes out as it is made, never half a character."""

from __future__ import annotations

import codecs
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

from .generator import Generation


class Pieces(Protocol):
    """Text of one sequence, token by token."""

    def push(self, token: int) -> str:
        """What is certain after this token and was not before; often nothing."""
        ...

    def close(self) -> str:
        """What is left when no token comes any more."""
        ...


class Tokenizer(Protocol):
    """`name` says which it is, `size` counts its tokens; `pieces` are of text that comes after these tokens. `first`: the text stands at
    the beginning, so what a file says to put round a text is put there."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def encode(self, text: str, first: bool = True) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def pieces(self, before: Sequence[int] = ()) -> Pieces: ...


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The bytes of UTF-8 as tokens; tokens from 256 on have no text."""

    name: str = "bytes"
    size: int = 256

    def encode(self, text: str, first: bool = True) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape"))  # bytes of a command line that are no text stay what they are

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")

    def pieces(self, before: Sequence[int] = ()) -> Pieces:
        return _BytePieces()


class _BytePieces:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def close(self) -> str:
        return self._decoder.decode(b"", final=True)


class FromFile:
    """A `tokenizer.json` of Hugging Face's. Special tokens are added as it says, and have no text.

    Raises:
      ValueError: no such file, or it is no tokenizer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = str(path)
        if not Path(path).is_file():
            raise ValueError(f"tokenizer {path}: no such file; give a tokenizer.json")
        try:
            self._of = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizer {path}: is no tokenizer.json that `tokenizers` reads ({error})") from error
        self._of.no_truncation()
        self._of.no_padding()

    @property
    def size(self) -> int:
        return self._of.get_vocab_size()

    def encode(self, text: str, first: bool = True) -> list[int]:
        return list(self._of.encode(text, add_special_tokens=first).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._of.decode(list(tokens))

    def pieces(self, before: Sequence[int] = ()) -> Pieces:
        return _MergedPieces(self, before)


class _MergedPieces:
    """What a token adds depends on those before it (spaces between words, characters of several tokens), so the last piece is decoded again
    together with what follows, and what ends in the replacement character waits."""

    def __init__(self, tokenizer: FromFile, before: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._before = list(before)  # tokens of the last piece
        self._new: list[int] = []

    def push(self, token: int) -> str:
        self._new.append(token)
        piece = self._added()
        return self._given(piece) if piece and not piece.endswith("\N{REPLACEMENT CHARACTER}") else ""

    def close(self) -> str:
        return self._given(self._added())

    def _added(self) -> str:
        before, both = self._decode(self._before), self._decode([*self._before, *self._new])
        # bytes that turn out to be no text can change what was before them, which is given already
        return both[len(before) :] if both.startswith(before) else self._decode(self._new)

    def _given(self, piece: str) -> str:
        self._before, self._new = self._new, []
        return piece


class TextStream:
    """Text of one sequence as it is made, up to the first stop string, which is not part of it. `before`: tokens that it goes on from.

    Attributes:
      text: all that was given so far.
      stopped: a stop string was there; what is pushed after it is not looked at.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = (), before: Sequence[int] = ()) -> None:
        self.text, self.stopped = "", False
        self._stops, self._pieces, self._held = tuple(stops), tokenizer.pieces(before), ""
        if "" in self._stops:
            raise ValueError("stop='': every text has that in it; give a string of a character or more")

    def push(self, token: int) -> str:
        """What can be shown after this token: nothing that may be the beginning of a stop string."""
        return "" if self.stopped else self._shown(self._pieces.push(token), last=False)

    def close(self) -> str:
        """What was held back, when no token comes any more."""
        return "" if self.stopped else self._shown(self._pieces.close(), last=True)

    def _shown(self, piece: str, last: bool) -> str:
        have = self._held + piece
        found = [at for stop in self._stops if (at := have.find(stop)) >= 0]
        self.stopped = bool(found)
        cut = min(found) if found else len(have) if last else len(have) - self._begun(have)
        self._held = have[cut:]
        self.text += have[:cut]
        return have[:cut]

    def _begun(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        return next((n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def write(run: Generation, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """Run to the end, and give text as it is made, as (number of the sequence, piece). A stop string ends its sequence; neither it nor a
    stop token is part of the text.

    Raises:
      ValueError: an empty stop string.
    """
    streams = [TextStream(tokenizer, stops, () if run.model.apart else prompt) for prompt in run.prompts]
    for turn, tokens in enumerate(run):
        for row, stream in enumerate(streams):
            if len(run.tokens[row]) <= turn:  # it has ended before
                continue
            piece = "" if run.ended[row] == "stop token" else stream.push(int(tokens[row]))
            if stream.stopped:
                run.end(row, "stop string")
            elif run.ended[row] is not None:
                piece += stream.close()
            if piece:
                yield row, piece


def encoded(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int) -> list[list[int]]:
    """The tokens of each text.

    Raises:
      ValueError: a token that a model of this vocabulary does not have; the message names both sizes.
    """
    found = [tokenizer.encode(text) for text in texts]
    for n, tokens in enumerate(found):
        if tokens and max(tokens) >= vocab_size:
            raise ValueError(
                f"prompt {n} has token {max(tokens)}: the tokenizer ({tokenizer.name}) has {tokenizer.size:,} tokens, the model a "
                f"vocabulary of {vocab_size:,}; give the tokenizer that the model was trained with"
            )
    return found
