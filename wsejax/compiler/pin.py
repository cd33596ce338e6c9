"""Layouts that the user chooses: `with_layout` inside a function, shardings on its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from wsejax import fabric
from wsejax.compiler.ir import Primitive
from wsejax.kernels.relayout import Layout

with_layout_p = Primitive("with_layout")
with_layout_p.def_impl(lambda x, *, layout: x)
with_layout_p.def_abstract_eval(lambda aval, *, layout: aval)
mlir.register_lowering(with_layout_p, lambda ctx, x, *, layout: [x])
ad.deflinear2(with_layout_p, lambda cotangent, x, *, layout: [with_layout_p.bind(cotangent, layout=layout)])


def _batched(args, dims, *, layout):
    (x,), (d,) = args, dims
    return with_layout_p.bind(x, layout=(*layout[:d], None, *layout[d:])), d


batching.primitive_batchers[with_layout_p] = _batched


def with_layout(x: Shaped[Array, "..."], layout: PartitionSpec | Sequence[str | None]) -> Shaped[Array, "..."]:
    """`x`, laid out on the wafer as `layout` says, and its gradient alike. Outside `wse.jit` it does nothing.

    The dimensions that run together with those of `x` follow it where they can; `layouts()` shows how far.

    Args:
      x: array.
      layout: for each dimension the mesh axis ("y" or "x") that it is split over, or None for a dimension that is whole, as in
        `jax.lax.with_sharding_constraint`. Missing entries are None.

    Raises:
      ValueError: an unknown axis, an axis named twice, or more entries than `x` has dimensions.
    """
    x = jax.numpy.asarray(x)
    return with_layout_p.bind(x, layout=as_layout(layout, x.ndim, "layout"))


def as_layout(spec: Any, ndim: int, what: str) -> Layout:
    """The layout that a PartitionSpec (or a sequence like one) names, one entry for each dimension.

    Raises:
      ValueError: see `with_layout`; `what` names the argument in the message.
    """
    lay: tuple[Any, ...] = tuple(entry[0] if isinstance(entry, tuple) and len(entry) == 1 else entry for entry in spec)
    if bad := [entry for entry in lay if entry is not None and entry not in fabric.AXES]:
        raise ValueError(f"{what}={spec}: {bad[0]!r} is not an axis of the wafer; a dimension is split over 'y', 'x' or nothing (None)")
    if twice := [axis for axis in fabric.AXES if lay.count(axis) > 1]:
        raise ValueError(f"{what}={spec}: {twice[0]!r} splits two dimensions; an axis can split one")
    if len(lay) > ndim:
        raise ValueError(f"{what}={spec}: {len(lay)} entries for an array of {ndim} dimensions")
    return (*lay, *(None,) * (ndim - len(lay)))


def sharding_layout(sharding: Any, ndim: int, mesh_shape: Mapping[str, int], what: str) -> Layout:
    """The layout of a NamedSharding over the wafer's mesh, or of a PartitionSpec.

    Raises:
      ValueError: a sharding over another mesh, or a malformed one.
    """
    if isinstance(sharding, NamedSharding):
        if dict(sharding.mesh.shape) != dict(mesh_shape):
            raise ValueError(f"{what}={sharding}: the wafer's mesh is {dict(mesh_shape)}; lay arguments out over wafer.mesh")
        sharding = sharding.spec
    if not isinstance(sharding, PartitionSpec):
        raise ValueError(f"{what}={sharding!r}: give a NamedSharding over wafer.mesh, a PartitionSpec, or None to let the compiler choose")
    return as_layout(sharding, ndim, what)


def check_sizes(shape: Sequence[int], layout: Layout, tiles: Mapping[str, int], what: str) -> None:
    """Raises ValueError where a dimension is smaller than the number of tiles it is to be split over."""
    for n, axis in zip(shape, layout, strict=True):
        if axis and n < tiles[axis]:
            raise ValueError(
                f"{what}: a dimension of {n} cannot be split over the {tiles[axis]} tiles of axis {axis!r}; leave it whole (None)"
            )
