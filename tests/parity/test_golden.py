"""Our models against what `transformers` gave for the same files: logits, greedy tokens, the files themselves, on a wafer and off it.

`make parity` makes the golden files anew and holds gradients against theirs, too.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from models import weights
from models.families import FAMILIES
from models.family import Family
from tests.parity import ours
from tests.parity.cases import BY_NAME, CASES, GOLDEN, Case

TOLERANCE = 2e-5  # largest difference of logits over the largest logit
SPEC = wse.WSE3.scaled(32, 32)
DEFECTS = wse.DefectMap.uniform(SPEC, dead_pe_fraction=0.02, seed=0)

# Compiling costs most, so the fast tests take one case of each way to do a thing.
GENERATED_FAST = ("gpt2", "mistral", "falcon_alibi", "t5")
ON_WAFER_FAST = ("llama_gqa",)


def each(fast: tuple[str, ...] | None = None, kinds: tuple[str, ...] = ("decoder", "encoder", "encoder-decoder")) -> Any:
    """One test a case, those that are not fast marked slow."""
    chosen = [case for case in CASES if FAMILIES[case.family].kind in kinds]
    slow = [[] if fast is None or case.name in fast else [pytest.mark.slow] for case in chosen]
    return pytest.mark.parametrize("case", [pytest.param(c, marks=m, id=c.name) for c, m in zip(chosen, slow, strict=True)])


@functools.cache
def stored(case: Case) -> tuple[Family, Any, Any]:
    """Family, configuration, and parameters in the dtype of the file."""
    family = FAMILIES[case.family]
    return family, *weights.load(GOLDEN / case.name, family)


def loaded(case: Case) -> tuple[Family, Any, Any, ours.Arrays]:
    """Family, configuration, float32 parameters, and the golden arrays."""
    family, config, params = stored(case)
    return family, config, jax.tree.map(lambda x: x.astype(jnp.float32), params), ours.arrays(GOLDEN / case.name)


def test_every_family_has_golden_files_and_every_file_a_case() -> None:
    assert {case.family for case in CASES} == set(FAMILIES)
    assert {folder.name for folder in GOLDEN.iterdir()} == set(BY_NAME)


@each()
def test_logits(case: Case) -> None:
    family, config, params, given = loaded(case)
    got = ours.run(functools.partial(ours.forward, family, config), params, ours.inputs(family, given))
    assert got.dtype == jnp.float32
    assert ours.difference(got, given["logits"], ours.counted(family, given)) <= TOLERANCE


@each(fast=GENERATED_FAST, kinds=("decoder", "encoder-decoder"))
def test_greedy_tokens_of_ragged_prompts(case: Case) -> None:
    family, config, params, given = loaded(case)
    greedy = functools.partial(ours.greedy, family, config, new=given["generated"].shape[1])
    got = jax.jit(greedy)(params, *ours.prompts(family, given))
    np.testing.assert_array_equal(got, given["generated"])


@each()
def test_files_come_out_as_they_went_in(case: Case, tmp_path) -> None:
    family, config, params = stored(case)
    weights.save(tmp_path / "out", family, config, params)
    before, after = ours.tensors(GOLDEN / case.name), ours.tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (after[name].dtype, after[name].shape, after[name].tobytes()), name
    assert family.from_hf(json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))) == config


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.older])
def test_older_words_for_the_same_configuration(case: Case) -> None:
    family = FAMILIES[case.family]
    newer = json.loads((GOLDEN / case.name / "config.json").read_text(encoding="utf-8"))
    older = {name: value for name, value in {**newer, **case.older}.items() if value is not None or name not in case.older}
    assert older != newer
    assert family.from_hf(older) == family.from_hf(newer)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.family == "mixtral"])
def test_the_loss_that_balances_experts(case: Case) -> None:
    family, config, params, given = loaded(case)
    present = ours.counted(family, given).astype(np.int32)
    balance = lambda params, tokens, present: family.bound(config, params).with_balance(tokens, present=present)[1]
    for name, counts in (("aux_loss", present), ("aux_loss_all", np.ones_like(present))):
        assert ours.run(balance, params, given["tokens"], counts) == pytest.approx(given[name].item(), rel=1e-5)
    assert given["aux_loss"].item() != pytest.approx(given["aux_loss_all"].item(), rel=1e-4)


@each(fast=ON_WAFER_FAST)
def test_logits_on_a_wafer_with_defects(case: Case) -> None:
    family, config, params, given = loaded(case)
    wafer = wse.Wafer(SPEC, defects=DEFECTS, tiles=(4, 4), devices=(2, 2))
    compiled = wse.jit(functools.partial(ours.forward, family, config), wafer).lower(params, ours.inputs(family, given)).compile()
    wse.check_hlo(compiled)
    got = compiled(params, ours.inputs(family, given))
    assert ours.difference(got, given["logits"], ours.counted(family, given)) <= TOLERANCE


@each(fast=(), kinds=("decoder", "encoder-decoder"))
def test_greedy_tokens_on_a_wafer_with_defects(case: Case) -> None:
    family, config, params, given = loaded(case)
    wafer = wse.Wafer(SPEC, defects=DEFECTS, tiles=(2, 2), devices=(2, 2))
    new = given["generated"].shape[1]
    run = wse.jit(functools.partial(ours.greedy, family, config, new=new), wafer)
    np.testing.assert_array_equal(run(params, *ours.prompts(family, given)), given["generated"])
