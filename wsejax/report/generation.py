"""What a generation took on the host, measured, beside what its programs would take on a wafer, modelled."""

from __future__ import annotations

import rich.console
import rich.text

from ..inference import Figures, Modelled
from .errors import errors_text, kernel_errors
from .pricing import seconds_text, verdict_text
from .tables import Sheet


def generation_lines(figures: Figures, plain: Modelled | None = None) -> list[str]:
    """What stands below the table: sizes, what moves, and the error of the model. `plain` is a step with a plain cache, beside a balanced
    one."""
    kind = "" if plain is None else ", balanced over the rows of tiles"
    lines = [f"cache of keys and values: {figures.slots:,} slots, {figures.cache_bytes:,} bytes{kind}"]
    if figures.first is None or figures.step is None:
        return lines
    moved = f"bytes x hops on the fabric: {figures.step.link_bytes:,} a step, {figures.first.link_bytes:,} for the prompts"
    if plain is not None:
        moved += (
            f"; keeping the cache balanced takes {figures.step.store_link_bytes:,} of a step's, and a step with a plain cache sends "
            f"{plain.link_bytes:,} (modelled {seconds_text(plain.cost.step_seconds)})"
        )
    lines.append(moved)
    for what, of in (("prompts", figures.first), ("a step", figures.step)):
        if against := verdict_text(of.cost.execution, of.memory):
            lines += [f"{what}: {against}", *of.memory.advice]
        elif of.cost.execution == "streamed":
            lines.append(f"{what}: weights do not stay on the wafer, and stream in")
    return [*lines, *errors_text(kernel_errors(figures.step.cost), trains=False)]


def generation_table(figures: Figures, plain: Modelled | None = None) -> rich.console.Group:
    """Host seconds, measured after compilation, beside modelled ones of the wafer, and `generation_lines`."""
    text = lambda seconds: "-" if seconds is None else seconds_text(seconds)
    rate = lambda tokens: "-" if tokens is None else f"{tokens:,.1f}" if tokens < 100 else f"{tokens:,.0f}"
    rows: list[tuple[str, ...]] = [
        (f"{figures.prompt_tokens:,} tokens of prompts, and first tokens", text(figures.first_seconds)),
        ("one more token of each sequence", text(figures.step_seconds)),
        (f"tokens/s, of {figures.later_tokens:,} in {figures.steps:,} steps", rate(figures.host_tokens_per_second)),
    ]
    columns: tuple[str, ...] = (f"{figures.new_tokens:,} new tokens", "on this host, measured")
    if figures.first is not None and figures.step is not None:
        wafer = (text(figures.first.cost.step_seconds), text(figures.step.cost.step_seconds), rate(figures.modelled_tokens_per_second))
        rows = [(*row, cell) for row, cell in zip(rows, wafer, strict=True)]
        columns = (*columns, f"on {figures.step.cost.system.name}, modelled")
    below = (rich.text.Text(line) for line in generation_lines(figures, plain))
    return rich.console.Group(Sheet(columns, rows, fold={columns[0]: 20}), *below)
