"""Families without a module: a few parameters, and tables of every kind of line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from models import matching
from models.tables import Entry, dense, same

DTYPES = tuple(map(np.dtype, (np.float32, jnp.bfloat16, np.float16)))


@dataclass(frozen=True)
class Config:
    """Nothing but a number that config.json has to carry."""

    size: int = 3


@dataclass(frozen=True)
class Fake:
    """What `models.weights` asks of a family. shapes: of parameters by their paths; tensors: what Hugging Face's file holds, of these."""

    shapes: Mapping[str, tuple[int, ...]]
    lines: tuple[Entry, ...]
    tensors: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    name: str = "fake"
    model_type: str = "fake_hf"
    ignored: tuple[str, ...] = (r".*\.inv_freq",)
    prefix: str = "model."
    renames: tuple[tuple[str, str], ...] = ((r"\.gamma$", ".weight"),)
    presets: Mapping[str, Config] = field(default_factory=lambda: {"tiny": Config()})

    def table(self, config: Config) -> tuple[Entry, ...]:
        return self.lines

    def abstract(self, config: Config) -> dict[str, Any]:
        return matching.nested({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in self.shapes.items()})

    def ties(self, config: Config) -> dict[str, str]:
        tied = "head/kernel" not in self.shapes and "tokens/embedding" in self.shapes
        return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    def to_hf(self, config: Config) -> dict[str, Any]:
        return {"size": config.size}

    def from_hf(self, values: Mapping[str, Any]) -> Config:
        if "odd_switch" in values:
            raise ValueError(f"odd_switch={values['odd_switch']!r}: not known")
        return Config(values["size"])


def below(name: str, paths: tuple[str, ...]) -> Entry:
    """Matrices (out, in), one below the other."""

    def take(tensor: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, ...]:
        return tuple(part.T for part in np.split(tensor, np.cumsum([shape[1] for shape in shapes])[:-1]))

    def give(*params: Any) -> Any:
        return (np if isinstance(params[0], np.ndarray) else jnp).concatenate([p.T for p in params])

    return Entry(name, paths, take, give)


_STACKS = {"model.t{n}": 0, "model.l.{{layer}}.t{n}": 1, "model.l.{{layer}}.e.{{expert}}.t{n}": 2}  # names -> axes in front


@st.composite
def fakes(draw: Any) -> Fake:
    """Random tables: vectors, matrices, heads, two parameters in one tensor; by themselves, stacked by layers, and by experts too."""
    shapes: dict[str, tuple[int, ...]] = {}
    lines: list[Entry] = []
    rows: list[tuple[Entry, tuple[int, ...], int]] = []  # with its stack, and the axes that a matrix comes from
    for n in range(draw(st.integers(1, 4))):
        a, b, c, layers, experts = (draw(st.integers(1, 5)) for _ in range(5))
        pattern, axes = draw(st.sampled_from(list(_STACKS.items())))
        name, stack, path = pattern.format(n=n), (layers, experts)[:axes], f"part{axes}/p{n}"
        entry, ins, inner = draw(
            st.sampled_from(
                [
                    (same(name, path), 0, [(a, b)]),
                    (dense(name, path), 1, [(a, b, c)]),
                    (dense(name, path, ins=2), 2, [(a, b, c)]),
                    (below(name, (path, path + "more")), 1, [(a, b), (a, c)]),
                ]
            )
        )
        lines.append(entry)
        rows.append((entry, stack, ins))
        shapes |= {path: (*stack, *shape) for path, shape in zip(entry.paths, inner, strict=True)}

    def tensors(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for entry, stack, ins in rows:
            for at in np.ndindex(*stack):
                parts = [params[path][(*at, ...)] for path in entry.paths]
                if ins:
                    parts = [part.reshape(math.prod(part.shape[:ins]), -1).T for part in parts]
                name = entry.name.format(**dict(zip(("layer", "expert"), at, strict=False)))
                found[name] = np.array(np.concatenate(parts), order="C")
        return found

    return Fake(shapes, tuple(lines), tensors)


def numbers(shapes: Mapping[str, tuple[int, ...]], dtypes: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays; `dtypes` is one for all, or one for each path."""
    rng = np.random.default_rng(seed)
    kind = lambda path: dtypes[path] if isinstance(dtypes, Mapping) else dtypes
    return {path: np.asarray(rng.standard_normal(shape)).astype(kind(path)) for path, shape in shapes.items()}


def llama_like(*, tied: bool = False) -> Fake:
    """A table of tokens, two layers of one matrix and one norm, and a head unless it is tied."""
    head = {} if tied else {"head/kernel": (4, 6)}
    shapes = {"tokens/embedding": (6, 4), "blocks/up/kernel": (2, 4, 3), "blocks/norm/scale": (2, 4), **head}
    lines = [
        same("model.embed_tokens.weight", "tokens/embedding"),
        dense("model.layers.{layer}.up_proj.weight", "blocks/up/kernel"),
        same("model.layers.{layer}.norm.weight", "blocks/norm/scale"),
        *([] if tied else [dense("lm_head.weight", "head/kernel")]),
    ]

    def tensors(p: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {"model.embed_tokens.weight": p["tokens/embedding"]} | ({} if tied else {"lm_head.weight": p["head/kernel"].T})
        found |= {f"model.layers.{n}.up_proj.weight": p["blocks/up/kernel"][n].T for n in range(2)}
        found |= {f"model.layers.{n}.norm.weight": p["blocks/norm/scale"][n] for n in range(2)}
        return {name: np.ascontiguousarray(x) for name, x in found.items()}

    return Fake(shapes, tuple(lines), tensors)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two trees have the same structure, and the same dtypes, shapes and bytes."""
    bits = lambda x: (x.shape, x.dtype, np.asarray(x).tobytes())
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return jax.tree.structure(one) == jax.tree.structure(other) and list(map(bits, leaves)) == list(map(bits, others))


def write_as_hf(folder: Path, family: Fake, tensors: dict, cuts: int = 1, config: dict | None = None) -> None:
    """As Hugging Face writes: one file, or `cuts` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": family.model_type, "size": 3}))
    if cuts == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {name: f"model-{n % cuts:05}.safetensors" for n, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: x for name, x in tensors.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
