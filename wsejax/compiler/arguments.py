"""The flat arguments of a function: what they are, in words, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax import fabric
from wsejax.kernels.relayout import Layout

WEAK = " weak"


def abstract(x) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an argument."""
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=bool(getattr(aval, "weak_type", False)))


def argument_lines(shapes: Sequence[jax.ShapeDtypeStruct], tree) -> list[str]:
    """A line for each flat argument of a structure (args, kwargs): its place, dtype and shape."""
    paths = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(tree, list(shapes)))[0]
    return [f"{jax.tree_util.keystr(path[1:])}: {s.dtype}{list(s.shape)}{WEAK if s.weak_type else ''}" for path, s in paths]


def on_mesh(mesh: Mesh, layouts: Sequence[Layout]) -> list[NamedSharding]:
    """What layouts are on a mesh."""
    return [NamedSharding(mesh, PartitionSpec(*layout)) for layout in layouts]


def placed(arrays: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[Any]:
    """Arrays laid out over the mesh; those that are already are passed on, and so are tracers.

    Raises:
      ValueError: arrays lie on the meshes of two wafers.
    """
    lie = [getattr(x, "sharding", None) for x in arrays]
    meshes = {s.mesh for s in lie if isinstance(s, NamedSharding) and set(fabric.AXES) <= set(s.mesh.axis_names)}
    if len(meshes) > 1:
        raise ValueError(
            f"arguments lie on the meshes of {len(meshes)} wafers ({'; '.join(str(dict(m.shape)) for m in meshes)}): move them to one "
            "first, for example with jax.device_put(x, lowered.in_shardings) or jax.device_get"
        )
    return [
        x if isinstance(x, jax.core.Tracer) or at == s else jax.device_put(x, s) for x, at, s in zip(arrays, lie, shardings, strict=True)
    ]
