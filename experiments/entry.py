"""How a study starts from the command line: flags, errors that the user can mend, and readers that have read enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from rich.console import Console

PIPE_WIDTH = 120  # columns of tables in a pipe or a file, wherever the study runs
Settings = TypeVar("Settings")


def console() -> Console:
    """For a study's tables: as wide as the terminal, or `PIPE_WIDTH` where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=PIPE_WIDTH)


def start(
    main: Callable[[Settings], Any], settings: type[Settings], description: str | None, arguments: Sequence[str] | None = None, **more: Any
) -> int:
    """Read the flags and run. Returns 0, 2 with one line on stderr for what the user can mend, or 141, as a shell has it for SIGPIPE."""
    try:
        try:
            main(tyro.cli(settings, args=arguments, description=description, **more))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nothing may be flushed when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0
