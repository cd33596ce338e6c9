"""The rule of the user's own kernels (`wse.wafer_map`): blocks in, blocks out, and nothing moves but by the fabric."""

from __future__ import annotations

import jax

from wsejax.compiler.extend import Kernel
from wsejax.compiler.ir import Op, UnsupportedOpError, collectives
from wsejax.compiler.pin import as_layout
from wsejax.compiler.walk import Context, Step, rule


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
    for name, moved in collectives(jax.make_jaxpr(kernel)(*shapes), ctx.devices):
        if name != "ppermute":
            raise UnsupportedOpError(
                f"{name} in {kernel.name} at {op.source}: only wsejax.fabric moves data between PEs; use its collectives"
            )
        hops += moved
    ins = [as_layout(spec, v.ndim, "in_specs") for spec, v in zip(kernel.in_specs, op.ins, strict=True)]
    outs = [as_layout(spec, v.ndim, "out_specs") for spec, v in zip(kernel.out_specs, op.outs, strict=True)]
    return Step(ins, outs, kernel.f, [ctx.call("kernel", kernel.name, op, ins, outs, byte_hops=hops)])
