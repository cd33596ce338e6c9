"""Random small JAX programs as hypothesis strategies: a program is Python source, so that a failing case can be pasted and run.

A `Chain` grows a function line by line. Beside shape and dtype it knows of every value how large it can be (`bound`) and how far apart two
correct computations of it can be (`err`): values stay small, comparisons and indices are made of exact values only, and results are
compared within what rounding explains. The operations are in `random_ops_of_*.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

SIZES = (4, 5, 6, 7, 8, 3, 9, 12, 16, 1)
FLOATS, INTS = ("float32", "bfloat16", "float16"), ("int32", "int8", "uint8")
DTYPES = (*FLOATS, *INTS, "bool")
BOUND = 8.0  # larger values are scaled down
MAX_SIZE = 1024
MESHES = {  # tiles -> device meshes that divide them; one device is for comparison only
    (2, 2): [(2, 2), (1, 2), (2, 1)],
    (4, 2): [(2, 2), (2, 1), (1, 2), (4, 1)],
    (3, 2): [(1, 2), (3, 1)],
    (1, 4): [(1, 2), (1, 4)],
}


class Skip(Exception):
    """An operation that the values made so far do not allow."""


@dataclasses.dataclass(frozen=True)
class Val:
    """A value of the program by name. `err` 0: exact. `wild`: may hold infinities and NaN."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    weak: bool = False
    bound: float = 0.0
    err: float = 0.0
    wild: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS

    @property
    def integer(self) -> bool:
        return self.dtype not in FLOATS and self.dtype != "bool"

    @property
    def exact(self) -> bool:
        return self.err == 0

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Input:
    """An argument: `kind` says what numbers `data` makes, `place` how it is handed over."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    place: str


def data(shape: Sequence[int], dtype: str, kind: str, seed: int) -> np.ndarray:
    """Numbers of at most 2 (integers: 9): 'normal', 'ties' (a few different ones, exact in every dtype) or 'wild' (ties, inf and NaN)."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in INTS:
        return rng.integers(0 if dtype == "uint8" else -9, 10, shape).astype(dtype)
    x = np.clip(rng.normal(size=shape), -2, 2) if kind == "normal" else rng.integers(-4, 5, shape) / 2
    if kind == "wild":
        x = np.where(rng.random(shape) < 0.3, rng.choice([np.inf, -np.inf, np.nan, -0.0, 0.0], shape), x)
    return np.asarray(x).astype(jnp.dtype(dtype))


def eps(dtype: str) -> float:
    return float(jnp.finfo(dtype).eps) if dtype in FLOATS else 0.0


NAMES = {"jax": jax, "jnp": jnp, "np": np, "lax": lax}


def define(source: str, name: str) -> Callable:
    """The function `name` of a source text."""
    scope = dict(NAMES)
    exec(source, scope)
    return scope[name]


class Chain:
    """Statements of one function. `smooth`: no kinks at inexact values, so that a gradient means something."""

    def __init__(self, draw, inputs: list[Input], values: Sequence[Val], counter: list[int], smooth: bool = False, depth: int = 0) -> None:
        self.draw, self.inputs, self.counter, self.smooth, self.depth = draw, inputs, counter, smooth, depth
        self.values = list(values)
        self.lines: list[str] = []
        self.made: list[Val] = []

    # ---- draws -------------------------------------------------------------------------------------------------------
    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def choose(self, options: Sequence[Any]) -> Any:
        if not options:
            raise Skip
        return self.draw(st.sampled_from(list(options)))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def pick(self, test: Callable[[Val], bool] = lambda v: True) -> Val:
        """A value that passes; the newest as often as all others together."""
        fit = [v for v in reversed(self.values) if test(v)]
        return self.choose(fit[:1] * max(1, len(fit) - 1) + fit[1:])

    def tame(self, test: Callable[[Val], bool] = lambda v: True) -> Val:
        """A floating value without infinities."""
        return self.pick(lambda v: v.floating and not v.wild and test(v))

    def kinky(self, v: Val) -> bool:
        """Whether an operation with kinks may be done on a value."""
        return v.exact or not self.smooth

    def last(self, test: Callable[[Val], bool] = lambda v: True) -> Val:
        """The newest value that passes, so that little is made in vain."""
        return self.choose([v for v in [*reversed(self.made), *reversed(self.values)] if test(v)][:1])

    def dim(self, v: Val) -> int:
        return self.choose(range(v.ndim))

    def perm(self, n: int) -> tuple[int, ...]:
        return tuple(self.draw(st.permutations(range(n))))

    def some(self, items: Sequence[Any], least: int = 1) -> list[Any]:
        """A subset, in order."""
        keep = [self.flip() for _ in items]
        chosen = [x for x, k in zip(items, keep, strict=True) if k]
        return chosen if len(chosen) >= least else list(items)[:least]

    # ---- operands ----------------------------------------------------------------------------------------------------
    def operand(self, shape: Sequence[int], dtype: str, stretched: bool = False, kind: str = "") -> Val:
        """A value of a shape and dtype (or, `stretched`, one that broadcasts to it), made so far or a new argument."""
        shape = tuple(shape)
        old = [v for v in self.values if v.dtype == dtype and v.shape == shape and not v.wild]
        if old and self.flip():
            return self.choose(old)
        if stretched:
            shape = tuple(1 if n > 1 and self.int(0, 3) == 3 else n for n in shape)
        if len(self.inputs) < 4 and math.prod(shape) <= MAX_SIZE:
            return self.argument(shape, dtype, kind or self.choose(["normal", "ties"]))
        if old:
            return self.choose(old)
        return self.add(*self.fitted(self.pick(lambda v: not v.wild), shape, dtype))

    def argument(self, shape: tuple[int, ...], dtype: str, kind: str) -> Val:
        name = f"x{len(self.inputs)}"
        self.inputs.append(Input(name, shape, dtype, kind, self.choose(PLACES)))
        wild = kind == "wild" and dtype in FLOATS
        val = Val(name, shape, dtype, bound=2.0 if dtype in FLOATS else 0.0, wild=wild)
        self.values.insert(0, val)
        return val

    def cast_text(self, v: Val, dtype: str) -> str:
        """`v` cast, integers made small enough to be exact as floats, floats to integers only if exact."""
        if v.dtype == dtype:
            return v.name
        if dtype in FLOATS and v.integer:
            return f"({v} % 8).astype({dtype!r})"
        if dtype == "bool":
            return f"({v} > 0)"
        exact = f"jnp.abs(lax.floor({v} * 2))" if v.floating and dtype not in FLOATS else f"({v})"  # no negative number is a uint8
        return f"{exact}.astype({dtype!r})"

    def cast_size(self, v: Val, dtype: str) -> tuple[float, float]:
        if v.dtype == dtype:
            return v.bound, v.err
        if dtype not in FLOATS:
            if not v.exact or v.wild:
                raise Skip
            return 0.0, 0.0
        return (v.bound, v.err + (eps(dtype) > eps(v.dtype)) * eps(dtype) * v.bound) if v.floating else (8.0, 0.0)

    def index(self, shape: Sequence[int], dtype: str = "") -> Val:
        """Integers of a shape, to index with."""
        return self.operand(shape, dtype or self.choose(["int32", "int32", "uint8", "int8"]))

    def scalar(self, limit: int) -> str:
        """A traced integer from 0 to limit - 1."""
        made = [v for v in self.values if v.integer and v.size]
        v = self.choose(made) if made and self.flip() else self.index(())
        text = v.name + ("" if v.ndim == 0 else f"[{', '.join(str(n - 1) for n in v.shape)}]")
        return f"({text}.astype('int32') % {limit})"

    # ---- statements --------------------------------------------------------------------------------------------------
    def name(self, letter: str = "v") -> str:
        self.counter[0] += 1
        return f"{letter}{self.counter[0]}"

    def add(self, text: str, bound: float = 0.0, err: float = 0.0, wild: bool = False, before: Sequence[str] = ()) -> Val:
        """Append `name = text`; floats larger than `BOUND` are scaled."""
        name = self.name()
        aval = self.trace([*before, f"return {text}"])
        if math.prod(aval.shape) > MAX_SIZE or str(aval.dtype) not in DTYPES:
            raise Skip
        dtype = str(aval.dtype)
        if dtype in FLOATS and bound > BOUND and not wild:
            scale = 2.0 ** -math.ceil(math.log2(bound / BOUND))
            text, bound, err = f"({text}) * {scale}", bound * scale, err * scale
        self.lines += [*before, f"{name} = {text}"]
        val = Val(name, tuple(aval.shape), dtype, aval.weak_type, *((bound, err, wild) if dtype in FLOATS else (0.0, 0.0, False)))
        self.values.append(val)
        self.made.append(val)
        return val

    def rounded(self, text: str, bound: float, err: float, like: Val, roundings: float = 4, **rest) -> Val:
        """Append an inexact result: `err` of the operands, and some roundings."""
        return self.add(text, bound, err + roundings * eps(like.dtype) * max(bound, 1e-3), **rest)

    def trace(self, body: Sequence[str]) -> Any:
        """Abstract value of what a function body returns."""
        given = list({v.name: v for v in self.values}.values())
        source = f"def f({', '.join(v.name for v in given)}):\n" + textwrap.indent("\n".join(body), "    ")
        try:
            return jax.eval_shape(define(source, "f"), *(jax.ShapeDtypeStruct(v.shape, v.dtype, weak_type=v.weak) for v in given))
        except NotImplementedError as missing:  # in JAX itself: some gradients
            raise Skip from missing

    def body(self, params: Sequence[Val], most: int, smooth: bool = False) -> Chain:
        """A chain inside this one, over its own parameters and everything outside."""
        if self.depth >= 2:
            raise Skip
        chain = Chain(self.draw, self.inputs, [*self.values, *params], self.counter, smooth or self.smooth, self.depth + 1)
        grow(chain, self.int(1, most))
        return chain

    def function(self, params: Sequence[Val], chain: Chain, result: str) -> tuple[str, list[str]]:
        """(name, lines) of a chain as an inner function. New arguments of the program become known here too."""
        known = {v.name for v in self.values}
        self.values[:0] = [v for v in chain.values if v.name.startswith("x") and v.name not in known]
        name = self.name("f")
        return name, [f"def {name}({', '.join(map(str, params))}):", *("    " + line for line in [*chain.lines, f"return {result}"])]

    def fitted(self, v: Val, shape: tuple[int, ...], dtype: str) -> tuple[str, float, float]:
        """(text, bound, err) of a value brought to a shape and dtype: cast, stretched, or summed up and stretched."""
        if v.wild:
            raise Skip
        bound, err = self.cast_size(v, dtype)
        text = self.cast_text(v, dtype)
        if v.shape == shape:
            return text, bound, err
        if v.size == 0:
            return f"jnp.ones({shape}, {dtype!r})", 1.0, 0.0
        if dtype in FLOATS:
            return f"jnp.full({shape}, jnp.mean({text}))", bound, err + (4 + v.size**0.5) * eps(dtype) * bound
        return f"jnp.full({shape}, {'jnp.any' if dtype == 'bool' else 'jnp.max'}({text}))", bound, err


PLACES = ("numpy", "uncommitted", "device", "sharded")
OPS: dict[str, Callable[[Chain], Any]] = {}
WEIGHTS: list[str] = []


def op(weight: int = 2):
    """Register an operation, drawn in proportion to its weight."""

    def register(fun):
        OPS[fun.__name__.strip("_")] = fun
        WEIGHTS.extend([fun.__name__.strip("_")] * weight)
        return fun

    return register


ranked = lambda v: v.ndim > 0
filled = lambda v: v.ndim > 0 and v.size > 0


def same(chain: Chain, v: Val, text: str) -> Val:
    """A result that only moves or picks numbers of `v`."""
    return chain.add(text, max(v.bound, 1.0), v.err, v.wild)


def grow(chain: Chain, count: int) -> None:
    """Append `count` operations, if so many fit in twice as many tries."""
    wanted = len(chain.made) + count
    for _ in range(2 * count):
        if len(chain.made) == wanted:
            return
        before = len(chain.lines), len(chain.inputs), list(chain.values), list(chain.made)
        try:
            OPS[chain.choose(WEIGHTS)](chain)
        except Skip:  # arguments made for it stay out too
            chain.lines, chain.values, chain.made = chain.lines[: before[0]], before[2], before[3]
            del chain.inputs[before[1] :]


# ---- cases -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Case:
    """A program, its arguments and the wafer: `str` gives a script."""

    inputs: tuple[Input, ...]
    lines: tuple[str, ...]
    results: tuple[Val, ...]
    tiles: tuple[int, int]
    devices: tuple[int, int]
    others: tuple[int, int] | None  # a second device mesh, to compare bits
    sums: tuple[str, str]  # how the wafer adds up: reduction, accumulate

    @property
    def source(self) -> str:
        body = [*self.lines, f"return {', '.join(v.name for v in self.results)},"]
        return f"def fun({', '.join(i.name for i in self.inputs)}):\n" + textwrap.indent("\n".join(body), "    ")

    def args(self) -> list[np.ndarray]:
        return [data(i.shape, i.dtype, i.kind, n) for n, i in enumerate(self.inputs)]

    def _repr_pretty_(self, printer, cycle: bool) -> None:  # hypothesis would show the fields
        printer.text(repr(self))

    def __repr__(self) -> str:
        args = ", ".join(f"data({i.shape}, {i.dtype!r}, {i.kind!r}, {n})" for n, i in enumerate(self.inputs))
        return "\n".join(
            [
                "", "# ---- paste:",
                "import jax, numpy as np, wsejax as wse; from jax import lax, numpy as jnp",
                "from tests.compiler.random_programs import data",
                "wse.request_cpu_devices(4)",
                self.source,
                f"args = [{args}]  # handed over: {', '.join(i.place for i in self.inputs)}",
                f"wafer = wse.Wafer(wse.WSE3.scaled(16, 16), tiles={self.tiles}, devices={self.devices}, "
                f"reduction={self.sums[0]!r}, accumulate={self.sums[1]!r})"
                + (f"  # and devices={self.others}" if self.others else ""),
                "for got, want in zip(wse.jit(fun, wafer)(*args), jax.jit(fun)(*args)):",
                "    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=0, atol=1e-2)",
                f"# tolerances: {', '.join(f'{v}: {tolerance(v):.2g}' for v in self.results)}", "# ----",
            ]
        )  # fmt: skip


def tolerance(v: Val) -> float:
    return 4 * v.err


@st.composite
def cases(draw, most_ops: int = 8) -> Case:
    """A program of one to `most_ops` operations, with one to four arguments, on one of the wafers of `MESHES`."""
    tiles = draw(st.sampled_from(list(MESHES)))
    devices = draw(st.sampled_from(MESHES[tiles]))
    chain = Chain(draw, [], [], [0])
    for _ in range(chain.int(1, 2)):
        shape = tuple(chain.choose(SIZES) for _ in range(chain.choose([2, 2, 2, 3, 3, 3, 1, 4, 0])))
        if shape and chain.int(0, 30) == 30:
            shape = (*shape[:-1], 0)
        kind = "wild" if chain.int(0, 15) == 15 else chain.choose(["normal", "ties"])
        if math.prod(shape) <= MAX_SIZE:
            chain.argument(shape, chain.choose(("float32",) * 3 + DTYPES), kind)
    if not chain.values:
        chain.argument((4,), "float32", "normal")
    grow(chain, chain.choose([1, *(n for n in range(2, most_ops + 1) for _ in range(3))]))
    made = chain.made or chain.values
    words = Counter(re.findall(r"\w+", "\n".join(chain.lines)))
    results = [v for v in made if words[v.name] < 2 or draw(st.integers(0, 3)) == 3]
    meshes = [m for m in [(1, 1), *MESHES[tiles]] if m != devices]
    others = draw(st.sampled_from([None, None, None, *meshes]))
    sums = (chain.choose(["chain", "chain", "tree", "two_phase"]), chain.choose(["float32"] * 3 + ["operand"]))
    return Case(tuple(chain.inputs), tuple(chain.lines), tuple(results), tiles, devices, others, sums)
