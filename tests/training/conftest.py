"""Runs to verify: one that all share, and one of one's own."""

from __future__ import annotations

import pytest

from tests.training.run_folders import CONFIG, KEEP, TEXT, WAFER, Run, finished
from wsejax.training.provenance import file_digest, origin


@pytest.fixture(scope="module")
def begin(tmp_path_factory) -> dict:
    """What the manifest of each run here begins with; its data lie beside the run's folder."""
    package = tmp_path_factory.mktemp("package")
    (package / "a.py").write_text("x = 1")
    data = {"sha256": "0" * 64, "library": False, "files": [{"name": TEXT, "bytes": 5, "sha256": _text_digest(tmp_path_factory)}]}
    return origin(
        settings={"keep": KEEP}, config=CONFIG, data=data, program={"sha256": "1" * 64}, wafer=WAFER, packages={"models": package}
    )  # fmt: skip


def _text_digest(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / TEXT
    path.write_text("words")
    return file_digest(path)["sha256"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, begin) -> Run:
    """A complete run. Nobody changes it: `changed` gives the files back."""
    return finished(tmp_path_factory.mktemp("whole"), begin)


@pytest.fixture
def run(tmp_path, begin) -> Run:
    """A complete run of one's own."""
    return finished(tmp_path, begin)
