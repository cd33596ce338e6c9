"""Rules of operations that work element by element, and of small work that every block does alike."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from wsejax import fabric
from wsejax.compiler.ir import Op
from wsejax.compiler.walk import Context, Step, rule, whole

ELEMENTWISE = tuple(
    """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz complex conj
convert_element_type copy copy_p cos cosh digamma empty2 eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter not one_minus_square
or platform_index polygamma polynomial population_count pow random_gamma_grad real reduce_precision regularized_incomplete_beta rem round
rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
tanh xor zeta
""".split()  # noqa: SIM905  a list of names reads better as text
)


@rule(*ELEMENTWISE)
def elementwise(op: Op, ctx: Context) -> Step:
    out = op.outs[0]
    if any(v.ndim not in (0, out.ndim) for v in op.ins):  # a bitcast to another width adds or drops a dimension
        return Step([whole(v) for v in op.ins], [whole(out)], op.bind)
    lay = ctx.layouts[out]
    stretched = [tuple(a if n == m else None for a, n, m in zip(lay, v.shape, out.shape, strict=True)) if v.ndim else () for v in op.ins]
    return Step(stretched, [lay], op.bind)  # an operand's dimension of size 1 is stretched, hence never split


@rule("div")
def div(op: Op, ctx: Context) -> Step:
    """XLA turns x / broadcast(d) into x * broadcast(1 / d) where it recognises it, which the device mesh can change: do it always."""
    step, (out,), d = elementwise(op, ctx), op.outs, op.ins[1]
    stretched = d.made_by == "broadcast_in_dim" or d.shape != out.shape
    if not (ctx.steady and stretched and jnp.issubdtype(out.dtype, jnp.floating)):
        return step
    return dataclasses.replace(step, run=lambda x, d: [x * (jnp.ones_like(d) / d)])


@rule("optimization_barrier")
def barrier(op: Op, ctx: Context) -> Step:
    lays = [ctx.layouts[v] for v in op.ins]
    return Step(lays, lays, lambda *xs: lax.optimization_barrier(xs))


@rule("with_layout")
def pinned(op: Op, ctx: Context) -> Step:
    lay = ctx.layouts[op.outs[0]]
    return Step([lay], [lay], lambda x: [x])


@rule("device_put", "reshard")
def device_put(op: Op, ctx: Context) -> Step:
    """Where in a machine's memory an array lies is not the program's business here."""
    lays = [ctx.layouts[v] for v in op.ins]
    return Step(lays, lays, lambda *xs: xs)


@rule("iota")
def iota(op: Op, ctx: Context) -> Step:
    lay, dim = ctx.layouts[op.outs[0]], op.params["dimension"]
    shape = ctx.block(op.outs[0].shape, lay)

    def run():
        if lay[dim] is None:
            return op.bind(shape=shape)
        (x,) = op.bind(shape=shape, dtype=jnp.dtype(jnp.int32))  # added before the cast, so that it rounds once
        return [(x + fabric.coordinate(lay[dim]) * shape[dim]).astype(op.outs[0].dtype)]

    return Step([], [lay], run)


@rule("random_bits", "random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in", "random_clone", "threefry2x32",
      "rng_bit_generator", "random_gamma", "rng_uniform")  # fmt: skip
def replicated(op: Op, ctx: Context) -> Step:
    """Every block draws all the bits, the same as plain JAX's, and keeps its share."""
    ins, outs = [whole(v) for v in op.ins], [whole(v) for v in op.outs]
    big = any(v.size_bytes > 1024 for v in op.outs)
    return Step(ins, outs, op.bind, [ctx.call("replicated", op.name, op, ins, outs)] if big else ())
