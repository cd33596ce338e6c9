"""Where numbers stop being finite: a function is run once, operation by operation, until one gives what is not finite from what is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.compiler import ir
from wsejax.compiler.skipped import _Held, _Run


class _FoundError(Exception):
    """Ends the run."""


class _Look(_Run):
    def op(self, op: ir.Op, ins: list[_Held], trips: tuple[tuple[str, int], ...]) -> list[_Held]:
        outs = super().op(op, ins, trips)
        if not op.bodies and not all(_finite(held.x) for held in outs):
            layer = "".join(f", trip {n} of the loop at {source}" for source, n in trips)
            raise _FoundError(f"{op.name} at {op.source or 'unknown source'}{layer}")
        return outs


def first_nonfinite(fun: Callable[..., Any], *args: Any) -> str | None:
    """The first operation of `fun(*args)` that gives an infinity or what is no number: its name, source line, and the trip (from 0) of each
    loop that it is in, which of a scan over layers is the layer. An argument that holds such a value is named instead; None: there is none.

    args: pytrees of arrays with values.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if not _finite(leaf):
            return f"argument {path[0].idx}{jax.tree_util.keystr(path[1:], simple=True, separator='/').join((' ', ''))}".rstrip()
    leaves, tree = jax.tree.flatten(args)
    graph = ir.read(jax.make_jaxpr(lambda *leaves: jax.tree.leaves(fun(*jax.tree.unflatten(tree, leaves))))(*leaves))
    try:
        _Look().graph(graph, [_Held(jnp.asarray(x), True, "argument") for x in leaves], ())
    except _FoundError as found:
        return str(found)
    return None


def _finite(x: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(x), jnp.inexact) or bool(jnp.isfinite(x).all())
