"""The bench of compiling says what it measures, and the Llama-shaped step is a train step of 70 billion parameters."""

from __future__ import annotations

import math

import jax
import pytest

from experiments.compile_bench import Settings, llama_step, main


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_it_prints_ratios_and_that_everything_is_on_the_fabric(capsys):
    main(Settings(part="trace", layers=2, rounds=1))
    main(Settings(part="audit"))
    said = capsys.readouterr().out
    assert said.count("ratio") == 2 and said.count(", all on the fabric") == 2 and "NOT" not in said


def test_the_llama_step_trains_seventy_billion_parameters():
    step, ((params, moments), ids) = llama_step()
    assert 70e9 < sum(math.prod(p.shape) for p in jax.tree.leaves(params)) < 71e9
    (after, _), loss = jax.eval_shape(step, (params, moments), ids)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    assert loss.shape == ()


@pytest.mark.slow
def test_a_hit_in_a_new_process_is_several_times_as_fast_as_a_miss(capsys):
    main(Settings(part="cache", layers=4))
    assert float(capsys.readouterr().out.split()[-2]) > 2  # beside another test; the command prints what a quiet machine gives
