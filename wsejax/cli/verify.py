"""`wsejax verify`: whether the folder of a run is still what its manifest says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

import wsejax

from .output import Output, table

_BESIDE = {"models": ("wsejax_models", "models"), "experiments": ("experiments",)}  # sources that a manifest tells of -> their folders


def packages() -> dict[str, Path]:
    """Where the sources that belong to a run are now, as far as they are beside this wsejax; a wheel has no experiments."""
    home = Path(next(iter(wsejax.__path__))).parent
    found = {name: [home / folder for folder in folders if (home / folder).is_dir()] for name, folders in _BESIDE.items()}
    return {name: folders[0] for name, folders in found.items() if folders}


@dataclasses.dataclass(frozen=True)
class Verify:
    """Hold a run's folder against its manifest: configuration, data, checkpoints, metrics, deaths, sources. Exit code 1 where something
    was tampered with. Who rewrites the whole manifest leaves no trace in it: keep the head elsewhere, and give it as --head."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run of experiments.train."""
    head: str = ""
    """Hash of the last entry, as this command once printed it; an older one is found, too."""
    data: Path = Path()
    """Folder that the run was started in, where relative names of data files begin."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> Output:
        from wsejax.training.verify import verify  # here, since other commands do without

        if self.head and not re.fullmatch("[0-9a-f]{64}", self.head):
            raise ValueError(f"--head {self.head}: give the 64 hexadecimal digits that `wsejax verify` prints as head")
        found = verify(self.run_folder, data=self.data, packages=packages(), head=self.head)
        data: dict[str, Any] = {
            "run": str(self.run_folder), "tampered": found.tampered, "head": found.head, "entries": found.entries,
            "checks": [dataclasses.asdict(check) for check in found.checks],
        }  # fmt: skip
        rows = [(check.what, check.status, "; ".join(filter(None, _words(check)))) for check in found.checks]
        said = "TAMPERED with" if found.tampered else "nothing was tampered with"
        sheet = table(("what", "status", "finding"), rows, fold={"finding": 30})
        sheet = dataclasses.replace(sheet, left=(0, 1, 2))
        tail = f"head: {found.head or 'none'} (entry {found.entries - 1})" if found.entries else "head: none"
        return Output(data, [f"{self.run_folder}: {said}", sheet, tail], status=int(found.tampered))


def _words(check: Any) -> list[str]:
    """Where a check found what."""
    where = ", ".join(filter(None, (check.file, check.entry)))
    hashes = f"expected {check.expected}, found {check.found or 'nothing'}" if check.expected or check.found else ""
    return [where, check.detail, re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", hashes)]  # --json has all digits
