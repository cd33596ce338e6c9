"""`wse.jit`: a JAX function on a wafer, or on a cluster of wafers with memory of its own."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from wsejax import compiler, fabric
from wsejax.compiler import Lowered, WaferFunction, walk
from wsejax.compiler.cache import CacheInfo
from wsejax.compiler.jit import Traced, argument_numbers
from wsejax.compiler.layout import Layouts, choose
from wsejax.compiler.pin import as_layout
from wsejax.compiler.work import weights_of
from wsejax.hardware import Cluster, Wafer, capacity, system_of
from wsejax.streaming.driver import Driver
from wsejax.streaming.frame import ClusterFrame
from wsejax.streaming.outside import hold_outside, place_outside
from wsejax.streaming.partition import partition
from wsejax.streaming.rules import PREFETCH
from wsejax.streaming.store import Stored

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
        dimension the wafers share an argument; without it they share the leading dimension of those that are neither streamed nor
        donated, or if nothing is, hold no weights.
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
    made = compiler.jit(fun, wafer.wafer, **{**options, "cache": False})
    if both := set(streamed) & set(made.static):
        raise ValueError(f"streamed_argnums={streamed_argnums} and static_argnums={static_argnums}: argument {min(both)} cannot be both")
    return ClusterFunction(made, wafer, streamed, execution)


class ClusterFunction(WaferFunction):
    """A function compiled for a cluster."""

    def __init__(self, made: WaferFunction, cluster: Cluster, streamed: tuple[int, ...], execution: str) -> None:
        functools.update_wrapper(self, made.fun, updated=())
        self.__dict__.update({k: v for k, v in made.__dict__.items() if k != "_lowered"})
        self._lowered: dict[Any, Lowered] = {}
        self.cluster, self._named, self._execution = cluster, streamed, execution

    def __call__(self, *args, **kwargs):
        disk = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, Stored)]
        if not disk:
            return super().__call__(*args, **kwargs)
        shaped = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Stored) else x, (args, kwargs))
        lowered, flat = self._find(*shaped)
        stored = iter(disk)
        flat = [next(stored) if isinstance(x, jax.ShapeDtypeStruct) else x for x in flat]
        frame = lowered.frame
        assert isinstance(frame, ClusterFrame)
        if not any(frame.ins_away):
            raise ValueError(
                f"a state on disk, and execution={self._execution!r} with streamed_argnums={self._named}: name the state's argument in "
                "streamed_argnums, with execution='streamed'"
            )
        frame.driver = frame.driver or Driver(lowered, frame)
        return jax.tree.unflatten(lowered.out_tree, frame.driver.run(flat))

    def _lowered_from(self, traced: Traced) -> Lowered:
        wafer, graph = self.cluster.wafer, traced.graph
        if by_name := [i for i in self._named if i >= traced.positional]:
            raise ValueError(
                f"streamed_argnums has {by_name[0]}, the call has {traced.positional} positional arguments: pass it by position"
            )
        named = {n for n in jax.tree.leaves(traced.arguments(self._named)) if graph.ins[n].ndim}
        pairs = traced.taking_place(traced.arguments(self._named))
        weights = [n for n, v in enumerate(graph.ins) if v in set(weights_of(graph))]
        away = named if self._outside(traced, named, weights) else set()
        results = {o for i, o in pairs if i in away}
        same = [*traced.same, *(p for p in pairs if p not in traced.same)]
        split = self._shared(traced, weights)
        wafers = self.cluster.systems
        parts = partition(graph, {graph.ins[n]: d for n, d in split.items()}, wafers, self.cluster.swarmx.arity, same)
        shares = (parts.in_shares, parts.out_shares) if wafers > 1 else ((None,) * len(graph.ins), (None,) * len(graph.outs))
        flags = lambda some, count: tuple(n in some for n in range(count))
        flagged = flags(away, len(graph.ins)), flags(results, len(graph.outs))
        frame = ClusterFrame(wafer, self.cluster, *flagged, *shares, pairs=tuple(pairs))
        local = parts.graph
        layout = lambda lay: tuple(a[1] if isinstance(a, tuple) else a for a in lay)
        shared_only = lambda lay: any(isinstance(a, tuple) for a in lay) and not any(layout(lay))
        pins = {local.ins[n]: layout(lay) for n, lay in traced.pins if not shared_only(lay)}

        @functools.cache
        def planned() -> tuple[Layouts, walk.Plan]:
            values = lambda pairs: [(local.ins[i], local.outs[o]) for i, o in pairs if shares[0][i] == shares[1][o]]
            tiles = dict(zip(fabric.AXES, wafer.tiles, strict=True))
            devices = dict(zip(fabric.AXES, wafer.devices, strict=True))
            layouts = choose(local, tiles, values(same), values(traced.likely), pins)
            ctx = walk.Context(layouts, tiles, devices, self.strict, wafer.reduction, wafer.accumulate, side_by_side=True)
            program, frame.ctx = local, ctx
            if away:
                placed = place_outside(local, layouts, frame.ins_away, frame.outs_away)
                program, frame.whole, frame.outs_away, frame.before = placed.graph, placed.whole, placed.outs, local
            elif named:
                program = hold_outside(
                    local, layouts, flags(named, len(graph.ins)), flags({o for i, o in pairs if i in named}, len(graph.outs))
                )
            ahead = PREFETCH.set(self.cluster.memoryx.prefetch_layers if self.cluster.memoryx else 0)
            try:
                return layouts, walk.plan(program, ctx)
            finally:
                PREFETCH.reset(ahead)

        planned()
        info = CacheInfo("off", time.perf_counter() - traced.start, why=("programs of clusters are not kept",))
        trees = traced.in_tree, jax.tree.structure(traced.out)
        return Lowered(traced.name, frame, planned, traced.shapes, *trees, tuple(traced.given_away), None, info, _weights=tuple(weights))

    def _pin(self, sharding: Any, ndim: int, what: str) -> Any:
        """A layout in which the dimension that wafers share is ("wafer", its axis on the wafer or None)."""
        if isinstance(sharding, NamedSharding):
            if dict(sharding.mesh.shape) != dict(self.cluster.mesh.shape):
                raise ValueError(f"{what}={sharding}: the mesh is {dict(self.cluster.mesh.shape)}; lay it out over cluster.mesh")
            sharding = sharding.spec
        if not isinstance(sharding, PartitionSpec):
            raise ValueError(f"{what}={sharding!r}: give a NamedSharding over cluster.mesh, a PartitionSpec, or None")
        entries = [entry if isinstance(entry, tuple) else (entry,) for entry in sharding]
        shared = [d for d, entry in enumerate(entries) if "wafer" in entry]
        if len(shared) > 1:
            raise ValueError(f"{what}={sharding}: 'wafer' splits two dimensions; wafers share an array along one")
        lay = as_layout(PartitionSpec(*(tuple(a for a in entry if a != "wafer") or None for entry in entries)), ndim, what)
        return tuple(("wafer", a) if d in shared else a for d, a in enumerate(lay))

    def _shared(self, traced: Traced, weights: Sequence[int]) -> dict[int, int]:
        """Along which dimension wafers share an argument: as it is pinned; or where nothing is, the leading one of those that are no state
        (streamed, donated, or if nothing is, with weights among their arrays) and have the size that most elements have there.

        Raises:
          ValueError: there is none.
        """
        if self.cluster.systems == 1:
            return {}
        ins = traced.graph.ins
        if pinned := {n: d for n, lay in traced.pins for d, a in enumerate(lay) if isinstance(a, tuple)}:
            return pinned
        state = set(jax.tree.leaves(traced.arguments(self._named))) | set(traced.given_away) or set(weights)
        free = [n for numbers in traced.each if not state & set(numbers) for n in numbers]
        sizes: dict[int, int] = {}
        for v in (ins[n] for n in free):
            if v.ndim and not jax.numpy.issubdtype(v.dtype, jax.dtypes.extended):
                sizes[v.shape[0]] = sizes.get(v.shape[0], 0) + math.prod(v.shape)
        if not sizes:
            raise ValueError(
                f"systems={self.cluster.systems}: {traced.name} has no argument that the wafers could share (all are streamed, donated, "
                "weights or scalars): say which with in_shardings, such as in_shardings=(None, jax.P('wafer'))"
            )
        batch = max(sizes, key=lambda size: sizes[size])
        return {n: 0 for n in free if ins[n].ndim and ins[n].shape[0] == batch}

    def _outside(self, traced: Traced, numbers: set[int], weights: Sequence[int]) -> bool:
        """Whether what is named lives outside; and whether MemoryX holds it.

        Raises:
          ValueError: it does not.
        """
        if not numbers or self._execution == "resident":
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
            smallest = capacity(memoryx, {"streamed arguments": float(held)}).smallest
            preset = "" if smallest is None else f"; {smallest.name} is the smallest preset that would do"
            raise ValueError(
                f"{memoryx.name} holds {memoryx.capacity_bytes:,.0f} bytes, and the streamed arguments {sorted(self._named)} are "
                f"{held:,} bytes: give the cluster a larger one, such as wse.MemoryX(capacity_bytes={held:.3g}){preset}"
            )
        return True
