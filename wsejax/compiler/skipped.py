"""Zeros that a program multiplies with, counted: it is run once, operation by operation, and every product's operands are looked at.

Zeros count wherever they come from: a ReLU in any spelling, dropout, a gate that picks experts, a mask. An operand is an *activation* if it
depends on an argument that is no weight; what is made of weights and constants alone is a *weight*. What indices, conditions and places of
a slice depend on does not matter; rows that a table gives for tokens are activations.

Counts are of multiply-adds, exact integers. The PEs skip those whose operand on the wire is zero (Hot Chips 2022, CS-2), which in weight
streaming is the weight: so the two kinds of zeros are counted apart (`skipped_macs_weight`, `skipped_macs_activation`), and together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from jax import lax

from wsejax.compiler import ir
from wsejax.compiler.audit import WIDTH
from wsejax.compiler.jit import WaferFunction, argument_numbers
from wsejax.compiler.work import FREE

# Magnitudes are counted from one of these to the next; below the first (zeros apart), and from the last on, with what is not finite.
MAGNITUDES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
_EXACT = 2**24  # terms of a sum of ones up to which float32 counts
_INDEXED = {"dynamic_slice": 1, "dynamic_update_slice": 2, "cond": 0}  # operands that hold values; those behind them say where


@dataclasses.dataclass(frozen=True)
class Operand:
    """Of a product. `magnitudes` are numbers of elements: zeros, then between `MAGNITUDES`. `made_by` is the operation that made the
    values, through casts and views, with its source line."""

    is_weight: bool
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    magnitudes: tuple[int, ...]
    made_by: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Counted:
    """One product as it ran once. `trips` are the loops round it with the trip, from 0, from the outside in."""

    primitive: str
    source: str
    trips: tuple[tuple[str, int], ...]
    operands: tuple[Operand, Operand]
    macs: int
    skipped_macs_weight: int
    skipped_macs_activation: int
    skipped_macs_either: int

    @property
    def activations(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.operands if not operand.is_weight)


@dataclasses.dataclass(frozen=True)
class ActivationSparsity:
    """Zeros and the multiply-adds that they make needless, product by product in the order of the run.

    Attributes:
      products: every `dot_general` and convolution, each trip of a loop apart.
      not_counted: (operation, source line) of what may hold products and was not looked into: kernels of the user's, ragged products.
    """

    products: tuple[Counted, ...]
    not_counted: tuple[tuple[str, str], ...] = ()

    def _sum(self, name: str) -> int:
        return sum(getattr(product, name) for product in self.products)

    @property
    def macs(self) -> int:
        """Multiply-adds in all."""
        return self._sum("macs")

    @property
    def skipped_macs_weight(self) -> int:
        """Those with a zero weight."""
        return self._sum("skipped_macs_weight")

    @property
    def skipped_macs_activation(self) -> int:
        """Those with a zero activation."""
        return self._sum("skipped_macs_activation")

    @property
    def skipped_macs_either(self) -> int:
        """Those with a zero of any kind."""
        return self._sum("skipped_macs_either")

    @property
    def zero_fraction(self) -> float:
        """Of the activations that products read, as often as they are read."""
        read = [operand for product in self.products for operand in product.activations]
        return sum(o.zeros for o in read) / max(1, sum(o.size for o in read))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each activation that a product reads, JSON-ready; `read_by` is the product's source line."""
        return [
            {
                "read_by": product.source, "primitive": product.primitive, "trips": [list(trip) for trip in product.trips],
                "made_by": operand.made_by, "dtype": operand.dtype, "shape": list(operand.shape), "zeros": operand.zeros,
                "size": operand.size, "zero_fraction": operand.zeros / max(1, operand.size), "magnitudes": list(operand.magnitudes),
                "macs": product.macs, "skipped_macs_weight": product.skipped_macs_weight,
                "skipped_macs_activation": product.skipped_macs_activation, "skipped_macs_either": product.skipped_macs_either,
            }
            for product in self.products for operand in product.activations
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "macs": self.macs,
            "skipped_macs_weight": self.skipped_macs_weight,
            "skipped_macs_activation": self.skipped_macs_activation,
            "skipped_macs_either": self.skipped_macs_either,
            "zero_fraction": self.zero_fraction,
            "magnitudes_from": list(MAGNITUDES),
            "not_counted": [list(one) for one in self.not_counted],
            "rows": self.rows(),
        }

    def __rich__(self) -> rich.console.Group:
        share = lambda n: f"{n:,} ({n / max(1, self.macs):.1%})"
        head = (
            f"{self.macs:,} multiply-adds in {len(self.products):,} products; with a zero weight {share(self.skipped_macs_weight)}, with a "
            f"zero activation {share(self.skipped_macs_activation)}, with either {share(self.skipped_macs_either)}"
        )
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("zeros", "of", "share", "activation", "made by", "read by", "trips"):
            table.add_column(name, justify="right" if name in ("zeros", "of", "share") else "left", overflow="fold")
        for product in self.products:
            trips = " ".join(f"{source} [{n}]" for source, n in product.trips)
            for x in product.activations:
                cells = (f"{x.zeros:,}", f"{x.size:,}", f"{x.zeros / max(1, x.size):.1%}", str(x), x.made_by, product.source, trips)
                table.add_row(*map(rich.text.Text, cells))
        left = [rich.text.Text(f"not counted: {name} at {source}") for name, source in self.not_counted]
        return rich.console.Group(rich.text.Text(head), table, *left)

    def __str__(self) -> str:
        console = rich.console.Console(width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def measure_activation_sparsity(fun: Callable[..., Any], *args: Any, weights_argnums: int | Sequence[int] = 0) -> ActivationSparsity:
    """Run a pure JAX function once, on these values, and count the zeros that its products read.

    Args:
      fun: any function of arrays; of `wse.jit` and `jax.jit` what they were given. What it closes over counts as weights.
      args: pytrees of arrays or numbers, with values: a share of zeros is one of numbers, not of shapes.
      weights_argnums: positions of the arguments that are weights; () if none is.

    Raises:
      TypeError: an argument has no values.
      ValueError: `weights_argnums` is out of range or names what holds no floating-point array; the function has no product, or none that
        reads an activation.
      UnsupportedOpError: the function has side effects.
    """
    fun = fun.fun if isinstance(fun, WaferFunction) else fun
    numbers = argument_numbers(fun, weights_argnums, "weights_argnums")
    _check(args, numbers)
    leaves, tree = jax.tree.flatten(args)
    flat = lambda *leaves: jax.tree.leaves(fun(*jax.tree.unflatten(tree, leaves)))
    graph = ir.read(jax.make_jaxpr(flat)(*leaves))
    of_weights = [n in numbers for n, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    run = _Run()
    run.graph(graph, [_Held(jnp.asarray(x), w, "argument") for x, w in zip(leaves, of_weights, strict=True)], ())
    found = ActivationSparsity(tuple(run.products), tuple(dict.fromkeys(run.not_counted)))
    name = getattr(fun, "__name__", "the function")
    if not found.products:
        also = f"; not looked into: {', '.join(f'{op} at {source}' for op, source in found.not_counted)}" if found.not_counted else ""
        raise ValueError(f"fun={name}: has no product whose operands could be looked at; give one with a matrix product{also}")
    if not any(product.activations for product in found.products):
        raise ValueError(
            f"weights_argnums={weights_argnums!r}: every product of {name} reads only what is made of these arguments and constants, so "
            "none reads an activation; name the weights alone, () if no argument holds any"
        )
    return found


def _check(args: Sequence[Any], numbers: Iterable[int]) -> None:
    for n, arg in enumerate(args):
        for x in jax.tree.leaves(arg):
            if isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer):
                raise TypeError(f"argument {n} holds {x}, which has no values: give arrays, outside of jax.jit and the like")
    for n in numbers:
        if n >= len(args):
            raise ValueError(f"weights_argnums has {n}, the call has {len(args)} arguments: name positions from 0, () for no weights")
        if not any(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(args[n])):
            held = ", ".join(sorted({str(jnp.result_type(x)) for x in jax.tree.leaves(args[n])})) or "no array"
            raise ValueError(f"weights_argnums has {n}: that argument holds {held}, and weights are floating-point; name another, or ()")


@dataclasses.dataclass(frozen=True)
class _Held:
    """A value of the run."""

    x: Any
    is_weight: bool
    made_by: str


class _Run:
    """Does graphs on values, and counts."""

    def __init__(self) -> None:
        self.products: list[Counted] = []
        self.not_counted: list[tuple[str, str]] = []

    def graph(self, graph: ir.Graph, args: Sequence[_Held], trips: tuple[tuple[str, int], ...]) -> list[_Held]:
        env = dict(zip(graph.ins, args, strict=True))
        get = lambda v: env[v] if v.const is None else _constant(v)
        for op in graph.ops:
            outs = self.op(op, [get(v) for v in op.ins], trips)
            env.update(zip(op.outs, outs, strict=True))
        return [get(v) for v in graph.outs]

    def op(self, op: ir.Op, ins: list[_Held], trips: tuple[tuple[str, int], ...]) -> list[_Held]:
        if op.name == "scan":
            return self.scan(op, ins, trips)
        if op.name == "while":
            return self.loop(op, ins, trips)
        if op.name == "cond":
            at = min(max(int(ins[0].x), 0), len(op.bodies) - 1)
            return self.graph(op.bodies[at], ins[1:], trips)
        xs = [held.x for held in ins]
        if op.name == "optimization_barrier":
            return [dataclasses.replace(held, x=x) for held, x in zip(ins, lax.optimization_barrier(tuple(xs)), strict=True)]
        if op.name == "dot_general":
            self.products.append(_counted(op, ins, trips, _macs_of_dot(op, *xs)))
        elif op.name == "conv_general_dilated" and math.prod(op.ins[1].shape) // max(1, _features(op)) < _EXACT:
            self.products.append(_counted(op, ins, trips, _macs_of_conv(op, *xs)))
        elif op.name in ("conv_general_dilated", "ragged_dot_general", "ragged_dot") or ir.inner_jaxprs(op):
            self.not_counted.append((op.name, op.source))
        values = ins[: _INDEXED.get(op.name)]
        is_weight = all(held.is_weight for held in values)
        view = len(values) == 1 and (op.name in FREE or op.name in ("convert_element_type", "slice", "dynamic_slice"))
        made_by = values[0].made_by if view else f"{op.name} at {op.source}"
        return [_Held(x, is_weight, made_by) for x in op.bind(*xs)]

    def scan(self, op: ir.Op, ins: list[_Held], trips: tuple[tuple[str, int], ...]) -> list[_Held]:
        (body,), (consts, carry) = op.bodies, ir.scan_split(op)
        length = op.params["length"]
        fixed, state, stacks = ins[:consts], ins[consts : consts + carry], ins[consts + carry :]
        rows: list[list[_Held]] = [[] for _ in op.outs[carry:]]
        for n in range(length)[:: -1 if op.params["reverse"] else 1]:
            here = [dataclasses.replace(held, x=held.x[n]) for held in stacks]
            outs = self.graph(body, [*fixed, *state, *here], (*trips, (op.source, n)))
            state = outs[:carry]
            for row, held in zip(rows, outs[carry:], strict=True):
                row.append(held)
        return [*state, *(_stacked(row[:: -1 if op.params["reverse"] else 1], v) for row, v in zip(rows, op.outs[carry:], strict=True))]

    def loop(self, op: ir.Op, ins: list[_Held], trips: tuple[tuple[str, int], ...]) -> list[_Held]:
        cond, body = op.bodies
        nc, nb = op.params["cond_nconsts"], op.params["body_nconsts"]
        state, n = ins[nc + nb :], 0
        while True:
            here = (*trips, (op.source, n))
            if not bool(self.graph(cond, [*ins[:nc], *state], here)[0].x):
                return state
            state, n = self.graph(body, [*ins[nc : nc + nb], *state], here), n + 1


def _constant(value: ir.Value) -> _Held:
    numbers = not jnp.issubdtype(value.dtype, jax.dtypes.extended)
    return _Held(jnp.asarray(value.const, value.dtype) if numbers else value.const, True, "constant")


def _stacked(row: list[_Held], value: ir.Value) -> _Held:
    if not row:
        return _Held(jnp.zeros(value.shape, value.dtype), True, "constant")
    return _Held(jnp.stack([held.x for held in row]), all(held.is_weight for held in row), row[0].made_by)


# ---- counts ----------------------------------------------------------------------------------------------------------
_Macs = tuple[int, int, int, int]  # in all; of nonzeros of the first operand, of the second, of both


def _counted(op: ir.Op, ins: Sequence[_Held], trips: tuple[tuple[str, int], ...], macs: _Macs) -> Counted:
    total, *left = macs
    first, second, both = (total - n for n in left)
    a, b = ins[0].is_weight, ins[1].is_weight
    of = lambda mine, its: both if mine and its else first if mine else second if its else 0
    operands = (_operand(ins[0]), _operand(ins[1]))
    return Counted(op.name, op.source, trips, operands, total, of(a, b), of(not a, not b), both)


def _operand(held: _Held) -> Operand:
    x = np.asarray(held.x)
    size = np.abs(x if np.issubdtype(x.dtype, np.complexfloating) else x.astype(np.float64)).reshape(-1)
    nonzero = size[size != 0]
    found = np.bincount(np.digitize(nonzero, MAGNITUDES), minlength=len(MAGNITUDES) + 1)
    return Operand(held.is_weight, x.shape, str(x.dtype), x.size - nonzero.size, (x.size - nonzero.size, *map(int, found)), held.made_by)


def _macs_of_dot(op: ir.Op, a: Any, b: Any) -> _Macs:
    """Nonzeros at each place of batch and contracted dimensions, of both operands in the same order; each meets all of the other's."""
    (ac, bc), (ab, bb) = op.params["dimension_numbers"]
    (na, ma), (nb, mb) = _places(a, (*ab, *ac)), _places(b, (*bb, *bc))
    return ma * mb * na.size, int(na.sum()) * mb, int(nb.sum()) * ma, int((na * nb).sum())


def _places(x: Any, dims: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """(nonzeros at each place of `dims`, elements at each)."""
    x = np.asarray(x)
    kept = tuple(d for d in range(x.ndim) if d not in dims)
    moved = np.transpose(x != 0, (*dims, *kept)).reshape(math.prod(x.shape[d] for d in dims), -1)
    each = math.prod(x.shape[d] for d in kept)
    return np.count_nonzero(moved.reshape(-1, each), axis=1).astype(np.int64), each


def _features(op: ir.Op) -> int:
    return op.ins[1].shape[op.params["dimension_numbers"].rhs_spec[0]]


def _macs_of_conv(op: ir.Op, x: Any, w: Any) -> _Macs:
    """The same convolution of ones: padding and holes are no terms."""
    ones = lambda x, every: jnp.ones(x.shape, jnp.float32) if every else jnp.asarray(x != 0, jnp.float32)
    how: dict[str, Any] = {"preferred_element_type": np.dtype(np.float32), "precision": lax.Precision.HIGHEST}
    count = lambda every_x, every_w: int(np.asarray(op.bind(ones(x, every_x), ones(w, every_w), **how)[0], np.int64).sum())
    return count(True, True), count(False, True), count(True, False), count(False, False)
