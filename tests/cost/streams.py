"""Programs that stream, made by hand from programs that do not: what the schedule of stages is tested on."""

from __future__ import annotations

import dataclasses
import itertools

from wsejax.compiler import Call, Loop, Program
from wsejax.compiler.program import Array


def stream(kernel: str, ins: tuple[Array, ...], *loops: Loop) -> Call:
    """A load, a store or a swarm, inside these loops."""
    return Call("stream", kernel, kernel, ins, ins, f"{kernel} of weights:1", loops=loops)


def streamed(program: Program, layers: int, wafers: int = 1) -> Program:
    """The program of a training step over a scan of so many layers, as if its weights streamed: a layer's come at the start of a trip,
    its gradients leave at the end of one backward, tables come and go round it, and the optimiser is MemoryX's work."""
    stacked = tuple(
        Array(w.shape[1:], w.dtype, w.layout[1:], w.size_bytes // layers)
        for w in program.weights
        if len(w.shape) > 1 and w.shape[0] == layers
    )
    whole = tuple(w for w in program.weights if not (len(w.shape) > 1 and w.shape[0] == layers))
    groups = [(loop, list(group)) for loop, group in itertools.groupby(program.calls, key=lambda c: c.loops[0] if c.loops else None)]
    over_layers = [n for n, (loop, _) in enumerate(groups) if loop is not None and loop.length == layers]
    calls = [stream("load", whole)]
    for n, (loop, group) in enumerate(groups):
        if n in over_layers and loop is not None:
            calls += [dataclasses.replace(stream("load", stacked, loop), source=loop.source), *group]
            calls += [stream("store", stacked, loop)] if n == over_layers[-1] else []
        elif n > over_layers[-1]:
            optimiser = lambda c: "abstract_train_step.<locals>.step" in c.source
            calls += [dataclasses.replace(c, kind="memoryx") if optimiser(c) else c for c in group]
        else:
            calls += group
    return dataclasses.replace(program, calls=(*calls, stream("store", whole)), wafers=wafers)
