"""What each operation asks of the PE grid (`kernels.work`), from its shapes and layouts.

Rules say how blocks are computed; this says how much there is to compute and to move, in the same words for every machine. Floating-point
operations are counted as `jax.experimental.roofline` counts them: one for each element of an element-wise result, two for each term of a
product or window that is not padding, n - 1 for a reduction of n. That knows fewer primitives (not tanh, pow, a maximum or a running sum,
and of a scan one trip): they count here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wsejax.compiler.ir import Graph, Op, Value, itemsize_bytes, scan_split
from wsejax.kernels.relayout import Layout, steps
from wsejax.kernels.work import Elementwise, Gather, Product, Reduction, Window, Work

# Computed by PEs in software, term by term of a series or a Newton iteration.
SPECIAL = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos", "cosh", "digamma", "div", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma", "igammac", "lgamma", "log", "log1p", "log2", "logistic", "polygamma", "pow",
    "regularized_incomplete_beta", "rem", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "zeta",
}  # fmt: skip
# Nothing is computed, and where an element lies inside a PE is a matter of descriptors.
FREE = {
    "broadcast", "broadcast_in_dim", "copy", "copy_p", "device_put", "empty2", "expand_dims", "iota", "name", "optimization_barrier",
    "platform_index", "pvary", "random_clone", "random_unwrap", "random_wrap", "reshape", "reshard", "reduce_precision",
    "sharding_constraint", "split", "squeeze", "stop_gradient", "transpose", "with_layout",
}  # fmt: skip
# Elements move or change their form; no arithmetic that anybody counts.
COPIES = {
    "bitcast_convert_type", "concatenate", "convert_element_type", "dynamic_slice", "dynamic_update_slice", "gather", "pad", "rev",
    "scatter", "slice", "stack", "tile", "unstack",
}  # fmt: skip
REDUCTIONS = {
    "argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor", "top_k",
    "approx_top_k",
}  # fmt: skip
_PRODUCTS = ("dot_general", "conv_general_dilated")
RUNNING = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
# flops / (rows x columns x shorter side) of a factorisation, as LAPACK's users' guide counts them for squares; those that iterate: typical
MATRICES = {
    "cholesky": 1 / 3, "lu": 2 / 3, "qr": 4 / 3, "householder_product": 4 / 3, "eigh": 9.0, "eig": 25.0, "schur": 25.0, "svd": 22.0,
    "hessenberg": 10 / 3, "tridiagonal": 4 / 3, "triangular_solve": 1.0,
}  # fmt: skip


def flops_of(op: Op) -> int:
    """Floating-point operations of one op without bodies."""
    out = math.prod(op.outs[0].shape) if op.outs else 0
    if op.name == "dot_general":
        return _product(op).flops
    if op.name == "conv_general_dilated":
        return _convolution(op).flops
    if op.name in REDUCTIONS:
        return max(0, math.prod(op.ins[0].shape) - out)
    if op.name in RUNNING or (op.name.startswith("scatter") and op.name != "scatter"):
        return math.prod(op.ins[-1].shape)
    if op.name == "sort":
        return out * max(1, math.ceil(math.log2(max(2, op.ins[0].shape[op.params["dimension"]]))))
    if op.name == "fft":
        return int(5 * out * math.log2(max(2, math.prod(op.params["fft_lengths"]))))
    if op.name in MATRICES:
        return round(MATRICES[op.name] * math.prod(_sides(op)) * _matrices(op))
    if op.name.startswith(("reduce_window", "select_and")):
        return out * math.prod(op.params.get("window_dimensions", ()))
    if op.name in FREE or op.name in COPIES or op.name.startswith(("random", "threefry", "rng")):
        return 0
    return out


def work_of(op: Op, ins: Sequence[Layout], outs: Sequence[Layout], topology: str) -> tuple[Work, ...]:
    """Work of one op without bodies, with its operands and results in the given layouts."""
    if op.name in FREE or op.name == "wafer_map" or not op.outs:
        return ()
    if op.name in ("ring_attention", "ring_attention_gradient"):
        return _attention(op, ins[0])
    if op.name == "dot_general":
        product = _product(op)
        return (product,) if product.flops else ()
    if op.name == "conv_general_dilated":
        product = _convolution(op)
        return (product,) if product.flops else ()
    if op.name in MATRICES:
        return (_factorisation(op),)
    found: list[Work] = [_elementwise(op)]
    x, lay = (op.ins[0], ins[0]) if op.ins else (op.outs[0], outs[0])
    if op.name in REDUCTIONS or op.name in RUNNING:
        found += _lines(op, x, lay, topology)
    elif op.name == "gather":  # rows come from wherever in the table they lie
        dn = op.params["dimension_numbers"]
        cut = [(str(lay[d]), x.shape[d]) for d in (*dn.start_index_map, *dn.operand_batching_dims) if lay[d]]
        found += [Reduction(axis, n, math.prod(op.outs[0].shape), _width(x), topology) for axis, n in cut]
    elif op.name in ("slice", "pad", "concatenate"):
        found += _windows(op, outs[0])
    return tuple(found)


def moves_of(value: Value, src: Layout, dst: Layout) -> tuple[Work, ...]:
    """Work of bringing a value from one layout to another: an all-gather for each dimension that is made whole or changes its axis."""
    found, now = [], list(src)
    for step in steps(src, dst):
        if step.what != "slice":
            found.append(Gather(step.axis, value.shape[step.dim], value.size_bytes))
        now[step.dim] = {"slice": step.axis, "gather": None, "exchange": step.to}[step.what]
    return tuple(found)


def _factorisation(op: Op) -> Product:
    """As a product of the same size with as many operations: blocked algorithms are made of products."""
    rows, cols, terms = _sides(op)
    return Product(rows, max(1, round(MATRICES[op.name] * terms / 2)), cols, _width(op.ins[0]), _matrices(op), terms=flops_of(op) // 2)


def _sides(op: Op) -> tuple[int, int, int]:
    """Of one matrix: rows, columns, and the shorter of them; of a solve: rows, right-hand sides, rows."""
    x = op.ins[0]
    rows, cols = (max(1, n) for n in (x.shape[-2:] if x.ndim > 1 else (1, x.shape[-1])))
    if op.name != "triangular_solve":
        return rows, cols, min(rows, cols)
    b = op.ins[1].shape
    return rows, max(1, math.prod(b[-2:]) // rows), rows


def _matrices(op: Op) -> int:
    return max(1, math.prod(op.ins[0].shape[:-2]))


def moved_of(op: Op, ins: Sequence[Layout], outs: Sequence[Layout], byte_hops: int) -> tuple[Work, ...]:
    """Work of a kernel that moves bytes in another way than those above (a slice that collapses a split dimension): its result gathered
    along the first axis that an operand is split over."""
    cut = next(((a, n) for v, lay in zip(op.ins, ins, strict=True) for n, a in zip(v.shape, lay, strict=True) if a), None)
    return (Gather(cut[0], cut[1], sum(v.size_bytes for v in op.outs)),) if byte_hops and cut else ()


def _elementwise(op: Op) -> Elementwise:
    read = max((*op.ins, *op.outs), key=lambda v: math.prod(v.shape))
    if op.name in ("dynamic_slice", "gather", "slice"):  # the rest of the operand stays where it is
        read = op.outs[0]
    elif op.name == "dynamic_update_slice":
        read = op.ins[1]
    elif op.name.startswith("scatter"):
        read = op.ins[2]
    elements, rounds = math.prod(read.shape), 1
    if op.name in ("sort", "fft"):
        elements = max(elements, flops_of(op) // 2)
    special = elements if op.name in SPECIAL or (op.name == "integer_pow" and op.params["y"] < 0) else 0
    if op.name.startswith(("random_bits", "threefry")):
        rounds = 40  # 20 rounds of threefry on two words, an addition and a rotation each
    return Elementwise(elements * rounds, _width(read), len(op.ins), special, flops_of(op))


def _width(value: Value) -> int:
    return max(1, itemsize_bytes(value.dtype)) if not jnp.issubdtype(value.dtype, jax.dtypes.extended) else 4


def _lines(op: Op, x: Value, lay: Layout, topology: str) -> list[Work]:
    """A reduction along each split dimension that is reduced. Of a running total, what the last of each PE comes to."""
    p = op.params
    dims = p.get("axes", p.get("dimensions", (p.get("axis", p.get("reduction_dimension", x.ndim - 1)),)))
    found: list[Work] = []
    for d in dims:
        if lay[d % x.ndim]:
            axis, n = str(lay[d % x.ndim]), x.shape[d % x.ndim]
            carried = math.prod(x.shape) // max(1, math.prod(x.shape[e % x.ndim] for e in dims)) * p.get("k", 1)
            width = sum(_width(v) for v in op.outs) if op.name in ("top_k", "argmax", "argmin") else _width(op.outs[0])
            found.append(Reduction(axis, n, carried, width, topology))
    return found


def _product(op: Op) -> Product:
    a, b = op.ins
    (ac, bc), (ab, bb) = op.params["dimension_numbers"]
    size = lambda v, dims: math.prod(v.shape[d] for d in dims)
    kept = lambda v, c, batch: [d for d in range(v.ndim) if d not in c and d not in batch]
    return Product(size(a, kept(a, ac, ab)), size(a, ac), size(b, kept(b, bc, bb)), max(_width(a), _width(b)), size(a, ab))


def _convolution(op: Op) -> Product:
    """As the product that it is: results by terms of a window, times terms by output features, in groups. Terms that fall on padding or
    on the holes of a dilation are none."""
    x, w, result, p = op.ins[0], op.ins[1], op.outs[0], op.params
    dims = p["dimension_numbers"]
    features, groups = w.shape[dims.rhs_spec[0]], max(p["feature_group_count"], p["batch_group_count"])
    valid = 1
    for n, (i, j, o) in enumerate(zip(dims.lhs_spec[2:], dims.rhs_spec[2:], dims.out_spec[2:], strict=True)):
        at = (
            np.add.outer(np.arange(result.shape[o]) * p["window_strides"][n], np.arange(w.shape[j]) * p["rhs_dilation"][n])
            - p["padding"][n][0]
        )
        dilation = p["lhs_dilation"][n]
        valid *= int(((at >= 0) & (at <= (x.shape[i] - 1) * dilation) & (at % dilation == 0)).sum())
    batch, inside = result.shape[dims.out_spec[0]], w.shape[dims.rhs_spec[1]]
    places = math.prod(result.shape) // max(1, features)
    met = round(valid * inside / max(1, places // max(1, batch)))  # terms of an average result
    return Product(
        places, max(1, met), max(1, features // groups), max(_width(x), _width(w)), groups, terms=batch * valid * inside * features
    )


def _attention(op: Op, lay: Layout) -> tuple[Work, ...]:
    """Scores and their sums (two products a pass forward, five back), an exponential for each score, and keys and values round the ring."""
    q, k = op.ins[:2]
    batch, rows, heads, dim = q.shape
    back = op.name.endswith("gradient")
    product = Product(rows, dim, k.shape[1], _width(q), batch * heads * (5 if back else 2))
    scores = batch * heads * rows * k.shape[1]
    found: list[Work] = [product, Elementwise(scores, _width(q), 1, scores, 4 * scores)]
    if lay[1]:
        travel = k.size_bytes * (2 + (2 * 4 // _width(k) if back else 0))
        found.append(Gather(lay[1], k.shape[1], travel))
    return tuple(found)


def _windows(op: Op, out: Layout) -> list[Work]:
    """Of every dimension that is shifted and stays split: what a PE takes from its neighbours."""
    x, found = op.ins[0], []
    starts: dict[int, int] = {}
    if op.name == "slice":
        starts = dict(enumerate(op.params["start_indices"]))
    elif op.name == "pad":
        starts = {d: low for d, (low, _, _) in enumerate(op.params["padding_config"])}
    else:
        starts = {op.params["dimension"]: op.ins[0].shape[op.params["dimension"]]}
    for d, start in starts.items():
        if start and out[d] and x.shape[d]:
            axis = str(out[d])
            row_bytes = op.outs[0].size_bytes // max(1, op.outs[0].shape[d])
            found.append(Window(axis, op.outs[0].shape[d], abs(start), row_bytes))
    return found


def weights_of(graph: Graph) -> list[Value]:
    """The floating-point arguments that products, convolutions or tables read, as they are or through views, casts and loops; of a product
    of two arguments the second."""
    found: dict[Value, None] = {}
    _trace_weights(graph, {v: v for v in graph.ins if jnp.issubdtype(v.dtype, jnp.floating) and v.ndim}, found)
    return list(found)


def reads_of(graph: Graph, weights: Sequence[Value], numbers: Mapping[Value, int]) -> dict[int, int]:
    """By the number of a value, which of `weights` it is: as it is, or through views, casts, slices, loads and loops. A number that an
    operand of a product has which is none (what a loop carries is called what it began with) is left out."""
    found: dict[Value, int] = {v: n for n, v in enumerate(weights)}
    _trace_reads(graph, found)
    others = {numbers.get(v) for op in graph.walk() if op.name in _PRODUCTS for v in op.ins if v not in found}
    return {numbers[v]: n for v, n in found.items() if v in numbers and numbers[v] not in others}


def _trace_reads(graph: Graph, found: dict[Value, int]) -> None:
    for op in graph.ops:
        if op.name in FREE or op.name in ("convert_element_type", "load", "slice", "dynamic_slice"):
            found.update((out, found[v]) for v, out in zip(op.ins, op.outs, strict=False) if v in found)
        for body, skip in _bodies(op):
            inner = list(zip(op.ins[skip : skip + len(body.ins)], body.ins, strict=False))
            if op.name in ("scan", "stream_scan"):
                consts, carry = (op.params["consts"], op.params["carry"]) if op.name == "stream_scan" else scan_split(op)
                del inner[consts : consts + carry]
            elif op.name == "while":
                del inner[op.params["body_nconsts"] :]
            found.update((b, found[a]) for a, b in inner if a in found)
            _trace_reads(body, found)
            if op.name == "memoryx":
                found.update((out, found[b]) for b, out in zip(body.outs, op.outs, strict=True) if b in found)


def _trace_weights(graph: Graph, views: dict[Value, Value], found: dict[Value, None]) -> None:
    for op in graph.ops:
        if op.name in (*_PRODUCTS, "gather"):
            # of a product of two arguments the second one is the weight, as in x @ w
            operand = next((v for v in (op.ins[:1] if op.name == "gather" else op.ins[1::-1]) if v in views), None)
            found.update({} if operand is None else {views[operand]: None})
        elif op.name in FREE or op.name == "convert_element_type":
            views.update((out, views[v]) for v, out in zip(op.ins, op.outs, strict=False) if v in views)
        elif op.name in ("scan", "while", "cond"):
            for body, skip in _bodies(op):
                inner = zip(op.ins[skip : skip + len(body.ins)], body.ins, strict=False)
                _trace_weights(body, {b: views[a] for a, b in inner if a in views}, found)


def _bodies(op: Op) -> list[tuple[Graph, int]]:
    """Graphs of a loop or branch, and where in the op's operands their own begin."""
    if op.name == "while":
        return [(op.bodies[1], op.params["cond_nconsts"])]
    return [(body, 1 if op.name == "cond" else 0) for body in op.bodies]
