"""The audit of a program as tables that fit a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from ..compiler.audit import TITLES, Audit
from .tables import Sheet, source_text


def audit_table(audit: Audit) -> Group:
    """Where every byte went, by source line: one table for each kind of call. The figures are those of `Audit.rows`."""
    program, rows = audit.program, audit.rows()
    head = f"wafer program: {program.tiles[0]} x {program.tiles[1]} tiles, {program.byte_hops:,} link bytes a call (a tile a device), "
    parts: list[Any] = [Text(f"{head}{program.local_ops} local ops")]
    parts += [Text(f"cache: {audit.cache}")] if audit.cache else []
    for kind, title in TITLES.items():
        some = [row for row in rows if row["kind"] == kind]
        parts.append(Text(f"\n{title}: {len(some)} kinds of calls"))
        if some:
            parts.append(_table(some))
    return Group(*parts)


def _table(rows: list[dict[str, Any]]) -> Sheet:
    cells = [
        (
            "while" if row["count"] is None else str(row["count"]), row["primitive"], row["kernel"],
            f"{', '.join(row['operands'])} -> {', '.join(row['results'])}", f"{row['off_fabric_bytes'] or row['link_bytes']:,}",
            source_text(row["source"]),
        )
        for row in rows
    ]  # fmt: skip
    return Sheet(
        ("count", "primitive", "kernel", "operands and results", "link bytes", "source"),
        cells, left=(1, 2, 3, 5), drop=("primitive",), fold={"operands and results": 20, "kernel": 11, "source": 16, "primitive": 11},
    )  # fmt: skip
