"""The command line: `wsejax --help`."""

from wsejax.cli.command import main

__all__ = ["main"]
