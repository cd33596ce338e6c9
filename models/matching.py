"""Which tensors of which files fill which parameters, and in words what does not fit."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import string
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .family import Family
from .hf_files import CONFIG, Stored
from .tables import Entry


# ---- tables, spelled out -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Line:
    """An entry of a family's table with its sizes.

    Attributes:
      stack: sizes of the leading axes of its parameters, one for each placeholder in its name.
      shapes: of the rest of its parameters, one for each path.
      names: of its tensors -> where in the stack they belong.
      shape: of each tensor.
    """

    entry: Entry
    stack: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    names: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]


def lines(family: Family, config: Any) -> tuple[Line, ...]:
    """The family's table for this configuration.

    Raises:
      ValueError: the table does not fill every parameter exactly once, from tensors of different names.
    """
    table, shapes = family.table(config), flat(family.abstract(config))
    filled = [path for entry in table for path in entry.paths]
    if sorted(filled) != sorted(shapes):
        twice = sorted({path for path in filled if filled.count(path) > 1})
        raise ValueError(
            f"{family.name}: its table of weights does not fit its parameters: filled twice {twice}, "
            f"unknown {sorted(set(filled) - set(shapes))}, never filled {sorted(set(shapes) - set(filled))}"
        )
    plan = tuple(_line(entry, [shapes[path] for path in entry.paths]) for entry in table)
    names = [name for line in plan for name in line.names]
    if len(set(names)) < len(names):
        raise ValueError(f"{family.name}: its table of weights names twice {sorted({name for name in names if names.count(name) > 1})}")
    return plan


def _line(entry: Entry, params: Sequence[Any]) -> Line:
    keys = [key for _, key, _, _ in string.Formatter().parse(entry.name) if key]
    stack = params[0].shape[: len(keys)]
    inner = tuple(tuple(p.shape[len(keys) :]) for p in params)
    given = jax.eval_shape(entry.give, *(jax.ShapeDtypeStruct(shape, p.dtype) for shape, p in zip(inner, params, strict=True)))
    names = {entry.name.format(**dict(zip(keys, at, strict=True))): at for at in np.ndindex(*stack)}
    return Line(entry, tuple(stack), inner, names, tuple(given.shape))


def flat(params: PyTree) -> dict[str, Any]:
    """ "/"-joined path -> leaf."""
    found = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`, for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in params.items():
        *above, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)[last] = leaf
    return tree


def fresh(array: Any) -> Any:
    """The same array as another object. What JAX copies to the host stays with the object, and so goes when this one does."""
    if not isinstance(array, jax.Array) or not array.is_fully_addressable:
        return array
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, [shard.data for shard in array.addressable_shards])


# ---- what does not fit -------------------------------------------------------------------------------------------------
def matched(
    stored: Mapping[str, Stored], plan: Sequence[Line], family: Family, config: Any, where: str, dtype: Any = None
) -> dict[str, Stored]:
    """The table's names -> the tensors of the file, which may spell them as the family knows, lack one that a tied one equals, and hold
    what the family ignores.

    Raises:
      ValueError: with all that is missing, unknown, misshapen, tied but not equal, or of a dtype that cannot be kept.
    """
    expected, ties = {name: line for line in plan for name in line.names}, family.ties(config)
    named = known_as(stored, (*expected, *ties), family)
    found = {name: stored[given] for name, given in named.items() if name in expected}
    for name, whole in ties.items():
        if name in named:
            found.setdefault(whole, stored[named[name]])
    ours = {name: " and ".join(line.entry.paths) + (str(list(line.names[name])) if line.stack else "") for name, line in expected.items()}
    problems = [f"{name} ({ours[name]}): missing" for name in expected if name not in found]
    for name in stored.keys() - set(named.values()):
        if not is_ignored(name, family):
            problems.append(f"{name} {stored[name].dtype}{list(stored[name].shape)}: no parameter of {family.name} is filled from it")
    for name, whole in ties.items():
        if name in named and not _same(stored[named[name]], found[whole]):
            problems.append(f"{name}: is not equal to {whole} ({ours[whole]}), to which this configuration ties it")
    for name, one in found.items():
        if one.shape != expected[name].shape:
            problems.append(f"{name} ({ours[name]}): has shape {list(one.shape)}, and should have {list(expected[name].shape)}")
    problems += _wrong_dtypes(plan, found, dtype)
    if problems:
        guess = looks_like(stored, family)
        raise ValueError(
            f"{where}: is not such weights of family {family.name}{guess and f'; it looks like {guess}'}:\n  " + ";\n  ".join(problems)
        )
    return found


def is_ignored(name: str, family: Family) -> bool:
    """Whether a tensor of that name holds nothing trained."""
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def known_as(stored: Iterable[str], expected: Collection[str], family: Family) -> dict[str, str]:
    """The expected names -> the names in the file, as far as it has them: as they are, by an older name, or without the family's prefix."""
    named: dict[str, str] = {}
    for given in stored:
        name = next((one for one in _spellings(given, family) if one in expected), None)
        if name is not None and (name == given or name not in named):
            named[name] = given
    return named


def _spellings(given: str, family: Family) -> tuple[str, ...]:
    new = functools.reduce(lambda name, rename: re.sub(*rename, name), family.renames, given)
    return given, new, family.prefix + given, family.prefix + new


def _same(one: Stored, other: Stored) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and all(map(operator.eq, one.chunks(), other.chunks()))


def _wrong_dtypes(plan: Sequence[Line], found: Mapping[str, Stored], dtype: Any) -> Iterator[str]:
    for line in plan:
        paths = " and ".join(line.entry.paths)
        dtypes = {str(found[name].dtype): found[name].dtype for name in line.names if name in found}
        for odd in (one for one in dtypes.values() if not jnp.issubdtype(one, jnp.floating)):
            yield f"{line.entry.name} ({paths}): is {odd}, which is no dtype of trained weights; no config.json says how it is quantised"
        if dtype is None and len(dtypes) > 1:
            yield f"{line.entry.name} ({paths}): is of dtypes {', '.join(sorted(dtypes))}, and one array cannot be; give dtype"
        if dtype is None and any(dtype_in_jax(one) != one for one in dtypes.values()):
            yield f"{line.entry.name} ({paths}): is {', '.join(dtypes)}, which JAX would cast; give dtype, or switch jax_enable_x64 on"


def dtype_in_jax(dtype: np.dtype) -> np.dtype:
    """What JAX makes of an array of it, as it is configured."""
    return jax.eval_shape(lambda: jnp.asarray(np.zeros((), dtype))).dtype


def looks_like(names: Mapping[str, Any], family: Family | None = None) -> str:
    """The family that has the most of these tensors' names, "" if that is `family` or none has any."""
    from .families import FAMILIES  # here, since families know nothing of files

    def share(one: Family) -> float:
        spelled = {spelling for name in names for spelling in _spellings(name, one)}
        patterns = [re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(entry.name)) for entry in one.table(next(iter(one.presets.values())))]
        return sum(any(re.fullmatch(pattern, name) for name in spelled) for pattern in patterns) / len(patterns)

    shares = {name: share(one) for name, one in FAMILIES.items()}
    best = max(shares, key=shares.__getitem__, default="")
    own = 0.0 if family is None else shares.get(family.name, share(family))
    return best if best and shares[best] > own else ""


def differences(abstract: PyTree, leaves: Mapping[str, Any]) -> Iterator[str]:
    """In words, parameters that only one of the two has, or that are of another shape or kind of dtype."""
    wanted = flat(abstract)
    for path in sorted(wanted.keys() | leaves.keys()):
        if path not in leaves:
            yield f"{path}: missing"
        elif path not in wanted:
            yield f"{path}: the model has no such parameter"
        elif tuple(leaves[path].shape) != tuple(wanted[path].shape):
            yield f"{path}: has shape {list(leaves[path].shape)}, and should have {list(wanted[path].shape)}"
        elif not jnp.issubdtype(leaves[path].dtype, jnp.floating):
            yield f"{path}: is {leaves[path].dtype}, which is no dtype of trained weights"


# ---- what is asked for -------------------------------------------------------------------------------------------------
def configuration(values: Mapping[str, Any], family: Family, where: str) -> Any:
    """The family's configuration from what config.json says, in Hugging Face's words or as `in_full` writes it.

    Raises:
      ValueError: it tells of another family, or of a switch that this one does not know.
    """
    own = "family" in values and "config" in values
    said, wanted = (values["family"], family.name) if own else (values.get("model_type"), family.model_type)
    if said is None:
        raise ValueError(f"{where}: {CONFIG} has no model_type, so it is none of Hugging Face's; give the configuration")
    if said != wanted:
        raise ValueError(f"{where}: {CONFIG} says {'family' if own else 'model_type'} {said!r}, and {family.name} is {wanted!r}")
    try:
        return from_full(values["config"], family) if own else family.from_hf(values)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where}: {CONFIG} is of no {family.name} that is known here: {error}") from error


def in_full(config: Any, family: Family) -> dict[str, Any]:
    """A config.json of every field, also of those that Hugging Face has no words for."""
    return {"family": family.name, "config": dataclasses.asdict(config)}


def from_full(fields: Mapping[str, Any], family: Family) -> Any:
    """The configuration with these fields, which were read from JSON; those that are not there are as they are by themselves.

    Raises:
      ValueError: fields that are not those of the family's configurations.
    """
    return _read(type(next(iter(family.presets.values()))), fields)


def _read(kind: Any, fields: Mapping[str, Any]) -> Any:
    hints, changes = typing.get_type_hints(kind), {}
    for name, value in fields.items():
        if isinstance(value, dict):
            kinds = [one for one in (hints.get(name), *typing.get_args(hints.get(name))) if dataclasses.is_dataclass(one)]
            value = _read(kinds[0], value) if kinds else value
        changes[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**changes)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def asked_dtype(dtype: Any) -> np.dtype | None:
    """The dtype to cast to, if one is asked for.

    Raises:
      ValueError: no floating dtype, or one that JAX would turn into another.
    """
    if dtype is None:
        return None
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype={dtype}: weights are floating, such as float32 or bfloat16")
    if dtype_in_jax(found) != found:
        raise ValueError(f"dtype={dtype}: JAX would make it {dtype_in_jax(found)}; switch jax_enable_x64 on")
    return found


def spread(shardings: PyTree, paths: Sequence[str]) -> dict[str, Any]:
    """A sharding for each path; None for JAX's default device.

    Raises:
      ValueError: the shardings are no tree like the parameters.
    """
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(paths, shardings)
    given = flat(shardings)
    if sorted(given) != sorted(paths):
        odd = sorted(given.keys() ^ set(paths))
        raise ValueError(f"shardings: give one for each parameter, or one for all; only one of the two has {', '.join(odd[:8])}")
    return given


def check_params(leaves: Mapping[str, Any], family: Family, config: Any) -> None:
    """Raise ValueError, with all that is wrong, where parameters are not those of the configuration, or are not all in this process."""
    problems = list(differences(family.abstract(config), leaves))
    elsewhere = [path for path, x in leaves.items() if not getattr(x, "is_fully_addressable", True)]
    problems += [f"{path}: lies on devices of other processes" for path in elsewhere]
    if problems:
        raise ValueError(f"params: are not what can be saved of {family.name}:\n  " + ";\n  ".join(problems))
