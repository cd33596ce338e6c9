"""Build hook: makes `wsejax_models` importable, and live, in an editable install.

A wheel renames models/ to wsejax_models, which a path entry cannot do. An editable install gets a one-file
`wsejax_models` that runs models/__init__.py and looks for submodules in models/, so edits show without reinstalling.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIM = """\
from pathlib import Path

__file__ = {init!r}
__path__ = [str(Path(__file__).parent)]
exec(compile(Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
"""


class EditableModels(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            return
        self.scratch = tempfile.TemporaryDirectory()
        shim = Path(self.scratch.name) / "__init__.py"
        shim.write_text(SHIM.format(init=str(Path(self.root) / "models" / "__init__.py")), encoding="utf-8")
        build_data["force_include_editable"][str(shim)] = "wsejax_models/__init__.py"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version == "editable":
            self.scratch.cleanup()
