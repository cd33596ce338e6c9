"""Which dimensions of a program are the same dimension: the names that a program's author had in mind, recovered.

Two dimensions are joined where an operation makes them run together: element by element, through transposes, loops and so on.
A product joins its batch dimensions only, since what it contracts and what it keeps may live on different mesh axes. Layouts are then
chosen for whole classes (`layout.py`), so that values which meet are laid out alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from wsejax.compiler.ir import Graph, Op, Value, scan_split

Dim = tuple[Value, int]
LINKS: dict[str, Callable[[Op], Iterator[tuple[Dim, Dim]]]] = {}


def links(*names: str):
    def register(fun):
        for name in names:
            LINKS[name] = fun
        return fun

    return register


class Classes:
    """Union-find over (value, dimension)."""

    def __init__(self) -> None:
        self._parent: dict[Dim, Dim] = {}
        self._members: dict[Dim, list[Dim]] = {}

    def find(self, dim: Dim) -> Dim:
        if dim not in self._parent:
            self._parent[dim], self._members[dim] = dim, [dim]
        while self._parent[dim] != dim:
            self._parent[dim] = self._parent[self._parent[dim]]
            dim = self._parent[dim]
        return dim

    def join(self, a: Dim, b: Dim) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if len(self._members[a]) < len(self._members[b]):
            a, b = b, a
        self._parent[b] = a
        self._members[a] += self._members.pop(b)

    def members(self, dim: Dim) -> list[Dim]:
        return self._members[self.find(dim)]


def classify(graph: Graph) -> Classes:
    """The classes of all dimensions of a program, loop bodies included."""
    classes = Classes()
    for op in graph.walk():
        for a, b in LINKS.get(op.name, same_shape)(op):
            classes.join(a, b)
    return classes


def alike(a: Value, b: Value) -> Iterator[tuple[Dim, Dim]]:
    """Every dimension of `a` with the same one of `b`."""
    return (((a, d), (b, d)) for d in range(a.ndim) if a.ndim == b.ndim and a.shape[d] == b.shape[d])


def same_shape(op: Op) -> Iterator[tuple[Dim, Dim]]:
    """Operations that work element by element, or along a dimension that they keep: all values of one rank run together."""
    for v in (*op.ins, *op.outs)[: len(op.ins) + len(op.outs) if op.outs else 0]:
        yield from alike(v, op.outs[0])


@links("optimization_barrier", "device_put")
def _(op: Op):
    for a, b in zip(op.ins, op.outs, strict=True):
        yield from alike(a, b)


@links("broadcast_in_dim")
def _(op: Op):
    (x, *_), (out,) = op.ins, op.outs
    for i, j in enumerate(op.params["broadcast_dimensions"]):
        if x.shape[i] == out.shape[j]:
            yield (x, i), (out, j)


@links("transpose")
def _(op: Op):
    for j, i in enumerate(op.params["permutation"]):
        yield (op.ins[0], i), (op.outs[0], j)


def kept(ndim: int, gone: tuple[int, ...]) -> list[int]:
    """The dimensions that remain when `gone` are removed, in order."""
    return [d for d in range(ndim) if d not in gone]


@links("squeeze")
def _(op: Op):
    for j, i in enumerate(kept(op.ins[0].ndim, op.params["dimensions"])):
        yield (op.ins[0], i), (op.outs[0], j)


@links("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def _(op: Op):
    for j, i in enumerate(kept(op.ins[0].ndim, op.params["axes"])):
        yield (op.ins[0], i), (op.outs[0], j)


@links("stack")
def _(op: Op):
    (out,) = op.outs
    for x in op.ins:
        for i, j in enumerate(kept(out.ndim, (op.params["axis"],))):
            yield (x, i), (out, j)


@links("unstack")
def _(op: Op):
    x = op.ins[0]
    for out in op.outs:
        for i, j in enumerate(kept(x.ndim, (op.params["axis"],))):
            yield (x, j), (out, i)


def reshape_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest groups of dimensions that a reshape turns into each other: products of their sizes are equal."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        left, right = [], []
        m = n = 1
        if i < len(before):
            m, left, i = before[i], [i], i + 1
        if j < len(after):
            n, right, j = after[j], [j], j + 1
        while m != n:
            if (m < n and i < len(before)) or j >= len(after):
                m, i = m * before[i], i + 1
                left.append(i - 1)
            else:
                n, j = n * after[j], j + 1
                right.append(j - 1)
        groups.append((left, right))
    return groups


def major(shape: tuple[int, ...], group: list[int]) -> int | None:
    """The slowest dimension of a group that is longer than one."""
    return next((d for d in group if shape[d] > 1), None)


@links("reshape")
def _(op: Op):
    x, out = op.ins[0], op.outs[0]
    if math.prod(x.shape) == 0:
        return
    for left, right in reshape_groups(x.shape, out.shape):
        i, j = major(x.shape, left), major(out.shape, right)
        if i is not None and j is not None:
            yield (x, i), (out, j)


@links("dot_general")
def _(op: Op):
    (_, _), (ab, bb) = op.params["dimension_numbers"]
    for n, (i, j) in enumerate(zip(ab, bb, strict=True)):
        yield (op.ins[0], i), (op.outs[0], n)
        yield (op.ins[1], j), (op.outs[0], n)


@links("gather")
def _(op: Op):
    x, idx, out, dn = op.ins[0], op.ins[1], op.outs[0], op.params["dimension_numbers"]
    windows = kept(x.ndim, (*dn.collapsed_slice_dims, *getattr(dn, "operand_batching_dims", ())))
    for i, j in zip(windows, dn.offset_dims, strict=True):
        if x.shape[i] == out.shape[j]:
            yield (x, i), (out, j)
    for i, j in enumerate(kept(out.ndim, dn.offset_dims)):
        yield (idx, i), (out, j)
    for i, k in zip(getattr(dn, "operand_batching_dims", ()), getattr(dn, "start_indices_batching_dims", ()), strict=True):
        yield (x, i), (idx, k)


@links(
    "scatter",
    "scatter-add",
    "scatter-sub",
    "scatter-mul",
    "scatter-min",
    "scatter-max",
    "scatter_add",
    "scatter_sub",
    "scatter_mul",
    "scatter_min",
    "scatter_max",
)
def _(op: Op):
    x, idx, upd, dn = *op.ins[:3], op.params["dimension_numbers"]
    yield from alike(x, op.outs[0])
    windows = kept(x.ndim, (*dn.inserted_window_dims, *getattr(dn, "operand_batching_dims", ())))
    for i, j in zip(windows, dn.update_window_dims, strict=True):
        if x.shape[i] == upd.shape[j]:
            yield (x, i), (upd, j)
    for i, j in enumerate(kept(upd.ndim, dn.update_window_dims)):
        yield (idx, i), (upd, j)
    for i, k in zip(getattr(dn, "operand_batching_dims", ()), getattr(dn, "scatter_indices_batching_dims", ()), strict=True):
        yield (x, i), (idx, k)


@links("conv_general_dilated")
def _(op: Op):
    (xn, xc), _, (on, oc) = (spec[:2] for spec in op.params["dimension_numbers"])
    x, out = op.ins[0], op.outs[0]
    if op.params["batch_group_count"] == 1:
        yield (x, xn), (out, on)
    if op.params["feature_group_count"] > 1 and x.shape[xc] == out.shape[oc]:  # like an element-wise operation, channel by channel
        yield (x, xc), (out, oc)


@links("fft", "cholesky", "triangular_solve", "lu", "qr", "eigh", "svd", "householder_product", "tridiagonal_solve", "eig", "schur",
       "hessenberg", "tridiagonal")  # fmt: skip
def _(op: Op):
    for v in (*op.ins[1:], *op.outs):
        yield from (((op.ins[0], d), (v, d)) for d in range(min(batch_dims(op), v.ndim)))


def batch_dims(op: Op) -> int:
    """Leading dimensions over which an operation on matrices (a transform, a factorisation) is repeated."""
    lengths = op.params.get("fft_lengths")
    return op.ins[0].ndim - (len(lengths) if lengths is not None else 1 if op.name == "tridiagonal_solve" else 2)


@links("ring_attention", "ring_attention_gradient")
def _(op: Op):
    """Queries, keys (values, and what is like them) each among themselves; all share the batch."""
    (q, k), batch = op.ins[:2], 0
    for v in (*op.ins, *op.outs):
        like = q if v.shape[1:3] == q.shape[1:3] else k
        yield from (((like, d), (v, d)) for d in range(min(v.ndim, 3)))
        yield (q, batch), (v, batch)


@links("wafer_map", "iota", "random_bits", "random_wrap", "random_unwrap", "random_split", "random_fold_in", "random_seed", "random_clone",
       "rng_bit_generator", "threefry2x32", "random_gamma", "rng_uniform")  # fmt: skip
def _(op: Op):
    return iter(())


@links("scan")
def _(op: Op):
    (body,), (consts, carry) = op.bodies, scan_split(op)
    for outer, inner in zip(op.ins, body.ins, strict=True):
        lead = outer.ndim - inner.ndim
        yield from (((outer, d + lead), (inner, d)) for d in range(inner.ndim))
    for outer, inner in zip(op.outs, body.outs, strict=True):
        lead = outer.ndim - inner.ndim
        yield from (((outer, d + lead), (inner, d)) for d in range(inner.ndim))
    for first, last in zip(body.ins[consts : consts + carry], body.outs[:carry], strict=True):
        yield from alike(first, last)


@links("while")
def _(op: Op):
    cond, body = op.bodies
    nc, nb = op.params["cond_nconsts"], op.params["body_nconsts"]
    carry = op.ins[nc + nb :]
    for outer, inner in zip([*op.ins[:nc], *carry], cond.ins, strict=True):
        yield from alike(outer, inner)
    for outer, inner in zip([*op.ins[nc : nc + nb], *carry], body.ins, strict=True):
        yield from alike(outer, inner)
    for a, b, c in zip(carry, body.outs, op.outs, strict=True):
        yield from alike(a, b)
        yield from alike(a, c)


@links("cond")
def _(op: Op):
    for branch in op.bodies:
        for outer, inner in [*zip(op.ins[1:], branch.ins, strict=True), *zip(op.outs, branch.outs, strict=True)]:
            yield from alike(outer, inner)


def static_update(op: Op) -> tuple[list[int], tuple[int, ...]] | None:
    """(start of the update in every dimension of the table, dimensions that the update lacks) of a scatter to one place that is known and
    inside; else None."""
    table, indices, update = op.ins[:3]
    dn = op.params["dimension_numbers"]
    if indices.const is None or indices.ndim != 1 or dn.operand_batching_dims or len(op.ins) != 3:
        return None
    starts, inserted = [0] * table.ndim, tuple(dn.inserted_window_dims)
    for d, i in zip(dn.scatter_dims_to_operand_dims, np.asarray(indices.const).tolist(), strict=True):
        starts[d] = i
    sizes = iter(update.shape)
    ends = [s + (1 if d in inserted else next(sizes)) for d, s in enumerate(starts)]
    return (starts, inserted) if all(s >= 0 and e <= n for s, e, n in zip(starts, ends, table.shape, strict=True)) else None


def loose(op: Op) -> Iterator[tuple[Dim, Dim]]:
    """Dimensions of a window and of what it is cut from or put into: better split alike, but not one class, since their sizes differ."""
    pairs: list[tuple[Dim, Dim]] = []
    if op.name in ("slice", "pad", "split", "concatenate"):
        pairs = [((x, d), (out, d)) for x in op.ins for out in op.outs if x.ndim == out.ndim for d in range(x.ndim)]
    elif op.name.startswith("scatter") and (found := static_update(op)) is not None:
        left = [d for d in range(op.ins[0].ndim) if d not in found[1]]
        pairs = [((op.ins[0], d), (op.ins[2], i)) for i, d in enumerate(left)]
    for a, b in pairs:
        sizes = a[0].shape[a[1]], b[0].shape[b[1]]
        if sizes[0] != sizes[1] and 2 * min(sizes) >= max(sizes):
            yield a, b
