"""The audit: where every byte of a program went, by primitive and source line."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from wsejax.compiler.check import HloReport
from wsejax.compiler.program import Call, Program

TITLES = {
    "kernel": "on the fabric",
    "relayout": "moved between layouts, by all-gathers and exchanges made of shifts",
    "replicated": "computed alike on every block; nothing moves",
    "unsharded": "NOT on the fabric: gathered and computed whole on every block",
}
# shown where a program has any
OUTSIDE = {
    "stream": "in and out of the wafers, and between them (bytes of one copy)",
    "memoryx": "done outside the wafers, where streamed arguments live",
}
WIDTH = 160


@dataclasses.dataclass(frozen=True)
class Audit:
    """Which operations ran on the fabric, which had to move data first, and which could not, with the user's source lines.

    Print it, or with rich; `to_dict` gives the same as data. `clean` says that nothing was computed off the fabric. `hlo` is what
    `wse.check_hlo` found in the compiled program, None as long as it has not been compiled; `cache` what the cache did, None without one.
    """

    program: Program
    hlo: HloReport | None = None
    cache: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.program.of_kind("unsharded")

    def rows(self) -> list[dict[str, Any]]:
        """One row for each primitive, source line, kernel, shapes and layouts (not of work outside): the count (None: inside a `while`) and
        bytes of all.

        `link_bytes` counts a byte once for every link that it crosses, with a device a tile; `off_fabric_bytes` are those of the operands
        and results of operations computed whole.
        """
        groups: dict[tuple, list[Call]] = collections.defaultdict(list)
        for kind in (*TITLES, *OUTSIDE):
            for c in self.program.of_kind(kind):
                arrays = ((), ()) if kind == "memoryx" else (c.ins, c.outs)  # there a line for each leaf would say little
                groups[kind, c.primitive, c.source, c.kernel, *arrays].append(c)
        return [
            {
                "kind": kind,
                "primitive": primitive,
                "source": source,
                "kernel": kernel,
                "count": None if any(c.count is None for c in calls) else sum(c.trips for c in calls),
                "link_bytes": sum(c.byte_hops * c.trips for c in calls),
                "stream_bytes": sum(max(c.stream_bytes) * c.trips for c in calls),
                "off_fabric_bytes": sum(c.array_bytes * c.trips for c in calls) if kind == "unsharded" else 0,
                "operands": [str(a) for a in ins],
                "results": [str(a) for a in outs],
            }
            for (kind, primitive, source, kernel, ins, outs), calls in groups.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON-ready data."""
        rows = self.rows()
        return {
            "tiles": list(self.program.tiles),
            "clean": self.clean,
            "link_bytes": self.program.byte_hops,
            "off_fabric_bytes": sum(row["off_fabric_bytes"] for row in rows),
            "local_ops": self.program.local_ops,
            "hlo": None if self.hlo is None else {"permutes": self.hlo.permutes, "links": sorted(map(list, self.hlo.links))},
            "cache": self.cache,
            "notes": list(self.notes),
            "rows": rows,
        }

    def __rich__(self) -> rich.console.Group:
        p, rows = self.program, self.rows()
        many = f"{p.wafers} wafers of " if p.wafers > 1 else ""
        size = f"{many}{p.tiles[0]} x {p.tiles[1]} tiles"
        head = f"wafer program: {size}, {p.byte_hops:,} link bytes a call (a tile a device), {p.local_ops} local ops"
        parts: list[Any] = [head, f"compiled: {self.hlo}" if self.hlo else "compiled: not yet, so its HLO is not checked"]
        parts += [f"cache: {self.cache}"] if self.cache else []
        parts += self.notes
        for kind, title in (TITLES | OUTSIDE).items():
            of_kind = [row for row in rows if row["kind"] == kind]
            if kind in OUTSIDE and not of_kind:
                continue
            parts.append(f"\n{title}: {len(of_kind)} kinds of calls")
            if of_kind:
                table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
                unit = "bytes" if kind in OUTSIDE else "link bytes"
                for name in ("count", "primitive", "kernel", "operands and results", unit, "source"):
                    table.add_column(name, justify="right" if name in ("count", unit) else "left", overflow="fold")
                for row in of_kind:
                    into = "" if kind in OUTSIDE else f" -> {', '.join(row['results'])}"
                    arrays = ", ".join(row["operands"]) + into
                    count = "while" if row["count"] is None else str(row["count"])
                    moved = row["off_fabric_bytes"] or row["stream_bytes"] or row["link_bytes"]
                    cells = (count, row["primitive"], row["kernel"], arrays, f"{moved:,}", row["source"])
                    table.add_row(*(rich.text.Text(cell) for cell in cells))
                parts.append(table)
        return rich.console.Group(*(rich.text.Text(x) if isinstance(x, str) else x for x in parts))

    def __str__(self) -> str:
        console = rich.console.Console(width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())
