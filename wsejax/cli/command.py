"""`wsejax`: subcommands, and what happens to their errors."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from wsejax.compiler import UnsupportedOpError

from .ckpt import Ckpt
from .generate import Generate
from .lowering import Audit, Cost, Trace
from .machine import Specs, WaferCommand
from .models import Compare, Fit, Models, Validate
from .output import show
from .scale import Scale
from .verify import Verify

_named = tyro.conf.subcommand
COMMANDS: dict[str, Any] = {
    "specs": Specs,
    "wafer": WaferCommand,
    "audit": Audit,
    "cost": Cost,
    "fit": Fit,
    "compare": Compare,
    "scale": Scale,
    "models": Models,
    "trace": Trace,
    "validate": Validate,
    "verify": Verify,
    "ckpt": Ckpt,
    "generate": Generate,
}
CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
DESCRIPTION = (
    "A functional emulator of a wafer-scale engine: what the machine is, what a program does on it, and what that would take. "
    "Every wafer time is modelled, and none is measured. --version tells which wsejax this is."
)


def _commands() -> Any:
    """A union of all commands, each under its name."""
    union: Any = None
    for name, command in COMMANDS.items():
        one = Annotated[command, _named(name)]
        union = one if union is None else union | one
    return union


def version() -> str:
    """Of the installed package; of a checkout that is not installed nobody knows."""
    try:
        return f"wsejax {importlib.metadata.version('wsejax')}"
    except importlib.metadata.PackageNotFoundError:
        return "wsejax, from a checkout that is not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, 1 where `verify` finds a run tampered with or `ckpt diff` finds a difference, or 2 for what the
    user can mend, which is then one line on stderr."""
    try:
        status = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads, such as `head`, has read enough; nothing may be flushed when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell has it for SIGPIPE


def _main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        print(version())
        return 0
    command = tyro.cli(
        _commands(),
        args=arguments,
        prog="wsejax",
        description=DESCRIPTION,
        config=CONFIG,
    )
    try:
        output = command.run()
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, UnsupportedOpError) as error:
        print("error: " + " ".join(_said(error).split()), file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: more than this host's memory: {' '.join(str(error).split())}; ask for something smaller", file=sys.stderr)
        return 2
    show(output, command.json)
    return output.status


def _said(error: Exception) -> str:
    """The error's own words; of a file that cannot be written, the name that the user gave."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename).removesuffix('.partial')}: {error.strerror or error}; give a path that can be read or written"
    return str(error)
