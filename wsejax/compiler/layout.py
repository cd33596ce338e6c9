"""The one place that chooses layouts: which class of dimensions is split over which mesh axis.

Laws:
* a layout depends on the tiles, never on the devices, so neither do the bits of a result;
* values that meet element by element are laid out alike, since their dimensions are of one class;
* a class is split only if every value in it can be: its size divides by the tiles of the axis, or all its values have one size, at
  least as large as the number of tiles, and are padded. A dimension that divides goes before one that has to be padded.

Choice: what the user pinned comes first, and the classes of its dimensions follow where they can. Then, in program order: where a
product has an argument of the program (a weight) as an operand, the weight lies (contracted/y, kept/x) and the other operand (kept/y,
contracted/x), so that products forward and backward keep activations on (tokens/y, features/x) and weights on (in/y, out/x). A
convolution does as a product of its features. A table that is indexed lies (rows/y, features/x). The other products' results follow
their operands. Arguments that no product decides take their first two dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from wsejax.compiler.dims import Classes, Dim, classify, loose
from wsejax.compiler.ir import Graph, Op, Value, scan_split
from wsejax.compiler.pin import check_sizes
from wsejax.kernels.relayout import Layout

ROWS, COLS = "y", "x"
VIEWS = {
    "convert_element_type",
    "transpose",
    "reshape",
    "squeeze",
    "slice",
    "copy",
    "optimization_barrier",
    "dynamic_slice",
}


@dataclasses.dataclass
class Layouts:
    """The chosen axis of every class, with the reason; `layouts[value]` is a value's layout."""

    classes: Classes
    tiles: Mapping[str, int]
    axis: dict[Dim, str] = dataclasses.field(default_factory=dict)  # keyed by the class's representative
    why: dict[Dim, str] = dataclasses.field(default_factory=dict)
    pinned: dict[Value, Layout] = dataclasses.field(default_factory=dict)

    def of(self, dim: Dim) -> str | None:
        return self.axis.get(self.classes.find(dim))

    def __getitem__(self, value: Value) -> Layout:
        if value.const is not None or 0 in value.shape:
            return (None,) * value.ndim
        if value in self.pinned:
            return self.pinned[value]
        out: list[str | None] = []
        for d in range(value.ndim):
            axis = self.of((value, d))
            out.append(axis if axis not in out else None)  # a class that a value has twice splits its first dimension
        return tuple(out)

    def explain(self, value: Value, layout: Layout) -> str:
        """A value's dtype, dimensions with their axes, and why they are split."""
        dims = ", ".join(f"{n}/{a}" if a else str(n) for n, a in zip(value.shape, layout, strict=True))
        why = {self.why.get(self.classes.find((value, d)), "pinned here") for d, a in enumerate(layout) if a}
        return f"{value.dtype}[{dims}]" + (f"  ({'; '.join(sorted(why))})" if why else "")

    def unpadded(self, value: Value) -> Layout:
        """A value's layout with the dimensions whole that would have to be padded."""
        return tuple(a if a and n % self.tiles[a] == 0 else None for a, n in zip(self[value], value.shape, strict=True))

    def fits(self, dim: Dim, axis: str, padding: bool) -> bool:
        """Whether the class of `dim` can be split over `axis`: sizes divide or, with `padding`, are all the same and large enough, and
        no value in it uses the axis already."""
        root = self.classes.find(dim)
        if root in self.axis:
            return False
        sizes = {value.shape[d] for value, d in self.classes.members(root)}
        if any(n % self.tiles[axis] for n in sizes) and not (padding and len(sizes) == 1 and min(sizes) >= self.tiles[axis]):
            return False
        for value, d in self.classes.members(root):
            for other in range(value.ndim):
                if other != d and self.of((value, other)) == axis:
                    return False
        return True

    def put(self, dim: Dim, axes: str, why: str) -> bool:
        """Split the class of `dim` over the first of `axes` that fits; whether it is split now."""
        if self.of(dim) is not None:
            return True
        return any(self._put(dim, axis, why, padding) for padding in (False, True) for axis in axes)

    def put_even(self, dim: Dim, axis: str, why: str) -> bool:
        """Split the class of `dim` over `axis` if it divides."""
        return self._put(dim, axis, why, padding=False)

    def _put(self, dim: Dim, axis: str, why: str, padding: bool) -> bool:
        if not self.fits(dim, axis, padding):
            return False
        root = self.classes.find(dim)
        self.axis[root], self.why[root] = axis, why
        return True

    def put_first(self, value: Value, dims: Sequence[int], axes: str, why: str) -> None:
        """Split the first of `dims` that can be, unless one of them is split over one of `axes` already."""
        if any(self.of((value, d)) in tuple(axes) for d in dims):
            return
        free = [d for d in dims if self.of((value, d)) is None and value.shape[d] > 1]
        any(self._put((value, d), axis, why, padding) for padding in (False, True) for d in free for axis in axes)


def choose(
    graph: Graph,
    tiles: Mapping[str, int],
    same: Sequence[tuple[Value, Value]] = (),
    likely: Sequence[tuple[Value, Value]] = (),
    pins: Mapping[Value, Layout] | None = None,
) -> Layouts:
    """Layouts of all values of `graph`.

    Args:
      graph: the program.
      tiles: number of tiles along each mesh axis.
      same: pairs of an argument and the result that takes its place in the next call; they are laid out alike.
      likely: pairs that look like it (a weight and its gradient): laid out alike if that gives no value the same axis twice.
      pins: layouts of arguments that the user chose; `with_layout` adds those inside the program.

    Raises:
      ValueError: a pinned dimension is smaller than the number of tiles it would be split over.
    """
    classes = classify(graph)
    for a, b in same:
        for d in range(a.ndim):
            classes.join((a, d), (b, d))
    for a, b in likely:
        mine, its = ([classes.find((v, d)) for d in range(a.ndim)] for v in (a, b))
        if all(m != i for x, m in enumerate(mine) for y, i in enumerate(its) if x != y):
            for d in range(a.ndim):
                classes.join((a, d), (b, d))
    layouts = Layouts(classes, tiles)
    _pin(layouts, graph, same, pins or {})
    weights = _weights(graph)
    for op in graph.walk():
        if op.name == "dot_general":
            _product(layouts, op, weights)
        elif op.name == "ring_attention":
            _attention(layouts, op)
        elif op.name == "wafer_map":
            kernel = op.params["kernel"]
            for v, spec in zip((*op.ins, *op.outs), (*kernel.in_specs, *kernel.out_specs), strict=True):
                for d, axis in enumerate(spec):
                    layouts.put_first(v, [d], axis or "", f"kernel at {op.source}")
        elif op.name == "conv_general_dilated":
            _convolution(layouts, op)
        elif op.name == "gather" and id(op.ins[0]) in weights:
            _table(layouts, op)
    loop_dims = {classes.find((v, 0)) for op in graph.walk() if op.name == "scan" for v in _scanned(op)}
    for v in graph.ins:
        if not any(layouts[v]) and v.size_bytes > 64:
            dims = [d for d in range(v.ndim) if classes.find((v, d)) not in loop_dims]
            for d, axis in zip(dims[:2] if v.ndim > 1 else dims, (ROWS, COLS) if v.ndim > 1 else (COLS,), strict=False):
                layouts.put((v, d), axis, f"argument {v}: no product decides")
    _follow(layouts, graph)
    return layouts


def _follow(layouts: Layouts, graph: Graph) -> None:
    """A window follows what it is cut from, and the other way round."""
    pairs = [pair for op in graph.walk() for pair in loose(op)]
    again = True
    while again:
        again = False
        for a, b in [*pairs, *((b, a) for a, b in pairs)]:
            axis = layouts.of(a)
            again |= axis is not None and layouts.of(b) is None and layouts.put(b, axis, layouts.why[layouts.classes.find(a)])


def _pin(layouts: Layouts, graph: Graph, same: Sequence[tuple[Value, Value]], pins: Mapping[Value, Layout]) -> None:
    wanted = [(v, lay, f"argument {v} pinned to {lay}") for v, lay in pins.items()]
    wanted += [(b, pins[a], f"the argument whose place it takes is pinned to {pins[a]}") for a, b in same if a in pins]
    for op in graph.walk():
        if op.name == "with_layout":
            wanted.append((op.outs[0], op.params["layout"], f"with_layout at {op.source}"))
    for value, lay, why in wanted:
        check_sizes(value.shape, lay, layouts.tiles, why)
        layouts.pinned[value] = lay
        for d, axis in enumerate(lay):
            if axis:
                layouts.put((value, d), axis, why)


def _scanned(op: Op) -> list[Value]:
    consts, carry = scan_split(op)
    return [*op.ins[consts + carry :], *op.outs[carry:]]


def _weights(graph: Graph, given: Sequence[Value] | None = None) -> set[int]:
    """Ids of values that are views of the program's floating-point arguments (reshaped, cast, or a loop's slice of one)."""
    found = {id(v) for v in (graph.ins if given is None else given) if jnp.issubdtype(v.dtype, jnp.floating)}
    for op in graph.ops:
        if op.name in VIEWS and id(op.ins[0]) in found:
            found.add(id(op.outs[0]))
        elif op.name == "scan":
            (body,), (consts, carry) = op.bodies, scan_split(op)
            inner = [
                b for n, (a, b) in enumerate(zip(op.ins, body.ins, strict=True)) if id(a) in found and not consts <= n < consts + carry
            ]
            found |= _weights(body, inner)
    return found


def _product(layouts: Layouts, op: Op, weights: set[int]) -> None:
    a, b = op.ins
    (ac, bc), (ab, bb) = op.params["dimension_numbers"]
    out, why = op.outs[0], f"product at {op.source}"
    af = [d for d in range(a.ndim) if d not in ac and d not in ab]
    bf = [d for d in range(b.ndim) if d not in bc and d not in bb]
    sides = ((a, ac, af, range(len(ab), len(ab) + len(af))), (b, bc, bf, range(len(ab) + len(af), out.ndim)))
    if not ab and (id(a) in weights or id(b) in weights):
        (x, xc, xf, _), (w, wc, wf, _) = sides if id(b) in weights else sides[::-1]
        layouts.put_first(w, wf, COLS, f"kept by the {why}")
        layouts.put_first(w, wc, ROWS, f"contracted by the {why}")
        if not any(layouts.of((w, d)) for d in wf):
            layouts.put_first(w, wf, ROWS, f"kept by the {why}")
        layouts.put_first(x, xc, COLS, f"features contracted by the {why}")
        layouts.put_first(x, xf, ROWS, f"tokens of the {why}")
    for d in range(len(ab)):
        layouts.put_first(out, [d], COLS + ROWS, f"batch of the {why}")
    for v, _, free, places in sides:
        for d, place in zip(free, places, strict=True):
            axis = layouts.of((v, d))
            if axis is not None:
                layouts.put((out, place), axis, f"kept by the {why}")
    if not ab:
        layouts.put_first(out, sides[1][3], COLS, f"result of the {why}")
        layouts.put_first(out, sides[0][3], ROWS, f"result of the {why}")
        for axis in (ROWS, COLS):  # rather than that every line of tiles computes the same
            if axis not in layouts[out]:
                layouts.put_first(out, range(out.ndim), axis, f"result of the {why}")


def _convolution(layouts: Layouts, op: Op) -> None:
    (x, w, *_), (out,), why = op.ins, op.outs, f"convolution at {op.source}"
    (xn, xc), (wo, wi), (on, oc) = (spec[:2] for spec in op.params["dimension_numbers"])
    for value, dim, axis, what in ((out, on, ROWS, "batch"), (out, oc, COLS, "features"), (x, xn, ROWS, "batch"), (x, xc, COLS, "features"),
                                   (w, wo, COLS, "features"), (w, wi, ROWS, "features read")):  # fmt: skip
        layouts.put_first(value, [dim], axis, f"{what} of the {why}")


def _attention(layouts: Layouts, op: Op) -> None:
    """Batch on y and heads on x where they divide; else the sequence on y, round which keys and values travel."""
    (q, k), why = op.ins[:2], f"attention at {op.source}"
    if layouts.of((q, 0)) != ROWS and not layouts.put_even((q, 0), ROWS, f"batch of the {why}"):
        layouts.put_first(q, [1], ROWS, f"sequence of the {why}")
        layouts.put_first(k, [1], ROWS, f"sequence of the {why}")
    if k.shape[2] % layouts.tiles[COLS] == 0:
        for v in (q, k):
            layouts.put_even((v, 2), COLS, f"heads of the {why}")


def _table(layouts: Layouts, op: Op) -> None:
    dn, (table, idx, *_) = op.params["dimension_numbers"], op.ins
    window = [d for d in range(table.ndim) if d not in dn.collapsed_slice_dims and d not in dn.operand_batching_dims]
    layouts.put_first(table, window, COLS, f"features of the table read at {op.source}")
    layouts.put_first(table, list(dn.start_index_map), ROWS, f"rows of the table read at {op.source}")
    layouts.put_first(idx, range(idx.ndim - 1), ROWS, f"tokens of the table read at {op.source}")
