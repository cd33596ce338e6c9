"""`wse.jit`: a JAX function on the wafer, called like a jitted function, lowered like `jax.jit(...).lower`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.compiler import rules as _rules  # noqa: F401  registers the rules
from wsejax.compiler import walk
from wsejax.compiler.arguments import abstract, argument_lines
from wsejax.compiler.audit import Audit
from wsejax.compiler.cache import CacheInfo, cache_folder, find
from wsejax.compiler.extend import inside_wse_jit
from wsejax.compiler.frame import Frame
from wsejax.compiler.ir import Graph, Value, read
from wsejax.compiler.layout import Layouts, choose
from wsejax.compiler.lowered import Lowered
from wsejax.compiler.pin import sharding_layout
from wsejax.hardware.wafer import Wafer
from wsejax.kernels.relayout import Layout

LARGE_CLOSURE_BYTES = 16 * 2**20


def jit(
    fun: Callable,
    wafer: Wafer,
    *,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    in_shardings: Any = None,
    strict: bool = True,
    cache: str | os.PathLike[str] | bool | None = None,
) -> WaferFunction:
    """`wse.jit` on one wafer; that of `wsejax.streaming` tells of the arguments.

    Raises:
      TypeError: `fun` cannot be called, or (when it is called) an argument is no array.
      ValueError: `wafer` is not a Wafer or runs physically, an argument number is both static and donated, `cache` cannot be a folder, or
        (when it is called) a layout that names an unknown axis, an axis twice or another mesh, or arguments that lie on the meshes of two
        wafers.
    """
    if not callable(fun):
        raise TypeError(f"fun={fun!r}: give a function of arrays")
    if not isinstance(wafer, Wafer):
        raise ValueError(f"wafer={wafer!r}: give a wse.Wafer, for example wse.Wafer(wse.WSE3.scaled(32, 32))")
    if wafer.execution == "physical":
        raise ValueError(
            "wafer has execution='physical', which is for programs for PEs (wse.wafer_map in jax.jit): what wse.jit compiles works on "
            "whole tiles; give wafer.replace(execution='logical')"
        )
    donated, static = _numbers(donate_argnums), _numbers(static_argnums)
    names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    known = _positional(fun)  # as in jax.jit a static argument may be given by position or by name
    static = tuple(sorted({_positive(i, known, "static_argnums") for i in static} | {known.index(n) for n in names if n in known}))
    donated = tuple(_positive(i, known, "donate_argnums") for i in donated)
    names = tuple(sorted({*names, *(known[i] for i in static if i < len(known))}))
    if both := set(donated) & set(static):
        raise ValueError(f"donate_argnums={donated} and static_argnums={static}: argument {min(both)} cannot be both")
    return WaferFunction(fun, wafer, donated, static, names, strict, in_shardings, cache_folder(cache))


def audit(fun: WaferFunction, *args, **kwargs) -> Audit:
    """Where every byte of `fun` would go, from shapes alone: nothing is allocated or compiled, so any size will do.

    Args:
      fun: a function made by `wse.jit`; with strict=False the audit shows what has no rule instead of raising.
      *args, **kwargs: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      TypeError: `fun` is not a function made by `wse.jit`.
      UnsupportedOpError: an operation without a rule, in a strict function.
    """
    if not isinstance(fun, WaferFunction):
        raise TypeError(f"fun={fun!r}: an audit is of a function on a wafer; give wse.audit(wse.jit(fun, wafer), ...)")
    return fun.lower(*args, **kwargs).audit()


def argument_numbers(fun: Callable, argnums: int | Sequence[int], what: str) -> tuple[int, ...]:
    """Positions of arguments, those from the end counted from the front.

    Raises:
      ValueError: what is no position, or none that the function has.
    """
    known = _positional(fun)
    for i in (argnums,) if isinstance(argnums, int | str) else tuple(argnums):
        if not isinstance(i, int) or isinstance(i, bool):
            raise ValueError(f"{what} has {i!r}: give positions of arguments, such as {what}=0")
        if known and not _takes_any(fun) and i >= len(known):
            raise ValueError(f"{what} has {i}: the function has {len(known)} positional arguments")
    return tuple(_positive(i, _positional(fun), what) for i in _numbers(argnums))


def _positional(fun: Callable) -> list[str]:
    try:
        return [p.name for p in inspect.signature(fun).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # a builtin without a signature, or no function
        return []


def _takes_any(fun: Callable) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(fun).parameters.values())


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)


def _positive(number: int, known: list[str], what: str) -> int:
    if number >= 0:
        return number
    if number + len(known) < 0:
        raise ValueError(f"{what} has {number}: the function has {len(known)} positional arguments")
    return number + len(known)


class WaferFunction:
    """A function compiled for a wafer, one `Lowered` for every new set of shapes, dtypes and static values."""

    def __init__(
        self,
        fun,
        wafer: Wafer,
        donated: tuple[int, ...],
        static: tuple[int, ...],
        names: tuple[str, ...],
        strict: bool,
        pins: Any,
        cache: Path | None,
    ) -> None:
        functools.update_wrapper(self, fun, updated=())
        self.fun, self.wafer, self.strict, self._cache = fun, wafer, strict, cache
        self._donated, self._static, self._names, self._in_shardings = donated, static, names, pins
        self._lowered: dict[Any, Lowered] = {}

    @property
    def static(self) -> tuple[int, ...]:
        """Positions of the static arguments."""
        return self._static

    def lower(self, *args, **kwargs) -> Lowered:
        """Plan the function for these arguments (arrays or `jax.ShapeDtypeStruct`s); allocates and compiles nothing."""
        return self._find(args, kwargs)[0]

    def __call__(self, *args, **kwargs):
        lowered, flat = self._find(args, kwargs)
        return lowered.run(flat)

    def _find(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Lowered, list[Any]]:
        static = set(self._static)
        for i in self._donated:
            if i >= len(args):
                raise ValueError(
                    f"donate_argnums has {i}, the call has {len(args)} positional arguments: pass donated arguments by position"
                )
        dynamic = tuple(a for i, a in enumerate(args) if i not in static)
        dynamic_kw = {k: v for k, v in kwargs.items() if k not in self._names}
        flat, tree = jax.tree.flatten((dynamic, dynamic_kw))
        shapes = tuple(abstract(x) for x in _arrays((dynamic, dynamic_kw), flat))
        fixed = (
            tuple((i, args[i]) for i in sorted(static) if i < len(args)),
            tuple((k, kwargs[k]) for k in sorted(set(kwargs) & set(self._names))),
        )
        for name, value in (*fixed[0], *fixed[1]):
            try:
                hash(value)
            except TypeError as error:
                raise ValueError(
                    f"static argument {name!r} = {value!r} cannot be hashed, so no compiled program can be kept for it: pass a hashable "
                    "value such as a tuple or a frozen dataclass, or do not make it static"
                ) from error
        pins = self._pins(dynamic, flat)
        key = (tree, tuple((s.shape, s.dtype, s.weak_type) for s in shapes), fixed, pins)
        if key not in self._lowered:
            self._lowered[key] = self._lower(shapes, tree, dict(fixed[0]), dict(fixed[1]), len(args), pins)
        return self._lowered[key], flat

    def _pins(self, dynamic: tuple, flat: list[Any]) -> tuple[tuple[int, Layout], ...]:
        """(number of the flat argument, layout) of those that the user chose."""
        found = {n: x.sharding for n, x in enumerate(flat) if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None}
        if self._in_shardings is not None:
            prefix = self._in_shardings if isinstance(self._in_shardings, tuple | list) else (self._in_shardings,) * len(dynamic)
            is_leaf = lambda s: s is None or isinstance(s, NamedSharding | PartitionSpec)
            spread = lambda s, part: jax.tree.map(lambda _: _Given(s), part)
            try:
                given = jax.tree.leaves(jax.tree.map(spread, tuple(prefix), dynamic, is_leaf=is_leaf))
            except ValueError as error:
                raise ValueError(f"in_shardings={self._in_shardings!r}: not a prefix of the positional arguments: {error}") from error
            found |= {n: s.sharding for n, s in enumerate(given) if s.sharding is not None}
        return tuple((n, self._pin(s, len(flat[n].shape), f"layout of argument {n}")) for n, s in sorted(found.items()))

    def _pin(self, sharding: Any, ndim: int, what: str) -> Layout:
        return sharding_layout(sharding, ndim, dict(zip(fabric.AXES, self.wafer.devices, strict=True)), what)

    def _lower(self, shapes, tree, fixed: dict[int, Any], fixed_kw: dict[str, Any], count: int, pins) -> Lowered:
        start = time.perf_counter()

        def flat_fun(*flat):
            dynamic, kw = jax.tree.unflatten(tree, flat)
            rest = iter(dynamic)
            return self.fun(*(fixed[i] if i in fixed else next(rest) for i in range(count)), **kw, **fixed_kw)

        functools.update_wrapper(flat_fun, self.fun, updated=())
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # traced knowing nothing of any mesh
            token = inside_wse_jit.set(True)
            try:
                closed, out = jax.make_jaxpr(flat_fun, return_shape=True)(*shapes)
            except (TypeError, ValueError) as error:
                error.add_note(
                    f"wse.jit traces {getattr(self, '__name__', 'the function')} as jax.jit does, so the error is JAX's own; wse.jit asks "
                    "for a pure function of arrays, in which shapes and dtypes carried through loops do not change"
                )
                raise
            finally:
                inside_wse_jit.reset(token)
        graph = read(closed)
        name = getattr(self, "__name__", "function")
        _warn_of_closures(graph, getattr(self, "__name__", "the function"))
        numbers = iter(range(len(shapes)))  # of the flat arguments, in the order of the tree
        dynamic, by_name = jax.tree.unflatten(tree, list(numbers))
        places = [i for i in range(count) if i not in fixed]
        at = lambda argnums: [dynamic[places.index(i)] for i in argnums if i in places]
        taking = lambda args: [pair for arg in args for pair in _taking_place(arg, out, shapes, graph.outs)]
        others = [dynamic[n] for n, i in enumerate(places) if i not in self._donated and n < len(dynamic)]
        traced = Traced(
            name, graph, shapes, tree, out, taking(at(self._donated)), taking(others), jax.tree.leaves(at(self._donated)), pins, start, at,
            taking, [jax.tree.leaves(arg) for arg in (*dynamic, *by_name.values())], count,
        )  # fmt: skip
        return self._lowered_from(traced)

    def _lowered_from(self, traced: Traced) -> Lowered:
        """The plan of what was traced, made when it is asked for."""
        graph, shapes = traced.graph, traced.shapes
        values = lambda pairs: [(graph.ins[i], graph.outs[o]) for i, o in pairs]

        @functools.cache
        def planned() -> tuple[Layouts, walk.Plan]:
            tiles = dict(zip(fabric.AXES, self.wafer.tiles, strict=True))
            devices = dict(zip(fabric.AXES, self.wafer.devices, strict=True))
            pins = {graph.ins[n]: lay for n, lay in traced.pins}
            layouts = choose(graph, tiles, values(traced.same), values(traced.likely), pins)
            ctx = walk.Context(layouts, tiles, devices, self.strict, self.wafer.reduction, self.wafer.accumulate)
            return layouts, walk.plan(graph, ctx)

        options = {"donated": tuple(traced.given_away), "pinned": traced.pins, "strict": self.strict}
        lines = argument_lines(shapes, traced.in_tree)
        pairs = values([*traced.same, *traced.likely])
        entry, why = find(self._cache, traced.name, graph, lines, options, pairs, self.wafer)
        if entry is None or not entry.found:
            planned()  # refuses what it cannot do; what is stored was planned before
        info = CacheInfo("off", time.perf_counter() - traced.start, why=why)
        trees = traced.in_tree, jax.tree.structure(traced.out)
        return Lowered(traced.name, Frame(self.wafer), planned, shapes, *trees, tuple(traced.given_away), entry, info)


@dataclasses.dataclass(frozen=True)
class _Given:
    """What was given for one array; no pytree, whatever it is."""

    sharding: Any


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function as it was traced for some shapes. Pairs are (number of a flat argument, number of the flat result that takes its place or
    looks like it)."""

    name: str
    graph: Graph
    shapes: Sequence[jax.ShapeDtypeStruct]
    in_tree: Any
    out: Any  # shapes of the results, as they are structured
    same: Sequence[tuple[int, int]]
    likely: Sequence[tuple[int, int]]
    given_away: Sequence[int]
    pins: tuple[tuple[int, Layout], ...]
    start: float  # of the work on it, by time.perf_counter
    arguments: Callable[[Sequence[int]], list[Any]]  # of these positions, as trees of numbers
    taking_place: Callable[[Sequence[Any]], list[tuple[int, int]]]  # pairs of arguments given as such trees
    each: Sequence[Sequence[int]]  # the numbers of each argument's arrays
    positional: int  # arguments in the call


def _arrays(arguments, flat: list[Any]) -> list[Any]:
    for n, x in enumerate(flat):
        if not isinstance(x, jax.ShapeDtypeStruct):
            try:
                jax.typeof(x)
            except TypeError as error:
                path = jax.tree_util.tree_leaves_with_path(arguments)[n][0]
                where = jax.tree_util.keystr(path[1:])
                raise TypeError(
                    f"argument {where}={x!r} of type {type(x).__name__} is no array: pass arrays or numbers, or name it in "
                    "static_argnums or static_argnames"
                ) from error
    return flat


def _warn_of_closures(graph: Graph, name: str) -> None:
    consts = {id(v.const): v for op in graph.walk() for v in op.ins if v.const is not None}
    size = sum(v.size_bytes for v in consts.values())
    if size > LARGE_CLOSURE_BYTES:
        largest = max(consts.values(), key=lambda v: v.size_bytes)
        warnings.warn(
            f"{name} closes over {size:,} bytes of arrays, the largest {largest}: every device holds them whole, and they are part of the "
            "compiled program. Pass them as arguments, which are laid out over the wafer",
            stacklevel=5,
        )


def _taking_place(arg, out, shapes, outs: list[Value]) -> list[tuple[int, int]]:
    """Numbers of a donated argument's arrays and of those of the first result with the same structure and shapes."""
    numbered = jax.tree.unflatten(jax.tree.structure(out), list(range(len(outs))))
    wanted = [shapes[n] for n in jax.tree.leaves(arg)]
    for part in (numbered, *(numbered if isinstance(numbered, tuple | list) else ())):
        leaves = jax.tree.leaves(part)
        if jax.tree.structure(part) == jax.tree.structure(arg) and [(outs[n].shape, outs[n].dtype) for n in leaves] == [
            (s.shape, s.dtype) for s in wanted
        ]:
            return list(zip(jax.tree.leaves(arg), leaves, strict=True))
    return []
