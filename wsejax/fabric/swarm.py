"""The tree that joins wafers (SwarmX), and how wafers share an array.

The device mesh has the axes ("wafer", "y", "x"): G groups of devices along "wafer", each of which emulates `lanes` = N / G wafers side by
side (`jax.vmap` over a leading lane axis). What is the same on all wafers has no lane axis. A lane's wafer is
group * lanes + lane. Data move by `ppermute` along "wafer" only, between devices in the same place of two groups that an edge of the tree
joins.

The tree (glossary pages of MemoryX and SwarmX: nodes of 1:4): leaves are the wafers in order, a node of level k stands over arity**k of
them, and lives where the first of them does. A node adds up its children from first to last, so the association of a sum depends on the
number of wafers and the arity, never on G.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int, Shaped

from wsejax.fabric.mesh import permute

AXIS = "wafer"
OPS: dict[str, Callable[[Array, Array], Array]] = {
    "sum": jnp.add, "prod": jnp.multiply, "max": jnp.maximum, "min": jnp.minimum, "and": jnp.bitwise_and, "or": jnp.bitwise_or,
    "xor": jnp.bitwise_xor,
}  # fmt: skip
_LANE: contextvars.ContextVar[tuple[Any, int]] = contextvars.ContextVar("lane", default=(0, 1))  # (number of the lane, lanes)


# ---- how wafers share a dimension -------------------------------------------------------------------------------------
def counts(rows: int, wafers: int) -> list[int]:
    """Rows of each wafer: as evenly as can be, the first ones have one more.

    Raises:
      ValueError: fewer rows than wafers.
    """
    if rows < wafers:
        raise ValueError(f"{rows} rows for {wafers} wafers: each needs one at least; give a batch of {wafers} or more, or fewer wafers")
    return [rows // wafers + (w < rows % wafers) for w in range(wafers)]


def deal(x: Any, dim: int, wafers: int, multiple: int = 1) -> Any:
    """A whole array as every wafer's share of dimension `dim`: (wafers, ..., share, ...), of numpy arrays and of JAX's.

    The dimension is `multiple` times the rows that are dealt. Wafers with a row less are padded at the end with a copy of the row that
    follows it (the last wafer: of its last row).

    Raises:
      ValueError: fewer rows than wafers.
    """
    size = x.shape[dim]
    here = counts(size // multiple, wafers)
    if here[0] == here[-1]:
        x = x.reshape(*x.shape[:dim], wafers, size // wafers, *x.shape[dim + 1 :])
    else:
        owned = np.minimum(np.cumsum([0, *here[:-1]])[:, None] + np.arange(here[0]), size // multiple - 1)
        places = (owned[..., None] * multiple + np.arange(multiple)).reshape(wafers, -1)
        take = jnp.take if isinstance(x, jax.Array) else np.take
        x = take(x, places.reshape(-1), axis=dim)
        x = x.reshape(*x.shape[:dim], *places.shape, *x.shape[dim + 1 :])
    numbers: Any = jnp if isinstance(x, jax.Array) else np
    return numbers.moveaxis(x, dim, 0)


def collect(shares: Any, dim: int, size: int, multiple: int = 1) -> Any:
    """The whole array, of size `size` along `dim`, from every wafer's share: the way back from `deal`."""
    numbers = jnp if isinstance(shares, jax.Array) else np
    here = counts(size // multiple, shares.shape[0])
    more = size // multiple % len(here) or len(here)  # wafers that have the most rows

    def joined(part, rows: int):
        part = numbers.moveaxis(part[(slice(None),) * (dim + 1) + (slice(0, rows * multiple),)], 0, dim)
        return part.reshape(*part.shape[:dim], part.shape[dim] * part.shape[dim + 1], *part.shape[dim + 2 :])

    parts = [joined(part, n) for part, n in ((shares[:more], here[0]), (shares[more:], here[-1])) if part.shape[0]]
    return parts[0] if len(parts) == 1 else numbers.concatenate(parts, dim)


# ---- the tree over groups ---------------------------------------------------------------------------------------------
def _links(wafers: int, arity: int) -> list[list[tuple[int, int]]]:
    """(wafer of the node, wafer of a child other than its first), level by level from the leaves."""
    levels, reach = [], 1
    while reach < wafers:
        nodes = range(0, wafers, reach * arity)
        levels.append([(w, w + i * reach) for i in range(1, arity) for w in nodes if w + i * reach < wafers])
        reach *= arity
    return levels


@functools.cache
def edges(wafers: int, groups: int, arity: int) -> frozenset[frozenset[int]]:
    """Pairs of groups that an edge of the tree joins."""
    lanes = wafers // groups
    pairs = {(a // lanes, b // lanes) for level in _links(wafers, arity) for a, b in level}
    return frozenset(frozenset(pair) for pair in pairs if pair[0] != pair[1])


@functools.cache
def _rounds(wafers: int, groups: int, arity: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """How one value gets from the root to every group down the tree: rounds of (source, target), nobody twice in one round."""
    lanes, has, rounds = wafers // groups, {0}, []
    for level in reversed(_links(wafers, arity)):
        todo = list(dict.fromkeys((a // lanes, b // lanes) for a, b in level))
        while todo := [(a, b) for a, b in todo if b not in has]:
            now: dict[int, int] = {}
            for a, b in todo:
                if a in has and a not in now and b not in now.values():
                    now[a] = b
            has.update(now.values())
            rounds.append(tuple(now.items()))
    return tuple(rounds)


def _is_one_of(group: Int[Array, ""], members: Sequence[int], groups: int) -> Shaped[Array, ""]:
    return jnp.asarray([g in members for g in range(groups)])[group]


def _down(x: Shaped[Array, "..."], wafers: int, groups: int, arity: int) -> Shaped[Array, "..."]:
    """The value of the root's group on every group."""
    for pairs in _rounds(wafers, groups, arity):
        arrived = permute(x, AXIS, list(pairs))
        x = jnp.where(_is_one_of(lax.axis_index(AXIS), [b for _, b in pairs], groups), arrived, x)
    return x


def _groups(wafers: int, lanes: int) -> int:
    groups = lax.axis_size(AXIS)
    if groups * lanes != wafers:
        raise ValueError(f"wafers={wafers}: {groups} groups of devices work on {lanes} wafers each; call it inside swarm.lanes")
    return groups


def _total(lanes: Shaped[Array, "lanes ..."], op: str, wafers: int, arity: int) -> Shaped[Array, "..."]:
    here, combine = lanes.shape[0], OPS[op]
    groups = _groups(wafers, here)
    # XLA must not fuse what made the terms into the additions: it would on some groups only
    nodes = list(lax.optimization_barrier(lanes))
    group, reach = lax.axis_index(AXIS), 1
    while reach < wafers:
        step = reach * arity
        for ahead in range(reach, step, reach):  # from a node's wafer to that of its next child
            for away in sorted({(lane + ahead) // here for lane in range(here)}):
                # groups in which a lane holds a node that has this child, `away` groups on
                wants = {
                    lane: [g for g in range(groups) if (g * here + lane) % step == 0 and g * here + lane + ahead < wafers]
                    for lane in range(here)
                    if (lane + ahead) // here == away
                }
                wants = {lane: found for lane, found in wants.items() if found}
                if not wants:
                    continue
                children = [nodes[(lane + ahead) % here] for lane in wants]
                if away:
                    pairs = sorted({(g + away, g) for found in wants.values() for g in found})
                    children = list(permute(jnp.stack(children), AXIS, pairs))
                for (lane, found), child in zip(wants.items(), children, strict=True):
                    total = combine(nodes[lane], child)
                    all_of_them = len(found) == groups
                    nodes[lane] = total if all_of_them else jnp.where(_is_one_of(group, found, groups), total, nodes[lane])
        reach = step
    return lax.optimization_barrier(_down(nodes[0], wafers, groups, arity))


def _whole(lanes: Shaped[Array, "lanes ..."], dim: int, size: int, wafers: int, arity: int, multiple: int) -> Shaped[Array, "..."]:
    if jnp.issubdtype(lanes.dtype, jax.dtypes.prng_key):
        words = _whole(jax.random.key_data(lanes), dim, size, wafers, arity, multiple)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(lanes))
    groups = _groups(wafers, lanes.shape[0])
    if groups > 1:
        group, holds = lax.axis_index(AXIS), [{g} for g in range(groups)]
        every = lax.dynamic_update_index_in_dim(jnp.zeros((groups, *lanes.shape), lanes.dtype), lanes, group, 0)
        for pairs in reversed(_rounds(wafers, groups, arity)):  # up the tree, each with what it has from below
            arrived = permute(every, AXIS, [(b, a) for a, b in pairs])
            brought = {a: holds[b] for a, b in pairs}
            new = jnp.asarray([[owner in brought.get(g, ()) for owner in range(groups)] for g in range(groups)])[group]
            every = jnp.where(new.reshape(-1, *(1,) * lanes.ndim), arrived, every)
            for a, b in pairs:
                holds[a] |= holds[b]
        lanes = _down(every, wafers, groups, arity).reshape(wafers, *lanes.shape[1:])
    return collect(lanes, dim, size, multiple)


def _over_lanes(fun: Callable[[Array], Array], x: Array) -> Array:
    """`fun` of the lanes of an array, seen from one lane under `lanes`. Its result is the same for all lanes, hence not batched.

    The number of the lane is an operand, so that the batching rule is used also for an array that happens to be the same in all lanes.
    """
    lane, n = _LANE.get()
    if n == 1:
        return fun(x[None])
    of_all = lambda x: fun(jnp.broadcast_to(x[None], (n, *x.shape)))
    call = custom_vmap(lambda lane, x: of_all(x))
    call.def_vmap(lambda size, batched, lane, x: (fun(x) if batched[1] else of_all(x), False))
    return call(lane, x)


# ---- for programs -----------------------------------------------------------------------------------------------------
def lanes(fun: Callable, n: int, in_axes: Sequence[int | None], out_axes: Sequence[int | None]) -> Callable:
    """`fun` for each of the `n` wafers that a group of devices emulates. Must run inside a mesh with the axis "wafer".

    Args:
      fun: flat arguments to a list or tuple of results, as one wafer sees them.
      n: wafers a group.
      in_axes: for each argument 0 if it has a leading axis of the lanes, None if it is the same on all wafers.
      out_axes: the same for the results; a result with None that is not the same in all lanes is an error of `jax.vmap`.
    """

    def one(lane, *args):
        token = _LANE.set((lane, n))
        try:
            return tuple(fun(*args))
        finally:
            _LANE.reset(token)

    def run(*args):
        if n > 1:
            return jax.vmap(one, in_axes=(0, *in_axes), out_axes=tuple(out_axes))(jnp.arange(n, dtype=jnp.int32), *args)
        results = one(jnp.zeros((), jnp.int32), *(x if a is None else x[0] for x, a in zip(args, in_axes, strict=True)))
        return tuple(x if a is None else jnp.asarray(x)[None] for x, a in zip(results, out_axes, strict=True))

    return run


def index() -> Int[Array, ""]:
    """This wafer's number."""
    lane, n = _LANE.get()
    return lax.axis_index(AXIS) * n + lane


def reduce(x: Shaped[Array, "..."], op: str, wafers: int, arity: int = 4) -> Shaped[Array, "..."]:
    """The wafers' arrays combined in the order of the tree, on all of them.

    Args:
      x: this wafer's.
      op: one of "sum", "prod", "max", "min", "and", "or", "xor".
      wafers: how many there are.
      arity: children of a node.

    Raises:
      ValueError: an unknown `op`, or another number of wafers than `lanes` works on.
    """
    if op not in OPS:
        raise ValueError(f"op={op!r}: give one of {', '.join(OPS)}")
    return _over_lanes(lambda x: _total(x, op, wafers, arity), x)


def gather(x: Shaped[Array, "..."], dim: int, size: int, wafers: int, arity: int = 4, multiple: int = 1) -> Shaped[Array, "..."]:
    """The whole array, on all wafers, from this wafer's share of dimension `dim`, dealt as `deal` does it.

    Args:
      x: this wafer's share, its padding included.
      dim: the dimension that is shared.
      size: of the whole dimension.
      wafers: how many there are.
      arity: of the tree.
      multiple: elements of the dimension in each row that is dealt.
    """
    return _over_lanes(lambda x: _whole(x, dim, size, wafers, arity, multiple), x)


def take(x: Shaped[Array, "..."], dim: int, wafers: int, multiple: int = 1) -> Shaped[Array, "..."]:
    """This wafer's share of dimension `dim` of an array that all wafers have. Nothing moves."""

    lane, n = _LANE.get()

    def shares(count: int, x):
        return lax.dynamic_slice_in_dim(deal(x, dim, wafers, multiple), lax.axis_index(AXIS) * n, count, 0)

    def batched_rule(size, batched, lane, x):
        if batched[1]:
            raise ValueError(f"take of dimension {dim}: the array differs from wafer to wafer")
        return shares(size, x), True

    call = custom_vmap(lambda lane, x: shares(1, x)[0])
    call.def_vmap(batched_rule)
    return call(lane, jnp.asarray(x))


def valid(rows: int, wafers: int, multiple: int = 1) -> Int[Array, ""]:
    """Elements of this wafer's share that are not padding."""
    return (rows // wafers + (index() < rows % wafers).astype(jnp.int32)) * multiple
