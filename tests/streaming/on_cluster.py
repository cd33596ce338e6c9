"""A function on N wafers as tests run it: partitioned, laid out, planned, and executed on groups of devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from wsejax import fabric
from wsejax.compiler import walk
from wsejax.compiler.extend import inside_wse_jit
from wsejax.compiler.ir import Graph, read
from wsejax.compiler.layout import choose
from wsejax.fabric import swarm
from wsejax.streaming import Partitioned, partition


def graph_of(fun: Callable, args: tuple) -> tuple[Graph, Any]:
    """The graph of `fun` of the flat arguments, and the structure of its results."""
    flat, tree = jax.tree.flatten(args)
    token = inside_wse_jit.set(True)
    try:
        closed, out = jax.make_jaxpr(lambda *xs: fun(*jax.tree.unflatten(tree, xs)), return_shape=True)(*flat)
    finally:
        inside_wse_jit.reset(token)
    return read(closed), jax.tree.structure(out)


class OnCluster:
    """`fun` on `wafers` wafers, with the arguments in `split` (numbers of flat arguments, and their dimensions) shared."""

    def __init__(self, fun: Callable, args: tuple, split: Mapping[int, int], wafers: int, tiles=(1, 1), arity: int = 4) -> None:
        graph, self.out_tree = graph_of(fun, args)
        self.wafers, self.arity, self.args = wafers, arity, [jnp.asarray(x) for x in jax.tree.leaves(args)]
        self.tiles = dict(zip(fabric.AXES, tiles, strict=True))
        self.parts: Partitioned = partition(graph, {graph.ins[n]: d for n, d in split.items()}, wafers, arity)
        self.layouts = choose(self.parts.graph, self.tiles)

    def compiled(self, groups: int, devices: tuple[int, int] = (1, 1)):
        """(compiled program, its arguments) for so many groups of devices."""
        parts, lanes = self.parts, self.wafers // groups
        many = groups * devices[0] * devices[1]
        mesh = Mesh(np.array(jax.devices()[:many]).reshape(groups, *devices), ("wafer", "y", "x"), axis_types=(AxisType.Auto,) * 3)
        ctx = walk.Context(self.layouts, self.tiles, dict(zip(fabric.AXES, devices, strict=True)), True, side_by_side=self.wafers > 1)
        plan = walk.plan(parts.graph, ctx)
        axes = lambda shares: [None if d is None else 0 for d in shares]
        specs = lambda shares, lays: tuple(P(*lay) if d is None else P("wafer", *lay) for d, lay in zip(shares, lays, strict=True))
        one = lambda *blocks: walk.run(plan, *blocks)
        body = swarm.lanes(one, lanes, axes(parts.ins), axes(parts.outs))
        mapped = fabric.on_mesh(body, mesh, specs(parts.ins, plan.ins), specs(parts.outs, plan.outs))
        dealt = [x if d is None else swarm.deal(x, d, self.wafers) for x, d in zip(self.args, parts.ins, strict=True)]
        return jax.jit(mapped).lower(*dealt).compile(), dealt

    def __call__(self, groups: int = 1, devices: tuple[int, int] = (1, 1)) -> Any:
        program, dealt = self.compiled(groups, devices)
        outs = []
        for x, share in zip(program(*dealt), self.parts.out_shares, strict=True):
            if share is None:
                assert_the_same_everywhere(x)
            outs.append(x if share is None else swarm.collect(x, share.dim, share.size, share.multiple))
        return jax.tree.unflatten(self.out_tree, outs)


def assert_the_same_everywhere(x: jax.Array) -> None:
    """Replicated over groups: every device's copy of a block has the same bits."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    copies: dict[str, bytes] = {}
    for shard in x.addressable_shards:
        block = np.asarray(shard.data).tobytes()
        assert copies.setdefault(str(shard.index), block) == block
