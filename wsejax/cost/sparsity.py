"""What zero weights save in a modelled run: time of products that read them, bytes of their stream, and what stays dense.

PEs skip a multiply-add whose operand on the wire is zero, and in weight streaming that operand is the weight, which is sent as an index
and a value if it is no zero (Hot Chips 2022, CS-2; the vendor's manual allows weight sparsity in weight streaming alone). So a resident
program saves nothing, and neither do zero activations. Sparse are the products that read a weight, forward and for the gradient of their
input. Dense are attention, norms, tables and what the optimiser does; and gradients of weights, in time and in bytes: published figures
skip their masked entries in operations counted (Thangarasa et al. 2023, SPDF), but none says that the machine does, and algorithms that
grow weights need all of them. So the speed-up of a step is that of Amdahl, below 1 / (1 - s).

What a non-zero costs besides its multiply-adds is that of `pe.sparse.spmm`, fitted to a public program; where a sparse product takes
longer than a dense one, a compiler would do it dense, and so does the price. A weight crosses the link dense where that is shorter.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wsejax.compiler import Call, Program
from wsejax.compiler.program import Array
from wsejax.hardware import System
from wsejax.kernels.price import Price
from wsejax.kernels.work import Product, SparseProduct

if TYPE_CHECKING:
    from wsejax.cost.model import Cost

PRODUCTS = ("dot_general", "conv_general_dilated")
OTHERS, REST = "products without a sparse weight", "everything else on the wafer"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the step: the products of one weight, or what stays dense. Seconds are modelled.

    Attributes:
      sparsity: share of zeros; 0 of what is dense.
      dense_seconds: with dense weights.
      sparse_seconds: were every product of it done sparse, overhead and all; of a step as `seconds`.
      seconds: each product the cheaper way.
    """

    name: str
    sparsity: float
    dense_seconds: float
    sparse_seconds: float
    seconds: float

    @property
    def speedup(self) -> float:
        return self.dense_seconds / self.seconds if self.seconds else 1.0

    @property
    def bound(self) -> float:
        """What no overhead would give."""
        return 1.0 / (1.0 - self.sparsity)

    @property
    def slower(self) -> bool:
        """Whether some of it is done dense, since sparse would take longer."""
        return self.sparse_seconds > self.seconds * (1.0 + 1e-9)


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """What zero weights save in one run on one wafer, beside the same run with dense ones. All seconds are modelled.

    Attributes:
      execution: of the run; resident, nothing is saved.
      parts: in which the wafer computes and moves, as often as the program says.
      step: of the whole, stalls and software included; its `sparsity` is the largest of the weights, so its `bound` holds for all.
      dense_bytes, sent_bytes: of weights that come in during a run.
    """

    execution: str
    parts: tuple[Part, ...]
    step: Part
    dense_bytes: float
    sent_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row = lambda part: {**dataclasses.asdict(part), "speedup": part.speedup, "bound": part.bound, "slower_sparse": part.slower}
        parts = [row(part) for part in self.parts]
        return {
            "modelled": True, "execution": self.execution, "dense_bytes": self.dense_bytes, "sent_bytes": self.sent_bytes,
            "parts": parts, "step": row(self.step),
        }  # fmt: skip

    def __str__(self) -> str:
        if self.execution == "resident":
            return "weight sparsity saves nothing of a resident program: weights do not cross the wire; priced dense"
        return (
            f"weight sparsity up to {self.step.sparsity:.1%}: modelled speed-up of the step x {self.step.speedup:.3g}, of at most x "
            f"{self.step.bound:.3g}; {self.sent_bytes:.4g} of {self.dense_bytes:.4g} bytes of weights come in"
        )


# ---- which weights, how sparse ---------------------------------------------------------------------------------------
def shares_of(program: Program, weight_sparsity: Any) -> tuple[float, ...]:
    """The share of zeros of each of the program's weights.

    Args:
      weight_sparsity: a number for all weights that products read and nothing looks up (no table, nor a head tied to one); or a mapping
        from regular expressions, searched for in the weights' paths, of which the first that is found counts; or masks, a pytree in the
        structure of the weights. In both a value is a number, or an array whose zeros are the weight's.

    Raises:
      ValueError: a share outside [0, 1), a mask of another size, or a name that is of no weight that a product reads.
    """
    if not program.weight_names:
        raise ValueError("weight_sparsity: the program does not say which arguments are weights; give what wse.jit(...).lower(...) gives")
    multiplied, looked_up = _readers(program)
    if not isinstance(weight_sparsity, Mapping | list | tuple) and np.ndim(weight_sparsity) == 0:
        share = _share(weight_sparsity, "")
        return tuple(share * (n in multiplied - looked_up) for n in range(len(program.weights)))
    shares = [0.0] * len(program.weights)
    taken: set[int] = set()
    for path, value in _named(weight_sparsity):
        name, mask = "/".join(path), np.ndim(value) > 0
        pattern = rf"(^|/){re.escape(name)}(/|$)" if mask and len(path) > 1 else name
        try:
            found = [n for n in sorted(multiplied) if re.search(pattern, program.weight_names[n])]
        except re.error as error:
            raise ValueError(f"weight_sparsity has {name!r}: no regular expression ({error})") from None
        if not found:
            known = ", ".join(program.weight_names[n] for n in sorted(multiplied))
            raise ValueError(f"weight_sparsity has {name!r}: matches no weight that a product reads; they are {known or 'none'}")
        for n in found:
            size = math.prod(program.weights[n].shape)
            if mask and np.size(value) != size:
                raise ValueError(
                    f"weight_sparsity[{name!r}] has {np.size(value)} entries, and {program.weight_names[n]} has {size}: give its mask"
                )
            if n not in taken:
                shares[n] = _share(1.0 - np.count_nonzero(value) / max(1, size) if mask else value, name)
        taken.update(found)
    return tuple(shares)


def _named(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of a pytree with their paths; those of a mapping in its own order."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _named(value, (*path, str(key)))
        return
    for rest, value in jax.tree_util.tree_leaves_with_path(tree):
        yield (*path, *(jax.tree_util.keystr((key,), simple=True) for key in rest)), value


def _share(value: Any, name: str) -> float:
    what = f"weight_sparsity[{name!r}]" if name else "weight_sparsity"
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | jax.Array) or not 0.0 <= float(value) < 1.0:
        raise ValueError(f"{what}={value!r}: a share of zeros is a number of at least 0 and less than 1")
    return float(value)


def _readers(program: Program) -> tuple[set[int], set[int]]:
    """Weights that products read, and those that are looked up."""
    multiplied, looked_up = set(), set()
    for call in program.calls:
        into = multiplied if call.primitive in PRODUCTS else looked_up if call.primitive == "gather" else None
        if into is not None:
            into |= {program.reads[a.number] for a in call.ins if a.number in program.reads}
    return multiplied, looked_up


# ---- the program with sparse weights ---------------------------------------------------------------------------------
def sparser(program: Program, shares: Sequence[float]) -> Program:
    """The program as if a share of each weight's entries were zero: its products are sparse, its loads shorter; a share of 0 changes
    nothing. The price (`wse.cost`, or `stacked_work` as a function of machines) is that of weights that stream."""

    def of(array: Array) -> float:
        n = program.reads.get(array.number)
        return 0.0 if n is None else shares[n]

    def changed(call: Call) -> Call:
        if call.kind == "stream" and call.kernel == "load":
            return dataclasses.replace(call, ins=tuple(_compressed(a, of(a)) for a in call.ins))
        if call.primitive not in PRODUCTS or call.kind in ("stream", "memoryx", "relayout"):
            return call
        sparse = [(n, of(a)) for n, a in enumerate(call.ins) if of(a)]
        if len(sparse) != 1:  # two weights: neither is what the other's wavelets meet
            return call
        ((n, share),) = sparse
        work = tuple(SparseProduct(w, share, n) if isinstance(w, Product) else w for w in call.work)
        return dataclasses.replace(call, work=work)

    weights = tuple(_compressed(a, share) for a, share in zip(program.weights, shares, strict=True))
    return dataclasses.replace(program, calls=tuple(map(changed, program.calls)), weights=weights)


def _compressed(array: Array, share: float) -> Array:
    """As it crosses the link: non-zeros, each with an index of its own size; or dense."""
    sent = math.ceil(2.0 * (1.0 - share) * array.size_bytes) if share else array.size_bytes
    return dataclasses.replace(array, size_bytes=min(array.size_bytes, sent))


def with_sparsity(dense: Cost, program: Program, weight_sparsity: Any, again: Callable[[Program], Cost]) -> Cost:
    """The modelled cost with sparse weights.

    Args:
      dense: the cost with dense ones.
      program: of which it is, its loops as long as is known.
      again: prices a program that streams.
    """
    shares = shares_of(program, weight_sparsity)
    streams = dense.execution == "streamed"
    new = sparser(program, shares) if streams else program
    found = again(new) if streams else dense
    before, after = float(dense.step_seconds), float(found.step_seconds)
    step = Part("step", max(shares, default=0.0), before, after, after)
    came = [sum(_weight_bytes(p)) for p in (program, new)] if streams else [0.0, 0.0]
    parts = tuple(_parts(program, new, shares, dense.system, dense.known_cycles))
    return dataclasses.replace(found, sparsity=Sparsity(dense.execution, parts, step, *came))


def _weight_bytes(program: Program) -> list[float]:
    """That come in during a run: as the program says, or each weight once a pass."""
    if program.streams:
        reads = program.reads
        return [float(a.size_bytes * c.trips) for c in program.calls if c.kernel == "load" for a in c.ins if a.number in reads]
    return [float(program.weight_bytes * (2 if program.state_bytes else 1))]


def _parts(program: Program, new: Program, shares: Sequence[float], system: System, known_cycles: float) -> Iterator[Part]:
    seconds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    share_of = {name: share for name, share in zip(program.weight_names, shares, strict=True)}
    memo: dict[Any, tuple[float, float, float]] = {}
    for old, call in zip(program.calls, new.calls, strict=True):
        if call.primitive not in PRODUCTS or not call.work or call.under or call.kind in ("stream", "memoryx"):
            continue
        if call.work not in memo:
            memo[call.work] = _ways(old, call, system)
        sparse = any(isinstance(w, SparseProduct) for w in call.work)
        names = [program.weight_names[program.reads[a.number]] for a in call.ins if a.number in program.reads]
        name = next((n for n in names if share_of[n]), OTHERS) if sparse else OTHERS
        for n, one in enumerate(memo[call.work]):
            seconds[name][n] += one * call.trips
    left = float(system.seconds(known_cycles)) - math.fsum(dense for dense, _, _ in seconds.values())
    others = seconds.pop(OTHERS, [0.0] * 3)
    yield from (Part(name, share_of[name], *found) for name, found in sorted(seconds.items()))
    yield Part(OTHERS, 0.0, *others)
    yield Part(REST, 0.0, *[max(0.0, left)] * 3)


def _ways(old: Call, new: Call, system: System) -> tuple[float, float, float]:
    """Seconds of a trip: dense, sparse whatever it takes, and the cheaper."""

    def sparse(work: Any) -> Price:
        return work.sparse_price(system, work.product.price(system)) if isinstance(work, SparseProduct) else work.price(system)

    total = lambda prices: float(system.seconds(sum((p.cycles for p in prices), 0.0)))
    return total(w.price(system) for w in old.work), total(map(sparse, new.work)), total(w.price(system) for w in new.work)
