"""The program that a command is about: a preset's train step or forward pass, a JSON of dimensions, or a function of the user's own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import wsejax
from wsejax.compiler import Lowered, UnsupportedOpError
from wsejax.cost import LLM
from wsejax.hardware import WSE3, Cluster, Wafer
from wsejax.streaming import jit

DEFAULT_TOKENS = 4096  # of a sequence, where a model could read more
_SHAPE = re.compile(r"\s*([A-Za-z]\w*)\s*\[([\d\s,]*)\]\s*")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A function with the shapes of its arguments. `tokens` of one run, where it is a language model."""

    title: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class ProgramArguments:
    """Which program, on how many tiles."""

    program: Annotated[str, tyro.conf.Positional]
    """A model as family:preset (such as llama:3-8b or bert:base-uncased), any that `wsejax fit` knows, such as llama-3-8b, tiny, small, a
    JSON file of dimensions, or a function as module:function or file.py:function."""
    arg: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DTYPE[SIZES]")] = ()
    """Shape of an argument of a function, in order, such as float32[1024,1024]."""
    donate: tuple[int, ...] = ()
    """Arguments of a function that its results replace, by number; weights among them are trained."""
    task: Literal["train", "forward"] = "train"
    """Of a model: a train step (loss, gradients, clipping, AdamW), or the logits."""
    batch: int = 8
    """Sequences of a model's batch."""
    seq: int | None = None
    """Tokens of a sequence; the model's context, at most 4096, where it is left out."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of a model's weights and activations; tiny and small are float32."""
    tiles: tuple[int, int] = (8, 8)
    """Tiles (rows, columns) that layouts are chosen for."""
    loose: bool = False
    """Compute operations without a rule off the fabric, instead of an error."""

    @property
    def is_function(self) -> bool:
        """Whether it is module:function; what begins with a family's name is family:preset."""
        return ":" in self.program and self.program.partition(":")[0].lower() not in model_file("families").FAMILIES

    def asked(self) -> Asked:
        """Raises ValueError, OSError or ImportError for what cannot be found or read."""
        if self.is_function:
            return _function(self.program, self.arg, self.donate)
        if self.arg or self.donate:
            raise ValueError("--arg and --donate are for module:function; a model has arguments of its own")
        return _model(self)

    def lowered(self, systems: int = 0) -> tuple[Asked, Lowered]:
        """The program, planned on shapes alone; with `systems`, for a cluster of so many, with its state (a model's weights) in MemoryX.

        Raises:
          ValueError: it cannot be traced with these arguments, or has an operation that no rule is known for.
        """
        asked = self.asked()
        wafer = Wafer(WSE3, tiles=self.tiles, devices=(1, 1))
        options: dict[str, Any] = dict(donate_argnums=asked.donated, strict=not self.loose, cache=False)
        if systems:
            away = asked.donated if self.is_function else (0,)
            wafer, options = Cluster(wafer, systems), options | dict(streamed_argnums=away, execution="streamed")
        try:
            return asked, jit(asked.function, wafer, **options).lower(*asked.arguments)
        except UnsupportedOpError as error:
            raise ValueError(f"{asked.title}: {error}; --loose computes it off the fabric") from error
        except (TypeError, ValueError, ZeroDivisionError, IndexError, KeyError, AttributeError) as error:
            shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(asked.arguments)[:4])
            raise ValueError(f"{asked.title} cannot be traced with ({shapes}, ...): {type(error).__name__}: {error}") from error


def shape_of(text: str) -> jax.ShapeDtypeStruct:
    """ "float32[8,16]" -> the shape and dtype of an array.

    Raises:
      ValueError: what is no dtype with sizes.
    """
    found = _SHAPE.fullmatch(text)
    try:
        dtype = jnp.dtype(found[1]) if found else None
        sizes = tuple(int(n) for n in found[2].replace(" ", "").split(",") if n) if found else ()
    except TypeError:
        dtype = None
    if dtype is None:
        raise ValueError(f"--arg {text}: give a dtype and sizes, such as float32[1024,1024], int32[8] or bfloat16[]")
    return jax.ShapeDtypeStruct(sizes, dtype)


def _function(program: str, arg: tuple[str, ...], donate: tuple[int, ...]) -> Asked:
    """A user's function; modules are looked for from the current folder on."""
    where, _, name = program.rpartition(":")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise FileNotFoundError(f"{where}: no such file; give file.py:function")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            module = importlib.import_module(where)
        except (ImportError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{program}: cannot import {where!r} ({error}); start where it can be found, or give file.py:function"
            ) from error
    function = getattr(module, name, None)
    if not callable(function):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{program}: {where} has no function {name!r}; it has {', '.join(callables[:12]) or 'none'}")
    return Asked(program, function, tuple(map(shape_of, arg)), donate)


# ---- models ----------------------------------------------------------------------------------------------------------
def model_file(name: str) -> ModuleType:
    """A file of the models: of `wsejax_models`, as it is installed, or of `models` in the checkout that this file is from.

    Raises:
      ModuleNotFoundError: neither is there.
    """
    try:
        return importlib.import_module(f"wsejax_models.{name}")
    except ModuleNotFoundError as error:
        if error.name != "wsejax_models":
            raise
    beside = Path(next(iter(wsejax.__path__))).parent / "models" / "__init__.py"
    found = importlib.util.find_spec("models")
    if found is None or found.origin is None or not beside.is_file() or not Path(found.origin).samefile(beside):
        raise ModuleNotFoundError("wsejax_models: the models are not installed; install wsejax, or start from its checkout")
    return importlib.import_module(f"models.{name}")


def dimensions(model: str) -> dict[str, Any]:
    """Of a preset, or of a JSON file, with the keys of `LLM`.

    Raises:
      ValueError: an unknown preset, with those near it; a file that is no JSON object of dimensions.
      OSError: a file that cannot be read.
    """
    if not model.endswith(".json"):
        presets = model_file("presets")
        try:
            return dict(presets.find(model))
        except ValueError as error:
            if (own := family_preset(model)) is not None:
                return _dimensions_of(model.lower(), *own)
            raise ValueError(f"{error}; `wsejax models` lists all {len(published_models())}") from None
    if not Path(model).is_file():
        raise FileNotFoundError(f"{model}: no such file; give a JSON file of dimensions, or a published model by its name")
    try:
        read = json.loads(Path(model).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{model}: is not JSON ({error})") from None
    if not isinstance(read, Mapping):
        raise ValueError(
            f"{model}: holds {type(read).__name__}; give an object of dimensions, such as {{'layers': 32, 'width': 4096, ...}}"
        )
    return dict(read)


def published_models() -> list[str]:
    """Names that `llm` knows: the small GPTs that train here, and what others have published."""
    return [*SMALL, *model_file("presets").names()]


SMALL = {"tiny": "gpt2:tiny", "small": "gpt2:small"}


def family_preset(model: str) -> tuple[Any, Any] | None:
    """(family, configuration) of "family:preset", or of a small GPT by its short name; None for what is neither.

    Raises:
      ValueError: a preset that the family has not.
    """
    name = SMALL.get(model.lower(), model.lower())
    families = model_file("families")
    return families.find(name) if name.partition(":")[0] in families.FAMILIES and ":" in name else None


def _dimensions_of(name: str, family: Any, config: Any) -> dict[str, Any]:
    """Of a decoder or an encoder of one kind of MLP, as `LLM` has them."""
    if family.kind == "encoder-decoder" or getattr(config, "experts", 0):
        raise ValueError(f"{name}: mixtures of experts and encoder-decoders have no such dimensions; `wsejax audit` and `cost` take them")
    sizes = {field: getattr(config, field) for field in ("layers", "width", "heads", "ffn_width", "vocab_size", "context")}
    heads = {
        "kv_heads": getattr(config, "kv_heads", config.heads),
        "head_width": getattr(config, "head_width", config.width // config.heads),
    }
    return {
        "name": name,
        **sizes,
        **heads,
        "gated": getattr(config, "gated", False),
        "tied": config.tied,
        "causal": family.kind == "decoder",
    }


def llm(model: str) -> LLM:
    """The model's dimensions, checked."""
    dims = dimensions(model)
    dims.setdefault("name", Path(model).stem if model.endswith(".json") else model)
    return LLM.from_dict(dims)


def _model(by: ProgramArguments) -> Asked:
    """A model's train step, or its forward pass, as shapes."""
    family, config = _family_of(by)
    seq = min(config.context, DEFAULT_TOKENS) if by.seq is None else by.seq
    for name, value in (("batch", by.batch), ("seq", seq)):
        if value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    if seq > config.context:
        raise ValueError(f"--seq {seq}: {by.program} has a context of {config.context}; give at most that")
    from wsejax.training.objectives import objective_of  # here, since most commands do without

    objective = objective_of(family.kind, seq)
    one = objective.batch(np.zeros((1, seq + 1), np.uint8), [0])
    batch = {name: jax.ShapeDtypeStruct((by.batch, *array.shape[1:]), array.dtype) for name, array in one.items()}
    apply, params = functools.partial(family.apply, config), family.abstract(config)
    title = f"{by.program}, {by.batch} x {seq} tokens, {'train step' if by.task == 'train' else 'forward'}"
    if by.task == "forward":
        return Asked(title, apply, (params, *objective.inputs(batch)), (), by.batch * seq)
    return _train_step(title, lambda params, batch, key: objective.loss(functools.partial(apply, params), batch), params, batch, seq)


def _family_of(by: ProgramArguments) -> tuple[Any, Any]:
    """(family, configuration) of the model that is asked for; published dimensions are those of a decoder."""
    if (found := family_preset(by.program)) is not None:
        family, config = found
        if by.program.lower() in SMALL:
            return found
        return family, dataclasses.replace(config, dtype=by.dtype, param_dtype=by.dtype)
    one = llm(by.program)
    if not one.causal:
        raise ValueError(f"{one.name}: is no decoder, and dimensions make no other program; give a family's, such as bert:large-uncased")
    dims = {k: v for k, v in dataclasses.asdict(one).items() if k not in ("name", "causal")}
    config = model_file("decoder").decoder_config(dims, dtype=by.dtype, param_dtype=by.dtype)
    return model_file("gpt2").FAMILY, config  # the module is that of all decoders


def _train_step(title: str, loss: Callable[..., Any], params: Any, batch: dict[str, jax.ShapeDtypeStruct], seq: int) -> Asked:
    """AdamW with clipping, as `experiments.train` has it."""
    import optax

    from wsejax.training.state import init_train_state, make_train_step

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-4, 100, 10_000)))
    step = make_train_step(loss, optimiser, stochastic=False)
    state = jax.eval_shape(lambda params: init_train_state(params, optimiser, seed=0), params)
    return Asked(title, step, (state, batch), (0,), batch["tokens"].shape[0] * seq)
