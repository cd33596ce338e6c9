"""Tables that fit where they are printed: where a terminal is narrow they leave out the columns that matter least, and fold long texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.box
import rich.cells
import rich.table
import rich.text

_GAP = 3  # columns between two columns of a table
LIBRARY = "inside a library"  # where an operation has no line of the user's: an optimiser's, a loss's


def source_text(source: str) -> str:
    """A source line as printed."""
    return LIBRARY if source == "unknown source" else source


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table of texts for a rich console.

    Attributes:
      left: columns that lean to the left, by number; the others lean to the right.
      drop: columns that may be left out, by name, the least important first. Below the table stands which ones were.
      fold: columns whose texts may be folded, by name, with the fewest characters of a line.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    left: Sequence[int] = (0,)
    drop: Sequence[str] = ()
    fold: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[rich.console.RenderableType]:
        kept, dropped = list(range(len(self.columns))), []
        for name in self.drop:
            if self._least_width(kept) <= options.max_width:
                break
            kept.remove(self.columns.index(name))
            dropped.append(name)
        yield self._table(kept, folded=self._least_width(kept, {}) > options.max_width)
        if dropped:
            yield rich.text.Text(f"no room for: {', '.join(dropped)}; a wider terminal or --json has them")

    def _width(self, column: int) -> int:
        """Characters of the widest cell."""
        texts = (self.columns[column], *(str(row[column]) for row in self.rows))
        return max(rich.cells.cell_len(line) for text in texts for line in (text.splitlines() or [""]))

    def _least_width(self, kept: Sequence[int], fold: Mapping[str, int] | None = None) -> int:
        fold = self.fold if fold is None else fold
        widths = (min(self._width(n), fold.get(self.columns[n], self._width(n))) for n in kept)
        return sum(widths) + _GAP * (len(kept) - 1)

    def _table(self, kept: Sequence[int], folded: bool) -> rich.table.Table:
        made = rich.table.Table(
            box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=self.title or None, title_justify="left", title_style="bold"
        )
        for n in kept:
            name = self.columns[n]
            lean = "left" if n in self.left else "right"
            made.add_column(name, justify=lean, overflow="fold", no_wrap=folded and bool(self.fold) and name not in self.fold)
        for row in self.rows:
            made.add_row(*(rich.text.Text(str(row[n])) for n in kept))
        return made
