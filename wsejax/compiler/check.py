"""The law of the machine, read from what XLA compiled: nobody talks but neighbours on the device mesh."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from wsejax.fabric import ring_order

COLLECTIVE = re.compile(
    r"= .*?\s(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-broadcast|send|recv)(?:-start)?\("
)
PERMUTE = re.compile(r"= .*?\scollective-permute(?:-start)?\(.*source_target_pairs=\{(.*)")
PAIR = re.compile(r"\{(\d+),(\d+)\}")
OP_NAME = re.compile(r'op_name="([^"]*)"')


class FabricError(RuntimeError):
    """A compiled program moves data otherwise than from neighbour to neighbour; the message shows the instruction."""


@dataclasses.dataclass(frozen=True)
class HloReport:
    """What a compiled program sends: `permutes` instructions, `links` (source, target) pairs of device numbers, group by group and row by
    row; `devices` of a group; `groups` of them, which emulate the wafers of a cluster."""

    permutes: int
    links: frozenset[tuple[int, int]]
    devices: tuple[int, int]
    groups: int = 1

    def __str__(self) -> str:
        rows, cols = self.devices
        many = f"{rows} x {cols} devices" if self.groups == 1 else f"{self.groups} groups of {rows} x {cols} devices"
        return f"{self.permutes} collective-permutes over {len(self.links)} links of {many}, no other collective"


def check_hlo(
    compiled: Any, devices: tuple[int, int] | None = None, groups: int = 1, tree: frozenset[frozenset[int]] = frozenset()
) -> HloReport:
    """Verify that a compiled program has no collective but collective-permute, between neighbours on the device mesh.

    A pair is of neighbours if it is one hop along one axis, or two hops that are a step of the ring folded into that axis; or if it joins
    the same place of two groups of devices that are neighbours in the tree of a cluster.

    Args:
      compiled: what `wse.jit(...).lower(...).compile()` gives, or any object with `as_text()`, or the text of an optimised HLO module.
      devices: (rows, cols) of the device mesh, of one group; needed where `compiled` is not ours.
      groups: of devices, the leading axis of the mesh.
      tree: the pairs of groups that may talk (`fabric.swarm.edges`).

    Raises:
      FabricError: the first instruction that breaks the law.
      ValueError: the device mesh is not known.
    """
    if devices is None and not hasattr(compiled, "lowered"):
        raise ValueError("devices=None: give the (rows, cols) of the device mesh, or what wse.jit(...).lower(...).compile() returns")
    rows, cols = devices or compiled.lowered.wafer.devices
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    rings = [ring_order(n) for n in (rows, cols)]
    steps = [{frozenset(pair) for pair in zip(ring, ring[1:] + ring[:1], strict=True)} for ring in rings]
    permutes, links = 0, set()
    for line in text.splitlines():
        if found := COLLECTIVE.search(line):
            raise FabricError(f"{found.group(1)}, which is not made of hops between neighbours: {_shown(line)}")
        if not (found := PERMUTE.search(line)):
            continue
        permutes += 1
        pairs = found.group(1).split("}}")[0] + "}"
        for a, b in ((int(a), int(b)) for a, b in PAIR.findall(pairs)):
            (ga, here), (gb, there) = divmod(a, rows * cols), divmod(b, rows * cols)
            (ya, xa), (yb, xb) = divmod(here, cols), divmod(there, cols)
            links.add((a, b))
            if max(ga, gb) < groups and here == there and frozenset((ga, gb)) in tree:
                continue
            if ga != gb or ga >= groups or (ya == yb) == (xa == xb):
                neighbours = f", nor in one place of two of the {groups} groups that an edge of the tree joins" if groups > 1 else ""
                raise FabricError(f"device {a} sends to {b}, which are not on one line of {rows} x {cols}{neighbours}: {_shown(line)}")
            hops = abs(ya - yb) + abs(xa - xb)
            if hops > 2 or (hops == 2 and frozenset((ya, yb) if xa == xb else (xa, xb)) not in steps[0 if xa == xb else 1]):
                raise FabricError(f"device {a} sends to {b}, {hops} hops away: {_shown(line)}")
    return HloReport(permutes, frozenset(links), (rows, cols), groups)


def _shown(line: str) -> str:
    name = OP_NAME.search(line)
    return line.strip()[:160] + (f" (from {name.group(1)})" if name else "")
