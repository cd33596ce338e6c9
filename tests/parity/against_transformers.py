"""The golden files made anew, and our gradients against those of `transformers`: `make parity`, since it needs that and torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from models import weights
from models.families import FAMILIES
from tests.parity import ours, write_golden
from tests.parity.cases import CASES, GOLDEN, Case

each = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
# Other instructions of a processor move the largest logit by up to 3e-6 of itself, and change no token.
SAME_OUTPUTS = 1e-5
GRADIENTS = 1e-4


@pytest.fixture(scope="module", autouse=True)
def quietly():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@functools.cache
def fresh(case: Case, folder: Path) -> Path:
    """The case's folder, written now."""
    write_golden.write(case, folder / case.name, with_gradients=True)
    return folder / case.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fresh")


@each
def test_the_golden_files_are_what_transformers_writes(case: Case, folder: Path) -> None:
    new, old = fresh(case, folder), GOLDEN / case.name
    assert {file.name for file in new.iterdir()} - {"gradients"} == {file.name for file in old.iterdir()}
    configs = [json.loads((at / "config.json").read_text(encoding="utf-8")) for at in (new, old)]
    assert {**configs[0], "transformers_version": None} == {**configs[1], "transformers_version": None}
    for a, b in ((ours.tensors(new), ours.tensors(old)), (ours.arrays(new), ours.arrays(old))):
        assert a.keys() == b.keys()
        for name, array in b.items():
            if name == "logits" or name.startswith("aux_loss"):
                assert np.abs(a[name] - array).max() <= SAME_OUTPUTS * np.abs(array).max(), name
            else:
                assert (a[name].dtype, a[name].shape, a[name].tobytes()) == (array.dtype, array.shape, array.tobytes()), name


@each
def test_logits_and_gradients_are_theirs(case: Case, folder: Path) -> None:
    family, made = FAMILIES[case.family], fresh(case, folder)
    config, params = weights.load(made, family, dtype=jnp.float32)
    wanted = weights.load(made / "gradients", family, config)[1]
    given = ours.arrays(made)
    counts = ours.counted(family, given)
    logits = ours.run(functools.partial(ours.forward, family, config), params, ours.inputs(family, given))
    assert ours.difference(logits, given["logits"], counts) <= 2e-5
    got = ours.run(jax.grad(functools.partial(ours.loss, family, config)), params, given, counts)
    # A gradient that is zero but for rounding, such as that of a key's bias, is held against the largest of all.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        close = GRADIENTS * float(np.abs(b).max()) + 1e-6 * largest
        assert float(np.abs(a - b).max()) <= close, jax.tree_util.keystr(path)
