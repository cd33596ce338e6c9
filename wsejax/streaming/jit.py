"""`wse.jit`: a JAX function on a wafer, or on a cluster of wafers with memory of its own."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from wsejax import compiler, fabric
from wsejax.compiler import Lowered, WaferFunction, walk
from wsejax.compiler.cache import CacheInfo
from wsejax.compiler.jit import Traced, argument_numbers
from wsejax.compiler.layout import Layouts, choose
from wsejax.compiler.work import weights_of
from wsejax.hardware import Cluster, Wafer, system_of
from wsejax.streaming.frame import ClusterFrame
from wsejax.streaming.outside import place_outside
from wsejax.streaming.rules import PREFETCH

EXECUTIONS = ("auto", "resident", "streamed")


def jit(
    fun: Callable,
    wafer: Wafer | Cluster,
    *,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    streamed_argnums: int | Sequence[int] = (),
    execution: str = "auto",
    in_shardings: Any = None,
    strict: bool = True,
    cache: str | os.PathLike[str] | bool | None = None,
) -> WaferFunction:
    """`fun` as the wafer would run it: arrays laid over the PE mesh, every byte between PEs moved by neighbour shifts.

    Args:
      fun: a pure JAX function of pytrees, unmodified.
      wafer: the machine, a `Wafer` or a `Cluster`. Results depend on tiles, on the number of wafers and on their tree, never on devices or
        defects.
      donate_argnums: as in `jax.jit`. A donated argument and the result of the same structure are laid out alike.
      static_argnums, static_argnames: as in `jax.jit`; static values must be hashable.
      streamed_argnums: arguments (a training state) that live in the cluster's MemoryX, in the habit of `donate_argnums`; the result of
        the same structure lives there, too. They lie in host memory and come in layer by layer.
      execution: "streamed", "resident" (streamed_argnums is not heeded), or "auto": streamed if what it names, with a gradient
        for each weight among them, are more than the SRAM of the wafer's logical PEs holds beside program text.
      in_shardings: as in `jax.jit`, for the dynamic positional arguments: NamedShardings over `wafer.mesh` or PartitionSpecs pin
        layouts of arguments; None, here or in the tree, leaves the choice to the compiler. So does an array that lies somewhere already: it
        is moved. A `jax.ShapeDtypeStruct` with a sharding, given to `lower`, pins too. On a cluster the axis "wafer" says along which
        dimension the wafers share an argument; without it they share the leading dimension of those that are neither streamed, nor
        donated, nor weights.
      strict: an operation without a rule raises `UnsupportedOpError` when lowering. False gathers its operands over the fabric, computes it
        whole on every block, and shows it in the audit.
      cache: folder in which compiled programs are kept from one process to the next (`Compiled.cache`, `Lowered.explain`). None: the
        environment variable WSEJAX_CACHE_DIR, and without it no cache; False: no cache. Programs of clusters are not kept. Only share
        it with those whose code you would run.

    Returns:
      A function of the same arguments and results. Arguments may be numpy or JAX arrays laid out in any way; results come
      laid out over the mesh.

    Raises:
      TypeError: `fun` cannot be called, or (when it is called) an argument is no array.
      ValueError: `wafer` is neither, or runs physically; an argument number is both static and donated or streamed; something is to be
        streamed without a cluster with a MemoryX; `cache` cannot be a folder; or (when it is called) a layout that names an unknown
        axis, an axis twice or another mesh, arguments that lie on the meshes of two wafers, a batch smaller than the number of
        wafers, a state larger than the MemoryX.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution={execution!r}: must be one of {', '.join(map(repr, EXECUTIONS))}")
    options: dict[str, Any] = {
        "donate_argnums": donate_argnums, "static_argnums": static_argnums, "static_argnames": static_argnames,
        "in_shardings": in_shardings, "strict": strict, "cache": cache,
    }  # fmt: skip
    streamed = argument_numbers(fun, streamed_argnums, "streamed_argnums")
    if execution == "streamed" and not streamed:
        raise ValueError("execution='streamed' with streamed_argnums=(): name what lives in MemoryX, such as streamed_argnums=0")
    if not isinstance(wafer, Cluster):
        if streamed:
            raise ValueError(f"streamed_argnums={streamed_argnums} on a {type(wafer).__name__}: give wse.Cluster(wafer)")
        return compiler.jit(fun, wafer, **options)
    if streamed and wafer.memoryx is None and execution != "resident":
        raise ValueError(f"streamed_argnums={streamed_argnums} on a cluster with memoryx=None: give it one, or execution='resident'")
    made = compiler.jit(fun, wafer.wafer, **options | {"cache": False})
    if both := set(streamed) & set(made.static):
        raise ValueError(f"streamed_argnums={streamed_argnums} and static_argnums={static_argnums}: argument {min(both)} cannot be both")
    return ClusterFunction(made, wafer, streamed if execution != "resident" else (), execution)


class ClusterFunction(WaferFunction):
    """A function compiled for a cluster."""

    def __init__(self, made: WaferFunction, cluster: Cluster, streamed: tuple[int, ...], execution: str) -> None:
        functools.update_wrapper(self, made.fun, updated=())
        self.__dict__.update({k: v for k, v in made.__dict__.items() if k != "_lowered"})
        self._lowered: dict[Any, Lowered] = {}
        self.cluster, self._streamed, self._execution = cluster, streamed, execution

    def _lowered_from(self, traced: Traced) -> Lowered:
        wafer, graph = self.cluster.wafer, traced.graph
        numbers = set(jax.tree.leaves(traced.arguments(self._streamed)))
        numbers = {n for n in numbers if graph.ins[n].ndim}
        pairs = traced.taking_place(traced.arguments(self._streamed))
        weights = [n for n, v in enumerate(graph.ins) if v in set(weights_of(graph))]
        away = numbers if self._outside(traced, numbers, weights) else set()
        results = {o for i, o in pairs if i in away}
        ins_away, outs_away = tuple(n in away for n in range(len(graph.ins))), tuple(n in results for n in range(len(graph.outs)))
        frame = ClusterFrame(wafer, self.cluster, ins_away, outs_away)

        @functools.cache
        def planned() -> tuple[Layouts, walk.Plan]:
            values = lambda pairs: [(graph.ins[i], graph.outs[o]) for i, o in pairs]
            tiles = dict(zip(fabric.AXES, wafer.tiles, strict=True))
            devices = dict(zip(fabric.AXES, wafer.devices, strict=True))
            same = [*traced.same, *(p for p in pairs if p not in traced.same)]
            layouts = choose(graph, tiles, values(same), values(traced.likely), {graph.ins[n]: lay for n, lay in traced.pins})
            ctx = walk.Context(layouts, tiles, devices, self.strict, wafer.reduction, wafer.accumulate, always_steady=True)
            program = graph
            if away:
                placed = place_outside(graph, layouts, frame.ins_away, frame.outs_away)
                program, frame.whole = placed.graph, placed.whole
                frame.outs_away = placed.outs
            ahead = PREFETCH.set(self.cluster.memoryx.prefetch_layers if self.cluster.memoryx else 0)
            try:
                return layouts, walk.plan(program, ctx)
            finally:
                PREFETCH.reset(ahead)

        planned()
        info = CacheInfo("off", time.perf_counter() - traced.start, why=("programs of clusters are not kept",))
        trees = traced.in_tree, jax.tree.structure(traced.out)
        return Lowered(traced.name, frame, planned, traced.shapes, *trees, tuple(traced.given_away), None, info, _weights=tuple(weights))

    def _outside(self, traced: Traced, numbers: set[int], weights: Sequence[int]) -> bool:
        """Whether what is named lives outside; and whether MemoryX holds it.

        Raises:
          ValueError: it does not.
        """
        if not numbers:
            return False
        wafer, memoryx = self.cluster.wafer, self.cluster.memoryx
        assert memoryx is not None
        size = lambda some: sum(traced.graph.ins[n].size_bytes for n in some)
        held = size(numbers)
        if self._execution == "auto":
            machine = system_of(wafer.spec, wafer.spec.name).of(wafer)
            if held + size(numbers & set(weights)) <= float(machine.sram_bytes):
                return False
        if held > memoryx.capacity_bytes:
            raise ValueError(
                f"{memoryx.name} holds {memoryx.capacity_bytes:,.0f} bytes, and the streamed arguments {sorted(self._streamed)} are "
                f"{held:,} bytes: give the cluster a larger one, such as wse.MemoryX(capacity_bytes={held:.3g})"
            )
        return True
