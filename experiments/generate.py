"""Text out of a model that was trained here, or out of any that `wsejax generate` takes: `python -m experiments.generate --help`.

--model may be the folder of a run of `experiments.train`, of which the newest checkpoint is read. All else is as `wsejax generate` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsejax.cli.command import CONFIG
from wsejax.cli.generate import Generate, Source, stored_source
from wsejax.cli.output import show

from .entry import start
from .reproduce import begin_of, settings_of

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Settings(Generate):
    """Go on from prompts with a model on an emulated wafer, also with one of a run of experiments.train."""

    def source(self) -> Source:
        """Raises ValueError or OSError for what is no model."""
        folder = Path(self.model)
        if not (folder / MANIFEST).is_file():
            return super().source()
        if "dpo" in begin_of(folder / MANIFEST)["settings"]:
            raise ValueError(
                f"--model {folder}: is a run of experiments.finetune; the same command with --export FOLDER writes its model, "
                "which this one then takes"
            )
        model = settings_of(folder / MANIFEST).model
        config = replace(model.config(), dtype=self.dtype, param_dtype=self.dtype)
        return stored_source(folder, model.family(), config, f"{model.name} of {folder}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0, 2 for what the user can mend, or 130 when interrupted."""
    status = 0

    def generate(settings: Settings) -> None:
        nonlocal status
        output = settings.run()
        show(output, settings.json)
        status = output.status

    return start(generate, Settings, __doc__, arguments, prog="python -m experiments.generate", config=CONFIG) or status


if __name__ == "__main__":
    sys.exit(main())
