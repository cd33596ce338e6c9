"""Execute the notebooks from top to bottom: `python -m experiments.run_notebooks --help`. Fails where a cell fails, with its traceback."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console
from rich.markdown import Markdown

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"


@dataclass(frozen=True)
class Settings:
    """Execute notebooks, each in a fresh kernel of this Python."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Notebooks, such as `01_first_wafer`; left out: all of them."""
    out: Path = Path("runs/notebooks")
    """Folder for the executed notebooks, with their outputs; the sources stay as they are."""
    timeout_seconds: int = 600
    """Longest time for one cell."""


def names() -> list[str]:
    """The notebooks of this repository, in their order."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def execute(name: str, timeout_seconds: int = 600) -> nbformat.NotebookNode:
    """Run the cells of `notebooks/name.py` in a fresh kernel. Returns the notebook with its outputs.

    Raises:
      FileNotFoundError: no such notebook; the message lists what there is.
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    source = FOLDER / f"{name}.py"
    if not source.is_file():
        raise FileNotFoundError(f"{name!r} is no notebook; there are {', '.join(names())}")
    notebook = jupytext.read(source)
    # the kernel starts in the folder of the notebooks, and finds `models` and `wsejax` of this checkout also where it is not installed
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("MPLBACKEND", None)  # it would come before the notebook's own choice
    client = NotebookClient(notebook, timeout=timeout_seconds, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    return client.execute(env=environment)


def finding(notebook: nbformat.NotebookNode) -> str:
    """What the last cell says."""
    outputs = notebook.cells[-1].outputs
    return "".join(out.get("text") or out.get("data", {}).get("text/markdown", "") for out in outputs).strip()


def main(settings: Settings) -> int:
    """Run them, print findings and host seconds. Returns 0, or 1 where a cell failed."""
    console = Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    for name in settings.names or names():
        began = time.perf_counter()
        with console.status(f"running {name}"):
            try:
                notebook = execute(name, settings.timeout_seconds)
            except (CellExecutionError, FileNotFoundError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
        nbformat.write(notebook, settings.out / f"{name}.ipynb")
        console.print(f"[bold]{name}[/bold]  {time.perf_counter() - began:.0f} s on this host")
        console.print(Markdown(finding(notebook)), end="\n\n")
    console.print(f"with their outputs: {settings.out}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
