"""Examples to fine-tune on: JSON lines of prompts and responses, as arrays in which the responses alone count.

A line is {"prompt", "response"}, or {"prompt", "chosen", "rejected"}: two responses, of which the first is preferred. A decoder reads
prompt and response as one sequence; where there is an encoder it reads the prompt, and the decoder the response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int64

RESPONSES, PREFERENCES = ("response",), ("chosen", "rejected")
Encode = Callable[[str, bool], list[int]]
"""(text, whether it stands at the beginning) -> tokens."""
Arrays = dict[str, np.ndarray]


# ---- lines -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Example:
    """A prompt and its responses, one or two; of texts, or of tokens. `line`: where it stands in its file, from 1."""

    line: int
    prompt: Any
    responses: tuple[Any, ...]


def read_examples(path: Path) -> tuple[tuple[str, ...], list[Example]]:
    """(which keys the responses have, the examples) of a file of JSON lines. Empty lines are none.

    Raises:
      ValueError: a line that is no example, or of the other kind than those before it; by file and line. Or there is no line.
      OSError: the file cannot be read.
    """
    kind: tuple[str, ...] = ()
    found: list[Example] = []
    for line, text in enumerate(path.read_bytes().split(b"\n"), 1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        try:
            value = json.loads(text.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{where}: is not JSON in UTF-8 ({error})") from None
        here = next((keys for keys in (RESPONSES, PREFERENCES) if isinstance(value, dict) and value.keys() == {"prompt", *keys}), None)
        if here is None:
            what = ", ".join(value) or "no key" if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where}: holds {what}; give prompt and response, or prompt, chosen and rejected, and nothing else")
        if kind and here != kind:
            raise ValueError(f"{where}: holds {' and '.join(here)}, the lines before it {' and '.join(kind)}; give one kind a file")
        kind = here
        for key, words in value.items():
            if not isinstance(words, str) or not words:
                raise ValueError(f"{where}: {key} is {json.dumps(words)}; give a text that is not empty")
        found.append(Example(line, value["prompt"], tuple(value[key] for key in here)))
    if not found:
        raise ValueError(f"{path}: holds no line; give at least one example")
    return kind, found


# ---- tokens ------------------------------------------------------------------------------------------------------------
def tokenised(examples: Sequence[Example], encode: Encode, *, end: int | None, vocab_size: int, path: Path) -> list[Example]:
    """The examples in tokens, the responses with the token that ends a text (None: there is none).

    Raises ValueError, by file and line, for tokens that the model has not, and prompts or responses without any.
    """
    made = []
    for one in examples:
        last = [] if end is None else [end]
        tokens = replace(one, prompt=encode(one.prompt, True), responses=tuple(encode(text, False) + last for text in one.responses))
        for part in (tokens.prompt, *tokens.responses):
            if not part:
                raise ValueError(f"{path}, line {one.line}: gives no tokens; leave the line out")
            if max(part) >= vocab_size:
                said = f"{path}, line {one.line}: gives token {max(part)}, and the model has a vocabulary of {vocab_size}"
                raise ValueError(f"{said}; give the model's own tokenizer")
        made.append(tokens)
    return made


def fitted(examples: Sequence[Example], length: int, *, together: bool, truncate: bool, path: Path) -> tuple[list[Example], str]:
    """The examples within `length` tokens, and in words what was cut off.

    Args:
      together: prompt and response share the length; else each has it.
      truncate: cut what is too long: the end of responses, to half the length at least where they share it with a prompt, and then the
        beginning of the prompt.

    Raises ValueError, by file and line, for what is too long where nothing may be cut.
    """
    made, longer, tokens_cut = [], 0, 0
    for one in examples:
        answer = max(map(len, one.responses))
        room = min(answer, max(length - len(one.prompt), length // 2)) if together else length
        before = length - room if together else length
        if answer <= room and len(one.prompt) <= before:
            made.append(one)
            continue
        if not truncate:
            size = f"{len(one.prompt)} tokens of the prompt and {answer} of the response do not fit into {length}"
            raise ValueError(f"{path}, line {one.line}: {size}; leave the line out, give a greater --length, or cut by --truncate")
        prompt = one.prompt[max(0, len(one.prompt) - before) :] if together else one.prompt[:before]
        cut = replace(one, prompt=prompt, responses=tuple(tokens[:room] for tokens in one.responses))
        longer += 1
        tokens_cut += sum(map(len, (one.prompt, *one.responses))) - sum(map(len, (cut.prompt, *cut.responses)))
        made.append(cut)
    return made, f"{tokens_cut:,} tokens cut off in {longer:,} of {len(made):,} examples" if longer else ""


# ---- arrays ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Examples:
    """Examples of one kind and one length.

    arrays: each [examples, responses, time], the time padded at the end with zeros. `tokens` int32 are read, and `present` int32 is 1 where
    they are no padding. `targets` int32 come next, and `weights` float32 is 1 where they are of the response. Where an encoder reads the
    prompt, `answer` int32 is what the decoder reads.
    """

    arrays: Arrays

    def __len__(self) -> int:
        return len(self.arrays["weights"])

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of every array."""
        content = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            content.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
        return content.hexdigest()

    @property
    def padding(self) -> float:
        """Share of the tokens that are read and stand for nothing."""
        return 1.0 - float(self.arrays["present"].mean())

    def batch(self, rows: Int64[np.ndarray, " batch"]) -> Arrays:
        """Some examples: arrays [responses x batch, time], all first responses before any second. What has one number a response, such as
        the reference's log-probabilities, has no time."""
        return {name: np.concatenate(list(np.swapaxes(array[rows], 0, 1))) for name, array in self.arrays.items()}

    def in_turn(self, batch_size: int) -> Iterator[Arrays]:
        """All examples in their order, the last batch filled up from the beginning."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, start + batch_size) % len(self))

    def shuffled(self, batch_size: int, seed: int) -> grain.DatasetIterator:
        """Batches without end, every epoch in an order of its own that depends on `seed` alone. `get_state()` is a small dict of plain
        numbers; `set_state()` of it on a fresh iterator continues with the very next batch."""
        rows: Any = np.arange(len(self))
        dataset = grain.MapDataset.source(rows).shuffle(seed).repeat().batch(batch_size).map(self.batch)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def with_reference(self, batches: Sequence[Float32[np.ndarray, " responses_x_batch"]]) -> Examples:
        """The examples with `reference`, a number for each response: of the batches of `in_turn`, one after the other."""
        responses = self.arrays["weights"].shape[1]
        by_example = np.concatenate([np.asarray(one, np.float32).reshape(responses, -1).T for one in batches])
        return Examples({**self.arrays, "reference": by_example[: len(self)]})


def laid_out(examples: Sequence[Example], *, start: int | None) -> Examples:
    """Examples in tokens as arrays.

    start: of a model with an encoder, the token before the first of a response; None: a language model.
    """
    sequences = [[_sequence(one.prompt, response, start) for response in one.responses] for one in examples]
    arrays: Arrays = {}
    for name in sequences[0][0]:
        width = max(len(sequence[name]) for each in sequences for sequence in each)
        array = np.zeros((len(sequences), len(sequences[0]), width), np.float32 if name == "weights" else np.int32)
        for i, each in enumerate(sequences):
            for j, sequence in enumerate(each):
                array[i, j, : len(sequence[name])] = sequence[name]
        arrays[name] = array
    return Examples(arrays)


def _sequence(prompt: list[int], response: list[int], start: int | None) -> dict[str, list[int]]:
    if start is not None:
        answer = {"answer": [start, *response[:-1]], "targets": response, "weights": [1] * len(response)}
        return {"tokens": prompt, "present": [1] * len(prompt), **answer}
    whole = prompt + response
    weights = [0] * (len(prompt) - 1) + [1] * len(response)
    return {"tokens": whole[:-1], "present": [1] * (len(whole) - 1), "targets": whole[1:], "weights": weights}
