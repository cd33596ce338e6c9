"""`wsejax`: subcommands, and what happens to their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from wsejax.compiler import UnsupportedOpError

from .lowering import Audit, Cost, Trace
from .machine import Specs, WaferCommand
from .models import Compare, Fit, Validate
from .output import show

_named = tyro.conf.subcommand
COMMANDS: dict[str, Any] = {
    "specs": Specs,
    "wafer": WaferCommand,
    "audit": Audit,
    "cost": Cost,
    "fit": Fit,
    "compare": Compare,
    "trace": Trace,
    "validate": Validate,
}
DESCRIPTION = (
    "A functional emulator of a wafer-scale engine: what the machine is, what a program does on it, and what that would take. "
    "Every wafer time is modelled, and none is measured."
)


def _commands() -> Any:
    """A union of all commands, each under its name."""
    union: Any = None
    for name, command in COMMANDS.items():
        one = Annotated[command, _named(name)]
        union = one if union is None else union | one
    return union


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, or 2 for what the user can mend, which is then one line on stderr."""
    command = tyro.cli(
        _commands(),
        args=arguments,
        prog="wsejax",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        output = command.run()
    except (ValueError, OSError, ImportError, UnsupportedOpError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    try:
        show(output, command.json)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads, such as `head`, has read enough; nothing may be flushed when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell has it for SIGPIPE
    return 0
