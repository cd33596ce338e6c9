"""Weights in and out: Hugging Face's folders of safetensors (`load`, `save`), and orbax's (`load_orbax`, `save_orbax`).

Parameters are filled one after the other, each from its tensors and straight into the layout where it is wanted, so that a model is in
memory once, plus a tensor. Nothing is cast that nobody asked to have cast, and nothing is unpickled.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from . import hf_files, int8_files
from .family import Family
from .hf_files import Made
from .matching import Line, asked_dtype, check_params, configuration, flat, fresh, lines, matched, nested, spread
from .orbax_files import load_orbax, save_orbax

__all__ = ["load", "load_orbax", "save", "save_orbax"]

Report = Callable[[int, int], None]
Params = dict[str, Any]


def _silent(done_bytes: int, total_bytes: int) -> None:
    """Says nothing."""


# ---- in ----------------------------------------------------------------------------------------------------------------
def load(
    where: str | os.PathLike[str],
    family: Family,
    config: Any = None,
    *,
    shardings: PyTree = None,
    dtype: Any = None,
    report: Report = _silent,
) -> tuple[Any, Params]:
    """(config, params) from a folder of config.json and safetensors, or from one such file.

    Args:
      where: the folder, a safetensors file, or the index of some.
      config: of the model, instead of config.json.
      shardings: one `jax.sharding.Sharding` for all parameters, or a nested dict of them like the parameters, such as
        `lowered.in_shardings[0]` of a wafer's function. Left out, all go to JAX's default device. Every process of several fills what its
        devices hold.
      dtype: cast all parameters to it; left out, each keeps the dtype of its tensors. int8 weights become floats (see `int8_files`).
      report: told (bytes read, bytes to read) after every tensor.

    Raises:
      ValueError: the files are not there, corrupt, or pickled; config.json tells of another family, or of a switch that it does not know;
        or tensors are missing, unknown, or of another shape or dtype than the parameters, of which the error lists all.
    """
    dtype = asked_dtype(dtype)
    if config is None:
        config = configuration(hf_files.read_config(where), family, str(where))
    plan = lines(family, config)
    found = matched(int8_files.dequantised(hf_files.read_tensors(where), where), plan, family, config, str(where), dtype)
    placed = spread(shardings, [path for line in plan for path in line.entry.paths])
    total, done = sum(one.nbytes for one in found.values()), 0
    params: dict[str, jax.Array] = {}
    for line in plan:
        kept = found[next(iter(line.names))].dtype if dtype is None else dtype
        targets = [_Target((*line.stack, *shape), kept, placed[path]) for path, shape in zip(line.entry.paths, line.shapes, strict=True)]
        for name, at in line.names.items():
            if any(target.wants(at) for target in targets):
                for target, part in zip(targets, line.entry.take(found[name].read(), line.shapes), strict=True):
                    target.fill(at, part)
            done += found[name].nbytes
            report(done, total)
        arrays = jax.block_until_ready([target.array() for target in targets])  # else buffers on their way to devices would pile up
        params |= zip(line.entry.paths, arrays, strict=True)
    return config, nested(params)


class _Target:
    """A parameter on its way: a buffer for each different part of it that devices of this process hold."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding | None):
        self.shape, self.dtype, self.sharding = shape, dtype, sharding
        held = [()] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
        places = {self._bounds(index or ()) for index in held}
        self.buffers = {place: hf_files.aligned([stop - start for start, stop in place], dtype) for place in places}

    def _bounds(self, index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
        every = (*index, *(slice(None) for _ in self.shape[len(index) :]))
        return tuple(one.indices(n)[:2] for one, n in zip(every, self.shape, strict=True))

    def wants(self, at: tuple[int, ...]) -> bool:
        return any(self._row(place, at) is not None for place in self.buffers)

    @staticmethod
    def _row(place: tuple[tuple[int, int], ...], at: tuple[int, ...]) -> tuple[int, ...] | None:
        """Where in a buffer the stack's element `at` lies, if it does."""
        held = all(start <= i < stop for i, (start, stop) in zip(at, place, strict=False))
        return tuple(i - start for i, (start, _) in zip(at, place, strict=False)) if held else None

    def fill(self, at: tuple[int, ...], part: np.ndarray) -> None:
        for place, buffer in self.buffers.items():
            if (row := self._row(place, at)) is not None:
                hf_files.copy(buffer[(*row, ...)], part[tuple(slice(*bounds) for bounds in place[len(at) :])])

    def array(self) -> jax.Array:
        """The parameter. The buffers are its own from now on: a CPU device does not copy them."""
        if self.sharding is None:
            return jax.device_put(*self.buffers.values())
        by_index = lambda index: self.buffers[self._bounds(index or ())]
        return jax.make_array_from_callback(self.shape, self.sharding, by_index, dtype=self.dtype)


# ---- out ---------------------------------------------------------------------------------------------------------------
def save(
    folder: str | os.PathLike[str],
    family: Family,
    config: Any,
    params: PyTree,
    *,
    max_shard_bytes: float = 5e9,
    dtype: Any = None,
    overwrite: bool = False,
    report: Report = _silent,
) -> None:
    """Write config.json and safetensors that Hugging Face's libraries read, shard by shard.

    Args:
      params: a nested dict of arrays, on any devices of this process.
      max_shard_bytes: more than this is cut into several files with an index.
      dtype: cast to it; left out, dtypes stay.
      overwrite: replace a checkpoint that is there; other files of the folder stay.

    Raises:
      ValueError: the folder holds something; the parameters are not those of the configuration, or lie on devices of other processes.
    """
    dtype, leaves, plan = asked_dtype(dtype), flat(params), lines(family, config)
    check_params(leaves, family, config)
    kinds = {path: dtype or np.dtype(x.dtype) for path, x in leaves.items()}
    if mixed := [line.entry for line in plan if len({kinds[path] for path in line.entry.paths}) > 1]:
        said = [f"{', '.join(f'{path} {kinds[path]}' for path in entry.paths)} go into one {entry.name}" for entry in mixed]
        raise ValueError(f"params: give dtype, since {'; '.join(said)}")
    made = dict(tensors(plan, leaves.__getitem__, kinds))
    hf_files.write(folder, _described(family, config, made), made, max_shard_bytes=max_shard_bytes, overwrite=overwrite, report=report)


def _described(family: Family, config: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model with these tensors or parameters."""
    dtypes = {str(one.dtype) for one in arrays.values()}
    return {**family.to_hf(config), "model_type": family.model_type} | ({"torch_dtype": dtypes.pop()} if len(dtypes) == 1 else {})


def tensors(plan: Sequence[Line], get: Callable[[str], Any], dtypes: Mapping[str, np.dtype]) -> Iterator[tuple[str, Made]]:
    """Names and tensors to write, made of the parameters that `get` has by their paths. Those of one line at a time are held."""
    held: dict[tuple[str, ...], list[np.ndarray]] = {}

    def make(line: Line, at: tuple[int, ...]) -> np.ndarray:
        paths = line.entry.paths
        if paths not in held:
            held.clear()
            held[paths] = [np.asarray(fresh(get(path))) for path in paths]
        return line.entry.give(*(x[(*at, ...)].astype(dtypes[path], copy=False) for path, x in zip(paths, held[paths], strict=True)))

    for line in plan:
        for name, at in line.names.items():
            yield name, Made(line.shape, dtypes[line.entry.paths[0]], functools.partial(make, line, at))
