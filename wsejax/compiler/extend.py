"""For kernels and rules that are not ours: `wafer_map` and `register_rule`."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import batching
from jax.sharding import PartitionSpec

from wsejax import fabric
from wsejax.compiler.ir import Primitive
from wsejax.compiler.pin import as_layout
from wsejax.compiler.walk import RULES, Rule, rule
from wsejax.hardware.wafer import Wafer


def register_rule(primitive: Primitive | str, *, replace: bool = False) -> Callable[[Rule], Rule]:
    """Teach the compiler a primitive: a decorator of `rule(op, ctx) -> Step`.

    Args:
      primitive: the primitive, or its name.
      replace: allow that it has a rule already.

    `op` has `ins` and `outs` (values with `shape` and `dtype`), `params`, and `bind(*blocks)`, which does the operation on plain arrays.
    `ctx.layouts[value]` is the layout chosen for a value. The `Step` that is returned says in which layouts the operands' blocks are
    wanted, in which the results' blocks come, and what runs on them: JAX and `wsejax.fabric`, nothing else that moves data.

    Raises:
      ValueError: the primitive has a rule, and `replace` is not set.
    """
    name = primitive if isinstance(primitive, str) else primitive.name
    if name in RULES and not replace:
        raise ValueError(f"primitive={name!r} has a rule already: pass replace=True to take its place")
    return rule(name)


def wafer_map(f: Callable, wafer: Wafer, in_specs: Any, out_specs: Any) -> Callable:
    """`f` on every device's block, with `wsejax.fabric` to talk to the neighbours: `jax.shard_map` over a wafer.

    The function that comes back takes and gives whole arrays. It works by itself, in `jax.jit`, and inside `wse.jit` for the same
    wafer, under `jax.grad` (reverse mode; the forward pass is repeated), `jax.vmap` and loops. Its results may depend on the
    devices if `f` lets them: give arrays the tile grid as leading axes, and move them by `fabric.shift`, to keep to the tiles.
    The gradient of an argument that is replicated is added up device by device.

    On a wafer with execution="physical" `f` gets blocks of the physical grid, one entry a PE, with poison in every PE that is not of the
    mesh (`fabric.poison`); arrays have the PE grid as neighbouring dimensions P("y", "x"), or are whole, and then have no gradient.

    Args:
      f: function of blocks; pytrees of arrays in and out.
      wafer: gives the mesh.
      in_specs: PartitionSpecs over ("y", "x"), a pytree prefix of the tuple of arguments; a dimension has one axis at most.
      out_specs: the same of the results.

    Raises:
      ValueError: a malformed spec; when called, a dimension that its axis does not divide.
    """

    def specs_of(prefix: Any, tree: Any) -> tuple[PartitionSpec, ...]:
        is_spec = lambda s: isinstance(s, PartitionSpec)
        spread = jax.tree.map(lambda s, part: jax.tree.map(lambda _: s, part), prefix, tree, is_leaf=is_spec)
        return tuple(jax.tree.leaves(spread, is_leaf=is_spec))

    name = getattr(f, "__name__", None) or getattr(getattr(f, "func", None), "__name__", type(f).__name__)  # of a partial, the function's

    @functools.wraps(f)
    def mapped(*args):
        leaves, tree = jax.tree.flatten(args)
        ins = specs_of(in_specs, args)
        _check("in_specs", ins, [jnp.shape(x) for x in leaves], wafer)
        shape_of = jax.eval_shape(lambda *args: fabric.on_wafer(f, wafer, in_specs, out_specs)(*args), *args)
        outs, out_tree = specs_of(out_specs, shape_of), jax.tree.structure(shape_of)
        _check("out_specs", outs, [x.shape for x in jax.tree.leaves(shape_of)], wafer)
        forward = Kernel(lambda *blocks: jax.tree.leaves(f(*jax.tree.unflatten(tree, blocks))), wafer, ins, outs, name)
        floats = [n for n, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
        given = [n for n, x in enumerate(jax.tree.leaves(shape_of)) if jnp.issubdtype(x.dtype, jnp.inexact)]

        def backward(moving: list[int]) -> Kernel:
            def pull_back(*blocks):
                blocks, cotangents = blocks[: len(leaves)], blocks[len(leaves) :]

                def of_moving(*some):
                    results = forward.f(*(some[moving.index(n)] if n in moving else b for n, b in enumerate(blocks)))
                    return [results[n] for n in given]

                _, pull = jax.vjp(of_moving, *(blocks[n] for n in moving))
                grads = pull([_once(ct, outs[n]) for ct, n in zip(cotangents, given, strict=True)])
                return [_summed(g, ins[n]) for g, n in zip(grads, moving, strict=True)]

            return Kernel(pull_back, wafer, (*ins, *(outs[n] for n in given)), tuple(ins[n] for n in moving), f"gradient of {name}")

        @jax.custom_vjp
        def run(*leaves):
            return tuple(_call(forward, *leaves))

        def run_forward(*primals):
            leaves = [p.value for p in primals]
            wanted = [() if p.perturbed else None for p in primals]  # told by the structure: a residual has no static part
            return run(*leaves), (leaves, wanted)

        def run_back(residual, cotangents):
            leaves, wanted = residual
            moving = [n for n in floats if wanted[n] is not None]
            results = jax.tree.leaves(shape_of)
            whole = [jnp.zeros_like(results[n]) if isinstance(cotangents[n], SymbolicZero) else cotangents[n] for n in given]
            grads = _call(backward(moving), *leaves, *whole)
            zero = lambda n, x: jnp.zeros_like(x) if n in floats else np.zeros(jnp.shape(x), jax.dtypes.float0)
            return tuple(grads[moving.index(n)] if n in moving else zero(n, x) for n, x in enumerate(leaves))

        run.defvjp(run_forward, run_back, symbolic_zeros=True)
        return jax.tree.unflatten(out_tree, run(*leaves))

    mapped.mapped = mapped, f, wafer, in_specs  # pyright: ignore[reportAttributeAccessIssue]  # for who counts its traffic
    return mapped


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A function of flat blocks with its specs: the parameter of the primitive `wafer_map`."""

    f: Callable
    wafer: Wafer
    in_specs: tuple[PartitionSpec, ...]
    out_specs: tuple[PartitionSpec, ...]
    name: str

    def __call__(self, *arrays):
        return list(fabric.on_wafer(lambda *blocks: tuple(self.f(*blocks)), self.wafer, self.in_specs, self.out_specs)(*arrays))

    def batched(self, dims) -> Kernel:
        """The kernel of many, along dimension `dims[i]` of operand i and the first of every result."""
        axes = list(dims)
        ins = [
            spec if d is None else PartitionSpec(*(*spec, *(None,) * d)[:d], None, *spec[d:])
            for spec, d in zip(self.in_specs, axes, strict=True)
        ]
        outs = tuple(PartitionSpec(None, *spec) for spec in self.out_specs)
        return dataclasses.replace(self, f=jax.vmap(self.f, in_axes=axes), in_specs=tuple(ins), out_specs=outs)


# Inside wse.jit a kernel is a primitive of its own, which JAX cannot take apart: of a shard_map it would move pieces, with layouts of
# their own, out of loops. Elsewhere it is a shard_map, from which jax.jit learns the devices.
inside_wse_jit: contextvars.ContextVar[bool] = contextvars.ContextVar("inside_wse_jit", default=False)
wafer_map_p = Primitive("wafer_map")
wafer_map_p.multiple_results = True
wafer_map_p.def_abstract_eval(lambda *avals, kernel: [jax.typeof(x) for x in jax.tree.leaves(jax.eval_shape(kernel, *avals))])
batching.primitive_batchers[wafer_map_p] = lambda xs, dims, *, kernel: (
    wafer_map_p.bind(*xs, kernel=kernel.batched(dims)),
    [0] * len(kernel.out_specs),
)


def _call(kernel: Kernel, *arrays) -> list[Any]:
    if inside_wse_jit.get() and kernel.wafer.execution == "physical":
        raise ValueError(
            f"wse.jit: {kernel.name} is mapped over a wafer with execution='physical', which runs in jax.jit; for wse.jit map it over "
            "wafer.replace(execution='logical')"
        )
    return wafer_map_p.bind(*arrays, kernel=kernel) if inside_wse_jit.get() else kernel(*arrays)


def _check(what: str, specs: Sequence[PartitionSpec], shapes: Sequence[tuple[int, ...]], wafer: Wafer) -> None:
    tiles = dict(zip(fabric.AXES, wafer.tiles, strict=True))
    for n, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        for size, axis in zip(shape, as_layout(spec, len(shape), f"{what}[{n}]"), strict=True):
            if axis and size % tiles[axis]:
                raise ValueError(
                    f"{what}[{n}]={spec}: a dimension of {size} does not divide by the {tiles[axis]} tiles of axis {axis!r}; pad it, or "
                    "leave it whole (None)"
                )


def _replicated(spec: PartitionSpec) -> list[str]:
    return [axis for axis in fabric.AXES if axis not in spec]


def _once(cotangent, spec: PartitionSpec):
    """A replicated result's cotangent comes to every device that holds the result: each takes its part of it."""
    count = 1
    for axis in _replicated(spec):
        count *= fabric.size(axis)
    return cotangent if count == 1 else cotangent / count


def _summed(gradient, spec: PartitionSpec):
    if _replicated(spec) and fabric.machine() is not None:
        raise ValueError(
            f"spec={spec}: physically a whole argument has no gradient, since PEs outside the mesh would add poison to it; give every PE "
            "its copy, P('y', 'x')"
        )
    for axis in _replicated(spec):
        if fabric.size(axis) > 1:
            gradient = fabric.in_order(fabric.gather(gradient[None], axis, 0), 0)
    return gradient
