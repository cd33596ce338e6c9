"""What `wse.jit(...).lower` gives: a function planned for one wafer, to be looked at, compiled, exported and run."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
from jax.sharding import NamedSharding

from wsejax.compiler import walk
from wsejax.compiler.audit import Audit
from wsejax.compiler.cache import LOG, CacheInfo, Entry
from wsejax.compiler.check import HloReport
from wsejax.compiler.export import Exported, export
from wsejax.compiler.frame import Frame
from wsejax.compiler.ir import Graph, Value
from wsejax.compiler.layout import Layouts
from wsejax.compiler.live import peak_bytes
from wsejax.compiler.program import Array, Program
from wsejax.compiler.work import reads_of, weights_of
from wsejax.hardware.wafer import Wafer
from wsejax.kernels.relayout import Layout


@dataclasses.dataclass(eq=False)
class Lowered:
    """A function planned for one wafer and one set of shapes, as `jax.stages.Lowered`."""

    _name: str
    _frame: Frame
    _planned: Callable[[], tuple[Layouts, walk.Plan]]
    _shapes: Sequence[jax.ShapeDtypeStruct]
    _in_tree: Any
    _out_tree: Any
    _given_away: tuple[int, ...]
    _entry: Entry | None
    _info: CacheInfo
    _checked: HloReport | None = None
    _weights: tuple[int, ...] | None = None  # numbers of the arguments, where the plan's graph no longer shows them

    @property
    def frame(self) -> Frame:
        """Where it runs."""
        return self._frame

    @property
    def out_tree(self) -> Any:
        """The structure of the results."""
        return self._out_tree

    @property
    def wafer(self) -> Wafer:
        """The wafer that it is planned for; of a cluster, each of them."""
        return self._frame.wafer

    @property
    def plan(self) -> walk.Plan:
        return self._planned()[1]

    @property
    def chosen(self) -> Layouts:
        return self._planned()[0]

    @functools.cached_property
    def _layouts(self) -> tuple[Sequence[Layout], Sequence[Layout]]:
        """Of arguments and results: those in the cache, so that a hit is not planned, else those of the plan."""
        return self._entry.layouts() if self._entry is not None and self._entry.found else (self.plan.ins, self.plan.outs)

    @functools.cached_property
    def weights(self) -> tuple[Value, ...]:
        """The floating-point arguments that products or tables read; where arguments are donated (a training state), those among them."""
        given_away = {self.plan.graph.ins[n] for n in self._given_away}
        ins = self.plan.graph.ins
        found = weights_of(self.plan.graph) if self._weights is None else [ins[n] for n in self._weights]
        return tuple(v for v in found if v in given_away) or tuple(found)

    def device_bytes(self) -> int:
        """The most device memory that one device needs at one time, in bytes, counted by the lives of the program's values (`live.py`);
        what is streamed counts while it is on the wafer."""
        return peak_bytes(self._jitted.trace(*self._frame.shapes(self._shapes, self._flat_in_shardings)).jaxpr, frozenset(self._given_away))

    @property
    def on_the_wafer(self) -> Graph:
        """The graph of one wafer as if all of it were there: with what streams as ordinary arguments and results."""
        return self._frame.graph or self.plan.graph

    @property
    def donated(self) -> tuple[int, ...]:
        """Numbers of the flat arguments that are given away."""
        return self._given_away

    def explain(self) -> str:
        """Whether the program is in the cache, and if not, which parts of the key differ from the nearest program of the same function."""
        if self._entry is None:
            return "\n".join(self._info.why) or "no cache: give wse.jit a folder (cache=...), or set WSEJAX_CACHE_DIR"
        return self._entry.explain()

    @property
    def program(self) -> Program:
        """What happens on the fabric, as data."""
        plan = self.plan
        layout = dict(zip(plan.graph.ins, plan.ins, strict=True))
        weights = tuple(Array.of(v, layout[v]) for v in self.weights)
        state_bytes = sum(plan.graph.ins[n].size_bytes for n in self._given_away)
        leaves = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(self._in_tree, list(plan.graph.ins)))
        keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        named = {v: keystr(path[2:]) or f"argument {keystr(path[1:])}" for path, v in leaves}
        reads, names = reads_of(plan.graph, self.weights, plan.numbers), tuple(named[v] for v in self.weights)
        return Program(tuple(plan.calls), plan.local_ops, self.wafer.tiles, weights, state_bytes, self._frame.wafers, names, reads)

    def audit(self) -> Audit:
        """The program as a table by primitive and source line. Needs no compilation; after `compile()` it says what the HLO check found,
        and with a cache what that did.

        Raises:
          FabricError: the compiled program breaks the law of `wse.check_hlo`.
        """
        cache = None if self._entry is None else str(self._ready[1]) if "_ready" in self.__dict__ else self._entry.explain()
        return Audit(self.program, self._checked, cache, self._frame.notes())

    @functools.cached_property
    def _flat_in_shardings(self) -> list[NamedSharding]:
        return self._frame.shardings(self._layouts[0])

    @property
    def in_shardings(self):
        """`NamedSharding` of every dynamic argument: a tuple like the arguments, or (tuple, dict) where there are keyword arguments."""
        args, kwargs = jax.tree.unflatten(self._in_tree, self._frame.given_shardings(self._layouts[0]))
        return (args, kwargs) if kwargs else args

    @property
    def out_shardings(self):
        """`NamedSharding` of every result, in the structure of the results."""
        return jax.tree.unflatten(self._out_tree, self._frame.given_shardings(self._layouts[1], results=True))

    def layouts(self) -> str:
        """The chosen layouts as text, with the reason for each split dimension: arguments, results, and what products and pins make."""
        keystr = jax.tree_util.keystr
        (args, kwargs), outs = (jax.tree.unflatten(t, list(range(t.num_leaves))) for t in (self._in_tree, self._out_tree))
        graph, named = self.plan.graph, []
        for label, tree, values, lays in (
            *((f"argument {i}", a, graph.ins, self.plan.ins) for i, a in enumerate(args)),
            *((f"argument {k}", a, graph.ins, self.plan.ins) for k, a in kwargs.items()),
            ("result", outs, graph.outs, self.plan.outs),
        ):
            leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
            named += [(label + keystr(path), values[n], lays[n]) for path, n in leaves]
        for op in graph.walk():
            if op.name in ("dot_general", "conv_general_dilated", "with_layout"):
                named.append((f"{op.name} at {op.source}", op.outs[0], self.chosen[op.outs[0]]))
        return "\n".join(dict.fromkeys(f"{name}: {self.chosen.explain(value, lay)}" for name, value, lay in named))

    @functools.cached_property
    def _jitted(self):
        values = self.plan.graph.ins
        # arrays without elements are made inside: XLA's partitioner takes no program whose only operands they are
        empty = [0 in v.shape and not jax.numpy.issubdtype(v.dtype, jax.dtypes.extended) for v in values]

        def run(*blocks):
            left = iter(blocks)
            every = [jax.numpy.zeros(v.shape, v.dtype) if e else next(left) for v, e in zip(values, empty, strict=True)]
            return tuple(walk.run(self.plan, *every))

        ins = [(n, lay) for n, lay in enumerate(self.plan.ins) if not empty[n]]
        mapped = self._frame.on_devices(run, ins, self.plan.outs)
        body = lambda *flat: mapped(*(flat[n] for n, _ in ins))
        shardings = {"in_shardings": tuple(self._flat_in_shardings), **self._frame.jit_options(self.plan.outs)}
        return jax.jit(body, donate_argnums=self._given_away, **shardings)

    @functools.cached_property
    def _stage(self):
        return self._jitted.lower(*self._frame.shapes(self._shapes, self._flat_in_shardings))

    def as_text(self) -> str:
        """The StableHLO text handed to XLA."""
        return self._stage.as_text()

    def compile(self) -> Compiled:
        """Compile for the wafer's devices."""
        compiled = Compiled(self, *self._ready)
        self._checked = self._checked or self._frame.check(compiled)
        return compiled

    @functools.cached_property
    def _ready(self) -> tuple[jax.stages.Compiled, CacheInfo]:
        start = time.perf_counter()
        if self._entry is None:
            stage, key, state, why = self._stage.compile(), "", "off", self._info.why
        else:
            entry, jitted = self._entry, lambda: self._jitted
            stage, state, why = entry.compile(jitted, self._shapes, self._layouts, self._given_away, self.wafer.mesh)
            key = entry.key
        info = CacheInfo(state, self._info.seconds + time.perf_counter() - start, key, why)
        if self._entry is not None:
            LOG.info("%s: %s", self._name, info)
        return stage, info

    def export(self, *, vjp_order: int = 0, platforms: Sequence[str] | None = None) -> Exported:
        """The function as StableHLO, to be saved and called elsewhere (`wse.load_exported`).

        Args:
          vjp_order: how often what is loaded can be differentiated. With 1 or more it donates no argument.
          platforms: as in `jax.export`: "cpu", "cuda", "tpu". None: that of the wafer's devices.

        Raises:
          ValueError: it is a program for a cluster.
        """
        self._frame.check_export()
        trees = self._in_tree, self._out_tree
        return export(self._jitted, self._name, self._shapes, self._given_away, trees, self._layouts, self.wafer, vjp_order, platforms)

    def place(self, flat: Sequence[Any]) -> list[Any]:
        """Arguments laid out over the mesh; those that are already are passed on.

        Raises:
          ValueError: arguments lie on the meshes of two wafers.
        """
        return self._frame.place(flat, self._flat_in_shardings)

    def run(self, flat: Sequence[Any]):
        """Run on flat dynamic arguments. What the cache holds cannot be traced again, so tracers take the function itself."""
        cached = self._entry is not None and not any(isinstance(x, jax.core.Tracer) for x in flat)
        results = (self._ready[0] if cached else self._jitted)(*self.place(flat))
        return jax.tree.unflatten(self._out_tree, self._frame.results(results, flat))


@dataclasses.dataclass(eq=False)
class Compiled:
    """A compiled function, as `jax.stages.Compiled`; called with the dynamic arguments. `cache` says where it came from."""

    lowered: Lowered
    stage: jax.stages.Compiled
    cache: CacheInfo

    def as_text(self) -> str:
        """The optimised HLO text."""
        return self.stage.as_text() or ""

    def cost_analysis(self):
        return self.stage.cost_analysis()

    def memory_analysis(self):
        return self.stage.memory_analysis()

    def __call__(self, *args, **kwargs):
        flat, tree = jax.tree.flatten((args, kwargs))
        if tree != self.lowered._in_tree:
            raise ValueError(
                f"called with arguments of structure {tree}, compiled for {self.lowered._in_tree}: call with the same structure"
            )
        return jax.tree.unflatten(self.lowered._out_tree, self.lowered._frame.results(self.stage(*self.lowered.place(flat)), flat))
