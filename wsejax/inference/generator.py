"""Text generation: two programs, compiled once for a shape, between which the cache never moves.

`Programs.first` reads the prompts and picks the first token, `Programs.step` picks one more. Sampling is part of both: so a step is one
call, nothing of the logits leaves the wafer but a token a sequence, and a modelled step is a whole one. Which sequences have ended is the
host's business, since it sees the text.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree

from wsejax.compiler import Lowered, jit, with_layout
from wsejax.hardware import Wafer

from .model import Balanced, Model
from .sampling import Sampling, mark, sample, sequence_keys

SMALLEST_BUCKET = 16  # tokens


def bucket(tokens: int, most: int) -> int:
    """The length that so many tokens are padded to: a power of two, 16 at least, or `most`. So few lengths are compiled."""
    return min(most, max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length()))


@dataclasses.dataclass(eq=False)
class Program:
    """A planned function, compiled when it is first called.

    Attributes:
      lowered: a `wsejax.compiler.Lowered` on a wafer, else JAX's.
      kept: the same with nothing donated, for prices: what is donated counts there as the state of a training. None off the wafer.
      compile_seconds: measured; 0 before.
    """

    lowered: Any
    kept: Lowered | None
    compile_seconds: float = 0.0
    _compiled: Any = None

    def compile(self) -> None:
        """Compile it, unless that was done."""
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self.lowered.compile()
            self.compile_seconds = time.perf_counter() - start

    def __call__(self, *args: Any) -> Any:
        self.compile()
        return self._compiled(*args)


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """Those for `batch` sequences, prompts of `seq` tokens and a cache of `slots`.

    Attributes:
      first: (params, tokens int32 [batch, seq], lengths int32 [batch], seen, keys) -> (tokens int32 [batch], state).
      step: (params, state, tokens int32 [batch], keys, turn int32 []) -> (tokens int32 [batch], state). The state is donated.
      state: shapes of the state: the cache, and which tokens were seen.
    """

    first: Program
    step: Program
    batch: int
    seq: int
    slots: int
    state: PyTree

    def compile(self) -> None:
        """Compile what is not compiled yet."""
        for program in (self.first, self.step):
            program.compile()

    @property
    def cache_bytes(self) -> int:
        """Of the whole cache."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.state["cache"]))

    @property
    def layouts(self) -> PyTree:
        """Where both want the parameters: a sharding for each on a wafer, else None, JAX's default device."""
        return self.step.lowered.in_shardings[0] if self.step.kept is not None else None


class Generator:
    """A model's generation, on a wafer or in plain JAX.

    Args:
      model: what is run.
      params: of the model, or their shapes; `start` takes arrays like these.
      wafer: where it runs; None: JAX's default device.
      sampling: how tokens are picked; None: the best one each time.
      balanced: keep the cache balanced over the rows of the wafer's tiles; tokens are the same.

    Raises:
      ValueError: a balanced cache without a wafer.
    """

    def __init__(
        self, model: Model, params: PyTree, *, wafer: Wafer | None = None, sampling: Sampling | None = None, balanced: bool = False
    ) -> None:
        if balanced and wafer is None:
            raise ValueError("balanced=True: a balanced cache lies on the rows of a wafer's tiles; give a wafer, or leave it out")
        self.model, self.wafer, self.sampling = model, wafer, sampling or Sampling()
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self._kept = Balanced(wafer) if balanced and wafer is not None else None
        self._programs: dict[tuple[int, int, int], Programs] = {}
        self._steps: dict[Any, Program] = {}  # by the shapes of the state
        self._layouts: Any = None  # of the parameters, the same in all programs

    # ---- shapes ------------------------------------------------------------------------------------------------------
    def sizes(self, lengths: Sequence[int], max_new_tokens: int) -> tuple[int, int]:
        """(tokens that prompts are padded to, slots of the cache) for prompts of so many tokens.

        Raises:
          ValueError: no prompt, an empty one, no token wanted, or more of them than the context holds.
        """
        context, apart = self.model.context, self.model.apart
        if not lengths:
            raise ValueError("prompts is empty: give one prompt at least")
        if min(lengths) < 1:
            raise ValueError(f"prompt {min(range(len(lengths)), key=lengths.__getitem__)} has no tokens: a model goes on from one at least")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: give 1 or more")
        longest = max(lengths)
        before, most = (1, context) if apart else (longest, context - 1)
        if longest > most:
            room = "" if apart else ", which must leave room for one more"
            raise ValueError(f"prompt {lengths.index(longest)} has {longest} tokens, the model's context is {context}{room}: shorten it")
        if before + max_new_tokens > context:
            what = "the token that an answer begins with" if apart else f"the longest prompt's {longest} tokens"
            raise ValueError(
                f"max_new_tokens={max_new_tokens} after {what} is more than the context of {context}: give {context - before} or less"
            )
        slots = self._slots(before + max_new_tokens)
        return bucket(longest, context if apart else slots), slots

    def _slots(self, tokens: int) -> int:
        context, rows = self.model.context, 1 if self._kept is None else self._kept.rows
        slots = min(-(-bucket(tokens, context) // rows), context // rows) * rows
        if slots < tokens:
            raise ValueError(
                f"max_new_tokens: a balanced cache over {rows} rows of tiles has a multiple of that as slots, and at most the model's "
                f"context of {context}, so {slots} for {tokens} tokens: ask for {tokens - slots} less, or for a plain cache"
            )
        return slots

    # ---- programs ----------------------------------------------------------------------------------------------------
    def programs(self, batch: int, seq: int, slots: int) -> Programs:
        """Planned, or as they were planned before. Needs no parameters."""
        if (batch, seq, slots) not in self._programs:
            self._programs[batch, seq, slots] = self._planned(batch, seq, slots)
        return self._programs[batch, seq, slots]

    def _planned(self, batch: int, seq: int, slots: int) -> Programs:
        model, how, kept = self.model, self.sampling, self._kept
        ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
        seen = jax.ShapeDtypeStruct((batch, model.vocab_size), np.bool_) if how.penalises else None
        keys = None if how.greedy else jax.eval_shape(lambda: sequence_keys(jax.random.key(0), batch))
        draw = lambda keys, turn: None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, turn)

        def read(params: PyTree, tokens: Array, lengths: Array, seen: Any, keys: Any) -> tuple[Array, Any]:
            logits, cache = model.prefill(params, tokens, lengths, slots)
            return sample(logits, seen, draw(keys, 0), how), {"cache": cache if kept is None else kept.spread(cache), "seen": seen}

        def step(params: PyTree, state: Any, tokens: Array, keys: Any, turn: Array) -> tuple[Array, Any]:
            logits, cache = model.decode_step(params, tokens, state["cache"], **({} if kept is None else {"store": kept.store}))
            seen = mark(state["seen"], tokens)
            return sample(logits, seen, draw(keys, turn), how), {"cache": cache, "seen": seen}

        prompt = (self._params, ints(batch, seq), ints(batch), seen, keys)
        state = jax.eval_shape(read, *prompt)[1]
        shapes = tuple(x.shape for x in jax.tree.leaves(state))  # with an encoder's keys it grows with the prompt, too
        again = (self._params, state, ints(batch), keys, ints())
        if self.wafer is None:
            plain = lambda fun, args, **more: Program(jax.jit(fun, **more).lower(*args), None)
            of_step = self._steps.get(shapes) or plain(step, again, donate_argnums=1)
            first = plain(read, prompt)
        else:
            wafer, free = self.wafer, (None,) * 4
            lower = lambda fun, args, pins, **more: jit(fun, wafer, in_shardings=(self._layouts, *pins), **more).lower(*args)
            if self._layouts is None:  # by the prompts: a step does not read an encoder
                self._layouts = lower(read, prompt, free, cache=False).in_shardings[0]
            pins = ({"cache": kept.pins(state["cache"]), "seen": None} if kept else None, None, None, None)
            of_step = self._steps.get(shapes) or Program(lower(step, again, pins, donate_argnums=1), lower(step, again, pins, cache=False))
            lies = of_step.lowered.in_shardings[1]

            def read_for_step(*args: Any) -> tuple[Array, Any]:
                """What it leaves lies where a step wants it."""
                tokens, state = read(*args)
                return tokens, jax.tree.map(lambda x, at: with_layout(x, at.spec), state, lies)

            lowered = lower(read_for_step, prompt, free)
            first = Program(lowered, lowered)
        self._steps[shapes] = of_step
        return Programs(first, of_step, batch, seq, slots, state)

    # ---- running -----------------------------------------------------------------------------------------------------
    def start(
        self,
        params: PyTree,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop_tokens: Iterable[int] | None = None,
        seed: int = 0,
    ) -> Generation:
        """A batch of prompts to go on from, everything compiled: iterate over it.

        Args:
          params: arrays, anywhere.
          prompts: tokens of each, of any lengths.
          stop_tokens: end a sequence; None: the model's own.
          seed: of the draws.

        Raises:
          ValueError: as `sizes`; or a token that the model does not have.
        """
        seq, slots = self.sizes([len(p) for p in prompts], max_new_tokens)
        if strange := [t for p in prompts for t in p if not 0 <= t < self.model.vocab_size]:
            raise ValueError(f"prompts has token {strange[0]}: the model's vocabulary has {self.model.vocab_size}, numbered from 0")
        stops = self.model.eos_tokens if stop_tokens is None else stop_tokens
        programs = self.programs(len(prompts), seq, slots)
        programs.compile()  # not while the clock runs
        placed = jax.block_until_ready(jax.device_put(params, programs.layouts))
        return Generation(self, programs, placed, prompts, max_new_tokens, frozenset(stops), seed)


class Generation(Iterator[Int32[np.ndarray, " batch"]]):
    """Tokens of a batch, one of each sequence a turn; the pad token of those that have ended. It is over when all have.

    Attributes:
      tokens: of each sequence so far, without prompt and padding; a stop token is the last.
      ended: why a sequence has ended: "stop token", "length", or what `end` was told; None while it goes on.
      first_seconds: measured, of prompts and first tokens.
      step_seconds: measured, of each further turn.
    """

    def __init__(
        self, by: Generator, programs: Programs, params: PyTree, prompts: Sequence[Sequence[int]], most: int, stops: frozenset[int],
        seed: int,
    ) -> None:  # fmt: skip
        self.prompts, self.programs = [list(p) for p in prompts], programs
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.ended: list[str | None] = [None] * len(prompts)
        self.first_seconds, self.step_seconds = 0.0, []
        self.model, self._params, self._most, self._stops = by.model, params, most, stops
        self._keys = None if by.sampling.greedy else sequence_keys(jax.random.key(seed), len(prompts))
        self._seen = _seen(by.model, self.prompts) if by.sampling.penalises else None
        self._state: Any = None
        self._last: Any = None
        self._turn = 0

    @property
    def done(self) -> Bool[np.ndarray, " batch"]:
        """Which sequences have ended."""
        return np.array([why is not None for why in self.ended])

    def end(self, row: int, why: str) -> None:
        """This sequence ends with the tokens that it has."""
        self.ended[row] = why

    def __next__(self) -> Int32[np.ndarray, " batch"]:
        done = self.done
        if done.all():
            self._state = None
            raise StopIteration
        start = time.perf_counter()
        if self._turn == 0:
            given = (*_padded(self.prompts, self.programs.seq), self._seen, self._keys)
            new, self._state = self.programs.first(self._params, *given)
        else:
            new, self._state = self.programs.step(self._params, self._state, self._last, self._keys, np.int32(self._turn))
        self._last = np.where(done, self.model.pad_token, np.asarray(new)).astype(np.int32)
        seconds = time.perf_counter() - start
        if self._turn == 0:
            self.first_seconds = seconds
        else:
            self.step_seconds.append(seconds)
        self._turn += 1
        for row in np.flatnonzero(~done):
            self.tokens[row].append(token := int(self._last[row]))
            self.ended[row] = "stop token" if token in self._stops else "length" if self._turn == self._most else None
        return self._last.copy()


def _padded(prompts: Sequence[Sequence[int]], seq: int) -> tuple[Int32[np.ndarray, "batch seq"], Int32[np.ndarray, " batch"]]:
    tokens = np.zeros((len(prompts), seq), np.int32)  # token 0 is in every vocabulary; a pad token may not be
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, np.array([len(p) for p in prompts], np.int32)


def _seen(model: Model, prompts: Sequence[Sequence[int]]) -> Bool[np.ndarray, "batch vocab"]:
    """What a penalty counts from the start, as in `transformers`: the prompt, or where that is read apart what the answer begins with."""
    seen = np.zeros((len(prompts), model.vocab_size), bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt) if model.start_token is None else [model.start_token]] = True
    return seen
