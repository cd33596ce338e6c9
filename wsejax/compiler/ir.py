"""A program as the compiler reads it: JAX's jaxpr with every call inlined and every value named once.

The only file that touches `jax.extend`, which carries no promise of stability.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np

from wsejax.fabric import PERMUTE

Primitive = jec.Primitive
CALLS = {
    "pjit": "jaxpr", "jit": "jaxpr", "closed_call": "call_jaxpr", "eval_jaxpr": "call_jaxpr", "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr",
}  # fmt: skip  # primitive name -> the parameter that holds the called jaxpr


@dataclasses.dataclass(eq=False)
class Value:
    """An array in the program: `const` is its concrete value if it is known when compiling, `made_by` the primitive behind it. On a cluster
    it `varies` if wafers have each their own."""

    shape: tuple[int, ...]
    dtype: Any
    const: Any = None
    made_by: str = ""
    varies: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * itemsize_bytes(self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(eq=False)
class Op:
    """One equation. `bodies` are the graphs of a loop's or branch's jaxprs, in the order in which the rule of `name` reads them."""

    name: str
    primitive: Any
    params: dict[str, Any]
    ins: list[Value]
    outs: list[Value]
    source: str
    bodies: tuple[Graph, ...] = ()

    def bind(self, *args, **changes):
        """Do the equation on plain arrays, with some parameters changed. Always a list of results."""
        out = self.primitive.bind(*args, **{**self.params, **changes})
        return list(out) if self.primitive.multiple_results else [out]


@dataclasses.dataclass(eq=False)
class Graph:
    """A straight line of ops. `ins` come from outside; constants are values with `const`."""

    ins: list[Value]
    ops: list[Op]
    outs: list[Value]

    def walk(self) -> Iterator[Op]:
        """Every op, those of loops and branches after the op that holds them."""
        for op in self.ops:
            yield op
            for body in op.bodies:
                yield from body.walk()


class UnsupportedOpError(NotImplementedError):
    """The program has an operation that the wafer cannot do yet; the message names it, its source line and the way out."""


def itemsize_bytes(dtype) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize  # a threefry key is two words


def _value(aval) -> Value:
    return Value(tuple(aval.shape), aval.dtype)


_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "orbax", "wsejax")


def source_line(eqn) -> str:
    """file:line (function) of the user's code behind an equation: the innermost frame outside JAX, flax, optax and wsejax;
    empty if there is none (a function that JAX traced before, for another caller)."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else []:
        if path := _users_file(frame.file_name):
            line = getattr(frame, "line_num", None) or getattr(frame, "start_line", 0)
            shown = os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else os.sep.join(path.split(os.sep)[-2:])
            return f"{shown}:{line} ({frame.function_name})"
    return ""


@functools.cache  # a program has tens of thousands of frames, in a few files
def _users_file(file_name: str) -> str:
    """The real path of a file of the user's; empty for one of the libraries."""
    path = os.path.realpath(file_name)
    site = tuple(dict.fromkeys(os.path.realpath(sysconfig.get_paths()[k]) + os.sep for k in ("purelib", "platlib")))
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep
    inside = next((path[len(root) :] for root in site if path.startswith(root)), None)
    ours = path.startswith((here, "<")) or (inside is not None and inside.split(os.sep)[0] in _LIBRARIES)
    return "" if ours else path


def read(closed, caller: str = "unknown source", keep: tuple[str, ...] = ()) -> Graph:
    """The graph of a closed jaxpr. Calls of jitted functions named in `keep` stay as ops of that name.

    Raises:
      UnsupportedOpError: the program has side effects (callbacks, prints) or calls that cannot be looked into.
    """
    jaxpr, consts = opened(closed)
    ins = [_value(v.aval) for v in jaxpr.invars]
    ops: list[Op] = []
    outs = _inline(jaxpr, [_constant(c) for c in consts], ins, ops, caller, keep)
    _mark_entangled(ops)
    return Graph(ins, _turn_products(ops, outs), outs)


ENTANGLED = "an update of what it is made of"


def _mark_entangled(ops: list[Op]) -> None:
    """Updates of a slice that are computed from the very array they go into: XLA:CPU may do both in one pass over it, in place, and then
    reads what it has written already. The result's `made_by` tells the rule."""
    made = {out: op for op in ops for out in op.outs}
    for op in ops:
        if op.name == "dynamic_update_slice":
            views, (x, *left) = set(), op.ins[:2]
            while x not in views:
                views.add(x)
                x = made[x].ins[0] if x in made and made[x].name in ("reshape", "squeeze", "slice", "transpose") else x
            seen: set[Value] = set()
            while left and not views & seen:
                value = left.pop()
                if value not in seen:
                    seen.add(value)
                    left += made[value].ins if value in made else []
            if views & seen:
                op.outs[0].made_by = ENTANGLED


def read_blocks(closed, keep: tuple[str, ...] = ()) -> Graph | None:
    """The graph of what the first `shard_map` of a jaxpr does on a block, None where there is none."""
    for eqn in opened(closed)[0].eqns:
        if eqn.primitive.name == "shard_map":
            return read(eqn.params["jaxpr"], keep=keep)
        for inner in jec.jaxprs_in_params(eqn.params):
            if (found := read_blocks(inner, keep)) is not None:
                return found
    return None


def _turn_products(ops: list[Op], outs: list[Value]) -> list[Op]:
    """Products whose only use is a transpose of (A's kept, B's kept) into (B's kept, A's kept) are done as B A instead, unless B is larger.

    Autodiff writes a weight's gradient that way, contracted over the leading dimensions of both operands. Turned, its result needs no
    transpose; but on CPU the first operand is copied, so the smaller one goes first.
    """
    uses: dict[Value, int] = {}
    for v in [v for op in ops for v in op.ins] + outs:
        uses[v] = uses.get(v, 0) + 1
    made = {op.outs[0]: op for op in ops if op.name == "dot_general"}
    gone: set[int] = set()
    turned: list[Op] = []
    for op in ops:
        product = made.get(op.ins[0]) if op.name == "transpose" else None
        if product is not None and uses[op.ins[0]] == 1:
            (ac, bc), (ab, bb) = product.params["dimension_numbers"]
            a, b = product.ins
            kept_a, kept_b = a.ndim - len(ac), b.ndim - len(bc)
            turning = tuple(op.params["permutation"]) == (*range(kept_a, kept_a + kept_b), *range(kept_a))
            if turning and not ab and b.size_bytes <= a.size_bytes:
                precision = product.params.get("precision")
                swapped = {
                    "dimension_numbers": ((bc, ac), (bb, ab)),
                    "precision": precision[::-1] if isinstance(precision, tuple) else precision,
                }
                op.outs[0].made_by = "dot_general"
                gone.add(id(product))
                op = Op("dot_general", product.primitive, {**product.params, **swapped}, [b, a], op.outs, product.source)
        turned.append(op)
    return [op for op in turned if id(op) not in gone]


def opened(closed) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and the values of its constants, where it carries them."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())  # one class from jax 0.12 on, two before


def _constant(x) -> Value:
    aval = jax.typeof(x)
    return Value(tuple(aval.shape), aval.dtype, x)


def _inline(jaxpr, consts: list[Value], args: list[Value], ops: list[Op], caller: str, keep: tuple[str, ...] = ()) -> list[Value]:
    """Append the ops of a jaxpr; `caller` is the source line of equations whose own is inside a library."""
    env: dict[Any, Value] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def get(v) -> Value:
        return _constant_like(v) if isinstance(v, jec.Literal) else env[v]

    for eqn in jaxpr.eqns:
        name, ins = eqn.primitive.name, [get(v) for v in eqn.invars]
        source = source_line(eqn) or caller
        if any(type(e).__name__ != "NamedAxisEffect" for e in eqn.effects):  # that one is of a kernel's own mesh
            raise UnsupportedOpError(
                f"{name} at {source} has side effects ({', '.join(str(e) for e in eqn.effects)}): a wafer program is a pure "
                "function; take callbacks, prints and checks out of it and return what they need"
            )
        if name == "custom_linear_solve":  # after differentiation only its solver is left to run
            lengths, solve = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
            skip, count = lengths.matvec + lengths.vecmat, lengths.solve
            args = [*ins[skip : skip + count], *ins[sum(lengths) :]]
            body, body_consts = opened(solve)
            outs = _inline(body, [_constant(c) for c in body_consts], args, ops, source, keep)
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        if name in CALLS and (called := eqn.params.get("name")) in keep:
            outs = [_value(v.aval) for v in eqn.outvars]
            ops.append(Op(called, eqn.primitive, dict(eqn.params), ins, outs, source))
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        if name in CALLS:
            body, body_consts = opened(eqn.params[CALLS[name]])
            if name in ("checkpoint", "remat", "remat2") and eqn.params.get("prevent_cse", True) and eqn.params.get("differentiated"):
                ins = _barrier(ins, ops, source)
            outs = _inline(body, [_constant(c) for c in body_consts], ins, ops, source, keep)
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        params = dict(eqn.params)
        params.update(dict.fromkeys(params.keys() & {"sharding", "out_sharding"}))  # of a mesh outside: layouts are chosen here
        if name == "reshape" and params.get("dimensions") is not None:  # the transpose that it hides is an op of its own
            turned = Value(tuple(ins[0].shape[d] for d in params["dimensions"]), ins[0].dtype)
            ops.append(Op("transpose", jax.lax.transpose_p, {"permutation": params["dimensions"]}, ins, [turned], source))
            ins, params["dimensions"] = [turned], None
        if name == "while" and params["cond_jaxpr"].out_avals[0].ndim:
            ins, params = [*ins[: params["cond_nconsts"]], *ins], _one_condition(params)
        if eqn.outvars and (folded := _fold(name, params, ins, eqn.outvars[0].aval)) is not None:
            env[eqn.outvars[0]] = Value(folded.shape, folded.dtype, folded)
            continue
        outs = [Value(tuple(v.aval.shape), v.aval.dtype, made_by=name) for v in eqn.outvars]
        bodies = tuple(read(j, source, keep) for j in _bodies(name, params))
        ops.append(Op(name, eqn.primitive, params, ins, outs, source, bodies))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [get(v) for v in jaxpr.outvars]


def _fold(name: str, params: dict[str, Any], ins: list[Value], out) -> np.ndarray | None:
    """Indices that the program writes as operations on numbers: where an update goes is then known when compiling."""
    if name not in ("broadcast_in_dim", "concatenate") or out.ndim != 1 or out.size > 8 or not jnp.issubdtype(out.dtype, jnp.integer):
        return None
    if any(v.const is None or jnp.issubdtype(v.dtype, jax.dtypes.extended) for v in ins) or (name == "broadcast_in_dim" and ins[0].ndim):
        return None
    parts = [np.asarray(v.const, v.dtype) for v in ins]
    return np.broadcast_to(parts[0], out.shape) if name == "broadcast_in_dim" else np.concatenate(parts)


def _constant_like(literal) -> Value:
    return Value(tuple(literal.aval.shape), literal.aval.dtype, literal.val)


def _barrier(ins: list[Value], ops: list[Op], source: str) -> list[Value]:
    """Keeps XLA from merging a recomputed forward pass with the first one, which would undo the user's remat."""
    moving = list({id(v): v for v in ins if v.const is None}.values())
    outs = {id(v): Value(v.shape, v.dtype) for v in moving}
    if moving:
        ops.append(Op("optimization_barrier", None, {}, moving, list(outs.values()), source))
    return [outs.get(id(v), v) for v in ins]


def _one_condition(params: dict[str, Any]) -> dict[str, Any]:
    """A `while` that vmap gave a condition for each example, as one that goes on while any holds and keeps what has ended."""
    conds, bodies = params["cond_nconsts"], params["body_nconsts"]
    holds, step = jec.jaxpr_as_fun(params["cond_jaxpr"]), jec.jaxpr_as_fun(params["body_jaxpr"])
    ins_of = {k: params[k].in_avals for k in ("cond_jaxpr", "body_jaxpr")}

    def keep_ended(*xs):
        old = xs[conds + bodies :]
        (on,) = holds(*xs[:conds], *old)
        spread = lambda x: jax.lax.broadcast_in_dim(on, x.shape, range(on.ndim))
        return [jax.lax.select(spread(x), new, x) for x, new in zip(old, step(*xs[conds:]), strict=True)]

    return {
        **params,
        "cond_jaxpr": jax.make_jaxpr(lambda *xs: jnp.any(holds(*xs)[0]))(*ins_of["cond_jaxpr"]),
        "body_jaxpr": jax.make_jaxpr(keep_ended)(*ins_of["cond_jaxpr"][:conds], *ins_of["body_jaxpr"]),
        "body_nconsts": conds + bodies,
    }


def _bodies(name: str, params: dict[str, Any]) -> list[Any]:
    if name == "scan":
        return [params["jaxpr"]]
    if name == "while":
        return [params["cond_jaxpr"], params["body_jaxpr"]]
    if name == "cond":
        return list(params["branches"])
    return []


def scan_split(op: Op) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan. Counted from ranks: the parameters that say it differ between
    jax 0.10 (num_consts, num_carry) and 0.12 (ft_in)."""
    (body,) = op.bodies
    carry = sum(o.ndim == v.ndim for o, v in zip(op.outs, body.outs, strict=True))
    scanned = sum(i.ndim != v.ndim for i, v in zip(op.ins, body.ins, strict=True))
    return len(op.ins) - scanned - carry, carry


def is_literal(v) -> bool:
    """Whether an equation's operand is a number written into it, `v.val`."""
    return isinstance(v, jec.Literal)


def inner_jaxprs(eqn) -> list[Any]:
    """The jaxprs that an equation calls, without their constants."""
    return [opened(inner)[0] for inner in jec.jaxprs_in_params(eqn.params)]


COLLECTIVES = {
    "psum", "psum2", "psum_invariant", "pmax", "pmin", PERMUTE, "all_gather", "all_gather_invariant", "all_to_all", "reduce_scatter",
    "psum_scatter", "ragged_all_to_all", "pgather", "pbroadcast",
}  # fmt: skip


def collectives(closed, devices: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(name, bytes times hops on all lines of the device mesh) of every collective in a jaxpr; loops multiply it, a `while` counts once."""

    def walk(jaxpr, trips: int) -> Iterator[tuple[str, int]]:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name in COLLECTIVES:
                axes = eqn.params.get("axis_name") or ()
                hops = sum(abs(b - a) for a, b in eqn.params.get("perm", ()))
                lines = math.prod(n for a, n in devices.items() if a not in axes)
                yield name, trips * hops * lines * sum(_value(v.aval).size_bytes for v in eqn.invars)
            times = trips * eqn.params["length"] if name == "scan" else trips
            for inner in inner_jaxprs(eqn):
                yield from walk(inner, times)

    yield from walk(opened(closed)[0], 1)
