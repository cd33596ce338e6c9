"""The house: which way imports run, what only one place may do, and that each rule would catch a breach."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("wsejax", "models", "experiments")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".cfg", ".ini", ".yml", ".yaml", ".json", ".ipynb", ".sh", ".txt", ""}

Rule = Callable[[str, str], list[str]]


def python_files(*folders: str) -> dict[str, str]:
    """Path inside the repository -> source, of every Python file under `folders`."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def repository_files() -> dict[str, str]:
    """Path -> text of what is published: the tracked files, or outside a clone those in the known places."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [file for folder in (*PRODUCT, "tests") for file in (ROOT / folder).rglob("*")]
        files += [file for file in ROOT.iterdir() if not file.name.startswith(".venv")]
    return {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for file in files
        if file.is_file() and file.suffix in TEXT_SUFFIXES
    }


RULES: list[tuple[Rule, tuple[str, ...]]] = [
    (house.arrows, ("wsejax", "models")),
    (house.collectives, ("wsejax", "models")),
    (house.private_jax, (*PRODUCT, "tests")),
    (house.hardware_is_numpy, ("wsejax/hardware",)),
    (house.unsafe_loading, (*PRODUCT, "tests")),
    (house.too_long, (*PRODUCT, "tests")),
]


@pytest.mark.parametrize(("rule", "folders"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_tree_keeps_the_rule(rule: Rule, folders: tuple[str, ...]) -> None:
    files = python_files(*folders)
    assert files, f"no Python file under {folders}: the rule would hold of nothing"
    assert [breach for path, source in files.items() for breach in rule(path, source)] == []


def test_package_inits_only_reexport() -> None:
    inits = {path: source for path, source in python_files("wsejax").items() if path.endswith("__init__.py")}
    assert inits
    assert [breach for path, source in inits.items() for breach in house.only_reexports(path, source)] == []


def test_every_folder_of_wsejax_is_a_floor() -> None:
    """A folder outside the order would be outside the arrows too."""
    folders = {path.split("/")[1] for path in python_files("wsejax") if path.count("/") > 1}
    assert folders <= set(house.FLOORS)


def test_one_file_at_most_touches_jax_extend() -> None:
    users = [path for path, source in python_files(*PRODUCT).items() if house.reaches_jax_extend(path, source)]
    assert len(users) <= 1, f"jax.extend promises no compatibility; keep it in one file, not {users}"


def test_no_file_is_tied_to_a_place() -> None:
    files = repository_files()
    assert "pyproject.toml" in files
    assert [breach for path, text in files.items() for breach in house.tied_to_a_place(path, text)] == []


def test_the_top_level_holds_what_belongs_there() -> None:
    """What a run left behind, committed by mistake, would be a file that nobody knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    known = {"pyproject.toml", "hatch_build.py", "Makefile", "README.md", "ARCHITECTURE.md", "LICENSE", ".gitignore", ".ci"}
    known |= {*PRODUCT, "tests", "notebooks"}
    assert {name.split("/")[0] for name in listed.stdout.split("\0") if name} <= known


def test_floors_are_ordered() -> None:
    """Each floor sees everything that the floors it sees do, and no two see each other."""
    for floor, below in house.FLOORS.items():
        assert floor not in below
        for lower in below:
            assert house.FLOORS[lower] <= below, f"{floor} sees {lower}, but not all that {lower} sees"
            assert floor not in house.FLOORS[lower]


# Each rule against a breach of it and a near miss that is fine, written as (rule, path, source, number of breaches).
HOME = "/".join(("", "home", "someone", "corpus.txt"))  # joined here, or this file would break the rule
REGISTRY = ".".join(("pypi", "org"))
CASES: list[tuple[Rule, str, str, int]] = [
    # arrows: upward, absolute and relative, at any depth of the file
    (house.arrows, "wsejax/hardware/spec.py", "from wsejax.fabric import shift", 1),
    (house.arrows, "wsejax/hardware/spec.py", "from ..fabric.shift import shift", 1),
    (house.arrows, "wsejax/hardware/spec.py", "from .. import fabric", 1),
    (house.arrows, "wsejax/hardware/spec.py", "import numpy, wsejax.kernels.gemm as g", 1),
    (house.arrows, "wsejax/fabric/shift.py", "def f():\n    from ..compiler import walk", 1),
    (house.arrows, "wsejax/fabric/shift.py", "if TYPE_CHECKING:\n    from ..compiler import walk", 1),
    (house.arrows, "wsejax/fabric/shift.py", "import importlib\nimportlib.import_module('wsejax.cost')", 1),
    (house.arrows, "wsejax/compiler/rules/dot.py", "from ...cost.model import Cost", 1),
    (house.arrows, "wsejax/cost/model.py", "from ..streaming import schedule", 0),
    (house.arrows, "wsejax/streaming/swarmx.py", "from wsejax import cost", 1),
    (house.arrows, "wsejax/training/state.py", "import wsejax as wse", 1),
    (house.arrows, "wsejax/training/state.py", "from .. import Wafer", 1),
    (house.arrows, "wsejax/helpers/misc.py", "from wsejax.hardware import spec", 1),
    (house.arrows, "wsejax/kernels/gemm.py", "import models.gpt", 1),
    (house.arrows, "wsejax/cli.py", "from experiments import train", 1),
    (house.arrows, "wsejax/cli/programs.py", "from experiments import train", 1),
    (house.arrows, "wsejax/report/plots.py", "from wsejax_models import presets", 1),
    (house.arrows, "wsejax/cli/programs.py", "from wsejax_models import presets\nimport models.gpt", 0),
    (house.arrows, "wsejax/compiler/rules/dot.py", "from ...kernels import gemm\nfrom ..layout import Layout", 0),
    (house.arrows, "wsejax/compiler/rules/__init__.py", "from .dot import rule\nfrom ..walk import walk", 0),
    (house.arrows, "wsejax/hardware/wafer.py", "from .spec import WaferSpec\nfrom . import defects\nimport jax", 0),
    (house.arrows, "wsejax/cli.py", "import wsejax as wse\nfrom .report import tables", 0),
    (house.arrows, "wsejax/__init__.py", "from .compiler import jit\nfrom .hardware import Wafer", 0),
    (house.arrows, "models/gpt.py", "import wsejax", 1),
    (house.arrows, "models/gpt.py", "def f():\n    from wsejax.fabric import shift", 1),
    (house.arrows, "models/gpt.py", "from models import layers", 1),
    (house.arrows, "models/gpt.py", "from . import layers\nfrom .layers import Block\nfrom flax import nnx", 0),
    # collectives: by any alias, but not a function of the fabric that has the same name
    (house.collectives, "wsejax/kernels/gemm.py", "from jax import lax\nlax.ppermute(x, 'x', [])", 1),
    (house.collectives, "wsejax/kernels/gemm.py", "import jax.lax as L\ny = L.psum(x, 'x')", 1),
    (house.collectives, "wsejax/kernels/gemm.py", "import jax\ny = jax.lax.all_gather(x, 'x')", 1),
    (house.collectives, "wsejax/kernels/gemm.py", "import jax\nf = getattr(jax.lax, 'all_to_all')", 1),
    (house.collectives, "wsejax/fabric/collectives.py", "import jax\njax.lax.psum(x, 'x')", 1),
    (house.collectives, "wsejax/fabric/shift.py", "import jax\njax.lax.ppermute(x, 'x', [])", 0),
    (house.collectives, "wsejax/kernels/gemm.py", "from .. import fabric\nfabric.all_gather(x, 'x')", 0),
    (house.collectives, "wsejax/compiler/audit.py", "MOVES = ('ppermute', 'psum_invariant')", 0),
    # jax._src, jax.extend and jax in hardware/
    (house.private_jax, "wsejax/compiler/walk.py", "from jax._src import core", 1),
    (house.private_jax, "wsejax/compiler/walk.py", "import jax\nx = jax._src", 1),
    (house.private_jax, "wsejax/compiler/walk.py", "import jax.extend.core as jec\nx = jec.Jaxpr", 0),
    (house.hardware_is_numpy, "wsejax/hardware/remap.py", "import jax.numpy as jnp", 1),
    (house.hardware_is_numpy, "wsejax/hardware/remap.py", "import jax\ny = jax.numpy.zeros", 1),
    (house.hardware_is_numpy, "wsejax/hardware/wafer.py", "import jax\nm = jax.sharding.Mesh", 0),
    # files that could run code
    (house.unsafe_loading, "wsejax/hardware/defects.py", "import pickle", 1),
    (house.unsafe_loading, "wsejax/hardware/defects.py", "import numpy as np\nnp.load(f, allow_pickle=True)", 1),
    (house.unsafe_loading, "wsejax/hardware/defects.py", "import numpy as np\nnp.load(f, allow_pickle=False)", 0),
    (house.unsafe_loading, "tests/hardware/test_defects.py", "import pickle\nx = pickle.loads(b)", 1),
    (house.unsafe_loading, "tests/hardware/test_defects.py", "from pickle import load", 1),
    (house.unsafe_loading, "tests/hardware/test_defects.py", "import numpy as np\nnp.load(f, allow_pickle=True)", 1),
    (house.unsafe_loading, "tests/hardware/test_defects.py", "import pickle\nx = pickle.dumps({})", 0),
    # what an __init__ may hold
    (house.only_reexports, "wsejax/__init__.py", "def jit(): ...", 1),
    (house.only_reexports, "wsejax/__init__.py", "import jax", 1),
    (house.only_reexports, "wsejax/__init__.py", "from jax import jit", 1),
    (house.only_reexports, "wsejax/__init__.py", "X = 1", 1),
    (house.only_reexports, "wsejax/__init__.py", '"""Doc."""\nfrom .compiler import jit\n__all__ = ["jit"]', 0),
    # length and place
    (house.too_long, "wsejax/kernels/gemm.py", "x = 1\n" * (house.MAX_LINES + 1), 1),
    (house.too_long, "wsejax/kernels/gemm.py", "x = 1\n" * house.MAX_LINES, 0),
    (house.tied_to_a_place, "experiments/train.py", f"data = '{HOME}'", 1),
    (house.tied_to_a_place, "Makefile", f"pip install --index-url https://{REGISTRY}/simple", 1),
    (house.tied_to_a_place, "README.md", "https://example.com/home/page and out/tmp/x and a/work/b, bytes/opt/step", 0),
]


@pytest.mark.parametrize(("rule", "path", "source", "breaches"), CASES)
def test_the_rule_catches_a_breach_and_no_more(rule: Rule, path: str, source: str, breaches: int) -> None:
    found = {breach.split(": ")[0] for breach in rule(path, source)}
    assert len(found) == breaches, rule(path, source)


def test_jax_extend_is_seen_through_aliases() -> None:
    for source in ("import jax.extend.core as c", "from jax import extend", "from jax.extend.core import Jaxpr"):
        assert house.reaches_jax_extend("wsejax/compiler/walk.py", source)
    assert not house.reaches_jax_extend("wsejax/compiler/walk.py", "import jax\nx = jax.make_jaxpr")
