"""Functions computed in a floating-point format that JAX does not have, held in float32 and rounded after every operation.

JAX differentiates the function as it is written, and what it makes of it, forward and backward, is then read equation by equation and done
anew on rounded values. So custom derivatives, loops, branches and remat are JAX's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from wsejax.compiler.ir import CALLS, UnsupportedOpError, inner_jaxprs, is_literal, opened, source_line
from wsejax.kernels.formats import Format, round_to

# What gives no number that was not there before, up to its sign: rounding again would change nothing.
MOVES = {
    "abs", "argsort", "broadcast_in_dim", "clamp", "concatenate", "copy", "copy_p", "cummax", "cummin", "device_put", "dynamic_slice",
    "dynamic_update_slice", "expand_dims", "gather", "max", "min", "neg", "optimization_barrier", "pad", "real", "reduce_max", "reduce_min",
    "reduce_window_max", "reduce_window_min", "reshape", "rev", "scatter", "select_n", "sign", "slice", "sort", "split", "squeeze",
    "stop_gradient", "tile", "top_k", "transpose",
}  # fmt: skip
_LOOPS = ("scan", "while", "cond")
_COMBINING = ("scatter", "reduce")  # beginnings of names, of what holds how two numbers are combined
_BODIES = {"jaxpr", "cond_jaxpr", "body_jaxpr", "branches", "update_jaxpr"}
_REMAT = ("checkpoint", "remat", "remat2")


def emulated(fun: Callable[..., Any], format: Format, dtype: Any = jnp.float32) -> Callable[..., Any]:
    """`fun` with every value of `dtype` a value of `format`, held in float32.

    Operands are rounded as they come in, constants where they are used, and the result of every operation once, after it was done in
    float32: so sums and products accumulate in float32. Operations that move numbers or pick among them do not round.

    With dtype float16 or bfloat16 that is a stand-in: a model that is written for it computes in `format` what it would compute in 16
    bits, and keeps in float32 what it keeps there (norms' statistics, softmax, losses). Arguments and results of the stand-in's dtype
    come and go in float32. With float32 all of a function is computed in the format.

    The gradient is computed so, too: cotangents are rounded like values. What is differentiated must be an argument; there is no
    forward mode. A product by a constant or of two numbers, a sum, a quotient and a square root are rounded right in any format of at
    most 11 bits of precision, as if there were no float32 between (24 >= 2 x 11 + 2).

    Raises, when it is called:
      UnsupportedOpError: an operation that holds a program of its own which cannot be read, such as a linear solve.
    """
    held = _Held(format, jnp.dtype(dtype))

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        moving = [n for n, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
        rest = [None if n in moving else x for n, x in enumerate(leaves)]
        differentiable = [held.taken_in(leaves[n]) for n in moving]
        shapes = [jax.ShapeDtypeStruct(jnp.shape(leaves[n]), jnp.result_type(leaves[n])) for n in moving]
        noted: dict[str, Any] = {}  # by the forward pass for the backward one: structures, known once they are traced

        def plain(xs: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
            filled = dict(enumerate(rest)) | dict(zip(moving, xs, strict=True))
            args, kwargs = jax.tree.unflatten(tree, [filled[n] for n in range(len(leaves))])
            out, noted["tree"] = jax.tree.flatten(fun(*args, **kwargs))
            return out

        def vjp(xs: Sequence[Any], rest: Sequence[Any]) -> tuple[list[Any], Any]:
            return jax.vjp(lambda xs: plain(xs, rest), xs)

        def forward(xs: Sequence[Any], rest: Sequence[Any]) -> tuple[list[Any], Any]:
            closed, (outs, pullback) = jax.make_jaxpr(vjp, return_shape=True)(shapes, rest)
            noted["outs"], noted["pullback"] = outs, pullback
            found = held.run(closed, [*xs, *jax.tree.leaves(rest)])
            return found[: len(outs)], found[len(outs) :]

        def backward(saved: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, Any]:
            outs = noted["outs"]
            real = [n for n, out in enumerate(outs) if jnp.issubdtype(out.dtype, jnp.inexact)]

            def pull(pullback: Any, given: Sequence[Any]) -> Any:
                zeros = {n: np.zeros(out.shape, jax.dtypes.float0) for n, out in enumerate(outs)}
                zeros |= dict(zip(real, given, strict=True))
                return pullback([zeros[n] for n in range(len(outs))])

            closed = jax.make_jaxpr(pull)(noted["pullback"], [outs[n] for n in real])
            given = [held.rounded(cotangents[n]) if held.stands(outs[n].dtype) else cotangents[n] for n in real]
            return held.run(closed, [*saved, *given]), None

        @jax.custom_vjp
        def emulation(xs: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
            return held.run(jax.make_jaxpr(plain)(shapes, rest), [*xs, *jax.tree.leaves(rest)])

        emulation.defvjp(forward, backward)
        out = emulation(differentiable, rest)
        return jax.tree.unflatten(noted["tree"], out)

    return call


class _Held:
    """Values of `dtype` in a program, held as values of `format` in float32; of float32 itself without one."""

    def __init__(self, format: Format | None, dtype: Any) -> None:
        self.format, self.dtype = format, dtype

    def stands(self, dtype: Any) -> bool:
        return dtype == self.dtype

    def rounded(self, x: Any) -> Any:
        wide = jnp.asarray(x, jnp.float32)
        return wide if self.format is None else round_to(wide, self.format)

    def taken_in(self, x: Any) -> Any:
        return self.rounded(x) if self.stands(jnp.result_type(x)) else x

    def constant(self, x: Any) -> Any:
        if not self.stands(jnp.result_type(x)) or isinstance(x, jax.core.Tracer):
            return self.taken_in(x)
        with jax.ensure_compile_time_eval():
            return self.rounded(x)

    def run(self, closed: Any, args: Sequence[Any]) -> list[Any]:
        """The results of a jaxpr on held values."""
        jaxpr, consts = opened(closed)
        env = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
        get = lambda v: self.constant(v.val) if is_literal(v) else env[v]
        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [get(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [get(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Any]) -> Sequence[Any]:
        name, params = eqn.primitive.name, dict(eqn.params)
        if name in CALLS:
            if name in _REMAT and params["prevent_cse"] and params["differentiated"]:
                ins = lax.optimization_barrier(ins)  # else XLA merges what is done again with the first time
            return self.run(params[CALLS[name]], ins)
        for key, value in params.items():
            if isinstance(value, np.dtype) and self.stands(value):
                params[key] = jnp.dtype(jnp.float32)
        if inner_jaxprs(eqn):
            bodies = _BODIES & params.keys()
            if name not in _LOOPS and not name.startswith(_COMBINING):
                raise UnsupportedOpError(
                    f"{name} at {source_line(eqn) or 'unknown source'} holds a program that cannot be emulated in {self.format}: leave the "
                    "function that calls it out, or write it with operations of jax.numpy and jax.lax"
                )
            how = self if name in _LOOPS else _Held(None, self.dtype)  # what combines many numbers rounds once, at the end
            for key in bodies:
                params[key] = tuple(map(how.body, params[key])) if isinstance(params[key], tuple) else how.body(params[key])
            if name in _LOOPS:
                return eqn.primitive.bind(*ins, **params)
        if name == "bitcast_convert_type" and self.dtype != jnp.float32:  # bits are those of the stand-in
            ins = [x.astype(v.aval.dtype) for x, v in zip(ins, eqn.invars, strict=True)]
            params["new_dtype"] = eqn.params["new_dtype"]
        out = eqn.primitive.bind(*ins, **params)
        outs = out if eqn.primitive.multiple_results else [out]
        round_them = name not in MOVES
        return [self.rounded(x) if round_them and self.stands(v.aval.dtype) else x for x, v in zip(outs, eqn.outvars, strict=True)]

    def body(self, closed: Any) -> Any:
        """The jaxpr of a loop or branch, on held values; open or closed as it was."""
        jaxpr, _ = opened(closed)
        held = lambda v: jax.ShapeDtypeStruct(v.aval.shape, jnp.float32 if self.stands(v.aval.dtype) else v.aval.dtype)
        made = jax.make_jaxpr(lambda *xs: self.run(closed, xs))(*map(held, jaxpr.invars))
        return made if type(made) is type(closed) else opened(made)[0]
