"""`wsejax generate`: text out of a model, on a wafer or in plain JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from wsejax.inference import Bytes, FromFile, Generation, Generator, Model, Sampling, Tokenizer, encoded, figures, modelled, write
from wsejax.report import generation_table
from wsejax.training.rundir import available_host_bytes

from .emulated import WaferSettings
from .machine import changed
from .output import Output
from .programs import model_file

TOKENIZER = "tokenizer.json"
INTERRUPTED = 130  # as a shell has it for SIGINT


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to generate with.

    Attributes:
      load: from the layouts that parameters are wanted in, or None, the parameters.
      note: what there is to say of it beforehand; "" if nothing.
      tokenizer: its own; None: bytes.
    """

    title: str
    family: Any
    config: Any
    load: Callable[[Any], Any]
    note: str = ""
    tokenizer: Path | None = None


def find_source(model: str, dtype: str) -> Source:
    """A preset with random weights, or a checkpoint of Hugging Face's or orbax's with config.json beside it.

    Raises:
      ValueError or OSError: neither.
    """
    families, kinds = model_file("families"), {"dtype": dtype, "param_dtype": dtype}
    folder = Path(model)
    if not folder.is_dir():
        try:
            family, config = families.find(model)
        except ValueError as error:
            raise ValueError(f"--model {model}: no such folder, and {error}") from None
        return random_source(model, family, dataclasses.replace(config, **kinds), "a preset has no trained weights")
    said = model_file("hf_files").read_config(folder)
    if "family" not in said and isinstance(said.get("config"), dict) and "model" in said["config"]:
        raise ValueError(
            f"--model {folder}: is a run's folder; python -m experiments.generate takes those of experiments.train, and what "
            "experiments.finetune --export wrote is a model"
        )
    family = families.described(said, f"--model {folder}")
    config = dataclasses.replace(model_file("matching").configuration(said, family, str(folder)), **kinds)
    return stored_source(folder, family, config, f"{family.name} of {folder}")


def random_source(title: str, family: Any, config: Any, why: str) -> Source:
    """Random weights."""
    load = lambda layouts: jax.jit(lambda key: family.init(config, key), out_shardings=layouts)(jax.random.key(0))
    return Source(title, family, config, load, f"weights are random, so the text means nothing: {why}")


def stored_source(folder: Path, family: Any, config: Any, title: str) -> Source:
    """Weights of a folder, in the dtype of the configuration."""
    weights, orbax = model_file("weights"), model_file("orbax_files").find_tree(folder) is not None
    read = weights.load_orbax if orbax else weights.load
    load = lambda layouts: read(folder, family, config, shardings=layouts, dtype=config.param_dtype)[1]
    own = folder / TOKENIZER
    return Source(title, family, config, load, tokenizer=own if own.is_file() else None)


@dataclasses.dataclass(frozen=True)
class Generate:
    """Go on from prompts with a language model on an emulated wafer, and say what that took, and would take on a real one."""

    model: str
    """A family and preset such as llama:tiny, with random weights, or a folder of Hugging Face's: config.json and safetensors."""
    prompt: tuple[str, ...] = ()
    """Texts to go on from, or for T5 to answer."""
    prompts_file: Path | None = None
    """More of them, one a line; in a file that ends in .jsonl each line is {"prompt": "..."}."""
    max_new_tokens: int = 64
    """Of each sequence."""
    temperature: float = 0.0
    """0: the best token each time. Higher is more varied."""
    top_k: int | None = None
    """Draw from so many of the best tokens."""
    top_p: float = 1.0
    """Draw from the fewest of the best tokens that have this probability together."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the text so far are less likely."""
    seed: int = 0
    """Of the draws."""
    stop: tuple[str, ...] = ()
    """Texts that end a sequence, besides its end tokens."""
    stop_token: tuple[int, ...] | None = None
    """Tokens that end a sequence, by number; left out: the model's own end tokens."""
    tokenizer: Path | None = None
    """A tokenizer.json; left out: that of the model's folder, or else bytes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations."""
    kv_cache: Literal["plain", "shifted"] = "plain"
    """Of keys and values: as the compiler lays them out, or balanced over the rows of tiles, which pass their oldest tokens on. Never
    changes a token."""
    system: str = "cs3"
    """Machine of the modelled times: cs1, cs2 or cs3."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=NUMBER")] = ()
    """A field of that machine to change, such as link_bits=64; `wsejax specs` lists them."""
    wafer: WaferSettings = dataclasses.field(default_factory=WaferSettings)
    json: bool = False
    """Print one JSON document at the end instead of text as it comes."""

    def source(self) -> Source:
        """Raises ValueError or OSError for what is no model."""
        return find_source(self.model, self.dtype)

    def prompts(self) -> list[str]:
        """Raises ValueError or OSError where there is none, or the file is malformed."""
        found = [*self.prompt, *([] if self.prompts_file is None else read_prompts(self.prompts_file))]
        if not found:
            raise ValueError("no prompt: give --prompt TEXT ..., or --prompts-file FILE")
        return found

    def run(self) -> Output:
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)
        machine, prompts = changed(self.system, self.set), self.prompts()
        if "" in self.stop:
            raise ValueError("--stop '': every text has that in it; give a text of a character or more")
        if self.wafer.off and self.kv_cache == "shifted":
            raise ValueError("--kv-cache shifted with --wafer.off: keys and values shift over the rows of a wafer; leave one of them out")
        wafer = self.wafer.build()  # first of all that uses JAX, since it asks for devices
        source = self.source()
        model, tokenizer = Model.of(source.family, source.config), self._tokenizer(source)
        tokens = encoded(tokenizer, prompts, model.vocab_size)
        shapes = source.family.abstract(source.config)
        made = lambda balanced: Generator(model, shapes, wafer=wafer, sampling=sampling, balanced=balanced)
        generator = made(self.kv_cache == "shifted")
        seq, slots = generator.sizes([len(t) for t in tokens], self.max_new_tokens)
        programs = generator.programs(len(tokens), seq, slots)
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) + programs.cache_bytes
        if (room := available_host_bytes()) is not None and held > room:
            raise MemoryError(f"weights and cache of {source.title} are {held / 1e9:.3g} GB, and {room / 1e9:.3g} GB are available")
        if not self.json:
            print(f"{source.title}, {tokenizer.name} as tokens; {wafer or 'plain jax.jit on one device'}")
            print(f"note: {source.note}\n" if source.note else "", flush=True)
        run = generator.start(source.load(programs.layouts), tokens, self.max_new_tokens, stop_tokens=self.stop_token, seed=self.seed)
        gap = "\n" if model.apart else ""
        texts, stopped = self._written(run, tokenizer, [prompt + gap for prompt in prompts])
        found = figures(run, machine)
        beside = modelled(made(False).programs(len(tokens), seq, slots).step, machine, len(tokens)) if self.kv_cache == "shifted" else None
        sequences = [
            {"prompt": prompt, "prompt_tokens": len(given), "text": text, "tokens": new, "ended": why}
            for prompt, given, text, new, why in zip(prompts, tokens, texts, run.tokens, run.ended, strict=True)
        ]
        data = {
            "model": source.title, "note": source.note, "tokenizer": tokenizer.name, "wafer": None if wafer is None else str(wafer),
            "sampling": dataclasses.asdict(sampling), "seed": self.seed, "kv_cache": self.kv_cache, "sequences": sequences,
            "figures": found.to_dict(), "plain_cache_step": None if beside is None else beside.to_dict(),
        }  # fmt: skip
        return Output(data, ["", generation_table(found, beside)], INTERRUPTED if stopped else 0)

    def _tokenizer(self, source: Source) -> Tokenizer:
        path = source.tokenizer if self.tokenizer is None else self.tokenizer
        return Bytes() if path is None else FromFile(path)

    def _written(self, run: Generation, tokenizer: Tokenizer, before: Sequence[str]) -> tuple[list[str], bool]:
        """Texts, and whether the user has stopped it. One text is shown as it comes, several when all are there."""
        texts, live, stopped = [""] * len(before), len(before) == 1 and not self.json, False
        if live:
            print(visible(before[0]), end="", flush=True)
        try:
            for row, piece in write(run, tokenizer, self.stop):
                texts[row] += piece
                if live:
                    print(visible(piece), end="", flush=True)
        except KeyboardInterrupt:
            stopped = True
            run.ended = [why or "interrupted" for why in run.ended]
        if live:
            print()
        elif not self.json:
            for n, (start, text) in enumerate(zip(before, texts, strict=True)):
                print(f"[{n}] {visible(start + text)}")
        return texts, stopped


def read_prompts(path: Path) -> list[str]:
    """One a line; empty lines are left out.

    Raises:
      ValueError: a line of JSON that is no prompt, or a file that is no text; the message names the line.
      OSError: a file that cannot be read.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path}: is no UTF-8 text ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f'{path}:{number}: is not JSON ({error}); give {{"prompt": "..."}}') from None
            line = value.get("prompt") if isinstance(value, dict) else value
            if not isinstance(line, str):
                raise ValueError(f'{path}:{number}: has no prompt; give {{"prompt": "..."}}')
        found.append(line)
    return found


def visible(text: str) -> str:
    """The text with pictures of its control characters, but for tabs and ends of lines: what a model makes must not steer a terminal."""
    return "".join(_picture(c) for c in text)


def _picture(c: str) -> str:
    if c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f"):
        return c
    return chr(0x2400 + ord(c)) if c < " " else "\N{SYMBOL FOR DELETE}" if c == "\x7f" else "\N{REPLACEMENT CHARACTER}"
