"""The rule of the user's own kernels (`wse.wafer_map`): blocks in, blocks out, and nothing moves but by the fabric."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from wsejax import fabric
from wsejax.compiler.extend import Kernel
from wsejax.compiler.ir import Graph, Op, UnsupportedOpError, collectives, read_blocks
from wsejax.compiler.pin import as_layout
from wsejax.compiler.program import Array, Call, Loop, Unknown
from wsejax.compiler.walk import Context, Step, rule
from wsejax.compiler.work import flops_of, work_of
from wsejax.kernels.work import Elementwise, Product, Shift, Work


@rule("wafer_map")
def wafer_map(op: Op, ctx: Context) -> Step:
    kernel: Kernel = op.params["kernel"]
    if kernel.wafer.devices != tuple(ctx.devices.values()) or kernel.wafer.tiles != tuple(ctx.tiles.values()):
        raise UnsupportedOpError(
            f"{kernel.name} at {op.source} is mapped over {kernel.wafer.tiles} tiles on {kernel.wafer.devices} devices, the program over "
            f"{tuple(ctx.tiles.values())} on {tuple(ctx.devices.values())}: give wse.wafer_map the wafer of wse.jit"
        )
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in op.ins]
    hops = 0
    closed = jax.make_jaxpr(kernel)(*shapes)
    for name, moved in collectives(closed, ctx.devices):
        if name != fabric.PERMUTE:
            raise UnsupportedOpError(
                f"{name} in {kernel.name} at {op.source}: only wsejax.fabric moves data between PEs; use its collectives"
            )
        hops += moved
    ins = [as_layout(spec, v.ndim, "in_specs") for spec, v in zip(kernel.in_specs, op.ins, strict=True)]
    outs = [as_layout(spec, v.ndim, "out_specs") for spec, v in zip(kernel.out_specs, op.outs, strict=True)]
    blocks = read_blocks(closed, tuple(fabric.SHIFT_NAMES))
    inside = [] if blocks is None else _inside(blocks, kernel, ctx, not any(_inexact(op) for op in blocks.walk()))
    call = ctx.call("kernel", kernel.name, op, ins, outs, byte_hops=hops)
    if inside:  # the first waits for what the kernel reads, the last has made its results
        inside[0] = dataclasses.replace(inside[0], ins=(*inside[0].ins, *call.ins))
        inside[-1] = dataclasses.replace(inside[-1], outs=call.outs)
    return Step(ins, outs, kernel.f, [call, *inside])


def _inexact(op: Op) -> bool:
    return any(jnp.issubdtype(v.dtype, jnp.inexact) for v in op.outs)


def _inside(graph: Graph, kernel: Kernel, ctx: Context, integers: bool) -> list[Call]:
    """The work of a kernel op by op, for its price: shifts, and arithmetic on what every PE holds. Blocks are of one device.

    An upper bound: shifts follow one another although a machine would pipeline them, and all PEs send although masks spare some. Masks,
    indices and choices are how the emulation says who does what; on a machine that is the program text of each PE, and costs nothing;
    only a program without any fraction (`integers`) computes with whole numbers.
    """
    calls: list[Call] = []
    devices = math.prod(kernel.wafer.devices)
    for op in graph.ops:
        number = ctx.number(op.outs[0]) if op.outs else -1
        if op.name == "scan":
            loop = Loop(op.source, op.params["length"], number)
            calls += [c.looped(loop) for c in _inside(op.bodies[0], kernel, ctx, integers)]
        elif op.bodies:
            every = len(op.bodies)
            branch = lambda n, op=op, every=every, number=number: Unknown(op.source, number, *((n, every) if op.name == "cond" else ()))
            calls += [c.inside(branch(n)) for n, body in enumerate(op.bodies) for c in _inside(body, kernel, ctx, integers)]
        elif op.name in fabric.SHIFT_NAMES:
            axis, _ = fabric.DIRECTIONS[fabric.SHIFT_NAMES[op.name]]
            line, lines = kernel.wafer.tiles if axis == "y" else kernel.wafer.tiles[::-1]
            message = devices * sum(v.size_bytes for v in op.outs) // (line * lines)
            calls.append(_call(kernel, op, (Shift(axis, line, lines, message),), 0))
        elif op.name == "select_n" or not (integers or _inexact(op)):
            continue
        elif work := work_of(op, [(None,) * v.ndim for v in op.ins], [(None,) * v.ndim for v in op.outs], "chain"):
            every = tuple(dataclasses.replace(w, **_times(w, devices)) for w in work)
            calls.append(_call(kernel, op, every, devices * flops_of(op)))
    return calls


def _times(work: Work, devices: int) -> dict[str, int]:
    """A device's share of some work made the whole grid's."""
    if isinstance(work, Elementwise):
        return {name: getattr(work, name) * devices for name in ("elements", "special", "flops")}
    return {"batch": work.batch * devices} if isinstance(work, Product) else {}


def _call(kernel: Kernel, op: Op, work: tuple[Work, ...], flops: int) -> Call:
    arrays = lambda values: tuple(Array.of(v, (None,) * v.ndim) for v in values)
    return Call("inside", op.name, f"{kernel.name}: {op.name}", arrays(op.ins), arrays(op.outs), op.source, flops=flops, work=work)
