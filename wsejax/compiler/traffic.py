"""What a program sends over each link, counted exactly: it is run, and every shift in it adds up what its tiles send."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, UInt32

from wsejax import fabric
from wsejax.compiler import ir
from wsejax.hardware.paths import REVERSE, STEP, channels
from wsejax.hardware.wafer import Wafer

ORDER = ("north", "east", "south", "west")  # as the steps of routes are numbered
_NAMES = tuple(sorted(fabric.SHIFT_NAMES, key=lambda name: ORDER.index(fabric.SHIFT_NAMES[name])))
WAVELET_BYTES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Traffic:
    """What one run of a program sends.

    Attributes:
      wafer: on which it ran.
      wavelets: words of 32 bits that each tile sends to its neighbour in the north, east, south and west, by logical place.
      shifts: shifts that were executed.
    """

    wafer: Wafer
    wavelets: Int[np.ndarray, "4 rows cols"]
    shifts: int

    @property
    def wavelet_hops(self) -> int:
        """Wavelets times hops between logical neighbours: the energy of Luczynski et al. (HPDC 2024)."""
        return int(self.wavelets.sum())

    def on_links(self, wafer: Wafer | None = None) -> Int[np.ndarray, "4 rows cols"]:
        """Wavelets over each physical link, by the PE and the direction in which they leave it: routes carry what their links send.

        Args:
          wafer: another one with the same tiles, for example with other defects. None: that on which the program ran.

        Raises:
          ValueError: other tiles, or tiles of more than one PE, so that nobody knows which of its PEs sends.
        """
        rows, cols = self.wavelets.shape[1:]
        wafer = self.wafer if wafer is None else wafer
        if wafer.tiles != (rows, cols):
            raise ValueError(f"wafer has tiles={wafer.tiles}, and the program ran on {(rows, cols)}; give one with the same tiles")
        if wafer.execution == "logical" and (rows, cols) != wafer.logical_grid:
            raise ValueError(
                f"tiles={wafer.tiles}: a tile of this wafer is several of its {wafer.logical_grid} PEs; for traffic by link map "
                "the program over a wafer with execution='physical', or with one tile a PE"
            )
        routes, mesh = wafer.routes, wafer.remap
        place = np.stack([mesh.physical_row, mesh.physical_col]).astype(np.int64)[:, :rows, :cols]
        out = np.zeros((4, *wafer.defects.shape), np.int64)
        north, east, south, west = self.wavelets
        for start, steps, ahead, home in (
            (place[:, :, :-1], routes.east[:rows, : cols - 1], east[:, :-1], west[:, 1:]),
            (place[:, :-1], routes.south[: rows - 1, :cols], south[:-1], north[1:]),
        ):
            out_of = channels(start.reshape(2, -1), steps.reshape(-1, steps.shape[-1]))
            taken = out_of[..., 2] >= 0
            at, way = out_of[..., :2][taken], out_of[..., 2][taken]
            spread = lambda sent, taken=taken: np.broadcast_to(sent.reshape(-1, 1), taken.shape)[taken]
            np.add.at(out, (way, *at.T), spread(ahead))
            np.add.at(out, (REVERSE[way], *(at + STEP[way]).T), spread(home))
        return out


def traffic(program: Callable, *args: Any) -> Traffic:
    """Run a program of `wafer_map` and count what it sends. Counters are of 32 bits.

    Args:
      program: what `wafer_map` gave. On a physical wafer it is counted in logical execution, which sends the same.
      args: its arguments.

    Raises:
      TypeError: `program` is not from `wafer_map`.
      ValueError: it uses what is about devices (`fabric.hop`, `fabric.gather`), or shifts inside `jax.vmap` or a derivative.
    """
    itself, *mapped = getattr(program, "mapped", (None,))
    if itself is not program:  # jax.grad and the like copy what a function has been given
        raise TypeError(f"program={program!r}: give a program as wse.wafer_map made it, whose shifts can be counted")
    f, wafer, in_specs = mapped
    rows, cols = wafer.tiles
    split = rows % wafer.devices[0] == 0 and cols % wafer.devices[1] == 0
    devices = wafer.devices if split else (1, 1)
    mesh = wafer.mesh if split else wafer.replace(devices=(1, 1)).mesh

    def counted(*blocks):
        leaves, tree = jax.tree.flatten(blocks)
        flat = lambda *leaves: jax.tree.leaves(f(*jax.tree.unflatten(tree, leaves)))
        token = fabric.COUNTING.set(True)
        try:
            graph = ir.read(jax.make_jaxpr(flat)(*leaves), keep=_NAMES)
        finally:
            fabric.COUNTING.reset(token)
        here = jnp.zeros((4, rows // devices[0], cols // devices[1]), jnp.uint32)
        _, (wavelets, shifts) = _run(graph, leaves, (here, jnp.zeros((), jnp.uint32)))
        return wavelets, shifts

    run = fabric.on_mesh(counted, mesh, in_specs, (PartitionSpec(None, "y", "x"), PartitionSpec()))
    wavelets, shifts = jax.jit(run)(*args)
    return Traffic(wafer, np.asarray(wavelets, np.int64), int(shifts))


Counts = tuple[UInt32[Array, "4 rows cols"], UInt32[Array, ""]]


def _run(graph: ir.Graph, args: list[Array], counts: Counts) -> tuple[list[Array], Counts]:
    """The graph's results, and the counts with what its shifts have sent."""
    env = dict(zip(graph.ins, args, strict=True))
    get = lambda v: env[v] if v.const is None else v.const
    for op in graph.ops:
        xs = [get(v) for v in op.ins]
        if op.name in _NAMES:
            _check_shift(op)
            counts = _add(counts, _NAMES.index(op.name), *xs)
            outs = op.bind(*xs)
        elif op.name == "optimization_barrier":
            outs = list(lax.optimization_barrier(tuple(xs)))
        elif op.name == "scan":
            outs, counts = _scan(op, xs, counts)
        elif op.name == "while":
            outs, counts = _while(op, xs, counts)
        elif op.name == "cond":
            branches = [lambda c, *xs, body=body: _run(body, list(xs), c) for body in op.bodies]
            outs, counts = lax.switch(jnp.asarray(xs[0], jnp.int32), branches, counts, *xs[1:])
        else:
            outs = op.bind(*xs)
        env.update(zip(op.outs, outs, strict=True))
    return [get(v) for v in graph.outs], counts


def _check_shift(op: ir.Op) -> None:
    """A shift that JAX has differentiated or batched keeps its name, and is another function."""
    steps = lambda jaxpr: [
        (eqn.primitive.name, eqn.params.get("dimension"), [v.aval.shape for v in eqn.outvars])
        for eqn in jaxpr.eqns
        if eqn.primitive.name != "reshard"
    ]
    shift = fabric.SHIFTS[ORDER[_NAMES.index(op.name)]]
    genuine = len(op.ins) == 1 or (len(op.ins) == 2 and op.ins[1].dtype == bool and op.ins[1].ndim == 2)
    if genuine:
        (made,) = jax.make_jaxpr(shift)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in op.ins)).eqns
        genuine = steps(made.params["jaxpr"]) == steps(op.params["jaxpr"])
    if not genuine:
        raise ValueError(
            f"{op.name} at {op.source or 'an unknown line'} comes from jax.vmap or a derivative inside the program, whose traffic cannot "
            "be counted; take jax.vmap out of the program, and write out what the derivative sends"
        )


def _add(counts: Counts, way: int, x: Array, sends: Array | None = None) -> Counts:
    wavelets, shifts = counts
    if x.shape[:2] != wavelets.shape[1:]:
        raise ValueError(f"a shift moves {x.shape}, and the tiles here are {wavelets.shape[1:]}: give arguments with one entry a tile")
    axis, step = fabric.DIRECTIONS[ORDER[way]]
    grid = wavelets[0]
    there = fabric.index(grid, axis) + step
    leaves = (there >= 0) & (there < fabric.extent(grid, axis))
    if sends is not None:
        leaves = leaves & sends
    entry = -(-int(np.prod(x.shape[2:])) * x.dtype.itemsize // WAVELET_BYTES)
    return wavelets.at[way].add(leaves.astype(jnp.uint32) * entry), shifts + 1


def _scan(op: ir.Op, xs: list[Array], counts: Counts):
    (body,), (consts, carry) = op.bodies, ir.scan_split(op)

    def step(state, scanned):
        carried, counts = state
        results, counts = _run(body, [*xs[:consts], *carried, *scanned], counts)
        return (results[:carry], counts), results[carry:]

    keys = {k: op.params[k] for k in ("length", "reverse", "unroll")}
    (last, counts), stacked = lax.scan(step, (xs[consts : consts + carry], counts), xs[consts + carry :], **keys)
    return [*last, *stacked], counts


def _while(op: ir.Op, xs: list[Array], counts: Counts):
    cond, body = op.bodies
    nc, nb = op.params["cond_nconsts"], op.params["body_nconsts"]
    # what a condition sends is counted each time it holds, and once more where it does not
    holds = lambda state: _run(cond, [*xs[:nc], *state[0]], state[1])

    def step(state):
        carried, counts = state
        _, counts = holds(state)
        return _run(body, [*xs[nc : nc + nb], *carried], counts)

    last, counts = lax.while_loop(lambda state: holds(state)[0][0], step, (xs[nc + nb :], counts))
    return last, holds((last, counts))[1]
